"""Softmax attention: among tokens, and both ways between image and text.

Shapes: `B` batch, `N` queries, `M` keys, `S` image tokens, `T` text tokens, `H` heads, `D` width.
Masks are boolean, True = may attend, and broadcast to `(B, H, N, M)`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import initialization as init
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from .configuration_grounding_dino import AnyGroundingDinoConfig
from .context import ImageContext, TextContext


def eager_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **_: Any,
) -> tuple[Tensor, Tensor]:
    """Attention written out; returns `(B, N, H, D / H)` and the weights `(B, H, N, M)`."""
    scores = query @ key.transpose(-1, -2) * scaling
    if attention_mask is not None:
        scores = scores.masked_fill(attention_mask.logical_not(), torch.finfo(scores.dtype).min)
    weights = scores.softmax(-1)
    dropped = nn.functional.dropout(weights, dropout, module.training)
    return (dropped @ value).transpose(1, 2), weights


def attend(
    module: nn.Module,
    implementation: str,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    may_attend: Tensor | None,
    dropout: float,
) -> tuple[Tensor, Tensor | None]:
    """Attend through the chosen implementation; weights come with "eager" alone.

    Args:
        query, key, value: `(B, H, N, D / H)`, `(B, H, M, D / H)`, `(B, H, M, D / H)`.
        may_attend: True = may attend, broadcast to `(B, H, N, M)`; None = everything.

    Returns:
        `(B, N, D)` and the weights `(B, H, N, M)` or None.
    """
    function = ALL_ATTENTION_FUNCTIONS.get_interface(implementation, eager_attention)
    output, weights = function(
        module,
        query,
        key,
        value,
        may_attend,
        scaling=query.shape[-1] ** -0.5,
        dropout=dropout if module.training else 0.0,
        is_causal=False,
    )
    return output.flatten(2), weights


def split_heads(x_BND: Tensor, num_heads: int) -> Tensor:
    """`(B, N, D)` to `(B, H, N, D / H)`."""
    return x_BND.unflatten(-1, (num_heads, -1)).transpose(1, 2)


class MultiheadAttention(nn.Module):
    """Multi-head attention with separate projections for query, key and value."""

    def __init__(self, config: AnyGroundingDinoConfig, num_heads: int) -> None:
        super().__init__()
        self.config = config
        self.num_heads = num_heads
        self.query = nn.Linear(config.d_model, config.d_model)
        self.key = nn.Linear(config.d_model, config.d_model)
        self.value = nn.Linear(config.d_model, config.d_model)
        self.out_proj = nn.Linear(config.d_model, config.d_model)

    def initialize_parameters(self) -> None:
        """Xavier, as the transformer of DETR."""
        for linear in (self.query, self.key, self.value, self.out_proj):
            init.xavier_uniform_(linear.weight)

    def forward(
        self, query_BND: Tensor, key_BMD: Tensor, value_BMD: Tensor, may_attend: Tensor | None, want_weights: bool
    ) -> tuple[Tensor, Tensor | None]:
        """Returns `(B, N, D)` and, when wanted, the weights `(B, H, N, M)`."""
        output, weights = attend(
            self,
            "eager" if want_weights else self.config._attn_implementation,
            split_heads(self.query(query_BND), self.num_heads),
            split_heads(self.key(key_BMD), self.num_heads),
            split_heads(self.value(value_BMD), self.num_heads),
            may_attend,
            self.config.attention_dropout,
        )
        return self.out_proj(output), weights


class BidirectionalAttention(nn.Module):
    """Image attends to text and text to image over one set of scores (section 3.2 of the paper; GLIP, section 3.2)."""

    def __init__(self, config: AnyGroundingDinoConfig) -> None:
        super().__init__()
        self.config = config
        self.num_heads = config.text_attention_heads
        self.vision_proj = nn.Linear(config.d_model, config.fusion_dim)
        self.text_proj = nn.Linear(config.d_model, config.fusion_dim)
        self.values_vision_proj = nn.Linear(config.d_model, config.fusion_dim)
        self.values_text_proj = nn.Linear(config.d_model, config.fusion_dim)
        self.out_vision_proj = nn.Linear(config.fusion_dim, config.d_model)
        self.out_text_proj = nn.Linear(config.fusion_dim, config.d_model)

    def initialize_parameters(self) -> None:
        """Xavier."""
        for linear in self.children():
            assert isinstance(linear, nn.Linear)
            init.xavier_uniform_(linear.weight)

    def forward(
        self, image_BSD: Tensor, text_BTD: Tensor, image: ImageContext, text: TextContext, want_weights: bool
    ) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
        """What the image takes from the text `(B, S, D)`, the text from the image `(B, T, D)`, and the weights.

        The weights are `(B * H, S, T)` and `(B * H, T, S)`.
        """
        implementation = "eager" if want_weights else self.config._attn_implementation
        image_key = split_heads(self.vision_proj(image_BSD), self.num_heads)
        text_key = split_heads(self.text_proj(text_BTD), self.num_heads)
        image_value = split_heads(self.values_vision_proj(image_BSD), self.num_heads)
        text_value = split_heads(self.values_text_proj(text_BTD), self.num_heads)
        dropout = self.config.fusion_dropout
        from_text, image_weights = attend(
            self, implementation, image_key, text_key, text_value, text.may_attend_B11T, dropout
        )
        from_image, text_weights = attend(
            self, implementation, text_key, image_key, image_value, image.may_attend_B11S, dropout
        )
        if image_weights is not None and text_weights is not None:
            image_weights, text_weights = image_weights.flatten(0, 1), text_weights.flatten(0, 1)
        return self.out_vision_proj(from_text), self.out_text_proj(from_image), image_weights, text_weights
