"""A run drawn over its steps: the loss, its terms, the learning rate and the evaluations."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from ..inference.canvas import GREY, GRID, INK, Canvas, nice_step
from ..inference.drawing import PALETTE, Color
from .history import History, Point, read_history

_WIDTH, _HEIGHT = 620, 350  # of one panel
_LEFT, _RIGHT, _TOP, _BOTTOM = 72, 28, 58, 56
_LEGEND_ROW = 19
_TICKS = 5
# The darker colours of the palette, which stand out on white.
_COLORS: tuple[Color, ...] = tuple(PALETTE[i] for i in (4, 5, 2, 6, 0, 1, 7, 10, 9))
_MOST_POINTS = 1200
_SMOOTHED_SHARE = 0.04
_LEAST_TO_SMOOTH = 8
_TERMS = {"loss_ce": "class", "loss_bbox": "box, L1", "loss_giou": "box, GIoU"}
_MOST_EVALUATIONS = 8
# A few outliers, such as the first steps, may leave the panel at its top.
_SHOWN_SHARE = 0.98
_HEADROOM = 1.1
# An axis begins at 0 unless the values stay above this share of the highest.
_FAR_FROM_ZERO = 0.5
_LEAST_DECIMAL = 0.001
# From how many steps on they are counted in which unit.
_UNITS = ((1_000_000, 1_000_000, "M"), (20_000, 1_000, "k"), (0, 1, ""))


class Curve(NamedTuple):
    """A line of a panel: its name, empty for none in the legend, and how it is drawn."""

    name: str
    points: Sequence[Point]
    color: Color
    width: float
    dots: bool = False


class Panel(NamedTuple):
    """One pair of axes; `curves` later in the list lie above, `outliers` may leave it at its top."""

    title: str
    curves: list[Curve]
    outliers: bool = False


class Axis(NamedTuple):
    """A scale from `low` to `high` with a tick each `step`, in the units of the values."""

    low: float
    high: float
    step: float

    def ticks(self) -> list[float]:
        """Where the ticks are."""
        first, last = round(self.low / self.step), round(self.high / self.step)
        return [i * self.step for i in range(first, last + 1)]

    def share(self, value: float) -> float:
        """How far along a value lies, from 0 to 1; what lies outside is at an end."""
        return min(max((value - self.low) / (self.high - self.low), 0.0), 1.0)


def plot_losses(metrics_file: Path) -> Image.Image | None:
    """Draw a run's `metrics.jsonl`; None where it holds no number.

    The loss is drawn as it was logged, thin, and as a moving mean, thick; its terms and the evaluations beside it.
    Values that are not finite leave a gap in no other curve, and a half-written line is passed over.

    Raises:
        OSError: the file cannot be read.
    """
    history = read_history(metrics_file)
    panels = [panel for panel in _panels(history) if any(curve.points for curve in panel.curves)]
    if not panels:
        return None
    last = max(step for panel in panels for curve in panel.curves for step, _ in curve.points)
    columns = min(2, len(panels))
    canvas = Canvas(_WIDTH * columns, _HEIGHT * math.ceil(len(panels) / columns))
    # An odd one more takes the whole width, and it is the first, the loss.
    spans = [columns if i == 0 and len(panels) % columns else 1 for i in range(len(panels))]
    place = 0
    for panel, span in zip(panels, spans, strict=True):
        corner = (place % columns * _WIDTH, place // columns * _HEIGHT)
        _draw_panel(canvas, panel, corner, _WIDTH * span, max(last, 1))
        place += span
    return canvas.finished()


# --- what is drawn -----------------------------------------------------------------------------------------------


def _panels(history: History) -> list[Panel]:
    loss = history.curve("loss")
    curves = [Curve("as logged", _thinned(loss), _pale(_COLORS[0], 0.65), 0.8)]
    if len(loss) < _LEAST_TO_SMOOTH:
        curves = [Curve("", loss, _COLORS[0], 1.5, dots=True)]
    else:
        curves.append(Curve("moving mean", _thinned(smoothed(loss)), _COLORS[0], 2.5))
    rate = Curve("", _thinned(history.curve("learning_rate")), _COLORS[2], 2)
    return [
        Panel("Loss", curves, outliers=True),
        Panel("Terms of the loss, unweighted, sums over the layers", _terms(history), outliers=True),
        Panel(_title_of_evaluations(history), _evaluations(history)),
        Panel("Learning rate", [rate]),
    ]


def _terms(history: History) -> list[Curve]:
    """The three terms, each summed over the layers that log their own, and paler those of denoising."""
    curves = []
    for denoising in (False, True):
        for color, (prefix, name) in zip(_COLORS, _TERMS.items(), strict=False):
            sums: dict[int, float] = {}
            for member in history.names():
                if member.startswith(prefix) and ("_dn" in member) == denoising:
                    for step, value in history.curve(member):
                        sums[step] = sums.get(step, 0.0) + value
            points = _thinned(smoothed(list(sums.items())))
            if denoising:
                name, color = f"{name}, denoising", _pale(color, 0.55)
            curves.append(Curve(name, points, color, 2, dots=len(points) == 1))
    return curves


def main_metrics(names: Sequence[str]) -> list[str]:
    """For each set the metric that stands for it: AP where there is one, or else its first."""
    chosen: dict[str, str] = {}
    for name in names:
        data_set, _, metric = name.rpartition("/")
        if data_set not in chosen or metric == "AP":
            chosen[data_set] = name
    return list(chosen.values())


def _title_of_evaluations(history: History) -> str:
    chosen = main_metrics(history.metrics())
    metrics = {name.rpartition("/")[2] for name in chosen}
    return f"Evaluation: {metrics.pop()}" if len(metrics) == 1 else "Evaluation"


def _evaluations(history: History) -> list[Curve]:
    chosen = main_metrics(history.metrics())
    one_metric = len({name.rpartition("/")[2] for name in chosen}) == 1
    return [
        Curve(name.rpartition("/")[0] if one_metric else name, history.scores(name), _COLORS[i], 2, dots=True)
        for i, name in enumerate(chosen[:_MOST_EVALUATIONS])
    ]


def smoothed(points: Sequence[Point]) -> list[Point]:
    """Mean over the neighbours on both sides; few points stay as they are.

    As many on either side at the beginning, where the loss falls steeply, so that nothing is shifted; at the end of
    the run over those before, so that the last value is no single one.
    """
    if len(points) < _LEAST_TO_SMOOTH:
        return list(points)
    sums = np.concatenate([[0.0], np.cumsum([value for _, value in points])])
    places = np.arange(len(points))
    before = np.minimum(places, max(1, round(len(points) * _SMOOTHED_SHARE)))
    after = np.minimum(before, places[::-1])
    means = (sums[places + after + 1] - sums[places - before]) / (before + after + 1)
    return [(step, float(mean)) for (step, _), mean in zip(points, means, strict=True)]


def _thinned(points: Sequence[Point]) -> list[Point]:
    """At most about `_MOST_POINTS` of them, the last one among them."""
    stride = math.ceil(len(points) / _MOST_POINTS) or 1
    return list(points[::-stride][::-1])


def _pale(color: Color, share: float) -> Color:
    """A colour mixed with a share of white."""
    red, green, blue = (round(value + (255 - value) * share) for value in color)
    return red, green, blue


# --- drawing -----------------------------------------------------------------------------------------------------


def value_axis(curves: Sequence[Sequence[float]], *, outliers: bool = False) -> Axis:
    """Round ticks around the values of all curves; with `outliers`, the highest few of a curve may lie above."""
    highest = max(max(values) for values in curves)
    lowest = min(min(values) for values in curves)
    if outliers:
        highest = min(highest, _HEADROOM * max(float(np.quantile(values, _SHOWN_SHARE)) for values in curves))
    base = lowest if lowest < 0 or lowest > _FAR_FROM_ZERO * highest else 0.0
    if highest <= base:
        base, highest = min(0.0, base), abs(highest) or 1.0
    step = nice_step((highest - base) / _TICKS)
    low = step * math.floor(base / step + 1e-9)
    return Axis(low, low + step * max(1, math.ceil((highest - low) / step - 1e-9)), step)


def tick_text(value: float) -> str:
    """A number without superfluous digits: 0, 0.25, 12.5, 5e-5."""
    if not 0 < abs(value) < _LEAST_DECIMAL:
        return f"{value:.10g}"
    mantissa, exponent = f"{value:.6e}".split("e")
    return f"{float(mantissa):g}e{int(exponent)}"


def step_text(step: float, last: float) -> str:
    """A number of steps, in the unit that suits the last one: 2,000, 50k, 1.5M."""
    _, unit, letter = next(row for row in _UNITS if last >= row[0])
    return f"{step / unit:,.10g}{letter if step else ''}"


def _draw_panel(canvas: Canvas, panel: Panel, corner: tuple[float, float], width: float, last: int) -> None:
    rows = _legend_rows(canvas, panel, width - _LEFT - _RIGHT)
    left, right = corner[0] + _LEFT, corner[0] + width - _RIGHT
    top, bottom = corner[1] + _TOP + len(rows) * _LEGEND_ROW, corner[1] + _HEIGHT - _BOTTOM
    values = [[value for _, value in curve.points] for curve in panel.curves if curve.points]
    y_axis = value_axis(values, outliers=panel.outliers)
    x_axis = Axis(0, last, max(1.0, nice_step(last / _TICKS)))
    canvas.text((left, corner[1] + 18), panel.title, size=16, anchor="lt")
    for i, row in enumerate(rows):
        _draw_legend_row(canvas, row, left, corner[1] + 52 + i * _LEGEND_ROW)
    for tick in y_axis.ticks():
        y = bottom - (bottom - top) * y_axis.share(tick)
        canvas.line([(left, y), (right, y)], INK if tick == y_axis.low else GRID, 1)
        canvas.text((left - 8, y), tick_text(tick), size=13, anchor="rm")
    for tick in [i * x_axis.step for i in range(math.floor(last / x_axis.step) + 1)]:
        x = left + (right - left) * x_axis.share(tick)
        canvas.line([(x, bottom), (x, bottom + 5)], INK, 1)
        canvas.text((x, bottom + 10), step_text(tick, last), size=13, anchor="mt")
    canvas.text(((left + right) / 2, bottom + 30), "step", size=13, anchor="mt", color=GREY)
    for curve in panel.curves:
        path = [
            (left + (right - left) * x_axis.share(step), bottom - (bottom - top) * y_axis.share(value))
            for step, value in curve.points
        ]
        if len(path) > 1:
            canvas.line(path, curve.color, curve.width)
        if curve.dots or len(path) == 1:
            for point in path:
                canvas.dot(point, curve.color, 3.5)


def _legend_rows(canvas: Canvas, panel: Panel, width: float) -> list[list[Curve]]:
    """The named curves, as many a row as fit."""
    rows: list[list[Curve]] = []
    x = math.inf
    for curve in panel.curves:
        needed = _legend_width(canvas, curve)
        if curve.name and curve.points:
            if x + needed > width:
                rows.append([])
                x = 0.0
            rows[-1].append(curve)
            x += needed
    return rows


def _legend_width(canvas: Canvas, curve: Curve) -> float:
    return 28 + canvas.width_of(curve.name, 13) + 18


def _draw_legend_row(canvas: Canvas, row: Sequence[Curve], x: float, y: float) -> None:
    for curve in row:
        canvas.line([(x, y), (x + 22, y)], curve.color, curve.width)
        if curve.dots:
            canvas.dot((x + 11, y), curve.color, 3.5)
        canvas.text((x + 28, y), curve.name, size=13, anchor="lm")
        x += _legend_width(canvas, curve)
