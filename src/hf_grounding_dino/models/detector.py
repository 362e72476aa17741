"""What a detector is to everything outside `models`, and what it returns; names and order as in transformers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, Self

import torch
from torch import Tensor
from transformers.utils.generic import ModelOutput

from ..layers.context import TextContext
from ..layers.encoded_image import EncodedImage


class EncodedText(NamedTuple):
    """Words before they meet any image.

    features: `(B, T, D)`.
    context: which of them see which.
    """

    features: Tensor
    context: TextContext


class TextInputs(NamedTuple):
    """Prompts as the processor encodes them.

    input_ids: `(B, T)`.
    attention_mask: `(B, T)` bool, True on tokens, False on padding.
    token_type_ids: `(B, T)`, None for zeros.
    """

    input_ids: Tensor
    attention_mask: Tensor
    token_type_ids: Tensor | None

    @classmethod
    def from_ids(
        cls, input_ids: Tensor | None, attention_mask: Tensor | None = None, token_type_ids: Tensor | None = None
    ) -> TextInputs:
        """Join the arguments of `forward`.

        Raises:
            ValueError: there are no `input_ids`.
        """
        if input_ids is None:
            raise ValueError("Give `input_ids`: the prompts as the processor encodes them.")
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        return cls(input_ids, mask.bool(), token_type_ids)


class Detector(Protocol):
    """What pipeline, evaluation, annotation, training and export rely on, whichever the architecture.

    A batch equals its parts: what an image gives depends on no other image, nor on padding. Calls go through modules,
    so hooks fire. Post-processing reads `logits (B, N, T or C)`, -inf on padding, `pred_boxes (B, N, 4)` as
    (cx, cy, w, h) in [0, 1] of each image without its padding, and `centerness (B, N)` where an architecture has it.
    """

    def encode_image(self, pixel_values: Tensor, pixel_mask: Tensor | None = None) -> EncodedImage:
        """All that depends on the images alone: un-padded maps, which several prompts can share."""

    def encode_text(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, token_type_ids: Tensor | None = None
    ) -> EncodedText:
        """All that depends on the words alone; from a cache, which the weights' versions and hooks keep valid."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Detect; with `labels`, `loss` comes first, as in every model of transformers."""

    def prepare_targets(self, labels: Sequence[Mapping[str, Any]], input_ids: Tensor) -> Any:
        """Check the labels of a batch, and make of them what `compute_loss` reads."""

    def compute_loss(
        self, outputs: Any, targets: Any, num_boxes: Tensor | float | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of a batch, divided by `num_boxes`, and its terms before weighting."""


class _Output(ModelOutput):
    def to(self, where: torch.device | str | int | torch.dtype) -> Self:
        """The same output on a device, or with its floating tensors in another type."""
        return type(self)(**_moved(dict(self), where))


def _moved(value: Any, where: torch.device | str | int | torch.dtype) -> Any:
    """A value whose tensors, in whatever they lie, are on a device, or the floating ones of them in a type."""
    if isinstance(value, Tensor):
        if isinstance(where, torch.dtype) and not value.is_floating_point():
            return value
        copied = value.to(where)
        copied.__dict__.update(value.__dict__)  # the prompts, on `input_ids`
        return copied
    if isinstance(value, dict):
        return {name: _moved(part, where) for name, part in value.items()}
    if isinstance(value, (tuple, list)):
        return type(value)(_moved(part, where) for part in value)
    return value


@dataclass
class GroundingDinoModelOutput(_Output):
    """Output of `GroundingDinoModel`.

    last_hidden_state: normed queries after the last layer, `(B, Q, D)`.
    init_reference_points: the encoder's proposals, detached, `(B, Q, 4)`, (cx, cy, w, h) in [0, 1].
    intermediate_hidden_states: normed queries after each layer, `(B, layers, Q, D)`.
    intermediate_reference_points: boxes after each layer, `(B, layers, Q, 4)`.
    decoder_hidden_states, decoder_attentions: with `output_hidden_states`, `output_attentions`.
    encoder_last_hidden_state_vision, encoder_last_hidden_state_text: `(B, S, D)` and `(B, T, D)`.
    encoder_vision_hidden_states, encoder_text_hidden_states, encoder_attentions: likewise on demand.
    enc_outputs_class, enc_outputs_coord_logits: logits `(B, S, W)` and box logits `(B, S, 4)` of the proposal of every
        image token, with `output_hidden_states` alone, as they are large.
    encoder_logits, encoder_pred_boxes: logits `(B, Q, W)` and boxes `(B, Q, 4)` of the chosen proposals.
    query_mask: `(B, Q)` bool, False on queries left empty because an image has fewer tokens; absent when none is.
    denoising_hidden_states, denoising_reference_points: of N denoising queries, when given: normed states after each
        layer `(B, layers, N, D)`, and the boxes that each layer starts from, `(B, layers, N, 4)`.
    """

    last_hidden_state: Tensor | None = None
    init_reference_points: Tensor | None = None
    intermediate_hidden_states: Tensor | None = None
    intermediate_reference_points: Tensor | None = None
    decoder_hidden_states: tuple[Tensor, ...] | None = None
    decoder_attentions: tuple[tuple[Tensor, ...], ...] | None = None
    encoder_last_hidden_state_vision: Tensor | None = None
    encoder_last_hidden_state_text: Tensor | None = None
    encoder_vision_hidden_states: tuple[Tensor, ...] | None = None
    encoder_text_hidden_states: tuple[Tensor, ...] | None = None
    encoder_attentions: tuple[tuple[Tensor, ...], ...] | None = None
    enc_outputs_class: Tensor | None = None
    enc_outputs_coord_logits: Tensor | None = None
    encoder_logits: Tensor | None = None
    encoder_pred_boxes: Tensor | None = None
    query_mask: Tensor | None = None
    denoising_hidden_states: Tensor | None = None
    denoising_reference_points: Tensor | None = None


@dataclass
class GroundingDinoObjectDetectionOutput(_Output):
    """Output of `GroundingDinoForObjectDetection`.

    loss: with labels, a scalar in float32.
    loss_dict: its terms before weighting; the keys are listed in `losses.criterion.grounding_loss`.
    logits: `(B, Q, W)`, -inf on padding.
    pred_boxes: `(B, Q, 4)` float32, (cx, cy, w, h) in [0, 1] of each image without its padding.
    auxiliary_outputs: with labels and `config.auxiliary_loss`, `logits` and `pred_boxes` of the layers before the last.
    input_ids: `(B, T)`, for the post-processing.
    denoising_outputs: for `compute_loss` alone: of N denoising queries, `logits` and `pred_boxes` after each layer.

    The rest as in `GroundingDinoModelOutput`.
    """

    loss: Tensor | None = None
    loss_dict: dict[str, Tensor] | None = None
    logits: Tensor | None = None
    pred_boxes: Tensor | None = None
    auxiliary_outputs: list[dict[str, Tensor]] | None = None
    last_hidden_state: Tensor | None = None
    init_reference_points: Tensor | None = None
    intermediate_hidden_states: Tensor | None = None
    intermediate_reference_points: Tensor | None = None
    decoder_hidden_states: tuple[Tensor, ...] | None = None
    decoder_attentions: tuple[tuple[Tensor, ...], ...] | None = None
    encoder_last_hidden_state_vision: Tensor | None = None
    encoder_last_hidden_state_text: Tensor | None = None
    encoder_vision_hidden_states: tuple[Tensor, ...] | None = None
    encoder_text_hidden_states: tuple[Tensor, ...] | None = None
    encoder_attentions: tuple[tuple[Tensor, ...], ...] | None = None
    enc_outputs_class: Tensor | None = None
    enc_outputs_coord_logits: Tensor | None = None
    encoder_logits: Tensor | None = None
    encoder_pred_boxes: Tensor | None = None
    input_ids: Tensor | None = None
    denoising_outputs: list[dict[str, Tensor]] | None = None


# Megabytes an image, which `Trainer` would keep; `input_ids` are what the others are read by.
KEYS_TO_IGNORE_AT_INFERENCE = [
    name
    for name in GroundingDinoObjectDetectionOutput.__dataclass_fields__
    if name not in ("loss", "logits", "pred_boxes", "input_ids")
]


def common_fields(output: GroundingDinoModelOutput) -> dict[str, Any]:
    """The fields that both outputs have, by name."""
    names = GroundingDinoObjectDetectionOutput.__dataclass_fields__
    return {name: getattr(output, name) for name in GroundingDinoModelOutput.__dataclass_fields__ if name in names}
