"""The images of the worst errors: cut around what went wrong, two frames drawn, small enough to embed."""

from __future__ import annotations

import base64
import io
from typing import NamedTuple

from PIL import Image, ImageDraw

from ...data.images import load_image
from ...inference.drawing import PALETTE, Color, Rectangle, box_frame
from .diagnostics import Error

# Okabe and Ito's sky blue and vermilion: apart for every eye, and on most images.
TRUTH_COLOR: Color = PALETTE[1]
FOUND_COLOR: Color = PALETTE[5]

_SIDE = 320
_LEAST_VIEW = 96.0
_CONTEXT = 2.2
_TRUTH_LINE, _FOUND_LINE = 7, 3
_BLACK: Color = (0, 0, 0)
_WHITE: Color = (255, 255, 255)
_QUALITY = 80


class View(NamedTuple):
    """The part of an image that is shown, in its pixels, and how many pixels of the drawing one of them makes."""

    left: int
    top: int
    right: int
    bottom: int
    scale: float


def error_image(error: Error) -> str | None:
    """A JPEG of at most 320 pixels a side as a data URI: ground truth in blue, the prediction in red over it.

    None where the image cannot be read.
    """
    try:
        image = load_image(error.image)
    except ValueError:
        return None
    boxes = [mark.box for mark in (error.truth, error.found) if mark is not None]
    view = view_of(boxes, image.size)
    size = (max(1, round((view.right - view.left) * view.scale)), max(1, round((view.bottom - view.top) * view.scale)))
    drawing = image.resize(size, Image.Resampling.LANCZOS, box=view[:4])
    pen = ImageDraw.Draw(drawing)
    # The thin frame over the thick one: both are seen where they are the same.
    if error.truth is not None:
        _draw_frame(pen, _on_drawing(error.truth.box, view, size), TRUTH_COLOR, _BLACK, _TRUTH_LINE)
    if error.found is not None:
        _draw_frame(pen, _on_drawing(error.found.box, view, size), FOUND_COLOR, _WHITE, _FOUND_LINE)
    content = io.BytesIO()
    drawing.save(content, "JPEG", quality=_QUALITY, optimize=True)
    return f"data:image/jpeg;base64,{base64.b64encode(content.getvalue()).decode('ascii')}"


def view_of(boxes: list[tuple[float, ...]], size: tuple[int, int]) -> View:
    """The part of an image of this size (width, height) that shows the boxes and something around them."""
    x0, y0 = (min(box[i] for box in boxes) for i in (0, 1))
    x1, y1 = (max(box[i] for box in boxes) for i in (2, 3))
    side = max((x1 - x0) * _CONTEXT, (y1 - y0) * _CONTEXT, _LEAST_VIEW)
    left, right = _interval((x0 + x1) / 2, side, size[0])
    top, bottom = _interval((y0 + y1) / 2, side, size[1])
    return View(left, top, right, bottom, _SIDE / max(right - left, bottom - top))


def _interval(center: float, side: float, length: int) -> tuple[int, int]:
    """An interval of this length around the centre, moved inside the image, cut to it where it is too long."""
    width = max(1, min(round(side), length))
    start = min(max(round(center - width / 2), 0), length - width)
    return start, start + width


def _on_drawing(box: tuple[float, ...], view: View, size: tuple[int, int]) -> Rectangle:
    starts = (view.left, view.top) * 2
    x0, y0, x1, y1 = (round((value - start) * view.scale) for value, start in zip(box, starts, strict=True))
    return box_frame({"xmin": x0, "ymin": y0, "xmax": x1, "ymax": y1}, 1, size)


def _draw_frame(pen: ImageDraw.ImageDraw, frame: Rectangle, color: Color, edge: Color, line: int) -> None:
    left, top, right, bottom = frame.left, frame.top, frame.right - 1, frame.bottom - 1
    # An edge keeps the line visible on a ground of its own colour.
    pen.rectangle((left - 1, top - 1, right + 1, bottom + 1), outline=edge, width=1)
    pen.rectangle((left, top, right, bottom), outline=color, width=line)
