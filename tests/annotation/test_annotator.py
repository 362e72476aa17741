"""Runs over folders of pictures: whole, in shards, killed, with bad pictures, on a full disk."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import hf_grounding_dino
from annotation.fake_annotation import FakeFinder, label
from hf_grounding_dino.annotation import annotator
from hf_grounding_dino.annotation.answers import AnnotationError
from hf_grounding_dino.annotation.files import WORK_FOLDER
from hf_grounding_dino.annotation.finder import Found, Options, Prepared
from hf_grounding_dino.annotation.journal import Journal, Shard
from hf_grounding_dino.annotation.merging import merge
from hf_grounding_dino.annotation.sources import FileSource

SIZES = ((9, 6), (6, 9), (8, 8), (12, 5))


def folder_of(path: Path, count: int) -> FileSource:
    """Tiny pictures of several shapes in two folders, in which every stem is there twice."""
    rng = np.random.default_rng(0)
    for i in range(count):
        width, height = SIZES[i % 4]
        file = path / ("one", "two")[i % 2] / f"{i // 2:03d}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(file)
    return FileSource.of(path.rglob("*.*"), path)


def files_of(output: Path) -> dict[str, bytes]:
    """All that a run wrote, without its journals."""
    found = {path.relative_to(output).as_posix(): path.read_bytes() for path in output.rglob("*") if path.is_file()}
    return {name: content for name, content in found.items() if not name.startswith(WORK_FOLDER)}


@pytest.mark.parametrize("format", ["coco", "odvg", "yolo", "voc", "labelme", "label-studio"])
def test_shards_write_what_one_run_writes(tmp_path: Path, format: str) -> None:
    """70 pictures are windows of 32, 32 and 6: shard 1 of 2 does the first and the last, whichever is run first."""
    source = folder_of(tmp_path / "in", 70)
    assert label(source, tmp_path / "whole", format).written
    second = label(source, tmp_path / "parts", format, Shard(1, 2))
    assert (second.done, second.written, files_of(tmp_path / "parts")) == (32, False, {})
    with pytest.raises(AnnotationError, match="38 of 70 pictures are not done yet"):
        merge(tmp_path / "parts")
    first = label(source, tmp_path / "parts", format, Shard(0, 2))
    assert (first.done, first.written) == (70, True)
    assert files_of(tmp_path / "parts") == files_of(tmp_path / "whole")
    assert merge(tmp_path / "parts") == first
    assert files_of(tmp_path / "parts") == files_of(tmp_path / "whole")


def test_more_shards_than_windows(tmp_path: Path) -> None:
    source = folder_of(tmp_path / "in", 10)
    assert not label(source, tmp_path / "out", shard=Shard(2, 3)).written
    assert label(source, tmp_path / "out", shard=Shard(0, 3)).written


def test_killed_at_random(tmp_path: Path) -> None:
    """60 pictures and a bad one are 16 batches of 10 ms, and up to 8 processes are killed, at the latest after 40 ms.

    The time counts from the first answers that the process wrote.
    """
    folder_of(tmp_path / "in", 60)
    (tmp_path / "in/one/bad.jpg").write_text("no picture")
    label(FileSource.of((tmp_path / "in").rglob("*.*"), tmp_path / "in"), tmp_path / "whole")
    script = Path(__file__).with_name("fake_annotation.py")
    environment = {**os.environ, "PYTHONPATH": str(Path(hf_grounding_dino.__file__).parents[1])}
    arguments = [str(tmp_path / "in"), str(tmp_path / "killed"), "--kills", "8"]
    done = subprocess.run(
        [sys.executable, str(script), *arguments], check=True, env=environment, capture_output=True, text=True
    )
    assert int(done.stdout) >= 3
    assert files_of(tmp_path / "killed") == files_of(tmp_path / "whole")


class Killed(BaseException):
    """Stands for a kill."""


class MortalFinder(FakeFinder):
    """Dies in a given batch."""

    def __init__(self, last: int) -> None:
        super().__init__()
        self.last = last

    def find(self, pictures: Any) -> list[Found]:
        if len(self.found) == self.last:
            raise Killed
        return super().find(pictures)


def test_every_place_to_be_killed_at(tmp_path: Path) -> None:
    """40 pictures are 10 batches. Killed in each third one, with the end of the journal torn, it ends the same.

    The torn line's picture and the rest of its batch are done again in the same batch: the fake detector would show
    another.
    """
    source = folder_of(tmp_path / "in", 40)
    label(source, tmp_path / "whole")
    journal = tmp_path / "killed" / WORK_FOLDER / "shard-1-of-1.jsonl"
    for i in range(4):
        with pytest.raises(Killed):
            label(source, tmp_path / "killed", finder=MortalFinder(2))
        content = journal.read_bytes()
        journal.write_bytes(content[: len(content) - 1 - 7 * i])
    assert files_of(tmp_path / "killed") == {}
    finder = FakeFinder()
    label(source, tmp_path / "killed", finder=finder)
    assert 0 < len(finder.found) < 10
    assert files_of(tmp_path / "killed") == files_of(tmp_path / "whole")


def test_what_is_done_is_not_done_again(tmp_path: Path) -> None:
    source = folder_of(tmp_path / "in", 40)
    label(source, tmp_path / "out")
    finder = FakeFinder()
    assert label(source, tmp_path / "out", finder=finder).written
    assert finder.found == []


def test_batches_are_of_like_shape(tmp_path: Path) -> None:
    """32 pictures of 4 shapes, 8 of each: 8 batches of 4, each of one shape."""
    shapes = []

    class Looking(FakeFinder):
        def find(self, pictures: Any) -> list[Found]:
            shapes.append({one.size for one in pictures})
            return super().find(pictures)

    label(folder_of(tmp_path / "in", 32), tmp_path / "out", finder=Looking())
    assert len(shapes) == 8
    assert all(len(sizes) == 1 for sizes in shapes)


def test_not_many_pictures_are_in_memory(tmp_path: Path) -> None:
    """At most two windows of 32 have been read before their answers are written."""
    ahead = []

    class Counting(FakeFinder):
        prepared = 0

        def prepare(self, picture: Image.Image) -> Prepared:
            self.prepared += 1
            return super().prepare(picture)

        def find(self, pictures: Any) -> list[Found]:
            ahead.append(self.prepared - sum(self.found))
            return super().find(pictures)

    label(folder_of(tmp_path / "in", 200), tmp_path / "out", finder=Counting())
    assert max(ahead) <= 64


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labels": ["red circle"]}, r'begun with labels \["red circle", "blue ring"\], not \["red circle"\]'),
        ({"threshold": 0.4}, "threshold 0.3, not 0.4"),
        ({"thresholds": {"blue ring": 0.5}}, "thresholds {}, not"),
        ({"model": "other"}, "another model"),
        ({"dtype": "float16"}, "dtype"),
        ({"nms": 1}, "nms 0.7, not 1"),
        ({"top_k": 3}, "top_k null, not 3"),
        ({"format": "yolo"}, 'format "coco", not "yolo"'),
        ({"names": "x"}, "other pictures"),
        ({"pictures": 9}, "8 pictures, there are 9 now"),
    ],
)
def test_a_run_goes_on_as_it_began(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    source = folder_of(tmp_path / "in", 8)
    label(source, tmp_path / "out")
    before = files_of(tmp_path / "out")
    with pytest.raises(AnnotationError, match=message):
        label(source, tmp_path / "out", **({"format": "coco"} | changes))
    assert files_of(tmp_path / "out") == before


def test_files_of_others_are_not_replaced(tmp_path: Path) -> None:
    source = folder_of(tmp_path / "in", 4)
    (tmp_path / "in/two/001.json").write_text("by hand")
    with pytest.raises(AnnotationError, match=r"two/001\.json is there already"):
        label(source, tmp_path / "in", "labelme")
    assert not (tmp_path / "in" / WORK_FOLDER).exists()


def test_bad_pictures_are_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 7 pictures 3 are bad: text, one cut off, and one of 4,000 pixels where 1,000 is half of what PIL allows."""
    folder_of(tmp_path / "in", 4)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    (tmp_path / "in/text.jpg").write_text("no picture")
    noise = np.random.default_rng(0).integers(0, 256, (20, 20, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "in/cut.png")
    content = (tmp_path / "in/cut.png").read_bytes()
    (tmp_path / "in/cut.png").write_bytes(content[: len(content) // 2])
    Image.new("L", (100, 40)).save(tmp_path / "in/bomb.png")
    source = FileSource.of((tmp_path / "in").rglob("*.*"), tmp_path / "in")
    summary = label(source, tmp_path / "out")
    lines = [json.loads(line) for line in (tmp_path / "out/problems.jsonl").read_text().splitlines()]
    assert [line["picture"] for line in lines] == ["bomb.png", "cut.png", "text.jpg"]
    assert "exceeds limit" in lines[0]["problem"]
    assert lines[1]["problem"]
    assert lines[2]["problem"] == "it is not an image"
    assert summary.problems == [(line["picture"], line["problem"]) for line in lines]
    images = json.loads((tmp_path / "out/annotations.json").read_text())["images"]
    assert [(image["id"], image["file_name"]) for image in images] == [
        (3, "one/000.png"),
        (4, "one/001.png"),
        (6, "two/000.png"),
        (7, "two/001.png"),
    ]


@pytest.mark.parametrize("format", ["coco", "yolo"])
def test_what_can_be_read_later_is_labelled_then(tmp_path: Path, format: str) -> None:
    """A picture that was cut off when the run was first made, and is whole when the same command is given again."""
    source = folder_of(tmp_path / "in", 4)
    bad = tmp_path / "in/two/001.png"
    whole = bad.read_bytes()
    bad.write_bytes(b"no picture")
    assert [name for name, _ in label(source, tmp_path / "out", format).problems] == ["two/001.png"]
    assert [name for name, _ in label(source, tmp_path / "out", format).problems] == ["two/001.png"]
    bad.write_bytes(whole)
    summary = label(source, tmp_path / "out", format)
    at_once = label(source, tmp_path / "at once", format)
    assert summary == at_once and summary.problems == []
    assert files_of(tmp_path / "out").keys() == files_of(tmp_path / "at once").keys()


def test_one_stem_twice_in_a_folder(tmp_path: Path) -> None:
    """a.jpg and a.png would share a.txt; COCO has one file for all and takes both."""
    for name in ("a.jpg", "a.png", "b/a.png"):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (1, 0, 0)).save(tmp_path / "in" / name)
    source = FileSource.of((tmp_path / "in").rglob("*.*"), tmp_path / "in")
    assert label(source, tmp_path / "coco").problems == []
    problem = "its labels would be in the same file as those of a.jpg"
    assert label(source, tmp_path / "yolo", "yolo").problems == [("a.png", problem)]
    assert {"labels/a.txt", "labels/b/a.txt"} <= set(files_of(tmp_path / "yolo"))


def test_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It fills in the third batch, then when the files are written; each time one line, and nothing half written."""
    source = folder_of(tmp_path / "in", 40)
    label(source, tmp_path / "whole")
    real = Journal.add
    batches = []

    def fail_in_third(self: Journal, answers: Any) -> None:
        batches.append(answers)
        if len(batches) == 3:
            self._file.close()
            self._file = open("/dev/full", "wb", buffering=0)  # noqa: SIM115
        real(self, answers)

    monkeypatch.setattr(Journal, "add", fail_in_third)
    with pytest.raises(AnnotationError, match=r"shard-1-of-1\.jsonl cannot be written: No space left on device"):
        label(source, tmp_path / "out")
    monkeypatch.undo()

    def fail(*args: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", fail)
    (tmp_path / "out" / WORK_FOLDER / "run.json").stat()
    with pytest.raises(AnnotationError, match=r"annotations\.json cannot be written: No space left on device"):
        label(source, tmp_path / "out")
    assert files_of(tmp_path / "out") == {}
    assert not list((tmp_path / "out" / WORK_FOLDER).glob("*.unfinished"))
    monkeypatch.undo()
    label(source, tmp_path / "out")
    assert files_of(tmp_path / "out") == files_of(tmp_path / "whole")


def test_one_process_a_shard(tmp_path: Path) -> None:
    source = folder_of(tmp_path / "in", 4)
    label(source, tmp_path / "out")
    with (
        Journal(tmp_path / "out" / WORK_FOLDER, Shard()),
        pytest.raises(AnnotationError, match="another process is at work on shard 1/1"),
    ):
        label(source, tmp_path / "out")


def test_a_damaged_journal_is_named(tmp_path: Path) -> None:
    source = folder_of(tmp_path / "in", 4)
    label(source, tmp_path / "out")
    journal = tmp_path / "out" / WORK_FOLDER / "shard-1-of-1.jsonl"
    lines = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(lines[0] + b'{"index": 1, \n' + b"".join(lines[2:]))
    with pytest.raises(AnnotationError, match=r"shard-1-of-1\.jsonl, line 2: damaged"):
        label(source, tmp_path / "out")


EVIL_ANSWERS: dict[str, dict[str, Any]] = {
    "up": {"name": "../../../outside"},
    "absolute": {"name": "/elsewhere"},
    "renamed": {"name": "one/other.png"},
    "no text": {"name": ["one/000.png"]},
    "no label": {"labels": [7]},
    "before the first": {"labels": [-1]},
    "no number": {"boxes": [["1", 2, 3, 4]]},
    "three sides": {"boxes": [[1, 2, 3]]},
    "no size": {"size": [9]},
    "another place": {"index": 9},
    "no index": {"index": None},
    "a number of 400 digits": {"scores": [10**400]},
    "no character": {"name": "\ud800.png", "problem": "bad"},
}


@pytest.mark.parametrize("format", ["coco", "yolo", "voc", "labelme", "odvg", "label-studio"])
@pytest.mark.parametrize("change", EVIL_ANSWERS.values(), ids=EVIL_ANSWERS)
def test_a_journal_of_others_is_not_trusted(tmp_path: Path, format: str, change: dict[str, Any]) -> None:
    """One of 4 answers was changed by hand: merging says so, and writes nothing at all, in its folder or outside."""
    output = tmp_path / "deep" / "er" / "out"
    if change.get("name") == "/elsewhere":
        change = {"name": str(tmp_path / "elsewhere")}
    label(folder_of(tmp_path / "in", 4), output, format)
    journal = output / WORK_FOLDER / "shard-1-of-1.jsonl"
    answers = [json.loads(line) for line in journal.read_text().splitlines()]
    answers[1] |= {"boxes": [[1, 2, 8, 5]], "labels": [0], "scores": [0.5], **change}
    journal.write_text("".join(json.dumps(answer) + "\n" for answer in answers))
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(AnnotationError, match=r"^[^\n]+(journals|damaged|not done yet)"):
        merge(output)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


class Cramped(FakeFinder):
    """Has memory for so many pictures at a time."""

    def __init__(self, room: int, error: Exception) -> None:
        super().__init__()
        self.room, self.error = room, error

    def find(self, pictures: Sequence[Prepared]) -> list[Found]:
        if len(pictures) > self.room:
            raise self.error
        return super().find(pictures)


OUT_OF_MEMORY = [
    torch.OutOfMemoryError("CUDA out of memory"),
    MemoryError(),
    RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory"),
]


@pytest.mark.parametrize("error", OUT_OF_MEMORY, ids=lambda error: type(error).__name__)
def test_memory_is_made_do_with(tmp_path: Path, error: Exception) -> None:
    """Of 10 pictures in batches of 4, 4 and 2, with room for 2: five batches of 2, and the files are whole."""
    finder = Cramped(2, error)
    assert label(folder_of(tmp_path / "in", 10), tmp_path / "out", finder=finder).written
    assert finder.found == [2] * 5
    with pytest.raises(AnnotationError, match="no memory for one picture at a time; what is done is kept"):
        label(folder_of(tmp_path / "in", 10), tmp_path / "none", finder=Cramped(0, error))


def test_an_error_that_is_not_of_memory_is_not_tried_again(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="broken"):
        label(folder_of(tmp_path / "in", 10), tmp_path / "out", finder=Cramped(2, RuntimeError("broken")))


def test_the_windows_hold_each_picture_once() -> None:
    assert Options().batch_size <= annotator.WINDOW
    for count in (0, 1, 32, 33, 100):
        windows = annotator.windows_of(count)
        assert [index for window in windows for index in window] == list(range(count))
