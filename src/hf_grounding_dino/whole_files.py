"""Files that are there whole or not at all, whatever interrupts the writing."""

from __future__ import annotations

import os
from pathlib import Path


def write_whole(path: str | os.PathLike[str], content: str | bytes) -> Path:
    """Write a file beside its place and move it there, in place of what lies there; give its path.

    Text is written as UTF-8 with line ends as they are. What a failure leaves is removed.

    Raises:
        OSError: it cannot be written, as on a full disk; what was there before is there still.
    """
    target = Path(path)
    unfinished = target.with_name(f".{os.getpid()}.unfinished")
    try:
        unfinished.write_bytes(content.encode() if isinstance(content, str) else content)
        os.replace(unfinished, target)
    finally:
        unfinished.unlink(missing_ok=True)
    return target
