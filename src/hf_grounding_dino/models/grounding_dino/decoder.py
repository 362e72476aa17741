"""The cross-modality decoder (section 3.4 of the paper) with iterative box refinement, looking forward twice (DINO)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer

from ...layers.attention import MultiheadAttention
from ...layers.context import ImageContext, TextContext
from ...layers.cpu_linear import cpu_linear
from ...layers.deformable_attention import DeformableAttention
from ...layers.heads import MLP, BoxHead
from ...layers.positions import box_position_embedding
from ...losses.denoising import NoisedQueries
from .configuration_grounding_dino import AnyGroundingDinoConfig


class DecoderInputs(NamedTuple):
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


def with_denoising(
    content_BQD: Tensor, boxes_BQ4: Tensor, inputs: DecoderInputs, noised: NoisedQueries
) -> tuple[Tensor, Tensor, DecoderInputs]:
    """What the decoder begins with: the denoising queries, then the matching ones, and who sees whom."""
    content = torch.cat([noised.content_BND.to(content_BQD.dtype), content_BQD], 1)
    may_attend = noised.may_attend(content_BQD.shape[1], inputs.may_attend_B11Q)
    return content, torch.cat([noised.boxes_BN4, boxes_BQ4], 1), inputs._replace(may_attend_B1QQ=may_attend)


class DecoderWeights(NamedTuple):
    """Attention weights of one layer: over queries, over text, image samples."""

    queries: Tensor | None
    text: Tensor | None
    image: Tensor | None

    def select(self, chosen: slice) -> DecoderWeights:
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
        self.config = config
        width, heads, epsilon = config.d_model, config.decoder_attention_heads, config.layer_norm_eps
        self.self_attn = MultiheadAttention(width, heads, config.attention_dropout)
        self.self_attn_layer_norm = nn.LayerNorm(width, epsilon)
        self.encoder_attn_text = MultiheadAttention(width, heads, config.attention_dropout)
        self.encoder_attn_text_layer_norm = nn.LayerNorm(width, epsilon)
        self.encoder_attn = DeformableAttention(
            width, heads, config.num_feature_levels, config.decoder_n_points, config.disable_custom_kernels
        )
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
        self,
        hidden_BQD: Tensor,
        position_BQD: Tensor,
        references_BQL4: Tensor,
        inputs: DecoderInputs,
        output_attentions: bool,
    ) -> tuple[Tensor, DecoderWeights | None]:
        """Queries after the layer, and the attention weights when wanted."""
        implementation = "eager" if output_attentions else self.config._attn_implementation
        query = hidden_BQD + position_BQD
        update, over_queries = self.self_attn(query, query, hidden_BQD, inputs.may_attend_queries, implementation)
        hidden_BQD = self.self_attn_layer_norm(hidden_BQD + self.dropout(update))
        update, over_text = self.encoder_attn_text(
            hidden_BQD + position_BQD, inputs.text_BTD, inputs.text_BTD, inputs.text.may_attend_B11T, implementation
        )
        hidden_BQD = self.encoder_attn_text_layer_norm(hidden_BQD + self.dropout(update))
        update, samples = self.encoder_attn(hidden_BQD + position_BQD, inputs.image_BSD, references_BQL4, inputs.image)
        hidden_BQD = self.encoder_attn_layer_norm(hidden_BQD + self.dropout(update))
        update = cpu_linear(hidden_BQD, self.fc1, self.activation_fn, self.activation_dropout, self.fc2)
        hidden_BQD = self.final_layer_norm(hidden_BQD + self.dropout(update))
        return hidden_BQD, DecoderWeights(over_queries, over_text, samples) if output_attentions else None


class DecoderOutput(NamedTuple):
    """What each layer leaves behind.

    hidden: normed queries after each layer, `(B, Q, D)`.
    references: the box each layer's prediction starts from, with the gradient of the layer before, `(B, Q, 4)`.
    refined: the box after each layer, with the gradient of the layer, `(B, Q, 4)`.
    weights: attention weights of each layer, with `output_attentions`.
    """

    hidden: tuple[Tensor, ...]
    references: tuple[Tensor, ...]
    refined: tuple[Tensor, ...]
    weights: tuple[DecoderWeights, ...]

    def select(self, chosen: slice) -> DecoderOutput:
        """What the layers leave behind of some of the queries."""
        hidden, references, refined = (tuple(x[:, chosen] for x in part) for part in self[:3])
        return DecoderOutput(hidden, references, refined, tuple(w.select(chosen) for w in self.weights))


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
        self.reference_points_head = MLP(config.d_model * 2, config.d_model, config.d_model, num_layers=2)
        self.bbox_embed = self.class_embed = None

    def forward(
        self, hidden_BQD: Tensor, boxes_BQ4: Tensor, inputs: DecoderInputs, output_attentions: bool
    ) -> DecoderOutput:
        """Refine the queries' boxes (cx, cy, w, h), float32 in [0, 1] of the un-padded image."""
        ratios_B1L4 = inputs.image.valid_ratios_BL2.repeat(1, 1, 2)[:, None]
        hidden, references, weights = [], [boxes_BQ4], []
        for i, layer in enumerate(self.layers):
            start_BQ4 = references[-1].detach()
            position = box_position_embedding(start_BQ4, self.width // 2).to(hidden_BQD.dtype)
            hidden_BQD, layer_weights = layer(
                hidden_BQD,
                self.reference_points_head(position),
                start_BQ4[:, :, None] * ratios_B1L4,
                inputs,
                output_attentions,
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
