"""How far scores can be trusted (the expected calibration error), and what a threshold on them does."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

_FINE_BINS, _BINS = 1000, 20


class ScoreBin(NamedTuple):
    """The boxes whose scores are in `[low, high)`: how many, how many of them right, and their mean score."""

    low: float
    high: float
    boxes: int
    right: int
    score: float

    @property
    def precision(self) -> float:
        """The share that is right."""
        return self.right / self.boxes if self.boxes else 0.0


class OperatingPoint(NamedTuple):
    """What a threshold does to all labels together, each number in [0, 1]."""

    threshold: float
    precision: float
    recall: float

    @property
    def f1(self) -> float:
        """The harmonic mean of precision and recall."""
        total = self.precision + self.recall
        return 2 * self.precision * self.recall / total if total else 0.0


class ScoreHistogram:
    """How many boxes have which score, and how many of those are right; of one size, however many they are."""

    def __init__(self) -> None:
        self.num_truths = 0
        self._count, self._right = np.zeros((2, _FINE_BINS), dtype=np.int64)
        self._sum = np.zeros(_FINE_BINS)

    def add(self, scores: NDArray[Any], right: NDArray[np.bool_]) -> None:
        """Count boxes by their scores; those outside [0, 1] count as its ends."""
        clipped = scores.astype(np.float64).clip(0, 1)
        places = np.minimum((clipped * _FINE_BINS).astype(np.int64), _FINE_BINS - 1)
        self._count += np.bincount(places, minlength=_FINE_BINS)
        self._right += np.bincount(places[right], minlength=_FINE_BINS)
        self._sum += np.bincount(places, clipped, minlength=_FINE_BINS)

    def bins(self, lowest: float) -> list[ScoreBin]:
        """The reliability diagram: bins of 0.05 from `lowest` on that hold a box."""
        rows = (part.reshape(_BINS, -1).sum(1) for part in (self._count, self._right, self._sum))
        edges = np.arange(_BINS + 1) / _BINS
        return [
            ScoreBin(float(low), float(high), int(count), int(right), float(total / count))
            for low, high, count, right, total in zip(edges[:-1], edges[1:], *rows, strict=True)
            if count and low >= lowest - 1e-9
        ]

    def operating_points(self) -> list[OperatingPoint]:
        """Precision and recall at thresholds 0.01, 0.02, ... up to the highest score; empty without ground truth."""
        count, right = (part[::-1].cumsum()[::-1] for part in (self._count, self._right))
        places = [i for i in range(10, _FINE_BINS, 10) if count[i]] if self.num_truths else []
        return [
            OperatingPoint(i / _FINE_BINS, float(right[i] / count[i]), float(right[i] / self.num_truths))
            for i in places
        ]


def calibration_error(bins: Iterable[ScoreBin]) -> float | None:
    """The expected calibration error: how far score and precision lie apart, mean over boxes; None without boxes."""
    rows = list(bins)
    total = sum(row.boxes for row in rows)
    return sum(row.boxes * abs(row.precision - row.score) for row in rows) / total if total else None
