"""The benchmark beside stock transformers: every case on a tiny network, and its arithmetic."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from benchmark import agreement, command, forward, report
from benchmark.agreement import compare
from benchmark.kernel import Arguments, traffic
from benchmark.measure import Row, Timing, interleaved
from benchmark.models import Bench, build_bench, label_names
from benchmark.settings import CASES, TINY
from tiny import sound_stock


def benchmark(output: Path, *argv: str) -> int:
    quick = ["--tiny", "--no-compile", "--repeats", "1", "--dtypes", "float32", "--device", "cpu"]
    return command.main([*quick, "--output", str(output), *argv])


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of all cases; the file of ONNX, which takes a minute to write and has tests of its own, is a function here."""
    output = tmp_path_factory.mktemp("benchmark")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(forward, "export_program", runner_of)
        patch.setattr(forward, "write_onnx", lambda program, file: written_programs.append(program))
        patch.setattr(forward, "load_runner", lambda file, file_format: written_programs.pop())
        assert benchmark(output) == 0
    return output


written_programs: list[Any] = []


def runner_of(model: Any) -> Any:
    def run(inputs: dict[str, Any]) -> tuple[Any, Any]:
        with torch.inference_mode():
            output = model(**{name: torch.from_numpy(array) for name, array in inputs.items()})
        return output.logits[..., : inputs["input_ids"].shape[1]].numpy(), output.pred_boxes.numpy()

    return run


@pytest.fixture(scope="module")
def rows(written: Path) -> list[dict[str, Any]]:
    content = json.loads((written / "benchmark.json").read_text(encoding="utf-8"))
    assert set(content["environment"]) == {"hardware", "versions", "kernel", "date", "command"}
    return list(content["rows"])


@pytest.fixture(scope="module")
def bench() -> Bench:
    return build_bench(replace(TINY, dtypes=("float32",), repeats=1, compile=False, labels=(3,), device="cpu"))


@sound_stock
def test_every_case_is_measured_and_outputs_agree(rows: list[dict[str, Any]]) -> None:
    assert [case for case in CASES if not any(row["case"] == case for row in rows)] == []
    assert not [row["notes"] for row in rows if row["own"] == "–"]
    for row in rows:
        if not row["other"].startswith("original"):
            assert row["ratio"]["low"] <= row["ratio"]["median"] <= row["ratio"]["high"], row
    compared = [row["agreement"] for row in rows if row["case"] in ("forward", "labels", "sizes") and row["agreement"]]
    assert len(compared) == 2 + 3 + 2
    for found in compared:
        assert found["agrees"] and found["replayed"] and found["strict"] and found["detections"] > 0
        assert found["logits"] < 1e-3
    (train,) = [row for row in rows if row["case"] == "train"]
    assert train["measures"]["added memory, ours / stock"] > 0
    (vocabulary,) = [row for row in rows if row["case"] == "vocabulary"]
    assert vocabulary["measures"] == {"backbone passes, ours": 1, "backbone passes, stock": 2}
    onnx = [row for row in rows if row["case"] == "onnx"]
    others = ("stock float32", "ours float32")
    assert [(row["labels"], row["other"]) for row in onnx] == [(count, other) for count in (2, 5) for other in others]
    assert all(0 <= max(row["measures"].values()) < 1e-4 for row in onnx)


def test_markdown_and_plot(written: Path) -> None:
    markdown = (written / "benchmark.md").read_text(encoding="utf-8")
    assert "| times faster | range |" in markdown and "command: `scripts/benchmark --tiny" in markdown
    assert "![Time over labels and over size](benchmark.png)" in markdown
    with Image.open(written / "benchmark.png") as drawing:
        assert drawing.size == (2400, 940)
    some = Row("forward", "", "ours float32", "", Timing((1.0,)), labels=1, size=(1, 1))
    assert not report.write_plot([some], written / "none.png")


def test_a_case_that_fails_costs_its_own_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(bench: Any) -> Any:
        raise RuntimeError("no kernel image\nsecond line")
        yield

    monkeypatch.setitem(command.CASE_FUNCTIONS, "train", broken)
    assert benchmark(tmp_path, "--cases", "train,sizes") == 0
    printed = capsys.readouterr().out
    assert "not measured: RuntimeError: no kernel image second line" in printed
    assert "## Over the size of the image" in printed
    assert len(json.loads((tmp_path / "benchmark.json").read_text())["rows"]) == 1 + 2
    assert benchmark(tmp_path, "--cases", "train") == 1, "nothing was measured"


@pytest.mark.parametrize(
    ("argv", "complaint"),
    [
        (["--cases", "forward,backward"], "'backward' is not one of"),
        (["--size", "800"], "800 is not a size such as 800x1200"),
        (["--labels", "0"], "0 is not a whole number from 1 up"),
        (["--device", "nonsense"], "the device nonsense cannot be used"),
        (["--model", "/no/such"], "give either --tiny or --model"),
    ],
)
def test_mistakes_end_with_2(
    argv: list[str], complaint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        benchmark(tmp_path, *argv)
    assert end.value.code == 2 and complaint in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_runs_are_interleaved_after_a_warm_up_and_failures_are_kept() -> None:
    calls: list[str] = []

    def fails() -> None:
        raise ValueError("bad\nluck")

    sides = {"a": lambda: calls.append("a"), "bad": fails, "b": lambda: (calls.append("b"), time.sleep(0.01))}
    timings = interleaved(sides, 2, torch.device("cpu"))
    assert calls == ["a", "b", "a", "b", "a", "b"]
    assert list(timings) == ["a", "bad", "b"]
    assert timings["bad"] == Timing((), "ValueError: bad luck")
    assert len(timings["b"].seconds) == 2 and min(timings["b"].seconds) >= 0.01


def test_the_ratio_is_of_medians_and_its_range_of_pairs() -> None:
    """Medians 6 / 2; pairs 6 / 1, 4 / 2, 12 / 4."""
    row = Row("forward", "", "", "", own_time=Timing((1.0, 2.0, 4.0)), other_time=Timing((6.0, 4.0, 12.0)))
    assert row.ratio == (3.0, 2.0, 6.0)
    assert replace(row, other_time=Timing(failure="gone")).ratio is None


@sound_stock
def test_a_difference_shows(bench: Bench) -> None:
    size = bench.settings.size
    inputs = bench.inputs(size, bench.label_names(3))
    same = compare(bench.own, bench.stock, inputs, size)
    assert same.agrees and same.replayed and same.found_freely == same.detections > 0
    other = build_bench(replace(bench.settings, seed=1), only="ours")
    differs = compare(other.own, bench.stock, inputs, size)
    assert not differs.agrees and differs.pixels > 1
    for found, told in ((differs, True), (same, False)):
        markdown = report.as_markdown([Row("forward", "", "", "", agreement=found)], {})
        assert ("**OUTPUTS DIFFER**" in markdown) is told


def test_outputs_of_an_old_stock_are_not_compared(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agreement, "OUTPUTS_COMPARABLE", False)
    rows = list(forward.forward(bench))
    assert all(row.agreement is None for row in rows) and "not comparable" in rows[0].note


def test_compiled_sides_are_timed_against_stock_compiled(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[object] = []
    monkeypatch.setattr(torch, "compile", lambda model: compiled.append(model) or model)
    changed = replace(bench, settings=replace(bench.settings, compile=True))
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


def test_traffic_counts_what_must_move_once() -> None:
    """Value 24, locations 4, weights 2 and output 8 numbers of 4 bytes."""
    arguments = Arguments(torch.zeros(1, 3, 2, 4), torch.zeros(1, 1, 2, 1, 1, 2), torch.zeros(1, 1, 2, 1, 1))
    given, output = (24 + 4 + 2) * 4, 8 * 4
    assert traffic(arguments, backward=False) == given + output
    assert traffic(arguments, backward=True) == 3 * given + 2 * output
