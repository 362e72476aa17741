"""Images of any kind as the model reads them: RGB, resized, normalised and padded to one canvas.

The class differs from the one it derives from in what it accepts (any mode, 16 bits, floating point in [0, 1]), in
naming the image that cannot be read, and in keeping boxes relative to the image, not to the padded canvas.
"""

from __future__ import annotations

import copy
import math
import os
import urllib.request
from base64 import b64decode
from collections.abc import Iterator
from io import IOBase
from pathlib import Path
from typing import IO, Any, Literal, cast, get_args

import numpy as np
import torch
import transformers
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor
from torchvision.transforms import InterpolationMode
from transformers import BatchFeature
from transformers.image_transforms import get_size_with_aspect_ratio
from transformers.image_utils import (
    AnnotationFormat,
    ChannelDimension,
    PILImageResampling,
    SizeDict,
    get_image_size_for_max_height_width,
)
from transformers.processing_utils import ImagesKwargs

from ..layers.context import Size
from ..utils.image_files import URL_SCHEMES, fetch, open_image
from ..utils.printable import one_line

ResizeRule = Literal["transformers", "original"]

_OWN_OPTIONS = ("resize_rule", "size_divisor")
_EXIF_ORIENTATION = 0x0112
_CLEAR_ERRORS = (OSError, ValueError, Image.DecompressionBombError)


# --- reading -----------------------------------------------------------------------------------------------------


def read_images(
    images: Any,
    input_data_format: str | ChannelDimension | None = None,
    *,
    first: int = 0,
    timeout: float | None = None,
) -> list[Tensor]:
    """Read images of any supported kind as RGB tensors `(3, height, width)`.

    Files are turned upright, as their EXIF orientation says; a PIL image in memory stays as it lies, so that its `size`
    is that of the image, as in transformers. Integers of more than 8 bits are scaled to 8 bits; floating-point arrays
    and tensors keep their values.

    Args:
        images: a PIL image, a NumPy array or a tensor (height and width first or last, grey, RGB, RGBA, or a batch
            with one dimension more), a path, a URL, an open file, the bytes of one, or a list of any of these.
        input_data_format: where the channels of arrays and tensors stand; guessed from the shape by default.
        first: the number of the first image, for messages.
        timeout: what a URL may take in all, in seconds; 60 by default.

    Raises:
        ValueError: an image cannot be read; the message has its position in the list and, where known, its name.
    """
    tensors = []
    for i, image in enumerate(flat_images(images), first):
        try:
            tensors.append(_read_image(image, input_data_format, timeout))
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # damaged files lead decoders to errors of every kind, MemoryError too
            raise ValueError(f"Image {i}{_name(image)} cannot be read: {why_unreadable(error)}") from error
    return tensors


def why_unreadable(error: Exception) -> str:
    """What a decoder has raised, in words: what only its author understands is called damage."""
    if isinstance(error, MemoryError):
        return "there is not enough memory for its pixels"
    text = one_line(error)
    return text if isinstance(error, _CLEAR_ERRORS) else f"it is damaged ({text})"


def upright(image: Image.Image) -> Image.Image:
    """The image as its EXIF orientation turns it; the very same object where nothing is to be turned."""
    return ImageOps.exif_transpose(image) if 1 < image.getexif().get(_EXIF_ORIENTATION, 1) <= 8 else image


def flat_images(images: Any) -> Iterator[Any]:
    """The single images in nested lists and in batches, in order."""
    is_batch = isinstance(images, (np.ndarray, Tensor)) and images.ndim > 3
    if is_batch or isinstance(images, (list, tuple)):
        for image in images:
            yield from flat_images(image)
    else:
        yield images


def _name(image: Any) -> str:
    name = image if isinstance(image, (str, Path)) else getattr(image, "filename", "")
    text = str(name)
    return f" ({text if len(text) <= 200 else text[:60] + '...'})" if text else ""


def _read_image(image: Any, input_data_format: str | ChannelDimension | None, timeout: float | None) -> Tensor:
    if isinstance(image, (str, Path, bytes, IOBase)):
        with _open(image, timeout) as opened:
            return _from_pil(upright(opened))
    if isinstance(image, Image.Image):
        return _from_pil(image)
    if isinstance(image, (np.ndarray, Tensor)):
        return _from_array(image, input_data_format)
    raise ValueError(f"{type(image).__name__} is not an image, an array, a tensor, a path or a URL.")


def _open(source: str | Path | bytes | IOBase, timeout: float | None) -> Image.Image:
    if isinstance(source, (bytes, IOBase)):
        return open_image(cast(bytes | IO[bytes], source))
    if isinstance(source, str) and source.startswith(URL_SCHEMES):
        return open_image(fetch(source, timeout))
    if isinstance(source, str) and source.startswith("data:"):
        with urllib.request.urlopen(source) as response:
            return open_image(response.read())
    if os.path.exists(source):
        return open_image(source)
    try:
        return open_image(b64decode(str(source), validate=True))
    except Exception:  # of the decoders too, which read what only looks like one of their files
        raise ValueError("there is no such file, and it is not a URL.") from None


def _from_pil(image: Image.Image) -> Tensor:
    if 0 in image.size:
        raise ValueError(f"it has no pixels: {image.width} x {image.height}.")
    if image.mode == "F" or image.mode.startswith("I"):
        wide = np.asarray(image)
        deep = image.mode.startswith("I;16")
        grey = torch.from_numpy(_to_8_bits(wide.astype(np.uint16) if deep else wide))
        return grey.expand(3, *grey.shape).contiguous()
    if image.mode == "P":  # PIL warns where a transparent palette is turned to RGB directly
        image = image.convert("RGBA")
    elif image.mode == "La":  # PIL knows no direct way
        image = image.convert("LA")
    rgb = image if image.mode == "RGB" else image.convert("RGB")
    return torch.from_numpy(np.array(rgb)).permute(2, 0, 1).contiguous()


def _to_8_bits(values: NDArray[Any]) -> NDArray[np.uint8]:
    """Scale by the range of the type where it has one of its own, else by the smallest usual range that holds all.

    The usual ranges are [0, 1] (floating point), 8 bits and 16 bits; values outside these are stretched.
    """
    if values.dtype == np.uint8:
        return values
    if values.dtype == np.bool_:
        return values.astype(np.uint8) * np.uint8(255)
    real = values.astype(np.float64)
    if not np.isfinite(real).all():
        raise ValueError("it has pixels that are not finite.")
    low, high = float(real.min()), float(real.max())
    if values.dtype == np.uint16:
        low, high = 0.0, 65535.0
    elif low >= 0 and high <= 65535:
        unit = values.dtype.kind == "f" and high <= 1
        low, high = 0.0, 1.0 if unit else 255.0 if high <= 255 else 65535.0
    scaled = (real - low) * (255.0 / ((high - low) or 1.0))
    return np.rint(scaled).astype(np.uint8)


def _from_array(image: NDArray[Any] | Tensor, input_data_format: str | ChannelDimension | None) -> Tensor:
    if image.ndim not in (2, 3):
        raise ValueError(f"an image has 2 or 3 dimensions, not the shape {tuple(image.shape)}.")
    if 0 in image.shape:
        raise ValueError(f"it has no pixels: shape {tuple(image.shape)}.")
    tensor = image if isinstance(image, Tensor) else torch.from_numpy(_readable(image))
    if tensor.is_floating_point():
        if not torch.isfinite(tensor).all():
            raise ValueError("it has pixels that are not finite.")
    elif tensor.dtype != torch.uint8:
        tensor = torch.from_numpy(_to_8_bits(tensor.cpu().numpy())).to(tensor.device)
    if tensor.ndim == 2:
        tensor = tensor[None]
    elif _channels_last(tuple(tensor.shape), isinstance(image, np.ndarray), input_data_format):
        tensor = tensor.permute(2, 0, 1)
    if tensor.shape[0] > 4:
        raise ValueError(f"no dimension of the shape {tuple(image.shape)} holds 1 to 4 channels.")
    grey = tensor.shape[0] <= 2  # a second or fourth channel is the transparency
    return (tensor[:1].expand(3, -1, -1) if grey else tensor[:3]).contiguous()


def _readable(array: NDArray[Any]) -> NDArray[Any]:
    """A copy, in the byte order of the machine: torch reads neither foreign orders nor read-only memory."""
    if array.dtype.kind not in "buif":
        raise ValueError(f"an image holds numbers, not {array.dtype}.")
    native = array.astype(array.dtype.newbyteorder("="))
    return native if native.dtype.kind != "f" else native.astype(np.float32)


def _channels_last(shape: tuple[int, ...], by_numpy: bool, given: str | ChannelDimension | None) -> bool:
    """Guess where the channels are: three or four before one or two, then as the library of the array has it."""
    if given is not None:
        return ChannelDimension(given) == ChannelDimension.LAST
    likely_first, likely_last = ((c in (3, 4)) + (1 <= c <= 4) for c in (shape[0], shape[-1]))
    return likely_last > likely_first or (likely_last == likely_first and by_numpy)


# --- resizing ----------------------------------------------------------------------------------------------------


def original_size(image_size: Size, shortest_edge: int, longest_edge: int) -> Size:
    """The `(height, width)` to resize to by the rule of the original repository.

    The long side is cut to `longest_edge` by rounding the short side first and computing the long one from it:
    375 x 640 becomes 781 x 1332, where transformers has 781 x 1333.
    """
    height, width = image_size
    short, long = min(image_size), max(image_size)
    if long / short * shortest_edge > longest_edge:
        shortest_edge = round(longest_edge * short / long)
    if shortest_edge == 0:  # the original fails here
        new_short, new_long = 1, longest_edge
    elif short == shortest_edge:
        return image_size
    else:
        new_short, new_long = shortest_edge, int(shortest_edge * long / short)
    return (new_long, new_short) if width < height else (new_short, new_long)


def nearest_multiple(length: int, divisor: int, longest: int | None) -> int:
    """The multiple of `divisor` nearest to `length`: at least one, and no more than `longest` where one is that small.

    Half way goes up: 48 becomes 64 with a divisor of 32.
    """
    multiples = (length + divisor // 2) // divisor
    if longest is not None:
        multiples = min(multiples, longest // divisor)
    return max(multiples, 1) * divisor


def _rounded(size: SizeDict, image_size: Size, divisor: int) -> SizeDict:
    height, width = size.height, size.width
    limits = (size.longest_edge, size.longest_edge)
    if size.max_height and size.max_width:
        limits = (size.max_height, size.max_width)
        height, width = get_image_size_for_max_height_width(image_size, *limits)
    if not height or not width:
        return size
    rounded = (nearest_multiple(side, divisor, limit) for side, limit in zip((height, width), limits, strict=True))
    return SizeDict(**dict(zip(("height", "width"), rounded, strict=True)))


def _in_range_of_bytes(image: Tensor) -> Tensor:
    """An image of floating point in [0, 1], as many libraries have them, in [0, 255]; others as they are."""
    unit = image.is_floating_point() and bool(image.min() >= 0) and bool(image.max() <= 1)
    return image * 255 if unit else image


def _check_options(resize_rule: str, size_divisor: int | None) -> None:
    if resize_rule not in get_args(ResizeRule):
        raise ValueError(f"resize_rule is one of {get_args(ResizeRule)}, not {resize_rule!r}.")
    if size_divisor is not None and size_divisor < 1:
        raise ValueError(f"size_divisor is at least 1, or None, not {size_divisor!r}.")


def _pil_resize(image: Tensor, size: Size, resample: int) -> Tensor:
    resized = Image.fromarray(image.permute(1, 2, 0).cpu().numpy()).resize(size[::-1], Image.Resampling(resample))
    return torch.from_numpy(np.array(resized)).permute(2, 0, 1).to(image.device)


# --- the processor -----------------------------------------------------------------------------------------------


class GroundingDinoImageProcessorKwargs(ImagesKwargs, total=False):
    """What can be given to the processor at its making and at each call.

    `format` and `do_convert_annotations` are those of transformers. `resize_rule` is "transformers", or "original" for
    the sizes and the resampling of the original repository. `size_divisor` rounds height and width, after resizing, to
    the nearest multiple, so that images come in few sizes (a compiled model makes a graph for each); images are
    stretched a little. None rounds nothing.
    """

    format: str | AnnotationFormat
    do_convert_annotations: bool
    resize_rule: str
    size_divisor: int | None


class GroundingDinoImageProcessor(transformers.GroundingDinoImageProcessor):
    """The image processor of transformers, with the differences named at the head of this module.

    On disk it is the one of transformers, and either loads what the other saved.
    """

    valid_kwargs = GroundingDinoImageProcessorKwargs
    resize_rule: str = "transformers"
    size_divisor: int | None = None

    def __init__(self, **kwargs: Any) -> None:
        """Make a processor; see `GroundingDinoImageProcessorKwargs`.

        Raises:
            ValueError: `resize_rule` is not one that exists, or `size_divisor` is less than 1.
        """
        super().__init__(**kwargs)
        _check_options(self.resize_rule, self.size_divisor)

    def to_dict(self) -> dict[str, Any]:
        """What is written to disk: the options of transformers, and the ones of this class that are not the default."""
        options: dict[str, Any] = super().to_dict()
        for name in _OWN_OPTIONS:
            if name in options and options[name] == getattr(type(self), name):
                del options[name]
        return options

    def preprocess(self, images: Any, annotations: Any = None, *args: Any, **kwargs: Any) -> BatchFeature:
        """Read, resize, normalise and pad images, and their annotations with them.

        Args:
            images: whatever `read_images` reads. Floating point in [0, 1] counts as such, not as nearly black,
                whether `do_rescale` is on or off.
            annotations: one COCO annotation an image, in the frame of the image as it is read.
            *args: `return_segmentation_masks` and `masks_path`, as in transformers.
            **kwargs: options for this call; see `GroundingDinoImageProcessorKwargs`.

        Raises:
            ValueError: there is no image, or one cannot be read.
        """
        given = {name: kwargs.pop(name) for name in _OWN_OPTIONS if kwargs.get(name) is not None}
        if any(value != getattr(self, name) for name, value in given.items()):
            # `resize` sees no options of the call; a copy holds them and leaves other threads alone.
            other = copy.copy(self)
            vars(other).update(given)
            _check_options(other.resize_rule, other.size_divisor)
            return other.preprocess(images, annotations, *args, **kwargs)
        tensors = read_images(images, kwargs.pop("input_data_format", None))
        if not tensors:
            raise ValueError("No images: give at least one.")
        if self._expects_bytes(kwargs):
            tensors = [_in_range_of_bytes(tensor) for tensor in tensors]
        kwargs["input_data_format"] = ChannelDimension.FIRST
        features: BatchFeature = super().preprocess(tensors, annotations, *args, **kwargs)
        return features

    def _expects_bytes(self, options: dict[str, Any]) -> bool:
        """Whether images are rescaled from [0, 255] to [0, 1]."""
        given = {name: value for name, value in options.items() if value is not None}
        factor = given.get("rescale_factor", self.rescale_factor)
        return bool(given.get("do_rescale", self.do_rescale)) and math.isclose(factor, 1 / 255)

    def resize(  # type: ignore[override]
        self,
        image: Tensor,
        size: SizeDict,
        resample: PILImageResampling | InterpolationMode | int | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """Resize an image, or a stack, by `resize_rule` and `size_divisor`; no side becomes less than one pixel."""
        original = self.resize_rule == "original"
        if size.shortest_edge and size.longest_edge:
            rule = original_size if original else get_size_with_aspect_ratio
            height, width = rule((image.shape[-2], image.shape[-1]), size.shortest_edge, size.longest_edge)
            size = SizeDict(height=max(height, 1), width=max(width, 1), longest_edge=size.longest_edge)
        if self.size_divisor is not None:
            size = _rounded(size, (image.shape[-2], image.shape[-1]), self.size_divisor)
        if original and image.dtype == torch.uint8 and size.height and size.width:
            code = resample.name if isinstance(resample, InterpolationMode) else resample
            code = getattr(Image.Resampling, code, Image.Resampling.NEAREST) if isinstance(code, str) else code
            filter_code = int(Image.Resampling.BILINEAR if code is None else code)
            stack = image.reshape(-1, *image.shape[-3:])
            resized = torch.stack([_pil_resize(one, (size.height, size.width), filter_code) for one in stack])
            return resized.reshape(*image.shape[:-2], size.height, size.width)
        resized_by_torch: Tensor = super().resize(image, size=size, resample=resample, **kwargs)
        return resized_by_torch

    def pad(  # type: ignore[override]  # as transformers itself overrides it
        self,
        image: Tensor,
        padded_size: Size,
        annotation: Any = None,
        update_bboxes: bool = True,
        fill: int = 0,
    ) -> tuple[Tensor, Tensor, Any]:
        """Pad images to the right and below; boxes stay relative to the image, whatever `update_bboxes` says."""
        image, mask, annotation = super().pad(image, padded_size, annotation, update_bboxes=False, fill=fill)
        return image, mask, annotation
