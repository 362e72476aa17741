"""Softmax attention among tokens.

Masks are boolean, True = may attend, and broadcast to `(B, H, N, M)`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import initialization as init
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS


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
    weights = attention_weights(query, key, attention_mask, scaling)
    dropped = nn.functional.dropout(weights, dropout, module.training)
    return (dropped @ value).transpose(1, 2), weights


def attention_weights(query: Tensor, key: Tensor, may_attend: Tensor | None, scaling: float) -> Tensor:
    """The weights `(..., N, M)` of queries `(..., N, C)` over keys `(..., M, C)`."""
    scores = query @ key.mT * scaling
    if may_attend is not None:
        scores = scores.masked_fill(may_attend.logical_not(), torch.finfo(scores.dtype).min)
    return scores.softmax(-1)


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

    def __init__(self, width: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.dropout = dropout
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.out_proj = nn.Linear(width, width)

    def initialize_parameters(self) -> None:
        """Xavier, as the transformer of DETR."""
        for linear in (self.query, self.key, self.value, self.out_proj):
            init.xavier_uniform_(linear.weight)

    def forward(
        self, query_BND: Tensor, key_BMD: Tensor, value_BMD: Tensor, may_attend: Tensor | None, implementation: str
    ) -> tuple[Tensor, Tensor | None]:
        """Returns `(B, N, D)` and, from the "eager" implementation, the weights `(B, H, N, M)`."""
        output, weights = attend(
            self,
            implementation,
            split_heads(self.query(query_BND), self.num_heads),
            split_heads(self.key(key_BMD), self.num_heads),
            split_heads(self.value(value_BMD), self.num_heads),
            may_attend,
            self.dropout,
        )
        return self.out_proj(output), weights
