"""Files that are there whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from PIL import Image

from hf_grounding_dino.utils.atomic import write_atomic, write_image


def test_text_and_bytes_take_the_place_of_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    assert write_atomic(path, "é\r\n") == path
    assert path.read_bytes() == "é\r\n".encode()
    write_atomic(str(path), b"\x00")
    assert path.read_bytes() == b"\x00"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_an_image_is_png_and_one_that_cannot_be_written_leaves_the_old_one(tmp_path: Path) -> None:
    """CMYK is nothing that PNG has."""
    path = write_image(tmp_path / "new" / "a.png", Image.new("RGB", (3, 2)))
    with pytest.raises(OSError, match="CMYK"):
        write_image(path, Image.new("CMYK", (1, 1)))
    with Image.open(path) as image:
        assert (image.format, image.size) == ("PNG", (3, 2))
    assert os.listdir(path.parent) == ["a.png"]


@pytest.mark.parametrize("step", ["write_bytes", "replace"])
def test_a_failure_leaves_what_was_there_and_nothing_else(
    step: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk is full while the content is written, after its first byte, or when it is moved."""
    path = write_atomic(tmp_path / "a.txt", "old")

    def full(target: Path, *_: object) -> None:
        with open(target, "ab") as file:
            file.write(b"n")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(*((Path, step, full) if step == "write_bytes" else (os, step, full)))
    with pytest.raises(OSError, match="No space"):
        write_atomic(path, "new")
    monkeypatch.undo()
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.txt"]
