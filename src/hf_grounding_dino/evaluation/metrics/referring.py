"""Boxes for sentences: referring expressions (RefCOCO, gRefCOCO) and phrases of captions (Flickr30k Entities)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import numpy as np
from datasets import List, Value
from numpy.typing import NDArray

from .base import NOTHING_TO_MEASURE, ItemId, ItemMetric, ScoredBoxes, first, read_array, read_boxes
from .matching import box_iou


class ExpressionResult(NamedTuple):
    """What became of one expression.

    dataset_name: the set that the expression is of, None where none is told.
    rank: position, from 1, of the best-scored box that hits; 0 where none does.
    """

    dataset_name: str | None
    rank: int


class ReferringExpressions(ItemMetric[ExpressionResult]):
    """P@k: the share of expressions of which one of the k best-scored boxes has a large enough IoU with the object.

    An item is one expression, so an `image_id` is the number of the expression: two expressions about one image need
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
        _check(ks, iou)
        self.ks = tuple(ks)
        self.iou = iou

    def keep(self, found: ScoredBoxes, reference: Mapping[str, Any], where: str) -> ExpressionResult:
        """The rank of the first hit.

        Raises:
            ValueError: the expression means no box, or `dataset_name` is no string.
        """
        truths = read_boxes(reference, where)
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


class GeneralizedResult(NamedTuple):
    """What became of one expression.

    meant: whether it means anything in the image.
    answered: whether any box was kept.
    right: whether the boxes that were kept are those it means, no more and no less (F1 = 1).
    """

    meant: bool
    answered: bool
    right: bool


class GeneralizedReferring(ItemMetric[GeneralizedResult]):
    """The scores of gRefCOCO (He et al. 2023, GREC, arXiv 2308.16182).

    An item is one expression, as in `ReferringExpressions`. Of its reference, `boxes` (n, 4) are all objects that the
    expression means, and none (n = 0) where it means nothing in the image. Predictions need no labels.

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
        _check((1,), iou)
        self.threshold = threshold
        self.iou = iou
        self.mmdet_compatible = mmdet_compatible

    def keep(self, found: ScoredBoxes, reference: Mapping[str, Any], where: str) -> GeneralizedResult:
        """Whether the answer is right.

        Raises:
            ValueError: the boxes of the reference are malformed.
        """
        truths = read_boxes(reference, where)
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


class PhraseGrounding(ItemMetric[tuple[int, ...]]):
    """R@k of Flickr30k Entities: the share of phrases of which one of the k best-scored boxes is a hit.

    An item is a caption, so two captions of one image need two numbers as their `image_id`. The `labels` of its
    prediction are phrase numbers, from 0 in the order of the caption's phrases. A reference has

    - `boxes` (n, 4): of all phrases.
    - `labels` (n,): the phrase number of each box.

    A phrase without any box is not counted. A hit has an IoU of at least `iou` with any box of its phrase (the any-box
    protocol), or, `merged`, with the smallest box around all of them (the merged-boxes protocol); Kamath et al. 2021,
    MDETR. What was found is not merged. The scores are `R@k` over all phrases of all captions, and
    `R@all`, which tries all boxes of a phrase and is the bound for any k. -1 where there is no phrase.

    Args:
        ks: how many boxes may be tried.
        merged: the merged-boxes protocol. mmdetection's crashes on the first phrase with two boxes.
        iou: the least IoU of a hit, in (0, 1].
        mmdet_compatible: give the boxes to phrases by the rank of their label in the caption, as mmdetection does with
            the phrase ids of the annotation file. The phrases after one without a box then get one another's boxes.

    Raises:
        ValueError: a k below 1, or an `iou` outside (0, 1].
    """

    description: ClassVar[str] = "Recall@k of phrase grounding (Flickr30k Entities), any box or merged boxes."
    citation: ClassVar[str] = (
        "@inproceedings{plummer2015flickr30k, title={Flickr30k Entities: Collecting Region-to-Phrase Correspondences "
        "for Richer Image-to-Sentence Models}, author={Plummer, Bryan A. and Wang, Liwei and Cervantes, Chris M. and "
        "Caicedo, Juan C. and Hockenmaier, Julia and Lazebnik, Svetlana}, booktitle={ICCV}, year={2015}}"
    )
    inputs: ClassVar[str] = (
        "predictions: image_id, boxes, scores, labels (phrase numbers); references: image_id, boxes, labels"
    )
    needs_labels: ClassVar[bool] = True
    reference_features: ClassVar[Mapping[str, Any]] = {"labels": List(Value("int64"))}

    def __init__(
        self,
        ks: Sequence[int] = (1, 5, 10),
        *,
        merged: bool = False,
        iou: float = 0.5,
        mmdet_compatible: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        _check(ks, iou)
        self.ks = tuple(ks)
        self.merged = merged
        self.iou = iou
        self.mmdet_compatible = mmdet_compatible

    def keep(self, found: ScoredBoxes, reference: Mapping[str, Any], where: str) -> tuple[int, ...]:
        """For each phrase with a box, the rank of its first hit, as `first_hit` counts.

        Raises:
            ValueError: not as many labels as boxes, or a phrase number below 0.
        """
        truths = read_boxes(reference, where)
        phrases = read_array(reference, "labels", np.int64, where)
        if phrases.shape != (len(truths),):
            raise ValueError(f"{where}: {len(truths)} boxes, and labels of shape {phrases.shape}")
        for labels, of in ((phrases, "reference"), (found.labels, "prediction")):
            if (bad := labels < 0).any():
                raise ValueError(f"{where}: label {first(bad)} of the {of} is {labels[bad][0]}, no phrase number")
        if self.mmdet_compatible:
            phrases = np.unique(phrases, return_inverse=True)[1]
        return tuple(self._rank(found, truths[phrases == phrase], phrase) for phrase in np.unique(phrases))

    def score(self, kept: Mapping[ItemId, tuple[int, ...]]) -> dict[str, float]:
        """`R@k` and `R@all`."""
        ranks = [rank for of_caption in kept.values() for rank in of_caption]
        recalls = {f"R@{k}": share_within(ranks, k) for k in self.ks}
        return {**recalls, "R@all": share_within(ranks, None)}

    def _rank(self, found: ScoredBoxes, truths: NDArray[Any], phrase: int) -> int:
        if self.merged:
            truths = np.concatenate([truths[:, :2].min(0), truths[:, 2:].max(0)])[None]
        own = found.labels == phrase
        return first_hit(found.boxes[own], found.scores[own], truths, self.iou)


def first_hit(boxes: NDArray[Any], scores: NDArray[Any], truths: NDArray[Any], iou: float) -> int:
    """Position, from 1, of the best-scored box (k, 4) that has an IoU >= `iou` with any truth (n, 4); 0 for none."""
    order = np.argsort(-scores, kind="stable")
    hits = (box_iou(boxes[order], truths) >= iou).any(1)
    return int(hits.argmax()) + 1 if hits.any() else 0


def share_within(ranks: Sequence[int], k: int | None) -> float:
    """The share of ranks, as of `first_hit`, that are hits among the first k (None: all); -1 without any rank."""
    if not ranks:
        return NOTHING_TO_MEASURE
    return sum(rank > 0 and (k is None or rank <= k) for rank in ranks) / len(ranks)


def _check(ks: Sequence[int], iou: float) -> None:
    """Refuse what cannot be numbers of boxes to try, or the least IoU of a hit.

    Raises:
        ValueError: no k, one below 1, or one twice; an `iou` outside (0, 1].
    """
    if not ks or min(ks) < 1 or len(set(ks)) < len(ks):
        raise ValueError(f"ks are different numbers of boxes, each at least 1, not {tuple(ks)}")
    if not 0 < iou <= 1:
        raise ValueError(f"iou is in (0, 1], not {iou}")


def count_pairs(boxes: NDArray[Any], truths: NDArray[Any], iou: float) -> int:
    """How many boxes (k, 4) find a truth (n, 4) of their own, the pair with the largest IoU first."""
    ious = box_iou(boxes, truths)
    pairs = 0
    while ious.size and ious.max() >= iou:
        box, truth = np.unravel_index(ious.argmax(), ious.shape)
        ious[box] = ious[:, truth] = 0
        pairs += 1
    return pairs


def _share(answers: list[bool]) -> float:
    return sum(answers) / len(answers) if answers else NOTHING_TO_MEASURE
