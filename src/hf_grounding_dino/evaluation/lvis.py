"""Average precision as LVIS reports it: fixed AP, and the standard one."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import numpy as np
from accelerate import PartialState
from accelerate.utils import gather_object
from datasets import List, Value

from .average_precision import (
    ClassMeasure,
    ClassResult,
    Detections,
    Truths,
    entries_at,
    joined,
    mean_precision,
    mean_recall,
    measure_class,
)
from .best_of_class import BestOfClass, Entries, merged
from .coco import Annotated, annotated, check_labels, precisions, recalls_by_area, truths_of
from .metric import Found, Integer, ItemId, ItemMetric, as_array, item_id

PER_PICTURE = 300
CLASSES_AT_A_TIME = 64
FREQUENCIES = "rcf"


class Picture(NamedTuple):
    """What is kept of a picture; its detections are among the best of their classes, or forgotten.

    process, number: where it was added, and how many pictures were added there before it.
    negative: the categories that are known not to be there.
    open: the categories of which not all are annotated.
    """

    process: int
    number: int
    truth: Annotated
    negative: Integer
    open: Integer


class LvisDetection(ItemMetric[Picture]):
    """Average precision under LVIS's federated annotation: fixed AP (Dave et al. 2021) or the standard AP.

    A reference has `boxes`, `labels`, the category ids of the annotation file, and, as the images of that file,
    `neg_category_ids` and `not_exhaustive_category_ids`; it may have `area` (n,) in square pixels. In a picture only
    the categories count that are annotated there or known to be absent; of a category that is not annotated
    exhaustively, an unmatched detection is no mistake.

    It gives, in [0, 1] and -1 where there is nothing to measure: `AP` (IoU 0.50:0.95), `AP50`, `AP75`; `APs`, `APm`,
    `APl` by area; `APr`, `APc`, `APf` over rare, common and frequent categories; the recall `AR` (fixed) or `AR300`
    (standard), `ARs`, `ARm`, `ARl`.

    Fixed AP takes the best detections of each category over the whole set, however many come from one picture; the
    detections that cannot be among them any more are dropped as pictures are added, so memory does not grow with the
    set. Dave et al., "Evaluating Large-Vocabulary Object Detectors: The Devil is in the Details".

    Args:
        categories: of the annotation file, dicts with `id`, `frequency` ("r", "c" or "f") and, for messages, `name`.
        fixed: False: the standard AP, with the best 300 detections of a picture, over all categories together.
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

    def keep(self, found: Found, reference: Mapping[str, Any], where: str) -> Picture:
        """The truth; the detections go among the best of their class."""
        truth = annotated({**reference, "iscrowd": None}, where, self.labels)
        check_labels(found.labels, self.labels, f"{where}: the prediction")
        negative, unfinished = (
            np.unique(as_array(reference, name, np.int64, where))
            for name in ("neg_category_ids", "not_exhaustive_category_ids")
        )
        picture = Picture(PartialState().process_index, len(self._best.ids), truth, negative, unfinished)
        picture_id = item_id(reference, where)
        self._best.add(picture_id, found if self.fixed else _countable(found, picture))
        return picture

    def forget(self) -> None:
        """Drop what was kept of the pictures, and their detections."""
        super().forget()
        self._best = self._nothing()

    def score(self, kept: Mapping[ItemId, Picture]) -> dict[str, float]:
        """LVIS's thirteen numbers."""
        measures = list(self._measures(list(kept.values())))
        self.classes = [measure.result() for measure in measures]
        by_frequency = {
            f"AP{letter}": mean_precision([m for m in measures if self.frequencies[m.label] == letter])
            for letter in FREQUENCIES
        }
        recall = "AR" if self.fixed else f"AR{PER_PICTURE}"
        return {"AP": mean_precision(measures), **precisions(measures), **by_frequency} | {
            recall: mean_recall(measures),
            **recalls_by_area(measures),
        }

    def _measures(self, pictures: Sequence[Picture]) -> Iterator[ClassMeasure]:
        truths: Truths = joined(Truths, [truths_of(i, picture.truth) for i, picture in enumerate(pictures)])
        negative = _pictures_by_label([picture.negative for picture in pictures])
        unfinished = _pictures_by_label([picture.open for picture in pictures])
        short: dict[int, int] = {}
        for label, best in self._best_of_all(pictures):
            if self.fixed and len(best.scores) < self.max_per_class:
                short[label] = len(best.scores)
            own = entries_at(truths, truths.labels == label)
            looked_for = np.union1d(own.items, negative.get(label, ()))
            yield measure_class(label, own, _detections(label, best, looked_for, unfinished.get(label, ())), (None,))
        if short and pictures and PartialState().is_main_process:
            self._warn(short, len(pictures))

    def _best_of_all(self, pictures: Sequence[Picture]) -> Iterator[tuple[int, Entries]]:
        """Of each class the best detections of all processes, by position of their picture in the set."""
        positions = np.full(len(self._best.ids), -1)
        for position, picture in enumerate(pictures):
            if picture.process == PartialState().process_index:
                positions[picture.number] = position
        limit = self.max_per_class if self.fixed else None
        for start in range(0, len(self.labels), CLASSES_AT_A_TIME):
            labels = self.labels[start : start + CLASSES_AT_A_TIME]
            own = [_placed(self._best.of(label), positions) for label in labels]
            parts: list[list[Entries]] = gather_object([own]) if self.num_process > 1 else [own]
            for label, best in zip(labels, zip(*parts, strict=True), strict=True):
                yield label, merged(best, limit)

    def _nothing(self) -> BestOfClass:
        return BestOfClass(self.labels, self.max_per_class if self.fixed else None)

    def _warn(self, short: Mapping[int, int], num_pictures: int) -> None:
        fewest = min(short, key=lambda label: short[label])
        warnings.warn(
            f"{len(short)} of {len(self.labels)} classes have fewer than {self.max_per_class} detections in "
            f"{num_pictures} pictures (fewest: {self.names[fewest]!r}, {short[fewest]}). Fixed AP ranks the best "
            f"{self.max_per_class} of each class over the whole set: keep more boxes a picture (a larger top-k, no "
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


def _countable(found: Found, picture: Picture) -> Found:
    """Of a picture's best 300 those whose category was looked for there."""
    best = np.argsort(-found.scores, kind="stable")[:PER_PICTURE]
    looked_for = np.isin(found.labels[best], np.union1d(picture.truth.labels, picture.negative))
    return entries_at(found, np.sort(best[looked_for]))


def _pictures_by_label(labels: Sequence[Integer]) -> dict[int, list[int]]:
    pictures: dict[int, list[int]] = {}
    for i, own in enumerate(labels):
        for label in own.tolist():
            pictures.setdefault(label, []).append(i)
    return pictures


def _placed(best: Entries, positions: Integer) -> Entries:
    """With positions in the set for numbers on this process, without pictures that an earlier process has, too."""
    items = positions[best.items]
    return entries_at(best._replace(items=items), items >= 0)


def _detections(label: int, best: Entries, looked_for: Any, unfinished: Any) -> Detections:
    best = entries_at(best, np.isin(best.items, looked_for))
    best = entries_at(best, np.lexsort((best.places, best.items)))
    labels = np.full(len(best.items), label)
    return Detections(best.items, labels, best.boxes, best.scores, np.isin(best.items, unfinished))
