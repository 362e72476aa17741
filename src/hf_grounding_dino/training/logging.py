"""What a run says while it runs: a progress bar, `metrics.jsonl`, trackers, and where the time goes."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import torch
from accelerate import Accelerator
from torch import Tensor
from tqdm import tqdm

from ..utils.printable import printable
from ..utils.progress import progress_bar

GIGABYTE = 1024**3
_SHOWN = ("loss", "loss_ce", "loss_bbox", "loss_giou")


class Stopwatch:
    """Seconds spent in named parts of the work."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def measure(self, part: str) -> Iterator[None]:
        """Add the time inside to `part`: the host's time, which need not wait for a GPU."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[part] = self.seconds.get(part, 0.0) + time.perf_counter() - start

    def shares(self, total: float) -> dict[str, float]:
        """Each part's share of the total, and the rest as "other"."""
        shares = {part: seconds / total for part, seconds in self.seconds.items()}
        return {**shares, "other": 1 - sum(shares.values())}


class MetricLogger:
    """Means of what was added since the last line: one JSON object a line, a bar for people, the trackers.

    Args:
        metrics: the file that lines are added to.
        max_steps: of the run, for the bar.
        first_step: steps done before.
    """

    def __init__(self, accelerator: Accelerator, metrics: Path, max_steps: int, first_step: int) -> None:
        self.accelerator = accelerator
        self.path = metrics
        self.enabled = accelerator.is_main_process
        self.watch = Stopwatch()
        self._since = time.perf_counter()
        self._sums: dict[str, Tensor] = {}
        self._count = 0
        self.bar = progress_bar(
            max_steps, done=first_step, name="training", unit="step", shown=self.enabled, leave=False
        )

    def add(self, terms: Mapping[str, Tensor]) -> None:
        """Count one step in; nothing is read from the device."""
        for name, value in terms.items():
            self._sums[name] = self._sums.get(name, torch.zeros_like(value)) + value.detach()
        self._count += 1
        self.bar.update()

    def log(self, step: int, learning_rate: float) -> None:
        """Write the means of all processes, show them, and begin anew."""
        now = time.perf_counter()
        names = sorted(self._sums)
        means = torch.stack([self._sums[name].float() for name in names]) / self._count
        line: dict[str, Any] = {"step": step, "learning_rate": learning_rate}
        line |= dict(zip(names, self.accelerator.reduce(means, "mean").tolist(), strict=True))
        line["seconds_per_step"] = (now - self._since) / self._count
        line["memory_gb"] = _memory_in_use(self.accelerator.device) / GIGABYTE
        self.write(line)
        losses = {name.removeprefix("loss_"): f"{line[name]:.3f}" for name in _SHOWN if name in line}
        self.bar.set_postfix({**losses, "lr": f"{learning_rate:.1e}", "GB": f"{line['memory_gb']:.1f}"})
        self._sums, self._count, self._since = {}, 0, now

    def write(self, line: Mapping[str, Any]) -> None:
        """One line of `metrics.jsonl`, and its numbers to the trackers."""
        if self.enabled:
            with self.path.open("a") as file:
                file.write(json.dumps(line) + "\n")
        numbers = {**line, **line.get("evaluation", {})}
        numbers.pop("evaluation", None)
        self.accelerator.log(numbers, step=line["step"])

    def say(self, text: str) -> None:
        """One line for people, beside the bar."""
        if self.enabled:
            tqdm.write(printable(text))


def _memory_in_use(device: torch.device) -> int:
    """Bytes: the peak of what torch allocated on a GPU, or what the process holds now."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    resident: int = psutil.Process().memory_info().rss
    return resident
