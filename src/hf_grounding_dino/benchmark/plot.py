"""Time over the number of labels and over the size of the picture, drawn with Pillow."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

from PIL import Image, ImageDraw, ImageFont

from .rows import Row

Color = tuple[int, int, int]

_WIDTH, _HEIGHT = 1200, 470
_LEFT, _RIGHT, _TOP, _BOTTOM = 80, 40, 92, 74
_SCALE = 2  # pixels of the result for one unit here
_SMOOTH = 2  # drawn larger by this and reduced
_INK: Color = (38, 38, 38)
_GREY: Color = (110, 110, 110)
_GRID: Color = (226, 226, 226)
_WHITE: Color = (255, 255, 255)
# Okabe and Ito's colours, which stay apart for colour-blind eyes; stock in grey, as the ground that others stand on.
_COLORS: dict[str, Color] = {
    "stock float32": (120, 120, 120),
    "stock bfloat16": (165, 165, 165),
    "stock float16": (195, 195, 195),
    "ours float32": (0, 114, 178),
    "ours bfloat16": (213, 94, 0),
    "ours float16": (0, 158, 115),
}
_TICKS = 5


class Curve(NamedTuple):
    """A named side's seconds over x."""

    name: str
    points: list[tuple[float, float]]


class Panel(NamedTuple):
    """One pair of axes."""

    title: str
    x_label: str
    ticks: list[tuple[float, str]]
    curves: list[Curve]


def plot(rows: Sequence[Row]) -> Image.Image | None:
    """Draw the two sweeps, or as many as were measured; None where there are no two points of any."""
    panels = [
        panel
        for panel in (
            _panel(rows, "labels", "labels in the prompt", lambda row: float(row.labels or 0), _label_tick),
            _panel(rows, "sizes", "size of the picture, height x width (axis: pixels)", _pixels, _size_tick),
        )
        if panel is not None
    ]
    if not panels:
        return None
    canvas = _Canvas(_WIDTH * len(panels) // 2, _HEIGHT)
    for i, panel in enumerate(panels):
        _draw_panel(canvas, panel, i * _WIDTH // 2)
    return canvas.finished()


def _panel(
    rows: Sequence[Row], case: str, x_label: str, x: Callable[[Row], float], tick: Callable[[Row], str]
) -> Panel | None:
    swept = [row for row in rows if row.case == case]
    points: dict[str, dict[float, float]] = {}
    for row in swept:
        for name, timing in ((row.other, row.other_time), (row.own, row.own_time)):
            if timing.seconds and name in _COLORS:
                points.setdefault(name, {})[x(row)] = timing.median
    curves = [Curve(name, sorted(points[name].items())) for name in _COLORS if len(points.get(name, {})) > 1]
    if not curves:
        return None
    height, width = swept[0].size or (0, 0)
    fixed = f"{height} x {width}" if case == "labels" else f"{swept[0].labels} labels"
    ticks = dict(sorted((x(row), tick(row)) for row in swept))
    return Panel(f"One picture, {fixed}", x_label, list(ticks.items()), curves)


def _pixels(row: Row) -> float:
    height, width = row.size or (0, 0)
    return float(height * width)


def _label_tick(row: Row) -> str:
    return str(row.labels)


def _size_tick(row: Row) -> str:
    height, width = row.size or (0, 0)
    return f"{height} x {width}"  # the font has no multiplication sign


def _draw_panel(canvas: _Canvas, panel: Panel, offset: int) -> None:
    left, right = offset + _LEFT, offset + _WIDTH // 2 - _RIGHT
    top, bottom = _TOP, _HEIGHT - _BOTTOM
    slowest = max(seconds for curve in panel.curves for _, seconds in curve.points)
    unit, name = (1.0, "seconds") if slowest >= 1 else (1e3, "milliseconds")
    step = nice_step(slowest * unit / _TICKS)
    highest = step * math.ceil(slowest * unit / step)
    widest = max(x for x, _ in panel.ticks)

    def place(x: float, seconds: float) -> tuple[float, float]:
        return left + (right - left) * x / widest, bottom - (bottom - top) * seconds * unit / highest

    canvas.text((left, 18), panel.title, size=17, anchor="lt")
    canvas.text((left, top - 12), name, size=13, anchor="ls", color=_GREY)
    for i in range(round(highest / step) + 1):
        y = bottom - (bottom - top) * i * step / highest
        canvas.line([(left, y), (right, y)], _GRID if i else _INK, 1)
        canvas.text((left - 8, y), f"{i * step:g}", size=13, anchor="rm")
    last = -math.inf
    for x, label in panel.ticks:
        place_x = place(x, 0)[0]
        canvas.line([(place_x, bottom), (place_x, bottom + 5)], _INK, 1)
        half = canvas.width_of(label, 13) / 2
        if place_x - half > last:  # a label that would touch the one before is left out
            canvas.text((place_x, bottom + 10), label, size=13, anchor="mt")
            last = place_x + half + 6
    canvas.text(((left + right) / 2, bottom + 40), panel.x_label, size=13, anchor="mt", color=_GREY)
    _draw_legend(canvas, panel, left)
    for curve in panel.curves:
        path = [place(x, seconds) for x, seconds in curve.points]
        canvas.line(path, _COLORS[curve.name], 2.5)
        for point in path:
            canvas.dot(point, _COLORS[curve.name], 4)


def _draw_legend(canvas: _Canvas, panel: Panel, left: float) -> None:
    x = left
    for curve in panel.curves:
        canvas.line([(x, 54), (x + 22, 54)], _COLORS[curve.name], 2.5)
        canvas.dot((x + 11, 54), _COLORS[curve.name], 4)
        canvas.text((x + 28, 54), curve.name, size=13, anchor="lm")
        x += 28 + canvas.width_of(curve.name, 13) + 18


def nice_step(step: float) -> float:
    """The least of 1, 2, 2.5, 5 times a power of ten that is not below `step`."""
    power = 10 ** math.floor(math.log10(step))
    return next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= step * (1 - 1e-9))


class _Canvas:
    """Draws in units, several pixels each, so that the edges come out smooth."""

    def __init__(self, width: int, height: int) -> None:
        self.zoom = _SCALE * _SMOOTH
        self.image = Image.new("RGB", (width * self.zoom, height * self.zoom), _WHITE)
        self.draw = ImageDraw.Draw(self.image)

    def line(self, points: Sequence[tuple[float, float]], color: Color, width: float) -> None:
        scaled = [(x * self.zoom, y * self.zoom) for x, y in points]
        self.draw.line(scaled, color, round(width * self.zoom), joint="curve")

    def dot(self, centre: tuple[float, float], color: Color, radius: float) -> None:
        x, y, r = centre[0] * self.zoom, centre[1] * self.zoom, radius * self.zoom
        self.draw.ellipse((x - r, y - r, x + r, y + r), color)

    def text(self, at: tuple[float, float], text: str, *, size: int, anchor: str, color: Color = _INK) -> None:
        x, y = at[0] * self.zoom, at[1] * self.zoom
        self.draw.text((x, y), text, color, ImageFont.load_default(size * self.zoom), anchor)

    def width_of(self, text: str, size: int) -> float:
        return self.draw.textlength(text, ImageFont.load_default(size * self.zoom)) / self.zoom

    def finished(self) -> Image.Image:
        return self.image.reduce(_SMOOTH)
