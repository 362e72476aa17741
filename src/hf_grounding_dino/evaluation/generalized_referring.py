"""Generalized referring expressions: sentences that mean no object of the picture, one, or several."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

import numpy as np

from .average_precision import NOTHING_TO_MEASURE
from .metric import Float, Found, ItemId, ItemMetric, boxes_of
from .overlap import overlaps
from .referring import check_iou


class GeneralizedResult(NamedTuple):
    """What became of one expression.

    meant: whether it means anything in the picture.
    answered: whether any box was kept.
    right: whether the boxes that were kept are those it means, no more and no less (F1 = 1).
    """

    meant: bool
    answered: bool
    right: bool


class GeneralizedReferring(ItemMetric[GeneralizedResult]):
    """The scores of gRefCOCO (He et al. 2023, GREC, arXiv 2308.16182).

    An item is one expression, as in `ReferringExpressions`. Of its reference, `boxes` (n, 4) are all objects that the
    expression means, and none (n = 0) where it means nothing in the picture. Predictions need no labels.

    Boxes with a score of at least `threshold` are the answer. It is paired with the truth one to one, the pair with the
    largest IoU first, until no IoU reaches `iou`; pairs are true positives. F1 is 2 TP / (2 TP + FP + FN); where
    nothing is meant it is 1 without an answer and 0 with one. The authors' program pairs by generalized IoU, which is
    never larger, where their paper says IoU; this follows the paper, as mmdetection does.

    The scores are `F1`, the share of all expressions with F1 = 1; `N-acc`, the share of expressions that mean nothing
    and got no answer; `T-acc`, the share of those that mean something and got one. -1 where there are no such
    expressions.

    Args:
        threshold: the least score of an answer. 0.7 is for scores that are the maximum over the tokens.
        iou: the least IoU of a pair, in (0, 1].
        mmdet_compatible: take the first box of the reference for all of them, as mmdetection does.

    Raises:
        ValueError: an `iou` outside (0, 1].
    """

    description: ClassVar[str] = "F1, N-acc and T-acc of generalized referring expression comprehension (gRefCOCO)."
    citation: ClassVar[str] = (
        "@article{he2023grec, title={GREC: Generalized Referring Expression Comprehension}, author={He, Shuting and "
        "Ding, Henghui and Liu, Chang and Jiang, Xudong}, journal={arXiv:2308.16182}, year={2023}}"
    )
    inputs: ClassVar[str] = "predictions: image_id, boxes, scores; references: image_id, boxes (none: no target)"

    def __init__(
        self, threshold: float = 0.7, iou: float = 0.5, *, mmdet_compatible: bool = False, **options: Any
    ) -> None:
        super().__init__(**options)
        check_iou(iou)
        self.threshold = threshold
        self.iou = iou
        self.mmdet_compatible = mmdet_compatible

    def keep(self, found: Found, reference: Mapping[str, Any], where: str) -> GeneralizedResult:
        """Whether the answer is right.

        Raises:
            ValueError: the boxes of the reference are malformed.
        """
        truths = boxes_of(reference, where)
        if self.mmdet_compatible:
            truths = truths[:1]
        answer = found.boxes[found.scores >= self.threshold]
        right = len(answer) == len(truths) == count_pairs(answer, truths, self.iou)
        return GeneralizedResult(len(truths) > 0, len(answer) > 0, right)

    def score(self, kept: Mapping[ItemId, GeneralizedResult]) -> dict[str, float]:
        """`F1`, `N-acc` and `T-acc`."""
        results = list(kept.values())
        return {
            "F1": _share([result.right for result in results]),
            "N-acc": _share([not result.answered for result in results if not result.meant]),
            "T-acc": _share([result.answered for result in results if result.meant]),
        }


def count_pairs(boxes: Float, truths: Float, iou: float) -> int:
    """How many boxes (k, 4) find a truth (n, 4) of their own, the pair with the largest IoU first."""
    ious = overlaps(boxes, truths)
    pairs = 0
    while ious.size and ious.max() >= iou:
        box, truth = np.unravel_index(ious.argmax(), ious.shape)
        ious[box] = ious[:, truth] = 0
        pairs += 1
    return pairs


def _share(answers: list[bool]) -> float:
    return sum(answers) / len(answers) if answers else NOTHING_TO_MEASURE
