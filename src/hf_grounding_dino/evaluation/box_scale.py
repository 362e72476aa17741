"""In which scale boxes are that should be pixels of the picture, and are not."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..data.readers.files import upright_size
from ..data.records import ImageSource
from .analysis import Sample
from .overlap import overlaps

_LEAST_SHARE = 0.4
_LEAST_GAIN = 2.0
_HIT_IOU = 0.5
# (shortest edge, longest edge) of usual resizings, then sides of usual squares.
_EDGES = ((800, 1333), (600, 1000), (640, 1066), (480, 800), (320, 533))
_SQUARES = (1333, 1024, 800, 640, 512, 384, 320)

Boxes = NDArray[Any]
Size = tuple[int, int]
Reading = Callable[[Boxes, Size], Boxes]


class OtherReading(NamedTuple):
    """A reading of the boxes that fits better.

    reading: in words, after "the boxes seem to be".
    share, share_now: of the truths, how many have a box on them in this reading, and as they are.
    num_truths: how many truths were looked at.
    """

    reading: str
    share: float
    share_now: float
    num_truths: int


def other_reading(samples: Sequence[Sample]) -> OtherReading | None:
    """The reading of the boxes under which they find at least twice as many truths, and many; None without one."""
    sized = [(sample, size) for sample in samples if (size := _size(sample.image)) is not None]
    total = sum(len(sample.truths) for sample, _ in sized)
    if not total:
        return None

    def share(read: Reading) -> float:
        return sum(_located(read(sample.boxes, size), sample.truths) for sample, size in sized) / total

    now = share(lambda boxes, _: boxes)
    best, words = max((share(read), words) for words, read in _readings())
    enough = best >= _LEAST_SHARE and best >= _LEAST_GAIN * now
    return OtherReading(words, best, now, total) if enough else None


def _located(boxes: Boxes, truths: Boxes) -> int:
    return int((overlaps(boxes, truths) >= _HIT_IOU).any(0).sum())


def _readings() -> Iterator[tuple[str, Reading]]:
    yield "shares of the picture's sides, (x0, y0, x1, y1) in [0, 1]", _of_shares
    yield "centres and sides in [0, 1]", lambda boxes, size: _of_shares(_of_centers(boxes), size)
    yield "centres and sides (x, y, width, height) in pixels", lambda boxes, _: _of_centers(boxes)
    yield "corners and sides (x, y, width, height) in pixels", lambda boxes, _: _of_sides(boxes)
    for shortest, longest in _EDGES:
        yield f"pixels of the picture resized to {shortest}/{longest}", _of_resized(shortest, longest)
    for side in _SQUARES:
        yield f"pixels of the picture resized to {side} × {side}", _of_square(side)


def _of_shares(boxes: Boxes, size: Size) -> Boxes:
    return boxes * np.array([*size, *size])


def _of_centers(boxes: Boxes) -> Boxes:
    return np.concatenate([boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, :2] + boxes[:, 2:] / 2], 1)


def _of_sides(boxes: Boxes) -> Boxes:
    return np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], 1)


def _of_resized(shortest: int, longest: int) -> Reading:
    return lambda boxes, size: boxes / min(shortest / min(size), longest / max(size))


def _of_square(side: int) -> Reading:
    return lambda boxes, size: _of_shares(boxes / side, size)


def _size(image: ImageSource) -> Size | None:
    try:
        return image.size if isinstance(image, Image.Image) else _size_of_file(image)
    except ValueError:
        return None


def _size_of_file(image: Path | bytes) -> Size:
    return upright_size(image)
