"""Rows of a table (Hugging Face `datasets`) as images with boxes."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal, NamedTuple, cast

from torch import Tensor

from ..records import DataError
from .captions import checked_spans, phrase_spans, strip_caption
from .common import FindingLog, as_integer, checked_boxes

Layout = Literal["xyxy", "xywh"]

BOX_COLUMNS: Final = ("bbox", "bboxes", "boxes")
CATEGORY_COLUMNS: Final = ("category", "categories", "category_id", "label", "labels")
ID_COLUMNS: Final = ("image_id", "id")


class RowBoxes(NamedTuple):
    """The boxes of a row.

    boxes: float32 (n, 4), xyxy in pixels, checked.
    names: for each, the position of its label, or its spans in the caption.
    crowd, area: for each; NaN where the table does not say the area.
    caption: the sentence, None in a detection set.
    """

    boxes: Tensor
    names: list[Any]
    crowd: list[bool]
    area: list[float]
    caption: str | None = None


@dataclass
class LayoutWatch:
    """Counts the images whose boxes would make sense as xyxy alone, which says that they are no xywh."""

    where: str
    images: int = 0
    as_corners: int = 0

    def note(self, raw: Sequence[object], size: tuple[int, int]) -> None:
        """Look at one image's boxes, which are said to be xywh."""
        boxes = [box for box in map(_numbers, raw) if len(box) == 4]
        if boxes:
            limit = [side + 1 for side in size]
            leaves = any(x + w > limit[0] or y + h > limit[1] for x, y, w, h in boxes)
            fits = all(x1 <= x2 <= limit[0] and y1 <= y2 <= limit[1] for x1, y1, x2, y2 in boxes)
            self.images += 1
            self.as_corners += leaves and fits

    def check(self) -> None:
        """Raise a `DataError` if that was so in more than half of the images."""
        if 2 * self.as_corners > self.images:
            raise DataError(
                f"{self.where}: boxes should be [x, y, width, height] in pixels, but in {self.as_corners} of"
                f" {self.images} images they leave the image so and would fit as [x1, y1, x2, y2]: they look like"
                " xyxy; say so in a column objects.bbox_format, or write them as xywh"
            )


@dataclass(frozen=True)
class RowReader:
    """Reads rows of one table.

    is_detection: rows have `objects`; else a `caption` and `phrases`.
    positions: of each category, as rows have it (a number or a name), its position among the labels.
    """

    is_detection: bool
    positions: Mapping[Hashable, int] = field(default_factory=dict)

    def read(
        self, row: Mapping[str, Any], size: tuple[int, int], where: str, log: FindingLog, watch: LayoutWatch
    ) -> RowBoxes | None:
        """The boxes of a row, or None, with a finding, where the row cannot be used."""
        if self.is_detection:
            return self._objects(row, size, where, log, watch)
        return _grounding(row, size, where, log)

    def _objects(
        self, row: Mapping[str, Any], size: tuple[int, int], where: str, log: FindingLog, watch: LayoutWatch
    ) -> RowBoxes | None:
        columns = as_columns(row.get("objects"))
        raw, categories = column_of(columns, BOX_COLUMNS), column_of(columns, CATEGORY_COLUMNS)
        if len(raw) != len(categories):
            log.add("malformed entry", where, f"{len(raw)} boxes and {len(categories)} categories; left out")
            return None
        layout = _layout(columns.get("bbox_format"), where)
        if layout is None:
            layout = "xywh"
            watch.note(raw, size)
        labels = [self.positions.get(_key(category), -1) for category in categories]
        crowd = [value in (1, True) for value in _padded(columns.get("iscrowd"), len(raw))]
        checked = checked_boxes(
            raw, list(zip(labels, crowd, strict=True)), size=size, where=where, log=log, layout=layout
        )
        kept = []
        for place, i in enumerate(checked.kept):
            if categories[i] is None:
                log.add("no category", where, f"box {i + 1} has no category; dropped")
            elif labels[i] < 0:
                log.add("unknown category", where, f"box {i + 1} has category {categories[i]!r}, no label; dropped")
            else:
                kept.append((place, i))
        areas = _padded(columns.get("area"), len(raw))
        return RowBoxes(
            boxes=checked.boxes[[place for place, _ in kept]],
            names=[labels[i] for _, i in kept],
            crowd=[crowd[i] for _, i in kept],
            area=[math.nan if areas[i] is None else float(areas[i]) for _, i in kept],
        )


def as_columns(objects: object) -> dict[str, Any]:
    """The objects of a row, a list of mappings or a mapping of lists, as the latter; None is no object."""
    if isinstance(objects, Mapping):
        return dict(objects)
    rows = [item for item in objects if isinstance(item, Mapping)] if isinstance(objects, Sequence) else []
    return {name: [item.get(name) for item in rows] for name in dict.fromkeys(name for item in rows for name in item)}


def column_of(columns: Mapping[str, Any], names: Sequence[str]) -> list[Any]:
    """The first column of these names that is there, empty where there is none."""
    return next((list(columns[name]) for name in names if isinstance(columns.get(name), Sequence)), [])


def row_id(row: Mapping[str, Any], default: int | str) -> int | str:
    """The image id that a row states, or the default."""
    return next((row[name] for name in ID_COLUMNS if isinstance(row.get(name), int | str)), default)


def _key(category: object) -> Hashable:
    number = as_integer(category) if not isinstance(category, str) else None
    return category.strip() if isinstance(category, str) else number


def _layout(value: object, where: str) -> Layout | None:
    """What `bbox_format` says, for a row or for each of its boxes; None where it says nothing."""
    said = {value} if isinstance(value, str) else set(value) if isinstance(value, Sequence) else set()
    said.discard(None)
    if not said:
        return None
    if len(said) > 1 or not said <= {"xyxy", "xywh", "coco", "pascal_voc"}:
        raise DataError(f"{where}: bbox_format {value!r} is neither 'xywh' nor 'xyxy'")
    return cast(Layout, {"coco": "xywh", "pascal_voc": "xyxy"}.get(name := said.pop(), name))


def _padded(values: object, length: int) -> list[Any]:
    known = list(values) if isinstance(values, Sequence) else []
    return [*known, *[None] * length][:length]


def _numbers(box: object) -> list[float]:
    values = list(box) if isinstance(box, Sequence) else []
    return [float(value) for value in values if isinstance(value, int | float) and math.isfinite(value)]


def _grounding(row: Mapping[str, Any], size: tuple[int, int], where: str, log: FindingLog) -> RowBoxes | None:
    """Boxes of phrases are xyxy, one or several a phrase; spans are `tokens_positive`, or looked up."""
    written = row.get("caption")
    if not isinstance(written, str) or not written.strip():
        log.add("malformed entry", where, f"its caption is {written!r}; left out")
        return None
    caption = strip_caption(written)
    columns = as_columns(row.get("phrases"))
    phrases, spans_of = column_of(columns, ("phrase",)), column_of(columns, ("tokens_positive",))
    raw: list[object] = []
    names: list[Hashable] = []
    for i, boxes in enumerate(column_of(columns, BOX_COLUMNS)):
        at = f"{where}, phrase {i + 1}"
        stated = spans_of[i] if i < len(spans_of) else None
        if stated:
            spans = checked_spans(stated, caption, at, log)
        else:
            spans = phrase_spans(phrases[i] if i < len(phrases) else None, caption, at, log)
        if spans is not None:
            several = boxes if isinstance(boxes, Sequence) else [boxes]
            flat = bool(several) and not isinstance(several[0], Sequence)
            several = [several] if flat else several
            raw += several
            names += [spans] * len(several)
    checked = checked_boxes(raw, names, size=size, where=where, log=log)
    kept = [names[i] for i in checked.kept]
    return RowBoxes(checked.boxes, kept, [False] * len(kept), [math.nan] * len(kept), caption.text)
