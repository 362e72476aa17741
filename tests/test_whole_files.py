"""Files that are there whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from hf_grounding_dino.whole_files import write_whole


def test_text_and_bytes_take_the_place_of_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    assert write_whole(path, "é\r\n") == path
    assert path.read_bytes() == "é\r\n".encode()
    write_whole(str(path), b"\x00")
    assert path.read_bytes() == b"\x00"
    assert os.listdir(tmp_path) == ["a.txt"]


@pytest.mark.parametrize("step", ["write_bytes", "replace"])
def test_a_failure_leaves_what_was_there_and_nothing_else(
    step: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk is full while the content is written, after its first byte, or when it is moved."""
    path = write_whole(tmp_path / "a.txt", "old")

    def full(target: Path, *_: object) -> None:
        with open(target, "ab") as file:
            file.write(b"n")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(*((Path, step, full) if step == "write_bytes" else (os, step, full)))
    with pytest.raises(OSError, match="No space"):
        write_whole(path, "new")
    monkeypatch.undo()
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.txt"]
