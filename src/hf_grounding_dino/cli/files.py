"""The files of the commands: which images are meant, what their results are called, how they are written."""

from __future__ import annotations

import glob
import io
import itertools
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from urllib.parse import unquote, urlsplit

from PIL import Image, ImageOps

from hf_grounding_dino.utils.atomic import write_atomic

from . import UserError

_URL_SCHEMES = ("http://", "https://")
# What is taken from a folder; a file that is named itself may end in anything.
_IMAGE_SUFFIXES = (
    *(".avif", ".bmp", ".gif", ".jfif", ".jp2", ".jpeg", ".jpg", ".pbm"),
    *(".pgm", ".png", ".pnm", ".ppm", ".tif", ".tiff", ".webp"),
)
_JPEG_SUFFIXES = (".jpg", ".jpeg", ".jfif")
_JPEG_QUALITY = 92
_LARGEST_JPEG_SIDE = 65_500
_LONGEST_STEM_IN_BYTES = 200


def find_images(names: Iterable[str], leave_out: Path | None = None) -> tuple[list[str], list[str]]:
    """Read each name as a file, a folder (all images in it, at any depth), a pattern ("a/**/*.jpg") or a URL.

    Args:
        names: as the user wrote them.
        leave_out: the folder of the results, whose images are not taken where a folder around it is meant.

    Returns:
        The paths and URLs in order, each once, and a line about each name that stands for no image.
    """
    found: dict[str, None] = {}
    problems = []
    for name in names:
        matches = list(_matches(name, leave_out))
        found.update(dict.fromkeys(matches))
        if not matches:
            kind = "no image in this folder" if os.path.isdir(name) else "no such file"
            problems.append(f"{name}: {'no file matches' if _is_pattern(name) else kind}")
    return list(found), problems


def _is_pattern(name: str) -> bool:
    return glob.has_magic(name) and not os.path.exists(name)


def _matches(name: str, leave_out: Path | None) -> Iterator[str]:
    if name.startswith(_URL_SCHEMES) or os.path.isfile(name):
        yield name
        return
    if os.path.isdir(name):
        root = Path(name)
        files = [path for path in root.rglob("*") if _is_visible_image(path, root)]
    else:
        root = Path(*itertools.takewhile(lambda part: not glob.has_magic(part), Path(name).parts))
        files = [Path(match) for match in glob.glob(name, recursive=True) if os.path.isfile(match)]
    results = None if leave_out is None else leave_out.resolve()
    for path in sorted(files):
        ours = results is not None and path.resolve().is_relative_to(results)
        if not ours or (results is not None and root.resolve().is_relative_to(results)):
            yield str(path)


def _is_visible_image(path: Path, folder: Path) -> bool:
    hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
    return not hidden and path.suffix.lower() in _IMAGE_SUFFIXES and path.is_file()


def name_results(sources: Sequence[str], folder: Path) -> dict[str, str]:
    """The file name of each image's drawing in `folder`: its own, with a number if taken; see `encode_image_file`.

    Nothing but the drawing has that name without its suffix, and none takes the place of one of the images.
    """

    def place(name: str) -> str:
        return str((folder / name).resolve()).casefold()  # some file systems do not tell A from a

    taken = {str(Path(source).resolve()).casefold() for source in sources if not source.startswith(_URL_SCHEMES)}
    names = {}
    for source in sources:
        stem, suffix = image_stem(source), _drawing_suffix(source)
        for name in itertools.chain([stem], (f"{stem}-{i}" for i in itertools.count(2))):
            if place(name) not in taken and place(f"{name}{suffix}") not in taken:
                break
        taken.add(place(name))
        names[source] = f"{name}{suffix}"
    return names


def _drawing_suffix(source: str) -> str:
    """That of the format a drawing is kept in: JPEG of a JPEG, which as PNG would be several times as large."""
    path = unquote(urlsplit(source).path) if source.startswith(_URL_SCHEMES) else source
    return ".jpg" if path.lower().endswith(_JPEG_SUFFIXES) else ".png"


def encode_image_file(drawing: Image.Image, suffix: str) -> bytes:
    """The bytes of a file with this suffix, ".jpg" or ".png"."""
    content = io.BytesIO()
    if suffix == ".jpg":
        if max(drawing.size) > _LARGEST_JPEG_SIDE:
            drawing = ImageOps.contain(drawing, (_LARGEST_JPEG_SIDE, _LARGEST_JPEG_SIDE))
        drawing.save(content, format="JPEG", quality=_JPEG_QUALITY, subsampling=0)  # coloured lines stay sharp
    else:
        drawing.save(content, format="PNG")
    return content.getvalue()


def image_stem(source: str) -> str:
    """The name of an image without folder and suffix, short enough for any file system."""
    path = unquote(urlsplit(source).path) if source.startswith(_URL_SCHEMES) else source
    stem = Path(path).stem.encode(errors="surrogateescape")[:_LONGEST_STEM_IN_BYTES].decode(errors="ignore")
    return stem.strip(". ") or "image"


def check_folder(folder: Path) -> None:
    """Refuse a folder for results that could not be made; nothing is made yet.

    Raises:
        UserError: there is a file in its way, or a folder that may not be written to.
    """
    there = next((path for path in (folder, *folder.parents) if os.path.lexists(path)), Path())
    if not there.is_dir():
        raise UserError(f"the folder {folder} cannot be made: {there} is a file")
    if not os.access(there, os.W_OK | os.X_OK):
        raise UserError(f"the folder {there} cannot be written to")


def make_folder(folder: Path) -> None:
    """Make a folder for results.

    Raises:
        UserError: it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"the folder {folder} cannot be made: {error.strerror}") from error


def write_file(path: Path, content: bytes) -> None:
    """Write a file that is there whole or not at all, in place of what lies there.

    Raises:
        UserError: it cannot be written.
    """
    try:
        write_atomic(path, content)
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror or error}") from error
