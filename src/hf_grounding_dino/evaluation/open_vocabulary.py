"""COCO with some categories never seen in training: average precision over the seen, the unseen, and all."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, ClassVar

from .average_precision import IOU_50, mean_precision
from .coco import CocoDetection, Picture
from .metric import ItemId

# Bansal et al., "Zero-Shot Object Detection", 2018: of COCO's 80 categories 48 and 17; the other 15 are left out.
BASE_NAMES = (
    *("person", "bicycle", "car", "motorcycle", "train", "truck", "boat", "bench", "bird", "horse", "sheep", "bear"),
    *("zebra", "giraffe", "backpack", "handbag", "suitcase", "frisbee", "skis", "kite", "surfboard", "bottle", "fork"),
    *("spoon", "bowl", "banana", "apple", "sandwich", "orange", "broccoli", "carrot", "pizza", "donut", "chair"),
    *("bed", "toilet", "tv", "laptop", "mouse", "remote", "microwave", "oven", "toaster", "refrigerator", "book"),
    *("clock", "vase", "toothbrush"),
)
NOVEL_NAMES = (
    *("airplane", "bus", "cat", "dog", "cow", "elephant", "umbrella", "tie", "snowboard", "skateboard", "cup"),
    *("knife", "cake", "couch", "keyboard", "sink", "scissors"),
)


class OpenVocabularyCoco(CocoDetection):
    """`CocoDetection` with `AP` and `AP50` of the base and of the novel categories beside those of all.

    It gives what `CocoDetection` gives over base and novel categories together, and `base_AP`, `base_AP50`,
    `novel_AP`, `novel_AP50`; all categories are asked for at once (the generalised setting).

    Args:
        base: the category ids that were seen in training.
        novel: those that were not. `open_vocabulary_split` finds both by name.
        mmdet_compatible: as `CocoDetection`.
        options: of `evaluate.Metric`, `num_process` and `process_id` among them.
    """

    description: ClassVar[str] = "Average precision over base and novel categories of COCO."

    def __init__(
        self, base: Collection[int], novel: Collection[int], *, mmdet_compatible: bool = False, **options: Any
    ) -> None:
        if both := set(base) & set(novel):
            raise ValueError(f"category {min(both)} is among the base categories and among the novel ones")
        super().__init__([*base, *novel], mmdet_compatible=mmdet_compatible, **options)
        self.groups = {"base": frozenset(base), "novel": frozenset(novel)}

    def score(self, kept: Mapping[ItemId, Picture]) -> dict[str, float]:
        """COCO's twelve numbers, and four."""
        measures = self.measure(kept)
        scores = self.summarize(measures)
        for name, group in self.groups.items():
            own = [measure for measure in measures if measure.label in group]
            scores |= {f"{name}_AP": mean_precision(own), f"{name}_AP50": mean_precision(own, iou=IOU_50)}
        return scores


def open_vocabulary_split(labels: Mapping[int, str]) -> tuple[list[int], list[int]]:
    """The ids of the 48 base and the 17 novel categories, by their names.

    Args:
        labels: category id to name, of an annotation file of COCO.

    Raises:
        ValueError: a category of the split is missing.
    """
    ids = {name: label for label, name in labels.items()}
    if missing := [name for name in (*BASE_NAMES, *NOVEL_NAMES) if name not in ids]:
        raise ValueError(f"the annotations have no category {missing[0]!r}, one of {len(missing)} that are missing")
    return [ids[name] for name in BASE_NAMES], [ids[name] for name in NOVEL_NAMES]
