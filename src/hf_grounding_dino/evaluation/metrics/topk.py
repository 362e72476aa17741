"""The best detections of each class over a stream of images, in memory that does not grow with the stream."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .base import ItemId, ScoredBoxes
from .coco import compact

PENDING = 2_000_000


class Entries(NamedTuple):
    """Detections of one class.

    items: (k,), the number of the image.
    places: (k,), the place among the detections of that image.
    boxes: (k, 4), xyxy in pixels.
    scores: (k,).
    """

    items: NDArray[Any]
    places: NDArray[Any]
    boxes: NDArray[Any]
    scores: NDArray[Any]

    def at(self, where: NDArray[Any]) -> Entries:
        """The entries at some places, or under a mask."""
        return Entries(*(column[where] for column in self))

    def best(self, limit: int | None, keys: Sequence[ItemId] | None = None) -> Entries:
        """The `limit` best; of equal scores those of the smaller image (by `keys`, or by number), then place."""
        if limit is None or len(self.scores) <= limit:
            return self
        edge = np.partition(self.scores, -limit)[-limit]
        ties = np.flatnonzero(self.scores == edge)
        # Only the ids of ties are compared.
        images = self.items[ties] if keys is None else np.array([keys[number] for number in self.items[ties].tolist()])
        ties = ties[np.lexsort((self.places[ties], images))]
        chosen = self.scores > edge
        chosen[ties[: limit - int(chosen.sum())]] = True
        return self.at(chosen)


NOTHING = Entries(np.zeros(0, np.int32), np.zeros(0, np.int32), np.zeros((0, 4), np.float32), np.zeros(0, np.float32))


class TopK:
    """Takes the detections of one image after the other and forgets what cannot be among the best of its class.

    Among equal scores the smaller id of the image is better, and within an image what came first: the order in which
    images come decides nothing.

    Args:
        labels: the classes, rising.
        limit: how many of a class are kept; None: all.
        pending: how many detections may wait until the worst are dropped.
    """

    def __init__(self, labels: Sequence[int], limit: int | None, *, pending: int = PENDING) -> None:
        self.ids: list[ItemId] = []
        """The ids of the images, by their numbers."""
        self._labels = np.asarray(labels, np.int64)
        self.limit = limit
        self._room = pending
        self._worst = np.full(len(labels), -np.inf)
        self._best: dict[int, Entries] = {}
        self._pending: list[tuple[NDArray[np.int64], Entries]] = []
        self._num_pending = 0

    def __len__(self) -> int:
        """Number of detections held."""
        return self._num_pending + sum(len(best.scores) for best in self._best.values())

    def add(self, image: ItemId, found: ScoredBoxes) -> None:
        """Add the detections of an image; all labels are among the classes."""
        number = len(self.ids)
        self.ids.append(image)
        columns = np.searchsorted(self._labels, found.labels)
        chosen = np.flatnonzero(found.scores >= self._worst[columns])
        if not len(chosen):
            return
        numbers, places = np.full(len(chosen), number, np.int32), chosen.astype(np.int32)
        entries = Entries(numbers, places, compact(found.boxes[chosen]), compact(found.scores[chosen]))
        self._pending.append((columns[chosen], entries))
        self._num_pending += len(chosen)
        if self._num_pending > self._room:
            self._settle()

    def with_label(self, label: int) -> Entries:
        """The best of a class, in no particular order."""
        self._settle()
        return self._best.get(int(np.searchsorted(self._labels, label)), NOTHING)

    def _settle(self) -> None:
        if not self._pending:
            return
        columns = np.concatenate([part for part, _ in self._pending])
        waiting = together([entries for _, entries in self._pending])
        self._pending, self._num_pending = [], 0
        order = np.argsort(columns, kind="stable")
        for chosen in np.split(order, np.flatnonzero(np.diff(columns[order])) + 1):
            column = int(columns[chosen[0]])
            known = self._best.get(column, NOTHING)
            best = self._best[column] = together([known, waiting.at(chosen)]).best(self.limit, self.ids)
            if len(best.scores) == self.limit:
                self._worst[column] = best.scores.min()


def together(parts: Sequence[Entries]) -> Entries:
    """Several as one."""
    return Entries(*(np.concatenate(columns) for columns in zip(*parts, strict=True)))
