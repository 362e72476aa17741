"""The feature enhancer (section 3.2 of the paper): fusion, text self-attention, deformable image self-attention."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor, nn
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer

from ...layers.attention import MultiheadAttention
from ...layers.context import ImageContext, TextContext
from ...layers.cpu_linear import cpu_linear
from ...layers.deformable_attention import DeformableAttention, DeformableEncoderLayer
from ...layers.fusion import FusionLayer
from .configuration_grounding_dino import AnyGroundingDinoConfig


class TextEnhancerLayer(nn.Module):
    """Text self-attention inside each phrase."""

    def __init__(self, config: AnyGroundingDinoConfig) -> None:
        super().__init__()
        self.config = config
        self.self_attn = MultiheadAttention(config.d_model, config.text_attention_heads, config.attention_dropout)
        self.fc1 = nn.Linear(config.d_model, config.fusion_dim)
        self.fc2 = nn.Linear(config.fusion_dim, config.d_model)
        self.layer_norm_before = nn.LayerNorm(config.d_model, config.layer_norm_eps)
        self.layer_norm_after = nn.LayerNorm(config.d_model, config.layer_norm_eps)
        self.activation = ACT2FN[config.activation_function]
        self.dropout = nn.Dropout(config.text_enhancer_dropout)

    def initialize_parameters(self) -> None:
        """Xavier."""
        init.xavier_uniform_(self.fc1.weight)
        init.xavier_uniform_(self.fc2.weight)

    def forward(self, text_BTD: Tensor, text: TextContext, output_attentions: bool) -> tuple[Tensor, Tensor | None]:
        """Text after the layer, and the attention weights."""
        query = text_BTD + text.positions_BTD
        implementation = "eager" if output_attentions else self.config._attn_implementation
        update, weights = self.self_attn(query, query, text_BTD, text.may_attend_B1TT, implementation)
        text_BTD = self.layer_norm_before(text_BTD + self.dropout(update))
        update = cpu_linear(text_BTD, self.fc1, self.activation, self.dropout, self.fc2)
        return self.layer_norm_after(text_BTD + self.dropout(update)), weights


class EnhancerWeights(NamedTuple):
    """Attention weights of one layer: image over text, text over image, text over text, image samples.

    The first two have batch and heads in one dimension, as transformers gives them.
    """

    image_to_text: Tensor | None
    text_to_image: Tensor | None
    text: Tensor | None
    image: Tensor | None


class EnhancerLayer(GradientCheckpointingLayer):
    """One layer of the feature enhancer."""

    def __init__(self, config: AnyGroundingDinoConfig) -> None:
        super().__init__()
        self.text_enhancer_layer = TextEnhancerLayer(config)
        self.fusion_layer = FusionLayer(
            config.d_model,
            config.fusion_dim,
            config.text_attention_heads,
            dropout=config.fusion_dropout,
            drop_path=config.fusion_droppath,
            layer_norm_eps=config.layer_norm_eps,
        )
        attention = DeformableAttention(
            config.d_model,
            config.encoder_attention_heads,
            config.num_feature_levels,
            config.encoder_n_points,
            config.disable_custom_kernels,
        )
        self.deformable_layer = DeformableEncoderLayer(
            config.d_model,
            attention,
            config.encoder_ffn_dim,
            activation=config.activation_function,
            dropout=config.dropout,
            activation_dropout=config.activation_dropout,
            layer_norm_eps=config.layer_norm_eps,
        )

    def forward(
        self, image_BSD: Tensor, text_BTD: Tensor, image: ImageContext, text: TextContext, output_attentions: bool
    ) -> tuple[Tensor, Tensor, EnhancerWeights | None]:
        """Image and text after the layer, and the attention weights when wanted."""
        image_BSD, text_BTD, image_to_text, text_to_image = self.fusion_layer(
            image_BSD, text_BTD, image, text, output_attentions
        )
        text_BTD, text_weights = self.text_enhancer_layer(text_BTD, text, output_attentions)
        image_BSD, image_weights = self.deformable_layer(image_BSD, image)
        weights = (
            EnhancerWeights(image_to_text, text_to_image, text_weights, image_weights) if output_attentions else None
        )
        return image_BSD, text_BTD, weights


class EnhancerOutput(NamedTuple):
    """Image and text after the last layer; inputs of every layer and the last output, and weights, when recorded."""

    image_BSD: Tensor
    text_BTD: Tensor
    image_states: tuple[Tensor, ...]
    text_states: tuple[Tensor, ...]
    weights: tuple[EnhancerWeights, ...]


class FeatureEnhancer(nn.Module):
    """All layers of the feature enhancer."""

    def __init__(self, config: AnyGroundingDinoConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(EnhancerLayer(config) for _ in range(config.encoder_layers))

    def forward(
        self,
        image_BSD: Tensor,
        text_BTD: Tensor,
        image: ImageContext,
        text: TextContext,
        output_attentions: bool,
        output_hidden_states: bool,
    ) -> EnhancerOutput:
        """Enhance image and text together."""
        states, weights = [(image_BSD, text_BTD)], []
        for layer in self.layers:
            image_BSD, text_BTD, layer_weights = layer(image_BSD, text_BTD, image, text, output_attentions)
            weights.append(layer_weights)
            if output_hidden_states:
                states.append((image_BSD, text_BTD))
        image_states, text_states = zip(*states, strict=True)
        return EnhancerOutput(
            image_BSD, text_BTD, image_states, text_states, tuple(w for w in weights if w is not None)
        )
