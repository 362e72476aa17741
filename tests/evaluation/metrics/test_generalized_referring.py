"""F1, N-acc and T-acc of expressions that mean any number of objects, on cases whose result is known."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from hf_grounding_dino.evaluation.metrics.base import read_prediction
from hf_grounding_dino.evaluation.metrics.referring import GeneralizedReferring, count_pairs

LEFT, RIGHT, FAR = [0.0, 0.0, 10.0, 10.0], [20.0, 0.0, 30.0, 10.0], [50.0, 50.0, 60.0, 60.0]

Boxes = list[list[float]]


def item(number: int, answer: Boxes, meant: Boxes, score: float = 0.9) -> tuple[dict[str, Any], dict[str, Any]]:
    prediction = {"image_id": number, "boxes": answer, "scores": [score] * len(answer)}
    return prediction, {"image_id": number, "boxes": meant}


def scores_of(*items: tuple[dict[str, Any], dict[str, Any]], **options: Any) -> dict[str, float]:
    predictions, references = zip(*items, strict=True)
    return GeneralizedReferring(**options).compute(predictions=predictions, references=references)


FIVE = [
    item(1, [LEFT, RIGHT], [RIGHT, LEFT]),
    item(2, [LEFT], [LEFT, RIGHT]),
    item(3, [], [LEFT]),
    item(4, [], []),
    item(5, [FAR], []),
]


def test_numbers_of_five_expressions() -> None:
    """F1 of each: 2·2/4 = 1; 2·1/(2 + 0 + 1) = 2/3; 0; 1 (nothing meant, nothing said); 0. F1 = 2/5.

    N-acc: one of two. T-acc: two of three.
    """
    assert scores_of(*FIVE) == {"F1": 2 / 5, "N-acc": 1 / 2, "T-acc": 2 / 3}


@pytest.mark.parametrize(
    ("answer", "meant", "right"),
    [
        ([LEFT], [LEFT], True),
        ([LEFT, FAR], [LEFT], False),
        ([LEFT, LEFT], [LEFT], False),
        ([LEFT, LEFT], [LEFT, RIGHT], False),
        ([FAR], [LEFT], False),
        ([LEFT, LEFT], [LEFT, LEFT], True),
    ],
)
def test_no_more_and_no_less(answer: Boxes, meant: Boxes, right: bool) -> None:
    assert scores_of(item(1, answer, meant))["F1"] == right


def test_pairs_go_by_the_largest_overlap() -> None:
    """A has IoU 0.9 and 60/90 with the truths, B 0.6 and 36/84: A takes the first, and B's other is below 0.5.

    The other way round there would be two pairs; the benchmark counts one.
    """
    a, b = [0.0, 0.0, 10.0, 9.0], [4.0, 0.0, 10.0, 10.0]
    truths = np.array([[0.0, 0.0, 10.0, 10.0], [0.0, 0.0, 10.0, 6.0]])
    assert count_pairs(np.array([a, b]), truths, 0.5) == 1
    assert count_pairs(np.array([b, a]), truths[::-1], 0.5) == 1
    assert count_pairs(np.array([a, b]), truths, 0.4) == 2


def test_pairs_go_by_plain_iou() -> None:
    """Moved by 1.7 each way: IoU 68.89 / 131.11 = 0.53, generalized IoU 0.53 - 5.78 / 136.89 = 0.48."""
    assert scores_of(item(1, [[1.7, 1.7, 11.7, 11.7]], [LEFT]))["F1"] == 1


def test_an_answer_reaches_the_threshold() -> None:
    """0.7 is an answer, 0.69 is none; and with a threshold of 0.6, 0.69 is one."""
    assert scores_of(item(1, [LEFT], [LEFT], score=0.7))["T-acc"] == 1
    assert scores_of(item(1, [LEFT], [LEFT], score=0.69))["T-acc"] == 0
    assert scores_of(item(1, [LEFT], [LEFT], score=0.69), threshold=0.6)["T-acc"] == 1


def test_mmdetection_sees_the_first_box_only() -> None:
    """Two objects are meant. Both found is right, and for mmdetection one too many; the first alone the reverse."""
    both, first = item(1, [LEFT, RIGHT], [LEFT, RIGHT]), item(2, [LEFT], [LEFT, RIGHT])
    assert [scores_of(each)["F1"] for each in (both, first)] == [1, 0]
    assert [scores_of(each, mmdet_compatible=True)["F1"] for each in (both, first)] == [0, 1]


def test_truth_as_predictions_is_perfect() -> None:
    rng = np.random.default_rng(0)
    items = []
    for number in range(30):
        low = rng.uniform(0, 50, (number % 5, 2))
        boxes = np.concatenate([low, low + rng.uniform(1, 50, low.shape)], 1).tolist()
        items.append(item(number, boxes, boxes))
    assert scores_of(*items) == {"F1": 1.0, "N-acc": 1.0, "T-acc": 1.0}


def test_parts_together_are_the_whole() -> None:
    metric = GeneralizedReferring()
    for prediction, reference in FIVE[::-1]:
        metric.add(prediction=prediction, reference=reference)
    metric.add(prediction=FIVE[0][0], reference=FIVE[0][1])
    assert metric.compute() == scores_of(*FIVE)
    kept = {each["image_id"]: metric.keep(read_prediction(found, ""), each, "") for found, each in FIVE}
    assert metric.score(dict(reversed(kept.items()))) == metric.score(kept) == scores_of(*FIVE)


def test_nothing_to_measure() -> None:
    assert GeneralizedReferring().compute() == {"F1": -1.0, "N-acc": -1.0, "T-acc": -1.0}
    assert scores_of(item(1, [LEFT], [LEFT])) == {"F1": 1.0, "N-acc": -1.0, "T-acc": 1.0}
    assert scores_of(item(1, [], [])) == {"F1": 1.0, "N-acc": 1.0, "T-acc": -1.0}


def test_bad_input_is_refused() -> None:
    with pytest.raises(ValueError, match=r"image 3: box 0 is .*x1 <= x2"):
        scores_of(item(3, [], [[5, 5, 1, 1]]))
    with pytest.raises(ValueError, match="image 3: score 0 is nan"):
        scores_of(item(3, [LEFT], [LEFT], score=float("nan")))
    with pytest.raises(ValueError, match="iou is in"):
        GeneralizedReferring(iou=0)
