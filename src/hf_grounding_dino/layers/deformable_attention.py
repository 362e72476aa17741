"""Multi-scale deformable attention (Deformable DETR, arXiv 2010.04159, equation 3), and the encoder layer of it."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from transformers import initialization as init
from transformers.activations import ACT2FN

from ..ops.deformable_attention import multi_scale_deformable_attention, multi_scale_deformable_attention_reference
from .context import ImageContext
from .cpu_linear import cpu_linear


class DeformableAttention(nn.Module):
    """Each query looks at a few learned points around its reference on every level."""

    def __init__(
        self, width: int, num_heads: int, num_levels: int, num_points: int, use_reference: bool = False
    ) -> None:
        """Build the layers.

        Args:
            use_reference: run the plain definition where a kernel could serve too.
        """
        super().__init__()
        self.num_heads = num_heads
        self.num_levels = num_levels
        self.num_points = num_points
        self.use_reference = use_reference
        samples = num_heads * num_levels * num_points
        self.sampling_offsets = nn.Linear(width, samples * 2)
        self.attention_weights = nn.Linear(width, samples)
        self.value_proj = nn.Linear(width, width)
        self.output_proj = nn.Linear(width, width)

    def initialize_parameters(self) -> None:
        """Head h looks in direction 2 pi h / H, point p at p + 1 cells; all points weigh the same."""
        angle = torch.arange(self.num_heads, dtype=torch.float32) * (2 * math.pi / self.num_heads)
        direction = torch.stack([angle.cos(), angle.sin()], -1)
        direction = direction / direction.abs().amax(-1, keepdim=True)
        step = torch.arange(1, self.num_points + 1, dtype=torch.float32)
        bias = direction[:, None, None] * step[None, None, :, None]
        init.zeros_(self.sampling_offsets.weight)
        init.copy_(self.sampling_offsets.bias, bias.expand(-1, self.num_levels, -1, -1).flatten())
        init.zeros_(self.attention_weights.weight)
        init.xavier_uniform_(self.value_proj.weight)
        init.xavier_uniform_(self.output_proj.weight)

    def forward(
        self, query_BND: Tensor, image_BSD: Tensor, references: Tensor, image: ImageContext
    ) -> tuple[Tensor, Tensor]:
        """Attend to the image around the references.

        Args:
            references: `(B, N, L, 2)` points or `(B, N, L, 4)` boxes (cx, cy, w, h) in units of each padded level.

        Returns:
            `(B, N, D)` and the weights `(B, N, H, L, P)`.
        """
        value = cpu_linear(image_BSD, self.value_proj)
        if image.padding_BS1 is not None:
            value = value.masked_fill(image.padding_BS1, 0.0)
        offsets = cpu_linear(query_BND, self.sampling_offsets).float()
        offsets = offsets.unflatten(-1, (self.num_heads, self.num_levels, self.num_points, 2))
        weights = cpu_linear(query_BND, self.attention_weights).unflatten(-1, (self.num_heads, -1))
        weights = weights.softmax(-1).unflatten(-1, (self.num_levels, self.num_points))
        attention = (
            multi_scale_deformable_attention_reference if self.use_reference else multi_scale_deformable_attention
        )
        output = attention(
            value.unflatten(-1, (self.num_heads, -1)),
            image.spatial_shapes,
            self._locations(references[:, :, None, :, None], offsets, image),
            weights,
        )
        return cpu_linear(output, self.output_proj), weights

    def _locations(self, references_BN1L1R: Tensor, offsets: Tensor, image: ImageContext) -> Tensor:
        if references_BN1L1R.shape[-1] == 2:
            cells = torch.tensor([(w, h) for h, w in image.spatial_shapes], device=offsets.device, dtype=torch.float32)
            return references_BN1L1R + offsets / cells[:, None]
        centre, size = references_BN1L1R.split(2, -1)
        return centre + offsets / self.num_points * size * 0.5


class DeformableEncoderLayer(nn.Module):
    """Deformable self-attention of the image over all levels."""

    def __init__(
        self,
        width: int,
        attention: DeformableAttention,
        ffn_dim: int,
        *,
        activation: str,
        dropout: float,
        activation_dropout: float,
        layer_norm_eps: float,
    ) -> None:
        super().__init__()
        self.self_attn = attention
        self.self_attn_layer_norm = nn.LayerNorm(width, layer_norm_eps)
        self.fc1 = nn.Linear(width, ffn_dim)
        self.fc2 = nn.Linear(ffn_dim, width)
        self.final_layer_norm = nn.LayerNorm(width, layer_norm_eps)
        self.activation_fn = ACT2FN[activation]
        self.dropout = nn.Dropout(dropout)
        self.activation_dropout = nn.Dropout(activation_dropout)

    def initialize_parameters(self) -> None:
        """Xavier."""
        init.xavier_uniform_(self.fc1.weight)
        init.xavier_uniform_(self.fc2.weight)

    def forward(self, image_BSD: Tensor, image: ImageContext) -> tuple[Tensor, Tensor]:
        """Image after the layer, and the attention weights."""
        query = image_BSD + image.positions_BSD
        update, weights = self.self_attn(query, image_BSD, image.references_BSL2, image)
        image_BSD = self.self_attn_layer_norm(image_BSD + self.dropout(update))
        update = cpu_linear(image_BSD, self.fc1, self.activation_fn, self.activation_dropout, self.fc2)
        return self.final_layer_norm(image_BSD + self.dropout(update)), weights
