"""The app as a Space: settings that the Hub takes, and an app.py that runs."""

from __future__ import annotations

import contextlib
import json
import os
import re
import runpy
import socket
import subprocess
import sys
import time
import tomllib
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from urllib.request import urlopen

import gradio
import pytest
from gradio_client import Client, handle_file
from huggingface_hub import SpaceCard
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

import hf_grounding_dino
from hf_grounding_dino.app import space
from hf_grounding_dino.app.space import export_space
from hf_grounding_dino.assets import DEMO_IMAGE, NANO
from tiny import tiny_model

COLORS = {"red", "yellow", "green", "blue", "indigo", "purple", "pink", "gray"}
KNOWN = {
    *("title", "emoji", "colorFrom", "colorTo", "sdk", "sdk_version", "python_version", "app_file", "license"),
    *("short_description", "models", "tags", "pinned"),
}
PACKAGE = Path(hf_grounding_dino.__file__).parent
SOURCE = PACKAGE.parent
FILES = ["README.md", "app.py", "hf_grounding_dino", "requirements.txt"]


def check_settings(folder: Path) -> dict[str, object]:
    """The rules of huggingface.co/docs/hub/spaces-config-reference, as far as they can be checked without the Hub."""
    card = SpaceCard.load(folder / "README.md")
    data: dict[str, object] = card.data.to_dict()
    assert set(data) <= KNOWN
    assert data["sdk"] == "gradio" and Version(str(data["sdk_version"])) == Version(version("gradio"))
    assert re.fullmatch(r"3\.\d+", str(data["python_version"]))
    assert {data["colorFrom"], data["colorTo"]} <= COLORS
    assert len(str(data["emoji"])) == 1 and not str(data["emoji"]).isascii()
    assert 0 < len(str(data["short_description"])) <= 60
    assert data["license"] == "apache-2.0"
    assert (folder / str(data["app_file"])).is_file()
    assert all(re.fullmatch(r"[\w.-]+/[\w.-]+", model) for model in data.get("models", []))  # type: ignore[attr-defined]
    return data


def import_app(folder: Path) -> str:
    """Import app.py, which serves nothing yet, and give the title of its app."""
    app = runpy.run_path(str(folder / "app.py"), run_name="space")["app"]
    assert isinstance(app, gradio.Blocks) and not app.is_running
    return str(app.title)


def test_with_the_model_that_ships(tmp_path: Path) -> None:
    """Into a folder that is there and empty; the model comes with the package."""
    folder = tmp_path / "space"
    folder.mkdir()
    export_space(folder)
    assert sorted(path.name for path in folder.iterdir()) == FILES
    assert "models" not in check_settings(folder)
    assert str(SOURCE) not in (folder / "app.py").read_text()
    assert import_app(folder) == "Grounding DINO"


def test_nothing_but_what_package_indexes_have_is_needed(tmp_path: Path) -> None:
    """What this package needs for the app, line by line, and not this package: its code lies beside app.py."""
    export_space(tmp_path / "space")
    lines = (tmp_path / "space" / "requirements.txt").read_text().splitlines()
    project = tomllib.loads((SOURCE.parent / "pyproject.toml").read_text())["project"]
    needed = [*project["dependencies"], *project["optional-dependencies"]["app"]]
    assert [needs(line) for line in sorted(lines)] == [needs(line) for line in sorted(needed)]
    code = tmp_path / "space" / "hf_grounding_dino"
    shipped = {path.relative_to(code) for path in code.rglob("*") if path.is_file()}
    own = {path.relative_to(PACKAGE) for path in PACKAGE.rglob("*") if path.is_file()}
    assert shipped == {path for path in own if path.suffix != ".pyc"} | {Path("LICENSE")}
    assert "Apache License" in (code / "LICENSE").read_text()


def needs(line: str) -> tuple[str, SpecifierSet]:
    requirement = Requirement(line)
    assert requirement.marker is None and not requirement.extras and requirement.url is None
    return canonicalize_name(requirement.name), requirement.specifier


def test_without_the_package_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(name: str) -> None:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(space, "distribution", none)
    with pytest.raises(ValueError, match="hf-grounding-dino is not installed"):
        export_space(tmp_path / "space")
    assert not list(tmp_path.iterdir())


def test_it_starts_and_answers_where_this_package_is_not(tmp_path: Path) -> None:
    """As on the Hub: `python app.py` in the folder, where Python finds no other copy of the package."""
    export_space(tmp_path / "space")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"GRADIO_SERVER_PORT": str(port), "HF_HUB_OFFLINE": "1"}
    run = [sys.executable, "-c", ALONE]
    with subprocess.Popen(run, cwd=tmp_path / "space", env=environment, stderr=subprocess.PIPE, text=True) as server:
        try:
            while True:
                assert server.poll() is None, server.stderr and server.stderr.read()
                with contextlib.suppress(OSError), urlopen(f"http://127.0.0.1:{port}/config", timeout=60):
                    break
                time.sleep(0.2)
            visitor = Client(f"http://127.0.0.1:{port}", verbose=False, analytics_enabled=False)
            assert visitor.predict(handle_file(str(DEMO_IMAGE)), "Labels", "red square", api_name="/find") == ""
            found = visitor.predict(0.25, api_name="/threshold")
        finally:
            server.terminate()
    assert [box["label"] for box in json.loads(found[4])] == ["red square"]


ALONE = """
import runpy, sys
from pathlib import Path
sys.path[:] = [str(Path.cwd()), *(place for place in sys.path[1:] if not Path(place, "hf_grounding_dino").is_dir())]
import hf_grounding_dino
assert Path(hf_grounding_dino.__file__).is_relative_to(Path.cwd())
runpy.run_path("app.py", run_name="__main__")
"""


def test_with_a_model_of_the_hub(tmp_path: Path) -> None:
    export_space(tmp_path / "space", "IDEA-Research/grounding-dino-tiny", "bfloat16")
    assert check_settings(tmp_path / "space")["models"] == ["IDEA-Research/grounding-dino-tiny"]
    app = (tmp_path / "space" / "app.py").read_text()
    assert (
        "load_detector('IDEA-Research/grounding-dino-tiny', dtype='bfloat16')" in app
        and "PostProcessing(threshold=0.25" in app
    )
    compile(app, "app.py", "exec")


def test_with_a_model_of_a_folder(tmp_path: Path) -> None:
    """The model is copied, what else lies there is not, and app.py finds it."""
    model = tmp_path / "mine"
    tiny_model().save_pretrained(model)
    for name in ("tokenizer.json", "tokenizer_config.json", "processor_config.json"):
        (model / name).write_bytes((NANO / name).read_bytes())
    (model / "optimizer.pt").touch()
    (model / ".secret.json").touch()
    export_space(tmp_path / "space", str(model), note='it\'s "mine"')
    copied = {path.name for path in (tmp_path / "space" / "model").iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= copied
    assert not {"optimizer.pt", ".secret.json"} & copied
    assert str(tmp_path) not in (tmp_path / "space" / "app.py").read_text()
    assert "models" not in check_settings(tmp_path / "space")
    assert import_app(tmp_path / "space") == "Grounding DINO"


def test_what_is_refused(tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    (tmp_path / "file").touch()
    (tmp_path / "bare").mkdir()
    for name in ("full", "file"):
        with pytest.raises(ValueError, match="is not an empty folder"):
            export_space(tmp_path / name)
    with pytest.raises(ValueError, match=r"has no config\.json"):
        export_space(tmp_path / "new", str(tmp_path / "bare"))
    for model in ("./none", "a/b/c", str(tmp_path / "none")):
        with pytest.raises(ValueError, match="no such model"):
            export_space(tmp_path / "new", model)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bare", "file", "full"]
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["mine.txt"]


def test_nothing_half_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: Path, *args: object, **kwargs: object) -> int:
        raise OSError("the disk is full")

    monkeypatch.setattr(Path, "write_text", fail)
    with pytest.raises(OSError, match="full"):
        export_space(tmp_path / "space")
    assert not list(tmp_path.iterdir())
