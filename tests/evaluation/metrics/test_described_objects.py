"""AP of described objects, on cases whose result is known, and against what the tool of D3 reports."""

from __future__ import annotations

import contextlib
import io
from typing import Any

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from hf_grounding_dino.evaluation.metrics.described_objects import DescribedObjects

SENTENCES = {1: "dog", 22: "a dog that wears no red leash", 3: "person who is holding a cup", 4: "a b c d e f g h i j"}
PRESENCE = {1: True, 22: False, 3: True, 4: False}
BOX = [0.0, 0.0, 50.0, 50.0]


def picture(
    number: int, found: list[tuple[int, float]], truth: list[int], **more: Any
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Sentence ids with scores that are found, and sentence ids that are there, all at the same place."""
    prediction = {"image_id": number, "boxes": [BOX] * len(found), "labels": [label for label, _ in found]}
    prediction["scores"] = [score for _, score in found]
    return prediction, {"image_id": number, "boxes": [BOX] * len(truth), "labels": truth, **more}


def scores_of(*pictures: tuple[dict[str, Any], dict[str, Any]], **options: Any) -> dict[str, float]:
    predictions, references = zip(*pictures, strict=True)
    metric = DescribedObjects(SENTENCES, PRESENCE, **options)
    return metric.compute(predictions=predictions, references=references)


def two_pictures(**second: Any) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """All three sentences are true in picture 1; in picture 2 they are found as well, and one of them twice."""
    first = picture(1, [(1, 0.5), (22, 0.5), (3, 0.5)], [1, 22, 3])
    return [first, picture(2, [(22, 0.9), (3, 0.9), (3, 0.8), (4, 0.9)], [], **second)]


def test_numbers_of_two_pictures() -> None:
    """Each sentence has one box, with so many wrong ones before it; one has none.

    Sentence 1: none, AP 1. Sentence 22: one, precision 1/2 at every recall. Sentence 3: two, 1/3. Sentence 4 is true
    nowhere and counts in nothing.

    FULL = (1 + 1/2 + 1/3) / 3 = 11/18, PRES (1 and 3) = 2/3, ABS (22) = 1/2; they have 1, 7 and 6 words.
    """
    expected = {"FULL": 11 / 18, "PRES": 2 / 3, "ABS": 1 / 2}
    expected |= {"FULL_1-3": 1, "FULL_4-6": 1 / 3, "FULL_7-9": 1 / 2, "FULL_10+": -1}
    expected |= {"PRES_1-3": 1, "PRES_4-6": 1 / 3, "PRES_7-9": -1, "PRES_10+": -1}
    expected |= {"ABS_1-3": -1, "ABS_4-6": -1, "ABS_7-9": 1 / 2, "ABS_10+": -1}
    assert scores_of(*two_pictures()) == pytest.approx(expected)


def test_what_was_not_asked_for_does_not_count() -> None:
    """Picture 2 is asked for sentence 3 alone: the wrong box of 22 there is left out, those of 3 are not."""
    scores = scores_of(*two_pictures(asked=[3]))
    assert (scores["ABS"], scores["FULL_4-6"]) == pytest.approx((1.0, 1 / 3))


def test_truth_that_was_not_asked_for_is_missed_in_mmdetection_only() -> None:
    """Sentence 1 is true in both pictures, and asked for and found in the first.

    Without the second AP is 1; with it recall ends at 1/2, so 51 of the 101 recall levels have precision 1.
    """
    pictures = [picture(1, [(1, 0.5)], [1], asked=[1]), picture(2, [(1, 0.9)], [1], asked=[22])]
    assert scores_of(*pictures)["FULL"] == pytest.approx(1)
    assert scores_of(*pictures, mmdet_compatible=True)["FULL"] == pytest.approx(51 / 101)


def random_pictures(seed: int) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Ten pictures with up to five boxes, and detections near them, some with another sentence."""
    rng = np.random.default_rng(seed)
    pictures = []
    for number in range(10):
        count = int(rng.integers(0, 6))
        low = rng.uniform(0, 60, (count, 2))
        boxes = np.concatenate([low, low + rng.uniform(10, 60, (count, 2))], 1).round(2)
        labels = rng.choice(list(SENTENCES), count)
        others = np.where(rng.random(count) < 0.3, rng.choice(list(SENTENCES), count), labels)
        near = boxes + rng.normal(0, 2, boxes.shape).round(2)
        prediction = {"image_id": number, "boxes": near, "scores": rng.permutation(count) / 10, "labels": others}
        pictures.append((prediction, {"image_id": number, "boxes": boxes, "labels": labels}))
    return pictures


def by_pycocotools(pictures: list[tuple[dict[str, Any], dict[str, Any]]], sentences: list[int]) -> float:
    """AP as D3's tool takes it: an annotation file with these sentences only, and all detections."""
    annotations, results = [], []
    for found, truth in pictures:
        for (x1, y1, x2, y2), label in zip(truth["boxes"].tolist(), truth["labels"].tolist(), strict=True):
            place = {"image_id": truth["image_id"], "bbox": [x1, y1, x2 - x1, y2 - y1], "category_id": label}
            if label in sentences:
                annotations.append(place | {"id": len(annotations) + 1, "area": (x2 - x1) * (y2 - y1), "iscrowd": 0})
        for (x1, y1, x2, y2), label, score in zip(
            *(found[name] for name in ("boxes", "labels", "scores")), strict=True
        ):
            place = {"image_id": found["image_id"], "bbox": [x1, y1, x2 - x1, y2 - y1], "category_id": int(label)}
            results.append(place | {"score": score})
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = {"images": [{"id": i} for i in range(len(pictures))], "annotations": annotations}
        truth.dataset["categories"] = [{"id": sentence} for sentence in sentences]
        truth.createIndex()
        evaluator = COCOeval(truth, truth.loadRes(results), "bbox")
        evaluator.evaluate()
        evaluator.accumulate()
        evaluator.summarize()
    return float(evaluator.stats[0])


@pytest.mark.parametrize("seed", range(3))
def test_equal_to_pycocotools_on_three_annotation_files(seed: int) -> None:
    pictures = random_pictures(seed)
    scores = scores_of(*pictures)
    for name, sentences in (("FULL", [1, 3, 4, 22]), ("PRES", [1, 3]), ("ABS", [4, 22])):
        assert scores[name] == pytest.approx(by_pycocotools(pictures, sentences), abs=1e-6), name


def test_results_of_each_sentence() -> None:
    metric = DescribedObjects(SENTENCES, PRESENCE)
    predictions, references = zip(*two_pictures(), strict=True)
    metric.compute(predictions=predictions, references=references)
    assert {result.label: result.num_truths for result in metric.classes} == {1: 1, 3: 1, 4: 0, 22: 1}


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        ({"asked": [1, 99]}, "image 6: asked has label 99"),
        ({"labels": [99]}, "image 6: the reference has label 99"),
        ({"labels": [1, 1]}, "image 6: the reference has 1 boxes"),
    ],
)
def test_bad_references_are_refused(change: dict[str, Any], rule: str) -> None:
    prediction, reference = picture(6, [(1, 0.5)], [1])
    with pytest.raises(ValueError, match=rule):
        DescribedObjects(SENTENCES, PRESENCE).add(prediction=prediction, reference={**reference, **change})


def test_bad_sentences_are_refused() -> None:
    with pytest.raises(ValueError, match="sentence 2 is not in both"):
        DescribedObjects({1: "dog", 2: "cat"}, {1: True})
    with pytest.raises(ValueError, match="sentence 1 has no word"):
        DescribedObjects({1: "  "}, {1: True})
