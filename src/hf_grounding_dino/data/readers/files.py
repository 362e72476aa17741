"""Files of annotations and the folders of their images: read within limits, refused in one line."""

from __future__ import annotations

import json
import os
import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any, Final

from PIL import UnidentifiedImageError

from ...processing.image_processing_grounding_dino import why_unreadable
from ...utils.documents import ObjectHook, load_json
from ...utils.image_files import image_suffixes, open_image
from ..findings import FindingLog
from ..records import DataError

IMAGE_SUFFIXES: Final = image_suffixes()
"""What names of image files end in, in lower case, with the dot."""

_ORIENTATION: Final = 0x0112
_TURNED: Final = (5, 6, 7, 8)
_THREADS: Final = 8


# --- what is in a file -------------------------------------------------------------------------------------------


def read_bytes(path: Path) -> bytes:
    """The content of a file.

    Raises:
        DataError: the file is not there, is a folder or may not be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}") from error


def read_lines(path: Path) -> list[str]:
    """The lines of a text file.

    Raises:
        DataError: the file cannot be read, or is not UTF-8.
    """
    try:
        return read_bytes(path).decode("utf-8-sig").splitlines()
    except UnicodeDecodeError:
        raise DataError(f"{path}: not UTF-8 text") from None


def read_json(path: Path) -> Any:
    """The content of a JSON file.

    Raises:
        DataError: no such file, or no JSON; the line and the column are named.
    """
    return parse_json(read_bytes(path), str(path))


def parse_json(raw: bytes, where: str, line: int | None = None, object_hook: ObjectHook | None = None) -> Any:
    """The value that UTF-8 JSON text holds; `line` is its number where the text is one line of a file.

    Raises:
        DataError: text that is no JSON, or cut off.
    """
    try:
        return load_json(raw, object_hook)
    except DataError:
        raise
    except json.JSONDecodeError as error:
        at = f"line {line or error.lineno}, column {error.colno}"
        raise DataError(f"{where}, {at}: not JSON, or cut off ({error.msg})") from None
    except UnicodeDecodeError as error:
        number = line or raw.count(b"\n", 0, error.start) + 1
        raise DataError(f"{where}, line {number}: not UTF-8 text") from None
    except ValueError as error:
        raise DataError(f"{where}, line {line or 1}: JSON that cannot be read ({error})") from None


def read_document(path: Path, lists: Sequence[str]) -> dict[str, Any]:
    """A JSON file that is one object with the lists named (the COCO family).

    Raises:
        DataError: the file is something else.
    """
    document = read_json(path)
    if not isinstance(document, dict):
        raise DataError(f"{path}: one JSON object with {', '.join(lists)} is needed, not a {type(document).__name__}")
    for name in lists:
        if not isinstance(document.get(name), list):
            raise DataError(f"{path}: has no list {name!r}")
    return document


def json_lines(path: Path) -> Iterator[tuple[int, int, bytes]]:
    """(number from 1, offset in bytes, text) of each line that is not blank, one in memory at a time.

    Raises:
        DataError: the file cannot be read.
    """
    try:
        with path.open("rb") as file:
            offset = 0
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield number, offset, line
                offset += len(line)
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}") from error


def as_integer(value: object) -> int | None:
    """A whole number given as int, as text or as float; None for everything else."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if isinstance(value, str) and re.fullmatch(r"\s*[+-]?\d{1,18}\s*", value):
        return int(value)
    return int(value) if isinstance(value, float) and value.is_integer() and abs(value) < 2**63 else None


def category_number(value: object) -> int:
    """A category's number; -1, which none has, for anything that is no whole number."""
    number = as_integer(value)
    return -1 if number is None else number


# --- images ------------------------------------------------------------------------------------------------------


def image_size(width: object, height: object, where: str, log: FindingLog) -> tuple[int, int] | None:
    """(width, height) in pixels, None where the file has none; anything but two positive numbers is "wrong size"."""
    if width is None and height is None:
        return None
    size = as_integer(width), as_integer(height)
    if size[0] is None or size[1] is None or min(size[0], size[1]) < 1 or max(size[0], size[1]) >= 2**31:
        log.add("wrong size", where, f"width {width!r} and height {height!r} are no size of an image; not used")
        return None
    return size[0], size[1]


class ImageFolder:
    """Which images are there: each folder is listed once, however many images are asked for."""

    def __init__(self, root: str | os.PathLike[str], annotations: str | os.PathLike[str]) -> None:
        """`root` is the folder that names in the file `annotations` start from.

        Raises:
            DataError: no such folder.
        """
        self.root = Path(root)
        self.annotations = os.fspath(annotations)
        self._listed: dict[str, frozenset[str]] = {}
        if not self.root.is_dir():
            raise DataError(f"{self.annotations}: its images should be in {self.root}, which is not a folder")

    def has(self, name: str, where: str | None = None) -> bool:
        """Whether a file with that name, which may hold folders, is there; `where` says what has the name.

        Raises:
            DataError: the name leads out of the folder, or holds control characters.
        """
        refuse_stray(name, self.root, where or self.annotations)
        folder, base = os.path.split(os.path.join(self.root, name))
        if folder not in self._listed:
            self._listed[folder] = _files_in(folder)
        return base in self._listed[folder]

    def check(self, name: str, where: str, log: FindingLog) -> bool:
        """As `has`; an image that is not there is the finding "missing image"."""
        there = self.has(name, where)
        if not there:
            log.add("missing image", where, f"{self.root / name} is not there; left out")
        return there


def _files_in(folder: str) -> frozenset[str]:
    try:
        with os.scandir(folder) as entries:
            return frozenset(entry.name for entry in entries if entry.is_file())
    except OSError:
        return frozenset()


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


def upright_size(source: Path | bytes | IO[bytes]) -> tuple[int, int]:
    """(width, height) in pixels of an image once its EXIF orientation is applied; the pixels are not decoded.

    Args:
        source: A file, its content, or an open file.

    Raises:
        ValueError: it is not an image; the message says why and does not name it.
    """
    try:
        with open_image(source) as image:
            # PIL decodes all of a PNG to look for an orientation behind its pixels, where writers do not put it.
            known = image.format != "PNG" or "exif" in image.info
            turned = known and image.getexif().get(_ORIENTATION) in _TURNED
            width, height = image.size
    except UnidentifiedImageError:
        raise ValueError("not an image") from None
    except Exception as error:  # damaged files lead decoders to errors of every kind
        raise ValueError(f"cannot be read: {getattr(error, 'strerror', None) or why_unreadable(error)}") from error
    if not width or not height:
        raise ValueError(f"has no pixels: {width} x {height}")
    return (height, width) if turned else (width, height)


def upright_sizes(paths: Iterable[Path]) -> Iterator[tuple[int, int] | str]:
    """`upright_size` of many files, several at a time, in order; of one that is not an image, why not."""
    with ThreadPoolExecutor(_THREADS) as threads:
        yield from threads.map(_size_or_reason, paths)


def _size_or_reason(path: Path) -> tuple[int, int] | str:
    try:
        return upright_size(path)
    except ValueError as error:
        return str(error)
