"""Interleaved runs: what slows the machine for a while slows every side alike."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import torch

from .rows import Timing, one_line

Side = Callable[[], Any]

_WARM_UP_RUNS = {"cuda": 3}


def interleaved(sides: Mapping[str, Side], repeats: int, device: torch.device) -> dict[str, Timing]:
    """Time every side `repeats` times, in turn, after a warm-up of each.

    A side that raises is dropped, and its timing says why.
    """
    timings: dict[str, Timing] = {}
    seconds: dict[str, list[float]] = {}
    for name, side in sides.items():
        try:
            for _ in range(_WARM_UP_RUNS.get(device.type, 1)):
                side()
            synchronize(device)
            seconds[name] = []
        except Exception as error:  # whatever another package raises ends its own column alone
            timings[name] = Timing(failure=one_line(error))
    for _ in range(repeats):
        for name in [name for name in seconds if name not in timings]:
            try:
                seconds[name].append(timed(sides[name], device))
            except Exception as error:
                timings[name] = Timing(failure=one_line(error))
    return {name: timings.get(name) or Timing(tuple(seconds[name])) for name in sides}


def timed(side: Side, device: torch.device) -> float:
    """Seconds of one run, from when the device is idle until it is again."""
    synchronize(device)
    if device.type != "cuda":
        start = time.perf_counter()
        side()
        return time.perf_counter() - start
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    with torch.cuda.device(device):
        begin.record()
        side()
        end.record()
    synchronize(device)
    return begin.elapsed_time(end) / 1000


def synchronize(device: torch.device) -> None:
    """Wait until a GPU has done what was asked of it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
