"""How large images are, read from the beginnings of their files."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Final

from PIL import UnidentifiedImageError

from ...processing.image_processing_grounding_dino import why_unreadable
from ...utils.image_files import image_suffixes, open_image

IMAGE_SUFFIXES: Final = image_suffixes()
"""What names of image files end in, in lower case, with the dot."""

_ORIENTATION: Final = 0x0112
_TURNED: Final = (5, 6, 7, 8)
_THREADS: Final = 8


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
