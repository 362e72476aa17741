"""What README promises: its code runs, its links lead somewhere."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tiny import sound_stock

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


@sound_stock
def test_code_runs_and_finds_something(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One block after another, as a reader would; each finds the red square, and the first draws it."""
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    for code in re.findall(r"```python\n(.*?)```", README, re.DOTALL):
        exec(compile(code, "README.md", "exec"), names)
        assert "red square" in capsys.readouterr().out.lower(), code
        assert (tmp_path / "found.png").is_file()


@pytest.mark.parametrize("target", re.findall(r"\]\((?!https?:)([^)#]+)\)", README))
def test_links_lead_somewhere(target: str) -> None:
    assert (ROOT / target).exists()


@pytest.mark.parametrize("command", re.findall(r"^make (\w+)", README, re.MULTILINE))
def test_make_targets_exist(command: str) -> None:
    assert re.search(rf"^{command}:", (ROOT / "Makefile").read_text(), re.MULTILINE)
