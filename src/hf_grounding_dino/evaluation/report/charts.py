"""Charts of the report as inline SVG, coloured by the page's style sheet, both axes from 0 to 1."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from markupsafe import Markup

from .calibration import ScoreBin

Point = tuple[float, float]

_WIDTH, _HEIGHT = 440, 320
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 14, 10, 44
_TICKS = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
_SPARK_WIDTH, _SPARK_HEIGHT = 72, 22
_SPARK_STEP = 5
_FEW_BOXES = 10


class Line(NamedTuple):
    """A curve of a chart.

    name: for the legend, empty for none.
    points: (x, y), both in [0, 1].
    style: a class of the style sheet: "c0" to "c5", "faint".
    """

    name: str
    points: Sequence[Point]
    style: str


class Chart(NamedTuple):
    """A drawing with the entries of its legend, (name, style) each, and a sentence that says how to read it."""

    title: str
    svg: Markup
    legend: list[tuple[str, str]]
    caption: str


def line_chart(
    lines: Sequence[Line], axes: tuple[str, str], band: tuple[Sequence[Point], Sequence[Point]] | None = None
) -> Markup:
    """Curves, with a shaded band between two more of them where it is given."""
    parts = [_frame(axes)]
    if band is not None:
        edge = [*band[0], *reversed(band[1])]
        parts.append(Markup('<polygon class="band" points="{}"/>').format(_path(edge)))
    for line in lines:
        parts.append(Markup('<polyline class="line {}" points="{}"/>').format(line.style, _path(line.points)))
    return _svg(parts, f"{axes[1]} over {axes[0]}")


def reliability_chart(bins: Iterable[ScoreBin]) -> Markup:
    """The share of right boxes for each bin of scores, beside the diagonal where score and share are equal."""
    parts = [_frame(("score", "share that is right"))]
    for row in bins:
        x, y = _place((row.low, row.precision))
        right, bottom = _place((row.high, 0.0))
        few = " few" if row.boxes < _FEW_BOXES else ""
        bar = '<rect class="bar{}" x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}"><title>{}</title></rect>'
        words = f"scores {row.low:.2f} to {row.high:.2f}: {row.right:,} of {row.boxes:,} right ({row.precision:.0%})"
        parts.append(Markup(bar).format(few, x + 1, y, right - x - 2, max(bottom - y, 0.8), words))
    parts.append(Markup('<polyline class="line ideal" points="{}"/>').format(_path([(0, 0), (1, 1)])))
    return _svg(parts, "share of right boxes over score")


def sparkline(precision: Sequence[float]) -> Markup:
    """A small precision-recall curve from precision at recall 0, 0.01, ... 1; negative ones are left out."""
    shown = list(precision)[::_SPARK_STEP]
    steps = max(1, len(shown) - 1)
    path = " ".join(
        f"{1 + (_SPARK_WIDTH - 2) * i / steps:.0f},{1 + (_SPARK_HEIGHT - 2) * (1 - value):.1f}"
        for i, value in enumerate(shown)
        if value >= 0
    )
    size = f"0 0 {_SPARK_WIDTH} {_SPARK_HEIGHT}"
    return Markup('<svg class="spark" viewBox="{}" aria-hidden="true"><polyline points="{}"/></svg>').format(size, path)


def _frame(axes: tuple[str, str]) -> Markup:
    parts = []
    for tick in _TICKS:
        x, y = _place((tick, tick))
        left, bottom = _place((0.0, 0.0))
        grid = '<path class="grid" d="M{:.1f} {:.1f}H{:.1f}M{:.1f} {:.1f}V{:.1f}"/>'
        parts.append(Markup(grid).format(left, y, _WIDTH - _RIGHT, x, bottom, _TOP))
        parts.append(Markup('<text x="{:.1f}" y="{:.1f}" class="end">{:g}</text>').format(left - 7, y + 4, tick))
        parts.append(Markup('<text x="{:.1f}" y="{:.1f}" class="mid">{:g}</text>').format(x, bottom + 17, tick))
    middle_x, middle_y = _place((0.5, 0.5))
    parts.append(Markup('<text x="{:.1f}" y="{}" class="mid axis">{}</text>').format(middle_x, _HEIGHT - 6, axes[0]))
    turned = '<text class="mid axis" transform="translate(13 {:.1f}) rotate(-90)">{}</text>'
    parts.append(Markup(turned).format(middle_y, axes[1]))
    return Markup("").join(parts)


def _svg(parts: Iterable[Markup], words: str) -> Markup:
    opening = Markup('<svg class="chart" viewBox="0 0 {} {}" role="img" aria-label="{}">')
    return opening.format(_WIDTH, _HEIGHT, words) + Markup("").join(parts) + Markup("</svg>")


def _path(points: Iterable[Point]) -> str:
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in map(_place, points))


def _place(point: Point) -> Point:
    """Where a point with coordinates in [0, 1] lies on the drawing."""
    x, y = (min(max(value, 0.0), 1.0) for value in point)
    width, height = _WIDTH - _LEFT - _RIGHT, _HEIGHT - _TOP - _BOTTOM
    return _LEFT + width * x, _TOP + height * (1 - y)
