"""What README promises: code runs, commands exist, links resolve, badges and published numbers are true."""

from __future__ import annotations

import re
import tomllib
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from hf_grounding_dino.assets import DEMO_IMAGE, NANO
from snippets import Snippet, block_network, check_unrun, snippets_of
from tiny import sound_stock

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
SNIPPETS = snippets_of(ROOT / "README.md")
OFFLINE = {
    "IDEA-Research/grounding-dino-tiny": str(NANO),
    "http://images.cocodataset.org/val2017/000000039769.jpg": str(DEMO_IMAGE),
    '"cat", "remote control"': '"red square", "cyan ring"',
}
"""What stands in for the Hub's model, the photo and its labels."""


@sound_stock
def test_the_python_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """One block after the other; each finds the red square, and the last one draws it."""
    monkeypatch.chdir(tmp_path)
    block_network(monkeypatch)
    names: dict[str, object] = {}
    for snippet in SNIPPETS:
        code = snippet.code
        for there, here in OFFLINE.items():
            code = code.replace(there, here)
        if snippet.language == "python":
            exec(compile(code, snippet.where, "exec"), names)
            assert "red square" in capsys.readouterr().out, snippet.where
    assert (tmp_path / "detections.png").is_file()


@pytest.mark.parametrize("snippet", SNIPPETS, ids=lambda snippet: snippet.where)
def test_commands_have_their_options(snippet: Snippet, monkeypatch: pytest.MonkeyPatch) -> None:
    check_unrun(snippet, monkeypatch)


def test_make_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"`make ([\w-]+)`", README):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_badges_say_what_pyproject_says() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    needs = dict(re.fullmatch(r"([\w-]+)(.*)", need).groups() for need in project["dependencies"])
    expected = {
        "license": project["license"],
        "python": project["requires-python"],
        "torch": needs["torch"],
        "transformers": needs["transformers"],
    }
    for name, text in expected.items():
        badge = "".join(ElementTree.parse(ROOT / f"docs/assets/badges/{name}.svg").getroot().itertext())
        assert "".join(badge.split()).replace("≥", ">=") == f"{name}{text}"
        assert f"badges/{name}.svg" in README


def test_published_numbers_are_those_of_the_cards() -> None:
    """Every AP in the table of models stands on the model's card, with what the footnotes say of it."""
    rows = re.findall(r"^\| \[`[\w-]+/[\w-]+`\]\((\S+)\) \| (Swin-\w) \| (.*) \|$", README, re.MULTILINE)
    assert len(rows) == 8
    for path, backbone, cells in rows:
        card = (ROOT / path).read_text()
        assert f"| backbone | {backbone} " in card
        for benchmark, cell in zip(("coco", "lvis_minival", "odinw13"), cells.split("|"), strict=True):
            if value := cell.split():
                (row,) = re.findall(rf"^\| {benchmark} \| AP {value[0]}[ ,].*", card, re.MULTILINE)
                for mark, meaning in {"¹": "saw the data", "²": "measured by mmdetection", "³": "in doubt"}.items():
                    assert (mark in value) == (meaning in row), row
