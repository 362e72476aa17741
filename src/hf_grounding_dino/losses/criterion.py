"""The training objective: contrastive focal, L1 and GIoU losses over every decoder layer and the encoder's proposals.

Sections 3.5 and A of the paper, in the form MM-Grounding-DINO (arXiv 2401.02361) trains with.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torchvision.ops import box_convert, generalized_box_iou_loss, sigmoid_focal_loss

from .matcher import FOCAL_GAMMA, match
from .targets import Targets
from .weights import LossWeights


class Predictions(NamedTuple):
    """All prediction sets: logits, -inf where there is no token or no query, and boxes (cx, cy, w, h) in [0, 1]."""

    logits_KBQT: Tensor
    boxes_KBQ4: Tensor


class Matches(NamedTuple):
    """Every assigned pair of the batch: its set, image and query, the box and the tokens it should give."""

    sets_M: Tensor
    images_M: Tensor
    queries_M: Tensor
    boxes_M4: Tensor
    tokens_MT: Tensor

    def repeat(self, num_sets: int) -> Matches:
        """Pairs of one set as those of each of several."""
        sets_M = torch.arange(num_sets, device=self.sets_M.device).repeat_interleave(len(self.sets_M))
        rest = (t.repeat(num_sets, *[1] * (t.ndim - 1)) for t in self[1:])
        return Matches(sets_M, *rest)


class Terms(NamedTuple):
    """Class, L1 and GIoU loss of each prediction set, before weighting."""

    class_K: Tensor
    l1_K: Tensor
    giou_K: Tensor

    def total(self, weights: LossWeights) -> Tensor:
        """The weighted sum over all sets."""
        return (weights.loss_class * self.class_K + weights.loss_l1 * self.l1_K + weights.loss_giou * self.giou_K).sum()

    def named(self, suffixes: Sequence[str]) -> dict[str, Tensor]:
        """`loss_ce`, `loss_bbox` and `loss_giou` with the suffix of each set."""
        names = ("loss_ce", "loss_bbox", "loss_giou")
        return {f"{n}{s}": t[k] for k, s in enumerate(suffixes) for n, t in zip(names, self, strict=True)}


def count_boxes(targets: Sequence[Targets], device: torch.device) -> Tensor:
    """What a batch's losses are divided by: its boxes, averaged over the processes of a distributed run, at least 1."""
    boxes = torch.tensor(float(sum(len(t.boxes_G4) for t in targets)), device=device)
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.all_reduce(boxes)
        boxes = boxes / torch.distributed.get_world_size()
    return boxes.clamp(min=1.0)


def grounding_loss(
    predictions: Predictions, targets: Sequence[Targets], weights: LossWeights, alpha: float, num_boxes: Tensor
) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss of a batch: the sum of its images' losses over one normaliser.

    Args:
        alpha: balance of the focal loss; gamma is 2.
        num_boxes: the normaliser, see `count_boxes`.

    Returns:
        The weighted total, and the terms before weighting: `loss_ce`, `loss_bbox` and `loss_giou` for the last
        layer, with `_0`, `_1`, ... for the layers before it and `_enc` for the encoder's proposals.
    """
    logits_KBQT = predictions.logits_KBQT.float()
    matches = _match_batch(logits_KBQT, predictions.boxes_KBQ4.float(), targets, weights, alpha)
    shares_B = torch.ones(len(targets), device=logits_KBQT.device)
    terms = paired_losses(predictions, matches, shares_B, alpha, num_boxes)
    return terms.total(weights), terms.named([*(f"_{i}" for i in range(len(logits_KBQT) - 2)), "", "_enc"])


def paired_losses(
    predictions: Predictions, matches: Matches, shares_B: Tensor, alpha: float, num_boxes: Tensor
) -> Terms:
    """The terms of predictions of which it is known what each should give; what is in no pair is background.

    Args:
        shares_B: what the losses of each image are multiplied by.
        alpha, num_boxes: as in `grounding_loss`.
    """
    logits_KBQT, boxes_KBQ4 = predictions.logits_KBQT.float(), predictions.boxes_KBQ4.float()
    class_K = (_focal_loss(logits_KBQT, matches, alpha) * shares_B).sum(1)
    l1_M, giou_M = (loss_M * shares_B[matches.images_M] for loss_M in _box_losses(boxes_KBQ4, matches))
    nothing_K = torch.zeros_like(class_K)
    l1_K, giou_K = (nothing_K.index_add(0, matches.sets_M, loss_M) for loss_M in (l1_M, giou_M))
    return Terms(class_K / num_boxes, l1_K / num_boxes, giou_K / num_boxes)


def _match_batch(
    logits_KBQT: Tensor, boxes_KBQ4: Tensor, targets: Sequence[Targets], weights: LossWeights, alpha: float
) -> Matches:
    device = logits_KBQT.device
    rows: list[tuple[int, int, Tensor, Tensor]] = []
    for b, target in enumerate(targets):
        pairs = match(logits_KBQT[:, b], boxes_KBQ4[:, b], target, weights, alpha)
        rows += [(k, b, queries, boxes) for k, (queries, boxes) in enumerate(pairs)]
    sizes = torch.tensor([len(queries) for _, _, queries, _ in rows])
    return Matches(
        sets_M=torch.tensor([k for k, *_ in rows]).repeat_interleave(sizes).to(device),
        images_M=torch.tensor([b for _, b, *_ in rows]).repeat_interleave(sizes).to(device),
        queries_M=torch.cat([queries for _, _, queries, _ in rows]).to(device),
        boxes_M4=torch.cat([targets[b].boxes_G4[boxes.to(device)] for _, b, _, boxes in rows]),
        tokens_MT=torch.cat([targets[b].tokens_GT[boxes.to(device)] for _, b, _, boxes in rows]),
    )


def _focal_loss(logits_KBQT: Tensor, matches: Matches, alpha: float) -> Tensor:
    """Of each set and image `(K, B)`, summed over queries and real tokens; everything unmatched is background."""
    padding = logits_KBQT == -torch.inf  # NaN is none, and must be seen in the loss
    wanted = torch.zeros_like(logits_KBQT)
    wanted[matches.sets_M, matches.images_M, matches.queries_M] = matches.tokens_MT.to(wanted.dtype)
    loss = sigmoid_focal_loss(logits_KBQT.masked_fill(padding, 0.0), wanted, alpha, FOCAL_GAMMA)
    return loss.masked_fill(padding, 0.0).sum((2, 3))


def _box_losses(boxes_KBQ4: Tensor, matches: Matches) -> tuple[Tensor, Tensor]:
    predicted_M4 = boxes_KBQ4[matches.sets_M, matches.images_M, matches.queries_M]
    l1_M = (predicted_M4 - matches.boxes_M4).abs().sum(-1)
    predicted_corners_M4, corners_M4 = (box_convert(b, "cxcywh", "xyxy") for b in (predicted_M4, matches.boxes_M4))
    # Boxes lie in [0, 1], where torchvision's epsilon of 1e-7 would weigh on the areas of small ones.
    return l1_M, generalized_box_iou_loss(predicted_corners_M4, corners_M4, eps=0.0)
