"""What is written is read back: by the readers of this package, and as the other tools define their files."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path, PurePosixPath
from xml.etree import ElementTree

import pytest
import torch
import yaml
from PIL import Image

from annotation.fake_annotation import run_of
from hf_grounding_dino.annotation.checkpoint import LabelledImage
from hf_grounding_dino.annotation.sinks import FORMATS
from hf_grounding_dino.annotation.sources import FileSource
from hf_grounding_dino.data.readers import open_records
from hf_grounding_dino.data.records import RecordSet, SourceEntry

IMAGES = [
    LabelledImage(0, "a é.png", (100, 50), [[0.0, 0.0, 100.0, 50.0], [10.25, 20.5, 30.75, 40.0]], [1, 0], [0.9, 0.5]),
    LabelledImage(2, "b.png", (30, 40), [], [], []),
    LabelledImage(3, "c.png", (7, 7), [[5.6, 5.4, 6.7, 6.42]], [1], [0.4]),
]
LABELS = ["blue <ring> & co", "red circle"]
ENTRIES = {
    "coco": {"annotations": "out/annotations.json", "images": "in"},
    "odvg": {"annotations": "out/annotations.jsonl", "label_map": "out/label_map.json", "images": "in"},
    "yolo": {"annotations": "out/labels", "images": "in"},
    "yolo by its list": {"annotations": "out/dataset.yaml"},
    "voc": {"annotations": "out/Annotations", "images": "in"},
}


def written(tmp_path: Path, format: str, images: list[LabelledImage] = IMAGES) -> Path:
    for image in images:
        (tmp_path / "in" / image.name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", image.size).save(tmp_path / "in" / image.name)
    source = FileSource.from_paths((tmp_path / "in").rglob("*.png"), tmp_path / "in")
    run = run_of(source, tmp_path / "out", format, labels=LABELS)
    FORMATS[format].write(tmp_path / "out", run, images)
    return tmp_path / "out"


@pytest.mark.parametrize("format", ENTRIES)
def test_our_readers_read_it(tmp_path: Path, format: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """YOLO is exact to 1e-6 of a side; VOC has whole pixels."""
    name = format.split()[0]
    written(tmp_path, name)
    monkeypatch.chdir(tmp_path)
    records = open_records(SourceEntry(format=name, **ENTRIES[format]))
    assert isinstance(records, RecordSet)
    assert len(records) == 3
    assert {finding.kind for finding in records.findings} <= {"no boxes"}
    assert list(records.label_names) == LABELS
    for i, image in enumerate(IMAGES):
        record = records[i]
        truth = torch.tensor(image.boxes).reshape(-1, 4)
        if format == "voc":
            truth = truth.round()
        torch.testing.assert_close(record.boxes, truth, atol=1e-3, rtol=0)
        assert record.labels is not None
        assert record.labels.tolist() == image.labels
        assert record.size == image.size
        assert isinstance(record.image, Path)
        assert record.image.name == image.name


def test_coco_ids_do_not_depend_on_what_was_bad(tmp_path: Path) -> None:
    document = json.loads((written(tmp_path, "coco") / "annotations.json").read_text(encoding="utf-8"))
    assert [image["id"] for image in document["images"]] == [1, 3, 4]
    assert [category["id"] for category in document["categories"]] == [1, 2]
    second = document["annotations"][1]
    expected = {"id": 2, "image_id": 1, "category_id": 1, "bbox": [10.25, 20.5, 20.5, 19.5], "area": 399.75}
    assert second == expected | {"iscrowd": 0, "score": 0.5}


def test_labelme(tmp_path: Path) -> None:
    """The path leads from the file to the image, wherever the output is."""
    nested = [IMAGES[0], LabelledImage(5, "x/y/d.png", (10, 10), [[1.0, 2.0, 3.0, 4.0]], [0], [0.4])]
    output = written(tmp_path, "labelme", nested)
    content = json.loads((output / "x/y/d.json").read_text(encoding="utf-8"))
    assert set(content) == {"version", "flags", "shapes", "imagePath", "imageData", "imageHeight", "imageWidth"}
    assert content["imagePath"] == "../../../in/x/y/d.png"
    assert (output / "x/y" / content["imagePath"]).is_file()
    assert (content["imageData"], content["imageHeight"], content["imageWidth"]) == (None, 10, 10)
    (shape,) = content["shapes"]
    assert (shape["label"], shape["shape_type"]) == (LABELS[0], "rectangle")
    assert shape["points"] == [[1.0, 2.0], [3.0, 4.0]]
    assert json.loads((output / "a é.json").read_text(encoding="utf-8"))["imagePath"] == "../in/a é.png"


def test_labelme_beside_the_images(tmp_path: Path) -> None:
    image = LabelledImage(0, "x/d.png", (10, 10))
    run = run_of(FileSource(tmp_path, ["x/d.png"]), tmp_path, "labelme")
    assert run.root == "."
    FORMATS["labelme"].write(tmp_path, run, [image])
    assert json.loads((tmp_path / "x/d.json").read_text())["imagePath"] == "d.png"


def test_label_studio(tmp_path: Path) -> None:
    """In percent of an image of 100 x 50; names and types are those of the interface that comes with the tasks."""
    output = written(tmp_path, "label-studio")
    tasks = json.loads((output / "tasks.json").read_text(encoding="utf-8"))
    view = ElementTree.parse(output / "label_config.xml").getroot()
    choices = view.find("RectangleLabels")
    assert choices is not None
    assert [label.get("value") for label in choices] == LABELS
    assert tasks[0]["data"] == {"image": "/data/local-files/?d=in/a%20%C3%A9.png"}
    assert [len(task["predictions"][0]["result"]) for task in tasks] == [2, 0, 1]
    result = tasks[0]["predictions"][0]["result"][1]
    assert (result["from_name"], result["to_name"]) == (choices.get("name"), choices.get("toName"))
    assert (result["original_width"], result["original_height"]) == (100, 50)
    expected = {"x": 10.25, "y": 41.0, "width": 20.5, "height": 39.0, "rotation": 0, "rectanglelabels": [LABELS[0]]}
    assert result["value"] == expected


def test_label_studio_where_images_are_no_files(tmp_path: Path) -> None:
    """They are to be put into a folder "images"."""
    run = replace(run_of(FileSource(tmp_path, ["b.png"]), tmp_path, "label-studio"), root=None)
    FORMATS["label-studio"].write(tmp_path, run, IMAGES[1:2])
    (task,) = json.loads((tmp_path / "tasks.json").read_text(encoding="utf-8"))
    assert task["data"] == {"image": "/data/local-files/?d=images/b.png"}


def test_yolo_has_its_images(tmp_path: Path) -> None:
    """The list names those that were labelled, through a link; a second time nothing changes."""
    for _ in range(2):
        output = written(tmp_path, "yolo")
        listed = (output / "images.txt").read_text(encoding="utf-8").splitlines()
        assert listed == ["./images/a é.png", "./images/b.png", "./images/c.png"]
        assert os.readlink(output / "images") == "../in"
        assert all((output / name).is_file() for name in listed)
    document = yaml.safe_load((output / "dataset.yaml").read_text(encoding="utf-8"))
    assert document == {"train": "images.txt", "val": "images.txt", "names": dict(enumerate(LABELS))}


@pytest.mark.parametrize(
    ("images", "output"),
    [("in", "in/out"), ("in", "in"), ("set/images", "set"), ("in", "full"), (None, "out")],
)
def test_yolo_without_a_link(images: str | None, output: str, tmp_path: Path) -> None:
    """Around in a circle, where "images" is there already, and where images are no files."""
    place = tmp_path / output
    for folder in (place, tmp_path / "full" / "images", tmp_path / (images or "in")):
        folder.mkdir(parents=True, exist_ok=True)
    run = run_of(FileSource(tmp_path / (images or "in"), ["b.png"]), place, "yolo", labels=LABELS)
    FORMATS["yolo"].write(place, run if images else replace(run, root=None), IMAGES[1:2])
    assert (place / "labels" / "b.txt").is_file() and (place / "images.txt").read_text() == "./images/b.png\n"
    assert not (place / "images").is_symlink()


def test_folders_are_kept(tmp_path: Path) -> None:
    names = {"yolo": "labels/one/x.txt", "voc": "Annotations/one/x.xml", "labelme": "one/x.json"}
    for format, place in FORMATS.items():
        expected = names.get(format)
        found = place.place("one/x.png") if place.place else None
        assert found == (None if expected is None else PurePosixPath(expected))
