"""The boxes of an image as a file has them, checked against the image."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ..findings import FindingLog
from ..records import FindingKind, Record, shown

Layout = Literal["xyxy", "xywh"]

MIN_SIDE: Final = 1.0
"""Pixels that a box must have in width and in height (recipe of mmdet's ODVG data set)."""

OUTSIDE_TOLERANCE: Final = 0.1
"""Pixels by which a box may leave its image unmentioned: files round to two decimals. It is clipped all the same."""

_ROUNDING: Final = 1e-6
_ODDITIES: Final[dict[FindingKind, str]] = {
    "malformed box": "is not four finite numbers; dropped",
    "empty box": "has no pixel in the image; dropped",
    "duplicate box": "is there already; kept once",
    "outside box": "leaves the image; clipped",
}


@dataclass(frozen=True, kw_only=True)
class RawBoxes:
    """The boxes of an image as a file has them.

    boxes: in pixels, four numbers each, in `layout`.
    names: for each box the position of its label, or its spans in the caption; None drops it.
    written: of a detection set, the category of each as the file says it, None where it says nothing.
    crowd, area: of each, where the file has them; NaN is an area that it does not say.
    layout: corners, or the upper left corner and the sides.
    """

    boxes: Sequence[object]
    names: Sequence[Any]
    written: Sequence[object] = ()
    crowd: Sequence[bool] = ()
    area: Sequence[float] = ()
    layout: Layout = "xyxy"


def with_boxes(record: Record, raw: RawBoxes, where: str, log: FindingLog) -> Record | None:
    """The record with those of the boxes that can be used, as `checked_boxes` finds them.

    None, with a finding, for a caption that has boxes in the file, of which none can be used: it would be untrue.
    """
    boxes, kept = checked_boxes(raw, record.size, where, log)
    names = [raw.names[i] for i in kept]
    crowd = [raw.crowd[i] for i in kept] if raw.crowd else []
    area = [raw.area[i] for i in kept] if raw.area else [math.nan]
    grounding = record.caption is not None
    if grounding and raw.boxes and not kept:
        log.add("malformed entry", where, "none of its boxes can be used, so the caption would be untrue; left out")
        return None
    return replace(
        record,
        boxes=boxes,
        labels=None if grounding else torch.tensor(names, dtype=torch.int64),
        crowd=torch.tensor(crowd, dtype=torch.bool) if any(crowd) else None,
        area=None if any(map(math.isnan, area)) else torch.tensor(area, dtype=torch.float32),
        spans=tuple(names) if grounding else None,
    )


def checked_boxes(raw: RawBoxes, size: tuple[int, int] | None, where: str, log: FindingLog) -> tuple[Tensor, list[int]]:
    """The boxes that can be used, float32 (k, 4) xyxy in pixels, and for each its position among those given.

    Boxes without a name are "no category" or "unknown category" and dropped. Wrong lengths, non-numbers and NaN are
    "malformed box" and dropped; what leaves the image is clipped ("outside box"); sides below one pixel after that are
    "empty box" and dropped; a box that repeats an earlier one under the same name is "duplicate box" and dropped, but a
    crowd box is no duplicate of a single object's. One box has one finding at most.

    Args:
        raw: as the file has them.
        size: (width, height) of the image; unknown, boxes are clipped at 0 alone.
        where: the file, and the image or line in it.
        log: takes the findings.
    """
    if not raw.boxes:
        return torch.zeros(0, 4), []
    corners = _corners(raw.boxes, raw.layout)
    clipped = np.clip(corners, 0, np.array([*size, *size] if size else [np.inf] * 4, dtype=np.float64))
    sides = (clipped[:, 2:] - clipped[:, :2]).min(axis=1).tolist()
    outside = np.abs(clipped - corners).max(axis=1).tolist()
    boxes = clipped.astype(np.float32)
    kept: list[int] = []
    seen: set[Hashable] = set()
    for i, row in enumerate(boxes.tolist()):
        if raw.names[i] is None:
            if raw.written:
                _note_category(raw.written[i], i, where, log)
            continue
        key = (raw.names[i], bool(raw.crowd) and raw.crowd[i], *row)
        odd = _oddity(outside[i], sides[i], key in seen)
        if odd is not None:
            log.add(odd, where, f"box {i + 1} {shown(raw.boxes[i])} {_ODDITIES[odd]}")
        if odd is None or odd == "outside box":
            seen.add(key)
            kept.append(i)
    return torch.from_numpy(boxes[kept]), kept


def _note_category(written: object, number: int, where: str, log: FindingLog) -> None:
    if written is None:
        log.add("no category", where, f"box {number + 1} has no category; dropped")
    else:
        log.add("unknown category", where, f"box {number + 1}: there is no category {shown(written)}; dropped")


def _oddity(outside: float, side: float, seen: bool) -> FindingKind | None:
    """What is odd about a box that left its image by `outside` pixels and has sides of at least `side`."""
    if math.isnan(outside):
        return "malformed box"
    if side < MIN_SIDE - _ROUNDING:
        return "empty box"
    if seen:
        return "duplicate box"
    return "outside box" if outside > OUTSIDE_TOLERANCE else None


def _corners(raw: Sequence[object], layout: Layout) -> npt.NDArray[np.float64]:
    """(n, 4) xyxy; NaN where a box is malformed."""
    try:
        corners = np.array(raw, dtype=np.float64)
        if corners.shape != (len(raw), 4):
            raise ValueError("boxes of other lengths")
    except (ValueError, TypeError, OverflowError):
        corners = np.array([_four_numbers(box) for box in raw])
    # What float32 cannot hold is as good as no number.
    corners[~(np.abs(corners) < 1e30).all(axis=1)] = np.nan
    if layout == "xywh":
        corners[:, 2:] += corners[:, :2]
    return corners


def _four_numbers(box: object) -> list[float]:
    """The numbers of one box, or four NaN."""
    try:
        numbers = [float(number) for number in box]  # type: ignore[attr-defined]
    except (ValueError, TypeError, OverflowError):
        numbers = []
    return numbers if len(numbers) == 4 else [math.nan] * 4
