"""Text of others on a terminal: file names, labels, ids and messages may hold characters that steer it."""

from __future__ import annotations

import functools
import logging
import re

# C0 and C1 controls (escape sequences begin with one of them), line and paragraph separators, and what turns the
# direction of the text around it.
_STEERING = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")


def printable(text: object) -> str:
    r"""A text for one line of a terminal, log or table: what would steer it stands there as `\u001b`, as in JSON."""
    return _STEERING.sub(lambda found: f"\\u{ord(found[0]):04x}", str(text))


def printable_lines(text: str) -> str:
    """As `printable`, of a text of several lines, whose ends stay."""
    return "\n".join(map(printable, text.split("\n")))


def one_line(error: BaseException) -> str:
    """What an error says, on one line; where it says nothing, its kind."""
    return " ".join(str(error).split()) or type(error).__name__


@functools.cache
def warn_once(logger: logging.Logger, line: str) -> None:
    """Log a warning, as `printable`, the first time that it is given."""
    logger.warning(printable(line))
