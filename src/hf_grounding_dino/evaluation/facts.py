"""What a report is made of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from .analysis import Analysis
from .average_precision import ClassResult


@dataclass(frozen=True)
class Published:
    """A number that others printed, to set beside ours.

    source: where it is printed.
    metric: which of our numbers it is compared with, as "AP".
    value: in [0, 1], as our numbers; 0.484 for what papers write as 48.4.
    note: what is to be known of it, as "zero-shot".
    """

    source: str
    metric: str
    value: float
    note: str = ""

    def __post_init__(self) -> None:
        """Refuse percent.

        Raises:
            ValueError: the value is not in [0, 1].
        """
        if not 0 <= self.value <= 1:
            raise ValueError(f"{self.metric} of {self.source!r} is {self.value}; write 48.4 % as 0.484")


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What is known of an evaluation beside its answers.

    model: its name or folder, as the user gave it.
    data: name of the data set.
    date: when it was measured, as "2026-01-31" or longer.
    cases: how many the task has; of them `answered` were asked and scored.
    protocol: all that decides the answers beside model and pictures; values as JSON has them.
    seconds: that the model took, None where the answers were read from a file; of `pictures_per_second`, too.
    device: what it ran on, and in which precision.
    missing: pictures that are named and not there.
    unreadable: pictures that cannot be read, each with the reason.
    published: what others measured, of the same protocol or with a note.
    command: what repeats it.
    """

    model: str
    data: str
    date: str
    cases: int
    answered: int
    protocol: Mapping[str, Any] = field(default_factory=dict)
    seconds: float | None = None
    pictures_per_second: float | None = None
    device: str = ""
    missing: tuple[str, ...] = ()
    unreadable: tuple[str, ...] = ()
    published: tuple[Published, ...] = ()
    command: str = ""


@dataclass(frozen=True, kw_only=True)
class Report:
    """All that a report says.

    task: what was evaluated, for people.
    labels: category id to name; empty for tasks with sentences.
    numbers: what the metric says, in [0, 1], -1 where there is nothing to measure.
    classes: by label, where the metric has it.
    warnings: see `advise`.
    """

    task: str
    labels: Mapping[int, str]
    numbers: Mapping[str, float]
    classes: tuple[ClassResult, ...]
    analysis: Analysis
    facts: Facts
    warnings: tuple[str, ...]
