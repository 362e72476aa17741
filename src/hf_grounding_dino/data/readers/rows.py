"""Rows of a table (Hugging Face `datasets`) as images with boxes."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, cast

from ..findings import FindingLog
from ..records import DataError, Record, Spans
from .boxes import Layout, RawBoxes, with_boxes
from .captions import spans_of, strip_caption
from .files import as_integer

BOX_COLUMNS: Final = ("bbox", "bboxes", "boxes")
CATEGORY_COLUMNS: Final = ("category", "categories", "category_id", "label", "labels")
ID_COLUMNS: Final = ("image_id", "id")


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
    """Reads rows of one table: `objects`, or a `caption` and `phrases`.

    positions: of each category, as rows have it (a number or a name), its position among the labels; None where rows
        are captions.
    """

    positions: Mapping[Hashable, int] | None

    def read(
        self, row: Mapping[str, Any], image: Record, where: str, log: FindingLog, watch: LayoutWatch
    ) -> Record | None:
        """The record of a row, or None, with a finding, where the row cannot be used; `image` says all but the boxes.

        Boxes of objects are xywh unless the row says more, those of phrases xyxy, one or several a phrase; spans are
        `tokens_positive`, or looked up.
        """
        if self.positions is None:
            return _grounding(row, image, where, log)
        columns = as_columns(row.get("objects"))
        boxes, categories = column_of(columns, BOX_COLUMNS), column_of(columns, CATEGORY_COLUMNS)
        if len(boxes) != len(categories):
            log.add("malformed entry", where, f"{len(boxes)} boxes and {len(categories)} categories; left out")
            return None
        layout = _layout(columns.get("bbox_format"), where)
        if layout is None and image.size:
            watch.note(boxes, image.size)
        areas = _padded(columns.get("area"), len(boxes))
        raw = RawBoxes(
            boxes=boxes,
            names=[self.positions.get(_key(category)) for category in categories],
            written=categories,
            crowd=[value in (1, True) for value in _padded(columns.get("iscrowd"), len(boxes))],
            area=[math.nan if area is None else float(area) for area in areas],
            layout=layout or "xywh",
        )
        return with_boxes(image, raw, where, log)


def _grounding(row: Mapping[str, Any], image: Record, where: str, log: FindingLog) -> Record | None:
    written = row.get("caption")
    if not isinstance(written, str) or not written.strip():
        log.add("malformed entry", where, f"its caption is {written!r}; left out")
        return None
    caption = strip_caption(written)
    columns = as_columns(row.get("phrases"))
    phrases, stated = column_of(columns, ("phrase",)), column_of(columns, ("tokens_positive",))
    boxes: list[object] = []
    spans: list[Spans | None] = []
    for i, of_phrase in enumerate(column_of(columns, BOX_COLUMNS)):
        at = f"{where}, phrase {i + 1}"
        phrase = phrases[i] if i < len(phrases) else None
        named = spans_of((stated[i] if i < len(stated) else None) or None, phrase, caption, at, log)
        several = of_phrase if isinstance(of_phrase, Sequence) else [of_phrase]
        several = [several] if several and not isinstance(several[0], Sequence) else several
        boxes += several
        spans += [named] * len(several)
    return with_boxes(replace(image, caption=caption.text), RawBoxes(boxes=boxes, names=spans), where, log)


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
    return category.strip() if isinstance(category, str) else as_integer(category)


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
