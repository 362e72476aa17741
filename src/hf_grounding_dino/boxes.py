"""Boxes in their two forms: corners `(x0, y0, x1, y1)` and centre `(centre x, centre y, width, height)`."""

from __future__ import annotations

import torch
from torch import Tensor


def center_to_corners(boxes: Tensor) -> Tensor:
    """Boxes `(..., 4)` from centre form to corner form, in the same unit."""
    centers, sizes = boxes[..., :2], boxes[..., 2:]
    return torch.cat([centers - 0.5 * sizes, centers + 0.5 * sizes], -1)


def corners_to_center(boxes: Tensor) -> Tensor:
    """Boxes `(..., 4)` from corner form to centre form, in the same unit."""
    low, high = boxes[..., :2], boxes[..., 2:]
    return torch.cat([0.5 * (low + high), high - low], -1)


def paired_generalized_iou(first: Tensor, second: Tensor) -> Tensor:
    """Generalised IoU of box i with box i, `(N,)` in [-1, 1], both `(N, 4)` in corner form (arXiv 1902.09630).

    Unlike `torchvision.ops.generalized_box_iou_loss` it adds nothing to the areas, which matters for boxes in [0, 1].
    """
    overlap = (torch.minimum(first[:, 2:], second[:, 2:]) - torch.maximum(first[:, :2], second[:, :2])).clamp(min=0)
    hull = torch.maximum(first[:, 2:], second[:, 2:]) - torch.minimum(first[:, :2], second[:, :2])
    intersection = overlap.prod(-1)
    union = (first[:, 2:] - first[:, :2]).prod(-1) + (second[:, 2:] - second[:, :2]).prod(-1) - intersection
    return intersection / union - (hull.prod(-1) - union) / hull.prod(-1)
