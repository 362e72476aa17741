"""Average precision as LVIS reports it: fixed AP, and the standard one."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import numpy as np
from accelerate import PartialState
from accelerate.utils import gather_object
from datasets import List, Value
from numpy.typing import NDArray

from .base import GroundTruth, ItemId, ItemMetric, ScoredBoxes, check_labels, item_id, read_array, read_ground_truth
from .coco import AveragePrecision, Boxes, ClassResult, average_precision, compact, joined, stacked_truths
from .topk import Entries, TopK, together

PER_IMAGE = 300
CLASSES_AT_A_TIME = 64
FREQUENCIES = "rcf"


class LvisImage(NamedTuple):
    """What is kept of an image; its detections are among the best of their classes, or forgotten.

    process, number: where it was added, and how many images were added there before it.
    """

    process: int
    number: int
    truth: GroundTruth


class LvisDetection(ItemMetric[LvisImage]):
    """Average precision under LVIS's federated annotation: fixed AP (Dave et al. 2021) or the standard AP.

    A reference has `boxes`, `labels`, the category ids of the annotation file, and, as the images of that file,
    `neg_category_ids` and `not_exhaustive_category_ids`; it may have `area` (n,) in square pixels. In an image only
    the categories count that are annotated there or known to be absent; of a category that is not annotated
    exhaustively, an unmatched detection is no mistake.

    It gives, in [0, 1] and -1 where there is nothing to measure: `AP` (IoU 0.50:0.95), `AP50`, `AP75`; `APs`, `APm`,
    `APl` by area; `APr`, `APc`, `APf` over rare, common and frequent categories; the recall `AR` (fixed) or `AR300`
    (standard), `ARs`, `ARm`, `ARl`.

    Fixed AP takes the best detections of each category over the whole set, however many come from one image; the
    detections that cannot be among them any more are dropped as images are added, so memory does not grow with the
    set. Dave et al., "Evaluating Large-Vocabulary Object Detectors: The Devil is in the Details".

    Args:
        categories: of the annotation file, dicts with `id`, `frequency` ("r", "c" or "f") and, for messages, `name`.
        fixed: False: the standard AP, with the best 300 detections of an image, over all categories together.
        max_per_class: of fixed AP, how many detections of a category count.
        options: of `evaluate.Metric`, `num_process` and `process_id` among them.
    """

    description: ClassVar[str] = "Average precision as LVIS reports it, fixed or standard."
    needs_labels: ClassVar[bool] = True
    reference_features: ClassVar[Mapping[str, Any]] = {
        "labels": List(Value("int64")),
        "area": List(Value("float64")),
        "neg_category_ids": List(Value("int64")),
        "not_exhaustive_category_ids": List(Value("int64")),
    }

    def __init__(
        self,
        categories: Sequence[Mapping[str, Any]],
        *,
        fixed: bool = True,
        max_per_class: int = 10_000,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.names = {int(category["id"]): str(category.get("name", category["id"])) for category in categories}
        self.frequencies = _frequencies(categories)
        self.labels = sorted(self.names)
        self.fixed = fixed
        self.max_per_class = max_per_class
        self.classes: list[ClassResult] = []
        """How well each class was found, by rising category id, as of the last `compute`."""
        self._best = self._nothing()

    def keep(self, found: ScoredBoxes, reference: Mapping[str, Any], where: str) -> LvisImage:
        """The ground truth; the detections go among the best of their class."""
        for name in ("neg_category_ids", "not_exhaustive_category_ids"):
            read_array(reference, name, np.int64, where)
        truth = read_ground_truth({**reference, "iscrowd": None}, where, self.labels)
        check_labels(found.labels, self.labels, f"{where}: the prediction")
        image = LvisImage(PartialState().process_index, len(self._best.ids), truth)
        if not self.fixed:
            best = np.argsort(-found.scores, kind="stable")[:PER_IMAGE]
            found = found.at(np.sort(best[truth.judged(found.labels[best])]))
        self._best.add(item_id(reference, where), found)
        return image._replace(truth=truth._replace(boxes=compact(truth.boxes), areas=compact(truth.areas)))

    def forget(self) -> None:
        """Drop what was kept of the images, and their detections."""
        super().forget()
        self._best = self._nothing()

    def score(self, kept: Mapping[ItemId, LvisImage]) -> dict[str, float]:
        """LVIS's thirteen numbers."""
        measured = joined(list(self._measured(list(kept.values()))))
        self.classes = measured.classes()
        groups = {f"AP{letter}": [x for x in self.labels if self.frequencies[x] == letter] for letter in FREQUENCIES}
        by_frequency = {name: measured.ap(labels) for name, labels in groups.items()}
        recall = "AR" if self.fixed else f"AR{PER_IMAGE}"
        return {"AP": measured.ap(), **measured.headline(), **by_frequency} | measured.recalls([recall])

    def _measured(self, images: Sequence[LvisImage]) -> Iterator[AveragePrecision]:
        """Class by class: their detections together would not fit in memory."""
        truths = stacked_truths([image.truth for image in images])
        negative = _images_by_label([image.truth.negative for image in images])
        incomplete = _images_by_label([image.truth.incomplete for image in images])
        short: dict[int, int] = {}
        for label, best in self._best_of_all(images):
            if self.fixed and len(best.scores) < self.max_per_class:
                short[label] = len(best.scores)
            own = truths.with_labels([label])
            judged = np.union1d(own.columns["image_id"], negative.get(label, []))
            found = _detections(label, best.at(np.isin(best.items, judged)), incomplete.get(label, []))
            # However many are in one image.
            busiest = int(np.unique(found.columns["image_id"], return_counts=True)[1].max(initial=1))
            yield average_precision(own, found, [label], [busiest])
        if short and images and PartialState().is_main_process:
            self._warn(short, len(images))

    def _best_of_all(self, images: Sequence[LvisImage]) -> Iterator[tuple[int, Entries]]:
        """Of each class the best detections of all processes, by position of their image in the set."""
        positions = np.full(len(self._best.ids), -1)
        for position, image in enumerate(images):
            if image.process == PartialState().process_index:
                positions[image.number] = position
        for start in range(0, len(self.labels), CLASSES_AT_A_TIME):
            labels = self.labels[start : start + CLASSES_AT_A_TIME]
            own = [_placed(self._best.with_label(label), positions) for label in labels]
            parts: list[list[Entries]] = gather_object([own]) if self.num_process > 1 else [own]
            for label, best in zip(labels, zip(*parts, strict=True), strict=True):
                yield label, together(best).best(self._best.limit)

    def _nothing(self) -> TopK:
        return TopK(self.labels, self.max_per_class if self.fixed else None)

    def _warn(self, short: Mapping[int, int], num_images: int) -> None:
        fewest = min(short, key=lambda label: short[label])
        warnings.warn(
            f"{len(short)} of {len(self.labels)} classes have fewer than {self.max_per_class} detections in "
            f"{num_images} images (fewest: {self.names[fewest]!r}, {short[fewest]}). Fixed AP ranks the best "
            f"{self.max_per_class} of each class over the whole set: keep more boxes an image (a larger top-k, no "
            "score threshold), or read the numbers as a lower bound.",
            stacklevel=2,
        )


def _frequencies(categories: Sequence[Mapping[str, Any]]) -> dict[int, str]:
    found: dict[int, str] = {}
    for category in categories:
        label, frequency = int(category["id"]), category.get("frequency")
        if label in found:
            raise ValueError(f"category id {label} stands twice among the categories")
        if frequency not in set(FREQUENCIES):
            raise ValueError(f"category {label} has frequency {frequency!r}; it is 'r', 'c' or 'f'")
        found[label] = str(frequency)
    return found


def _images_by_label(labels: Sequence[NDArray[np.int64] | None]) -> dict[int, list[int]]:
    images: dict[int, list[int]] = {}
    for i, own in enumerate(labels):
        for label in () if own is None else np.unique(own).tolist():
            images.setdefault(label, []).append(i)
    return images


def _placed(best: Entries, positions: NDArray[np.int64]) -> Entries:
    """With positions in the set for numbers on this process, without images that an earlier process has too."""
    items = positions[best.items]
    return best._replace(items=items).at(items >= 0)


def _detections(label: int, best: Entries, incomplete: Sequence[int]) -> Boxes:
    best = best.at(np.lexsort((best.places, best.items)))
    columns = {"image_id": best.items, "category_id": np.full(len(best.items), label), "score": best.scores}
    return Boxes(best.boxes, {**columns, "lvis_mark": np.isin(best.items, incomplete)})
