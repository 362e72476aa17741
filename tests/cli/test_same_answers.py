"""The same question has the same answer from every door, and what the model that ships cannot know is no question."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from hf_grounding_dino import GroundingDinoPipeline
from hf_grounding_dino.app import web
from hf_grounding_dino.app.search import as_json
from hf_grounding_dino.assets import DEMO_IMAGE, NANO
from hf_grounding_dino.cli import PROGRAM
from hf_grounding_dino.cli.main import main
from hf_grounding_dino.cli.model_options import NANO_ANSWERS
from hf_grounding_dino.models.loading import load_whole
from hf_grounding_dino.processing.defaults import DEFAULTS

LABELS = ["object", "cyan object", "star"]
"""Of which nano finds eight over 0.25, eight more over 0.05, and some of them twice."""
NAMES = ["a.png", "b.png"]
Answers = dict[str, list[tuple[str, float, list[int]]]]
"""By image, for each box label, score and corners in pixels."""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two images of unequal sizes, and a COCO file of them."""
    monkeypatch.chdir(tmp_path)
    Path("in").mkdir()
    image = Image.open(DEMO_IMAGE).convert("RGB")
    image.save("in/a.png")
    image.crop((0, 0, 260, 256)).save("in/b.png")
    document = {
        "images": [{"id": i, "file_name": name, "width": 320 - 60 * i, "height": 256} for i, name in enumerate(NAMES)],
        "categories": [{"id": i, "name": label} for i, label in enumerate(LABELS)],
        "annotations": [
            {"id": 1, "image_id": 0, "category_id": 2, "bbox": [88, 224, 26, 27], "area": 700, "iscrowd": 0}
        ],
    }
    Path("in/coco.json").write_text(json.dumps(document))
    return tmp_path


def corners(bbox: list[float]) -> list[int]:
    x, y, width, height = bbox
    return [int(x), int(y), int(x + width), int(y + height)]


def by_detect(flags: list[str]) -> Answers:
    assert main(["detect", "in", "--labels", ", ".join(LABELS), "--model", "nano", *flags]) == 0
    return {name: listed(json.loads(Path("out", name).with_suffix(".json").read_text())) for name in NAMES}


def listed(rows: list[dict[str, Any]]) -> list[tuple[str, float, list[int]]]:
    return [(row["label"], row["score"], list(row["box"].values())) for row in rows]


def by_annotate(flags: list[str]) -> Answers:
    words = ["--images", "in", "--labels", ", ".join(LABELS), "--output", "annotated"]
    assert main(["annotate", *words, "--model", "nano", *flags]) == 0
    document = json.loads(Path("annotated/annotations.json").read_text())
    return in_coco(document["annotations"], {i["id"]: i["file_name"] for i in document["images"]}, first=1)


def in_coco(rows: list[dict[str, Any]], names: dict[int, str], first: int) -> Answers:
    answers: Answers = {name: [] for name in NAMES}
    for row in rows:
        label = LABELS[row["category_id"] - first]
        answers[names[row["image_id"]]].append((label, row["score"], corners(row["bbox"])))
    return answers


def by_evaluate(flags: list[str]) -> Answers:
    words = ["--annotations", "in/coco.json", "--images", "in", "--save-results", "results.json", "--model", "nano"]
    asked = [] if "--threshold" in flags else ["--threshold", "0.25"]
    assert main(["evaluate", *words, *asked, *flags]) == 0
    return in_coco(json.loads(Path("results.json").read_text()), dict(enumerate(NAMES)), first=0)


def by_app(flags: list[str]) -> Answers:
    """What the app shows at the threshold that it begins with, and lets people download."""
    made: list[Any] = []

    def make_app(predictor: Any, note: str, post: Any) -> Any:
        made.extend((predictor, post))
        return argparse.Namespace(block_thread=lambda: None)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(web, "make_app", make_app)
        patch.setattr(web, "start", lambda app, **where: "http://there")
        assert main(["app", "--model", "nano", *flags]) == 0
    answers = {}
    for name in NAMES:
        result, problem = web.search_image(*made, str(Path("in", name)), "Labels", ", ".join(LABELS), None)
        assert result is not None and problem == ""
        answers[name] = listed(json.loads(as_json(result, made[1].threshold)))
    return answers


def by_pipeline(flags: list[str]) -> Answers:
    """Whose own default is 0.1, as in transformers; what it calls otherwise is said in its words."""
    given = dict(zip(flags[::2], flags[1::2], strict=True))
    options: dict[str, Any] = {
        "threshold": float(given.get("--threshold", 0.25)),
        "top_k": int(given.get("--top-k", 300)),
    }
    if "--nms" in given:
        options["nms"] = float(given["--nms"])
    if "--chunk-size" in given:
        options["chunk_labels"] = int(given["--chunk-size"])
    model, processor = load_whole(NANO)
    pipe = GroundingDinoPipeline(model, processor=processor, device="cpu")
    return {name: listed(pipe(str(Path("in", name)), candidate_labels=LABELS, **options)) for name in NAMES}


OTHER_DOORS: dict[str, Callable[[list[str]], Answers]] = {
    "annotate": by_annotate,
    "evaluate": by_evaluate,
    "app": by_app,
    "pipeline": by_pipeline,
}
QUESTIONS = {
    "as it is": ([], 8),
    "lower": (["--threshold", "0.05"], 16),
    "below the floor of the app": (["--threshold", "0.03"], None),
    "no overlaps": (["--threshold", "0.05", "--nms", "0.5"], 10),
    "the best": (["--threshold", "0.05", "--nms", "0.5", "--top-k", "4"], 4),
    "apart": (["--chunk-size", "1"], None),
    "together": (["--batch-size", "2"], 8),
}


@pytest.mark.parametrize("question", QUESTIONS)
def test_every_door_gives_the_same_answer(here: Path, question: str) -> None:
    """The same labels, boxes to the pixel, and scores to the four digits that annotations keep."""
    flags, count = QUESTIONS[question]
    expected = by_detect(flags)
    assert all(expected.values())
    assert count in (None, len(expected["a.png"]))
    for door, ask in OTHER_DOORS.items():
        for name, found in ask(flags).items():
            assert_same(sorted(found), sorted(expected[name]), f"{door}, {name}")


def assert_same(found: list[Any], expected: list[Any], where: str) -> None:
    assert [row[0] for row in found] == [row[0] for row in expected], where
    assert [row[1] for row in found] == pytest.approx([row[1] for row in expected], abs=1e-4), where
    for one, other in zip(found, expected, strict=True):
        assert one[2] == pytest.approx(other[2], abs=1), where


def options_of(command: str, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The defaults of a command's options by their names."""
    seen: list[argparse.ArgumentParser] = []
    module = __import__(f"hf_grounding_dino.cli.{command}", fromlist=["run"])
    monkeypatch.setattr(module, "run", lambda arguments: seen.append(arguments) or 0)
    needed = {"annotate": ["--output", "o"], "export": ["o.onnx"]}.get(command, [])
    assert main([command, *needed]) == 0
    return vars(seen[0])


def test_every_door_has_the_same_options(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the same defaults; `evaluate` has those of its protocol, which has no threshold."""
    expected = {"threshold": 0.25, "text_threshold": 0.25, "nms": None, "top_k": 300, "chunk_size": None}
    running = {"device": "auto", "dtype": "float32"}
    for command in ("detect", "annotate", "app"):
        options = options_of(command, monkeypatch)
        assert {name: options[name] for name in (*expected, *running)} == {**expected, **running}, command
        assert options["batch_size"] >= 1 and options["model"] is None
    options = options_of("evaluate", monkeypatch)
    by_protocol = {**expected, **running, "threshold": None, "top_k": None, "batch_size": 1, "model": None}
    assert {name: options[name] for name in by_protocol} == by_protocol


# --- the model that ships ----------------------------------------------------------------------------------------

OWN = {
    "detect": ["detect", "in/a.png", "--labels"],
    "annotate": ["annotate", "--images", "in", "--output", "annotated", "--labels"],
    "calibrate": ["calibrate", "--annotations", "in/coco.json", "--images", "in"],
    "evaluate": ["evaluate", "--annotations", "in/coco.json", "--images", "in"],
    "export": ["export", "model.onnx"],
}


def own(command: str, labels: str) -> list[str]:
    """A command on one's own data, without a model."""
    if OWN[command][-1] == "--labels":
        return [*OWN[command], labels]
    document = json.loads(Path("in/coco.json").read_text())
    for category, label in zip(document["categories"], labels.split(", "), strict=False):
        category["name"] = label
    Path("in/coco.json").write_text(json.dumps(document))
    return OWN[command]


@pytest.mark.parametrize("command", OWN)
def test_the_model_that_ships_is_no_default(command: str, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(own(command, "star")) == 2
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.startswith(f"{PROGRAM}: no model: give --model"), printed
    assert not [path for path in here.iterdir() if path.name != "in"]


@pytest.mark.parametrize("command", ["detect", "annotate", "calibrate", "evaluate"])
@pytest.mark.parametrize(("label", "named"), [("cat", "'cat'"), ("a cat", "'a cat'"), ("the photo", "'the photo'")])
def test_labels_that_it_cannot_know_are_refused(
    command: str, label: str, named: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = own(command, f"star, {label}, ring")
    assert main([*words, "--model", "nano", *(["--to", "."] if command == "calibrate" else [])]) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith(PROGRAM)]
    assert len(lines) == 1
    assert f"grounding-dino-nano knows no word of {named}: it was taught eight drawn shapes" in lines[0]
    assert not Path("annotated/annotations.json").exists() and not list(here.glob("out/*"))


def test_a_sentence_that_it_cannot_know_is_refused(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["detect", "in/a.png", "--caption", "A cat on a sofa", "--model", "nano"]) == 2
    assert "knows no word of 'A cat on a sofa'" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["detect", "annotate", "evaluate"])
def test_labels_that_it_knows_in_part_are_named(command: str, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*own(command, "star, red cat, Ring"), "--model", "nano"]) == 0
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith(PROGRAM) and "know" in line]
    assert len(lines) == 1 and "grounding-dino-nano does not know 'cat' of 'red cat'" in lines[0]


def test_the_app_says_so_too(here: Path) -> None:
    from hf_grounding_dino.cli.detect import load_detector

    predictor = load_detector("nano", "cpu")
    result, problem = web.search_image(predictor, DEFAULTS, "in/a.png", "Labels", "star, cat", None)
    assert result is None and "knows no word of &#x27;cat&#x27;" in problem
    result, said = web.search_image(predictor, DEFAULTS, "in/a.png", "Labels", "star, red cat", None)
    assert result is not None and "does not know &#x27;cat&#x27; of &#x27;red cat&#x27;" in said


@pytest.mark.parametrize("argv", [["app"], ["evaluate", "shapes", "--limit", "2"]], ids=lambda argv: argv[0])
def test_where_it_answers_it_says_so(
    argv: list[str], here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(web, "start", lambda app, **where: setattr(app, "block_thread", lambda: None) or "there")
    assert main(argv) == 0
    assert f"{PROGRAM}: {NANO_ANSWERS}\n" in capsys.readouterr().err
