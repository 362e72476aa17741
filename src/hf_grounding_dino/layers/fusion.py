"""Attention both ways between image and text (section 3.2 of the paper; GLIP, section 3.2)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torchvision.ops import StochasticDepth
from transformers import initialization as init

from .attention import attention_weights, split_heads
from .context import ImageContext, TextContext
from .cpu_linear import batched_linear, is_plain_linear

LAYER_SCALE = 1e-4
IMAGE_ROWS = 1024
"""How many image tokens at least meet the text at a time when no gradient is recorded; on a CPU no more than that, so
that their scores stay in the cache."""
MOST_SCORES = 2**28
"""On other devices as many as give this number of scores."""


class FoldedText(NamedTuple):
    """What the image meets of the text: for each head and text token a row of keys and of values, as wide as the image.

    `E` = H * T. Scores are image_BSD @ keys_BED.mT + bias_BE, already scaled; what the image takes is its softmax over
    the tokens of a head times values_BED.
    """

    keys_BED: Tensor
    bias_BE: Tensor
    values_BED: Tensor


class BidirectionalAttention(nn.Module):
    """Image attends to text and text to image over one set of scores (section 3.2 of the paper; GLIP, section 3.2).

    The products are taken in the order that costs least: of the two sides of each score, the text is folded with the
    projections of the image, so that no projection of the image is ever made.
    """

    def __init__(self, width: int, inner_width: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.dropout = dropout
        self.vision_proj = nn.Linear(width, inner_width)
        self.text_proj = nn.Linear(width, inner_width)
        self.values_vision_proj = nn.Linear(width, inner_width)
        self.values_text_proj = nn.Linear(width, inner_width)
        self.out_vision_proj = nn.Linear(inner_width, width)
        self.out_text_proj = nn.Linear(inner_width, width)

    def initialize_parameters(self) -> None:
        """Xavier."""
        for linear in self.children():
            assert isinstance(linear, nn.Linear)
            init.xavier_uniform_(linear.weight)

    def forward(
        self, image_BSD: Tensor, text_BTD: Tensor, image: ImageContext, text: TextContext, output_attentions: bool
    ) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
        """What the image takes from the text `(B, S, D)`, the text from the image `(B, T, D)`, and the weights.

        The weights are `(B * H, S, T)` and `(B * H, T, S)`.
        """
        # Dropped weights no longer add up to 1, on which the order below rests; and it takes layers for their weights.
        dropped = self.training and self.dropout
        if output_attentions or dropped or not all(is_plain_linear(layer) for layer in self._taken_for_their_weights()):
            return self.step_by_step(image_BSD, text_BTD, image, text)
        folded = self._fold(text_BTD)
        attend_folded = self._attend if torch.is_grad_enabled() else self._attend_in_chunks
        from_text, seen_BED = attend_folded(image_BSD, folded, image.may_attend_B11S, text.may_attend_B11T)
        return from_text + self.out_vision_proj.bias, self._unfold(seen_BED), None, None

    def step_by_step(
        self, image_BSD: Tensor, text_BTD: Tensor, image: ImageContext, text: TextContext
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """`forward` as it is defined, with the weights."""
        image_key = split_heads(self.vision_proj(image_BSD), self.num_heads)
        text_key = split_heads(self.text_proj(text_BTD), self.num_heads)
        image_value = split_heads(self.values_vision_proj(image_BSD), self.num_heads)
        text_value = split_heads(self.values_text_proj(text_BTD), self.num_heads)
        from_text, image_weights = self._attend_one_way(image_key, text_key, text_value, text.may_attend_B11T)
        from_image, text_weights = self._attend_one_way(text_key, image_key, image_value, image.may_attend_B11S)
        return self.out_vision_proj(from_text), self.out_text_proj(from_image), image_weights, text_weights

    def _attend_one_way(
        self, query_BHNC: Tensor, key_BHMC: Tensor, value_BHMC: Tensor, may_attend_B11M: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """What is taken `(B, N, H * C)`, and the weights `(B * H, N, M)`, through which its gradients come."""
        if may_attend_B11M is not None:
            may_attend_B11M = may_attend_B11M.expand(-1, self.num_heads, -1, -1).flatten(0, 1)
        query, key, value = (x.flatten(0, 1) for x in (query_BHNC, key_BHMC, value_BHMC))
        weights = attention_weights(query, key, may_attend_B11M, query.shape[-1] ** -0.5)
        taken = nn.functional.dropout(weights, self.dropout, self.training) @ value
        return taken.unflatten(0, (-1, self.num_heads)).transpose(1, 2).flatten(2), weights

    def _taken_for_their_weights(self) -> tuple[nn.Module, ...]:
        return self.vision_proj, self.values_vision_proj, self.out_vision_proj

    def _fold(self, text_BTD: Tensor) -> FoldedText:
        """Per head (T Wk)(X Wq)' = (T Wk Wq') X', and P (T Wv) Wo = P (T Wv Wo); the image's bias adds per token."""
        key_BHTC = split_heads(self.text_proj(text_BTD), self.num_heads)
        value_BHTC = split_heads(self.values_text_proj(text_BTD), self.num_heads)
        scale = key_BHTC.shape[-1] ** -0.5
        query_HCD = self.vision_proj.weight.unflatten(0, (self.num_heads, -1))
        query_bias_HC1 = self.vision_proj.bias.view(self.num_heads, -1, 1)
        out_HCD = self.out_vision_proj.weight.T.unflatten(0, (self.num_heads, -1))
        return FoldedText(
            keys_BED=(key_BHTC @ query_HCD * scale).flatten(1, 2),
            bias_BE=(key_BHTC @ query_bias_HC1 * scale).flatten(1),
            values_BED=(value_BHTC @ out_HCD).flatten(1, 2),
        )

    def _unfold(self, seen_BED: Tensor) -> Tensor:
        """(P' X) Wv Wo for each head; the weights of a token add up to 1, so the bias of Wv adds once."""
        seen_BHTD = seen_BED.unflatten(1, (self.num_heads, -1))
        value_HDC = self.values_vision_proj.weight.unflatten(0, (self.num_heads, -1)).mT
        value_BHTC = seen_BHTD @ value_HDC + self.values_vision_proj.bias.view(self.num_heads, 1, -1)
        update: Tensor = self.out_text_proj(value_BHTC.transpose(1, 2).flatten(2))
        return update

    def _over_text(self, scores_BSE: Tensor, may_attend_B11T: Tensor) -> Tensor:
        scores_BSHT = scores_BSE.unflatten(-1, (self.num_heads, -1))
        return scores_BSHT.masked_fill(may_attend_B11T.logical_not(), -torch.inf).softmax(-1).flatten(2)

    def _attend(
        self, image_BSD: Tensor, folded: FoldedText, may_attend_B11S: Tensor | None, may_attend_B11T: Tensor
    ) -> tuple[Tensor, Tensor]:
        """What the image takes from the text, before its last bias, and the mean of what each text token sees."""
        scores_BSE = torch.baddbmm(folded.bias_BE[:, None], image_BSD, folded.keys_BED.mT)
        over_text_BSE = self._over_text(scores_BSE, may_attend_B11T)
        if may_attend_B11S is not None:
            scores_BSE = scores_BSE.masked_fill(may_attend_B11S[:, 0].mT.logical_not(), -torch.inf)
        return over_text_BSE @ folded.values_BED, scores_BSE.softmax(1).mT @ image_BSD

    def _attend_in_chunks(
        self, image_BSD: Tensor, folded: FoldedText, may_attend_B11S: Tensor | None, may_attend_B11T: Tensor
    ) -> tuple[Tensor, Tensor]:
        """`_attend` without gradients, some rows of the image at a time, with an online softmax over the image."""
        from_text, values_BDE = torch.empty_like(image_BSD), folded.values_BED.mT.contiguous()
        highest_BE = torch.full_like(folded.bias_BE, -torch.inf, dtype=torch.float32)
        total_BE = torch.zeros_like(highest_BE)
        seen_BED = torch.zeros_like(folded.keys_BED, dtype=torch.float32)
        step = IMAGE_ROWS if image_BSD.device.type == "cpu" else max(IMAGE_ROWS, MOST_SCORES // folded.bias_BE.numel())
        for start in range(0, image_BSD.shape[1], step):
            rows = slice(start, start + step)
            chunk_BRD = image_BSD[:, rows]
            scores_BRE = batched_linear(chunk_BRD, folded.keys_BED, folded.bias_BE)
            from_text[:, rows] = batched_linear(self._over_text(scores_BRE, may_attend_B11T), values_BDE)
            if may_attend_B11S is not None:
                scores_BRE = scores_BRE.masked_fill(may_attend_B11S[:, 0, :, rows].mT.logical_not(), -torch.inf)
            before_BE, highest_BE = highest_BE, torch.maximum(highest_BE, scores_BRE.amax(1))
            # Where an image has only padding so far there is no highest score; any number will do.
            shift_BE = highest_BE.nan_to_num(neginf=0.0)
            weights_BRE = (scores_BRE - shift_BE[:, None]).exp()
            keep_BE = (before_BE - shift_BE).exp()
            total_BE = total_BE * keep_BE + weights_BRE.sum(1)
            seen_BED = seen_BED * keep_BE[..., None] + batched_linear(weights_BRE.to(chunk_BRD.dtype).mT, chunk_BRD.mT)
        return from_text, (seen_BED / total_BE[..., None]).to(image_BSD.dtype)


class FusionLayer(nn.Module):
    """Image and text exchange features; each update is scaled per channel and added to the normed input."""

    def __init__(
        self, width: int, inner_width: int, num_heads: int, *, dropout: float, drop_path: float, layer_norm_eps: float
    ) -> None:
        super().__init__()
        self.layer_norm_vision = nn.LayerNorm(width, layer_norm_eps)
        self.layer_norm_text = nn.LayerNorm(width, layer_norm_eps)
        self.attn = BidirectionalAttention(width, inner_width, num_heads, dropout)
        self.drop_path = StochasticDepth(drop_path, mode="row")
        self.vision_param = nn.Parameter(torch.empty(width))
        self.text_param = nn.Parameter(torch.empty(width))

    def initialize_parameters(self) -> None:
        """Begin with almost no exchange."""
        init.constant_(self.vision_param, LAYER_SCALE)
        init.constant_(self.text_param, LAYER_SCALE)

    def forward(
        self, image_BSD: Tensor, text_BTD: Tensor, image: ImageContext, text: TextContext, output_attentions: bool
    ) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
        """Image and text after the exchange, and the attention weights of both ways."""
        image_BSD = self.layer_norm_vision(image_BSD)
        text_BTD = self.layer_norm_text(text_BTD)
        from_text, from_image, image_weights, text_weights = self.attn(
            image_BSD, text_BTD, image, text, output_attentions
        )
        image_BSD = image_BSD + self.drop_path(self.vision_param * from_text)
        text_BTD = text_BTD + self.drop_path(self.text_param * from_image)
        return image_BSD, text_BTD, image_weights, text_weights
