"""What training changes in an image: its side, its size, what part of it is seen; boxes and words stay true.

The steps are those of MM-Grounding-DINO's training, without colors; but where an image is flipped, its caption says
"right" for "left", and where words cannot follow, the image is not flipped.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional
from torchvision.tv_tensors import BoundingBoxes, BoundingBoxFormat

Spans = tuple[tuple[tuple[int, int], ...], ...]
SpansLike = Sequence[Sequence[tuple[int, int]]]

_SIDES = {"left": "right", "right": "left"}
# "left" and "right" as words, "leftmost", "left-hand", "top-left"; the side itself is the group.
_SIDE_WORD = re.compile(
    r"(?<![\w'’-])(?:(?:top|bottom|upper|lower|far|front|back|rear|mid|middle|center|centre)-)?"
    r"(left|right)(?:-?most|-hand)?(?![\w'’-])",
    re.IGNORECASE,
)
_SIDE_LETTERS = re.compile("left|right", re.IGNORECASE)
_NO_SIDE = re.compile(r"\b(?:bright|fright|upright|copyright|outright|downright)\w*", re.IGNORECASE)
# Where the word may mean "remaining", "correct" or "just", nobody can say whether it must change.
_IDIOM = re.compile(
    r"\bleft\s+(?:over|behind|alone|open|out|outside|off|unattended|untouched|empty|field|fielder"
    r"|the|a|an|his|her|its|their|my|your|some|no)\b"
    r"|\bright\s+(?:now|away|angled?|angles|triangles?|here|there|up|down|through|into|onto|off|out|past|beyond|as"
    r"|where|when|way|time|answer|amount|size|field|fielder|whale|side\s+up|side\s+out|and\s+wrong|or\s+wrong"
    r"|of\s+way)\b"
    r"|\b(?:all|wrong\s+and|wrong\s+or|civil|human)\s+right\b"
    # "The box left on a table", "right behind a car"; but not "the box on the left on a table".
    r"|(?<!\bthe\s)(?<!\bon\s)(?<!\bfar\s)\b(?:left|right)\s+(?:next|across|along|against|near|between|in|on|at|by|for"
    r"|with|above|below|under|underneath|beneath|over|besides?|behind|before|after|outside|inside|around)\b"
    # "Is left"; but not "is left of".
    r"|\b(?:is|are|was|were|be|been|being|am|has|have|had|having|gets?|got|just|who|which|that|they|he|she|it|we|you|i)"
    r"\s+(?:left|right)\b(?!\s+of\b)"
    # "Left to dry"; but not "left to right".
    r"|\bleft\s+to\b(?!\s+right\b)|(?<!\bleft\sto\s)\bright\s+to\b(?!\s+left\b)",
    re.IGNORECASE,
)


@dataclass(frozen=True, kw_only=True)
class AugmentationSettings:
    """What is drawn for each image.

    flip: how often, in [0, 1], left and right are exchanged.
    short_sides: the lengths, in pixels, of which the short side gets one.
    longest_side: what the long side may have; a longer image gets a shorter short side.
    crop: how often, in [0, 1], a part is cut out before that.
    crop_short_sides: what the short side has when the part is cut.
    crop_longest_side: what the long side may have then.
    crop_size: the shortest and the longest side of the part, both included; less where the image has less.
    smallest_box: boxes that end with a side shorter than this, in pixels, are dropped.
    """

    flip: float = 0.5
    short_sides: tuple[int, ...] = tuple(range(480, 801, 32))
    longest_side: int = 1333
    crop: float = 0.5
    crop_short_sides: tuple[int, ...] = (400, 500, 600)
    crop_longest_side: int = 4200
    crop_size: tuple[int, int] = (384, 600)
    smallest_box: float = 0.01

    def __post_init__(self) -> None:
        """Refuse what cannot be drawn.

        Raises:
            ValueError: a share outside [0, 1], no side to draw, a side of less than one pixel, an empty range.
        """
        for name in ("flip", "crop"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is in [0, 1], not {getattr(self, name)}")
        for name in ("short_sides", "crop_short_sides", "crop_size"):
            if min(getattr(self, name), default=0) < 1:
                raise ValueError(f"{name} holds sides of at least 1 pixel, not {getattr(self, name)}")
        for name in ("longest_side", "crop_longest_side"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is at least 1 pixel, not {getattr(self, name)}")
        if len(self.crop_size) != 2 or self.crop_size[0] > self.crop_size[1]:
            raise ValueError(f"crop_size is the shortest and the longest side, not {self.crop_size}")

    def scaled(self, shortest_edge: int, longest_edge: int) -> AugmentationSettings:
        """The settings for a model that sees images of another size.

        The largest of `short_sides` becomes `shortest_edge`, all other lengths but `smallest_box` change in proportion,
        and `longest_side` becomes `longest_edge`.
        """
        largest = max(self.short_sides)

        def scale(side: int) -> int:
            return max(1, round(side * shortest_edge / largest))

        return replace(
            self,
            short_sides=tuple(map(scale, self.short_sides)),
            longest_side=longest_edge,
            crop_short_sides=tuple(map(scale, self.crop_short_sides)),
            crop_longest_side=scale(self.crop_longest_side),
            crop_size=(scale(self.crop_size[0]), scale(self.crop_size[1])),
        )


class Augmented(NamedTuple):
    """A changed image.

    image: at least one pixel wide and high.
    boxes: float32 (k, 4), xyxy in its pixels, clipped to it.
    kept: int64 (k,), which of the boxes that were given these are, rising.
    caption: as given, or with its sides exchanged.
    spans: of the boxes that are left, in this caption; None where none were given.
    """

    image: Image.Image
    boxes: Tensor
    kept: Tensor
    caption: str | None
    spans: Spans | None


class _View(NamedTuple):
    image: Image.Image
    boxes: BoundingBoxes
    caption: str | None
    spans: Spans | None


class Augmentation:
    """Flip, then resize, or cut out a part and resize; it depends on its arguments alone, never on a global state."""

    def __init__(self, settings: AugmentationSettings) -> None:
        """Use these settings."""
        self.settings = settings

    def __call__(
        self,
        image: Image.Image,
        boxes: Tensor,
        rng: np.random.Generator,
        caption: str | None = None,
        spans: SpansLike | None = None,
        labels: Sequence[str] = (),
    ) -> Augmented:
        """Change an image, and its boxes and words with it.

        Args:
            image: an image.
            boxes: float (n, 4), xyxy in its pixels.
            rng: what is drawn from.
            caption: a sentence about it. It is flipped where `exchanged_sides` has an answer.
            spans: for each box (start, end) characters of the caption.
            labels: what the prompt may ask for, present or absent. Where one names a side ("left shoe") the image is
                not flipped.
        """
        settings = self.settings
        frozen = None if spans is None else tuple(tuple((start, end) for start, end in of_box) for of_box in spans)
        extent = BoundingBoxes(boxes.float(), format=BoundingBoxFormat.XYXY, canvas_size=(image.height, image.width))
        view = _View(image, extent, caption, frozen)
        if rng.random() < settings.flip and not name_a_side(tuple(labels)):
            view = _flip(view)
        if rng.random() < settings.crop:
            view = _resize(view, _draw(settings.crop_short_sides, rng), settings.crop_longest_side)
            view = _crop(view, settings.crop_size, rng)
        view = _resize(view, _draw(settings.short_sides, rng), settings.longest_side)
        # Ratios of sides are rounded: a box that ends where the image does may end beyond it.
        found = functional.clamp_bounding_boxes(view.boxes).as_subclass(Tensor)
        sides = found[:, 2:] - found[:, :2]
        kept = ((sides >= settings.smallest_box) & (sides > 0)).all(1).nonzero()[:, 0]
        left = None if view.spans is None else tuple(view.spans[box] for box in kept.tolist())
        return Augmented(view.image, found[kept], kept, view.caption, left)


def resized_size(size: tuple[int, int], short_side: int, longest_side: int) -> tuple[int, int]:
    """The (width, height) of an image when its short side, or, where that is too long, its long side is as given.

    The other side is rounded down, to one pixel at least.
    """
    short, long = min(size), max(size)
    target, given = (longest_side, long) if long * short_side > longest_side * short else (short_side, short)
    width, height = (max(1, side * target // given) for side in size)
    return width, height


@lru_cache(maxsize=64)
def name_a_side(labels: tuple[str, ...]) -> bool:
    """Whether any of the labels would have to change when the image is flipped."""
    return any(_SIDE_LETTERS.search(_NO_SIDE.sub(" ", label)) for label in labels)


def exchanged_sides(caption: str, spans: Spans = ()) -> tuple[str, Spans] | None:
    """The caption of the flipped image, and where its spans are in it.

    The words "left" and "right" change places, with "leftmost", "left-hand" and "top-left", in their own case. None
    where it is not sure what the word means ("is left", "left over", "right now", "right behind"), where it is part of
    another one ("leftwards", "right-angled"), or where a span ends inside it. A caption without any stays as it is.
    """
    words = list(_SIDE_WORD.finditer(caption))
    exchanged = _SIDE_WORD.sub(_exchange, caption)
    is_part_of_word = _SIDE_LETTERS.search(_NO_SIDE.sub(" ", _SIDE_WORD.sub(" ", caption)))
    if is_part_of_word or _IDIOM.search(caption) or _IDIOM.search(exchanged):
        return None
    ends = [end for of_box in spans for span in of_box for end in span]
    if any(word.start(1) < end < word.end(1) for word in words for end in ends):
        return None
    moved = tuple(tuple((_moved(start, words), _moved(end, words)) for start, end in of_box) for of_box in spans)
    return exchanged, moved


def _exchange(word: re.Match[str]) -> str:
    before, after = word.span(1)[0] - word.start(), word.span(1)[1] - word.start()
    return word[0][:before] + _other_side(word[1]) + word[0][after:]


def _other_side(side: str) -> str:
    other = _SIDES[side.lower()]
    return other.upper() if side.isupper() else other.capitalize() if side[0].isupper() else other


def _moved(end: int, words: Sequence[re.Match[str]]) -> int:
    passed = [word[1] for word in words if word.end(1) <= end]
    return end + sum(len(_other_side(side)) - len(side) for side in passed)


def _draw(sides: Sequence[int], rng: np.random.Generator) -> int:
    return sides[int(rng.integers(len(sides)))]


def _flip(view: _View) -> _View:
    """The mirrored image, or the same one where its caption cannot follow."""
    words = exchanged_sides(view.caption or "", view.spans or ())
    if words is None:
        return view
    caption, spans = words
    return _View(
        image=functional.horizontal_flip(view.image),
        boxes=functional.horizontal_flip(view.boxes),
        caption=None if view.caption is None else caption,
        spans=None if view.spans is None else spans,
    )


def _resize(view: _View, short_side: int, longest_side: int) -> _View:
    width, height = resized_size(view.image.size, short_side, longest_side)
    size = [height, width]
    return view._replace(image=functional.resize(view.image, size), boxes=functional.resize(view.boxes, size))


def _crop(view: _View, crop_size: tuple[int, int], rng: np.random.Generator) -> _View:
    """Cut out a part of random size at a random place; boxes are clipped to it, and may be left with no area."""
    shortest, longest = crop_size
    width, height = (int(rng.integers(min(side, shortest), min(side, longest) + 1)) for side in view.image.size)
    left = int(rng.integers(view.image.width - width + 1))
    top = int(rng.integers(view.image.height - height + 1))
    part = [top, left, height, width]
    return view._replace(image=functional.crop(view.image, *part), boxes=functional.crop(view.boxes, *part))
