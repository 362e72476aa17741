"""How the boxes of one picture go with what is there: greedily by score, as COCO does."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .overlap import overlaps
from .tasks import Answer

UNMATCHED = -1
_Bool = NDArray[np.bool_]
_Float = NDArray[np.float64]
_Integer = NDArray[np.int64]
_NO_LABELS: _Integer = np.zeros(0, dtype=np.int64)


class Truths(NamedTuple):
    """What is there in one picture.

    boxes: float64 (n, 4), xyxy in pixels.
    labels: int64 (n,).
    crowd: bool (n,), True on boxes around groups, which are not to be found; boxes on them count neither way.
    judged: labels whose boxes can be wrong, those that somebody looked for (LVIS); None for all.
    unfinished: labels of which not all are annotated, so that a box more is no mistake (LVIS).
    """

    boxes: _Float
    labels: _Integer
    crowd: _Bool
    judged: _Integer | None = None
    unfinished: _Integer = _NO_LABELS


class Matching(NamedTuple):
    """What became of the boxes of one answer.

    truth: int64 (k,), the truth that each box is matched with, `UNMATCHED` for none.
    ignored: bool (k,), True on boxes that are neither right nor wrong: on a crowd, or not judged.
    overlap: float64 (k, n), IoU; with a crowd, the share of the box that lies in it.
    """

    truth: _Integer
    ignored: _Bool
    overlap: _Float

    @property
    def right(self) -> _Bool:
        """Which boxes are matched, `(k,)`."""
        return self.truth != UNMATCHED

    @property
    def wrong(self) -> _Bool:
        """Which boxes are neither matched nor ignored, `(k,)`."""
        return ~self.right & ~self.ignored


def truths_of(reference: Mapping[str, Any]) -> Truths:
    """Read a reference as the metrics take it; without `labels` all of them are 0, without `iscrowd` none is one.

    With `neg_category_ids` only those and the labels that are there are judged, as LVIS has it.
    """
    boxes = np.asarray(reference["boxes"], dtype=np.float64).reshape(-1, 4)
    labels = np.asarray(reference.get("labels", np.zeros(len(boxes))), dtype=np.int64)
    crowd = np.asarray(reference.get("iscrowd", np.zeros(len(boxes))), dtype=np.bool_)
    absent, unfinished = reference.get("neg_category_ids"), reference.get("not_exhaustive_category_ids")
    judged = None if absent is None else np.union1d(labels, np.asarray(absent, dtype=np.int64))
    open_labels = _NO_LABELS if unfinished is None else np.asarray(unfinished, dtype=np.int64)
    return Truths(boxes, labels, crowd, judged, open_labels)


def match(answer: Answer, truths: Truths, iou: float = 0.5) -> Matching:
    """Give each box, the best first, the free truth of its own label that it overlaps most, if by `iou` or more."""
    overlap = overlaps(answer.boxes, truths.boxes, truths.crowd)
    near = (overlap >= iou) & (answer.labels[:, None] == truths.labels)
    truth = np.full(len(answer.boxes), UNMATCHED, dtype=np.int64)
    ignored = np.zeros(len(answer.boxes), dtype=np.bool_)
    free = ~truths.crowd
    order = np.argsort(-answer.scores, kind="stable")
    for i in order[near[order].any(1)]:
        wanted = np.flatnonzero(near[i] & free)
        if wanted.size:
            # Of equals the last, as in pycocotools.
            truth[i] = wanted[::-1][overlap[i, wanted[::-1]].argmax()]
            free[truth[i]] = False
        else:
            ignored[i] = bool((near[i] & truths.crowd).any())
    unmatched = truth == UNMATCHED
    if truths.judged is not None:
        ignored |= unmatched & ~np.isin(answer.labels, truths.judged)
    ignored |= unmatched & np.isin(answer.labels, truths.unfinished)
    return Matching(truth, ignored, overlap)
