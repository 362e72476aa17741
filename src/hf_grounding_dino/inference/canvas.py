"""A picture to draw charts on, in units of several pixels each, so that the edges come out smooth."""

from __future__ import annotations

import math
from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

from .drawing import Color

INK: Color = (38, 38, 38)
GREY: Color = (110, 110, 110)
GRID: Color = (226, 226, 226)
WHITE: Color = (255, 255, 255)

_SCALE = 2  # pixels of the result for one unit here
_SMOOTH = 2  # drawn larger by this and reduced


class Canvas:
    """White paper of `width` by `height` units."""

    def __init__(self, width: int, height: int) -> None:
        self.zoom = _SCALE * _SMOOTH
        self.image = Image.new("RGB", (width * self.zoom, height * self.zoom), WHITE)
        self.draw = ImageDraw.Draw(self.image)

    def line(self, points: Sequence[tuple[float, float]], color: Color, width: float) -> None:
        """A line through points."""
        scaled = [(x * self.zoom, y * self.zoom) for x, y in points]
        self.draw.line(scaled, color, round(width * self.zoom), joint="curve")

    def dot(self, centre: tuple[float, float], color: Color, radius: float) -> None:
        """A filled circle."""
        x, y, r = centre[0] * self.zoom, centre[1] * self.zoom, radius * self.zoom
        self.draw.ellipse((x - r, y - r, x + r, y + r), color)

    def text(self, at: tuple[float, float], text: str, *, size: int, anchor: str, color: Color = INK) -> None:
        """A text at a place that `anchor` names, as in Pillow."""
        x, y = at[0] * self.zoom, at[1] * self.zoom
        self.draw.text((x, y), text, color, ImageFont.load_default(size * self.zoom), anchor)

    def width_of(self, text: str, size: int) -> float:
        """Units that a text takes."""
        return self.draw.textlength(text, ImageFont.load_default(size * self.zoom)) / self.zoom

    def finished(self) -> Image.Image:
        """The drawing, reduced."""
        return self.image.reduce(_SMOOTH)


def nice_step(step: float) -> float:
    """The least of 1, 2, 2.5, 5 times a power of ten that is not below `step`."""
    power = 10 ** math.floor(math.log10(step))
    return next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= step * (1 - 1e-9))
