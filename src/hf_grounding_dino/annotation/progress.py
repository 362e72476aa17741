"""How far a long run is: a bar on a terminal, a line now and then in a log."""

from __future__ import annotations

import sys
import time
from types import TracebackType

from tqdm import tqdm

_SECONDS_BETWEEN_LINES = 30.0


class Progress:
    """Pictures done of all, the rate, and how long the rest takes, on stderr."""

    def __init__(self, total: int, done: int, *, shown: bool) -> None:
        """Begin with `done` of `total`; nothing appears where it is not `shown`."""
        terminal = sys.stderr.isatty()
        self._bar = tqdm(total=total, initial=done, unit="picture", disable=not (shown and terminal))
        self._lines = shown and not terminal
        self._total, self._before, self._done = total, done, done
        self._start = self._last = time.monotonic()

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.close()

    def advance(self, count: int) -> None:
        """Count pictures that are done."""
        self._done += count
        self._bar.update(count)
        now = time.monotonic()
        if self._lines and now - self._last >= _SECONDS_BETWEEN_LINES:
            self._last = now
            seconds = now - self._start
            line = tqdm.format_meter(self._done, self._total, seconds, unit="picture", initial=self._before, ncols=0)
            sys.stderr.write(f"{line}\n")
            sys.stderr.flush()
