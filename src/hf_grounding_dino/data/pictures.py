"""Opening the pictures of data sets."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from ..image_processing_grounding_dino import read_images, upright, why_unreadable
from .records import ImageSource


def open_picture(source: ImageSource) -> Image.Image:
    """Open a picture as the model sees it: upright, RGB, 8 bits, all pixels read.

    Modes are converted as the image processor converts them.

    Raises:
        ValueError: it cannot be read; the message says why and does not name it.
    """
    try:
        if isinstance(source, Image.Image):
            return _converted(source)
        with Image.open(source if isinstance(source, Path) else BytesIO(source)) as opened:
            return _converted(opened)
    # Damaged files lead the decoders of PIL to errors of nearly every kind.
    except Exception as error:
        raise ValueError(_reason(error)) from error


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
        return "it is not a picture"
    cause = error.__cause__
    return why_unreadable(cause if isinstance(cause, Exception) else error)
