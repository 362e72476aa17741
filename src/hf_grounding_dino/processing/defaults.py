"""Which boxes are kept where nothing else is said: the same question has the same answer from every door."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

Scoring = Literal["mean", "max"]


@dataclass(frozen=True, kw_only=True)
class PostProcessing:
    """Which of the boxes that a model answers with are kept.

    threshold: the least score, in [0, 1], exclusive.
    thresholds: another one for some of the labels.
    text_threshold: of a caption, the least score of the words that a box is called by, in [0, 1], exclusive.
    nms: of two boxes of one label that overlap by more (IoU, in [0, 1]), the better is kept; None keeps both.
    top_k: the most boxes of an image; None keeps all.
    chunk_size: the most labels of a prompt; None for as many as 256 tokens hold.
    scoring: "max", a box has its best label alone and scores as that one's best token; or "mean", as the benchmarks and
        tuned thresholds have it: each pair of box and label scores as the mean of the label's tokens.
    """

    threshold: float = 0.25
    text_threshold: float = 0.25
    nms: float | None = None
    top_k: int | None = 300
    chunk_size: int | None = None
    scoring: Scoring = "max"
    thresholds: Mapping[str, float] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        """Check the ranges.

        Raises:
            ValueError: a number out of its range.
        """
        shares = {"threshold": self.threshold, "text_threshold": self.text_threshold}
        shares |= {} if self.nms is None else {"nms": self.nms}
        for name, value in [*shares.items(), *((f"threshold of {k!r}", v) for k, v in self.thresholds.items())]:
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
                raise ValueError(f"the {name} is {value!r}: a number from 0 to 1 is needed")
        if self.scoring not in get_args(Scoring):
            raise ValueError(f"scoring is {self.scoring!r}: one of {', '.join(get_args(Scoring))} is needed")
        for name, count in (("top_k", self.top_k), ("chunk_size", self.chunk_size)):
            if count is not None and count < 1:
                raise ValueError(f"{name} is {count}: 1 or more is needed")

    def per_label(self, labels: Sequence[str]) -> list[float]:
        """The threshold of each label."""
        return [self.thresholds.get(label, self.threshold) for label in labels]


DEFAULTS = PostProcessing()
"""What is kept where nothing else is said."""

TUNED = ("tuned", "calibrated")
"""In place of a threshold: those that `tune-thresholds` chose. The second is the old name."""
