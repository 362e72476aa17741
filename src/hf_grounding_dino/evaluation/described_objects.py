"""Described objects: detection where each class is a sentence, some of which say what must not be there."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
from datasets import List, Value

from .average_precision import NOTHING_TO_MEASURE
from .coco import Annotated, CocoDetection, Picture, check_labels
from .metric import Found, Integer, ItemId, as_array

WORDS = {"1-3": range(1, 4), "4-6": range(4, 7), "7-9": range(7, 10), "10+": range(10, 10_000)}
"""The bins of sentence lengths."""


class DescribedObjects(CocoDetection):
    """AP over the sentences of D3 (Xie et al. 2023, Described Object Detection, arXiv 2307.12813).

    An item is a picture, a class is a sentence, and AP is that of COCO: IoU 0.5 to 0.95, the best 100 boxes of a
    sentence in a picture. The `labels` of a prediction are sentence ids. A reference is that of `CocoDetection`
    (`boxes`, `labels`, and `iscrowd` and `area` if there are any), its labels sentence ids, and

    - `asked`, optional: the ids of the sentences that the picture is asked for, those of its group in the
      intra-scenario setting. What is found for others is left out, and so is the truth of others. Without it the
      picture counts for all sentences (inter-scenario).

    The scores are `FULL`, `PRES` and `ABS`, the mean AP over all sentences, over those that describe what is there, and
    over those that describe what is absent; and each again over the sentences with so many words, `FULL_1-3`,
    `FULL_4-6`, `FULL_7-9`, `FULL_10+`, .... A sentence of which there is no object anywhere counts in none. -1 where no
    sentence is left.

    Args:
        sentences: sentence id to text.
        presence: sentence id to whether it describes presence only (in D3, `is_negative` is False).
        mmdet_compatible: count the truth of sentences that a picture was not asked for, all of it missed, as the tools
            of D3 and mmdetection do.

    Raises:
        ValueError: a sentence without a word, or `presence` is of other sentences.
    """

    description: ClassVar[str] = "AP of described object detection (D3): FULL, PRES, ABS and by length of the sentence."
    citation: ClassVar[str] = (
        "@inproceedings{xie2023described, title={Described Object Detection: Liberating Object Detection with Flexible "
        "Expressions}, author={Xie, Chi and Zhang, Zhao and Wu, Yixuan and Zhu, Feng and Zhao, Rui and Liang, Shuang}, "
        "booktitle={NeurIPS}, year={2023}}"
    )
    inputs: ClassVar[str] = (
        "predictions: image_id, boxes, scores, labels (sentence ids); references: image_id, boxes, labels, asked "
        "(optional)"
    )
    reference_features: ClassVar[Mapping[str, Any]] = {
        **CocoDetection.reference_features,
        "asked": List(Value("int64")),
    }

    def __init__(
        self,
        sentences: Mapping[int, str],
        presence: Mapping[int, bool],
        *,
        mmdet_compatible: bool = False,
        **options: Any,
    ) -> None:
        if odd := sorted(set(sentences) ^ set(presence)):
            raise ValueError(f"sentence {odd[0]} is not in both of sentences and presence")
        if wordless := [sentence for sentence, text in sentences.items() if not text.split()]:
            raise ValueError(f"sentence {wordless[0]} has no word")
        super().__init__(dict(sentences), **options)
        self.presence = dict(presence)
        self.num_words = {sentence: len(text.split()) for sentence, text in sentences.items()}
        self.miss_unasked = mmdet_compatible

    def keep(self, found: Found, reference: Mapping[str, Any], where: str) -> Picture:
        """What `CocoDetection` keeps, of the sentences that count here.

        Raises:
            ValueError: as `CocoDetection`; `asked` names an unknown sentence.
        """
        picture = super().keep(found, reference, where)
        if reference.get("asked") is None:
            return picture
        asked = as_array(reference, "asked", np.int64, where)
        check_labels(asked, self.categories, f"{where}: asked")
        truth = picture.truth if self.miss_unasked else _truth_of(picture.truth, asked)
        return Picture(truth, _found_of(picture.found, asked))

    def score(self, kept: Mapping[ItemId, Picture]) -> dict[str, float]:
        """`FULL`, `PRES`, `ABS`, and each by length."""
        super().score(kept)
        precision = {found.label: found.ap for found in self.classes if found.num_truths}
        groups = {
            "FULL": set(precision),
            "PRES": {sentence for sentence in precision if self.presence[sentence]},
            "ABS": {sentence for sentence in precision if not self.presence[sentence]},
        }
        scores = {name: _mean([precision[sentence] for sentence in group]) for name, group in groups.items()}
        for name, group in groups.items():
            for length, words in WORDS.items():
                of_length = [precision[sentence] for sentence in group if self.num_words[sentence] in words]
                scores[f"{name}_{length}"] = _mean(of_length)
        return scores


def _found_of(found: Found, asked: Integer) -> Found:
    rows = np.isin(found.labels, asked)
    return Found(found.boxes[rows], found.scores[rows], found.labels[rows])


def _truth_of(truth: Annotated, asked: Integer) -> Annotated:
    rows = np.isin(truth.labels, asked)
    return Annotated(truth.boxes[rows], truth.labels[rows], truth.areas[rows], truth.crowds[rows])


def _mean(values: list[float]) -> float:
    return float(np.mean(sorted(values))) if values else NOTHING_TO_MEASURE
