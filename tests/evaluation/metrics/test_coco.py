"""COCO's numbers against pycocotools, and against cases whose result is known."""

from __future__ import annotations

import contextlib
import io
import subprocess
import sys
from typing import Any

import evaluate
import numpy as np
import pytest
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from hf_grounding_dino.evaluation import CocoDetection, OpenVocabularyCoco
from hf_grounding_dino.evaluation.metrics.coco import BASE_NAMES, NOVEL_NAMES, open_vocabulary_split

Item = dict[str, Any]
CATEGORIES = [90, 0, 7, 3, 12]
NAMES = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")


def boxes_within(rng: np.random.Generator, count: int) -> Any:
    """Boxes of 4 to 150 pixels, small, medium and large, on a grid of quarter pixels, where sides have no rounding."""
    low = rng.integers(0, 600, (count, 2)) / 4
    return np.concatenate([low, low + rng.integers(16, 600, (count, 2)) / 4], 1)


def near(rng: np.random.Generator, boxes: Any) -> Any:
    moved = boxes + rng.integers(-20, 20, boxes.shape) / 4
    return np.concatenate([moved[:, :2], np.maximum(moved[:, 2:], moved[:, :2])], 1)


def random_set(seed: int) -> tuple[list[Item], list[Item]]:
    """Pictures by gapped or 0-based ids in any order, with 0 to 8 boxes, crowds, areas smaller than the boxes.

    Detections lie near them, far from them, under wrong labels, with tied scores; in one picture there are 150 of a
    category. One category never occurs, some pictures are empty and in some nothing is found.
    """
    rng = np.random.default_rng(seed)
    ids = rng.permutation(8) * (1 if seed % 2 else 13)
    predictions, references = [], []
    for i, image_id in enumerate(ids.tolist()):
        n, far = int(rng.integers(0, 9)) * (i != 2), 150 if i == 5 else int(rng.integers(0, 9))
        boxes, labels = boxes_within(rng, n), rng.choice(CATEGORIES[:4], n)
        reference = {"image_id": image_id, "boxes": boxes, "labels": labels, "iscrowd": rng.random(n) < 0.15}
        sides = boxes[:, 2:] - boxes[:, :2]
        references.append({**reference, "area": sides.prod(1) * rng.choice([1, 0.7], n)})
        found = np.concatenate([near(rng, boxes), near(rng, boxes), boxes_within(rng, far)])
        wrong = np.full(far, 7) if far == 150 else rng.choice(CATEGORIES, far)
        found_labels = np.concatenate([labels, labels, wrong])
        keep = slice(0, 0) if i == 3 else slice(None)
        scores = rng.integers(1, 20, len(found)) / 20
        predictions.append(
            {"image_id": image_id, "boxes": found[keep], "scores": scores[keep], "labels": found_labels[keep]}
        )
    return predictions, references


def xywh(box: Any) -> list[float]:
    return [box[0], box[1], box[2] - box[0], box[3] - box[1]]


def by_pycocotools(predictions: list[Item], references: list[Item], limits: list[int]) -> list[float]:
    annotations = [
        {
            "image_id": reference["image_id"],
            "category_id": int(label),
            "bbox": xywh(box.tolist()),
            "area": float(area),
            "iscrowd": int(crowd),
        }
        for reference in references
        for box, label, area, crowd in zip(
            *(reference[name] for name in ("boxes", "labels", "area", "iscrowd")), strict=True
        )
    ]
    results = [
        {"image_id": p["image_id"], "category_id": int(label), "bbox": xywh(box.tolist()), "score": float(score)}
        for p in predictions
        for box, label, score in zip(p["boxes"], p["labels"], p["scores"], strict=True)
    ]
    truth = COCO()
    truth.dataset = {
        "images": [{"id": reference["image_id"]} for reference in references],
        "annotations": [{"id": i, **annotation} for i, annotation in enumerate(annotations, start=1)],
        "categories": [{"id": category} for category in CATEGORIES],
    }
    with contextlib.redirect_stdout(io.StringIO()):
        truth.createIndex()
        evaluator = COCOeval(truth, truth.loadRes(results), "bbox")
        evaluator.params.maxDets = limits
        evaluator.evaluate()
        evaluator.accumulate()
        evaluator.summarize()
    return [float(number) for number in evaluator.stats]


def scores_of(predictions: list[Item], references: list[Item], **options: Any) -> dict[str, float]:
    return CocoDetection(**options).compute(predictions=predictions, references=references)


def as_prediction(reference: Item) -> Item:
    return {
        **{name: reference[name] for name in ("image_id", "boxes", "labels")},
        "scores": [1] * len(reference["labels"]),
    }


@pytest.mark.parametrize("seed", range(16))
def test_all_twelve_numbers_equal_pycocotools(seed: int) -> None:
    predictions, references = random_set(seed)
    scores = scores_of(predictions, references)
    assert tuple(scores) == NAMES
    expected = by_pycocotools(predictions, references, [1, 10, 100])
    assert list(scores.values()) == pytest.approx(expected, abs=1e-6)
    assert 0 < scores["AP"] < 1


@pytest.mark.parametrize("seed", range(5))
def test_mmdetections_reading_equals_its_limits(seed: int) -> None:
    """With maxDets (100, 300, 1000) AP is taken at 100, the rest at 1000, so all 150 of one category count there."""
    predictions, references = random_set(seed)
    scores = scores_of(predictions, references, mmdet_compatible=True)
    assert tuple(scores) == (*NAMES[:6], "AR100", "AR300", "AR1000", *NAMES[9:])
    expected = by_pycocotools(predictions, references, [100, 300, 1000])
    assert list(scores.values()) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("categories", [None, CATEGORIES])
def test_the_truth_scores_one(seed: int, categories: list[int] | None) -> None:
    """Ids are gapped or start at 0, categories are in no order, there are crowds and pictures without a box.

    Twice the same box of a category in a picture would still be found twice.
    """
    _, references = random_set(seed)
    scores = scores_of([as_prediction(reference) for reference in references], references, categories=categories)
    assert {name: scores[name] for name in ("AP", "AP50", "AP75", "AR100")} == {
        "AP": 1,
        "AP50": 1,
        "AP75": 1,
        "AR100": 1,
    }


def test_scores_that_float32_does_not_tell_apart_are_no_ties() -> None:
    """The hit's score is higher by 1e-12: first in rank, AP is 1; as a tie the miss, which comes first, would rank so.

    Precision would be 1/2 at every recall.
    """
    reference = {"image_id": 1, "boxes": [[0, 0, 10, 10]], "labels": [1]}
    boxes = [[50, 50, 60, 60], [0, 0, 10, 10]]
    prediction = {"image_id": 1, "boxes": boxes, "labels": [1, 1], "scores": [0.5, 0.5 + 1e-12]}
    assert scores_of([prediction], [reference])["AP"] == 1
    assert scores_of([{**prediction, "scores": [0.5, 0.5]}], [reference])["AP"] == pytest.approx(0.5)


def test_each_class_has_its_own_result() -> None:
    """Class 5: of two boxes one is found, with no false alarm: AP is 51 of 101 recall levels.

    Class 9 has only a false alarm.
    """
    references = [{"image_id": 1, "boxes": [[0, 0, 10, 10], [20, 20, 40, 40]], "labels": [5, 5]}]
    boxes = [[0, 0, 10, 10], [0, 0, 5, 5]]
    predictions = [{"image_id": 1, "boxes": boxes, "labels": [5, 9], "scores": [0.9, 0.8]}]
    metric = CocoDetection(categories=[9, 5, 2])
    scores = metric.compute(predictions=predictions, references=references)
    assert scores["AP"] == pytest.approx(51 / 101)
    absent, half, alarm = metric.classes
    assert (half.label, half.num_truths, half.num_found, half.recall) == (5, 2, 1, 0.5)
    assert (half.ap, half.ap50, half.ap75) == pytest.approx((51 / 101,) * 3)
    assert half.precision.tolist() == [1] * 51 + [0] * 50
    assert (absent.label, absent.ap, absent.num_truths, absent.num_found) == (2, -1, 0, 0)
    assert (alarm.label, alarm.ap, alarm.num_truths, alarm.num_found) == (9, -1, 0, 1)
    assert set(alarm.precision.tolist()) == {-1}


def test_nothing_found_scores_zero_and_nothing_there_minus_one() -> None:
    _, references = random_set(0)
    nothing: Item = {"boxes": [], "scores": [], "labels": []}
    assert scores_of([{**nothing, "image_id": r["image_id"]} for r in references], references)["AP"] == 0
    found = [as_prediction(reference) for reference in references]
    empty = [{"image_id": r["image_id"], "boxes": [], "labels": []} for r in references]
    assert set(scores_of(found, empty).values()) == {-1}
    assert set(CocoDetection().compute().values()) == {-1}


def test_lists_arrays_and_tensors_of_any_float_are_taken() -> None:
    predictions, references = random_set(1)
    expected = scores_of(predictions, references)
    numbers = ("boxes", "labels", "scores", "iscrowd", "area")
    for take in (lambda v: v.tolist(), torch.tensor):
        kinds = [
            [{k: take(v) if k in numbers else v for k, v in i.items()} for i in s] for s in (predictions, references)
        ]
        assert scores_of(*kinds) == expected
    boxes = torch.tensor([[0, 0, 8, 8]], dtype=torch.bfloat16)
    half = {"image_id": torch.tensor(4), "boxes": boxes, "labels": torch.tensor([1]), "scores": boxes[:, 2]}
    assert scores_of([half], [{"image_id": 4, "boxes": [[0, 0, 8, 8]], "labels": [1]}])["AP"] == 1


def test_it_is_combined_with_other_metrics_of_evaluate() -> None:
    predictions, references = random_set(2)
    together = evaluate.combine([CocoDetection()])
    together.add_batch(predictions=predictions, references=references)
    assert together.compute() == scores_of(predictions, references)


GOOD_REFERENCE: Item = {"image_id": 8, "boxes": [[0, 0, 2, 2]], "labels": [7]}
GOOD_PREDICTION: Item = {**GOOD_REFERENCE, "scores": [0.5]}


@pytest.mark.parametrize(
    ("prediction", "reference", "message"),
    [
        (
            {"labels": [8]},
            {},
            r"image 8: the prediction has label 8, which is no category id; they are 0, 3, 7, 12, 90",
        ),
        ({}, {"labels": [8]}, r"image 8: the reference has label 8, which is no category id"),
        ({"labels": [7.5]}, {}, r"image 8: labels holds 7.5; whole numbers are wanted"),
        ({"scores": [float("nan")]}, {}, r"image 8: score 0 is nan"),
        ({"boxes": [[3, 0, 2, 2]]}, {}, r"image 8: box 0 is \[3.0, 0.0, 2.0, 2.0\]; x1 <= x2 and y1 <= y2 are to hold"),
        ({"labels": None}, {}, r"image 8: labels is missing"),
        ({}, {"labels": None}, r"image 8: labels is missing"),
        ({}, {"boxes": None}, r"image 8: boxes is missing"),
        ({}, {"area": [1, 2]}, r"image 8: the reference has 1 boxes, 1 labels, 2 areas and 1 crowd marks"),
        ({}, {"area": [float("nan")]}, r"image 8: area 0 of the reference is nan"),
    ],
)
def test_bad_input_is_named(prediction: Item, reference: Item, message: str) -> None:
    def changed(item: Item, change: Item) -> Item:
        return {name: value for name, value in {**item, **change}.items() if value is not None}

    with pytest.raises(ValueError, match=message) as raised:
        CocoDetection(categories=CATEGORIES).add(
            prediction=changed(GOOD_PREDICTION, prediction), reference=changed(GOOD_REFERENCE, reference)
        )
    assert "\n" not in str(raised.value)


def test_importing_the_metrics_is_cheap() -> None:
    code = "import sys, hf_grounding_dino.evaluation as e; print('torch' in sys.modules, sorted(e.__all__)[0])"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed.split() == ["False", "CocoDetection"]


# --- open vocabulary ---------------------------------------------------------------------------------------------


def test_the_split_is_found_by_name() -> None:
    names = [*NOVEL_NAMES, *BASE_NAMES]
    assert (len(set(BASE_NAMES)), len(set(NOVEL_NAMES)), len(set(names))) == (48, 17, 65)
    base, novel = open_vocabulary_split(dict(enumerate([*names, "hair drier"])))
    assert (base, novel) == (list(range(17, 65)), list(range(17)))
    with pytest.raises(ValueError, match="no category 'bicycle', one of 64 that are missing"):
        open_vocabulary_split({1: "person"})


def item(**fields: Any) -> dict[str, Any]:
    return {"image_id": 1, **fields}


def test_each_group_has_its_own_average() -> None:
    """Base: one of two categories found, AP 1/2. Novel: the one found at IoU 0.6, thresholds 0.50, 0.55 and 0.60.

    Its AP50 is 1 and its AP 3/10; over all three categories AP is (1 + 0 + 0.3) / 3.
    """
    boxes = [[0, 0, 10, 10], [20, 0, 30, 10], [40, 0, 50, 10]]
    found = [[0, 0, 10, 10], [40, 0, 50, 6]]
    metric = OpenVocabularyCoco(base=[1, 2], novel=[5])
    scores = metric.compute(
        predictions=[item(boxes=found, labels=[1, 5], scores=[0.5, 0.5])],
        references=[item(boxes=boxes, labels=[1, 2, 5])],
    )
    expected = {"AP": 1.3 / 3, "AP50": 2 / 3, "base_AP": 0.5, "base_AP50": 0.5, "novel_AP": 0.3, "novel_AP50": 1}
    assert {name: scores[name] for name in expected} == pytest.approx(expected)
    assert [result.label for result in metric.classes] == [1, 2, 5]


def test_a_group_without_a_box_has_nothing_to_measure() -> None:
    scores = OpenVocabularyCoco(base=[1], novel=[5]).compute(
        predictions=[item(boxes=[[0, 0, 9, 9]], labels=[1], scores=[0.5])],
        references=[item(boxes=[[0, 0, 9, 9]], labels=[1])],
    )
    assert (scores["base_AP"], scores["novel_AP"], scores["novel_AP50"]) == (1, -1, -1)


def test_a_category_of_neither_group_and_of_both_is_refused() -> None:
    metric = OpenVocabularyCoco(base=[1], novel=[5])
    with pytest.raises(ValueError, match="image 1: the prediction has label 3, which is no category id; they are 1, 5"):
        metric.add(prediction=item(boxes=[[0, 0, 9, 9]], labels=[3], scores=[0.5]), reference=item(boxes=[], labels=[]))
    with pytest.raises(ValueError, match="category 5 is among the base categories and among the novel ones"):
        OpenVocabularyCoco(base=[1, 5], novel=[5])
