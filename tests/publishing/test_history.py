"""What a run logged is read back and plotted, whatever state the file was left in."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from matplotlib.axes import Axes
from PIL import Image

from hf_grounding_dino.publishing.history import read_history, smoothed, write_curves


def metrics_file(folder: Path, lines: list[dict[str, Any]], tail: str = "") -> Path:
    file = folder / "metrics.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines) + tail)
    return file


def logged(step: int, loss: float = 1.0, **others: float) -> dict[str, Any]:
    return {"step": step, "loss": loss, "learning_rate": 1e-4, **others}


def evaluated(step: int, **scores: float) -> dict[str, Any]:
    return {"step": step, "evaluation": {f"val/{metric}": score for metric, score in scores.items()}}


def panels(lines: list[dict[str, Any]], folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Axes]:
    """The axes that are drawn, by title."""
    drawn: dict[str, Axes] = {}
    title = Axes.set_title
    monkeypatch.setattr(Axes, "set_title", lambda axes, text: (drawn.update({text: axes}), title(axes, text)))
    assert write_curves(metrics_file(folder, lines), folder / "curves.png")
    Image.open(folder / "curves.png").verify()
    return drawn


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
def test_nothing_to_draw_is_no_file(tmp_path: Path, lines: list[dict[str, Any]]) -> None:
    assert not write_curves(metrics_file(tmp_path, lines), tmp_path / "curves.png")
    assert not (tmp_path / "curves.png").exists()


def test_each_panel_shows_what_was_logged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The loss as logged and smoothed; layers of a term added up; of an evaluation the AP, by the dataset's name."""
    lines = [logged(step, loss_ce_0=0.5, loss_ce_1=0.25, loss_ce_dn=0.2) for step in range(20, 400, 20)]
    drawn = panels([*lines, evaluated(380, AP=0.5, AP50=0.9)], tmp_path, monkeypatch)
    loss, terms, evaluation, rate = drawn.values()
    assert [len(line.get_xdata()) for line in loss.lines] == [19, 19]
    assert [line.get_ydata()[0] for line in terms.lines] == pytest.approx([0.75, 0.2])
    assert list(evaluation.lines[0].get_ydata()) == [0.5] and evaluation.get_ylabel() == "AP"
    assert [text.get_text().strip() for text in evaluation.get_legend().get_texts()] == ["val"]
    assert list(rate.lines[0].get_ydata()) == [1e-4] * 19


@pytest.mark.parametrize("value", [0.0, 2.5, -1.0, 1e-12, 1e30])
def test_one_point_is_a_dot_inside_the_axes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: float) -> None:
    loss, _ = panels([logged(20, value)], tmp_path, monkeypatch).values()
    assert loss.lines[0].get_marker() == "o"
    low, high = loss.get_ylim()
    assert low <= value <= high


def test_a_few_outliers_do_not_press_a_curve_flat(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One value of 1,000 among 99 of at most 10: the axis ends near 10."""
    lines = [logged(1, 1000.0), *(logged(step, 10 - step / 20) for step in range(2, 100))]
    loss, _ = panels(lines, tmp_path, monkeypatch).values()
    assert 10 <= loss.get_ylim()[1] <= 16


def test_a_long_run_is_thinned_and_counted_in_thousands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """20,000 lines are thinned to what can be seen, the last one among them."""
    loss, _ = panels([logged(step * 20) for step in range(1, 20_001)], tmp_path, monkeypatch).values()
    steps = loss.lines[0].get_xdata()
    assert len(steps) <= 1200 and steps[-1] == 400_000
    assert "80k" in [label.get_text() for label in loss.get_xticklabels()]


def test_odd_names_of_datasets_are_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No formula is read in them, and one that begins with a line is in the legend."""
    lines = [{"step": 1, "evaluation": {"a$\\frac{$/AP": 0.5, "_val/AP": 0.4, "\u540d/AP": 0.3}}]
    (evaluation,) = panels(lines, tmp_path, monkeypatch).values()
    assert len(evaluation.get_legend().get_texts()) == 3


def test_the_smoothed_line_keeps_a_slope_and_takes_noise_away() -> None:
    """On a straight line the mean of as many neighbours on either side is the line itself, but for the last ones.

    100 points: 4 % of them, 4, on either side. The last value is the mean of itself and the 4 before: 99 - 2 = 97. Of
    +1 and -1 in turn over nine of them at most 1/9 is left.
    """
    line = [(step, float(step)) for step in range(100)]
    result = smoothed(line)
    assert [value for _, value in result[:96]] == pytest.approx([value for _, value in line[:96]])
    assert result[-1] == (99, pytest.approx(97.0))
    assert smoothed(line[:3]) == line[:3]
    waves = smoothed([(step, (-1.0) ** step) for step in range(100)])
    assert max(abs(value) for _, value in waves[8:-8]) <= 1 / 9 + 1e-9
