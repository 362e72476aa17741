"""The threshold of each label that serves best on a labelled set: the one of the highest F1 at IoU 0.5."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..processing.thresholds import Thresholds
from .metrics.base import ScoredBoxes, read_ground_truth
from .metrics.matching import match
from .tasks import Sample

MIN_TRUTHS = 5
"""Labels with fewer objects in the set take the threshold of all labels together."""


class Choice(NamedTuple):
    """The best threshold of one label, or of all together, and what it gives on the set it was chosen on.

    threshold, precision, recall, f1: in [0, 1].
    num_truths: objects of the label.
    own: False where too few objects occur, so that `threshold` is that of all labels.
    """

    threshold: float
    precision: float
    recall: float
    f1: float
    num_truths: int
    own: bool = True


class TunedThresholds(NamedTuple):
    """What a labelled set says of thresholds.

    overall: of all labels together, for those that were not seen.
    labels: of each label.
    """

    overall: Choice
    labels: dict[str, Choice]

    def thresholds(self, source: str) -> Thresholds:
        """As they lie beside a model; `source` says for people what they were chosen on."""
        own = {label: choice.threshold for label, choice in self.labels.items() if choice.own}
        return Thresholds(self.overall.threshold, own, source)


def tune_thresholds(
    predictions: Iterable[tuple[Sample, ScoredBoxes]], labels: Mapping[int, str], *, min_truths: int = MIN_TRUTHS
) -> TunedThresholds:
    """Choose thresholds.

    Boxes are matched with objects greedily by score, as COCO does; boxes on crowds count neither way. A threshold lies
    half way between the last score that is kept and the next one. Labels of one name are one label.

    Args:
        predictions: the samples of a detection task with everything the model found, whatever its score.
        labels: name of each category id.
        min_truths: the fewest objects of a label for a threshold of its own.

    Raises:
        ValueError: nothing is there to be found.
    """
    scores: dict[str, list[NDArray[np.float64]]] = {name: [np.zeros(0)] for name in labels.values()}
    right: dict[str, list[NDArray[np.bool_]]] = {name: [np.zeros(0, np.bool_)] for name in labels.values()}
    num_truths = dict.fromkeys(labels.values(), 0)
    for sample, found in predictions:
        truths = read_ground_truth(sample.reference)
        matching = match(found, truths)
        counted = ~matching.ignored
        for label in np.unique(found.labels[counted]).tolist():
            chosen = counted & (found.labels == label)
            scores[labels[label]].append(found.scores[chosen].astype(np.float64))
            right[labels[label]].append(matching.right[chosen])
        for label, count in zip(*np.unique(truths.labels[~truths.crowds], return_counts=True), strict=True):
            num_truths[labels[int(label)]] += int(count)
    if not sum(num_truths.values()):
        raise ValueError("no object is in these images, so no threshold can be chosen")
    columns = {name: (np.concatenate(scores[name]), np.concatenate(right[name])) for name in num_truths}
    every = [np.concatenate(part) for part in zip(*columns.values(), strict=True)]
    overall = _best(every[0], every[1], sum(num_truths.values()))
    choices = {}
    for name, count in num_truths.items():
        own = _best(*columns[name], count)
        choices[name] = own if count >= min_truths else _at(overall.threshold, *columns[name], count)
    return TunedThresholds(overall, choices)


def _best(scores: NDArray[np.float64], right: NDArray[np.bool_], num_truths: int) -> Choice:
    """The highest F1; of equal ones the highest threshold. Equal scores are kept or dropped together."""
    if not right.any():
        return Choice(1.0, 0.0, 0.0, 0.0, num_truths)
    order = np.argsort(-scores, kind="stable")
    scores, hits = scores[order], np.cumsum(right[order])
    last_of_its_score = np.append(scores[1:] < scores[:-1], True)
    f1 = np.where(last_of_its_score, 2 * hits / (np.arange(1, len(scores) + 1) + num_truths), -1.0)
    best = int(f1.argmax())
    below = scores[best + 1] if best + 1 < len(scores) else 0.0
    threshold = float(scores[best] + below) / 2
    return Choice(
        threshold, float(hits[best] / (best + 1)), float(hits[best] / num_truths), float(f1[best]), num_truths
    )


def _at(threshold: float, scores: NDArray[np.float64], right: NDArray[np.bool_], num_truths: int) -> Choice:
    kept = scores > threshold
    hits = int(right[kept].sum())
    precision = hits / max(int(kept.sum()), 1)
    recall = hits / max(num_truths, 1)
    f1 = 2 * hits / max(int(kept.sum()) + num_truths, 1)
    return Choice(threshold, precision, recall, f1, num_truths, own=False)
