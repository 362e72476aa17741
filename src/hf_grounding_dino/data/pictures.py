"""Opening the pictures of data sets."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path

from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from ..image_processing_grounding_dino import read_images
from .records import ImageSource


def open_picture(source: ImageSource) -> Image.Image:
    """Open a picture as the model sees it: upright, RGB, 8 bits, all pixels read.

    Modes are converted as the image processor converts them.

    Raises:
        ValueError: it cannot be read; the message says why and does not name it.
    """
    try:
        if isinstance(source, Image.Image):
            return _upright(source)
        with Image.open(source if isinstance(source, Path) else BytesIO(source)) as opened:
            return _upright(opened)
    # Damaged files lead the decoders of PIL to errors of nearly every kind.
    except Exception as error:
        raise ValueError(_reason(error)) from error


def _upright(image: Image.Image) -> Image.Image:
    if image.mode != "RGB" or 0 in image.size:
        (pixels,) = read_images([image])
        return Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy())
    turned = image.getexif().get(ExifTags.Base.Orientation, 1) != 1
    return ImageOps.exif_transpose(image) if turned else image.convert("RGB")


def _reason(error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return "there is no such file"
    if isinstance(error, UnidentifiedImageError):
        return "it is not a picture"
    return " ".join(str(error.__cause__ or error).split()) or type(error).__name__
