"""What `comparison` measured, as a table and as curves."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from ..inference.canvas import GREY, GRID, INK, Canvas, nice_step
from ..inference.drawing import Color
from ..utils.atomic import write_atomic, write_image
from .comparison import DENOISED, OURS, STOCK, VARIANTS, ComparisonSettings, Score, Trial
from .curves import Axis, step_text, tick_text, value_axis

TABLE_FILE, PLOT_FILE = "comparison.md", "comparison.png"
SCRIPT = "python scripts/compare_losses.py"
_WIDTH, _HEIGHT = 760, 460
_LEFT, _RIGHT, _TOP, _BOTTOM = 72, 28, 84, 56
_TICKS = 6
# Okabe and Ito's colours, which stay apart for colour-blind eyes; transformers in grey, as the ground to stand on.
_COLORS: dict[str, Color] = {STOCK: (120, 120, 120), OURS: (0, 114, 178), DENOISED: (213, 94, 0)}
_PALE_SHARE = 0.6


class Mean(NamedTuple):
    """AP over the seeds after a number of steps: mean, lowest and highest."""

    step: int
    mean: float
    low: float
    high: float


def write_report(output: Path, settings: ComparisonSettings, trials: Sequence[Trial]) -> None:
    """Write `comparison.md` and `comparison.png` of all that is measured so far."""
    write_atomic(output / TABLE_FILE, table(settings, trials))
    write_image(output / PLOT_FILE, plot(trials))


def means(trials: Iterable[Trial], variant: str) -> list[Mean]:
    """A variant's AP over its seeds, where all of those that are begun were measured."""
    curves = [{score.step: score.ap for score in trial.scores} for trial in trials if trial.variant == variant]
    steps = sorted(set.intersection(*(set(curve) for curve in curves))) if curves else []
    values = [(step, [curve[step] for curve in curves]) for step in steps]
    return [Mean(step, sum(found) / len(found), min(found), max(found)) for step, found in values]


def steps_until(curve: Iterable[tuple[int, float]], level: float) -> int | None:
    """The steps before the first evaluation that is not below a level; None where there is none."""
    return next((step for step, value in curve if value >= level), None)


# --- the table ---------------------------------------------------------------------------------------------------


def table(settings: ComparisonSettings, trials: Sequence[Trial]) -> str:
    """AP at each evaluation, then how soon ours reaches what transformers' loss ends with, as Markdown."""
    curves = {variant: {at.step: at for at in means(trials, variant)} for variant in VARIANTS}
    steps = sorted({step for curve in curves.values() for step in curve})
    lines = [
        "# Which loss teaches more",
        "",
        f"`{command(settings)}`: AP on {settings.pictures} held-out pictures of Shapes after steps of"
        f" {settings.batch_size} pictures, {settings.side} pixels wide, from random weights; the mean of the"
        " seeds, and the range where there are several. What is compared how is said in"
        " `hf_grounding_dino.training.comparison`.",
        "",
        *_rows("step", VARIANTS),
        *(_row(f"{step:,}", [_range_text(curves[variant].get(step)) for variant in VARIANTS]) for step in steps),
        _row("seconds a step", [_seconds_text(trials, variant) for variant in VARIANTS]),
        "",
        "Steps until the final AP of transformers' loss is reached, at the first evaluation that is not below it, and"
        " their share of all steps:",
        "",
        *_rows("", (OURS, DENOISED)),
        *_reach_rows(settings, trials),
    ]
    return "\n".join(lines) + "\n"


def command(settings: ComparisonSettings) -> str:
    """The command that compares under these settings."""
    default = dataclasses.asdict(ComparisonSettings())
    given = {name: value for name, value in dataclasses.asdict(settings).items() if value != default[name]}
    options = [f"--{name.replace('_', '-')}" + ("" if value is True else f" {value}") for name, value in given.items()]
    return " ".join([SCRIPT, *options])


def _rows(corner: str, names: Sequence[str]) -> list[str]:
    return [_row(corner, names), "|" + "---|" * (1 + len(names))]


def _row(name: str, cells: Iterable[str]) -> str:
    return f"| {' | '.join([name, *cells])} |"


def _range_text(at: Mean | None) -> str:
    if at is None:
        return ""
    return f"{at.mean:.3f}" if at.low == at.high else f"{at.mean:.3f} ({at.low:.3f} to {at.high:.3f})"


def _seconds_text(trials: Iterable[Trial], variant: str) -> str:
    own = [trial for trial in trials if trial.variant == variant and trial.scores]
    steps = sum(trial.scores[-1].step for trial in own)
    return f"{sum(trial.seconds for trial in own) / steps:.2f}" if steps else ""


def _reach_rows(settings: ComparisonSettings, trials: Sequence[Trial]) -> list[str]:
    """For each seed that transformers' loss has finished, and for the means."""
    rows = []
    for stock in (trial for trial in trials if trial.variant == STOCK and trial.is_finished(settings)):
        own = [[trial for trial in trials if (trial.variant, trial.seed) == (v, stock.seed)] for v in (OURS, DENOISED)]
        level = stock.scores[-1].ap
        cells = [_reach_text(settings, _points(found[0].scores) if found else [], level) for found in own]
        rows.append(_row(f"seed {stock.seed}, AP {level:.3f}", cells))
    stock_mean = means(trials, STOCK)
    if rows and stock_mean[-1].step == settings.steps:
        level = stock_mean[-1].mean
        curves = [[(at.step, at.mean) for at in means(trials, variant)] for variant in (OURS, DENOISED)]
        rows.append(_row(f"means, AP {level:.3f}", [_reach_text(settings, curve, level) for curve in curves]))
    return rows


def _points(scores: Iterable[Score]) -> list[tuple[int, float]]:
    return [(score.step, score.ap) for score in scores]


def _reach_text(settings: ComparisonSettings, curve: Sequence[tuple[int, float]], level: float) -> str:
    if not curve:
        return ""
    step = steps_until(curve, level)
    return "not reached" if step is None else f"{step:,} ({step / settings.steps:.2f})"


# --- the plot ----------------------------------------------------------------------------------------------------


class _Axes(NamedTuple):
    """Where numbers lie on the paper."""

    x: Axis
    y: Axis

    def place(self, step: float, ap: float) -> tuple[float, float]:
        """Of a score."""
        height = _HEIGHT - _TOP - _BOTTOM
        return _LEFT + (_WIDTH - _LEFT - _RIGHT) * self.x.share(step), _TOP + height * (1 - self.y.share(ap))


def plot(trials: Sequence[Trial]) -> Image.Image:
    """AP over steps: the mean of the seeds thick, each seed thin; a broken line where transformers' loss ends.

    Raises:
        ValueError: nothing is measured.
    """
    measured = [trial for trial in trials if trial.scores]
    if not measured:
        raise ValueError("there is no score to draw")
    last = max(trial.scores[-1].step for trial in measured)
    y_axis = value_axis([[0.0, *(score.ap for score in trial.scores)] for trial in measured])
    axes = _Axes(Axis(0, last, max(1.0, nice_step(last / _TICKS))), y_axis)
    canvas = Canvas(_WIDTH, _HEIGHT)
    canvas.text((_LEFT, 18), "AP on held-out Shapes, from one random start each seed", size=16, anchor="lt")
    _draw_axes(canvas, axes, last)
    _draw_legend(canvas, {trial.variant for trial in measured})
    for trial in measured:
        _draw_path(canvas, axes, _points(trial.scores), _pale(_COLORS[trial.variant]), 1)
    if stock := means(measured, STOCK):
        _draw_level(canvas, axes, stock[-1].mean)
    for variant in VARIANTS:
        _draw_path(canvas, axes, [(at.step, at.mean) for at in means(measured, variant)], _COLORS[variant], 2.5, dot=4)
    return canvas.finished()


def _pale(color: Color) -> Color:
    red, green, blue = (round(value + (255 - value) * _PALE_SHARE) for value in color)
    return red, green, blue


def _draw_axes(canvas: Canvas, axes: _Axes, last: int) -> None:
    for tick in axes.y.ticks():
        (left, y), (right, _) = axes.place(0, tick), axes.place(last, tick)
        canvas.line([(left, y), (right, y)], INK if tick == axes.y.low else GRID, 1)
        canvas.text((left - 8, y), tick_text(tick), size=13, anchor="rm")
    for i in range(math.floor(last / axes.x.step) + 1):
        x, y = axes.place(i * axes.x.step, axes.y.low)
        canvas.line([(x, y), (x, y + 5)], INK, 1)
        canvas.text((x, y + 10), step_text(i * axes.x.step, last), size=13, anchor="mt")
    canvas.text(((_LEFT + _WIDTH - _RIGHT) / 2, _HEIGHT - _BOTTOM + 30), "step", size=13, anchor="mt", color=GREY)


def _draw_legend(canvas: Canvas, names: Iterable[str]) -> None:
    x, y = float(_LEFT), 56
    for name in [variant for variant in VARIANTS if variant in names]:
        canvas.line([(x, y), (x + 22, y)], _COLORS[name], 2.5)
        canvas.dot((x + 11, y), _COLORS[name], 4)
        canvas.text((x + 28, y), name, size=13, anchor="lm")
        x += 28 + canvas.width_of(name, 13) + 18
    canvas.text((_WIDTH - _RIGHT, y), "thick: mean, thin: each seed", size=13, anchor="rm", color=GREY)


def _draw_level(canvas: Canvas, axes: _Axes, level: float) -> None:
    """A broken line over the whole width."""
    (x, y), right = axes.place(0, level), _WIDTH - _RIGHT
    while x < right:
        canvas.line([(x, y), (min(x + 6, right), y)], _COLORS[STOCK], 1)
        x += 11


def _draw_path(
    canvas: Canvas, axes: _Axes, points: Iterable[tuple[int, float]], color: Color, width: float, *, dot: float = 0
) -> None:
    path = [axes.place(*point) for point in points]
    if len(path) > 1:
        canvas.line(path, color, width)
    for point in path if dot else ():
        canvas.dot(point, color, dot)
