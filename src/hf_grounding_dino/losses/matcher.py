"""One-to-one assignment of queries to boxes (DETR, section 3.1), with the contrastive class cost of this family."""

from __future__ import annotations

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torchvision.ops import box_convert, generalized_box_iou

from .targets import Targets
from .weights import LossWeights

FOCAL_GAMMA = 2.0
PROBABILITY_EPSILON = 1e-12
IMPOSSIBLE = 1e9


@torch.no_grad()
def match(
    logits_KQT: Tensor, boxes_KQ4: Tensor, targets: Targets, weights: LossWeights, alpha: float
) -> list[tuple[Tensor, Tensor]]:
    """Assign each box of one image to one query, in every prediction set on its own.

    The class cost sums the focal loss over all real tokens, the L1 cost is over (cx, cy, w, h), the third is -GIoU.

    Args:
        logits_KQT: -inf where there is no token or no query.
        boxes_KQ4: (cx, cy, w, h) in [0, 1].

    Returns:
        For each set, query indices and box indices; fewer than G pairs where there are fewer queries than boxes.
    """
    real_KQ = (logits_KQT != -torch.inf).any(-1)
    with torch.autocast(logits_KQT.device.type, enabled=False):  # else the class cost is summed in half precision
        cost_KQG = (
            weights.match_class * _class_cost(logits_KQT.float(), targets.tokens_GT, alpha)
            + weights.match_l1 * torch.cdist(boxes_KQ4, targets.boxes_G4.expand(len(boxes_KQ4), -1, -1), p=1)
            + weights.match_giou * _giou_cost(boxes_KQ4, targets.boxes_G4)
        )
    cost_KQG = cost_KQG.nan_to_num(IMPOSSIBLE).masked_fill(real_KQ.logical_not()[..., None], IMPOSSIBLE)
    pairs = []
    for cost_QG, real_Q in zip(cost_KQG.cpu(), real_KQ.cpu(), strict=True):
        queries, boxes = (torch.from_numpy(i) for i in linear_sum_assignment(cost_QG.numpy()))
        pairs.append((queries[real_Q[queries]], boxes[real_Q[queries]]))
    return pairs


def _class_cost(logits_KQT: Tensor, tokens_GT: Tensor, alpha: float) -> Tensor:
    p = logits_KQT.sigmoid()
    positive = -alpha * (1 - p) ** FOCAL_GAMMA * (p + PROBABILITY_EPSILON).log()
    negative = -(1 - alpha) * p**FOCAL_GAMMA * (1 - p + PROBABILITY_EPSILON).log()
    return negative.sum(-1, keepdim=True) + (positive - negative) @ tokens_GT.float().T


def _giou_cost(boxes_KQ4: Tensor, boxes_G4: Tensor) -> Tensor:
    corners = box_convert(boxes_KQ4.flatten(0, 1), "cxcywh", "xyxy")
    return -generalized_box_iou(corners, box_convert(boxes_G4, "cxcywh", "xyxy")).unflatten(0, boxes_KQ4.shape[:2])
