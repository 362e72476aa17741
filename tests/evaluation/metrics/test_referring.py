"""P@k of referring expressions, on cases whose result is known."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from hf_grounding_dino.evaluation.metrics.base import read_prediction
from hf_grounding_dino.evaluation.metrics.matching import box_iou
from hf_grounding_dino.evaluation.metrics.referring import ReferringExpressions

TRUTH = [0.0, 0.0, 10.0, 10.0]
HALF = [0.0, 0.0, 10.0, 5.0]
FAR = [20.0, 20.0, 30.0, 30.0]


def found(item: int | str, *boxes: tuple[list[float], float]) -> dict[str, Any]:
    return {"image_id": item, "boxes": [box for box, _ in boxes], "scores": [score for _, score in boxes]}


def meant(item: int | str, *boxes: list[float], **more: Any) -> dict[str, Any]:
    return {"image_id": item, "boxes": list(boxes), **more}


def one(*boxes: tuple[list[float], float], ks: tuple[int, ...] = (1, 5, 10)) -> dict[str, float]:
    return ReferringExpressions(ks).compute(predictions=[found(1, *boxes)], references=[meant(1, TRUTH)])


def three_expressions() -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    predictions = [found(1, (FAR, 0.9), (TRUTH, 0.8)), found(2, (HALF, 0.1)), found(3)]
    names = ["refcoco", "refcoco", "refcoco+"]
    return predictions, [meant(i, TRUTH, dataset_name=name) for i, name in enumerate(names, 1)]


def test_numbers_of_three_expressions() -> None:
    """The first is hit by the second box, the second by the first box (IoU 50 / 100), the third by none.

    P@1 = 1/3, P@5 = 2/3; RefCOCO 1/2 and 1, RefCOCO+ 0 and 0, so the mean precision is (1/2 + 1 + 0 + 0) / 4 = 3/8.
    """
    predictions, references = three_expressions()
    scores = ReferringExpressions(ks=(1, 5)).compute(predictions=predictions, references=references)
    assert scores == {
        "P@1": 1 / 3,
        "P@5": 2 / 3,
        "refcoco_P@1": 1 / 2,
        "refcoco_P@5": 1.0,
        "refcoco+_P@1": 0.0,
        "refcoco+_P@5": 0.0,
        "mean_precision": 3 / 8,
    }


def test_mean_precision_without_names_is_of_the_whole() -> None:
    """(1/3 + 2/3) / 2 = 1/2."""
    predictions, references = three_expressions()
    references = [{**reference, "dataset_name": None} for reference in references]
    scores = ReferringExpressions(ks=(1, 5)).compute(predictions=predictions, references=references)
    assert scores == {"P@1": 1 / 3, "P@5": 2 / 3, "mean_precision": 1 / 2}


def test_a_hit_needs_the_overlap() -> None:
    """IoU 49.9 / 100 is a miss, and IoU 50 / 100 a hit; at a wanted 0.51 it is a miss."""
    assert one(([0, 0, 10, 4.99], 1.0))["P@1"] == 0
    assert one((HALF, 1.0))["P@1"] == 1
    metric = ReferringExpressions(iou=0.51)
    assert metric.compute(predictions=[found(1, (HALF, 1.0))], references=[meant(1, TRUTH)])["P@10"] == 0


@pytest.mark.parametrize("rank", [5, 6])
def test_only_the_first_k_are_tried(rank: int) -> None:
    boxes = [(FAR, 1 - i / 100) for i in range(rank - 1)]
    assert one(*boxes, (TRUTH, 0.5))["P@5"] == float(rank == 5)


def test_boxes_are_tried_by_score_and_then_as_given() -> None:
    assert one((FAR, 0.2), (TRUTH, 0.7))["P@1"] == 1
    assert one((FAR, -2.0), (TRUTH, -1.0))["P@1"] == 1
    assert one((FAR, 0.7), (TRUTH, 0.7))["P@1"] == 0
    assert one((TRUTH, 0.7), (FAR, 0.7))["P@1"] == 1
    many = [(FAR, i % 2 / 2) for i in range(200)] + [(TRUTH, 0.5)]
    assert one(*many, ks=(100, 101)) == {"P@100": 0.0, "P@101": 1.0, "mean_precision": 0.5}


def test_any_of_several_meant_boxes_will_do() -> None:
    metric = ReferringExpressions()
    scores = metric.compute(predictions=[found(1, (FAR, 1.0))], references=[meant(1, TRUTH, FAR)])
    assert scores["P@1"] == 1


def test_truth_as_predictions_is_perfect_and_tensors_are_taken() -> None:
    rng = np.random.default_rng(0)
    low = rng.uniform(0, 50, (20, 1, 2))
    boxes = torch.tensor(np.concatenate([low, low + rng.uniform(1, 50, (20, 1, 2))], -1), dtype=torch.float32)
    metric = ReferringExpressions()
    for i, box in enumerate(boxes):
        prediction = {"image_id": i, "boxes": box, "scores": torch.ones(1), "labels": torch.zeros(1)}
        metric.add(prediction=prediction, reference={"image_id": i, "boxes": box, "dataset_name": "refcocog"})
    assert set(metric.compute().values()) == {1.0}


def test_parts_together_are_the_whole() -> None:
    """Batches of two and one, and what two processes kept put together in either order, all give the same."""
    predictions, references = three_expressions()
    whole = ReferringExpressions().compute(predictions=predictions, references=references)
    metric = ReferringExpressions()
    metric.add_batch(predictions=predictions[:2], references=references[:2])
    # The last batch is filled with an expression of the first.
    metric.add_batch(predictions=[predictions[2], predictions[0]], references=[references[2], references[0]])
    assert metric.compute() == whole
    kept = {
        reference["image_id"]: metric.keep(read_prediction(prediction, ""), reference, "")
        for prediction, reference in zip(predictions, references, strict=True)
    }
    assert metric.score(dict(reversed(kept.items()))) == metric.score(kept) == whole


def test_nothing_to_measure() -> None:
    assert ReferringExpressions(ks=(1,)).compute() == {"P@1": -1.0, "mean_precision": -1.0}


@pytest.mark.parametrize(
    ("reference", "rule"),
    [
        (meant(7), "image 7: .*at least one box"),
        (meant(7, [5, 0, 1, 1]), "image 7: .*x1 <= x2"),
        ({"image_id": 7}, "image 7: boxes is missing"),
        (meant(7, TRUTH, dataset_name=3), "image 7: dataset_name is a string"),
    ],
)
def test_bad_references_are_refused(reference: dict[str, Any], rule: str) -> None:
    with pytest.raises(ValueError, match=rule):
        ReferringExpressions().add(prediction=found(7, (TRUTH, 1.0)), reference=reference)


@pytest.mark.parametrize("options", [{"ks": ()}, {"ks": (0, 1)}, {"ks": (1, 1)}, {"iou": 0}, {"iou": 1.1}])
def test_bad_protocols_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"ks are|iou is"):
        ReferringExpressions(**options)


def test_overlaps_of_boxes_without_area_are_zero() -> None:
    """A point has IoU 0 / 0 with itself, which is taken for 0, and 0 / 100 with a box around it."""
    points = np.array([[5.0, 5.0, 5.0, 5.0]])
    assert box_iou(points, np.array([[5.0, 5.0, 5.0, 5.0], TRUTH])).tolist() == [[0.0, 0.0]]
    assert box_iou(np.zeros((0, 4)), points).shape == (0, 1)
