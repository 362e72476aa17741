"""From decoded pictures to boxes: what runs in the threads that read ahead, and what runs on the device."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol, get_args

import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import pad

from ..inference.large_vocabulary import Chunking, LabelPrompts
from ..models.grounding_dino.modeling_grounding_dino import GroundingDinoForObjectDetection
from ..processing.closed_vocabulary import doubts
from ..processing.defaults import DEFAULTS, Scoring
from ..processing.processing_grounding_dino import GroundingDinoProcessor
from .answers import AnnotationError
from .files import is_writable_text


@dataclass(frozen=True, kw_only=True)
class Options:
    """Which boxes are kept.

    threshold: the least score, in [0, 1], exclusive.
    thresholds: another one for some of the labels.
    scoring: "max", a box has its best label alone and scores as that one's best token; or "mean", as calibrated
        thresholds want it, a label scores as the mean of its tokens.
    nms: of two boxes of one label that overlap by more (IoU, in [0, 1]), the better is kept; None or 1 keeps all.
    top_k: the most boxes of a picture; None keeps all.
    chunk_size: the most labels of a prompt; None for as many as its tokens hold.
    batch_size: pictures that run together, 1 to 32.
    threads: how many read ahead; None for one a core, 16 at most.
    """

    threshold: float = DEFAULTS.threshold
    thresholds: Mapping[str, float] = field(default_factory=dict)
    scoring: Scoring = "max"
    nms: float | None = DEFAULTS.nms
    top_k: int | None = DEFAULTS.top_k
    chunk_size: int | None = DEFAULTS.chunk_size
    batch_size: int = 4
    threads: int | None = None

    def __post_init__(self) -> None:
        """Check the ranges.

        Raises:
            AnnotationError: a number out of its range.
        """
        shares = {"threshold": self.threshold, **({} if self.nms is None else {"nms": self.nms})}
        for name, value in [*shares.items(), *((f"threshold of {k!r}", v) for k, v in self.thresholds.items())]:
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 1:
                raise AnnotationError(f"the {name} is {value!r}: a number from 0 to 1 is needed")
        if self.scoring not in get_args(Scoring):
            raise AnnotationError(f"scoring is {self.scoring!r}: one of {', '.join(get_args(Scoring))} is needed")
        for name, count in (("top_k", self.top_k), ("chunk_size", self.chunk_size), ("threads", self.threads)):
            if count is not None and count < 1:
                raise AnnotationError(f"{name} is {count}: 1 or more is needed")
        if not 1 <= self.batch_size <= LARGEST_BATCH:
            raise AnnotationError(f"the batch size is {self.batch_size}: 1 to {LARGEST_BATCH} is possible")


LARGEST_BATCH = 32


class Prepared(NamedTuple):
    """A picture as the model takes it: pixels (3, H, W), mask (H, W), and (width, height) before the resizing."""

    pixels: Tensor
    mask: Tensor
    size: tuple[int, int]


class Found(NamedTuple):
    """The boxes of a picture, best first: xyxy in its pixels, positions of labels, scores."""

    boxes: list[list[float]]
    labels: list[int]
    scores: list[float]


class Finder(Protocol):
    """What finds labels in pictures; `prepare` is called from several threads, `find` from one."""

    def prepare(self, picture: Image.Image) -> Prepared:
        """Resize and normalise an upright RGB picture.

        Raises:
            ValueError: it cannot be used.
        """
        ...

    def find(self, pictures: Sequence[Prepared]) -> list[Found]:
        """What is in each of a batch; it depends on the pictures of the batch and on nothing before them."""
        ...


class LabelFinder:
    """A `Finder` that looks for a list of labels of any length, each box called by its best one.

    The labels are divided between prompts as in `vocabulary.detect`, and read once.
    """

    def __init__(
        self,
        model: GroundingDinoForObjectDetection,
        processor: GroundingDinoProcessor,
        labels: Sequence[str],
        options: Options,
    ) -> None:
        """Divide the labels.

        Raises:
            AnnotationError: the model is in training mode, or cannot know a label; a label is given twice, or cannot be
                a prompt or a line of text; or a threshold is of no label.
        """
        if model.training:
            raise AnnotationError("the model is in training mode: call model.eval()")
        _check_labels(labels, options)
        self.model, self.processor, self.labels, self.options = model, processor, list(labels), options
        try:
            for doubt in doubts(model, self.labels):
                warnings.warn(doubt, stacklevel=3)
            self._prompts = LabelPrompts(labels, processor, Chunking(labels=options.chunk_size))
        except ValueError as error:
            raise AnnotationError(error) from error
        self._thresholds = [options.thresholds.get(label, options.threshold) for label in self.labels]

    def prepare(self, picture: Image.Image) -> Prepared:
        """As `Finder.prepare`."""
        features = self.processor.image_processor([picture])
        return Prepared(features["pixel_values"][0], features["pixel_mask"][0], picture.size)

    def find(self, pictures: Sequence[Prepared]) -> list[Found]:
        """As `Finder.find`."""
        with torch.inference_mode():
            pixels, mask = _together(pictures)
            device = self.model.device
            encoded = self.model.encode_image(pixels.to(device), mask.to(device))
            found = self._prompts.detect(
                self.model,
                encoded,
                [(one.size[1], one.size[0]) for one in pictures],
                threshold=self._thresholds,
                scoring=self.options.scoring,
                top_k=self.options.top_k,
                nms_threshold=self.options.nms,
            )
            return [Found(*(one[name].tolist() for name in ("boxes", "labels", "scores"))) for one in found]


def _check_labels(labels: Sequence[str], options: Options) -> None:
    if isinstance(labels, str) or not labels:
        raise AnnotationError(f"give a list of labels, not {labels!r}")
    for i, label in enumerate(labels):
        if not is_writable_text(label):
            raise AnnotationError(f"the label {label!r} holds characters that are no text")
        if label in labels[:i]:
            raise AnnotationError(f"the label {label!r} is given twice")
    for label in options.thresholds:
        if label not in labels:
            raise AnnotationError(f"there is a threshold of {label!r}, which is none of the labels")


def _together(pictures: Sequence[Prepared]) -> tuple[Tensor, Tensor]:
    """The padded batch and its mask."""
    height, width = (max(one.mask.shape[side] for one in pictures) for side in (0, 1))
    margins = [(0, width - one.mask.shape[1], 0, height - one.mask.shape[0]) for one in pictures]
    pixels = torch.stack([pad(one.pixels, margin) for one, margin in zip(pictures, margins, strict=True)])
    mask = torch.stack([pad(one.mask, margin) for one, margin in zip(pictures, margins, strict=True)])
    return pixels, mask
