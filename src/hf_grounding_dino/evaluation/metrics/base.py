"""What the metrics share: each is an `evaluate.Metric` that keeps of an item only what its score needs."""

from __future__ import annotations

import os
from abc import abstractmethod
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, ClassVar, Generic, NamedTuple, TypeVar

import evaluate
import numpy as np
from accelerate import PartialState
from accelerate.utils import gather_object
from datasets import Features, List, Value
from numpy.typing import NDArray
from torch import Tensor

from ...inference.predictions import NOTHING_FOUND as NOTHING_FOUND
from ...inference.predictions import ItemId as ItemId
from ...inference.predictions import ScoredBoxes as ScoredBoxes

Kept = TypeVar("Kept")
NOTHING_TO_MEASURE = -1.0

_BOXES = List(List(Value("float64")))
_PREDICTION = {"image_id": Value("string"), "boxes": _BOXES, "scores": List(Value("float64"))}
_REFERENCE = {"image_id": Value("string"), "boxes": _BOXES}
_NO_LABELS = np.zeros(0, np.int64)


class GroundTruth(NamedTuple):
    """What is in one image.

    boxes: (n, 4), xyxy in pixels.
    labels: (n,).
    areas: (n,), square pixels.
    crowds: bool (n,), True on a box around a group; predictions on it count neither way.
    negative: labels known to be absent (LVIS `neg_category_ids`); None: all labels were looked for.
    incomplete: labels of which not every object is annotated (LVIS `not_exhaustive_category_ids`).
    """

    boxes: NDArray[Any]
    labels: NDArray[np.int64]
    areas: NDArray[Any]
    crowds: NDArray[np.bool_]
    negative: NDArray[np.int64] | None = None
    incomplete: NDArray[np.int64] = _NO_LABELS

    def judged(self, labels: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Which predictions of these labels can be wrong."""
        if self.negative is None:
            return np.ones(len(labels), np.bool_)
        return np.isin(labels, np.union1d(self.labels, self.negative))


class ItemMetric(evaluate.Metric, Generic[Kept]):
    """A metric over items: an image, or an image with a sentence.

    A prediction is a dict with `image_id`, `boxes` (k, 4) as xyxy in pixels, `scores` (k,), and, unless the metric
    knows one thing only, `labels` (k,); a reference has `image_id`, `boxes` (n, 4) and what else the metric names. The
    two lists of a batch go together by position. Lists, arrays and tensors are accepted.

    An item added before is skipped, so samplers that pad the last batch with items of the first do no harm. With
    `num_process` above 1 every process adds its own items (or all add all), every process calls `compute`, and all get
    the same result.
    """

    description: ClassVar[str] = ""
    citation: ClassVar[str] = ""
    inputs: ClassVar[str] = ""
    needs_labels: ClassVar[bool] = False
    reference_features: ClassVar[Mapping[str, Any]] = {}

    def __init__(self, **options: Any) -> None:
        """Take the options of `evaluate.Metric`, `num_process` and `process_id` among them."""
        super().__init__(**options)
        self._kept: dict[ItemId, Kept] = {}

    def __len__(self) -> int:
        """Number of items added."""
        return len(self._kept)

    def add(self, *, prediction: Any = None, reference: Any = None, **unknown: Any) -> None:
        """Add one item.

        Raises:
            ValueError: as `add_batch`.
        """
        self.add_batch(predictions=[prediction], references=[reference], **unknown)

    def add_batch(
        self,
        *,
        predictions: Sequence[Mapping[str, Any]] | None = None,
        references: Sequence[Mapping[str, Any]] | None = None,
        **unknown: Any,
    ) -> None:
        """Add items.

        Raises:
            ValueError: the lists do not go together, a box has x2 < x1, a score is no number, a field is missing, or
                what else a metric forbids; the message names the item and the rule.
        """
        if unknown:
            raise ValueError(f"{type(self).__name__} takes predictions and references, not {', '.join(unknown)}")
        if predictions is None or references is None:
            raise ValueError(f"{type(self).__name__} takes predictions and references together")
        if len(predictions) != len(references):
            raise ValueError(f"{len(predictions)} predictions for {len(references)} references")
        for prediction, reference in zip(predictions, references, strict=True):
            item = item_id(prediction, "a prediction")
            if (other := item_id(reference, "a reference")) != item:
                raise ValueError(f"the prediction of image {item} stands beside the reference of image {other}")
            if item not in self._kept:
                where = f"image {item}"
                if self.needs_labels and "labels" not in prediction:
                    raise ValueError(f"{where}: labels is missing")
                self._kept[item] = self.keep(read_prediction(prediction, where), reference, where)

    def compute(
        self,
        *,
        predictions: Sequence[Mapping[str, Any]] | None = None,
        references: Sequence[Mapping[str, Any]] | None = None,
        **unknown: Any,
    ) -> dict[str, float]:
        """The scores of all items added and of those given here; then forget them.

        Raises:
            ValueError: as `add_batch`; or accelerate runs another number of processes than `num_process`.
        """
        if predictions is not None or references is not None or unknown:
            self.add_batch(predictions=predictions, references=references, **unknown)
        if self.num_process > 1 and (running := PartialState().num_processes) != self.num_process:
            raise ValueError(f"num_process is {self.num_process}, but accelerate runs {running} process(es)")
        kept = self._kept
        if self.num_process > 1:
            # Of an item that several processes have, what the first of them kept.
            kept = dict(reversed(gather_object(list(self._kept.items()))))
        try:
            return self.score(
                {item: kept[item] for item in sorted(kept, key=lambda item: (isinstance(item, str), item))}
            )
        finally:
            self.forget()

    def forget(self) -> None:
        """Drop all that was kept; a metric that keeps more than `keep` returns drops it here too."""
        self._kept = {}

    @abstractmethod
    def keep(self, found: ScoredBoxes, reference: Mapping[str, Any], where: str) -> Kept:
        """What is kept of an item; `where` names it in errors. It is called once an item, in the order of arrival."""

    @abstractmethod
    def score(self, kept: Mapping[ItemId, Kept]) -> dict[str, float]:
        """The scores, in [0, 1], of what was kept of each item, in the order of the ids: numbers, then strings."""

    def _info(self) -> evaluate.MetricInfo:
        prediction = {**_PREDICTION, "labels": List(Value("int64"))}
        return evaluate.MetricInfo(
            description=self.description,
            citation=self.citation,
            inputs_description=self.inputs,
            features=Features(predictions=prediction, references={**_REFERENCE, **self.reference_features}),
        )

    def _build_data_dir(self) -> str:
        # Nothing is kept on disk, so no folder is made there, in a home that may be read-only.
        return str(os.path.join(self._data_dir_root, self.name, self.config_name))


def item_id(item: Mapping[str, Any], what: str) -> ItemId:
    """The `image_id` of a prediction or a reference.

    Raises:
        ValueError: there is none.
    """
    if "image_id" not in item:
        raise ValueError(f"{what} has no image_id")
    found = item["image_id"]
    return found if isinstance(found, str) else int(found)


def read_prediction(prediction: Mapping[str, Any], where: str = "") -> ScoredBoxes:
    """The arrays of a prediction, checked; without `labels` all of them are 0.

    Raises:
        ValueError: arrays of another shape, a score or a box that is not finite, a box with x2 < x1 or y2 < y1.
    """
    boxes = read_boxes(prediction, where)
    scores = read_array(prediction, "scores", np.float64, where)
    labels = np.zeros(len(boxes), np.int64)
    if "labels" in prediction:
        labels = read_array(prediction, "labels", np.int64, where)
    if not len(boxes) == len(scores) == len(labels):
        raise ValueError(f"{where}: {len(boxes)} boxes, {len(scores)} scores and {len(labels)} labels")
    if (bad := ~np.isfinite(scores)).any():
        raise ValueError(f"{where}: score {first(bad)} is {scores[bad][0]}")
    return ScoredBoxes(boxes, scores, labels)


def read_ground_truth(
    reference: Mapping[str, Any], where: str = "", categories: Collection[int] | None = None
) -> GroundTruth:
    """The boxes of a reference, checked; without `area` that of the boxes, without `neg_category_ids` not federated.

    Raises:
        ValueError: a field is missing or of another length, a box has x2 < x1, a label is not among `categories`.
    """

    def optional(name: str, dtype: type[Any], default: Any) -> NDArray[Any]:
        return default if reference.get(name) is None else read_array(reference, name, dtype, where)

    boxes = read_boxes(reference, where)
    labels = read_array(reference, "labels", np.int64, where)
    check_labels(labels, categories, f"{where}: the reference")
    areas = optional("area", np.float64, (boxes[:, 2:] - boxes[:, :2]).prod(1))
    crowds = optional("iscrowd", np.bool_, np.zeros(len(boxes), np.bool_))
    if not len(boxes) == len(labels) == len(areas) == len(crowds):
        counts = f"{len(labels)} labels, {len(areas)} areas and {len(crowds)} crowd marks"
        raise ValueError(f"{where}: the reference has {len(boxes)} boxes, {counts}")
    if (bad := ~np.isfinite(areas)).any():
        raise ValueError(f"{where}: area {first(bad)} of the reference is {areas[bad][0]}")
    negative = optional("neg_category_ids", np.int64, None)
    return GroundTruth(
        boxes, labels, areas, crowds, negative, optional("not_exhaustive_category_ids", np.int64, _NO_LABELS)
    )


def read_boxes(item: Mapping[str, Any], where: str = "") -> NDArray[np.float64]:
    """The `boxes` (n, 4) of a prediction or a reference, checked.

    Raises:
        ValueError: as `read_prediction`.
    """
    boxes = read_array(item, "boxes", np.float64, where)
    boxes = boxes.reshape(-1, 4) if boxes.size == 0 else boxes
    if boxes.ndim != 2 or boxes.shape[1] != 4:
        raise ValueError(f"{where}: boxes is (n, 4), not {boxes.shape}")
    bad = ~np.isfinite(boxes).all(1) | (boxes[:, 2:] < boxes[:, :2]).any(1)
    if bad.any():
        raise ValueError(f"{where}: box {first(bad)} is {boxes[bad][0].tolist()}; x1 <= x2 and y1 <= y2 are to hold")
    return boxes


def read_array(item: Mapping[str, Any], name: str, dtype: type[Any], where: str) -> NDArray[Any]:
    """A field of a prediction or a reference as an array.

    Raises:
        ValueError: it is missing, its values are no numbers, or they should be whole numbers and are not.
    """
    if name not in item:
        raise ValueError(f"{where}: {name} is missing")
    value = item[name]
    try:
        if isinstance(value, Tensor):
            # NumPy has no bfloat16.
            value = (value.double() if value.is_floating_point() else value).detach().cpu()
        given = np.asarray(value)
        array = given.astype(dtype)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{where}: {name} is not an array of numbers ({error})") from error
    if dtype is np.int64 and (array != given).any():
        raise ValueError(f"{where}: {name} holds {given[array != given][0]}; whole numbers are wanted")
    return array


def check_labels(labels: NDArray[np.int64], categories: Collection[int] | None, who: str) -> None:
    """Refuse labels that are no category; with `categories` None all are.

    Raises:
        ValueError: a label is not among `categories`.
    """
    if categories is not None and (unknown := ~np.isin(labels, list(categories))).any():
        some = ", ".join(map(str, list(categories)[:5]))
        more = f", ... ({len(categories)} in all)" if len(categories) > 5 else ""
        raise ValueError(f"{who} has label {labels[first(unknown)]}, which is no category id; they are {some}{more}")


def first(mask: Iterable[Any]) -> int:
    """Position of the first true value."""
    return next(i for i, value in enumerate(mask) if value)
