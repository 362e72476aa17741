"""Files that are there whole or not at all, and names that stay in their folder."""

from __future__ import annotations

import os
import unicodedata
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import TextIO

from .answers import AnnotationError

WORK_FOLDER = ".annotate"
"""Inside the output folder: the settings and the journals of a run."""

_LONGEST_PART_IN_BYTES = 240
_UNWRITABLE = ("Cc", "Cs", "Zl", "Zp")  # control characters, lone surrogates, line and paragraph separators


@contextmanager
def atomic_file(folder: Path, name: str | PurePosixPath) -> Iterator[TextIO]:
    """A text file to write, which takes its place in the output folder at the end of the block, or vanishes.

    Folders on the way are made. What a kill leaves unfinished is in `WORK_FOLDER`.

    Raises:
        AnnotationError: it cannot be written, as on a full disk.
    """
    path, unfinished = folder / name, folder / WORK_FOLDER / f"{uuid.uuid4().hex}.unfinished"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished.parent.mkdir(parents=True, exist_ok=True)
        with unfinished.open("x", encoding="utf-8", newline="\n") as file:
            yield file
        os.replace(unfinished, path)
    except OSError as error:
        raise cannot_write(path, error) from error
    finally:
        unfinished.unlink(missing_ok=True)


def write_text(folder: Path, name: str | PurePosixPath, text: str) -> None:
    """Write a whole file, as `atomic_file`."""
    with atomic_file(folder, name) as file:
        file.write(text)


def cannot_write(path: Path, error: OSError) -> AnnotationError:
    """The error for a file that could not be written."""
    return AnnotationError(
        f"{path} cannot be written: {error.strerror or error}; what is done is kept, the same command goes on with it"
    )


def is_writable_text(text: str) -> bool:
    """Whether a label or a name can stand on a line of any of the formats."""
    return not any(unicodedata.category(letter) in _UNWRITABLE for letter in text)


def name_problem(name: str) -> str | None:
    """Why no file may be called after a picture of this name, None where one may.

    A name that is absolute, on another drive or climbs with ".." could lead out of the output folder.
    """
    parts = name.replace("\\", "/").split("/")
    if not is_writable_text(name):
        return "its name holds characters that are no text"
    if not PurePosixPath(name).name:
        return "it has no name"
    if name.startswith(("/", "\\")) or PureWindowsPath(name).drive or ".." in parts:
        return "its name leads out of the output folder"
    if parts[0] == WORK_FOLDER:
        return f"its name leads into {WORK_FOLDER}"
    if max(len(part.encode()) for part in parts) > _LONGEST_PART_IN_BYTES:
        return f"a part of its name is longer than {_LONGEST_PART_IN_BYTES} bytes"
    return None
