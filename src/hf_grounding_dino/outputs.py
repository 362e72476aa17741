"""What the models return; names and order as in transformers.

Shapes: `B` batch, `S` image tokens, `T` text tokens, `Q` queries, `D` width, `W` = max(T, `max_text_len`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor
from transformers.utils.generic import ModelOutput


@dataclass
class GroundingDinoModelOutput(ModelOutput):
    """Output of `GroundingDinoModel`.

    last_hidden_state: normed queries after the last layer, `(B, Q, D)`.
    init_reference_points: boxes of the first stage, detached, `(B, Q, 4)`, (cx, cy, w, h) in [0, 1].
    intermediate_hidden_states: normed queries after each layer, `(B, layers, Q, D)`.
    intermediate_reference_points: boxes after each layer, detached, `(B, layers, Q, 4)`.
    decoder_hidden_states, decoder_attentions: with `output_hidden_states`, `output_attentions`.
    encoder_last_hidden_state_vision, encoder_last_hidden_state_text: `(B, S, D)` and `(B, T, D)`.
    encoder_vision_hidden_states, encoder_text_hidden_states, encoder_attentions: likewise on demand.
    enc_outputs_class, enc_outputs_coord_logits: first-stage logits `(B, S, W)` and box logits `(B, S, 4)` of every
        image token, with `output_hidden_states` alone, as they are large.
    encoder_logits, encoder_pred_boxes: first-stage logits `(B, Q, W)` and boxes `(B, Q, 4)` of the chosen tokens.
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


@dataclass
class GroundingDinoObjectDetectionOutput(ModelOutput):
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


MODEL_FIELDS: tuple[str, ...] = tuple(GroundingDinoModelOutput.__dataclass_fields__)


def common_fields(output: GroundingDinoModelOutput) -> dict[str, Any]:
    """The fields that both outputs have, by name."""
    return {name: getattr(output, name) for name in MODEL_FIELDS}
