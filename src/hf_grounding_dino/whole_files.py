"""Files that are there whole or not at all, whatever interrupts the writing."""

from __future__ import annotations

import os
from pathlib import Path


def write_whole(path: str | os.PathLike[str], content: str | bytes) -> Path:
    """Write a file beside its place and move it there, in place of what lies there; give its path.

    Text is written as UTF-8 with line ends as they are. What a failure leaves is removed.

    Raises:
        OSError: it cannot be written, as on a full disk; it is named, and what was there before is there still.
    """
    target = Path(path)
    unfinished = target.with_name(f".{os.getpid()}.unfinished")
    try:
        unfinished.write_bytes(content.encode() if isinstance(content, str) else content)
        os.replace(unfinished, target)
    except OSError as error:
        # A full disk is told by an error without a file.
        raise OSError(error.errno, error.strerror or str(error), str(target)) from error
    finally:
        unfinished.unlink(missing_ok=True)
    return target
