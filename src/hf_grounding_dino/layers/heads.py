"""Heads: boxes by a small perceptron, classes by comparing queries with text tokens."""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import Tensor, nn
from transformers import initialization as init

PRIOR_PROBABILITY = 0.01


class MLP(nn.Module):
    """Linear layers with ReLU between them."""

    def __init__(self, width_in: int, width: int, width_out: int, num_layers: int) -> None:
        super().__init__()
        widths = [width_in, *[width] * (num_layers - 1), width_out]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(widths))

    def forward(self, x: Tensor) -> Tensor:
        """`(..., width_in)` to `(..., width_out)`."""
        for layer in self.layers[:-1]:
            x = nn.functional.relu(layer(x))
        return self.layers[-1](x)


def logit(x: Tensor, epsilon: float | None, clamps_apart: bool) -> Tensor:
    """The inverse of the sigmoid, of float32 in [0, 1].

    Args:
        epsilon: how near to 0 and 1 counts; None: all the way, to infinity.
        clamps_apart: clamp `x` and `1 - x` each from below, as the original and mmdetection do; else `x` from both
            sides, as transformers does. Near 1 that is another number, by up to `epsilon` or what float32 loses there.
    """
    if epsilon is None or not clamps_apart:
        return torch.special.logit(x, eps=epsilon)
    return (x.clamp(min=epsilon) / (1 - x).clamp(min=epsilon)).log()


class BoxHead(MLP):
    """Offsets of a box in logit space; none at initialisation."""

    def __init__(self, width: int, epsilon: float | None, clamps_apart: bool = False) -> None:
        """Build the layers.

        Args:
            epsilon, clamps_apart: of the reference's `logit`; with None a reference of 1 stays 1.
        """
        super().__init__(width, width, 4, num_layers=3)
        self.epsilon, self.clamps_apart = epsilon, clamps_apart

    def initialize_parameters(self) -> None:
        """Start from the reference box: the last layer is zero."""
        last = self.layers[-1]
        assert isinstance(last, nn.Linear)
        init.zeros_(last.weight)
        init.zeros_(last.bias)

    def refine(self, x_BND: Tensor, reference_BN4: Tensor) -> Tensor:
        """Boxes (cx, cy, w, h) in [0, 1], always float32, from a reference in [0, 1]."""
        return (self(x_BND).float() + logit(reference_BN4, self.epsilon, self.clamps_apart)).sigmoid()


class ContrastiveHead(nn.Module):
    """Similarity of queries and text tokens (section 3.1 of the paper); scaled and biased in MM-Grounding-DINO."""

    def __init__(self, biased: bool) -> None:
        super().__init__()
        self.bias: nn.Parameter | None
        self.register_parameter("bias", nn.Parameter(torch.empty(())) if biased else None)

    def initialize_parameters(self) -> None:
        """Every token starts with the prior probability of a rare class (focal loss, section 4.1)."""
        if self.bias is not None:
            init.constant_(self.bias, -math.log((1 - PRIOR_PROBABILITY) / PRIOR_PROBABILITY))

    def forward(self, x_BND: Tensor, text_BTD: Tensor, may_attend_B11T: Tensor) -> Tensor:
        """Logits `(B, N, T)`, -inf on padding."""
        logits = x_BND @ text_BTD.transpose(-1, -2)
        if self.bias is not None:
            # A scalar leaves the logits their dtype; sharded, the parameter is a vector of one.
            logits = logits / math.sqrt(x_BND.shape[-1]) + self.bias.squeeze()
        return logits.masked_fill(may_attend_B11T[:, 0].logical_not(), -torch.inf)


def pad_logits(logits: Tensor, width: int) -> Tensor:
    """Widen the last dimension to at least `width` with -inf."""
    return nn.functional.pad(logits, (0, max(0, width - logits.shape[-1])), value=-torch.inf)
