"""Described objects: detection where each class is a sentence, some of which say what must not be there."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
from datasets import List, Value

from .base import NOTHING_TO_MEASURE, ItemId, ScoredBoxes, check_labels, read_array
from .coco import CocoDetection, ImageBoxes

WORDS = {"1-3": range(1, 4), "4-6": range(4, 7), "7-9": range(7, 10), "10+": range(10, 10_000)}
"""The bins of sentence lengths."""


class DescribedObjects(CocoDetection):
    """AP over the sentences of D3 (Xie et al. 2023, Described Object Detection, arXiv 2307.12813).

    An item is an image, a class is a sentence, and AP is that of COCO: IoU 0.5 to 0.95, the best 100 boxes of a
    sentence in an image. The `labels` of a prediction are sentence ids. A reference is that of `CocoDetection`
    (`boxes`, `labels`, and `iscrowd` and `area` if there are any), its labels sentence ids, and

    - `asked`, optional: the ids of the sentences that the image is asked for, those of its group in the
      intra-scenario setting. What is found for others is left out, and so is the truth of others. Without it the
      image counts for all sentences (inter-scenario).

    The scores are `FULL`, `PRES` and `ABS`, the mean AP over all sentences, over those that describe what is there, and
    over those that describe what is absent; and each again over the sentences with so many words, `FULL_1-3`,
    `FULL_4-6`, `FULL_7-9`, `FULL_10+`, .... A sentence of which there is no object anywhere counts in none. -1 where no
    sentence is left.

    Args:
        sentences: sentence id to text.
        presence: sentence id to whether it describes presence only (in D3, `is_negative` is False).
        mmdet_compatible: count the truth of sentences that an image was not asked for, all of it missed, as the tools
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

    def keep(self, found: ScoredBoxes, reference: Mapping[str, Any], where: str) -> ImageBoxes:
        """What `CocoDetection` keeps, of the sentences that count here.

        Raises:
            ValueError: as `CocoDetection`; `asked` names an unknown sentence.
        """
        truth, found = super().keep(found, reference, where)
        if reference.get("asked") is None:
            return ImageBoxes(truth, found)
        asked = read_array(reference, "asked", np.int64, where)
        check_labels(asked, self.categories, f"{where}: asked")
        if not self.miss_unasked:
            rows = np.isin(truth.labels, asked)
            truth = truth._replace(**{name: getattr(truth, name)[rows] for name in truth._fields[:4]})
        return ImageBoxes(truth, found.at(np.isin(found.labels, asked)))

    def score(self, kept: Mapping[ItemId, ImageBoxes]) -> dict[str, float]:
        """`FULL`, `PRES`, `ABS`, and each by length."""
        super().score(kept)
        precision = {found.label: found.ap for found in self.classes if found.num_truths}
        groups = {
            "FULL": set(precision),
            "PRES": {sentence for sentence in precision if self.presence[sentence]},
            "ABS": {sentence for sentence in precision if not self.presence[sentence]},
        }
        bins = {"": range(1, 10_000)} | {f"_{length}": words for length, words in WORDS.items()}
        return {
            f"{name}{length}": _mean([precision[one] for one in group if self.num_words[one] in words])
            for length, words in bins.items()
            for name, group in groups.items()
        }


def _mean(values: list[float]) -> float:
    return float(np.mean(sorted(values))) if values else NOTHING_TO_MEASURE
