"""The command `train` as people call it, on the tiny run of four steps."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import HfApi, constants
from safetensors.torch import load_file, save_file

from hf_grounding_dino import GroundingDinoForObjectDetection
from hf_grounding_dino.cli import PROGRAM
from hf_grounding_dino.cli.main import main
from hf_grounding_dino.publishing import publish as publishing
from hf_grounding_dino.training.checkpoint import RunFolder
from hf_grounding_dino.training.recipe import read_recipe
from hf_grounding_dino.training.recipes import recipe_names
from hf_grounding_dino.training.train_state import TrainState, load_model
from publishing.hub_on_loopback import OWNER, TOKEN, hub_on_loopback
from training.runs import logged, wait_for_a_line, write_recipe

NOWHERE = "http://127.0.0.1:9"
"""Nothing listens there."""
HELD_OUT = "eval=[{format: shapes, annotations: 'val?count=2&width=96&height=64'}]"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where data and model are, for all runs."""
    return tmp_path_factory.mktemp("home")


@pytest.fixture
def recipe(home: Path, tmp_path: Path) -> Path:
    """A recipe whose run is `tmp_path / "run"`."""
    return write_recipe(home, output_dir=str(tmp_path / "run"))


def train(recipe: Path | str, *assignments: str, resume: bool = False) -> int:
    options = [part for assignment in assignments for part in ("--set", assignment)]
    return main(["train", str(recipe), *options, *(["--resume"] if resume else [])])


def one_line(capsys: pytest.CaptureFixture[str]) -> str:
    """The only line of stderr, without the name of the program; stdout is empty."""
    printed = capsys.readouterr()
    lines = printed.err.splitlines()
    assert len(lines) == 1 and printed.out == "", printed
    assert lines[0].startswith(f"{PROGRAM}: ")
    return lines[0].removeprefix(f"{PROGRAM}: ")


def test_a_run_prints_its_scores_and_no_word_of_the_libraries(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], recwarn: pytest.WarningsRecorder
) -> None:
    """Measured at 0 and at 4: a line each, then a table of three metrics, the seconds, and where things are.

    On stderr are bars alone, and of what libraries have to say about checkpointing and saving nothing.
    """
    capsys.readouterr()
    recwarn.clear()
    assert train(recipe, HELD_OUT, "gradient_checkpointing=true") == 0
    printed = capsys.readouterr()
    assert not recwarn.list
    odd, *lines = printed.out.splitlines()
    assert re.fullmatch(
        r"data: unused category, 24 times \(\S+: 'red circle' has no box\); `hf-grounding-dino validate` says more", odd
    )
    assert [line.split(":")[0] for line in lines[:2]] == ["step 0", "step 4"]
    assert lines[2].split() == ["before", "after"]
    names = [f"shapes val detection/{metric}" for metric in ("AP", "AP50", "AP75")]
    assert [line[: len(name)] for line, name in zip(lines[3:6], names, strict=True)] == names
    assert len({len(line) for line in lines[2:6]}) == 1, "columns end below one another"
    assert " s: " in lines[6] and "forward" in lines[6]
    assert lines[7:] == [f"best/ (step 4), last/, curves.png, examples.png and report.json are in {tmp_path / 'run'}"]
    bars = {part.split(":")[0].strip(" \x1b[A") for part in printed.err.replace("\n", "\r").split("\r")}
    assert bars <= {"", "training", "shapes val detection"}


def test_nothing_needs_a_network(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No socket to anywhere is opened and no name is looked up, though nobody said that there is no network."""
    tried: list[Any] = []

    def refuse(*where: Any, **_: Any) -> None:
        tried.append(where)
        raise OSError("no network in this test")

    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    for door in ("connect", "connect_ex"):
        monkeypatch.setattr(socket.socket, door, refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    source = read_recipe(str(recipe)).train[0]
    held_out = f"{{format: coco, annotations: {source.annotations}, images: {source.images}}}"
    assert train(recipe, f"eval=[{held_out}]", "evaluate_every=2", "draw_every=2") == 0
    assert not tried


def started(recipe: Path, *changes: str, **environment: str) -> subprocess.Popen[str]:
    """A run of 100,000 steps in a process of its own, with two that read images for it."""
    changes = ("max_steps=100000", "schedule=constant", "num_workers=2", *changes)
    command = [sys.executable, "-m", "hf_grounding_dino", "train", str(recipe)]
    command += [part for change in changes for part in ("--set", change)]
    variables = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **environment}
    return subprocess.Popen(command, env=variables, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def refuses_another(recipe: Path, run: Path, capsys: pytest.CaptureFixture[str], resume: bool) -> None:
    capsys.readouterr()
    assert train(recipe, "max_steps=3", "schedule=constant", resume=resume) == 2
    refusal = f"another run is at work in {run}: name another output_dir"
    assert capsys.readouterr().err.splitlines()[-1].endswith(refusal)


def test_a_kill_frees_the_folder_at_once(recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Nobody else trains there before, and what was killed by -9 goes on."""
    run = tmp_path / "run"
    process = started(recipe, "save_every=2")
    try:
        wait_for_a_line(run / "metrics.jsonl", process)
        while RunFolder(run).newest_state() is None:
            assert process.poll() is None
            time.sleep(0.02)
        refuses_another(recipe, run, capsys, resume=True)
        assert process.poll() is None
    finally:
        process.kill()
        process.communicate()
    steps = len(logged(run, "step"))
    assert train(recipe, f"max_steps={steps}", "schedule=constant", resume=True) == 0
    assert logged(run, "step") == list(range(1, steps + 1))


def test_a_model_that_is_not_whole_is_not_trained(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Transformers would make the missing weights up."""
    start = tmp_path / "start"
    for part in load_model(read_recipe(str(recipe)).model):
        part.save_pretrained(start)
    weights = load_file(start / "model.safetensors")
    save_file({k: v for k, v in weights.items() if k != "model.level_embed"}, start / "model.safetensors")
    assert train(recipe, f"model={start}") == 2
    assert one_line(capsys) == f"the model {start} lacks 1 of its weights, such as model.level_embed"
    (start / "model.safetensors").write_bytes((start / "model.safetensors").read_bytes()[:5000])
    assert train(recipe, f"model={start}") == 2
    assert one_line(capsys).startswith(f"the weights of the model {start} are not whole")


def test_a_signal_stops_it_with_a_state_to_go_on_from(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of 100,000 steps n are done when SIGTERM comes: exit code 130, a state and a model of step n; then one more.

    Over both parts the steps 1, 2, ... n + 1 are logged once each. Nobody else trains there before there is a state.
    What was stopped is not published: the first line would say whether that worked.
    """
    run = tmp_path / "run"
    process = started(recipe, "save_every=1000000", f"push_to_hub={OWNER}/tiny", HF_ENDPOINT=NOWHERE, HF_TOKEN=TOKEN)
    try:
        wait_for_a_line(run / "metrics.jsonl", process)
        refuses_another(recipe, run, capsys, resume=False)
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == 130, err
    state = RunFolder(run).newest_state()
    assert state is not None
    steps = int(json.loads((state / "step.json").read_text())["step"])
    assert f"stopped after step {steps} of 100000; go on with --resume\n" in out and "Traceback" not in err
    assert out.splitlines()[-1].endswith(f"last/ and report.json are in {run}"), "nothing is drawn in a hurry"
    assert not (run / "examples.png").exists()
    assert json.loads((run / "last" / "step.json").read_text()) == {"step": steps}
    capsys.readouterr()
    assert train(recipe, f"max_steps={steps + 1}", "schedule=constant", resume=True) == 0
    assert "stopped" not in capsys.readouterr().out
    assert logged(run, "step") == list(range(1, steps + 2))
    GroundingDinoForObjectDetection.from_pretrained(run / "last")


def test_too_little_memory_is_one_line(
    recipe: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(TrainState, "update", lambda _: torch.empty(2**60))
    assert train(recipe) == 2
    assert "no memory for 4 images at once: choose a smaller micro_batch_size" in capsys.readouterr().err


def test_the_best_model_is_published_when_all_steps_are_done(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with hub_on_loopback() as hub:
        hub_here(monkeypatch, hub.endpoint)
        assert train(recipe, "max_steps=1", f"push_to_hub={OWNER}/tiny") == 0
        assert f"published best/ to {hub.endpoint}/{OWNER}/tiny" in capsys.readouterr().out.splitlines()
        assert hub.commits[0]["model.safetensors"] == (tmp_path / "run" / "best" / "model.safetensors").read_bytes()
        assert {"README.md", "curves.png", "examples.png", "recipe.yaml"} <= hub.commits[0].keys()


def test_a_push_that_fails_loses_nothing_and_says_how_to_repeat_it(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """All steps are done: exit code 0, models and report are there."""
    folder = tmp_path / "my run"
    hub_here(monkeypatch, NOWHERE)
    assert train(recipe, "max_steps=1", f"output_dir={folder}", f"push_to_hub={OWNER}/tiny") == 0
    out = capsys.readouterr().out.splitlines()
    (line,) = [line for line in out if line.startswith("not published: ")]
    assert line.startswith(f"not published: {OWNER}/tiny: {NOWHERE} cannot be reached")
    assert line.endswith(f"; try again with: {PROGRAM} publish '{folder}' --repo-id {OWNER}/tiny")
    assert json.loads((folder / "report.json").read_text())["steps"] == 1
    assert all((folder / name / "model.safetensors").is_file() for name in ("best", "last"))


def test_a_repo_that_cannot_be_is_refused_before_the_first_step(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    monkeypatch.setattr(publishing, "get_token", lambda: TOKEN)
    assert train(recipe, "push_to_hub=a/b/c") == 2
    assert one_line(capsys).startswith("a/b/c: ")
    monkeypatch.setattr(publishing, "get_token", lambda: None)
    assert train(recipe, f"push_to_hub={OWNER}/tiny") == 2
    assert "hf auth login" in one_line(capsys)
    assert not (tmp_path / "run").exists()


def hub_here(monkeypatch: pytest.MonkeyPatch, endpoint: str) -> None:
    """Let what is published go to `endpoint`, without Xet."""
    monkeypatch.setattr(publishing, "get_token", lambda: TOKEN)
    monkeypatch.setattr(publishing, "HfApi", partial(HfApi, endpoint=endpoint))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


def test_the_list_names_every_recipe(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--list"]) == 0
    rows = [line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines()]
    assert [name for name, _ in rows] == recipe_names()
    assert all(summary for _, summary in rows)


def test_what_show_prints_is_the_same_recipe(recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """1e-5 and a list of nothing among its options; nothing is begun."""
    for name in (str(recipe), "shapes"):
        capsys.readouterr()
        changes = ["max_steps=7", "learning_rate=1e-5", "train.0.weight=3", "freeze=[]"]
        assert main(["train", name, "--show", *(part for change in changes for part in ("--set", change))]) == 0
        shown = tmp_path / "shown.yaml"
        shown.write_text(capsys.readouterr().out)
        assert read_recipe(str(shown)) == read_recipe(name, changes)
        assert read_recipe(str(shown)).learning_rate == 1e-5
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["{recipe}", "--set", "learning_rat=1"], "{recipe}: unknown option learning_rat; did you mean learning_rate?"),
        (
            ["{recipe}", "--set", "keep=[{{annotation: x}}]"],
            "{recipe}: unknown option retain.0.annotation; did you mean",
        ),
        (["{recipe}", "--resume"], "nothing to resume from in {folder}/run/state"),
        (["{folder}/none.yaml"], "{folder}/none.yaml: No such file or directory"),
        (["fintune"], "there is no recipe fintune; there are "),
        ([], "name a recipe: "),
        (["{recipe}", "--resme"], "unrecognized arguments: --resme"),
    ],
)
def test_mistakes_are_one_line_and_2(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], argv: list[str], message: str
) -> None:
    places = {"recipe": recipe, "folder": tmp_path}
    capsys.readouterr()
    assert main(["train", *(part.format(**places) for part in argv)]) == 2
    assert message.format(**places) in one_line(capsys)
    assert not (tmp_path / "run").exists()
