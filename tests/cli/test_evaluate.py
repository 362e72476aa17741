"""The command `evaluate` as people call it: every benchmark on a few images, with a tiny model or with the truth."""

from __future__ import annotations

import json
import re
import socket
import sys
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from accelerate import PartialState, debug_launcher
from accelerate.state import AcceleratorState
from huggingface_hub import constants

from evaluation.roots import coco, truth_as_predictions, write_predictions, write_root
from hf_grounding_dino.assets import NANO
from hf_grounding_dino.cli import PROGRAM
from hf_grounding_dino.cli.detect import load_detector
from hf_grounding_dino.cli.main import main
from hf_grounding_dino.data.shapes import write_odvg
from hf_grounding_dino.evaluation.benchmarks import BENCHMARKS, find_benchmark
from hf_grounding_dino.evaluation.datasets import benchmark_tasks
from hf_grounding_dino.evaluation.metrics.base import ScoredBoxes
from hf_grounding_dino.inference.predictions import PredictionStore
from hf_grounding_dino.inference.predictor import Predictor
from training.runs import write_model

NAMES = [benchmark.name for benchmark in BENCHMARKS if benchmark.name != "odinw35"]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def model(home: Path) -> Path:
    return write_model(home / "model")


@pytest.fixture(scope="module")
def roots(home: Path) -> Any:
    """Gives the data root of a benchmark."""
    return cache(lambda name: write_root(name, home / name))


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    """A COCO file of three images, beside them."""
    folder = tmp_path / "mine"
    document = coco(folder)
    (folder / "mine.json").write_text(json.dumps(document))
    return folder / "mine.json"


load_once = cache(load_detector)


@pytest.fixture(autouse=True)
def loaded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The models that were loaded, each of them really once only."""
    names: list[str] = []

    def load(name: str, *options: Any) -> Predictor:
        names.append(name)
        return load_once(name, *options)

    monkeypatch.setattr("hf_grounding_dino.cli.detect.load_detector", load)
    return names


def evaluate(*words: Any) -> int:
    return main(["evaluate", *map(str, words)])


def metrics(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "metrics.json").read_text())
    return content


def one_line(capsys: pytest.CaptureFixture[str]) -> str:
    """The only line of stderr, without the name of the program; stdout is empty."""
    printed = capsys.readouterr()
    lines = printed.err.splitlines()
    assert len(lines) == 1 and printed.out == "", printed
    assert lines[0].startswith(f"{PROGRAM}: ")
    return lines[0].removeprefix(f"{PROGRAM}: ")


def complaints(capsys: pytest.CaptureFixture[str]) -> list[str]:
    """What was said on stderr beside bars."""
    lines = capsys.readouterr().err.replace("\r", "\n").splitlines()
    return [line.removeprefix(f"{PROGRAM}: ") for line in lines if line.startswith(PROGRAM)]


def same_answers(one: Path, other: Path) -> bool:
    """To 1e-4, in pixels and scores: what runs together decides a last bit."""
    left, right = dict(PredictionStore(one)), dict(PredictionStore(other))
    pairs = [zip(left[sample_id], right[sample_id], strict=True) for sample_id in left if sample_id in right]
    return left.keys() == right.keys() and all(np.allclose(a, b, rtol=0, atol=1e-4) for pair in pairs for a, b in pair)


# --- the benchmarks ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_every_benchmark_goes_through(
    name: str, roots: Any, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One image of each set: numbers, a page, the protocol, and a table of the sets where there are several."""
    benchmark, report = find_benchmark(name), tmp_path / "report"
    assert evaluate(name, "--data", roots(name), "--model", model, "--limit", 1, "--output", report) == 0
    tasks = benchmark_tasks(benchmark, roots(name))
    out = capsys.readouterr().out
    for task in tasks:
        folder = report / task.name if len(tasks) > 1 else report
        content = metrics(folder)
        assert content["metrics"] and all(-1 <= value <= 1 for value in content["metrics"].values())
        assert content["task"] == task.name and content["model"] == str(model)
        protocol = content["protocol"]
        assert protocol["prompting"] == json.loads(json.dumps(task.prompting.protocol)) and protocol["prompting"][
            "top_k"
        ] in (30, 300)
        assert protocol["images"]["size"] == {"shortest_edge": 64, "longest_edge": 96}
        assert protocol["limit"] == "the first 1 samples"
        assert content["counts"]["samples"] == len(task) and content["counts"]["scored"] == 1
        assert f"{task.name}: 1 of {len(task)} samples\n" in out and str(folder / "index.html") in out
        page = (folder / "index.html").read_text()
        assert "<html" in page and "http-equiv" in page
    if len(tasks) > 1:
        assert list(metrics(report)["sets"]) == [task.name for task in tasks]
        assert (report / "index.html").is_file()


@pytest.mark.parametrize("name", ["coco", "odinw13", "refcoco"])
def test_the_truth_as_predictions_scores_one(
    name: str, roots: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Law 18 through the whole command; AR1 and AR10 allow fewer boxes than there are things."""
    tasks = benchmark_tasks(find_benchmark(name), roots(name))
    given, report = tmp_path / "given", tmp_path / "report"
    for task in tasks:
        write_predictions(given / task.name / "predictions" if len(tasks) > 1 else given, truth_as_predictions(task))
    assert evaluate(name, "--data", roots(name), "--predictions", given, "--output", report) == 0
    for task in tasks:
        content = metrics(report / task.name if len(tasks) > 1 else report)
        values = {key: value for key, value in content["metrics"].items() if key not in ("AR1", "AR10")}
        assert set(values.values()) <= {1, -1} and 1 in values.values(), (task.name, values)
        assert content["published"] == [] and content["speed"]["seconds"] is None
    if name == "odinw13":
        assert metrics(report)["mean"] == {"AP": 1.0}
        assert "mean AP of 13 sets: 1.0000" in capsys.readouterr().out


def test_shapes_needs_no_data(model: Path, tmp_path: Path) -> None:
    """Two scenes of each of three sets; its page names them in whole, and leaves columns by size to the reports."""
    assert evaluate("shapes", "--model", model, "--limit", 2, "--output", tmp_path) == 0
    sets = metrics(tmp_path)["sets"]
    assert [
        (name, headline in scores)
        for (name, scores), headline in zip(sets.items(), ("AP", "novel_AP", "P@1"), strict=True)
    ] == [("shapes_seen", True), ("shapes_unseen", True), ("shapes_referring", True)]
    page = (tmp_path / "index.html").read_text()
    assert all(f'href="{name}/index.html"' in page for name in sets)
    assert "novel_AP" in page and "AR100" not in page and "AR100" in sets["shapes_seen"]


def test_published_numbers_stand_beside(
    roots: Any, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """COCO 0.484 of the tiny model; of RefCOCO each split has its own; Shapes and ODinW's sets have none."""
    predictor = load_once(str(model))
    monkeypatch.setattr("hf_grounding_dino.cli.evaluate.predictor_for", lambda *_: predictor)
    tiny = "IDEA-Research/grounding-dino-tiny"

    def published(name: str) -> Path:
        folder = tmp_path / name
        assert evaluate(name, "--data", roots(name), "--model", tiny, "--limit", 1, "--output", folder) == 0
        return folder

    numbers = metrics(published("coco"))["published"]
    assert {"AP", 0.484} <= {value for number in numbers for value in (number["metric"], number["value"])}
    assert "published 0.4840" in capsys.readouterr().out
    folder = published("refcoco")
    own = {part: metrics(folder / part)["published"] for part in ("refcoco_val", "refcoco_testA")}
    assert own["refcoco_val"] and own["refcoco_val"] != own["refcoco_testA"]
    notes = [number["note"] for number in metrics(folder)["published"]]
    assert any(note.startswith("refcoco_testB; ") for note in notes)
    folder = published("odinw13")
    assert metrics(folder / "Aquarium")["published"] == []
    assert evaluate("shapes", "--model", tiny, "--limit", 1, "--output", tmp_path / "shapes") == 0


# --- going on, and scoring again ---------------------------------------------------------------------------------


def test_a_run_goes_on_and_is_scored_again(mine: Path, model: Path, tmp_path: Path, loaded: list[str]) -> None:
    """One sample of three, then all: only two are asked, and all is as if they had been asked at once.

    Scored again the numbers are the same, without a model; and so they are with one case of the three again.
    """
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    own = ("--annotations", mine, "--model", model)
    assert evaluate(*own, "--output", whole) == 0
    assert evaluate(*own, "--output", parts, "--limit", 1) == 0
    first = metrics(parts)["metrics"]
    assert evaluate(*own, "--output", parts) == 0
    counts = [pq.read_metadata(file).num_rows for file in sorted((parts / "predictions").glob("*.parquet"))]
    assert counts == [1, 2], "the second run asks for what the first has not"
    assert same_answers(whole / "predictions", parts / "predictions")
    assert metrics(parts)["metrics"] == metrics(whole)["metrics"]
    assert metrics(parts)["per_class"] == metrics(whole)["per_class"]
    assert len(loaded) == 3
    again = tmp_path / "again"
    for given in (whole, whole / "predictions"):
        assert evaluate("--annotations", mine, "--predictions", given, "--output", again) == 0
        assert metrics(again)["metrics"] == metrics(whole)["metrics"]
        assert metrics(again)["protocol"] == metrics(whole)["protocol"]
    limited = tmp_path / "limited"
    assert evaluate("--annotations", mine, "--predictions", whole, "--output", limited, "--limit", 1) == 0
    assert metrics(limited)["metrics"] == first
    assert len(loaded) == 3, "predictions need no model"
    (parts / "metrics.json").unlink()
    assert evaluate(*own, "--output", parts, "--limit", 1) == 0
    assert metrics(parts)["metrics"] == first and metrics(parts)["speed"]["images_per_second"] is None


@pytest.mark.parametrize("name", ["mine", "refcoco"])
def test_a_part_never_replaces_the_report_of_the_whole(
    name: str,
    mine: Path,
    roots: Any,
    model: Path,
    tmp_path: Path,
    loaded: list[str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A limited report is replaced by another one and by a full one, which no limited run replaces."""
    report = tmp_path / "report"
    data = ("--annotations", mine) if name == "mine" else (name, "--data", roots(name))
    own = (*data, "--model", model, "--output", report)
    pages = {}
    for limit in (1, 2, None):
        assert evaluate(*own, *([] if limit is None else ["--limit", limit])) == 0
        pages[limit] = (report / "index.html").read_text()
    assert "the first 1 samples" in pages[1] and "the first 2 samples" in pages[2] and "the first" not in pages[None]
    before, asked = {path: path.read_bytes() for path in report.rglob("*.*")}, len(loaded)
    capsys.readouterr()
    assert evaluate(*own, "--limit", 1) == 2
    assert "the report of all samples is there: give another --output with --limit" in one_line(capsys)
    assert {path: path.read_bytes() for path in report.rglob("*.*")} == before and len(loaded) == asked
    assert evaluate(*own, "--limit", 1000) == 0, "these are all samples"


def test_nothing_to_measure_is_no_number(
    mine: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """COCO has -1 for an AP of no boxes, and so has metrics.json; people read that there is none."""
    document = json.loads(mine.read_text())
    for box in document["annotations"]:
        box["area"] = 10  # all of them small
    mine.write_text(json.dumps(document))
    report = tmp_path / "report"
    assert evaluate("--annotations", mine, "--model", model, "--output", report) == 0
    assert metrics(report)["metrics"]["APl"] == -1
    printed = capsys.readouterr().out
    assert re.search(r"^  APl +n/a$", printed, re.MULTILINE) and " -1" not in printed
    page = re.sub(r"<(script|style).*?</\1>|<[^>]+>", " ", (report / "index.html").read_text(), flags=re.DOTALL)
    assert "\u2013" in page and not re.search(r"[-\u2212]1(00)?\.0", page)


def test_what_another_model_or_protocol_has_answered_is_refused(
    mine: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = ("--annotations", mine, "--output", tmp_path / "report", "--limit", 1)
    assert evaluate(*own, "--model", model) == 0
    before = (tmp_path / "report" / "metrics.json").read_bytes()
    for others, key in (
        (("--model", NANO), "model"),
        (("--model", model, "--top-k", 5), "prompting.top_k 300, and now it is 5"),
        (("--model", model, "--chunk-size", 2), "prompting.chunk_labels null, and now it is 2"),
        (("--model", model, "--dtype", "bfloat16"), "dtype"),
    ):
        capsys.readouterr()
        assert evaluate(*own, *others) == 2
        said = one_line(capsys)
        assert said.startswith(f"{tmp_path / 'report' / 'predictions'}: ") and key in said
    assert (tmp_path / "report" / "metrics.json").read_bytes() == before


def test_a_part_is_scored_when_it_is_asked_for(
    mine: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Answers to one case of three: refused, or with --partial the numbers of that one, and a warning."""
    assert evaluate("--annotations", mine, "--model", model, "--limit", 1, "--output", tmp_path / "a") == 0
    capsys.readouterr()
    again = ("--annotations", mine, "--predictions", tmp_path / "a", "--output", tmp_path / "b")
    assert evaluate(*again) == 2
    assert "2 of 3 samples have no prediction, the first is 14" in one_line(capsys)
    assert evaluate(*again, "--partial") == 0
    assert metrics(tmp_path / "b")["metrics"] == metrics(tmp_path / "a")["metrics"]
    (warning,) = [line for line in complaints(capsys) if "Only" in line]
    assert warning.startswith("Only 1 of 3 samples (33.3%) were evaluated")


@pytest.mark.parametrize("name", ["coco", "refcoco"])
def test_results_are_saved_and_read_again(name: str, roots: Any, model: Path, tmp_path: Path) -> None:
    """Of several sets a file each, which --predictions finds by the name that was given."""
    file, benchmark = tmp_path / "to" / "results.json", (name, "--data", roots(name))
    saved, again = tmp_path / "saved", tmp_path / "again"
    assert evaluate(*benchmark, "--model", model, "--save-results", file, "--output", saved) == 0
    rows = json.loads(next(file.parent.glob("*.json")).read_text())
    assert set(rows[0]) == {"image_id", "category_id", "bbox", "score"}
    assert evaluate(*benchmark, "--predictions", file, "--output", again) == 0
    numbers = metrics(again)["sets" if name == "refcoco" else "metrics"]
    assert numbers == metrics(saved)["sets" if name == "refcoco" else "metrics"]
    assert len(list(file.parent.iterdir())) == (3 if name == "refcoco" else 1)


# --- options -----------------------------------------------------------------------------------------------------


def test_how_much_is_asked_and_kept(mine: Path, model: Path, tmp_path: Path) -> None:
    """Two labels a prompt are another protocol; of 60 pairs of box and label 4 are kept."""
    report = tmp_path / "report"
    words = ("--chunk-size", 2, "--top-k", 4, "--batch-size", 2, "--num-workers", 1)
    assert evaluate("--annotations", mine, "--model", model, "--output", report, *words) == 0
    protocol = metrics(report)["protocol"]
    assert (protocol["prompting"]["chunk_labels"], protocol["prompting"]["top_k"]) == (2, 4)
    answers = dict(PredictionStore(report / "predictions"))
    assert [len(answer.scores) for answer in answers.values()] == [4, 4, 4]


def test_counting_as_mmdetection_does(mine: Path, model: Path, tmp_path: Path) -> None:
    """The same predictions under other limits: 1000 boxes of a class in a image."""
    own, report = ("--annotations", mine), tmp_path / "report"
    assert evaluate(*own, "--model", model, "--output", report) == 0
    assert "AR1000" not in metrics(report)["metrics"]
    assert evaluate(*own, "--predictions", report, "--output", report, "--mmdet-compatible") == 0
    assert "AR1000" in metrics(report)["metrics"]
    assert metrics(report)["protocol"]["counted"] == "as mmdetection does"


def test_captions_by_phrases_or_as_expressions(tmp_path: Path, model: Path) -> None:
    lines = write_odvg(tmp_path, count=2, seed=0, split="val", task="referring")
    own = ("--format", "odvg", "--annotations", lines, "--images", tmp_path / "images", "--model", model)
    for reading, metric in (("phrases", "R@1"), ("expressions", "P@1")):
        assert evaluate(*own, "--as", reading, "--output", tmp_path / reading) == 0
        assert metric in metrics(tmp_path / reading)["metrics"]
    assert evaluate(*own, "--output", tmp_path / "default") == 0
    assert metrics(tmp_path / "default")["metrics"] == metrics(tmp_path / "expressions")["metrics"]


def test_missing_and_unreadable_images(
    mine: Path, model: Path, tmp_path: Path, loaded: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """A missing one is refused before a model is loaded, or left out; one that cannot be read makes it exit code 1."""
    own = ("--annotations", mine, "--model", model, "--output", tmp_path / "report")
    (mine.parent / "0001.png").unlink()
    (mine.parent / "0002.png").write_bytes(b"no image")
    assert evaluate(*own) == 2
    assert one_line(capsys) == f"{mine}: 1 of 3 images are missing (0001.png)"
    assert not loaded
    assert evaluate(*own, "--leave-out-missing") == 1
    said = " ".join(complaints(capsys))
    assert "1 image is missing: 0001.png." in said and "1 image is unreadable: 21: " in said
    content = metrics(tmp_path / "report")
    assert (content["counts"]["samples"], content["counts"]["scored"], content["missing"]) == (3, 2, ["0001.png"])
    assert content["unreadable"] == ["21: it is not an image"]


def test_words_for_labels(mine: Path, model: Path, tmp_path: Path) -> None:
    """The model is asked for other words; the report goes on with the names of the file."""
    words = tmp_path / "words.json"
    words.write_text(json.dumps({"blue (ring)": "ring"}))
    own = ("--annotations", mine, "--model", model, "--label-map", words, "--limit", 1, "--output", tmp_path / "a")
    assert evaluate(*own) == 0
    content = metrics(tmp_path / "a")
    assert content["protocol"]["prompting"]["prompts"] == {"1": "red circle", "3": "ring", "5": "green square"}
    assert {row["name"] for row in content["per_class"]} == {"red_circle", "blue (ring)", "green square"}


def test_the_list_names_every_benchmark(capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluate("--list") == 0
    out = capsys.readouterr().out
    for benchmark in BENCHMARKS:
        assert f"\n{benchmark.name} " in out and benchmark.title in out
        assert all(split.annotations[0] in out for split in benchmark.splits)


def test_the_report_says_what_repeats_it(mine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "a b"
    write_predictions(
        tmp_path / "given", {i: ScoredBoxes(np.zeros((0, 4)), np.zeros(0), np.zeros(0)) for i in (7, 14, 21)}
    )
    words = ["--annotations", str(mine), "--predictions", str(tmp_path / "given"), "--output", str(folder)]
    monkeypatch.setattr(sys, "argv", [PROGRAM, "evaluate", *words])
    assert main(sys.argv[1:]) == 0
    command = metrics(folder)["command"]
    assert command.startswith(f"{PROGRAM} evaluate --annotations {mine}") and command.endswith(f"'{folder}'")


# --- bad input ---------------------------------------------------------------------------------------------------

IMAGE = {"id": 1, "file_name": "0000.png"}
CLASS = {"id": 1, "name": "ring"}


def box(**changes: Any) -> dict[str, Any]:
    return {"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 2, 3, 4], **changes}


def document(**changes: Any) -> dict[str, Any]:
    return {"images": [IMAGE], "annotations": [box()], "categories": [CLASS], **changes}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (document(annotations=[box(image_id=4)]), "annotation entry 1: image 4 is not among the images"),
        ([1], "one JSON object with"),
    ],
)
def test_bad_annotations_are_one_line_and_2(
    content: Any, message: str, mine: Path, loaded: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    mine.write_text(json.dumps(content))
    assert evaluate("--annotations", mine, "--model", "nano", "--output", mine.parent / "report") == 2
    said = one_line(capsys)
    assert said.startswith(str(mine)) and message in said
    assert not loaded and not (mine.parent / "report").exists()


ROW = {"image_id": 7, "category_id": 1, "bbox": [1, 2, 3, 4], "score": 0.5}


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([ROW | {"image_id": 99}], "image 99 is not in mine"),
        ([ROW | {"category_id": 99}], "image 7: label 99 is no label of mine"),
        ({}, "a list of predictions is needed"),
    ],
)
def test_bad_results_are_one_line_and_2(
    rows: Any, message: str, mine: Path, tmp_path: Path, loaded: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "results.json"
    file.write_text(json.dumps(rows))
    assert evaluate("--annotations", mine, "--predictions", file, "--output", tmp_path / "report") == 2
    said = one_line(capsys)
    assert said.startswith(str(file)) and message in said
    assert not loaded and not (tmp_path / "report").exists()


def test_bad_predictions_are_one_line_and_2(
    mine: Path, tmp_path: Path, loaded: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """In a store: NaN as a score, a box with x2 < x1, and a file that ends early."""
    one = ScoredBoxes(np.array([[1, 1, 5, 5]], np.float32), np.ones(1, np.float32), np.array([1]))
    wrong = [
        (one._replace(scores=np.array([np.nan], np.float32)), "image 14: score 0 is nan"),
        (one._replace(boxes=np.array([[5, 1, 1, 5]], np.float32)), "image 14: box 0 is [5.0, 1.0, 1.0, 5.0]"),
    ]
    for number, (answer, message) in enumerate(wrong):
        folder = tmp_path / str(number)
        write_predictions(folder, {7: one, 14: answer, 21: one})
        assert evaluate("--annotations", mine, "--predictions", folder) == 2
        said = one_line(capsys)
        assert said.startswith(str(folder)) and message in said
    assert not loaded


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "name a benchmark with --data FOLDER (see --list), or a data set with --annotations PATH"),
        (("coko", "--data", "."), "no benchmark is called 'coko'; the nearest is 'coco'"),
        (("coco",), "--data is missing: the folder of COCO val2017, downloadable from https://cocodataset.org"),
        (("coco", "--data", "."), "no model: give --model"),
        (("--annotations", "{mine}"), "no model: give --model"),
        (("coco", "--data", "{mine}", "--model", "m"), "no such folder; COCO val2017 can be downloaded from"),
        (
            ("coco", "--data", "{folder}", "--model", "m"),
            "needs annotations/instances_val2017.json, which does not exist",
        ),
        (("coco", "--data", ".", "--annotations", "{mine}"), "give the benchmark coco or --annotations, not both"),
        (("--annotations", "{mine}", "--predictions", "none.json"), "none.json: there are no predictions of mine"),
        (("--annotations", "{mine}", "--predictions", "x", "--top-k", "5"), "--chunk-size and --top-k are for asking"),
        (("--annotations", "{folder}/none.json", "--model", "m"), "none.json: No such file or directory"),
        (("--annotations", "{mine}", "--format", "koko"), "format 'koko' is not one of coco, lvis, odvg"),
        (("--annotations", "{mine}", "--predictions", "x", "--nms", "0.5"), "--threshold and --nms are for asking"),
        (("--annotations", "{mine}", "--limit", "0"), "argument --limit: 0 is not a whole number from 1 up"),
        (("--annotations", "{mine}", "--modle", "x"), "unrecognized arguments: --modle"),
        (("--annotations", "{mine}", "--model", "./none"), "no such model: ./none"),
        (("--annotations", "{mine}", "--model", "nano", "--device", "cuda:77"), "the device cuda:77 cannot be used"),
    ],
)
def test_mistakes_are_one_line_and_2(
    words: tuple[str, ...],
    message: str,
    mine: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(mine.parent)
    assert evaluate(*(word.format(mine=mine, folder=mine.parent) for word in words)) == 2
    assert message in one_line(capsys)


# --- two processes, and no network -------------------------------------------------------------------------------


def on_two(words: list[str]) -> None:
    AcceleratorState._reset_state(reset_partial_state=True)
    assert main(words) == 0
    PartialState().destroy_process_group()


def test_two_processes_equal_one(roots: Any, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Law 19, on a CPU too: three sets, of each three expressions on two processes."""
    words = ["evaluate", "refcoco", "--data", str(roots("refcoco")), "--limit", "3", "--model", str(model)]
    words += ["--device", "cpu", "--output"]
    assert main([*words, str(tmp_path / "one")]) == 0
    for name in ("KMP_INIT_AT_FORK", "OMP_NUM_THREADS"):
        monkeypatch.setenv(name, "1")
    debug_launcher(on_two, ([*words, str(tmp_path / "two")],), num_processes=2)
    for part in ("refcoco_val", "refcoco_testA", "refcoco_testB"):
        one, two = (tmp_path / name / part / "predictions" for name in ("one", "two"))
        assert {file.name[:9] for file in two.glob("*.parquet")} == {"part-0000", "part-0001"}
        assert same_answers(one, two)
    assert metrics(tmp_path / "two")["sets"] == metrics(tmp_path / "one")["sets"]


def test_nothing_needs_a_network(roots: Any, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Law 23: no socket to anywhere is opened and no name looked up, though nobody said that there is no network."""
    tried: list[Any] = []

    def refuse(*where: Any, **_: Any) -> None:
        tried.append(where)
        raise OSError("no network in this test")

    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    for door in ("connect", "connect_ex"):
        monkeypatch.setattr(socket.socket, door, refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    for name in ("coco", "refcoco"):
        data = (name, "--data", roots(name), "--limit", 1, "--output", tmp_path / name)
        assert evaluate(*data, "--model", model) == 0
        assert evaluate(*data, "--predictions", tmp_path / name) == 0
    assert not tried
