"""What the metrics here share: each is an `evaluate.Metric` that keeps of an item what it needs, and no more."""

from __future__ import annotations

import os
from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar, Generic, NamedTuple, TypeVar

import evaluate
import numpy as np
from accelerate import PartialState
from accelerate.utils import gather_object
from datasets import Features, List, Value
from numpy.typing import NDArray
from torch import Tensor

Float = NDArray[np.float64]
Integer = NDArray[np.int64]
ItemId = int | str
Kept = TypeVar("Kept")

_BOXES = List(List(Value("float64")))
_PREDICTION = {"image_id": Value("string"), "boxes": _BOXES, "scores": List(Value("float64"))}
_REFERENCE = {"image_id": Value("string"), "boxes": _BOXES}
_LABELS = {"labels": List(Value("int64"))}


class Found(NamedTuple):
    """What a model found in one item, by no particular order.

    boxes: (k, 4), xyxy in pixels.
    scores: (k,), any finite numbers.
    labels: (k,), what the metric's references call things by.
    """

    boxes: Float
    scores: Float
    labels: Integer


class ItemMetric(evaluate.Metric, Generic[Kept]):
    """A metric over items: a picture, or a picture with a sentence.

    A prediction is a dict with `image_id`, `boxes` (k, 4) as xyxy in pixels, `scores` (k,), and `labels` (k,), which a
    metric that knows one thing only does without; a reference has `image_id`, `boxes` (n, 4) and what else the metric
    names. The two lists of a batch go together by position. Lists, arrays and tensors are all right.

    An item that was added before is passed over, so that samplers which fill the last batch with items of the first do
    no harm. With `num_process` above 1 every process adds its own items (or all add all), every process calls
    `compute`, and all get the same result.
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
        """Number of items that were added."""
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
            self._add(prediction, reference)

    def compute(
        self,
        *,
        predictions: Sequence[Mapping[str, Any]] | None = None,
        references: Sequence[Mapping[str, Any]] | None = None,
        **unknown: Any,
    ) -> dict[str, float]:
        """The scores of all items added, and those given here; then forget them.

        Raises:
            ValueError: as `add_batch`; or accelerate runs another number of processes than `num_process` says.
        """
        if predictions is not None or references is not None or unknown:
            self.add_batch(predictions=predictions, references=references, **unknown)
        if self.num_process > 1 and (running := PartialState().num_processes) != self.num_process:
            raise ValueError(f"num_process is {self.num_process}, but accelerate runs {running} process(es)")
        kept = self._merged() if self.num_process > 1 else self._kept
        try:
            return self.score({item: kept[item] for item in sorted(kept, key=_rank)})
        finally:
            self.forget()

    def forget(self) -> None:
        """Drop all that was kept; a metric that keeps more than `keep` returns drops it here, too."""
        self._kept = {}

    @abstractmethod
    def keep(self, found: Found, reference: Mapping[str, Any], where: str) -> Kept:
        """What is kept of an item; `where` names it in errors.

        It is asked once for an item, in the order in which items come: `len(self)` items came before.
        """

    @abstractmethod
    def score(self, kept: Mapping[ItemId, Kept]) -> dict[str, float]:
        """The scores, in [0, 1], of what was kept of each item, in the order of the ids: numbers, then strings."""

    def _add(self, prediction: Mapping[str, Any], reference: Mapping[str, Any]) -> None:
        item = item_id(prediction, "a prediction")
        if (other := item_id(reference, "a reference")) != item:
            raise ValueError(f"the prediction of image {item} stands beside the reference of image {other}")
        if item not in self._kept:
            where = f"image {item}"
            if self.needs_labels and "labels" not in prediction:
                raise ValueError(f"{where}: labels is missing")
            self._kept[item] = self.keep(found_of(prediction, where), reference, where)

    def _merged(self) -> dict[ItemId, Kept]:
        """What all processes kept; of an item that several have, what the first of them kept."""
        parts: list[tuple[ItemId, Kept]] = gather_object(list(self._kept.items()))
        merged: dict[ItemId, Kept] = {}
        for item, kept in parts:
            merged.setdefault(item, kept)
        return merged

    def _info(self) -> evaluate.MetricInfo:
        features = {"predictions": {**_PREDICTION, **_LABELS}, "references": {**_REFERENCE, **self.reference_features}}
        return evaluate.MetricInfo(
            description=self.description,
            citation=self.citation,
            inputs_description=self.inputs,
            features=Features(features),
        )

    def _build_data_dir(self) -> str:
        # Nothing is kept on disk, so no folder is made there, in a home that may be read-only.
        return str(os.path.join(self._data_dir_root, self.name, self.config_name))


def _rank(item: ItemId) -> tuple[bool, ItemId]:
    return isinstance(item, str), item


def item_id(item: Mapping[str, Any], what: str) -> ItemId:
    """The `image_id` of a prediction or a reference.

    Raises:
        ValueError: there is none.
    """
    if "image_id" not in item:
        raise ValueError(f"{what} has no image_id")
    found = item["image_id"]
    return found if isinstance(found, str) else int(found)


def found_of(prediction: Mapping[str, Any], where: str) -> Found:
    """The numbers of a prediction, checked; without `labels` all of them are 0.

    Raises:
        ValueError: numbers of another shape, a score or a box that is not finite, a box with x2 < x1 or y2 < y1.
    """
    boxes = boxes_of(prediction, where)
    scores = as_array(prediction, "scores", np.float64, where)
    labels = (
        as_array(prediction, "labels", np.int64, where) if "labels" in prediction else np.zeros(len(boxes), np.int64)
    )
    if not len(boxes) == len(scores) == len(labels):
        raise ValueError(f"{where}: {len(boxes)} boxes, {len(scores)} scores and {len(labels)} labels")
    if not np.isfinite(scores).all():
        raise ValueError(f"{where}: score {first(~np.isfinite(scores))} is {scores[~np.isfinite(scores)][0]}")
    return Found(boxes, scores, labels)


def boxes_of(item: Mapping[str, Any], where: str) -> Float:
    """The `boxes` (n, 4) of a prediction or a reference, checked.

    Raises:
        ValueError: as `found_of`.
    """
    boxes = as_array(item, "boxes", np.float64, where)
    boxes = boxes.reshape(-1, 4) if boxes.size == 0 else boxes
    if boxes.ndim != 2 or boxes.shape[1] != 4:
        raise ValueError(f"{where}: boxes is (n, 4), not {boxes.shape}")
    bad = ~np.isfinite(boxes).all(1) | (boxes[:, 2:] < boxes[:, :2]).any(1)
    if bad.any():
        raise ValueError(f"{where}: box {first(bad)} is {boxes[bad][0].tolist()}; x1 <= x2 and y1 <= y2 are to hold")
    return boxes


def as_array(item: Mapping[str, Any], name: str, dtype: type[Any], where: str) -> NDArray[Any]:
    """A field of a prediction or a reference as an array.

    Raises:
        ValueError: it is missing, its values are no numbers, or they are to be whole numbers and are not.
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


def first(mask: Iterable[Any]) -> int:
    """Position of the first true value."""
    return next(i for i, value in enumerate(mask) if value)
