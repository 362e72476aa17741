"""What a case yields."""

from __future__ import annotations

import statistics
from dataclasses import dataclass, field


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


@dataclass(frozen=True)
class Ratio:
    """Time of the other side over ours: of the medians, and the least and largest of one pair of runs."""

    median: float
    low: float
    high: float


@dataclass(frozen=True)
class Agreement:
    """How far the outputs of two sides lie apart, on the same weights and inputs.

    Attributes:
        logits: largest difference of a token's logit, both sides decoding the same chosen image tokens.
        pixels: largest difference of a box's edge, likewise.
        detections: boxes of the other side that score above 0.1.
        within_half_pixel: how many of them ours has within half a pixel, likewise.
        found_freely: how many of them are among ours within half a pixel, where each side chose for itself.
        replayed: the two sides did decode the same chosen tokens.
        strict: the two sides compute in the same precision, float32, so that they have to agree.
    """

    logits: float
    pixels: float
    detections: int
    within_half_pixel: int
    found_freely: int
    replayed: bool
    strict: bool

    @property
    def agrees(self) -> bool:
        """Every detection was found again within half a pixel."""
        return self.within_half_pixel == self.detections


@dataclass(frozen=True)
class Row:
    """Two sides of one comparison.

    Attributes:
        case: one of `settings.CASES`.
        what: the inputs, in words.
        own: the name of our side.
        other: the name of the other side.
        own_time: of our side.
        other_time: of the other side.
        labels: of the prompt.
        size: (height, width) of the pictures.
        agreement: of the outputs, where they were compared.
        measures: further figures by name.
        note: what a reader has to know, in one line.
    """

    case: str
    what: str
    own: str = "ours"
    other: str = "stock"
    own_time: Timing = Timing()
    other_time: Timing = Timing()
    labels: int | None = None
    size: tuple[int, int] | None = None
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
        """The note and the failures, each on one line."""
        failures = [
            f"{name} fails: {timing.failure}"
            for name, timing in ((self.own, self.own_time), (self.other, self.other_time))
            if timing.failure
        ]
        return [*failures, *([self.note] if self.note else [])]


def failed(case: str, error: BaseException) -> Row:
    """The row of a case that could not be run."""
    return Row(case, "the whole case", own="–", other="–", note=f"not measured: {one_line(error)}")


def one_line(error: BaseException) -> str:
    """An error as a short line."""
    words = " ".join(str(error).split())
    text = f"{type(error).__name__}: {words}" if words else type(error).__name__
    return text if len(text) <= 160 else f"{text[:157]}..."


def joined(*notes: str) -> str:
    """The notes that say something, as one."""
    return "; ".join(note for note in notes if note)
