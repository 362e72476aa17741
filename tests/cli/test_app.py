"""The command `app`: what it serves and writes, and its errors."""

from __future__ import annotations

import importlib.util
import shutil
import socket
from pathlib import Path
from typing import Any

import pytest
from transformers import Owlv2Config

from hf_grounding_dino.app import web
from hf_grounding_dino.assets import NANO
from hf_grounding_dino.cli import PROGRAM
from hf_grounding_dino.cli.main import main

FILES = ["README.md", "app.py", "hf_grounding_dino", "requirements.txt"]


def one_line(capsys: pytest.CaptureFixture[str]) -> str:
    """The only line of stderr, without the name of the program; stdout is empty."""
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.count("\n") == 1, printed
    assert printed.err.startswith(f"{PROGRAM}: ")
    return printed.err.removeprefix(f"{PROGRAM}: ").rstrip()


def test_the_app_is_served_and_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Served where it was told to be, with the model that ships and a word of what that knows."""
    started: dict[str, Any] = {}

    def start(app: Any, **options: Any) -> str:
        started.update(options, app=app)
        app.block_thread = lambda: None
        return "http://there"

    monkeypatch.setattr(web, "start", start)
    assert main(["app", "--host", "0.0.0.0", "--port", "9001"]) == 0
    assert capsys.readouterr().out == "http://there (Ctrl+C ends it)\n"
    app = started.pop("app")
    assert started == {"host": "0.0.0.0", "port": 9001, "share": False}
    assert any("eight drawn shapes" in str(part["props"].get("value")) for part in app.config["components"])


def test_a_port_that_is_taken(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert main(["app", "--port", str(port)]) == 2
    assert one_line(capsys).startswith(f"127.0.0.1:{port} cannot be used: the port is taken")


def test_a_space_is_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "space"
    assert main(["app", "--export-space", str(folder), "--model", str(NANO)]) == 0
    assert capsys.readouterr().out == f"{folder}\n"
    assert sorted(path.name for path in folder.iterdir()) == FILES


@pytest.mark.parametrize("argv", [[], ["--export-space", "space"]])
def test_a_model_that_detect_refuses(
    argv: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of another family, or with half of its weights: no app is served, and no Space written that could not start."""
    monkeypatch.chdir(tmp_path)
    Owlv2Config().save_pretrained("owl")
    shutil.copytree(NANO, "half")
    whole = Path("half/model.safetensors").read_bytes()
    Path("half/model.safetensors").write_bytes(whole[: len(whole) // 2])
    for model, said in (
        ("owl", "the model owl cannot be loaded: This is a model of type 'owlv2', not one of ['grounding-dino',"),
        ("half", "the weights of the model half are not whole"),
    ):
        assert main(["app", "--model", model, *argv]) == 2
        assert one_line(capsys).startswith(said)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["half", "owl"]


def test_without_gradio(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert main(["app"]) == 2
    assert one_line(capsys) == "the app needs Gradio: pip install gradio"


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--port", "0"], "argument --port: 0 is not a whole number from 1 to 65535"),
        (["--port", "many"], "argument --port: many is not a whole number from 1 to 65535"),
        (["--model", "./none"], "no such model: ./none"),
        (["--device", "toaster"], "argument --device: invalid choice: 'toaster'"),
        (["--export-space", "{full}"], "{full} is not an empty folder"),
        (["--export-space", "{full}/new", "--model", "{full}/none"], "no such model: {full}/none"),
        (["--export-space", "{full}/file/new"], "{full}/file/new cannot be written: Not a directory"),
    ],
)
def test_mistakes_are_one_line_and_2(
    argv: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    assert main(["app", *(part.format(full=tmp_path) for part in argv)]) == 2
    assert one_line(capsys).startswith(message.format(full=tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
