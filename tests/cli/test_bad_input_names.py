"""Names in the files of others that lead out of the folder of the images: one line, whatever the format."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from hf_grounding_dino.cli import PROGRAM
from hf_grounding_dino.cli.main import main
from hf_grounding_dino.data.records import DataError
from hf_grounding_dino.evaluation.sentence_files import caption_samples, expression_samples
from training.runs import write_model

OUT = "leads out of the folder of the images, images"
ODD = "holds characters that are no text"
STRAY = {
    "up": ("../secret.png", OUT),
    "up by a detour": ("sub/../../secret.png", OUT),
    "absolute": ("{here}/secret.png", OUT),
    "beside": ("../images-too/b.png", OUT),
    "zero": ("a\0.png", ODD),
    "line end": ("a\n.png", ODD),
}
BOX = {"bbox": [1, 2, 20, 10], "category_id": 1, "area": 200, "iscrowd": 0}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A good image in "images", and others outside, which are never to be opened."""
    monkeypatch.chdir(tmp_path)
    for name in ("images/a.png", "images/sub/c.png", "images-too/b.png", "secret.png"):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (60, 40)).save(name)
    return tmp_path


def coco(name: str, **image: Any) -> dict[str, Any]:
    """Two images, the second of that name."""
    images: list[dict[str, Any]] = [{"id": i, "width": 60, "height": 40, **image} for i in (1, 2)]
    images[0]["file_name"], images[1]["file_name"] = "a.png", name
    annotations = [{"id": i, "image_id": i, **BOX} for i in (1, 2)]
    return {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "cat", "frequency": "f"}]}


def write_coco(name: str) -> str:
    Path("set.json").write_text(json.dumps(coco(name)))
    return "set.json, image 2: "


def write_mdetr(name: str) -> str:
    Path("set.json").write_text(json.dumps(coco(name, caption="a cat", tokens_positive_eval=[[[2, 5]]])))
    return "set.json, image 2: "


def write_odvg(name: str) -> str:
    instances = [{"bbox": [1, 2, 21, 12], "label": 0, "category": "cat"}]
    lines = [{"filename": one, "detection": {"instances": instances}} for one in ("a.png", name)]
    Path("set.json").write_text("".join(json.dumps(line) + "\n" for line in lines))
    Path("map.json").write_text('{"0": "cat"}')
    return "set.json, line 2: "


def write_yolo(name: str) -> str:
    Path("set.json").write_text(json.dumps({"train": "train.txt", "names": ["cat"]}))
    Path("images/train.txt").write_text(f"a.png\n{name}\n")
    Path("labels").mkdir()
    Path("labels/a.txt").write_text("0 0.5 0.5 0.5 0.5\n")
    return "images/train.txt, line 2: "


def write_voc(name: str) -> str:
    box = "<bndbox><xmin>2</xmin><ymin>3</ymin><xmax>21</xmax><ymax>12</ymax></bndbox>"
    document = f"<annotation><filename>a.png</filename><object><name>cat</name>{box}</object></annotation>"
    for place in ("set.json/Annotations/a.xml", "secret.png.xml"):
        Path(place).parent.mkdir(parents=True, exist_ok=True)
        Path(place).write_text(document)
    lists = Path("set.json/ImageSets/Main/train.txt")
    lists.parent.mkdir(parents=True)
    lists.write_text(f"a\n{name}\n")
    return f"{lists}, line 2: "


def write_datasets(name: str) -> str:
    """As JSON lines; the name of an image is text there."""
    objects = {"bbox": [[1, 2, 20, 10]], "category": ["cat"]}
    lines = [{"file_name": one, "objects": objects} for one in ("a.png", name)]
    Path("set.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return "set.jsonl, row 1: "


WRITERS = {
    "coco": write_coco,
    "odvg": write_odvg,
    "mdetr": write_mdetr,
    "yolo": write_yolo,
    "voc": write_voc,
    "datasets": write_datasets,
}


def options(layout: str) -> list[str]:
    annotations = "set.jsonl" if layout == "datasets" else "set.json"
    label_map = ["--label-map", "map.json"] if layout == "odvg" else []
    return ["--format", layout, "--annotations", annotations, "--images", "images", *label_map]


def complaint(capsys: pytest.CaptureFixture[str]) -> str:
    printed = capsys.readouterr()
    (line,) = [line for line in printed.err.splitlines() if line.startswith(PROGRAM)]
    assert printed.out == ""
    return line.removeprefix(f"{PROGRAM}: ")


@pytest.mark.parametrize("layout", WRITERS)
@pytest.mark.parametrize("kind", STRAY)
def test_a_name_that_leads_out_is_refused(
    kind: str, layout: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The line names the file, the entry and the name; in lists a line end is none."""
    written, problem = STRAY[kind]
    name = written.format(here=here)
    if layout in ("yolo", "voc") and kind == "line end":
        pytest.skip("it ends the entry")
    problem = problem.replace(", images", ", set.json/Annotations") if layout == "voc" else problem
    where = WRITERS[layout](name)
    assert main(["validate", *options(layout)]) == 2
    said = complaint(capsys)
    assert said.startswith(where) and problem in said and repr(name)[1:-1] in said


@pytest.mark.parametrize("layout", ["coco", "lvis", "odvg"])
def test_nothing_is_asked_about_it(layout: str, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The image outside would be found, asked about, and shown in the report."""
    WRITERS.get(layout, write_coco)("../secret.png")
    model = write_model(here / "model")
    assert main(["evaluate", *options(layout), "--model", str(model), "--output", "out"]) == 2
    said = complaint(capsys)
    assert said.startswith("set.json") and f"'../secret.png' {OUT}" in said
    assert not Path("out").exists()


@pytest.mark.parametrize("read", [caption_samples, expression_samples])
def test_captions_and_expressions(read: Any, here: Path) -> None:
    """Flickr30k Entities, RefCOCO and their kin, as the benchmarks read them."""
    write_mdetr("../secret.png")
    with pytest.raises(DataError, match=f"set.json: the name '../secret.png' {OUT}"):
        read(Path("set.json"), Path("images"))


@pytest.mark.parametrize("layout", WRITERS)
@pytest.mark.parametrize("name", ["sub/c.png", "sub/../sub/./c.png", "{here}/images/sub/c.png"])
def test_a_name_that_stays_is_read(name: str, layout: str, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Absolute ones, too, as some tools write them."""
    name = name.format(here=here)
    if layout == "voc":
        pytest.skip("its lists name no images")
    WRITERS[layout](name)
    assert main(["validate", *options(layout), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["images"] == 2


def test_a_folder_above_them_can_be_named(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The way out that the line tells: absolute names, and "/" for the folder."""
    write_coco(f"{here}/secret.png")
    document = json.loads(Path("set.json").read_text())
    document["images"][0]["file_name"] = f"{here}/images/a.png"
    Path("set.json").write_text(json.dumps(document))
    assert main(["validate", "--annotations", "set.json", "--images", "/"]) == 0
    assert "Nothing is odd." in capsys.readouterr().out


def test_a_split_of_voc_that_names_a_file_by_a_detour(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It stays in the folder by a detour, and is none of its files as they are listed: left out."""
    write_voc("sub/../a")
    assert main(["validate", *options("voc")]) == 1
    assert "malformed entry" in capsys.readouterr().out
