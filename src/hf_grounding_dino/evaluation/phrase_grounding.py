"""Phrase grounding: is each phrase of a caption found where the annotators saw it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
from datasets import List, Value

from .metric import Float, Found, Integer, ItemId, ItemMetric, as_array, boxes_of, first
from .referring import check_iou, check_ks, first_hit, share_within


class PhraseGrounding(ItemMetric[tuple[int, ...]]):
    """R@k of Flickr30k Entities: the share of phrases of which one of the k best-scored boxes is a hit.

    An item is a caption, so two captions of one picture need two numbers as their `image_id`. The `labels` of its
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
        check_ks(ks)
        check_iou(iou)
        self.ks = tuple(ks)
        self.merged = merged
        self.iou = iou
        self.mmdet_compatible = mmdet_compatible

    def keep(self, found: Found, reference: Mapping[str, Any], where: str) -> tuple[int, ...]:
        """For each phrase with a box, the rank of its first hit, as `first_hit` counts.

        Raises:
            ValueError: not as many labels as boxes, or a phrase number below 0.
        """
        truths = boxes_of(reference, where)
        phrases: Integer = as_array(reference, "labels", np.int64, where)
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

    def _rank(self, found: Found, truths: Float, phrase: int) -> int:
        if self.merged:
            truths = np.concatenate([truths[:, :2].min(0), truths[:, 2:].max(0)])[None]
        own = found.labels == phrase
        return first_hit(found.boxes[own], found.scores[own], truths, self.iou)
