"""Position embeddings, all computed in float32."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from transformers import initialization as init

from .context import OwnSizes, Size

MAX_LEARNED_POSITIONS = 50


def sine_embedding(angles: Tensor, width: int, temperature: float) -> Tensor:
    """Interleaved sines and cosines of each number, `(..., width)`, float32 (DETR, appendix A.4).

    Args:
        angles: any shape, radians at the highest frequency.
        width: numbers out for each number in; even.
        temperature: ratio of the highest to the lowest wave length.
    """
    channel = torch.arange(width, device=angles.device, dtype=torch.float32)
    wave_length = temperature ** (2 * torch.div(channel, 2, rounding_mode="floor") / width)
    phase = angles.float()[..., None] / wave_length
    return torch.stack([phase[..., 0::2].sin(), phase[..., 1::2].cos()], -1).flatten(-2)


def box_position_embedding(boxes_BQ4: Tensor, width: int) -> Tensor:
    """Embed boxes (cx, cy, w, h) in [0, 1] as `(B, Q, 4 * width)` in the order cy, cx, w, h (DAB-DETR)."""
    cx, cy, w, h = (sine_embedding(c * 2 * math.pi, width, 10000.0) for c in boxes_BQ4.unbind(-1))
    return torch.cat([cy, cx, w, h], -1)


def text_position_embedding(position_ids_BT: Tensor, width: int) -> Tensor:
    """Embed each token's place in its phrase, `(B, T, width)`."""
    return sine_embedding(position_ids_BT * 2 * math.pi, width, 10000.0)


class SinePositionEmbedding(nn.Module):
    """Sine embedding of a level's cells, scaled to each image's own part so that padding changes nothing."""

    def __init__(self, width: int, temperature: float) -> None:
        super().__init__()
        self.width = width
        self.temperature = temperature

    def forward(self, sizes: OwnSizes, padded: Size, device: torch.device) -> Tensor:
        """Embed a level of padded (H, W), `(B, H * W, width)`, rows first."""
        own = torch.as_tensor(sizes, device=device, dtype=torch.float32) + 1e-6
        y_BH = torch.arange(1, padded[0] + 1, device=device) / own[:, :1] * 2 * math.pi
        x_BW = torch.arange(1, padded[1] + 1, device=device) / own[:, 1:] * 2 * math.pi
        y_BHWC = sine_embedding(y_BH, self.width // 2, self.temperature)[:, :, None].expand(-1, -1, padded[1], -1)
        x_BHWC = sine_embedding(x_BW, self.width // 2, self.temperature)[:, None].expand(-1, padded[0], -1, -1)
        return torch.cat([y_BHWC, x_BHWC], -1).flatten(1, 2)


class LearnedPositionEmbedding(nn.Module):
    """A learned vector for each row and each column, up to 50 of each."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.row_embeddings = nn.Embedding(MAX_LEARNED_POSITIONS, width // 2)
        self.column_embeddings = nn.Embedding(MAX_LEARNED_POSITIONS, width // 2)

    def initialize_parameters(self) -> None:
        """As DETR: uniform in [0, 1)."""
        init.uniform_(self.row_embeddings.weight)
        init.uniform_(self.column_embeddings.weight)

    def forward(self, sizes: OwnSizes, padded: Size, device: torch.device) -> Tensor:
        """Embed a level of padded (H, W), `(B, H * W, width)`, rows first.

        Raises:
            ValueError: the level has more than 50 rows or columns.
        """
        if max(padded) > MAX_LEARNED_POSITIONS:
            raise ValueError(
                f"`position_embedding_type='learned'` reaches {MAX_LEARNED_POSITIONS} rows and columns, but a feature"
                f" map is {padded[0]} x {padded[1]}: use smaller images, or sine positions."
            )
        x_HWC = self.column_embeddings.weight[: padded[1]].expand(padded[0], -1, -1)
        y_HWC = self.row_embeddings.weight[: padded[0]][:, None].expand(-1, padded[1], -1)
        return torch.cat([x_HWC, y_HWC], -1).flatten(0, 1).expand(len(sizes), -1, -1)
