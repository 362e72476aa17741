"""Interleaved runs, which what slows the machine for a while slows alike, and the rows that they make."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

if TYPE_CHECKING:
    from .agreement import Agreement
    from .settings import Size

Side = Callable[[], Any]

_WARM_UP_RUNS = {"cuda": 3}


@dataclass(frozen=True)
class Timing:
    """Seconds of each run of one side, or in one line why there are none."""

    seconds: tuple[float, ...] = ()
    failure: str = ""

    @property
    def median(self) -> float:
        """Of the runs; NaN if there are none."""
        return statistics.median(self.seconds) if self.seconds else float("nan")

    def scaled(self, factor: float) -> Timing:
        """The timing of `factor` times the work."""
        return Timing(tuple(factor * second for second in self.seconds), self.failure)


class Ratio(NamedTuple):
    """Time of the other side over ours: of the medians, and the least and largest of one pair of runs."""

    median: float
    low: float
    high: float


@dataclass(frozen=True)
class Row:
    """Two sides of one comparison.

    Attributes:
        what: the inputs, in words.
        labels: of the prompt.
        agreement: of the outputs, where they were compared.
        measures: further figures by name.
        note: what a reader has to know, in one line.
    """

    case: str
    what: str
    own: str
    other: str
    own_time: Timing = Timing()
    other_time: Timing = Timing()
    labels: int | None = None
    size: Size | None = None
    agreement: Agreement | None = None
    measures: dict[str, float] = field(default_factory=dict)
    note: str = ""

    @property
    def ratio(self) -> Ratio | None:
        """How many times faster ours is; None where a side has no time."""
        own, other = self.own_time, self.other_time
        if not own.seconds or not other.seconds:
            return None
        pairs = [b / a for a, b in zip(own.seconds, other.seconds, strict=True)]
        return Ratio(other.median / own.median, min(pairs), max(pairs))

    @property
    def notes(self) -> list[str]:
        """The failures and the note, each on one line."""
        sides = ((self.own, self.own_time), (self.other, self.other_time))
        failures = [f"{name} fails: {timing.failure}" for name, timing in sides if timing.failure]
        return [*failures, *([self.note] if self.note else [])]


def not_measured(case: str, error: BaseException | str) -> Row:
    """The row of a case that could not be run."""
    reason = error if isinstance(error, str) else one_line(error)
    return Row(case, "the whole case", "–", "–", note=f"not measured: {reason}")


def one_line(error: BaseException) -> str:
    """An error as a short line."""
    words = " ".join(str(error).split())
    text = f"{type(error).__name__}: {words}" if words else type(error).__name__
    return text if len(text) <= 160 else f"{text[:157]}..."


def joined(*notes: str) -> str:
    """The notes that say something, as one."""
    return "; ".join(filter(None, notes))


def interleaved(sides: Mapping[str, Side], repeats: int, device: torch.device) -> dict[str, Timing]:
    """Time every side `repeats` times, in turn, after a warm-up of each; one that raises is dropped, and says why."""
    failed: dict[str, Timing] = {}
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(-_WARM_UP_RUNS.get(device.type, 1), repeats):
        for name in [name for name in sides if name not in failed]:
            try:
                taken = timed(sides[name], device)
                seconds[name] += [taken] if turn >= 0 else []
            except Exception as error:  # whatever another package raises ends its own column alone
                failed[name] = Timing(failure=one_line(error))
    return {name: failed.get(name) or Timing(tuple(seconds[name])) for name in sides}


def timed(side: Side, device: torch.device) -> float:
    """Seconds of one run, from when the device is idle until it is again."""
    if device.type != "cuda":
        start = time.perf_counter()
        side()
        return time.perf_counter() - start
    torch.cuda.synchronize(device)
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    with torch.cuda.device(device):
        begin.record()
        side()
        end.record()
    torch.cuda.synchronize(device)
    return begin.elapsed_time(end) / 1000
