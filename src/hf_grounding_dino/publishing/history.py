"""A run's `metrics.jsonl`, read back and plotted over the steps."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..utils.atomic import atomic_file

Point = tuple[int, float]
NOTHING_TO_MEASURE = -1.0
"""AP or AR where there is no box of that kind, as in pycocotools."""
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#332288", "#882255")
"""Okabe and Ito's colors, which colour-blind eyes tell apart, and two of Paul Tol's."""
PLOT_STYLE: Any = {
    "font.size": 10, "axes.titlesize": 11, "axes.titlelocation": "left", "axes.titleweight": "bold", "axes.grid": True,
    "axes.axisbelow": True, "axes.spines.top": False, "axes.spines.right": False, "grid.color": "#E4E4E4",
    "legend.frameon": False, "legend.fontsize": 9, "savefig.dpi": 130, "text.parse_math": False,
}  # fmt: skip

_MOST_POINTS, _MOST_EVALUATIONS = 1200, len(COLORS)
_SMOOTHED_SHARE, _LEAST_TO_SMOOTH = 0.04, 8
# A few outliers, such as the first steps, may leave the panel at its top; smoothing spreads each over nine in 100.
_SHOWN_SHARE, _HEADROOM = 0.9, 1.5
# An axis begins at 0 unless the values stay above this share of the highest.
_FAR_FROM_ZERO = 0.5
_COUNTED_IN_THOUSANDS = 20_000
_TERMS = {"loss_ce": "class", "loss_bbox": "box L1", "loss_giou": "box GIoU"}


class History(NamedTuple):
    """Numbers of a run by step, in the order of the steps.

    lines: name -> value of each logged step: the loss, its terms, the learning rate and what else was measured.
    evaluations: "<dataset>/<metric>" -> value of each evaluation; step 0 is before training.
    """

    lines: dict[int, dict[str, float]]
    evaluations: dict[int, dict[str, float]]

    def curve(self, name: str) -> list[Point]:
        """(step, value) of a logged number, where it is finite."""
        return [(step, line[name]) for step, line in self.lines.items() if math.isfinite(line.get(name, math.nan))]

    def metrics(self) -> list[str]:
        """What was evaluated, in the order of its first appearance."""
        return list(dict.fromkeys(name for scores in self.evaluations.values() for name in scores))

    def scores(self, metric: str) -> list[Point]:
        """(step, value) of a metric "<dataset>/<metric>", where there was something to measure."""
        points = [(step, scores.get(metric, math.nan)) for step, scores in self.evaluations.items()]
        return [(step, value) for step, value in points if math.isfinite(value) and value != NOTHING_TO_MEASURE]


def read_history(file: Path) -> History:
    """Read `metrics.jsonl`; a line that is no whole JSON object with a step is passed over, as a kill leaves one.

    A resumed run may log steps again that it had logged before it stopped: the later line counts, and what lies beyond
    it was undone. Evaluations at one step are joined.

    Raises:
        OSError: the file cannot be read.
    """
    lines: dict[int, dict[str, float]] = {}
    evaluations: dict[int, dict[str, float]] = {}
    last = -1
    for text in file.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            line = json.loads(text)
        except ValueError:
            continue
        step = line.get("step") if isinstance(line, dict) else None
        if not isinstance(step, int):
            continue
        if isinstance(line.get("evaluation"), dict):
            evaluations.setdefault(step, {}).update(_numbers(line["evaluation"]))
            continue
        if step <= last:
            lines = {earlier: values for earlier, values in lines.items() if earlier < step}
            evaluations = {earlier: scores for earlier, scores in evaluations.items() if earlier <= step}
        last, lines[step] = step, _numbers(line)
    return History(lines, dict(sorted(evaluations.items())))


def _numbers(values: dict[str, Any]) -> dict[str, float]:
    numeric = (item for item in values.items() if isinstance(item[1], int | float) and not isinstance(item[1], bool))
    return {name: float(value) for name, value in numeric if name != "step"}


def main_metrics(names: Iterable[str]) -> list[str]:
    """For each dataset the metric that stands for it: AP where there is one, or else its first."""
    chosen: dict[str, str] = {}
    for name in names:
        dataset, _, metric = name.rpartition("/")
        if dataset not in chosen or metric == "AP":
            chosen[dataset] = name
    return list(chosen.values())


class Curve(NamedTuple):
    """A line of a panel; an empty name is not in the legend."""

    name: str
    points: Sequence[Point]
    color: str
    alpha: float = 1.0
    width: float = 1.8
    marker: str = ""


class _Panel(NamedTuple):
    title: str
    label: str
    curves: list[Curve]
    has_outliers: bool = False


def write_curves(metrics_file: Path, image_file: Path) -> bool:
    """Plot `metrics.jsonl` as a PNG: loss, its terms, evaluations and learning rate; False where it holds no number.

    The loss is drawn as it was logged, pale, and as a moving mean.

    Raises:
        OSError: a file cannot be read or written.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    history = read_history(metrics_file)
    panels = [panel for panel in _panels(history) if any(curve.points for curve in panel.curves)]
    if not panels:
        return False
    columns = min(2, len(panels))
    # An odd one more takes the whole width, and it is the first, the loss.
    places = [0] * (len(panels) % columns) + list(range(len(panels)))
    rows: Any = [places[i : i + columns] for i in range(0, len(places), columns)]
    with rc_context(PLOT_STYLE), warnings.catch_warnings(), atomic_file(image_file) as unfinished:
        warnings.simplefilter("ignore")  # of names in letters that the font lacks
        figure = Figure(figsize=(6.4 * columns, 3.7 * len(rows)), layout="constrained")
        for place, axes in figure.subplot_mosaic(rows).items():
            _draw(axes, panels[place])
        figure.savefig(unfinished, format="png")
    return True


def _panels(history: History) -> list[_Panel]:
    loss = history.curve("loss")
    if len(loss) < _LEAST_TO_SMOOTH:
        curves = [Curve("", loss, COLORS[0], marker="o")]
    else:
        curves = [Curve("as logged", loss, COLORS[0], alpha=0.3, width=0.9)]
        curves.append(Curve("moving mean", smoothed(loss), COLORS[0], width=2.2))
    chosen = main_metrics(history.metrics())[:_MOST_EVALUATIONS]
    metrics = list(dict.fromkeys(name.rpartition("/")[2] for name in chosen))
    scores = [
        Curve(name.rpartition("/")[0] if len(metrics) == 1 else name, history.scores(name), COLORS[i], marker="o")
        for i, name in enumerate(chosen)
    ]
    rate = Curve("", history.curve("learning_rate"), COLORS[2])
    return [
        _Panel("Training loss", "loss", curves, has_outliers=True),
        _Panel("Loss terms, unweighted, summed over the layers", "loss", _terms(history), has_outliers=True),
        _Panel("Evaluation", ", ".join(metrics), scores),
        _Panel("Learning rate", "learning rate", [rate]),
    ]


def _terms(history: History) -> list[Curve]:
    """Class, L1 and GIoU, each summed over the layers that log their own; those of denoising pale."""
    names = list(dict.fromkeys(name for line in history.lines.values() for name in line))
    curves = []
    for denoising in (False, True):
        for color, (prefix, name) in zip(COLORS, _TERMS.items(), strict=False):
            sums: dict[int, float] = {}
            for member in names:
                if member.startswith(prefix) and ("_dn" in member) == denoising:
                    for step, value in history.curve(member):
                        sums[step] = sums.get(step, 0.0) + value
            points = smoothed(sorted(sums.items()))
            shown = f"{name}, denoising" if denoising else name
            curves.append(Curve(shown, points, color, 0.45 if denoising else 1.0))
    return curves


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


def _draw(axes: Any, panel: _Panel) -> None:
    curves = [curve for curve in panel.curves if curve.points]
    for curve in curves:
        stride = math.ceil(len(curve.points) / _MOST_POINTS)
        points = curve.points[::-stride][::-1]
        marker = curve.marker or ("o" if len(points) == 1 else None)
        axes.plot(
            *zip(*points, strict=True), color=curve.color, alpha=curve.alpha, lw=curve.width, marker=marker, ms=4.5
        )
    axes.set_title(panel.title)
    axes.set_ylabel(panel.label)
    values = [[value for _, value in curve.points] for curve in curves]
    top = max(map(max, values))
    if panel.has_outliers:
        top = min(top, _HEADROOM * max(float(np.quantile(of_curve, _SHOWN_SHARE)) for of_curve in values))
    low = min(map(min, values))
    low = low if low < 0 or _FAR_FROM_ZERO * top < low < top else 0.0
    if top > low:
        margin = 0.05 * (top - low)
        axes.set_ylim(low - margin if low else low, top + margin)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:.4g}")
    label_steps(axes, max(step for curve in curves for step, _ in curve.points))
    named = [(line, curve.name) for line, curve in zip(axes.lines, curves, strict=True) if curve.name]
    if named:
        handles, names = zip(*named, strict=True)
        axes.legend(handles, [f" {name}" for name in names], ncols=1 + (len(names) > 3))


def label_steps(axes: Any, last: int) -> None:
    """Label the x axis with whole steps from 0: 2,000 or 50k."""
    from matplotlib.ticker import EngFormatter, MaxNLocator

    axes.set_xlabel("step")
    axes.set_xlim(-0.015 * max(last, 1), 1.02 * max(last, 1))
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    in_thousands = last >= _COUNTED_IN_THOUSANDS
    axes.xaxis.set_major_formatter(EngFormatter(sep="") if in_thousands else lambda step, _: f"{step:,.0f}")
