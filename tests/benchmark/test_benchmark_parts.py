"""Timing, ratios, the comparison of outputs and the report, by arithmetic or on a tiny network."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest
import torch

from hf_grounding_dino.benchmark import forward, report, vocabulary
from hf_grounding_dino.benchmark.agreement import compare
from hf_grounding_dino.benchmark.kernel import Arguments, traffic
from hf_grounding_dino.benchmark.plot import plot
from hf_grounding_dino.benchmark.rows import Row, Timing
from hf_grounding_dino.benchmark.settings import TINY
from hf_grounding_dino.benchmark.subjects import Bench, build_bench, label_names
from hf_grounding_dino.benchmark.timer import interleaved
from hf_grounding_dino.inference.canvas import nice_step
from tiny import sound_stock

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def bench() -> Bench:
    return build_bench(replace(TINY, dtypes=("float32",), repeats=1, compiled=False, labels=(3,)))


def test_runs_are_interleaved_after_a_warm_up_and_failures_are_kept() -> None:
    calls: list[str] = []

    def fails() -> None:
        raise ValueError("bad\nluck")

    sides = {"a": lambda: calls.append("a"), "bad": fails, "b": lambda: (calls.append("b"), time.sleep(0.01))}
    timings = interleaved(sides, 2, CPU)
    assert calls == ["a", "b", "a", "b", "a", "b"]
    assert list(timings) == ["a", "bad", "b"]
    assert timings["bad"] == Timing((), "ValueError: bad luck")
    assert min(timings["b"].seconds) >= 0.01


def test_the_ratio_is_of_medians_and_its_range_of_pairs() -> None:
    """Medians 6 / 2; pairs 6 / 1, 4 / 2, 12 / 4."""
    row = Row("forward", "", own_time=Timing((1.0, 2.0, 4.0)), other_time=Timing((6.0, 4.0, 12.0)))
    assert row.ratio == (row.ratio.__class__)(3.0, 2.0, 6.0)
    assert Row("forward", "", own_time=Timing((1.0,)), other_time=Timing(failure="gone")).ratio is None


@sound_stock
def test_a_difference_shows(bench: Bench) -> None:
    size = bench.settings.size
    inputs = bench.inputs(size, bench.label_names(3))
    same = compare(bench.own, bench.stock, inputs, inputs, size)
    assert same.agrees and same.replayed and same.found_freely == same.detections > 0
    other = build_bench(replace(bench.settings, seed=1))
    differs = compare(other.own, bench.stock, inputs, inputs, size)
    assert not differs.agrees
    assert differs.pixels > 1
    assert "**OUTPUTS DIFFER**" in report.as_markdown([Row("forward", "", agreement=differs)], {})
    assert "**OUTPUTS DIFFER**" not in report.as_markdown([Row("forward", "", agreement=same)], {})


def test_outputs_of_an_old_stock_are_not_compared(bench: Bench) -> None:
    """Before 5.23 it told the text encoder positions of another count."""
    table = bench.stock.model.text_backbone.embeddings.position_embeddings
    hook = table.register_forward_pre_hook(lambda _, arguments: arguments[0].clamp(max=1))
    rows = list(forward.forward(bench))
    hook.remove()
    assert all(row.agreement is None for row in rows)
    assert "not comparable" in rows[0].note


def test_compiled_sides_are_timed_against_stock_compiled(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[object] = []
    monkeypatch.setattr(torch, "compile", lambda model: compiled.append(model) or model)
    changed = replace(bench, settings=replace(bench.settings, compiled=True))
    names = [(row.own, row.other) for row in forward.forward(changed)]
    assert ("ours float32", "stock float32 compiled") in names
    assert ("ours float32 compiled", "stock float32 compiled") in names
    assert compiled == [bench.stock, bench.own]


def test_labels_are_different_words_of_the_vocabulary() -> None:
    words = [f"w{letter * 3}" for letter in "abcdefghijk"]
    names = label_names(40, ["[CLS]", "##ing", "an", *words])
    assert len(set(names)) == 40
    assert names[4] == "weee wddd"
    assert {word for name in names for word in name.split()} <= set(words)
    with pytest.raises(ValueError, match="has words for 4 labels, not for 40"):
        label_names(40, ["cat", "dog"])


def test_backbone_passes_are_counted(bench: Bench) -> None:
    passes = vocabulary.BackbonePasses(bench.own)
    inputs = bench.inputs(bench.settings.size, bench.label_names(2))
    with torch.no_grad(), passes:
        bench.own(**inputs)
        bench.own(**inputs)
    assert passes.last == 2


def test_traffic_counts_what_must_move_once() -> None:
    """Value 24, locations 4, weights 2 and output 8 numbers of 4 bytes."""
    arguments = Arguments(torch.zeros(1, 3, 2, 4), torch.zeros(1, 1, 2, 1, 1, 2), torch.zeros(1, 1, 2, 1, 1))
    given, output = (24 + 4 + 2) * 4, 8 * 4
    assert traffic(arguments, backward=False) == given + output
    assert traffic(arguments, backward=True) == 3 * given + 2 * output


def test_steps_of_an_axis_are_round() -> None:
    assert [nice_step(step) for step in (0.9, 1.1, 2.1, 3, 7, 0.03)] == pytest.approx([1, 2, 2.5, 5, 10, 0.05])


def test_no_sweep_gives_no_plot() -> None:
    assert plot([Row("forward", "", own="ours float32", own_time=Timing((1.0,)), labels=1, size=(1, 1))]) is None
