"""Referring expressions: does one of the best boxes for a sentence lie on what the sentence means."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import numpy as np
from datasets import Value

from .average_precision import NOTHING_TO_MEASURE
from .metric import Float, Found, ItemId, ItemMetric, boxes_of
from .overlap import overlaps


class ExpressionResult(NamedTuple):
    """What became of one expression.

    dataset_name: the set that the expression is of, None where none is told.
    rank: position, from 1, of the best-scored box that hits; 0 where none does.
    """

    dataset_name: str | None
    rank: int


class ReferringExpressions(ItemMetric[ExpressionResult]):
    """P@k: the share of expressions of which one of the k best-scored boxes has a large enough IoU with the object.

    An item is one expression, so an `image_id` is the number of the expression: two expressions about one picture need
    two. A reference has

    - `boxes` (n, 4): what the expression means. The protocol has n = 1; where several are given, any of them will do.
    - `dataset_name`, optional: the set it is of, such as "refcoco", "refcoco+" and "refcocog" in one file of MDETR.

    Predictions need no labels. Of boxes with equal scores the one given first counts as better.

    The scores are `P@k` over all expressions, `{dataset_name}_P@k` over those of a set, and `mean_precision`, the mean
    of the sets' numbers (of the overall ones where no set is named), by which mmdetection chooses checkpoints. It
    divides by nine whatever sets there are, which is the same for RefCOCO, RefCOCO+ and RefCOCOg together.

    Args:
        ks: how many boxes may be tried.
        iou: the least IoU of a hit, in (0, 1].

    Raises:
        ValueError: a k below 1, or an `iou` outside (0, 1].
    """

    description: ClassVar[str] = "Precision@k of referring expression comprehension (RefCOCO, RefCOCO+, RefCOCOg)."
    citation: ClassVar[str] = (
        "@inproceedings{yu2016modeling, title={Modeling Context in Referring Expressions}, author={Yu, Licheng and "
        "Poirson, Patrick and Yang, Shan and Berg, Alexander C. and Berg, Tamara L.}, booktitle={ECCV}, year={2016}}"
    )
    inputs: ClassVar[str] = "predictions: image_id, boxes, scores; references: image_id, boxes, dataset_name (optional)"
    reference_features: ClassVar[Mapping[str, Any]] = {"dataset_name": Value("string")}

    def __init__(self, ks: Sequence[int] = (1, 5, 10), iou: float = 0.5, **options: Any) -> None:
        super().__init__(**options)
        check_ks(ks)
        check_iou(iou)
        self.ks = tuple(ks)
        self.iou = iou

    def keep(self, found: Found, reference: Mapping[str, Any], where: str) -> ExpressionResult:
        """The rank of the first hit.

        Raises:
            ValueError: the expression means no box, or `dataset_name` is no string.
        """
        truths = boxes_of(reference, where)
        if not len(truths):
            raise ValueError(f"{where}: a referring expression means at least one box, and boxes is empty")
        name = reference.get("dataset_name")
        if name is not None and not isinstance(name, str):
            raise ValueError(f"{where}: dataset_name is a string, not {name!r}")
        return ExpressionResult(name, first_hit(found.boxes, found.scores, truths, self.iou))

    def score(self, kept: Mapping[ItemId, ExpressionResult]) -> dict[str, float]:
        """P@k overall and of each set, and their mean; -1 without any expression."""
        results = list(kept.values())
        scores = {f"P@{k}": share_within([result.rank for result in results], k) for k in self.ks}
        by_set: dict[str, float] = {}
        for name in sorted({result.dataset_name for result in results if result.dataset_name is not None}):
            ranks = [result.rank for result in results if result.dataset_name == name]
            by_set |= {f"{name}_P@{k}": share_within(ranks, k) for k in self.ks}
        return {**scores, **by_set, "mean_precision": float(np.mean(list((by_set or scores).values())))}


def first_hit(boxes: Float, scores: Float, truths: Float, iou: float) -> int:
    """Position, from 1, of the best-scored box (k, 4) that has an IoU >= `iou` with any truth (n, 4); 0 for none."""
    order = np.argsort(-scores, kind="stable")
    hits = (overlaps(boxes[order], truths) >= iou).any(1)
    return int(hits.argmax()) + 1 if hits.any() else 0


def share_within(ranks: Sequence[int], k: int | None) -> float:
    """The share of ranks, as of `first_hit`, that are hits among the first k (None: all); -1 without any rank."""
    if not ranks:
        return NOTHING_TO_MEASURE
    return sum(rank > 0 and (k is None or rank <= k) for rank in ranks) / len(ranks)


def check_ks(ks: Sequence[int]) -> None:
    """Refuse what cannot be numbers of boxes to try.

    Raises:
        ValueError: none, one below 1, or one twice.
    """
    if not ks or min(ks) < 1 or len(set(ks)) < len(ks):
        raise ValueError(f"ks are different numbers of boxes, each at least 1, not {tuple(ks)}")


def check_iou(iou: float) -> None:
    """Refuse what cannot be the least IoU of a hit.

    Raises:
        ValueError: it is outside (0, 1].
    """
    if not 0 < iou <= 1:
        raise ValueError(f"iou is in (0, 1], not {iou}")
