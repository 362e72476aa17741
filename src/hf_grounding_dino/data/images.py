"""Opening the images of data sets."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Final

import fsspec
from PIL import Image, UnidentifiedImageError

from ..processing.image_processing_grounding_dino import read_images, upright, why_unreadable
from ..utils.image_files import MOST_BYTES, URL_SCHEMES, fetch, open_image
from ..utils.printable import one_line
from .records import ImageSource

_ARCHIVES: Final = ("zip", "tar", "gzip", "bz2", "xz", "zstd")


def load_image(source: ImageSource | Any) -> Image.Image:
    """Open an image as the model sees it: upright, RGB, 8 bits, all pixels read.

    Modes are converted as the image processor converts them. Beside files, encoded and decoded images it takes all
    that the image processor does: URLs, arrays, tensors.

    Raises:
        ValueError: it cannot be read; the message says why and does not name it.
    """
    try:
        if isinstance(source, Image.Image):
            return _converted(source)
        if not isinstance(source, Path | bytes) and not (isinstance(source, str) and os.path.isfile(source)):
            (pixels,) = read_images([source])
            return Image.fromarray(pixels.permute(1, 2, 0).byte().contiguous().numpy())
        with open_image(source) as opened:
            return _converted(opened)
    # Damaged files lead the decoders of PIL to errors of nearly every kind.
    except Exception as error:
        raise ValueError(_reason(error)) from error


def remote_content(address: str, *, allow_local: bool = False) -> bytes:
    """The content behind an address in a row of a table: http, https, and what `fsspec` knows, such as "hf://".

    Args:
        address: as the row has it.
        allow_local: also of this machine and of local networks, and by any protocol; else on the internet and the
            Hub alone.

    Raises:
        ValueError: it cannot be had, or may not be; the message says why and does not name it.
    """
    if address.startswith(URL_SCHEMES):
        return fetch(address, public=not allow_local)
    *archives, last = address.split("::")
    known = last.startswith("hf://") and all(part.partition("://")[0] in _ARCHIVES for part in archives)
    if not (known or allow_local):
        raise ValueError("its address is neither of the internet nor of the Hub, which is not allowed here")
    try:
        with fsspec.open(address, "rb") as file:
            content: bytes = file.read(MOST_BYTES + 1)
    except Exception as error:  # the file systems have no error in common
        raise ValueError(one_line(error)) from error
    if len(content) > MOST_BYTES:
        raise ValueError(f"it has more than {MOST_BYTES:,} bytes")
    return content


def _converted(stored: Image.Image) -> Image.Image:
    image = upright(stored)
    if image.mode != "RGB" or 0 in image.size:
        (pixels,) = read_images([image])
        return Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy())
    return image.convert("RGB") if image is stored else image


def _reason(error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return "there is no such file"
    if isinstance(error, UnidentifiedImageError):
        return "it is not an image"
    cause = error.__cause__
    return why_unreadable(cause if isinstance(cause, Exception) else error)
