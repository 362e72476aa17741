"""The few worst mistakes of an evaluation, kept while the answers pass by."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from typing import Any, NamedTuple

from numpy.typing import NDArray

from ..data.records import ImageSource
from .tasks import CaseId

Corners = tuple[float, float, float, float]


class Mark(NamedTuple):
    """A box with its words.

    box: xyxy in pixels of the upright picture.
    label: for people.
    score: None for what is known to be there.
    """

    box: Corners
    label: str
    score: float | None = None


class Mistake(NamedTuple):
    """One thing that went wrong in one picture.

    kind: what is wrong with it, in a few words.
    truth: what is there: what was missed, or what a wrong box overlaps most.
    found: what was found: a wrong box, or the best one on what was missed.
    overlap: IoU of the two, where there are two.
    text: the sentence of the case, where it has one.
    """

    case_id: CaseId
    image: ImageSource
    kind: str
    truth: Mark | None
    found: Mark | None
    overlap: float | None = None
    text: str = ""


def corners(box: NDArray[Any]) -> Corners:
    """A row of an array of boxes."""
    x0, y0, x1, y1 = (float(value) for value in box)
    return x0, y0, x1, y1


class Worst:
    """Keeps the few mistakes that weigh most, the first of equals."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._offered = 0
        self._heap: list[tuple[float, int, Mistake]] = []

    def offer(self, weight: float, make: Callable[[], Mistake]) -> None:
        """Keep a mistake if it is among the worst so far; it is made only then."""
        self._offered += 1
        if self._count and (len(self._heap) < self._count or weight > self._heap[0][0]):
            push = heapq.heappush if len(self._heap) < self._count else heapq.heapreplace
            push(self._heap, (weight, -self._offered, make()))

    def ranked(self) -> list[Mistake]:
        """What was kept, the worst first."""
        return [mistake for *_, mistake in sorted(self._heap, key=lambda row: row[:2], reverse=True)]
