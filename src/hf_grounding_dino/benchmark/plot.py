"""Time over the number of labels and over the size of the picture, drawn with Pillow."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

from PIL import Image

from ..inference.canvas import GREY, GRID, INK, Canvas, nice_step
from ..inference.drawing import Color
from .rows import Row

_WIDTH, _HEIGHT = 1200, 470
_LEFT, _RIGHT, _TOP, _BOTTOM = 80, 40, 92, 74
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
    canvas = Canvas(_WIDTH * len(panels) // 2, _HEIGHT)
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


def _draw_panel(canvas: Canvas, panel: Panel, offset: int) -> None:
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
    canvas.text((left, top - 12), name, size=13, anchor="ls", color=GREY)
    for i in range(round(highest / step) + 1):
        y = bottom - (bottom - top) * i * step / highest
        canvas.line([(left, y), (right, y)], GRID if i else INK, 1)
        canvas.text((left - 8, y), f"{i * step:g}", size=13, anchor="rm")
    last = -math.inf
    for x, label in panel.ticks:
        place_x = place(x, 0)[0]
        canvas.line([(place_x, bottom), (place_x, bottom + 5)], INK, 1)
        half = canvas.width_of(label, 13) / 2
        if place_x - half > last:  # a label that would touch the one before is left out
            canvas.text((place_x, bottom + 10), label, size=13, anchor="mt")
            last = place_x + half + 6
    canvas.text(((left + right) / 2, bottom + 40), panel.x_label, size=13, anchor="mt", color=GREY)
    _draw_legend(canvas, panel, left)
    for curve in panel.curves:
        path = [place(x, seconds) for x, seconds in curve.points]
        canvas.line(path, _COLORS[curve.name], 2.5)
        for point in path:
            canvas.dot(point, _COLORS[curve.name], 4)


def _draw_legend(canvas: Canvas, panel: Panel, left: float) -> None:
    x = left
    for curve in panel.curves:
        canvas.line([(x, 54), (x + 22, 54)], _COLORS[curve.name], 2.5)
        canvas.dot((x + 11, 54), _COLORS[curve.name], 4)
        canvas.text((x + 28, 54), curve.name, size=13, anchor="lm")
        x += 28 + canvas.width_of(curve.name, 13) + 18
