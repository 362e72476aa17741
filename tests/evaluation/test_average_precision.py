"""AP against pycocotools, and against cases whose result is known."""

from __future__ import annotations

import contextlib
import io
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from hf_grounding_dino.evaluation.average_precision import best_of_each, coco_average_precision

NUM_CLASSES = 4


def random_case(seed: int, num_pictures: int = 12) -> tuple[list[dict[str, Any]], list[dict[str, torch.Tensor]]]:
    """Pictures with 0 to 6 boxes, and detections near them, far from them, and with wrong labels; ties included."""
    rng = np.random.default_rng(seed)
    pictures, detections = [], []
    for _ in range(num_pictures):
        n, extra = int(rng.integers(0, 7)), int(rng.integers(0, 5))
        low = rng.uniform(0, 60, (n, 2))
        boxes = np.concatenate([low, low + rng.uniform(5, 40, (n, 2))], 1)
        labels = rng.integers(0, NUM_CLASSES, n)
        far = rng.uniform(0, 50, (extra, 2))
        found = np.concatenate([boxes + rng.normal(0, 2, boxes.shape), np.concatenate([far, far + 20], 1)])
        found_labels = np.concatenate([labels, rng.integers(0, NUM_CLASSES, extra)])
        pictures.append(
            {
                "image": Image.new("RGB", (100, 100)),
                "boxes": torch.tensor(boxes, dtype=torch.float64).reshape(-1, 4),
                "class_labels": torch.tensor(labels),
            }
        )
        detections.append(
            {
                "boxes": torch.tensor(found, dtype=torch.float64).reshape(-1, 4),
                "labels": torch.tensor(found_labels),
                "scores": torch.tensor(rng.integers(1, 20, len(found)) / 20),
            }
        )
    return pictures, detections


def by_pycocotools(pictures: list[dict[str, Any]], detections: list[dict[str, torch.Tensor]]) -> list[float]:
    truth = COCO()
    annotations, results = [], []
    for image_id, (picture, found) in enumerate(zip(pictures, detections, strict=True)):
        for (x1, y1, x2, y2), label in zip(picture["boxes"].tolist(), picture["class_labels"].tolist(), strict=True):
            box = [x1, y1, x2 - x1, y2 - y1]
            annotations.append(
                {"id": len(annotations) + 1, "image_id": image_id, "category_id": label, "bbox": box}
                | {"area": box[2] * box[3], "iscrowd": 0}
            )
        rows = zip(found["boxes"].tolist(), found["labels"].tolist(), found["scores"].tolist(), strict=True)
        for (x1, y1, x2, y2), label, score in rows:
            box = [x1, y1, x2 - x1, y2 - y1]
            results.append({"image_id": image_id, "category_id": label, "bbox": box, "score": score})
    truth.dataset = {
        "images": [{"id": i} for i in range(len(pictures))],
        "annotations": annotations,
        "categories": [{"id": i} for i in range(NUM_CLASSES)],
    }
    with contextlib.redirect_stdout(io.StringIO()):
        truth.createIndex()
        evaluator = COCOeval(truth, truth.loadRes(results), "bbox")
        evaluator.evaluate()
        evaluator.accumulate()
        evaluator.summarize()
    return [float(s) for s in evaluator.stats[:3]]


@pytest.mark.parametrize("seed", range(10))
def test_equals_pycocotools(seed: int) -> None:
    pictures, detections = random_case(seed)
    scores = coco_average_precision(pictures, detections, NUM_CLASSES)
    assert [scores["AP"], scores["AP50"], scores["AP75"]] == pytest.approx(
        by_pycocotools(pictures, detections), abs=1e-6
    )


def as_detections(pictures: list[dict[str, Any]]) -> list[dict[str, torch.Tensor]]:
    return [{"boxes": p["boxes"], "labels": p["class_labels"], "scores": torch.ones(len(p["boxes"]))} for p in pictures]


def test_the_truth_scores_one() -> None:
    pictures, _ = random_case(0)
    assert coco_average_precision(pictures, as_detections(pictures), NUM_CLASSES) == {"AP": 1, "AP50": 1, "AP75": 1}


def test_nothing_found_scores_zero_and_nothing_there_minus_one() -> None:
    pictures, _ = random_case(0)
    nothing = [{"boxes": torch.zeros(0, 4), "labels": torch.zeros(0), "scores": torch.zeros(0)} for _ in pictures]
    assert coco_average_precision(pictures, nothing, NUM_CLASSES)["AP"] == 0
    empty = [p | {"boxes": torch.zeros(0, 4), "class_labels": torch.zeros(0)} for p in pictures]
    found = as_detections(pictures)
    assert coco_average_precision(empty, found, NUM_CLASSES)["AP"] == -1


def test_no_picture_has_nothing_to_measure() -> None:
    assert set(coco_average_precision([], [], NUM_CLASSES).values()) == {-1}


def test_the_best_of_each_group_are_found_where_they_are() -> None:
    """Of group 4 the 0.9 and the first of two 0.5; group 2 has one only. Places are in rising order."""
    groups, scores = np.array([4, 2, 4, 4, 4]), np.array([0.5, 0.1, 0.5, 0.9, 0.2])
    assert best_of_each(groups, scores, 2).tolist() == [0, 1, 3]
    assert best_of_each(groups[:0], scores[:0], 2).tolist() == []
