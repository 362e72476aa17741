"""Names of images that lead out of their folder: files are made by others, and name what they like."""

from __future__ import annotations

import os
import unicodedata
from pathlib import Path

from ..records import DataError


def refuse_stray(name: str, root: str | os.PathLike[str], where: str) -> None:
    """Refuse a name that leads out of a folder, or that holds characters which are no text.

    Absolute names of what is below the folder are fine; whether a file is there is not looked at, and links below the
    folder are followed.

    Args:
        name: as a file has it.
        root: the folder that names start from.
        where: the file, and the line, entry or image in it.

    Raises:
        DataError: it does.
    """
    refuse_control(name, where)
    if not is_below(Path(root, name), root):
        raise DataError(
            f"{where}: the name {name!r} leads out of the folder of the images, {os.fspath(root)}; if that is meant,"
            " name a folder that holds them all"
        )


def refuse_control(name: str, where: str) -> None:
    """Refuse a name with line ends, zeros and the like, which no file system or no list can hold.

    Raises:
        DataError: it has one.
    """
    if not name.isprintable() and any(unicodedata.category(letter) == "Cc" for letter in name):
        raise DataError(f"{where}: the name {name!r} holds characters that are no text")


def is_below(path: Path, root: str | os.PathLike[str]) -> bool:
    """Whether a path, with ".." taken at its word, is in a folder or is that folder."""
    return Path(os.path.abspath(path)).is_relative_to(os.path.abspath(root))
