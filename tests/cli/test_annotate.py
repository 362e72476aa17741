"""The command `annotate` as people call it, on a tiny model with random weights."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from huggingface_hub import constants
from PIL import Image

import hf_grounding_dino
from fake_hub import COMMIT, NOWHERE, hub_at, put_into_cache
from hf_grounding_dino.annotation.annotator import annotate as annotate_images
from hf_grounding_dino.annotation.checkpoint import AnnotationError
from hf_grounding_dino.annotation.sinks import FORMATS
from hf_grounding_dino.annotation.sources import FileSource
from hf_grounding_dino.cli import PROGRAM
from hf_grounding_dino.cli import annotate as command
from hf_grounding_dino.cli.detect import load_detector
from hf_grounding_dino.cli.main import main
from hf_grounding_dino.data.images import load_image
from hf_grounding_dino.data.shapes import VOCABULARY
from hf_grounding_dino.data.tokenizer import build_tokenizer
from hf_grounding_dino.inference.large_vocabulary import detect
from hf_grounding_dino.processing.image_processing_grounding_dino import GroundingDinoImageProcessor
from hf_grounding_dino.processing.processing_grounding_dino import GroundingDinoProcessor
from hf_grounding_dino.processing.thresholds import Thresholds
from odd_server import odd_server
from tiny import tiny_model

SOURCE = Path(hf_grounding_dino.__file__).parent
LABELS = ["cat", "remote control"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    tiny_model().save_pretrained(folder)
    size = {"shortest_edge": 80, "longest_edge": 133}
    tokenizer = build_tokenizer([*VOCABULARY, "cat", "remote", "control"])
    GroundingDinoProcessor(GroundingDinoImageProcessor(size=size), tokenizer).save_pretrained(folder)
    return folder


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for i, name in enumerate(("in/a/x.png", "in/b/x.png", "in/b/y.png", "in/z.jpg")):
        image_file(tmp_path / name, i)
    return tmp_path


def image_file(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)


def annotate(model: Path, *argv: str, labels: str = "cat, remote control") -> int:
    return main(["annotate", *argv, "--labels", labels, "--model", str(model), "--threshold", "0", "--output", "out"])


def one_line(capsys: pytest.CaptureFixture[str]) -> str:
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1, lines
    return lines[0].removeprefix(f"{PROGRAM}: ")


def test_a_folder(model: Path, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The boxes are those of `vocabulary.detect` on the same images, at the same threshold."""
    assert annotate(model, "--images", "in") == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    document = json.loads(Path("out/annotations.json").read_text(encoding="utf-8"))
    names = ["a/x.png", "b/x.png", "b/y.png", "z.jpg"]
    assert [image["file_name"] for image in document["images"]] == names
    assert printed.out == f"4 images labelled, {len(document['annotations'])} boxes: out\n"
    detector = load_detector(model, "cpu")
    images = [Image.open(here / "in" / name) for name in names]
    truth = detect(detector.model, detector.processor, images, LABELS, scoring="max")
    for i, expected in enumerate(truth, start=1):
        found = [item for item in document["annotations"] if item["image_id"] == i]
        boxes = torch.tensor([item["bbox"] for item in found])
        sides = expected["boxes"][:, 2:] - expected["boxes"][:, :2]
        kept = (sides >= 1).all(1)
        torch.testing.assert_close(boxes[:, :2], expected["boxes"][kept, :2], atol=0.02, rtol=0)
        torch.testing.assert_close(boxes[:, 2:], sides[kept], atol=0.02, rtol=0)
        assert [item["category_id"] - 1 for item in found] == expected["labels"][kept].tolist()


def test_the_info_says_by_which_model_and_rule(
    model: Path, here: Path, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """A repo by its id and commit, a folder by its name and the fingerprint of its weights."""
    cache = tmp_path_factory.mktemp("cache")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    hub_at(monkeypatch, NOWHERE)
    put_into_cache(cache, "someone/finder", model)
    Path("least.json").write_text('{"cat": 0.1}')
    kept = {"threshold": 0.25, "thresholds": {"cat": 0.1}, "scoring": "max", "nms": 0.6, "top_k": 300}
    infos = []
    for name in ("someone/finder", str(model)):
        asked = ["--images", "in", "--labels", "cat", "--thresholds", "least.json", "--nms", "0.6", "--output"]
        output = f"labels-{len(infos)}"
        assert main(["annotate", *asked, output, "--model", name]) == 0
        infos.append(json.loads(Path(output, "annotations.json").read_text())["info"])
        assert {key: infos[-1][key] for key in kept} == kept and infos[-1]["dtype"] == "float32"
    repo, folder = infos
    assert (repo["model"], repo["revision"]) == ("someone/finder", COMMIT)
    assert (folder["model"], folder["revision"]) == (model.name, folder["fingerprint"])
    assert repo["fingerprint"] == folder["fingerprint"] and len(repo["fingerprint"]) == 16


def test_a_run_goes_on_wherever_its_model_lies(model: Path, here: Path) -> None:
    """Under another name it is the same; the name that it was begun with stays."""
    assert annotate(model, "--images", "in", "--shard", "1/2") == 0
    shutil.copytree(model, "moved")
    assert annotate(Path("moved"), "--images", "in", "--shard", "2/2") == 0
    assert json.loads(Path("out/annotations.json").read_text())["info"]["model"] == model.name


def test_shards_and_merge(model: Path, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """4 images are one window, which is shard 1's; shard 2 has nothing to do."""
    assert annotate(model, "--images", "in/**/*.png", "--shard", "2/2", "--format", "yolo") == 0
    assert capsys.readouterr().out == "0 of 3 images done; the files come with the last shard: out\n"
    assert main(["annotate", "--merge", "--output", "out"]) == 2
    assert one_line(capsys) == "out: 3 of 3 images are not done yet: run the shards that are left"
    assert annotate(model, "--images", "in/**/*.png", "--shard", "1/2", "--format", "yolo") == 0
    files = {path: path.read_bytes() for path in Path("out/labels").rglob("*.txt")}
    assert [path.as_posix() for path in sorted(files)] == [f"out/labels/{name}.txt" for name in ("a/x", "b/x", "b/y")]
    assert main(["annotate", "--merge", "--output", "out"]) == 0
    assert {path: path.read_bytes() for path in files} == files


def test_shards_of_a_launch(
    model: Path, here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank, done in (("1", 0), ("0", 4)):
        monkeypatch.setenv("RANK", rank)
        assert annotate(model, "--images", "in") == 0
        assert (Path("out/annotations.json").exists()) == bool(done)


def test_labels_of_several_prompts_and_other_thresholds(model: Path, here: Path) -> None:
    """300 labels do not fit one prompt; a label with threshold 1 is never found, and 3 boxes an image are kept."""
    labels = [f"cat {word}" for word in ("red", "green", "blue")] + ["cat " * i + "remote" for i in range(1, 60)]
    Path("names.txt").write_text("\n".join(labels) + "\n\n", encoding="utf-8")
    Path("t.json").write_text(json.dumps(dict.fromkeys(labels[1:], 1.0)), encoding="utf-8")
    assert annotate(model, "--images", "in", "--thresholds", "t.json", "--top-k", "3", labels="@names.txt") == 0
    found = json.loads(Path("out/annotations.json").read_text(encoding="utf-8"))["annotations"]
    assert {item["category_id"] for item in found} <= {1}
    assert max(sum(item["image_id"] == i for item in found) for i in range(1, 5)) <= 3


@pytest.mark.parametrize(
    "form", [["--threshold", "calibrated"], ["--threshold", "tuned"], ["--thresholds", "model/thresholds.json"]]
)
def test_tuned_thresholds(model: Path, here: Path, form: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """Scored by the mean, as they are for: each label above its own threshold, one box of several labels."""
    shutil.copytree(model, "model")
    asked = ["annotate", "--images", "in", "--labels", "Cat, remote control", "--model", "model", "--output", "out"]
    assert main([*asked, *form]) == 2
    assert "thresholds.json" in one_line(capsys)
    detector = load_detector("model", "cpu")
    images = [load_image(here / "in" / name) for name in ("a/x.png", "b/x.png", "b/y.png", "z.jpg")]
    every = detect(detector.model, detector.processor, images, ["Cat", "remote control"], top_k=None)
    cats = torch.cat([found["scores"][found["labels"] == 0] for found in every])
    Thresholds(1.0, {"cat": float(cats.median())}).write("model")
    assert main([*asked, *form, "--nms", "1"]) == 0
    told = capsys.readouterr().err
    assert ("no tuned threshold for 'remote control': that of all labels" in told) == (form[0] == "--threshold")
    boxes = json.loads(Path("out/annotations.json").read_text(encoding="utf-8"))["annotations"]
    assert {box["category_id"] for box in boxes} == {1}
    assert 0.9 * len(cats) / 2 <= len(boxes) <= len(cats) / 2, "half of them, but for the ones of no width"
    assert main([*asked, "--threshold", "tuned", "--thresholds", "model/thresholds.json"]) == 2
    assert one_line(capsys) == "give either --threshold tuned or --thresholds FILE"
    assert main([*asked, "--threshold", "0.3"]) == 2
    assert "give another folder, or remove this one" in one_line(capsys)


def test_where_images_cannot_be_linked_for_yolo_that_is_said(
    model: Path, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The output lies among the images: a link to their folder would lead in a circle."""
    assert annotate(model, "--images", ".", "--format", "yolo") == 0
    assert one_line(capsys) == "the tools of YOLO want the images, or a link to their folder, at out/images"
    asked = ["annotate", "--images", "in", "--labels", "cat", "--model", str(model), "--format", "yolo"]
    assert main([*asked, "--output", "other"]) == 0
    assert capsys.readouterr().err == "" and Path("other/images/z.jpg").is_file()


def test_a_data_set(model: Path, here: Path) -> None:
    table = datasets.Dataset.from_dict({"image": ["in/z.jpg", "in/a/x.png"]})
    table.cast_column("image", datasets.Image()).save_to_disk("set")
    assert annotate(model, "--dataset", "set", "--format", "odvg") == 0
    lines = [json.loads(line) for line in Path("out/annotations.jsonl").read_text().splitlines()]
    assert [line["filename"] for line in lines] == ["x.png", "z.jpg"]  # saving keeps no folders


@pytest.mark.parametrize("flags", [[], ["--allow-local"]])
def test_rows_that_name_what_lies_elsewhere(
    flags: list[str], model: Path, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A list of a file beside it, one elsewhere, and a server of this machine: the flag alone lets in the last two."""
    image_file(here / "private/photo.png", 9)
    with odd_server(Path("private/photo.png").read_bytes()) as (address, asked):
        names = [str(here / "in/z.jpg"), str(here / "private/photo.png"), f"{address}/whole.png"]
        Path("in/rows.jsonl").write_text("".join(json.dumps({"image": name}) + "\n" for name in names))
        assert annotate(model, "--dataset", "in/rows.jsonl", "--column", "image", *flags) == (0 if flags else 1)
        assert bool(asked) == bool(flags)
    problems = [line.removeprefix(f"{PROGRAM}: ") for line in capsys.readouterr().err.splitlines() if PROGRAM in line]
    assert [line.partition(": ")[0] for line in problems] == ([] if flags else ["00000001.jpg", "00000002.jpg"])


def test_bad_images(model: Path, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("in/bad.png").write_text("no photo")
    assert annotate(model, "--images", "in") == 1
    assert one_line(capsys) == "bad.png: it is not an image"
    assert json.loads(Path("out/problems.jsonl").read_text())["image"] == "bad.png"
    assert main(["annotate", "--images", "in/bad.png", "--labels", "cat", "--model", str(model), "--output", "o"]) == 2


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--images", "none"], "none: no such file"),
        ([], "no images: give --images or --dataset"),
        (["--images", "http://host/a.png"], "--images are files and folders, not URLs"),
        (["--images", "in", "--dataset", "x"], "argument --dataset: not allowed with argument --images"),
        (["--dataset", "./none"], "./none: cannot be loaded"),
        (["--images", "in", "--shard", "0/2"], "--shard 0/2: I/N is needed, from 1/N to N/N"),
        (["--images", "in", "--shard", "3/2"], "--shard 3/2: "),
        (["--images", "in", "--batch-size", "0"], "argument --batch-size: 0 is not a whole number from 1 up"),
        (["--images", "in", "--batch-size", "33"], "the batch size is 33: 1 to 32 is possible"),
        (["--images", "in", "--threshold", "low"], "argument --threshold: low is not a number from 0 to 1"),
        (["--images", "in", "--nms", "2"], "argument --nms: 2 is not a number from 0 to 1"),
        (["--images", "in", "--top-k", "0"], "argument --top-k: 0 is not a whole number from 1 up"),
        (["--images", "in", "--threads", "-1"], "argument --threads: -1 is not a whole number from 1 to 1024"),
        (["--images", "in", "--thresholds", "none.json"], "none.json: No such file"),
        (["--images", "in", "--thresholds", "dog.json"], "there is a threshold of 'dog', which is none of the labels"),
        (["--images", "in", "--thresholds", "two.json"], "the threshold of 'cat' is 2: a number from 0 to 1"),
        (["--images", "in", "--format", "csv"], "argument --format: invalid choice"),
        (["--images", "in", "--merge"], "out: no run has been begun in it"),
        (["--images", "in", "--labels", "@none.txt"], "none.txt: No such file"),
        (["--images", "in", "--labels", "\u4e9a"], "Label 0 ("),
    ],
)
def test_user_errors(
    model: Path, here: Path, argv: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("dog.json").write_text('{"dog": 0.5}')
    Path("two.json").write_text('{"cat": 2}')
    assert annotate(model, *argv) == 2
    assert message in one_line(capsys)


def test_another_run_in_the_folder(model: Path, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert annotate(model, "--images", "in") == 0
    capsys.readouterr()
    assert annotate(model, "--images", "in", labels="cat") == 2
    assert one_line(capsys).startswith(
        'out/.annotate: its predictions were made with labels ["cat", "remote control"], and now it is ["cat"]'
    )


def test_labels_and_formats_that_cannot_be_written(model: Path, here: Path) -> None:
    source = FileSource.from_paths(Path("in").rglob("*.png"), Path("in"))

    def call(labels: Any, **options: Any) -> None:
        annotate_images(load_detector(model, "cpu"), source, labels, "out", **options)

    for labels in (["cat\ndog"], ["cat", "cat"], [], "cat"):
        with pytest.raises(AnnotationError, match="label"):
            call(labels)
    with pytest.raises(AnnotationError, match="the format 'csv' is none of coco"):
        call(["cat"], format="csv")
    assert not Path("out").exists()


def test_the_formats_of_the_help_are_those_there_are(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["annotate", "--help"]) == 0
    printed = capsys.readouterr().out
    assert all(name in printed for name in FORMATS)
    assert set(FORMATS) == set(command.FORMATS)
