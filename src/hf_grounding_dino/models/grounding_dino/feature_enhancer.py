"""The feature enhancer (section 3.2 of the paper): fusion, text self-attention, deformable image self-attention.

Shapes: `B` batch, `S` image tokens, `T` text tokens, `D` width.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torchvision.ops import StochasticDepth
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer

from ...layers.attention import BidirectionalAttention, MultiheadAttention
from ...layers.context import ImageContext, Recording, TextContext
from ...layers.cpu_linear import token_wise
from ...layers.deformable_attention import DeformableAttention
from .configuration_grounding_dino import AnyGroundingDinoConfig

LAYER_SCALE = 1e-4


class FusionLayer(nn.Module):
    """Image and text exchange features; each update is scaled per channel and added to the normed input."""

    def __init__(self, config: AnyGroundingDinoConfig) -> None:
        super().__init__()
        self.layer_norm_vision = nn.LayerNorm(config.d_model, config.layer_norm_eps)
        self.layer_norm_text = nn.LayerNorm(config.d_model, config.layer_norm_eps)
        self.attn = BidirectionalAttention(config)
        self.drop_path = StochasticDepth(config.fusion_droppath, mode="row")
        self.vision_param = nn.Parameter(torch.empty(config.d_model))
        self.text_param = nn.Parameter(torch.empty(config.d_model))

    def initialize_parameters(self) -> None:
        """Begin with almost no exchange."""
        init.constant_(self.vision_param, LAYER_SCALE)
        init.constant_(self.text_param, LAYER_SCALE)

    def forward(
        self, image_BSD: Tensor, text_BTD: Tensor, image: ImageContext, text: TextContext, want_weights: bool
    ) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
        """Image and text after the exchange, and the attention weights of both ways."""
        image_BSD = self.layer_norm_vision(image_BSD)
        text_BTD = self.layer_norm_text(text_BTD)
        from_text, from_image, image_weights, text_weights = self.attn(image_BSD, text_BTD, image, text, want_weights)
        image_BSD = image_BSD + self.drop_path(self.vision_param * from_text)
        text_BTD = text_BTD + self.drop_path(self.text_param * from_image)
        return image_BSD, text_BTD, image_weights, text_weights


class TextLayer(nn.Module):
    """Text self-attention inside each phrase."""

    def __init__(self, config: AnyGroundingDinoConfig) -> None:
        super().__init__()
        self.self_attn = MultiheadAttention(config, config.text_attention_heads)
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

    def forward(self, text_BTD: Tensor, text: TextContext, want_weights: bool) -> tuple[Tensor, Tensor | None]:
        """Text after the layer, and the attention weights."""
        query = text_BTD + text.positions_BTD
        update, weights = self.self_attn(query, query, text_BTD, text.may_attend_B1TT, want_weights)
        text_BTD = self.layer_norm_before(text_BTD + self.dropout(update))
        update = token_wise(text_BTD, self.fc1, self.activation, self.dropout, self.fc2)
        return self.layer_norm_after(text_BTD + self.dropout(update)), weights


class ImageLayer(nn.Module):
    """Deformable self-attention of the image over all levels."""

    def __init__(self, config: AnyGroundingDinoConfig) -> None:
        super().__init__()
        self.self_attn = DeformableAttention(config, config.encoder_attention_heads, config.encoder_n_points)
        self.self_attn_layer_norm = nn.LayerNorm(config.d_model, config.layer_norm_eps)
        self.fc1 = nn.Linear(config.d_model, config.encoder_ffn_dim)
        self.fc2 = nn.Linear(config.encoder_ffn_dim, config.d_model)
        self.final_layer_norm = nn.LayerNorm(config.d_model, config.layer_norm_eps)
        self.activation_fn = ACT2FN[config.activation_function]
        self.dropout = nn.Dropout(config.dropout)
        self.activation_dropout = nn.Dropout(config.activation_dropout)

    def initialize_parameters(self) -> None:
        """Xavier."""
        init.xavier_uniform_(self.fc1.weight)
        init.xavier_uniform_(self.fc2.weight)

    def forward(self, image_BSD: Tensor, image: ImageContext) -> tuple[Tensor, Tensor]:
        """Image after the layer, and the attention weights."""
        query = image_BSD + image.positions_BSD
        update, weights = self.self_attn(query, image_BSD, image.references_BSL2, image)
        image_BSD = self.self_attn_layer_norm(image_BSD + self.dropout(update))
        update = token_wise(image_BSD, self.fc1, self.activation_fn, self.activation_dropout, self.fc2)
        return self.final_layer_norm(image_BSD + self.dropout(update)), weights


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
        self.text_enhancer_layer = TextLayer(config)
        self.fusion_layer = FusionLayer(config)
        self.deformable_layer = ImageLayer(config)

    def forward(
        self, image_BSD: Tensor, text_BTD: Tensor, image: ImageContext, text: TextContext, want_weights: bool
    ) -> tuple[Tensor, Tensor, EnhancerWeights | None]:
        """Image and text after the layer, and the attention weights when wanted."""
        image_BSD, text_BTD, image_to_text, text_to_image = self.fusion_layer(
            image_BSD, text_BTD, image, text, want_weights
        )
        text_BTD, text_weights = self.text_enhancer_layer(text_BTD, text, want_weights)
        image_BSD, image_weights = self.deformable_layer(image_BSD, image)
        weights = EnhancerWeights(image_to_text, text_to_image, text_weights, image_weights) if want_weights else None
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
        self, image_BSD: Tensor, text_BTD: Tensor, image: ImageContext, text: TextContext, record: Recording
    ) -> EnhancerOutput:
        """Enhance image and text together."""
        states, weights = [(image_BSD, text_BTD)], []
        for layer in self.layers:
            image_BSD, text_BTD, layer_weights = layer(image_BSD, text_BTD, image, text, record.weights)
            weights.append(layer_weights)
            if record.states:
                states.append((image_BSD, text_BTD))
        image_states, text_states = zip(*states, strict=True)
        return EnhancerOutput(
            image_BSD, text_BTD, image_states, text_states, tuple(w for w in weights if w is not None)
        )
