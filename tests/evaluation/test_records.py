"""Training is told what the benchmark would say."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image

from hf_grounding_dino.assets import NANO
from hf_grounding_dino.data.images import load_image
from hf_grounding_dino.data.readers import open_records
from hf_grounding_dino.data.records import Record, RecordSet, SourceEntry
from hf_grounding_dino.data.shapes import CATEGORIES
from hf_grounding_dino.evaluation.assembly import Wishes, benchmark_tasks
from hf_grounding_dino.evaluation.benchmarks import find_benchmark
from hf_grounding_dino.evaluation.records import evaluate_records
from hf_grounding_dino.models.loading import load_whole
from listed_records import ListedRecords

from .roots import write_root


@pytest.fixture(scope="module")
def nano() -> Any:
    torch.manual_seed(0)
    return load_whole(NANO)


def by_benchmark(nano: Any, name: str, root: Path) -> dict[str, float]:
    """What `evaluate` says of the first part of a benchmark."""
    task = benchmark_tasks(find_benchmark(name), root, Wishes())[0]
    cases = list(task)
    answers = task.ask(*nano, [load_image(case.image) for case in cases], cases)
    predictions = [answer.as_prediction(case.case_id) for answer, case in zip(answers, cases, strict=True)]
    return task.metric().compute(predictions=predictions, references=[case.reference for case in cases])


def renamed(file: Path) -> None:
    """Categories that nano knows, so that something is found; nobody looked for what is not in an image (LVIS)."""
    document = json.loads(file.read_text())
    for number, category in enumerate(document["categories"]):
        category["name"] = CATEGORIES[number]
    for image in document["images"]:
        if "neg_category_ids" in image:
            image["neg_category_ids"] = []
    file.write_text(json.dumps(document))


@pytest.mark.parametrize("name", ["coco", "lvis_minival", "refcoco_testA", "flickr30k_val"])
@pytest.mark.filterwarnings("ignore:.*fewer than 10000 detections")
def test_equal_to_the_benchmark(nano: Any, tmp_path: Path, name: str) -> None:
    root = write_root(name, tmp_path)
    part = find_benchmark(name).parts(root)[0]
    caption = part.kind in ("expressions", "phrases")
    if not caption:
        renamed(part.annotations)
    entry = SourceEntry(
        format="mdetr" if caption else "coco", annotations=str(part.annotations), images=str(part.images)
    )
    records = open_records(entry)
    assert isinstance(records, RecordSet)
    expected = by_benchmark(nano, name, root)
    found = evaluate_records(*nano, records)
    names = (
        {"R@1": "P@1" if part.kind == "expressions" else "R@1"} if caption else {n: n for n in ("AP", "AP50", "AP75")}
    )
    assert found == {ours: pytest.approx(expected[theirs], abs=1e-6) for ours, theirs in names.items()}
    assert max(found.values()) > 0 or caption


def test_a_label_that_nobody_looked_for_is_no_mistake(nano: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two labels are found everywhere; one is known to be absent in an image, of the other nothing is known there.

    By COCO's rule each box of an image where a label is not is wrong: half of all, ranked before the right ones.
    """
    sure = {"boxes": torch.tensor([[0.0, 0.0, 9.0, 9.0]] * 2), "scores": torch.tensor([0.9, 0.9])}
    labels = torch.tensor([0, 1])
    monkeypatch.setattr(
        "hf_grounding_dino.evaluation.askers.detect",
        lambda *arguments, **_: [{**sure, "labels": labels} for _ in arguments[2]],
    )
    image = Image.new("RGB", (20, 20))
    box, none = torch.tensor([[0.0, 0.0, 9.0, 9.0]]), torch.zeros(0, 4)

    def record(number: int, boxes: torch.Tensor, labels: list[int], absent: tuple[int, ...] | None) -> Record:
        return Record(
            image_id=number, image=image, boxes=boxes, labels=torch.tensor(labels, dtype=torch.int64), absent=absent
        )

    def scored(absent: tuple[int, ...] | None) -> float:
        there = record(0, box.repeat(2, 1), [0, 1], None if absent is None else ())
        return evaluate_records(
            *nano, ListedRecords("mine", [record(1, none, [], absent), there], ("cat", "dog"), (4, 9))
        )["AP50"]

    assert scored(()) == pytest.approx(1.0)
    assert scored((0,)) == pytest.approx(0.75, abs=0.01)
    assert scored((0, 1)) == scored(None) == pytest.approx(0.5, abs=0.01)


class TwoMinds:
    """The left box has the best word, the right one the best mean over the words."""

    device = torch.device("cpu")

    def __call__(self, *, input_ids: torch.Tensor, **_: Any) -> Any:
        """The same of every image."""
        logits = torch.full((len(input_ids), 2, input_ids.shape[1]), -9.0)
        logits[:, 0, 1] = 3.0
        logits[:, 1, 1:-1] = 1.0
        boxes = torch.tensor([[0.25, 0.5, 0.5, 1.0], [0.75, 0.5, 0.5, 1.0]])
        return SimpleNamespace(logits=logits, pred_boxes=boxes.expand(len(input_ids), -1, -1))


def test_an_expression_scores_by_its_best_word_and_a_phrase_by_the_mean(nano: Any) -> None:
    """A caption that names one thing is an expression, which means nothing where it has no box."""
    left, right = (torch.tensor([[x, 0.0, x + 10, 20.0]]) for x in (0.0, 10.0))
    whole, phrases = (((0, 27),),), (((0, 10),), ((15, 27),))

    def scored(boxes: torch.Tensor, spans: Any) -> float:
        caption = {"image": Image.new("RGB", (20, 20)), "caption": "red circle and green square"}
        records = [
            Record(image_id=0, boxes=boxes, spans=spans, **caption),
            Record(image_id=1, boxes=torch.zeros(0, 4), spans=(), **caption),
        ]
        model: Any = TwoMinds()
        return evaluate_records(model, nano[1], ListedRecords("mine", records))["R@1"]

    assert (scored(left, whole), scored(right, whole)) == (1.0, 0.0)
    assert (scored(left.repeat(2, 1), phrases), scored(right.repeat(2, 1), phrases)) == (0.0, 1.0)
