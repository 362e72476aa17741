"""FiftyOne and Label Studio read what `annotate` writes, each with its own code, and have what the model found.

They are in an environment of their own: `make test-neighbours`.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from hf_grounding_dino.annotation.checkpoint import Checkpoint, LabelledImage
from hf_grounding_dino.assets import DEMO_IMAGE, DEMO_LABELS
from hf_grounding_dino.cli.main import main

pytestmark = pytest.mark.neighbours
SCRIPTS = Path(__file__).parent
EXIF_ORIENTATION = 0x0112


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`photos`, one of them blank, one turned by EXIF, one in folders, and beside it a folder for each format."""
    place = tmp_path_factory.mktemp("neighbours")
    photos = place / "photos"
    (photos / "more" / "2 é").mkdir(parents=True)
    photo = Image.open(DEMO_IMAGE).convert("RGB")
    photo.save(photos / "a é.png")
    photo.crop((0, 0, photo.width // 2, photo.height)).save(photos / "more" / "2 é" / "half.jpg", quality=95)
    turned = Image.Exif()
    turned[EXIF_ORIENTATION] = 6
    photo.transpose(Image.Transpose.ROTATE_90).save(photos / "more" / "turned.jpg", exif=turned, quality=95)
    Image.new("RGB", (90, 60), "white").save(photos / "blank.png")
    for name in ("coco", "voc", "yolo", "label-studio"):
        argv = ["annotate", "--images", str(photos), "--labels", ",".join(DEMO_LABELS), "--format", name]
        assert main([*argv, "--model", "nano", "--output", str(place / name)]) == 0
    return place


def answers(folder: Path, format: str) -> list[LabelledImage]:
    """What the model found, as the run kept it before any file was written."""
    found = list(Checkpoint(folder / format).labelled())
    assert [len(one.boxes) > 0 for one in found] == [one.name != "blank.png" for one in found]
    assert len(found) == 4 and sum(len(one.boxes) for one in found) > len(DEMO_LABELS)
    return found


def read_with(library: str, *paths: Path, **environment: str) -> Any:
    """What a script of this folder writes, run by the Python that has the library."""
    python = os.environ.get("NEIGHBOURS_PYTHON")
    assert python, "NEIGHBOURS_PYTHON names no Python with FiftyOne and Label Studio's SDK: use `make test-neighbours`"
    home = paths[-1].parent / f"{library}-home"
    home.mkdir()
    fixed = {"HOME": str(home), "FIFTYONE_DATABASE_DIR": str(home / "db"), "FIFTYONE_DO_NOT_TRACK": "true"}
    command = [python, str(SCRIPTS / f"read_with_{library}.py"), *map(str, paths)]
    done = subprocess.run(
        command, env={**os.environ, **fixed, **environment}, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(paths[-1].read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def in_fiftyone(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    return read_with("fiftyone", folder, tmp_path_factory.mktemp("fiftyone") / "found.json")


@pytest.mark.parametrize("format", ["coco", "voc", "yolo"])
def test_fiftyone_has_the_boxes(format: str, folder: Path, in_fiftyone: Any) -> None:
    """Every picture is there, the blank one too. Only COCO has room for scores.

    VOC has whole pixels, half a pixel off at each side, and counts them from 1: a box over the first two is 1 to 2.
    FiftyOne takes that for 1 to 2 of 0 to 2, so that left and top sides come out 1 too large.
    """
    read = in_fiftyone[format]
    found = answers(folder, format)
    assert set(read) == {str(folder / "photos" / one.name) for one in found}
    for one in found:
        there = read[str(folder / "photos" / one.name)]
        assert [label for label, _, _ in there] == [DEMO_LABELS[label] for label in one.labels]
        boxes = np.array([box for _, box, _ in there]).reshape(-1, 4) * (one.size * 2)
        boxes[:, 2:] += boxes[:, :2]
        tolerance = 0.02
        if format == "voc":
            boxes[:, :2] -= 1
            tolerance = 0.51
        np.testing.assert_allclose(boxes, np.array(one.boxes).reshape(-1, 4), atol=tolerance, rtol=0)
        if format == "coco":
            assert [score for _, _, score in there] == one.scores


def test_label_studio_has_the_boxes(folder: Path, tmp_path: Path) -> None:
    """Its own checks find nothing wrong; it opens each picture, and once accepted exports the boxes."""
    read = read_with(
        "label_studio",
        folder / "label-studio",
        tmp_path / "read.json",
        LABEL_STUDIO_LOCAL_FILES_SERVING_ENABLED="true",
        LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT=str(folder),
    )
    assert read["objections"] == []
    coco, found = read["coco"], answers(folder, "label-studio")
    names = {category["id"]: category["name"] for category in coco["categories"]}
    assert sorted(names.values()) == sorted(DEMO_LABELS)
    assert len(coco["images"]) == len(found)
    for number, one in enumerate(found):
        size = coco["images"][number]["width"], coco["images"][number]["height"]
        assert size == Image.open(folder / "photos" / one.name).size  # as the file has it, before EXIF turns it
        there = [item for item in coco["annotations"] if item["image_id"] == number]
        assert [names[item["category_id"]] for item in there] == [DEMO_LABELS[label] for label in one.labels]
        boxes = np.array([item["bbox"] for item in there]).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        np.testing.assert_allclose(boxes, np.array(one.boxes).reshape(-1, 4), atol=0.02, rtol=0)
