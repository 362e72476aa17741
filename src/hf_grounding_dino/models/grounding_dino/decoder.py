"""The cross-modality decoder (section 3.4 of the paper) with iterative box refinement, looking forward twice (DINO).

Shapes: `B` batch, `Q` queries, `S` image tokens, `T` text tokens, `D` width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer

from ...layers.attention import MultiheadAttention
from ...layers.context import ImageContext, TextContext
from ...layers.cpu_linear import token_wise
from ...layers.deformable_attention import DeformableAttention
from ...layers.heads import BoxHead, Perceptron
from ...layers.positions import box_position_embedding
from .configuration_grounding_dino import AnyGroundingDinoConfig


class Memory(NamedTuple):
    """What the queries look at: enhanced image and text with their contexts, and one another.

    may_attend_B11Q: True on the queries that are real; None: all are.
    may_attend_B1QQ: which queries see which, where that differs from query to query; None: each sees all real ones.
    """

    image_BSD: Tensor
    text_BTD: Tensor
    image: ImageContext
    text: TextContext
    may_attend_B11Q: Tensor | None
    may_attend_B1QQ: Tensor | None = None

    @property
    def may_attend_queries(self) -> Tensor | None:
        """The mask of self-attention."""
        return self.may_attend_B11Q if self.may_attend_B1QQ is None else self.may_attend_B1QQ


class DecoderWeights(NamedTuple):
    """Attention weights of one layer: over queries, over text, image samples."""

    queries: Tensor | None
    text: Tensor | None
    image: Tensor | None

    def of(self, chosen: slice) -> DecoderWeights:
        """The weights of some of the queries, over one another and all that is not a query."""
        return DecoderWeights(
            queries=None if self.queries is None else self.queries[:, :, chosen, chosen],
            text=None if self.text is None else self.text[:, :, chosen],
            image=None if self.image is None else self.image[:, chosen],
        )


class DecoderLayer(GradientCheckpointingLayer):
    """Queries attend to each other, to the text, and around their boxes to the image."""

    def __init__(self, config: AnyGroundingDinoConfig) -> None:
        super().__init__()
        width, heads, epsilon = config.d_model, config.decoder_attention_heads, config.layer_norm_eps
        self.self_attn = MultiheadAttention(config, heads)
        self.self_attn_layer_norm = nn.LayerNorm(width, epsilon)
        self.encoder_attn_text = MultiheadAttention(config, heads)
        self.encoder_attn_text_layer_norm = nn.LayerNorm(width, epsilon)
        self.encoder_attn = DeformableAttention(config, heads, config.decoder_n_points)
        self.encoder_attn_layer_norm = nn.LayerNorm(width, epsilon)
        self.fc1 = nn.Linear(width, config.decoder_ffn_dim)
        self.fc2 = nn.Linear(config.decoder_ffn_dim, width)
        self.final_layer_norm = nn.LayerNorm(width, epsilon)
        self.activation_fn = ACT2FN[config.activation_function]
        self.dropout = nn.Dropout(config.dropout)
        self.activation_dropout = nn.Dropout(config.activation_dropout)

    def initialize_parameters(self) -> None:
        """Xavier."""
        init.xavier_uniform_(self.fc1.weight)
        init.xavier_uniform_(self.fc2.weight)

    def forward(
        self, hidden_BQD: Tensor, position_BQD: Tensor, references_BQL4: Tensor, memory: Memory, want_weights: bool
    ) -> tuple[Tensor, DecoderWeights | None]:
        """Queries after the layer, and the attention weights when wanted."""
        query = hidden_BQD + position_BQD
        update, over_queries = self.self_attn(query, query, hidden_BQD, memory.may_attend_queries, want_weights)
        hidden_BQD = self.self_attn_layer_norm(hidden_BQD + self.dropout(update))
        update, over_text = self.encoder_attn_text(
            hidden_BQD + position_BQD, memory.text_BTD, memory.text_BTD, memory.text.may_attend_B11T, want_weights
        )
        hidden_BQD = self.encoder_attn_text_layer_norm(hidden_BQD + self.dropout(update))
        update, samples = self.encoder_attn(hidden_BQD + position_BQD, memory.image_BSD, references_BQL4, memory.image)
        hidden_BQD = self.encoder_attn_layer_norm(hidden_BQD + self.dropout(update))
        update = token_wise(hidden_BQD, self.fc1, self.activation_fn, self.activation_dropout, self.fc2)
        hidden_BQD = self.final_layer_norm(hidden_BQD + self.dropout(update))
        return hidden_BQD, DecoderWeights(over_queries, over_text, samples) if want_weights else None


class DecoderOutput(NamedTuple):
    """What each layer leaves behind.

    hidden: normed queries after each layer, `(B, Q, D)`.
    references: the box each layer's prediction starts from, with the gradient of the layer before, `(B, Q, 4)`.
    refined: the box after each layer, with the gradient of the layer, `(B, Q, 4)`.
    weights: attention weights of each layer, when recorded.
    """

    hidden: tuple[Tensor, ...]
    references: tuple[Tensor, ...]
    refined: tuple[Tensor, ...]
    weights: tuple[DecoderWeights, ...]

    def of(self, chosen: slice) -> DecoderOutput:
        """What the layers leave behind of some of the queries."""
        hidden, references, refined = (tuple(x[:, chosen] for x in part) for part in self[:3])
        return DecoderOutput(hidden, references, refined, tuple(w.of(chosen) for w in self.weights))


class CrossModalityDecoder(nn.Module):
    """All layers of the decoder.

    `bbox_embed` refines the boxes between the layers. It belongs to the detector, which puts it here together with
    `class_embed`; without it the boxes stay where they begin.
    """

    bbox_embed: nn.ModuleList | None
    class_embed: nn.ModuleList | None

    def __init__(self, config: AnyGroundingDinoConfig) -> None:
        super().__init__()
        self.width = config.d_model
        self.layers = nn.ModuleList(DecoderLayer(config) for _ in range(config.decoder_layers))
        self.layer_norm = nn.LayerNorm(config.d_model, config.layer_norm_eps)
        self.reference_points_head = Perceptron(config.d_model * 2, config.d_model, config.d_model, num_layers=2)
        self.bbox_embed = self.class_embed = None

    def forward(self, hidden_BQD: Tensor, boxes_BQ4: Tensor, memory: Memory, want_weights: bool) -> DecoderOutput:
        """Refine the queries' boxes (cx, cy, w, h), float32 in [0, 1] of the un-padded image."""
        ratios_B1L4 = memory.image.valid_ratios_BL2.repeat(1, 1, 2)[:, None]
        hidden, references, weights = [], [boxes_BQ4], []
        for i, layer in enumerate(self.layers):
            start_BQ4 = references[-1].detach()
            position = box_position_embedding(start_BQ4, self.width // 2).to(hidden_BQD.dtype)
            hidden_BQD, layer_weights = layer(
                hidden_BQD,
                self.reference_points_head(position),
                start_BQ4[:, :, None] * ratios_B1L4,
                memory,
                want_weights,
            )
            references.append(self._refine(i, hidden_BQD, start_BQ4))
            hidden.append(self.layer_norm(hidden_BQD))
            weights.append(layer_weights)
        kept = tuple(w for w in weights if w is not None)
        return DecoderOutput(tuple(hidden), tuple(references[:-1]), tuple(references[1:]), kept)

    def _refine(self, layer: int, hidden_BQD: Tensor, boxes_BQ4: Tensor) -> Tensor:
        if self.bbox_embed is None:
            return boxes_BQ4
        head = self.bbox_embed[layer]
        assert isinstance(head, BoxHead)
        return head.refine(hidden_BQD, boxes_BQ4)


class HeadInputs(NamedTuple):
    """What the heads read, K decoder layers of it.

    hidden_BKQD: normed queries after each layer.
    references_BKQ4: the box that each layer's prediction starts from.
    query_mask_BQ: False on queries that are not real; None: all are.
    text_BTD, may_attend_BT: the enhanced words, and which of them are no padding.
    """

    hidden_BKQD: Tensor
    references_BKQ4: Tensor
    query_mask_BQ: Tensor | None
    text_BTD: Tensor
    may_attend_BT: Tensor


def predict_layers(
    layers: Sequence[int], box_heads: nn.ModuleList, class_heads: nn.ModuleList, inputs: HeadInputs
) -> tuple[Tensor, Tensor]:
    """What the heads say after some of the layers.

    Returns:
        Logits `(layers, B, Q, T)`, -inf on padding and on empty queries, and boxes `(layers, B, Q, 4)`.
    """
    logits, boxes = [], []
    for i in layers:
        box_head, hidden_BQD = box_heads[i], inputs.hidden_BKQD[:, i]
        assert isinstance(box_head, BoxHead)
        logits_BQT = class_heads[i](hidden_BQD, inputs.text_BTD, inputs.may_attend_BT[:, None, None])
        if inputs.query_mask_BQ is not None:
            logits_BQT = logits_BQT.masked_fill(inputs.query_mask_BQ.logical_not()[..., None], -torch.inf)
        logits.append(logits_BQT)
        boxes.append(box_head.refine(hidden_BQD, inputs.references_BKQ4[:, i]))
    return torch.stack(logits), torch.stack(boxes)
