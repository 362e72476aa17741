"""Average precision and recall as COCO reports them."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, ClassVar, NamedTuple

import numpy as np
from datasets import List, Value
from numpy.typing import NDArray

from .average_precision import (
    COCO_LIMITS,
    IOU_50,
    IOU_75,
    ClassMeasure,
    ClassResult,
    Detections,
    Truths,
    best_of_each,
    box_areas,
    joined,
    mean_precision,
    mean_recall,
    measure_classes,
)
from .metric import Found, Integer, ItemId, ItemMetric, as_array, boxes_of, first

MMDET_LIMITS = (100, 300, 1000)


class Annotated(NamedTuple):
    """What is there in a picture: `boxes` (n, 4), xyxy; `labels`, `areas` and `crowds`, all (n,)."""

    boxes: NDArray[Any]
    labels: Integer
    areas: NDArray[Any]
    crowds: NDArray[np.bool_]


class Picture(NamedTuple):
    """What is there in a picture, and what was found."""

    truth: Annotated
    found: Found


class CocoDetection(ItemMetric[Picture]):
    """Average precision and recall over classes, IoU thresholds and areas, equal to pycocotools.

    A reference has `boxes` and `labels`, the category ids of the annotation file, and may have `iscrowd` (n,), true on
    a box around a group, and `area` (n,) in square pixels (without it, the area of the box).

    It gives, in [0, 1] and -1 where there is nothing to measure: `AP` (IoU 0.50:0.95), `AP50`, `AP75`; `APs`, `APm`,
    `APl` for areas below 32², up to 96² and above; the recall `AR1`, `AR10`, `AR100` with so many detections of a class
    in a picture; `ARs`, `ARm`, `ARl`. Lin et al., "Microsoft COCO: Common Objects in Context".

    Args:
        categories: the category ids there are; a label outside is an error. None: those that occur.
        mmdet_compatible: as mmdetection reads it, with up to 1000 detections of a class in a picture instead of 100
            for all numbers but `AP`; recall is `AR100`, `AR300` and `AR1000`.
        options: of `evaluate.Metric`, `num_process` and `process_id` among them.
    """

    description: ClassVar[str] = "Average precision and recall as COCO reports them."
    needs_labels: ClassVar[bool] = True
    reference_features: ClassVar[Mapping[str, Any]] = {
        "labels": List(Value("int64")),
        "iscrowd": List(Value("int64")),
        "area": List(Value("float64")),
    }

    def __init__(
        self, categories: Collection[int] | None = None, *, mmdet_compatible: bool = False, **options: Any
    ) -> None:
        super().__init__(**options)
        self.categories = None if categories is None else sorted(int(category) for category in set(categories))
        self.limits = MMDET_LIMITS if mmdet_compatible else COCO_LIMITS
        self.classes: list[ClassResult] = []
        """How well each class was found, by rising category id, as of the last `compute`."""

    def keep(self, found: Found, reference: Mapping[str, Any], where: str) -> Picture:
        """The boxes that can count, as small as they can be told without loss."""
        truth = annotated(reference, where, self.categories)
        check_labels(found.labels, self.categories, f"{where}: the prediction")
        best = best_of_each(found.labels, found.scores, self.limits[-1])
        return Picture(truth, Found(compact(found.boxes[best]), compact(found.scores[best]), found.labels[best]))

    def score(self, kept: Mapping[ItemId, Picture]) -> dict[str, float]:
        """COCO's twelve numbers."""
        return self.summarize(self.measure(kept))

    def summarize(self, measures: list[ClassMeasure]) -> dict[str, float]:
        """COCO's twelve numbers from those of each class, which go to `classes`."""
        headline = self.limits.index(100)
        self.classes = [measure.result(headline) for measure in measures]
        return {"AP": mean_precision(measures, limit=headline), **precisions(measures)} | {
            **{f"AR{limit}": mean_recall(measures, limit=i) for i, limit in enumerate(self.limits)},
            **recalls_by_area(measures),
        }

    def measure(self, kept: Mapping[ItemId, Picture]) -> list[ClassMeasure]:
        """The numbers of each class: of `categories`, or of those that occur."""
        truths = [truths_of(i, picture.truth) for i, picture in enumerate(kept.values())]
        found = [_detections_of(i, picture.found) for i, picture in enumerate(kept.values())]
        all_truths, all_found = joined(Truths, truths), joined(Detections, found)
        labels = self.categories
        if labels is None:
            labels = np.union1d(all_truths.labels, all_found.labels).tolist()
        return measure_classes(all_truths, all_found, labels, self.limits)


def precisions(measures: list[ClassMeasure]) -> dict[str, float]:
    """`AP50`, `AP75`, `APs`, `APm` and `APl` at the last limit."""
    by_iou = {"AP50": mean_precision(measures, iou=IOU_50), "AP75": mean_precision(measures, iou=IOU_75)}
    return by_iou | {f"AP{area}": mean_precision(measures, area=i) for i, area in enumerate("sml", start=1)}


def recalls_by_area(measures: list[ClassMeasure]) -> dict[str, float]:
    """`ARs`, `ARm` and `ARl` at the last limit."""
    return {f"AR{area}": mean_recall(measures, area=i) for i, area in enumerate("sml", start=1)}


def annotated(reference: Mapping[str, Any], where: str, categories: list[int] | None) -> Annotated:
    """The boxes of a reference, checked.

    Raises:
        ValueError: a field is missing or of another length, a box has x2 < x1, a label is not among `categories`.
    """
    boxes = boxes_of(reference, where)
    labels = as_array(reference, "labels", np.int64, where)
    check_labels(labels, categories, f"{where}: the reference")
    areas = _or_none(reference, "area", np.float64, where)
    crowds = _or_none(reference, "iscrowd", np.bool_, where)
    areas = box_areas(boxes) if areas is None else areas
    crowds = np.zeros(len(boxes), np.bool_) if crowds is None else crowds
    if not len(boxes) == len(labels) == len(areas) == len(crowds):
        counts = f"{len(labels)} labels, {len(areas)} areas and {len(crowds)} crowd marks"
        raise ValueError(f"{where}: the reference has {len(boxes)} boxes, {counts}")
    if (bad := ~np.isfinite(areas)).any():
        raise ValueError(f"{where}: area {first(bad)} of the reference is {areas[bad][0]}")
    return Annotated(compact(boxes), labels, compact(areas), crowds)


def check_labels(labels: Integer, categories: list[int] | None, who: str) -> None:
    """Refuse labels that are no category.

    Raises:
        ValueError: a label is not among `categories`.
    """
    if categories is None:
        return
    unknown = ~np.isin(labels, categories)
    if unknown.any():
        label, some = labels[first(unknown)], ", ".join(map(str, categories[:5]))
        more = f", ... ({len(categories)} in all)" if len(categories) > 5 else ""
        raise ValueError(f"{who} has label {label}, which is no category id; they are {some}{more}")


def compact(values: NDArray[Any]) -> NDArray[Any]:
    """In float32 where no digit is lost by it, so that ties and differences of scores stay what they are."""
    with np.errstate(over="ignore"):
        small = values.astype(np.float32)
    return small if (small == values).all() else values


def truths_of(number: int, truth: Annotated) -> Truths:
    """The truths of one picture, by its number."""
    return Truths(np.full(len(truth.labels), number), truth.labels, truth.boxes, truth.areas, truth.crowds)


def _detections_of(number: int, found: Found) -> Detections:
    count = len(found.labels)
    return Detections(np.full(count, number), found.labels, found.boxes, found.scores, np.zeros(count, np.bool_))


def _or_none(reference: Mapping[str, Any], name: str, dtype: type[Any], where: str) -> NDArray[Any] | None:
    return None if reference.get(name) is None else as_array(reference, name, dtype, where)
