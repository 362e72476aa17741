"""Compare AP over steps under transformers' loss and under ours: python scripts/compare_losses.py.

OUTPUT gets comparison.json, comparison.md and comparison.png. Stopped and started again, it goes on with the runs that
are not finished.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from loss_comparison import DENOISED, OURS, STOCK, VARIANTS, ComparisonSettings, Score, Trial, compare, read_trials
from matplotlib import rc_context
from matplotlib.figure import Figure

from hf_grounding_dino.publishing.history import COLORS, PLOT_STYLE, label_steps
from hf_grounding_dino.utils.atomic import atomic_file, write_atomic

TABLE_FILE, PLOT_FILE = "comparison.md", "comparison.png"
SCRIPT = "python scripts/compare_losses.py"
# Transformers in grey, as the ground to stand on.
VARIANT_COLORS = {STOCK: "#787878", OURS: COLORS[0], DENOISED: COLORS[1]}


class Mean(NamedTuple):
    """AP over the seeds after a number of steps: mean, lowest and highest."""

    step: int
    mean: float
    low: float
    high: float


def write_report(output: Path, settings: ComparisonSettings, trials: Sequence[Trial]) -> None:
    """Write `comparison.md` and `comparison.png` of all that is measured so far."""
    write_atomic(output / TABLE_FILE, table(settings, trials))
    plot(trials, output / PLOT_FILE)


def means(trials: Iterable[Trial], variant: str) -> list[Mean]:
    """A variant's AP over its seeds, where all of those that are begun were measured."""
    curves = [{score.step: score.ap for score in trial.scores} for trial in trials if trial.variant == variant]
    steps = sorted(set.intersection(*(set(curve) for curve in curves))) if curves else []
    values = [(step, [curve[step] for curve in curves]) for step in steps]
    return [Mean(step, sum(found) / len(found), min(found), max(found)) for step, found in values]


def steps_until(curve: Iterable[tuple[int, float]], level: float) -> int | None:
    """The steps before the first evaluation that is not below a level; None where there is none."""
    return next((step for step, value in curve if value >= level), None)


def table(settings: ComparisonSettings, trials: Sequence[Trial]) -> str:
    """AP at each evaluation, then how soon ours reaches what transformers' loss ends with, as Markdown."""
    curves = {variant: {at.step: at for at in means(trials, variant)} for variant in VARIANTS}
    steps = sorted({step for curve in curves.values() for step in curve})
    lines = [
        "# Which loss teaches more",
        "",
        f"`{command(settings)}`: AP on {settings.images} held-out images of Shapes after steps of"
        f" {settings.batch_size} images, {settings.side} pixels wide, from random weights; the mean of the"
        " seeds, and the range where there are several. What is compared how is said in"
        " `scripts/loss_comparison.py`.",
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


def plot(trials: Sequence[Trial], file: Path) -> None:
    """Plot AP over steps: the mean of the seeds thick, each seed thin; a broken line where transformers' loss ends.

    Raises:
        ValueError: nothing is measured.
    """
    measured = [trial for trial in trials if trial.scores]
    if not measured:
        raise ValueError("there is no score to draw")
    with rc_context(PLOT_STYLE), atomic_file(file) as unfinished:
        figure = Figure(figsize=(7.6, 4.6), layout="constrained")
        axes = figure.subplots()
        for trial in measured:
            steps, values = zip(*_points(trial.scores), strict=True)
            axes.plot(steps, values, color=VARIANT_COLORS[trial.variant], lw=0.8, alpha=0.45)
        if stock := means(measured, STOCK):
            axes.axhline(stock[-1].mean, color=VARIANT_COLORS[STOCK], lw=1, ls="--")
        for variant in VARIANTS:
            if curve := means(measured, variant):
                steps, values = [at.step for at in curve], [at.mean for at in curve]
                axes.plot(steps, values, color=VARIANT_COLORS[variant], lw=2.2, marker="o", ms=4.5, label=variant)
        axes.set_title("AP on held-out Shapes, from one random start each seed")
        axes.set_ylabel("AP (thick: mean, thin: each seed)")
        axes.set_ylim(bottom=0)
        label_steps(axes, max(trial.scores[-1].step for trial in measured))
        axes.legend()
        figure.savefig(unfinished, format="png")


def main() -> None:
    """Read the command line, train and measure, write table and plot."""
    default = ComparisonSettings()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("runs/comparison"))
    parser.add_argument("--steps", type=int, default=default.steps, help="of each run")
    parser.add_argument("--seeds", type=int, default=default.seeds, help="how many, each with a run of every variant")
    parser.add_argument("--every", type=int, default=default.every, help="steps between evaluations")
    parser.add_argument("--images", type=int, default=default.images, help="held-out ones to measure on")
    parser.add_argument("--batch-size", type=int, default=default.batch_size)
    parser.add_argument("--learning-rate", type=float, default=default.learning_rate)
    parser.add_argument("--side", type=int, default=default.side, help="of the images, in pixels")
    parser.add_argument(
        "--negatives", type=int, default=default.negatives, help="most labels that are not in the image"
    )
    parser.add_argument("--denoising-queries", type=int, default=default.denoising_queries)
    parser.add_argument("--closed", action="store_true", help="all labels in every prompt, in one order")
    parser.add_argument("--threads", type=int, default=1, help="of the arithmetic")
    options = vars(parser.parse_args())
    output = options.pop("output")
    torch.set_num_threads(options.pop("threads"))
    try:
        settings = ComparisonSettings(**options)
        read_trials(output, settings)
    except ValueError as error:
        parser.error(str(error))
    write_report(output, settings, compare(settings, output))


if __name__ == "__main__":
    main()
