"""What the models return; names and order as in transformers.

Shapes: `B` batch, `S` image tokens, `T` text tokens, `Q` queries, `D` width, `W` = max(T, `max_text_len`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor
from transformers.utils.generic import ModelOutput


def moved(value: Any, where: torch.device | str | int | torch.dtype) -> Any:
    """A value whose tensors, in whatever they lie, are on a device, or the floating ones of them in a type."""
    if isinstance(value, Tensor):
        if isinstance(where, torch.dtype) and not value.is_floating_point():
            return value
        copied = value.to(where)
        copied.__dict__.update(value.__dict__)  # the prompts, on `input_ids`
        return copied
    if isinstance(value, dict):
        return {name: moved(part, where) for name, part in value.items()}
    if isinstance(value, (tuple, list)):
        parts = [moved(part, where) for part in value]
        return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)
    return value


class _Output(ModelOutput):
    def to(self, where: torch.device | str | int | torch.dtype) -> Self:
        """The same output on a device, or with its floating tensors in another type."""
        return type(self)(**moved(dict(self), where))


@dataclass
class GroundingDinoModelOutput(_Output):
    """Output of `GroundingDinoModel`.

    last_hidden_state: normed queries after the last layer, `(B, Q, D)`.
    init_reference_points: boxes of the first stage, detached, `(B, Q, 4)`, (cx, cy, w, h) in [0, 1].
    intermediate_hidden_states: normed queries after each layer, `(B, layers, Q, D)`.
    intermediate_reference_points: boxes after each layer, `(B, layers, Q, 4)`.
    decoder_hidden_states, decoder_attentions: with `output_hidden_states`, `output_attentions`.
    encoder_last_hidden_state_vision, encoder_last_hidden_state_text: `(B, S, D)` and `(B, T, D)`.
    encoder_vision_hidden_states, encoder_text_hidden_states, encoder_attentions: likewise on demand.
    enc_outputs_class, enc_outputs_coord_logits: first-stage logits `(B, S, W)` and box logits `(B, S, 4)` of every
        image token, with `output_hidden_states` alone, as they are large.
    encoder_logits, encoder_pred_boxes: first-stage logits `(B, Q, W)` and boxes `(B, Q, 4)` of the chosen tokens.
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
    loss_dict: its terms before weighting; the keys are listed in `losses.grounding_loss`.
    logits: `(B, Q, W)`, -inf on padding.
    pred_boxes: `(B, Q, 4)` float32, (cx, cy, w, h) in [0, 1] of each image without its padding.
    auxiliary_outputs: with labels and `config.auxiliary_loss`, `logits` and `pred_boxes` of the layers before the last.
    input_ids: `(B, T)`, for the post-processing.

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


def common_fields(output: GroundingDinoModelOutput) -> dict[str, Any]:
    """The fields that both outputs have, by name."""
    names = GroundingDinoObjectDetectionOutput.__dataclass_fields__
    return {name: getattr(output, name) for name in GroundingDinoModelOutput.__dataclass_fields__ if name in names}
