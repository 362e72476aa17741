"""The command `benchmark` as people call it, on a tiny network."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from hf_grounding_dino.benchmark import runner
from hf_grounding_dino.benchmark.settings import CASES
from hf_grounding_dino.cli import PROGRAM
from hf_grounding_dino.cli.main import main
from tiny import sound_stock


def benchmark(output: Path, *argv: str) -> int:
    return main(["benchmark", "--tiny", "--no-compile", "--repeats", "1", "--output", str(output), *argv])


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("benchmark")
    assert benchmark(output, "--dtypes", "float32", "--device", "cpu") == 0
    return output


@sound_stock
def test_every_case_is_measured_and_outputs_agree(written: Path) -> None:
    content = json.loads((written / "benchmark.json").read_text(encoding="utf-8"))
    rows = content["rows"]
    assert [case for case in CASES if not any(row["case"] == case for row in rows)] == []
    for row in rows:
        if row["other"].startswith("original") or row["own"] == "–":
            continue
        assert row["ratio"]["low"] <= row["ratio"]["median"] <= row["ratio"]["high"], row
    compared = [row for row in rows if row["case"] in ("forward", "labels", "sizes") and row["agreement"]]
    assert len(compared) == 2 + 3 + 2
    for row in compared:
        agreement = row["agreement"]
        assert agreement["agrees"] and agreement["replayed"] and agreement["strict"]
        assert agreement["detections"] > 0
        assert agreement["logits"] < 1e-3
    assert set(content["environment"]) == {"hardware", "versions", "kernel", "date", "command"}


@pytest.mark.parametrize("case", CASES)
def test_no_case_fails_as_a_whole(written: Path, case: str) -> None:
    rows = json.loads((written / "benchmark.json").read_text(encoding="utf-8"))["rows"]
    assert not [row["notes"] for row in rows if row["case"] == case and row["own"] == "–"]


def test_training_measures_memory_and_the_vocabulary_counts_passes(written: Path) -> None:
    rows: list[Any] = json.loads((written / "benchmark.json").read_text(encoding="utf-8"))["rows"]
    (train,) = [row for row in rows if row["case"] == "train"]
    assert train["measures"]["added memory, ours / stock"] > 0
    (vocabulary,) = [row for row in rows if row["case"] == "vocabulary"]
    assert vocabulary["measures"] == {"backbone passes, ours": 1, "backbone passes, stock": 2}


def test_the_onnx_file_is_timed_and_compared(written: Path) -> None:
    rows: list[Any] = json.loads((written / "benchmark.json").read_text(encoding="utf-8"))["rows"]
    onnx = [row for row in rows if row["case"] == "onnx"]
    assert [(row["labels"], row["other"]) for row in onnx] == [
        (count, other) for count in (2, 5) for other in ("stock float32", "ours float32")
    ]
    for row in onnx:
        assert row["own_time"]["seconds"] and row["other_time"]["seconds"]
        assert 0 <= max(row["measures"].values()) < 1e-4


def test_markdown_and_plot(written: Path) -> None:
    markdown = (written / "benchmark.md").read_text(encoding="utf-8")
    assert "| times faster | range |" in markdown
    assert "hf-grounding-dino benchmark" in markdown
    assert "![Time over labels and over size](benchmark.png)" in markdown
    with Image.open(written / "benchmark.png") as drawing:
        assert drawing.size == (2400, 940)


def test_a_case_that_fails_costs_its_own_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(bench: Any) -> Any:
        raise RuntimeError("no kernel image\nsecond line")
        yield

    monkeypatch.setitem(runner.CASE_FUNCTIONS, "train", broken)
    assert benchmark(tmp_path, "--cases", "train,sizes", "--dtypes", "float32", "--device", "cpu") == 0
    printed = capsys.readouterr().out
    assert "not measured: RuntimeError: no kernel image second line" in printed
    assert "## Over the size of the picture" in printed
    assert len(json.loads((tmp_path / "benchmark.json").read_text())["rows"]) == 1 + 2
    assert benchmark(tmp_path, "--cases", "train", "--dtypes", "float32", "--device", "cpu") == 1, (
        "nothing was measured"
    )


@pytest.mark.parametrize(
    ("argv", "complaint"),
    [
        (["--cases", "forward,backward"], "'backward' is not one of"),
        (["--size", "800"], "800 is not a size such as 800x1200"),
        (["--labels", "0"], "0 is not a whole number from 1 up"),
        (["--dtypes", "int8"], "'int8' is not one of"),
        (["--device", "nonsense"], "the device nonsense cannot be used"),
        (["--model", "/no/such"], "give either --tiny or --model"),
    ],
)
def test_what_the_user_can_mend_is_one_line(
    argv: list[str], complaint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert benchmark(tmp_path, *argv) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"{PROGRAM}: ")
    assert complaint in line
    assert not list(tmp_path.iterdir())
