"""Average precision as COCO and LVIS define it, one class at a time, by faster-coco-eval.

The average precision of a class depends on nothing of another class, so boxes become the records that the library wants
only while their own class is measured, and memory stays flat.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import numpy as np
from faster_coco_eval import COCO, COCOeval_faster
from numpy.typing import NDArray

from .metric import Float, Integer

NOTHING_TO_MEASURE = -1.0
COCO_LIMITS = (1, 10, 100)
IOU_50, IOU_75 = 0, 5
CATEGORY = 1
Columns = TypeVar("Columns", bound=tuple[NDArray[Any], ...])


@dataclass(frozen=True)
class ClassResult:
    """How well one class was found; -1 where nothing of it is there.

    label: its category id.
    ap, ap50, ap75: average precision, in [0, 1].
    recall: at the largest number of detections (100 a picture in COCO), mean over the IoU thresholds.
    num_truths: boxes to be found, crowds aside.
    num_found: detections that were judged: those within that number (and, in LVIS, in pictures where somebody looked
        for the class).
    precision: (101,), at recall 0, 0.01, ... 1, for IoU 0.5.
    """

    label: int
    ap: float
    ap50: float
    ap75: float
    recall: float
    num_truths: int
    num_found: int
    precision: NDArray[np.float64]


class Truths(NamedTuple):
    """What is there, in any number of pictures.

    items: (n,), the number of the picture a box belongs to.
    labels: (n,), the class.
    boxes: (n, 4), xyxy in pixels.
    areas: (n,), in pixels.
    crowds: (n,), True on a box around a group.
    """

    items: Integer
    labels: Integer
    boxes: Float
    areas: Float
    crowds: NDArray[np.bool_]


class Detections(NamedTuple):
    """What was found, in any number of pictures; among equal scores of a picture the first ranks first.

    items: (k,), the number of the picture.
    labels: (k,), the class.
    boxes: (k, 4), xyxy in pixels.
    scores: (k,), any finite numbers.
    forgiven: (k,), True where a detection is no mistake even if nothing is there to match it: in LVIS, in a picture
        where not all of the class are annotated.
    """

    items: Integer
    labels: Integer
    boxes: Float
    scores: Float
    forgiven: NDArray[np.bool_]


@dataclass(frozen=True)
class ClassMeasure:
    """All numbers of one class; T IoU thresholds 0.50:0.95, A areas (all, small, medium, large), M limits a picture.

    precision: (T, A, M), mean over the 101 recall levels; -1 where there is nothing to measure.
    recall: (T, A, M).
    curve: (101,), the precision at recall 0, 0.01, ... 1 for IoU 0.5, all areas and the last limit.
    """

    label: int
    precision: Float
    recall: Float
    curve: Float
    num_truths: int
    num_found: int

    def result(self, headline: int = -1) -> ClassResult:
        """For people; `ap` at the limit with the number `headline`, the rest at the last."""
        return ClassResult(
            label=self.label,
            ap=average(self.precision[:, 0, headline]),
            ap50=average(self.precision[IOU_50, 0, -1]),
            ap75=average(self.precision[IOU_75, 0, -1]),
            recall=average(self.recall[:, 0, -1]),
            num_truths=self.num_truths,
            num_found=self.num_found,
            precision=self.curve,
        )


def average(values: NDArray[Any]) -> float:
    """Mean over what was measured; -1 where nothing was."""
    measured = values[values > NOTHING_TO_MEASURE]
    return float(measured.mean()) if measured.size else NOTHING_TO_MEASURE


def mean_precision(classes: Sequence[ClassMeasure], *, iou: int | None = None, area: int = 0, limit: int = -1) -> float:
    """AP over classes: at an IoU threshold by its number (None: all), an area by its number, a limit by its number."""
    thresholds = slice(None) if iou is None else slice(iou, iou + 1)
    values = [measure.precision[thresholds, area, limit] for measure in classes]
    return average(np.concatenate(values)) if values else NOTHING_TO_MEASURE


def mean_recall(classes: Sequence[ClassMeasure], *, area: int = 0, limit: int = -1) -> float:
    """AR over classes and IoU thresholds, at an area and a limit by their numbers."""
    values = [measure.recall[:, area, limit] for measure in classes]
    return average(np.concatenate(values)) if values else NOTHING_TO_MEASURE


def measure_classes(
    truths: Truths, detections: Detections, labels: Iterable[int], limits: Sequence[int | None] = COCO_LIMITS
) -> list[ClassMeasure]:
    """Measure some classes, each by itself.

    Args:
        labels: the classes, in the order wanted.
        limits: how many detections of a class count in a picture, rising; None: all.
    """
    truth_of, found_of = _ByLabel(truths.labels), _ByLabel(detections.labels)
    return [
        measure_class(
            label,
            entries_at(truths, truth_of[label]),
            entries_at(detections, found_of[label]),
            limits,
        )
        for label in labels
    ]


def measure_class(
    label: int, truths: Truths, detections: Detections, limits: Sequence[int | None] = COCO_LIMITS
) -> ClassMeasure:
    """Measure one class; `truths` and `detections` are all of this class."""
    if limits[-1] is not None:
        best = best_of_each(detections.items, detections.scores, limits[-1])
        detections = entries_at(detections, best)
    busiest = int(np.unique(detections.items, return_counts=True)[1].max(initial=1))
    evaluator = COCOeval_faster(
        _coco(truths.items, detections.items, _truth_rows(truths)),
        _coco(truths.items, detections.items, _detection_rows(detections)),
        "bbox",
        print_function=lambda *_: None,
    )
    evaluator.params.maxDets = [busiest if limit is None else min(limit, busiest) for limit in limits]
    evaluator.evaluate()
    evaluator.accumulate()
    # IoU thresholds x recall levels x this one class x areas x limits.
    precision = np.asarray(evaluator.eval["precision"])[:, :, 0]
    return ClassMeasure(
        label=label,
        precision=precision.mean(1),
        recall=np.asarray(evaluator.eval["recall"])[:, 0],
        curve=precision[IOU_50, :, 0, -1].copy(),
        num_truths=int((~truths.crowds).sum()),
        num_found=len(detections.items),
    )


def best_of_each(groups: NDArray[Any], scores: NDArray[Any], limit: int) -> Integer:
    """Where the `limit` best of each group are, in rising order; among equal scores the first are better."""
    if not len(groups):
        return np.zeros(0, np.int64)
    order = np.lexsort((-scores, groups))
    ordered = groups[order]
    starts = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]])
    place = np.arange(len(order)) - np.repeat(starts, np.diff(np.r_[starts, len(order)]))
    return np.sort(order[place < limit])


def joined(kind: type[Any], parts: Sequence[Any]) -> Any:
    """Many `Truths` or `Detections` as one, in their order."""
    empty = [np.zeros((0, 4) if name == "boxes" else 0, _DTYPES.get(name, np.float64)) for name in kind._fields]
    return kind(*(np.concatenate(columns) for columns in zip(*parts, strict=True))) if parts else kind(*empty)


def entries_at(columns: Columns, where: NDArray[Any]) -> Columns:
    """The entries of `Truths`, `Detections` or the like at some places, or under a mask."""
    kind: Any = type(columns)
    chosen: Columns = kind(*(column[where] for column in columns))
    return chosen


def box_areas(boxes: NDArray[Any]) -> Float:
    """Areas (n,) of boxes (n, 4)."""
    sides = boxes[:, 2:].astype(np.float64) - boxes[:, :2]
    return sides[:, 0] * sides[:, 1]


_DTYPES: dict[str, type[Any]] = {"items": np.int64, "labels": np.int64, "crowds": np.bool_, "forgiven": np.bool_}


class _ByLabel:
    """Where the entries of each class are, in their order."""

    def __init__(self, labels: Integer) -> None:
        self.order = np.argsort(labels, kind="stable")
        self.labels = labels[self.order]

    def __getitem__(self, label: int) -> Integer:
        low, high = np.searchsorted(self.labels, [label, label + 1])
        return self.order[low:high]


def _coco(truth_items: Integer, found_items: Integer, rows: Iterator[dict[str, Any]]) -> COCO:
    items = np.union1d(truth_items, found_items).tolist()
    return COCO(
        {"images": [{"id": i} for i in items], "annotations": list(rows), "categories": [{"id": CATEGORY}]},
        print_function=lambda *_: None,
    )


def _sides(boxes: NDArray[Any]) -> list[list[float]]:
    wide = boxes.astype(np.float64)
    return np.concatenate([wide[:, :2], wide[:, 2:] - wide[:, :2]], 1).tolist()


def _truth_rows(truths: Truths) -> Iterator[dict[str, Any]]:
    columns = (truths.items.tolist(), _sides(truths.boxes), truths.areas.tolist(), truths.crowds.tolist())
    # The library reads id 0 as "matched nothing".
    for i, (item, box, area, crowd) in enumerate(zip(*columns, strict=True), start=1):
        place = {"id": i, "image_id": item, "category_id": CATEGORY}
        yield {**place, "bbox": box, "area": area, "iscrowd": int(crowd)}


def _detection_rows(detections: Detections) -> Iterator[dict[str, Any]]:
    columns = (detections.items.tolist(), _sides(detections.boxes), detections.scores, detections.forgiven.tolist())
    for i, (item, box, score, forgiven) in enumerate(zip(*columns, strict=True), start=1):
        place = {"id": i, "image_id": item, "category_id": CATEGORY, "lvis_mark": forgiven}
        yield {**place, "bbox": box, "area": box[2] * box[3], "score": float(score)}
