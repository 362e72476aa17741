"""One progress bar for everything that takes long."""

from __future__ import annotations

import sys
from typing import Any

from tqdm import tqdm

from .printable import printable

_SECONDS_IN_LOGS = 30.0
"""Before the first state of the bar and between two, where no terminal overwrites the one before."""


def progress_bar(
    total: int | None,
    *,
    done: int = 0,
    name: str = "",
    unit: str = "image",
    shown: bool = True,
    in_logs: bool = True,
    leave: bool = True,
) -> Any:
    """A bar on stderr with the rate and the time that is left; in a log, a state now and then.

    Args:
        total: how many there are.
        done: of them, before.
        name: what is at work.
        unit: what is counted.
        shown: whether anything appears.
        in_logs: whether it appears where stderr is no terminal.
        leave: whether its last state stays.
    """
    terminal = sys.stderr.isatty()
    return tqdm(
        total=total,
        initial=done,
        desc=printable(name) or None,
        unit=unit,
        smoothing=0.1,
        disable=not (shown and (terminal or in_logs)),
        mininterval=0.1 if terminal else _SECONDS_IN_LOGS,
        delay=0 if terminal else _SECONDS_IN_LOGS,
        leave=leave,
    )
