"""How much each term counts, in matching and in the loss."""

from __future__ import annotations

from typing import NamedTuple


class LossWeights(NamedTuple):
    """Weights of class, L1 and GIoU in the matching cost and in the loss."""

    match_class: float
    match_l1: float
    match_giou: float
    loss_class: float
    loss_l1: float
    loss_giou: float


LOSS_PRESETS = {
    "paper": LossWeights(1.0, 5.0, 2.0, 2.0, 5.0, 2.0),  # arXiv 2303.05499, table 8
    "mmdet": LossWeights(2.0, 5.0, 2.0, 1.0, 5.0, 2.0),  # arXiv 2401.02361, section 3
}
