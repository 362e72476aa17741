"""Laws of the curves: what was logged is drawn where it belongs, whatever state the file was left in."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from hf_grounding_dino.training.curves import plot_losses, smoothed, step_text, tick_text, value_axis
from hf_grounding_dino.training.history import read_history


def metrics_file(folder: Path, lines: list[dict[str, Any]], tail: str = "") -> Path:
    file = folder / "metrics.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines) + tail)
    return file


def logged(step: int, loss: float = 1.0, **others: float) -> dict[str, Any]:
    return {"step": step, "loss": loss, "learning_rate": 1e-4, **others}


def evaluated(step: int, **scores: float) -> dict[str, Any]:
    return {"step": step, "evaluation": {f"val/{metric}": score for metric, score in scores.items()}}


def colors(image: Image.Image) -> set[tuple[int, ...]]:
    return {color for _, color in image.getcolors(maxcolors=1 << 24) or []}


def test_a_half_written_last_line_is_passed_over(tmp_path: Path) -> None:
    """Two whole lines and the beginning of a third: two steps."""
    whole = [logged(20, 3.0), logged(40, 2.0)]
    for tail in ('{"step": 60, "lo', "60", "\x00\x00", '{"step": "60"}\n[1]\n'):
        assert read_history(metrics_file(tmp_path, whole, tail)).curve("loss") == [(20, 3.0), (40, 2.0)]


def test_a_resumed_run_replaces_what_was_undone(tmp_path: Path) -> None:
    """Steps 10 to 40 were logged and 30 evaluated; resumed from 20, it logged 30 anew: 40 and the old 30 are gone."""
    lines = [logged(10, 4.0), logged(20, 3.0), logged(30, 9.0), evaluated(20, AP=0.2), logged(40, 9.0)]
    lines += [evaluated(40, AP=0.9), logged(30, 2.0), evaluated(30, AP=0.3)]
    history = read_history(metrics_file(tmp_path, lines))
    assert history.curve("loss") == [(10, 4.0), (20, 3.0), (30, 2.0)]
    assert history.scores("val/AP") == [(20, 0.2), (30, 0.3)]


def test_what_is_not_finite_or_was_not_measured_is_no_point(tmp_path: Path) -> None:
    lines = [logged(1, math.nan), logged(2, 1.0), logged(3, math.inf), evaluated(2, AP=-1.0), evaluated(3, AP=0.0)]
    history = read_history(metrics_file(tmp_path, lines))
    assert history.curve("loss") == [(2, 1.0)]
    assert history.scores("val/AP") == [(3, 0.0)]


@pytest.mark.parametrize("lines", [[], [logged(5, math.nan) | {"learning_rate": math.nan}]])
def test_nothing_to_draw_is_none(tmp_path: Path, lines: list[dict[str, Any]]) -> None:
    assert plot_losses(metrics_file(tmp_path, lines)) is None


@pytest.mark.parametrize("value", [0.0, 2.5, -1.0, 1e-12, 1e30])
def test_one_point_is_drawn(tmp_path: Path, value: float) -> None:
    """A dot in the colour of the loss and one in that of the rate."""
    image = plot_losses(metrics_file(tmp_path, [logged(20, value)]))
    assert image is not None
    assert {(0, 114, 178), (0, 158, 115), (255, 255, 255)} <= colors(image)


def test_each_panel_stands_for_what_was_logged(tmp_path: Path) -> None:
    """Two panels side by side; with terms three, the first over the whole width; with evaluations four in a square."""
    lines = [logged(step) for step in range(20, 400, 20)]
    width, height = plot_losses(metrics_file(tmp_path, lines)).size  # type: ignore[union-attr]
    with_terms = [line | {"loss_ce": 0.5, "loss_ce_dn": 0.2} for line in lines]
    assert plot_losses(metrics_file(tmp_path, with_terms)).size == (width, 2 * height)  # type: ignore[union-attr]
    whole = plot_losses(metrics_file(tmp_path, [*with_terms, evaluated(380, AP=0.5)]))
    assert whole is not None
    assert whole.size == (width, 2 * height)


def test_the_smoothed_line_keeps_a_slope_and_its_ends() -> None:
    """On a straight line the mean of as many neighbours on either side is the line itself, but for the last ones.

    100 points: 4 % of them, 4, on either side. The last value is the mean of itself and the 4 before: 99 - 2 = 97.
    """
    line = [(step, float(step)) for step in range(100)]
    result = smoothed(line)
    assert [value for _, value in result[:96]] == pytest.approx([value for _, value in line[:96]])
    assert result[-1] == (99, pytest.approx(97.0))
    assert smoothed(line[:3]) == line[:3]


def test_smoothing_takes_noise_away() -> None:
    """Values of +1 and -1 in turn: over nine of them at most 1/9 is left."""
    waves = smoothed([(step, (-1.0) ** step) for step in range(100)])
    assert max(abs(value) for _, value in waves[8:-8]) <= 1 / 9 + 1e-9


@pytest.mark.parametrize(
    ("values", "ticks"),
    [
        ([0.1, 0.93], [0, 0.2, 0.4, 0.6, 0.8, 1.0]),
        ([9.1, 11.8], [9, 10, 11, 12]),
        ([3.0], [0, 1, 2, 3]),
        ([0.0], [0, 0.2, 0.4, 0.6, 0.8, 1.0]),
        ([-0.5, 0.5], [-0.6, -0.4, -0.2, 0, 0.2, 0.4, 0.6]),
    ],
)
def test_ticks_are_round_and_hold_all_values(values: list[float], ticks: list[float]) -> None:
    """The step is the least of 1, 2, 2.5, 5 times a power of ten that needs at most about five of them."""
    axis = value_axis([values])
    assert axis.ticks() == pytest.approx(ticks)
    assert [tick_text(tick) for tick in axis.ticks()] == [f"{tick:g}" for tick in ticks]
    assert all(axis.low <= value <= axis.high for value in values)


def test_a_few_outliers_do_not_press_a_curve_flat() -> None:
    """One value of 1,000 among 99 of at most 10: the axis ends near 10, and the outlier is drawn at its end."""
    axis = value_axis([[1000.0, *np.linspace(10, 2, 99)]], outliers=True)
    assert 10 <= axis.high <= 15
    assert axis.share(1000.0) == 1.0
    assert value_axis([[1000.0, 2.0]]).high == 1000


def test_numbers_on_the_axes_are_short() -> None:
    assert [tick_text(value) for value in (0, 0.25, 12.5, 3, 5e-5, 2.5e-6)] == [
        "0", "0.25", "12.5", "3", "5e-5", "2.5e-6",
    ]  # fmt: skip
    assert [step_text(step, 3000) for step in (0, 500, 2000)] == ["0", "500", "2,000"]
    assert [step_text(step, 90_000) for step in (0, 20_000)] == ["0", "20k"]
    assert step_text(1_500_000, 2_000_000) == "1.5M"


def test_a_long_run_is_drawn_quickly(tmp_path: Path) -> None:
    """20,000 lines are thinned to what can be seen: the drawing is of the usual size."""
    lines = [logged(step * 20, 3 + 100 / step) for step in range(1, 20_001)]
    image = plot_losses(metrics_file(tmp_path, lines))
    assert image is not None and image.size == (2480, 700)
