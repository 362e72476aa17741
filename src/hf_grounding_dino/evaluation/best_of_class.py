"""The best detections of each class over a stream of pictures, in memory that does not grow with the stream."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .average_precision import entries_at
from .coco import compact
from .metric import Found, ItemId

PENDING = 2_000_000


class Entries(NamedTuple):
    """Detections of one class.

    items: (k,), the number of the picture.
    places: (k,), the place among the detections of that picture.
    boxes: (k, 4), xyxy in pixels.
    scores: (k,).
    """

    items: NDArray[Any]
    places: NDArray[Any]
    boxes: NDArray[Any]
    scores: NDArray[Any]


NOTHING = Entries(np.zeros(0, np.int32), np.zeros(0, np.int32), np.zeros((0, 4), np.float32), np.zeros(0, np.float32))


class BestOfClass:
    """Takes the detections of one picture after the other and forgets what cannot be among the best of its class.

    Among equal scores the smaller id of the picture is better, and in a picture what came first: the order in which
    pictures come decides nothing.

    Args:
        labels: the classes, rising.
        limit: how many of a class are kept; None: all.
        pending: how many detections may wait until the worst are dropped.
    """

    def __init__(self, labels: Sequence[int], limit: int | None, *, pending: int = PENDING) -> None:
        self.ids: list[ItemId] = []
        """The ids of the pictures, by their numbers."""
        self._labels = np.asarray(labels, np.int64)
        self._limit = limit
        self._room = pending
        self._worst = np.full(len(labels), -np.inf)
        self._best: dict[int, Entries] = {}
        self._pending: list[tuple[NDArray[np.int32], Entries]] = []
        self._num_pending = 0

    def __len__(self) -> int:
        """Number of detections held."""
        return self._num_pending + sum(len(best.scores) for best in self._best.values())

    def add(self, picture: ItemId, found: Found) -> None:
        """Add the detections of a picture; all labels are among the classes."""
        number = len(self.ids)
        self.ids.append(picture)
        columns = np.searchsorted(self._labels, found.labels).astype(np.int32)
        chosen = np.flatnonzero(found.scores >= self._worst[columns])
        if not len(chosen):
            return
        entries = Entries(
            np.full(len(chosen), number, np.int32),
            chosen.astype(np.int32),
            compact(found.boxes[chosen]),
            compact(found.scores[chosen]),
        )
        self._pending.append((columns[chosen], entries))
        self._num_pending += len(chosen)
        if self._num_pending > self._room:
            self._settle()

    def of(self, label: int) -> Entries:
        """The best of a class, in no particular order."""
        self._settle()
        return self._best.get(int(np.searchsorted(self._labels, label)), NOTHING)

    def _settle(self) -> None:
        if not self._pending:
            return
        columns = np.concatenate([part for part, _ in self._pending])
        waiting = Entries(*(np.concatenate(column) for column in zip(*(e for _, e in self._pending), strict=True)))
        self._pending, self._num_pending = [], 0
        order = np.argsort(columns, kind="stable")
        for chosen in np.split(order, np.flatnonzero(np.diff(columns[order])) + 1):
            self._merge(int(columns[chosen[0]]), entries_at(waiting, chosen))

    def _merge(self, column: int, new: Entries) -> None:
        together = _together([self._best.get(column, NOTHING), new])
        best = self._best[column] = together if self._limit is None else self._cut(together, self._limit)
        if len(best.scores) == self._limit:
            self._worst[column] = best.scores.min()

    def _cut(self, entries: Entries, limit: int) -> Entries:
        edge = worst_score(entries.scores, limit)
        tied = entries.scores == edge
        # Only ids of ties are compared.
        keys = np.array([self.ids[number] for number in entries.items[tied].tolist()])
        return _best(entries, tied, keys, limit)


def merged(parts: Sequence[Entries], limit: int | None) -> Entries:
    """The best of several; their `items` are to be numbered alike, in the order of the ids."""
    together = _together(parts)
    if limit is None:
        return together
    tied = together.scores == worst_score(together.scores, limit)
    return _best(together, tied, together.items[tied], limit)


def worst_score(scores: NDArray[Any], limit: int) -> float:
    """The score of the last of the `limit` best; of fewer, less than all."""
    return float(np.partition(scores, -limit)[-limit]) if len(scores) > limit else -np.inf


def _best(entries: Entries, tied: NDArray[np.bool_], keys: NDArray[Any], limit: int) -> Entries:
    """All that are better than the ties, and the first ties by key and place, as far as there is room."""
    if len(entries.scores) <= limit:
        return entries
    ties = np.flatnonzero(tied)
    ties = ties[np.lexsort((entries.places[ties], keys))]
    chosen = entries.scores > entries.scores[ties[0]]
    chosen[ties[: limit - int(chosen.sum())]] = True
    return entries_at(entries, chosen)


def _together(parts: Sequence[Entries]) -> Entries:
    return Entries(*(np.concatenate(columns) for columns in zip(*parts, strict=True)))
