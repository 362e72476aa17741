"""What an evaluation is made of: cases that are asked of a model, and the metric that judges the answers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..data.records import ImageSource
from ..models.grounding_dino.modeling_grounding_dino import GroundingDinoForObjectDetection
from ..processing.processing_grounding_dino import GroundingDinoProcessor
from .metric import ItemMetric

CaseId = int | str


class Answer(NamedTuple):
    """What the model found in a case; how it is kept on disk, too.

    boxes: float32 (k, 4), xyxy in pixels of the upright picture.
    scores: float32 (k,), falling.
    labels: int64 (k,): the category id of the annotation file (detection, described objects), the number of the phrase
        in its caption (phrase grounding), 0 (referring).
    """

    boxes: NDArray[np.float32]
    scores: NDArray[np.float32]
    labels: NDArray[np.int64]

    def as_prediction(self, case_id: CaseId) -> dict[str, Any]:
        """As the metrics take it."""
        return {"image_id": case_id, "boxes": self.boxes, "scores": self.scores, "labels": self.labels}


class Case(NamedTuple):
    """One picture, and what is asked about it.

    case_id: no other case of the task has it.
    image: where the pixels are.
    reference: what is there, as the metric of the task takes it, `image_id` equal to `case_id`.
    text: the caption or the expression of this case; empty where all cases are asked for the labels of the task.
    spans: of a caption, for each phrase where the caption names it, as (start, end) characters.
    """

    case_id: CaseId
    image: ImageSource
    reference: Mapping[str, Any]
    text: str = ""
    spans: tuple[tuple[tuple[int, int], ...], ...] = ()


class Asker(Protocol):
    """How a model is asked: the prompts, what is taken from its answer, and how much of it."""

    def __call__(
        self,
        model: GroundingDinoForObjectDetection,
        processor: GroundingDinoProcessor,
        images: Sequence[Image.Image],
        cases: Sequence[Case],
    ) -> list[Answer]:
        """The answers to a few cases, whose pictures are `images`; the batch changes no answer."""
        ...

    @property
    def protocol(self) -> dict[str, Any]:
        """Everything that decides the answers beside model and pictures, as JSON: prompts, chunk size, top-k, ..."""
        ...


class Task(Protocol):
    """One data set with its protocol."""

    @property
    def name(self) -> str:
        """For people and for file names."""
        ...

    @property
    def labels(self) -> Mapping[int, str]:
        """Category id to name, as in the annotation file; empty where each case has a text of its own."""
        ...

    @property
    def ask(self) -> Asker:
        """How the model is asked."""
        ...

    def metric(self) -> ItemMetric[Any]:
        """A new metric, empty."""
        ...

    def __len__(self) -> int:
        """Number of cases."""
        ...

    def __getitem__(self, index: int) -> Case:
        """The case at a position from 0."""
        ...

    def __iter__(self) -> Iterator[Case]:
        """All cases."""
        ...
