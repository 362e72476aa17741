"""Runs over folders of images: whole, in shards, killed, with bad images, on a full disk."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from annotation.fake_annotation import FakePredictor, label
from hf_grounding_dino.annotation.annotator import merge
from hf_grounding_dino.annotation.checkpoint import WORK_FOLDER, AnnotationError, Checkpoint
from hf_grounding_dino.annotation.sources import FileSource
from hf_grounding_dino.inference import predictions
from hf_grounding_dino.inference.predictor import Shard
from hf_grounding_dino.processing.defaults import PostProcessing

SIZES = ((9, 6), (6, 9), (8, 8), (12, 5))


def folder_of(path: Path, count: int) -> FileSource:
    """Tiny images of several shapes in two folders, in which every stem is there twice."""
    rng = np.random.default_rng(0)
    for i in range(count):
        width, height = SIZES[i % 4]
        file = path / ("one", "two")[i % 2] / f"{i // 2:03d}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(file)
    return FileSource.from_paths(path.rglob("*.*"), path)


def files_of(output: Path) -> dict[str, bytes]:
    """All that a run wrote, without its journals."""
    found = {path.relative_to(output).as_posix(): path.read_bytes() for path in output.rglob("*") if path.is_file()}
    return {name: content for name, content in found.items() if not name.startswith(WORK_FOLDER)}


@pytest.mark.parametrize("format", ["coco", "yolo", "label-studio"])
def test_shards_write_what_one_run_writes(tmp_path: Path, format: str) -> None:
    """70 images are windows of 32, 32 and 6: shard 1 of 2 does the first and the last, whichever is run first."""
    source = folder_of(tmp_path / "in", 70)
    assert label(source, tmp_path / "whole", format).written
    second = label(source, tmp_path / "parts", format, Shard(1, 2))
    assert (second.done, second.written, files_of(tmp_path / "parts")) == (32, False, {})
    with pytest.raises(AnnotationError, match="38 of 70 images are not done yet"):
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


class Killed(BaseException):
    """Stands for a kill."""


class MortalPredictor(FakePredictor):
    """Dies in a given batch."""

    def __init__(self, last: int) -> None:
        super().__init__()
        self.last = last

    def _find(self, batch: Any) -> Any:
        if len(self.batches) == self.last:
            raise Killed
        return super()._find(batch)


def test_every_place_to_be_killed_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """40 images are 10 batches, predictions are written three at a time. Killed in each third batch, it ends the same.

    The rest of a batch is done again in the same batch: the fake predictor would show another.
    """
    source = folder_of(tmp_path / "in", 40)
    label(source, tmp_path / "whole")
    monkeypatch.setattr(predictions, "SAMPLES_A_FILE", 3)
    monkeypatch.setattr(predictions.PredictionWriter, "__exit__", lambda *_: None)  # a kill writes nothing
    for _ in range(4):
        with pytest.raises(Killed):
            label(source, tmp_path / "killed", predictor=MortalPredictor(2))
    assert files_of(tmp_path / "killed") == {}
    monkeypatch.undo()
    predictor = FakePredictor()
    label(source, tmp_path / "killed", predictor=predictor)
    assert 0 < len(predictor.batches) < 10
    assert files_of(tmp_path / "killed") == files_of(tmp_path / "whole")


def test_what_is_done_is_not_done_again(tmp_path: Path) -> None:
    source = folder_of(tmp_path / "in", 40)
    label(source, tmp_path / "out")
    predictor = FakePredictor()
    assert label(source, tmp_path / "out", predictor=predictor).written
    assert predictor.batches == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labels": ["red circle"]}, r'labels \["red circle", "blue ring"\], and now it is \["red circle"\]'),
        ({"post": PostProcessing(threshold=0.4, nms=0.7, top_k=None)}, r"post\.threshold 0.3, and now it is 0.4"),
        ({"model": "other"}, 'model "fake", and now it is "other"'),
        ({"dtype": "float16"}, "dtype"),
        ({"format": "yolo"}, 'format "coco", and now it is "yolo"'),
        ({"names": "x"}, "names"),
        ({"images": 9}, "images 8, and now it is 9"),
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


def test_bad_images_are_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 7 images 3 are bad: text, one cut off, and one of 4,000 pixels where 1,000 is half of what PIL allows."""
    folder_of(tmp_path / "in", 4)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    (tmp_path / "in/text.jpg").write_text("no picture")
    noise = np.random.default_rng(0).integers(0, 256, (20, 20, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "in/cut.png")
    content = (tmp_path / "in/cut.png").read_bytes()
    (tmp_path / "in/cut.png").write_bytes(content[: len(content) // 2])
    Image.new("L", (100, 40)).save(tmp_path / "in/bomb.png")
    source = FileSource.from_paths((tmp_path / "in").rglob("*.*"), tmp_path / "in")
    summary = label(source, tmp_path / "out")
    lines = [json.loads(line) for line in (tmp_path / "out/problems.jsonl").read_text().splitlines()]
    assert [line["image"] for line in lines] == ["bomb.png", "cut.png", "text.jpg"]
    assert "exceeds limit" in lines[0]["problem"]
    assert lines[1]["problem"]
    assert lines[2]["problem"] == "it is not an image"
    assert summary.problems == [(line["image"], line["problem"]) for line in lines]
    images = json.loads((tmp_path / "out/annotations.json").read_text())["images"]
    assert [(image["id"], image["file_name"]) for image in images] == [
        (3, "one/000.png"),
        (4, "one/001.png"),
        (6, "two/000.png"),
        (7, "two/001.png"),
    ]


@pytest.mark.parametrize("format", ["coco", "yolo"])
def test_what_can_be_read_later_is_labelled_then(tmp_path: Path, format: str) -> None:
    """A image that was cut off when the run was first made, and is whole when the same command is given again."""
    source = folder_of(tmp_path / "in", 4)
    bad = tmp_path / "in/two/001.png"
    whole = bad.read_bytes()
    bad.write_bytes(b"no image")
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
    source = FileSource.from_paths((tmp_path / "in").rglob("*.*"), tmp_path / "in")
    assert label(source, tmp_path / "coco").problems == []
    problem = "its labels would be in the same file as those of a.jpg"
    assert label(source, tmp_path / "yolo", "yolo").problems == [("a.png", problem)]
    assert {"labels/a.txt", "labels/b/a.txt"} <= set(files_of(tmp_path / "yolo"))


def test_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is full when predictions, then when the files are written; nothing half written stays, and the run goes on."""
    source = folder_of(tmp_path / "in", 40)
    label(source, tmp_path / "whole")

    def fail(*args: Any, **options: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as full:
        full.setattr(predictions.pq, "write_table", fail)
        with pytest.raises(AnnotationError, match=r"part-.*\.parquet cannot be written: No space left on device; what"):
            label(source, tmp_path / "out")
    with monkeypatch.context() as full:
        full.setattr("hf_grounding_dino.annotation.sinks._write_items", fail)
        with pytest.raises(AnnotationError, match=r"annotations\.json cannot be written: No space left on device"):
            label(source, tmp_path / "out")
    assert not [path for path in (tmp_path / "out").rglob("*") if path.name.endswith(".unfinished")]
    assert label(source, tmp_path / "out").written
    assert files_of(tmp_path / "out") == files_of(tmp_path / "whole")


def test_one_process_a_shard(tmp_path: Path) -> None:
    source = folder_of(tmp_path / "in", 4)
    label(source, tmp_path / "out")
    with (
        Checkpoint(tmp_path / "out").at_work(Shard()),
        pytest.raises(AnnotationError, match="another process is at work on shard 1/1"),
    ):
        label(source, tmp_path / "out")


def test_a_damaged_file_is_made_again(tmp_path: Path) -> None:
    source = folder_of(tmp_path / "in", 4)
    label(source, tmp_path / "out")
    before = files_of(tmp_path / "out")
    (part,) = (tmp_path / "out" / WORK_FOLDER).glob("*.parquet")
    part.write_bytes(part.read_bytes()[:-9])
    with pytest.warns(UserWarning, match="not a whole Parquet file"):
        label(source, tmp_path / "out")
    assert files_of(tmp_path / "out") == before


EVIL_PREDICTIONS: dict[str, dict[str, Any]] = {
    "up": {"sample_id": '"../../../outside"'},
    "absolute": {"sample_id": '"/elsewhere"'},
    "renamed": {"sample_id": '"one/other.png"'},
    "no text": {"sample_id": "7"},
    "no label": {"labels": [7]},
    "before the first": {"labels": [-1]},
    "no size": {"size": [0, 9]},
    "no character": {"sample_id": r'"\ud800.png"', "unreadable": "bad"},
}


@pytest.mark.parametrize("change", EVIL_PREDICTIONS.values(), ids=EVIL_PREDICTIONS)
def test_predictions_of_others_are_not_trusted(tmp_path: Path, change: dict[str, Any]) -> None:
    """One of 4 was changed by hand: merging says so, and writes nothing at all, in its folder or outside."""
    output = tmp_path / "deep" / "er" / "out"
    label(folder_of(tmp_path / "in", 4), output, "yolo")
    (part,) = (output / WORK_FOLDER).glob("*.parquet")
    table = pq.read_table(part)
    rows = table.to_pylist()
    rows[1] |= {"boxes": [1, 2, 8, 5], "labels": [0], "scores": [0.5], **change}
    pq.write_table(pa.Table.from_pylist(rows, table.schema), part)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(AnnotationError, match=r"^[^\n]+ predictions "):
        merge(output)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_no_memory_for_one_image_is_said(tmp_path: Path) -> None:
    class Cramped(FakePredictor):
        def _find(self, batch: Any) -> Any:
            raise MemoryError

    with pytest.raises(AnnotationError, match="no memory for one image at a time; what is done is kept"):
        label(folder_of(tmp_path / "in", 10), tmp_path / "none", predictor=Cramped())


def test_boxes_are_rounded_and_those_below_a_pixel_dropped(tmp_path: Path) -> None:
    class Precise(FakePredictor):
        def _one(self, image: Any, jitter: float) -> Any:
            boxes = torch.tensor([[1.0, 1.0, 1.99, 9.0], [1.0, 2.0, 3.006, 4.0]])
            return {"boxes": boxes, "labels": torch.tensor([0, 1]), "scores": torch.tensor([0.9, 0.12346])}

    label(folder_of(tmp_path / "in", 1), tmp_path / "out", predictor=Precise())
    (image,) = Checkpoint(tmp_path / "out").labelled()
    assert (image.boxes, image.labels, image.scores) == ([[1.0, 2.0, 3.01, 4.0]], [1], [0.1235])
