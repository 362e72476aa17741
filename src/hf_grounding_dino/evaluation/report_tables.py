"""The tables of the report: ours beside published numbers, and which labels are taken for which."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from .facts import Published

Called = Mapping[tuple[int | None, int | None], int]

MOST_IN_MATRIX = 30
"""Labels that a whole confusion matrix is drawn for; of more, only the pairs that are mixed up most."""

_MOST_PAIRS = 15
_MOST_LEFT_OUT = 10


class HeadlineRow(NamedTuple):
    """A number of ours and one of others; None where one of them is not there."""

    metric: str
    ours: float | None
    published: Published | None

    @property
    def difference(self) -> str:
        """Ours less theirs, in points of percent with its sign."""
        if self.ours is None or self.published is None or self.ours < 0:
            return "–"
        points = round(100 * (self.ours - self.published.value), 1)
        return f"{points:+.1f}".replace("-", "−") if points else "0.0"


class PairRow(NamedTuple):
    """What is there, what it is called, how often, and what share of all that is there."""

    truth: str
    called: str
    times: int
    share: float


class LeftOut(NamedTuple):
    """Labels that are missed, and labels that are said where nothing is: name, count, and share of the missed."""

    missed: list[tuple[str, int, float]]
    invented: list[tuple[str, int]]


class Matrix(NamedTuple):
    """Confusion of labels: a row for what is there, a column for what it is called.

    columns: names, "not found" at last.
    rows: name and (count, share of the row) for each column; "nothing there" at last.
    """

    columns: list[str]
    rows: list[tuple[str, list[tuple[int, float]]]]


def percent(value: float | None) -> str:
    """A number of [0, 1] as papers print it: 48.4; a dash where there is nothing to measure."""
    return "–" if value is None or not value >= 0 else f"{100 * value:.1f}"


def headline_rows(numbers: Mapping[str, float], published: Sequence[Published]) -> list[HeadlineRow]:
    """All of our numbers in their order, each with what others published of it, then what only others have."""
    rows = []
    for metric, value in numbers.items():
        others = [number for number in published if number.metric == metric]
        rows += [HeadlineRow(metric, value, other) for other in others] or [HeadlineRow(metric, value, None)]
    return rows + [HeadlineRow(other.metric, None, other) for other in published if other.metric not in numbers]


def confused_pairs(called: Called, labels: Mapping[int, str]) -> list[PairRow]:
    """The labels that are called by another name most often."""
    totals = _totals(called)
    wrong = {pair: count for pair, count in called.items() if None not in pair and pair[0] != pair[1]}
    ranked = sorted(wrong.items(), key=lambda row: -row[1])[:_MOST_PAIRS]
    return [
        PairRow(_name(labels, truth), _name(labels, said), count, count / totals[truth])
        for (truth, said), count in ranked
    ]


def left_out_rows(called: Called, labels: Mapping[int, str]) -> LeftOut:
    """The labels that are missed most often, and those that are invented most often."""
    totals = _totals(called)
    missed = Counter({truth: count for (truth, said), count in called.items() if said is None})
    invented = Counter({said: count for (truth, said), count in called.items() if truth is None})
    return LeftOut(
        [(_name(labels, label), n, n / totals[label]) for label, n in missed.most_common(_MOST_LEFT_OUT)],
        [(_name(labels, label), n) for label, n in invented.most_common(_MOST_LEFT_OUT)],
    )


def confusion_matrix(called: Called, labels: Mapping[int, str]) -> Matrix | None:
    """The whole table; None for more than `MOST_IN_MATRIX` labels, or where nothing is called anything."""
    if len(labels) > MOST_IN_MATRIX or not called:
        return None
    ends: list[int | None] = [*labels, None]
    rows = []
    for truth in ends:
        counts = [called.get((truth, said), 0) for said in ends]
        total = sum(counts)
        cells = [(count, count / total if total else 0.0) for count in counts]
        rows.append(("nothing there" if truth is None else _name(labels, truth), cells))
    return Matrix([*(_name(labels, label) for label in labels), "not found"], rows)


def _totals(called: Called) -> Counter[int | None]:
    totals: Counter[int | None] = Counter()
    for (truth, _), count in called.items():
        totals[truth] += count
    return totals


def _name(labels: Mapping[int, str], label: int | None) -> str:
    return "nothing" if label is None else labels.get(label, str(label))
