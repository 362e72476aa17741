"""How the predictions in one image go with what is there: greedily by score, as in COCO."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from faster_coco_eval.core import mask
from numpy.typing import NDArray

from .base import GroundTruth, ScoredBoxes

UNMATCHED = -1


class Matching(NamedTuple):
    """What became of each predicted box.

    truth: int64 (k,), the ground truth that it is matched with, `UNMATCHED` for none.
    ignored: bool (k,), True on boxes that are neither right nor wrong: on a crowd, or of a label nobody looked for.
    iou: float64 (k, n); with a crowd, the share of the box that lies in it.
    """

    truth: NDArray[np.int64]
    ignored: NDArray[np.bool_]
    iou: NDArray[np.float64]

    @property
    def right(self) -> NDArray[np.bool_]:
        """Which boxes are matched, `(k,)`."""
        return self.truth != UNMATCHED

    @property
    def wrong(self) -> NDArray[np.bool_]:
        """Which boxes are neither matched nor ignored, `(k,)`."""
        return ~self.right & ~self.ignored


def match(found: ScoredBoxes, truth: GroundTruth, threshold: float = 0.5) -> Matching:
    """Give each box, the best first, the free truth of its label with the largest IoU of at least `threshold`."""
    iou = box_iou(found.boxes, truth.boxes, truth.crowds)
    near = (iou >= threshold) & (found.labels[:, None] == truth.labels)
    matched = np.full(len(found.boxes), UNMATCHED, dtype=np.int64)
    ignored = np.zeros(len(found.boxes), dtype=np.bool_)
    free = ~truth.crowds
    order = np.argsort(-found.scores, kind="stable")
    for i in order[near[order].any(1)]:
        wanted = np.flatnonzero(near[i] & free)
        if wanted.size:
            # Of equals the last, as in pycocotools.
            matched[i] = wanted[::-1][iou[i, wanted[::-1]].argmax()]
            free[matched[i]] = False
        else:
            ignored[i] = bool((near[i] & truth.crowds).any())
    unmatched = matched == UNMATCHED
    ignored |= unmatched & (~truth.judged(found.labels) | np.isin(found.labels, truth.incomplete))
    return Matching(matched, ignored, iou)


def box_iou(found: NDArray[Any], truths: NDArray[Any], crowds: NDArray[np.bool_] | None = None) -> NDArray[np.float64]:
    """IoU of each box with each truth, `(k, n)`; both (., 4), xyxy. 0 between two boxes without area.

    Args:
        crowds: `(n,)`, True on boxes around groups, of which the share of the box that lies in them counts instead.
    """
    if not len(found) or not len(truths):
        return np.zeros((len(found), len(truths)))
    flags = np.zeros(len(truths), dtype=np.uint8) if crowds is None else crowds.astype(np.uint8)
    return np.nan_to_num(np.asarray(mask.iou(xywh(found), xywh(truths), flags.tolist())), nan=0.0)


def xywh(boxes: NDArray[Any]) -> NDArray[np.float64]:
    """Boxes (n, 4) from xyxy to COCO's corner, width and height."""
    wide = boxes.astype(np.float64)
    return np.concatenate([wide[:, :2], wide[:, 2:] - wide[:, :2]], 1)
