"""How the learning rate changes over the steps: a linear warm-up, then a cosine, steps, or nothing."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, get_args

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

ScheduleKind = Literal["cosine", "step", "constant"]


@dataclass(frozen=True, kw_only=True)
class ScheduleSettings:
    """What the learning rate does. All counts are of optimizer steps.

    kind: after the warm-up a half cosine to 0 at `max_steps`, a fall by `gamma` at each milestone, or nothing.
    warmup_steps: 0 to begin at the full rate. MM-Grounding-DINO pre-trains with 1000 and fine-tunes without.
    warmup_start: the share of the rate that the first step of a warm-up has.
    milestones: after how many steps each fall comes; for "step" alone.
    gamma: what is left of the rate after a milestone.

    Raises:
        ValueError: a value is out of its range, or milestones are missing, out of order or of no use.
    """

    kind: ScheduleKind = "cosine"
    max_steps: int
    warmup_steps: int = 0
    warmup_start: float = 0.1
    milestones: tuple[int, ...] = ()
    gamma: float = 0.1

    def __post_init__(self) -> None:
        if self.kind not in get_args(ScheduleKind):
            raise ValueError(f"There is no schedule {self.kind!r}: choose from {', '.join(get_args(ScheduleKind))}.")
        if self.max_steps < 1:
            raise ValueError(f"`max_steps` must be at least 1, not {self.max_steps}.")
        if not 0 <= self.warmup_steps < self.max_steps:
            raise ValueError(f"`warmup_steps` is {self.warmup_steps}, out of 0 to {self.max_steps - 1}.")
        for name in ("warmup_start", "gamma"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"`{name}` is {getattr(self, name)}, out of 0 to 1.")
        self._check_milestones()

    def _check_milestones(self) -> None:
        if bool(self.milestones) != (self.kind == "step"):
            raise ValueError(
                f"`milestones` {list(self.milestones)} with the {self.kind!r} schedule: they go with 'step'."
            )
        bounded = (0, *self.milestones, self.max_steps)
        if self.milestones and any(a >= b for a, b in pairwise(bounded)):
            raise ValueError(f"`milestones` {list(self.milestones)} must rise between 0 and {self.max_steps}.")


def learning_rate_factor(
    kind: ScheduleKind,
    step: int,
    max_steps: int,
    warmup_steps: int,
    warmup_start: float = 0.1,
    milestones: Sequence[int] = (),
    gamma: float = 0.1,
) -> float:
    """The share of the learning rate, in [0, 1], with which the step after `step` done ones is made.

    Arguments are those of `ScheduleSettings`. From `max_steps` on a cosine stays at 0.
    """
    if step < warmup_steps:
        return warmup_start + (1 - warmup_start) * step / warmup_steps
    if kind == "cosine":
        progress = (step - warmup_steps) / max(1, max_steps - warmup_steps)
        return 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
    if kind == "step":
        return float(gamma ** bisect_right(milestones, step))
    return 1.0


def build_schedule(optimizer: Optimizer, settings: ScheduleSettings) -> LambdaLR:
    """A scheduler to step once after each step of the optimizer; all groups keep their ratios.

    It is not for `accelerator.prepare`, which would step it once a process.
    """
    return LambdaLR(
        optimizer,
        lambda step: learning_rate_factor(
            settings.kind,
            step,
            settings.max_steps,
            settings.warmup_steps,
            settings.warmup_start,
            settings.milestones,
            settings.gamma,
        ),
    )
