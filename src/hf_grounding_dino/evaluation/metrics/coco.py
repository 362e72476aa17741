"""Average precision and recall as COCO reports them, by faster-coco-eval."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np
from datasets import List, Value
from faster_coco_eval import COCO, COCOeval_faster
from numpy.typing import NDArray

from .base import NOTHING_TO_MEASURE, GroundTruth, ItemId, ItemMetric, ScoredBoxes, check_labels, read_ground_truth
from .matching import xywh

LIMITS, MMDET_LIMITS = (1, 10, 100), (100, 300, 1000)
_IOU_50, _IOU_75 = 0, 5
# The library takes a dict for each box, and keeps a list for each image and label: what does not fit in some hundred
# megabytes is measured some labels at a time, which depend on nothing of the others.
_MOST_BOXES, _MOST_LISTS = 250_000, 1_000_000

# Bansal et al., "Zero-Shot Object Detection", 2018: of COCO's 80 categories 48 and 17; the other 15 are left out.
BASE_NAMES = (
    *("person", "bicycle", "car", "motorcycle", "train", "truck", "boat", "bench", "bird", "horse", "sheep", "bear"),
    *("zebra", "giraffe", "backpack", "handbag", "suitcase", "frisbee", "skis", "kite", "surfboard", "bottle", "fork"),
    *("spoon", "bowl", "banana", "apple", "sandwich", "orange", "broccoli", "carrot", "pizza", "donut", "chair"),
    *("bed", "toilet", "tv", "laptop", "mouse", "remote", "microwave", "oven", "toaster", "refrigerator", "book"),
    *("clock", "vase", "toothbrush"),
)
NOVEL_NAMES = (
    *("airplane", "bus", "cat", "dog", "cow", "elephant", "umbrella", "tie", "snowboard", "skateboard", "cup"),
    *("knife", "cake", "couch", "keyboard", "sink", "scissors"),
)


@dataclass(frozen=True)
class ClassResult:
    """How well one class was found; -1 where nothing of it is there.

    label: its category id.
    ap, ap50, ap75: average precision, in [0, 1].
    recall: at the largest number of detections (100 an image in COCO), mean over the IoU thresholds.
    num_truths: boxes to be found, crowds aside.
    num_found: detections that were judged: those within that number (and, in LVIS, in images where the class was
        looked for).
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


class Boxes(NamedTuple):
    """Boxes of any number of images: `boxes` (n, 4), xyxy, and the columns of COCO's annotations, all (n,)."""

    boxes: NDArray[Any]
    columns: Mapping[str, NDArray[Any]]

    def with_labels(self, labels: Sequence[int]) -> Boxes:
        """Those of some labels."""
        own = np.isin(self.columns["category_id"], labels)
        return Boxes(self.boxes[own], {name: column[own] for name, column in self.columns.items()})

    def rows(self) -> list[dict[str, Any]]:
        """As COCO's JSON has them; of a detection without an `area`, that of its box."""
        # The library reads id 0 as "matched nothing".
        values = zip(*(column.tolist() for column in self.columns.values()), strict=True)
        return [
            {"id": i, "bbox": box, "area": box[2] * box[3], **dict(zip(self.columns, own, strict=True))}
            for i, (box, own) in enumerate(zip(xywh(self.boxes).tolist(), values, strict=True), start=1)
        ]


@dataclass(frozen=True)
class AveragePrecision:
    """What was measured of each of `labels`; -1 where there is nothing to measure.

    precision, recall: (IoU thresholds, labels, areas, limits), precision as the mean over the recall levels.
    curves: (labels, 101), the precision at recall 0, 0.01, ... 1 for IoU 0.5, all areas and the last limit.
    num_truths, num_found: (labels,).
    """

    labels: Sequence[int]
    precision: NDArray[np.float64]
    recall: NDArray[np.float64]
    curves: NDArray[np.float64]
    num_truths: NDArray[np.int64]
    num_found: NDArray[np.int64]

    def ap(
        self, labels: Collection[int] | None = None, *, iou: int | None = None, area: int = 0, limit: int = -1
    ) -> float:
        """AP over some labels (None: all), at an IoU threshold (None: all), an area and a limit by their positions."""
        rows = slice(None) if labels is None else [i for i, label in enumerate(self.labels) if label in labels]
        thresholds = slice(None) if iou is None else slice(iou, iou + 1)
        return mean_of_measured(self.precision[thresholds, rows, area, limit])

    def headline(self) -> dict[str, float]:
        """`AP50`, `AP75`, `APs`, `APm` and `APl` at the last limit."""
        by_area = {f"AP{area}": self.ap(area=i) for i, area in enumerate("sml", start=1)}
        return {"AP50": self.ap(iou=_IOU_50), "AP75": self.ap(iou=_IOU_75), **by_area}

    def recalls(self, names: Sequence[str]) -> dict[str, float]:
        """AR at each limit under the names given, then `ARs`, `ARm` and `ARl` at the last."""
        by_limit = {name: mean_of_measured(self.recall[:, :, 0, i]) for i, name in enumerate(names)}
        by_area = {f"AR{area}": mean_of_measured(self.recall[:, :, i, -1]) for i, area in enumerate("sml", start=1)}
        return by_limit | by_area

    def classes(self, headline: int = -1) -> list[ClassResult]:
        """Label by label; `ap` at the limit with the position `headline`, the rest at the last."""
        return [
            ClassResult(
                label=int(label),
                ap=mean_of_measured(self.precision[:, i, 0, headline]),
                ap50=mean_of_measured(self.precision[_IOU_50, i, 0, -1]),
                ap75=mean_of_measured(self.precision[_IOU_75, i, 0, -1]),
                recall=mean_of_measured(self.recall[:, i, 0, -1]),
                num_truths=int(self.num_truths[i]),
                num_found=int(self.num_found[i]),
                precision=self.curves[i],
            )
            for i, label in enumerate(self.labels)
        ]


def average_precision(truths: Boxes, found: Boxes, labels: Sequence[int], limits: Sequence[int]) -> AveragePrecision:
    """COCO's evaluation of some labels.

    Args:
        truths: with `image_id`, `category_id`, `area` and `iscrowd`.
        found: with `image_id`, `category_id`, `score` and, for LVIS, `lvis_mark`, True where a detection without a
            match is no mistake. Among equal scores of an image the first ranks first.
        labels: all labels that occur, rising.
        limits: how many detections of a label count in an image, rising.
    """
    images = len(np.union1d(truths.columns["image_id"], found.columns["image_id"]))
    parts = max(len(found.boxes) / _MOST_BOXES, images * len(labels) / _MOST_LISTS, 1)
    at_once = max(1, int(len(labels) / parts))
    groups = [labels[start : start + at_once] for start in range(0, len(labels), at_once)] or [labels]
    return joined(
        [_average_precision(truths.with_labels(group), found.with_labels(group), group, limits) for group in groups]
    )


def _average_precision(truths: Boxes, found: Boxes, labels: Sequence[int], limits: Sequence[int]) -> AveragePrecision:
    images = np.union1d(truths.columns["image_id"], found.columns["image_id"]).tolist()
    described = {"images": [{"id": i} for i in images], "categories": [{"id": label} for label in labels]}
    sides = (
        COCO({**described, "annotations": side.rows()}, print_function=lambda *_: None) for side in (truths, found)
    )
    evaluator = COCOeval_faster(*sides, "bbox", print_function=lambda *_: None)
    evaluator.params.maxDets = list(limits)
    evaluator.evaluate()
    evaluator.accumulate()
    # IoU thresholds x recall levels x labels x areas x limits.
    precision, recall = (np.asarray(evaluator.eval[name], np.float64) for name in ("precision", "recall"))
    real = truths.columns["category_id"][truths.columns["iscrowd"] == 0]
    return AveragePrecision(
        labels=labels,
        precision=precision.mean(1),
        recall=recall,
        curves=precision[_IOU_50, :, :, 0, -1].T.copy(),
        num_truths=np.array([(real == label).sum() for label in labels]),
        num_found=np.array([(found.columns["category_id"] == label).sum() for label in labels]),
    )


def joined(parts: Sequence[AveragePrecision]) -> AveragePrecision:
    """What was measured of several groups of labels, at the same limits."""
    return AveragePrecision(
        labels=[label for part in parts for label in part.labels],
        precision=np.concatenate([part.precision for part in parts], 1),
        recall=np.concatenate([part.recall for part in parts], 1),
        curves=np.concatenate([part.curves for part in parts]),
        num_truths=np.concatenate([part.num_truths for part in parts]),
        num_found=np.concatenate([part.num_found for part in parts]),
    )


def mean_of_measured(values: NDArray[Any]) -> float:
    """Mean over what was measured; -1 where nothing was."""
    measured = values[values > NOTHING_TO_MEASURE]
    return float(measured.mean()) if measured.size else NOTHING_TO_MEASURE


class ImageBoxes(NamedTuple):
    """What is in an image, and what was found."""

    truth: GroundTruth
    found: ScoredBoxes


class CocoDetection(ItemMetric[ImageBoxes]):
    """Average precision and recall over classes, IoU thresholds and areas, equal to pycocotools.

    A reference has `boxes` and `labels`, the category ids of the annotation file, and may have `iscrowd` (n,), true on
    a box around a group, and `area` (n,) in square pixels (without it, the area of the box).

    It gives, in [0, 1] and -1 where there is nothing to measure: `AP` (IoU 0.50:0.95), `AP50`, `AP75`; `APs`, `APm`,
    `APl` for areas below 32², up to 96² and above; the recall `AR1`, `AR10`, `AR100` with so many detections of a class
    in an image; `ARs`, `ARm`, `ARl`. Lin et al., "Microsoft COCO: Common Objects in Context".

    Args:
        categories: all category ids; a label outside is an error. None: those that occur.
        mmdet_compatible: as mmdetection, with up to 1000 detections of a class in an image instead of 100 for all
            numbers but `AP`; recall is `AR100`, `AR300` and `AR1000`.
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
        self.limits = MMDET_LIMITS if mmdet_compatible else LIMITS
        self.classes: list[ClassResult] = []
        """How well each class was found, by rising category id, as of the last `compute`."""

    def keep(self, found: ScoredBoxes, reference: Mapping[str, Any], where: str) -> ImageBoxes:
        """The boxes that can count, in float32 where no digit is lost."""
        truth = read_ground_truth(reference, where, self.categories)
        check_labels(found.labels, self.categories, f"{where}: the prediction")
        best = best_of_each(found.labels, found.scores, self.limits[-1])
        return ImageBoxes(
            truth._replace(boxes=compact(truth.boxes), areas=compact(truth.areas)),
            ScoredBoxes(compact(found.boxes[best]), compact(found.scores[best]), found.labels[best]),
        )

    def score(self, kept: Mapping[ItemId, ImageBoxes]) -> dict[str, float]:
        """COCO's twelve numbers."""
        return self.summarize(self.measure(kept))

    def summarize(self, measured: AveragePrecision) -> dict[str, float]:
        """COCO's twelve numbers; those of each class go to `classes`."""
        headline = self.limits.index(100)
        self.classes = measured.classes(headline)
        recalls = measured.recalls([f"AR{limit}" for limit in self.limits])
        return {"AP": measured.ap(limit=headline), **measured.headline(), **recalls}

    def measure(self, kept: Mapping[ItemId, ImageBoxes]) -> AveragePrecision:
        """The numbers of each class: of `categories`, or of those that occur."""
        truths = stacked_truths([image.truth for image in kept.values()])
        found = [image.found for image in kept.values()]
        labels = stacked(found, "labels", np.int64)
        columns = {"image_id": image_numbers(found), "category_id": labels, "score": stacked(found, "scores")}
        names = self.categories
        if names is None:
            names = np.union1d(truths.columns["category_id"], labels).tolist()
        return average_precision(truths, Boxes(stacked(found, "boxes"), columns), names, self.limits)


class OpenVocabularyCoco(CocoDetection):
    """`CocoDetection` with `AP` and `AP50` of the base and of the novel categories beside those of all.

    It gives what `CocoDetection` gives over base and novel categories together, and `base_AP`, `base_AP50`,
    `novel_AP`, `novel_AP50`; all categories are prompted at once (the generalised setting).

    Args:
        base: the category ids that were seen in training.
        novel: those that were not. `open_vocabulary_split` finds both by name.
        mmdet_compatible: as `CocoDetection`.
        options: of `evaluate.Metric`, `num_process` and `process_id` among them.
    """

    description: ClassVar[str] = "Average precision over base and novel categories of COCO."

    def __init__(
        self, base: Collection[int], novel: Collection[int], *, mmdet_compatible: bool = False, **options: Any
    ) -> None:
        if both := set(base) & set(novel):
            raise ValueError(f"category {min(both)} is among the base categories and among the novel ones")
        super().__init__([*base, *novel], mmdet_compatible=mmdet_compatible, **options)
        self.groups = {"base": frozenset(base), "novel": frozenset(novel)}

    def score(self, kept: Mapping[ItemId, ImageBoxes]) -> dict[str, float]:
        """COCO's twelve numbers, and four."""
        measured = self.measure(kept)
        scores = self.summarize(measured)
        for name, group in self.groups.items():
            scores |= {f"{name}_AP": measured.ap(group), f"{name}_AP50": measured.ap(group, iou=_IOU_50)}
        return scores


def open_vocabulary_split(labels: Mapping[int, str]) -> tuple[list[int], list[int]]:
    """The ids of the 48 base and the 17 novel categories, by their names.

    Args:
        labels: category id to name, of an annotation file of COCO.

    Raises:
        ValueError: a category of the split is missing.
    """
    ids = {name: label for label, name in labels.items()}
    if missing := [name for name in (*BASE_NAMES, *NOVEL_NAMES) if name not in ids]:
        raise ValueError(f"the annotations have no category {missing[0]!r}, one of {len(missing)} that are missing")
    return [ids[name] for name in BASE_NAMES], [ids[name] for name in NOVEL_NAMES]


# --- columns -----------------------------------------------------------------------------------------------------


def best_of_each(groups: NDArray[Any], scores: NDArray[Any], limit: int) -> NDArray[np.int64]:
    """Where the `limit` best of each group are, in rising order; among equal scores the first are better."""
    order = np.lexsort((-scores, groups))
    starts = np.searchsorted(groups[order], groups[order])
    return np.sort(order[np.arange(len(order)) - starts < limit])


def compact(values: NDArray[Any]) -> NDArray[Any]:
    """In float32 where no digit is lost by it, so that ties and differences of scores stay what they are."""
    with np.errstate(over="ignore"):
        small = values.astype(np.float32)
    return small if (small == values).all() else values


def stacked(parts: Sequence[NamedTuple], name: str, dtype: type[Any] = np.float64) -> NDArray[Any]:
    """A field of many tuples, one after the other."""
    empty = np.zeros((0, 4) if name == "boxes" else 0, dtype)
    return np.concatenate([empty, *(getattr(part, name) for part in parts)])


def image_numbers(parts: Sequence[GroundTruth | ScoredBoxes]) -> NDArray[np.int64]:
    """For each box of many images the position of its image."""
    return np.repeat(np.arange(len(parts)), [len(part.labels) for part in parts])


def stacked_truths(parts: Sequence[GroundTruth]) -> Boxes:
    """The ground truth of many images as `average_precision` takes it."""
    columns = {
        "image_id": image_numbers(parts),
        "category_id": stacked(parts, "labels", np.int64),
        "area": stacked(parts, "areas"),
        "iscrowd": stacked(parts, "crowds", np.bool_).astype(np.int64),
    }
    return Boxes(stacked(parts, "boxes"), columns)
