"""The command `tune-thresholds` as people call it: thresholds beside the model, for pipeline and `detect`."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from evaluation.roots import coco, truth_as_predictions, write_predictions, write_root
from hf_grounding_dino import GroundingDinoForObjectDetection, GroundingDinoPipeline, GroundingDinoProcessor
from hf_grounding_dino.cli import PROGRAM
from hf_grounding_dino.cli.main import main
from hf_grounding_dino.data.records import SourceEntry
from hf_grounding_dino.data.shapes import write_odvg
from hf_grounding_dino.evaluation.datasets import source_task
from hf_grounding_dino.processing.thresholds import THRESHOLDS_FILE, Thresholds
from training.runs import write_model

IMAGES = 9
LABELS = ["red circle", "blue", "green square"]
"""Of the file's red_circle, blue (ring) and green square: what the model is asked for."""


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("home") / "model")


@pytest.fixture
def model(original: Path, tmp_path: Path) -> Path:
    """A model of the test's own, without thresholds."""
    return Path(shutil.copytree(original, tmp_path / "model"))


@pytest.fixture(scope="module")
def mine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mine")
    (folder / "mine.json").write_text(json.dumps(coco(folder, IMAGES)))
    return folder / "mine.json"


def tune(*words: Any) -> int:
    return main(["tune-thresholds", *map(str, words)])


def one_line(capsys: pytest.CaptureFixture[str]) -> str:
    printed = capsys.readouterr()
    lines = printed.err.splitlines()
    assert len(lines) == 1 and printed.out == "" and lines[0].startswith(f"{PROGRAM}: "), printed
    return lines[0].removeprefix(f"{PROGRAM}: ")


def scored(mine: Path, folder: Path, right: float = 0.8, wrong: float = 0.4) -> Path:
    """Predictions: each thing is found with one score, and again beside it, wrongly, with another."""
    task = source_task(SourceEntry(format="coco", annotations=str(mine)))
    answers = {}
    for sample_id, answer in truth_as_predictions(task).items():
        count = len(answer.scores)
        beside = answer.boxes + np.float32(500)
        answers[sample_id] = answer._replace(
            boxes=np.concatenate([answer.boxes, beside]),
            scores=np.repeat(np.array([right, wrong], np.float32), count),
            labels=np.tile(answer.labels, 2),
        )
    write_predictions(folder, answers)
    return folder


def test_thresholds_lie_between_right_and_wrong(
    mine: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Half way between 0.8, always right, and 0.4, always wrong: 0.6, under the words that the model is asked for."""
    given = scored(mine, tmp_path / "given")
    assert tune("--model", model, "--annotations", mine, "--predictions", given) == 0
    thresholds = Thresholds.from_pretrained(model)
    assert thresholds.default == pytest.approx(0.6)
    assert sorted(thresholds.labels) == sorted(LABELS)
    assert thresholds.for_labels(LABELS) == pytest.approx([0.6] * 3)
    assert thresholds.source == f"{IMAGES} images of mine"
    out = capsys.readouterr().out
    rows = [line.split() for line in out.splitlines()]
    assert rows[0] == ["threshold", "precision", "recall", "F1", "objects"]
    assert rows[4][:6] == ["all", "labels", "0.600", "1.000", "1.000", "1.000"]
    assert out.endswith(f"written: {model / THRESHOLDS_FILE}\n")


def test_a_model_is_asked_and_everything_uses_the_file(
    mine: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before there is a file, `detect` says how to make one; a threshold between two scores keeps what is above it."""
    image, out = mine.parent / "0000.png", tmp_path / "out"
    detect = ["detect", str(image), "--labels", ", ".join(LABELS), "--model", str(model), "--output", str(out)]
    tuned = [*detect, "--threshold", "tuned"]
    assert main(tuned) == 2
    assert THRESHOLDS_FILE in one_line(capsys)
    answers = tmp_path / "answers"
    assert tune("--model", model, "--annotations", mine, "--output", answers, "--limit", 4) == 0
    assert (answers / "predictions").is_dir() and (model / THRESHOLDS_FILE).is_file()
    Thresholds(0.0).write(model)
    every = found(tuned, out)
    middle = np.median([one["score"] for one in every])
    given = scored(mine, tmp_path / "given", middle + 0.01, middle - 0.01)
    assert tune("--model", model, "--annotations", mine, "--predictions", given) == 0
    kept = found(tuned, out)
    assert 0 < len(kept) < len(every)
    assert kept == [
        one for one in every if one["score"] > Thresholds.from_pretrained(model).for_labels([one["label"]])[0]
    ]
    own: Any = GroundingDinoForObjectDetection.from_pretrained(model)
    detector = GroundingDinoPipeline(own, processor=GroundingDinoProcessor.from_pretrained(model))
    piped = detector(Image.open(image), candidate_labels=LABELS, threshold="tuned")
    assert [(one["label"], one["box"]) for one in piped] == [(one["label"], one["box"]) for one in kept]


def found(detect: list[str], out: Path) -> list[Any]:
    assert main(detect) == 0
    detections: list[Any] = json.loads((out / "0000.json").read_text())
    return detections


def test_another_folder_can_be_named(mine: Path, model: Path, tmp_path: Path) -> None:
    given, to = scored(mine, tmp_path / "given"), tmp_path / "to"
    to.mkdir()
    words = ("--model", "someone/model", "--annotations", mine, "--predictions", given, "--to", to)
    assert tune(*words) == 0
    assert Thresholds.from_pretrained(to).default == pytest.approx(0.6)
    assert not (model / THRESHOLDS_FILE).exists()


def test_what_has_no_thresholds_is_refused(
    mine: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = write_odvg(tmp_path / "odvg", count=1, seed=0, split="val", task="referring")
    captions = ("--format", "odvg", "--annotations", lines, "--images", tmp_path / "odvg" / "images")
    root = write_root("refcoco", tmp_path / "refcoco")
    empty = tmp_path / "empty.json"
    document = json.loads(mine.read_text())
    empty.write_text(json.dumps({**document, "annotations": []}))
    nothing = ("--annotations", empty, "--images", mine.parent, "--limit", 1, "--output", tmp_path / "answers")
    for words, message in (
        (captions, "has sentences instead of labels, so there are no thresholds to choose"),
        (("refcoco_val", "--data", root), "refcoco_val: has sentences instead of labels"),
        (("refcoco", "--data", root), "thresholds are chosen on one set, not on 3: refcoco_val, refcoco_testA, "),
        ((), "name a benchmark with --data FOLDER"),
        (nothing, "no object is in these images, so no threshold can be chosen"),
    ):
        capsys.readouterr()
        assert tune("--model", model, *words) == 2
        printed = capsys.readouterr()
        assert message in printed.err.splitlines()[-1] and printed.out == ""
    assert not (model / THRESHOLDS_FILE).exists()
    assert tune("--model", "someone/model", "--annotations", mine) == 2
    assert one_line(capsys) == "someone/model: no such folder for thresholds.json; name one with --to"
