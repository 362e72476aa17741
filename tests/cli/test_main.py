"""The console command itself: what needs no model answers at once, misspelt names are told, and the shell completes."""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

import hf_grounding_dino
from hf_grounding_dino.cli import PROGRAM
from hf_grounding_dino.cli.main import COMMANDS, OLD_NAMES, main

SOURCE = Path(hf_grounding_dino.__file__).parents[1]
FORMATTED = {"validate": [], "evaluate": ["--model", "m"], "tune-thresholds": ["--model", "m"]}
LIGHT = [
    ["--help"],
    ["--version"],
    ["defect"],
    [],
    *([name, "--help"] for name in (*COMMANDS, *OLD_NAMES)),
    *([name, "--nonesuch"] for name in COMMANDS),
    ["train", "--list"],
    ["train"],
    ["train", "nosuch"],
    ["train", "nosuch.yaml"],
    *([name, *words] for name in FORMATTED if name != "validate" for words in (["--list"], ["cocoo", "--model", "m"])),
    ["evaluate", "coco", "--model", "m"],
    ["evaluate"],
    *([name, "--format", "koko", "--annotations", "a", *words] for name, words in FORMATTED.items()),
    ["detect"],
    ["detect", "a.png", "--labels", "cat", "--device", "cpuu"],
    ["export", "a.onnx", "--dtype", "float61"],
]


def test_what_needs_no_model_imports_nothing_heavy(tmp_path: Path) -> None:
    """Help, lists and misspelt names of all kinds are answered before torch is there, and so within a second."""
    script = f"""
import sys
from hf_grounding_dino.cli.main import main
heavy = "torch torchvision transformers datasets accelerate evaluate pyarrow scipy pandas gradio huggingface_hub"
for argv in {LIGHT!r}:
    code = main(argv)
    print("IMPORTED", code, argv, sorted(set(heavy.split()) & set(sys.modules)))
"""
    environment = {**os.environ, "PYTHONPATH": str(SOURCE)}
    result = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, env=environment, cwd=tmp_path
    )
    lines = [line for line in result.stdout.splitlines() if line.startswith("IMPORTED")]
    expected = [(0 if {"--help", "--list", "--version"} & set(argv) else 2, argv) for argv in LIGHT]
    assert lines == [f"IMPORTED {code} {argv} []" for code, argv in expected]


def test_help_names_the_commands_and_no_old_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    printed = capsys.readouterr().out
    assert all(f"\n    {name}" in printed for name in COMMANDS) and not any(name in printed for name in OLD_NAMES)
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith(f"{PROGRAM} ")


@pytest.mark.parametrize(
    ("argv", "meant"),
    [
        (["detct"], "detect"),
        (["validte", "--annotations", "a.json"], "validate"),
        (["detect", "--lables", "cat"], "--labels"),
        (["annotate", "--ouput=there"], "--output"),
        (["detect", "--dtype", "bflot16"], "bfloat16"),
        (["detect", "--device", "cudaa:1"], "cuda"),
        (["train", "finetune_smal"], "finetune_small"),
        (["validate", "--annotations", "a", "--format", "cocoo"], "coco"),
        (["evaluate", "--annotations", "a", "--format", "vocc", "--model", "m"], "voc"),
        (["export", "a.onnx", "--format", "openvno"], "openvino"),
    ],
)
def test_the_name_that_was_meant_is_told(argv: list[str], meant: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Also where something that is required is missing because of it."""
    assert main(argv) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"{PROGRAM}: ") and line.endswith(f"; did you mean {meant}?")


def test_what_follows_a_double_dash_or_holds_a_space_is_no_option(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["detect", "--labels", "--a cat", "--", "--b.png"]) == 2
    assert capsys.readouterr().err == f"{PROGRAM}: no model: give --model with a repo of the Hub or a folder; nano " + (
        "ships, but it knows eight drawn shapes in eight colours and nothing of the world\n"
    )


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("tun", ["tune-thresholds "]),
        ("detect --thr", ["--threshold "]),
        ("detect --dtype b", ["bfloat16 "]),
        ("train coco_o", ["coco_open_set", "coco_ov_48_17"]),
        ("evaluate lvis_m", ["lvis_minival "]),
    ],
)
def test_the_shell_completes(line: str, offered: list[str], tmp_path: Path) -> None:
    """Commands, options, choices, recipes and benchmarks, with the imports of `--help`."""
    line = f"{PROGRAM} {line}"
    asked = {"_ARGCOMPLETE": "1", "COMP_LINE": line, "COMP_POINT": str(len(line)), "_ARGCOMPLETE_IFS": "\n"}
    asked |= {"_ARGCOMPLETE_STDOUT_FILENAME": str(tmp_path / "offered"), "PYTHONPATH": str(SOURCE)}
    script = "import sys; sys.modules['torch'] = None; from hf_grounding_dino.cli.main import main; main()"
    subprocess.run([sys.executable, "-c", script], env={**os.environ, **asked}, check=True)
    assert (tmp_path / "offered").read_text().splitlines() == offered


def test_module(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["", "detect", "b.png", "--labels", "cat", "--model", "nano"])
    with pytest.raises(SystemExit) as end:
        runpy.run_module("hf_grounding_dino", run_name="__main__")
    assert end.value.code == 2
    assert capsys.readouterr().err == f"{PROGRAM}: b.png: no such file\n"
