"""Boxes for sentences: RefCOCO, gRefCOCO and Flickr30k, on cases whose result is known."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from hf_grounding_dino.evaluation.metrics.matching import box_iou
from hf_grounding_dino.evaluation.metrics.referring import (
    GeneralizedReferring,
    PhraseGrounding,
    ReferringExpressions,
    count_pairs,
)

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


# --- gRefCOCO ----------------------------------------------------------------------------------------------------

LEFT, RIGHT = [0.0, 0.0, 10.0, 10.0], [20.0, 0.0, 30.0, 10.0]

Boxes = list[list[float]]


def item(number: int, answer: Boxes, meant: Boxes, score: float = 0.9) -> tuple[dict[str, Any], dict[str, Any]]:
    prediction = {"image_id": number, "boxes": answer, "scores": [score] * len(answer)}
    return prediction, {"image_id": number, "boxes": meant}


def generalized(*items: tuple[dict[str, Any], dict[str, Any]], **options: Any) -> dict[str, float]:
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
    assert generalized(*FIVE) == {"F1": 2 / 5, "N-acc": 1 / 2, "T-acc": 2 / 3}


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
    assert generalized(item(1, answer, meant))["F1"] == right


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
    assert generalized(item(1, [[1.7, 1.7, 11.7, 11.7]], [LEFT]))["F1"] == 1


def test_an_answer_reaches_the_threshold() -> None:
    """0.7 is an answer, 0.69 is none; and with a threshold of 0.6, 0.69 is one."""
    assert generalized(item(1, [LEFT], [LEFT], score=0.7))["T-acc"] == 1
    assert generalized(item(1, [LEFT], [LEFT], score=0.69))["T-acc"] == 0
    assert generalized(item(1, [LEFT], [LEFT], score=0.69), threshold=0.6)["T-acc"] == 1


def test_mmdetection_sees_the_first_box_only() -> None:
    """Two objects are meant. Both found is right, and for mmdetection one too many; the first alone the reverse."""
    both, first = item(1, [LEFT, RIGHT], [LEFT, RIGHT]), item(2, [LEFT], [LEFT, RIGHT])
    assert [generalized(each)["F1"] for each in (both, first)] == [1, 0]
    assert [generalized(each, mmdet_compatible=True)["F1"] for each in (both, first)] == [0, 1]


def test_no_expression_of_a_kind_is_nothing_to_measure() -> None:
    assert GeneralizedReferring().compute() == {"F1": -1.0, "N-acc": -1.0, "T-acc": -1.0}
    assert generalized(item(1, [LEFT], [LEFT])) == {"F1": 1.0, "N-acc": -1.0, "T-acc": 1.0}
    assert generalized(item(1, [], [])) == {"F1": 1.0, "N-acc": 1.0, "T-acc": -1.0}


# --- phrases -----------------------------------------------------------------------------------------------------

WEST, EAST, HULL = [0.0, 0.0, 4.0, 10.0], [6.0, 0.0, 10.0, 10.0], [0.0, 0.0, 10.0, 10.0]

Named = tuple[list[float], int]


def caption(number: int, found: list[Named], truth: list[Named]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Boxes with phrase numbers; those found come best first."""
    prediction = {"image_id": number, "boxes": [box for box, _ in found], "labels": [phrase for _, phrase in found]}
    prediction["scores"] = [1 - i / 100 for i in range(len(found))]
    return prediction, {"image_id": number, "boxes": [box for box, _ in truth], "labels": [each for _, each in truth]}


def grounded(*captions: tuple[dict[str, Any], dict[str, Any]], **options: Any) -> dict[str, float]:
    predictions, references = zip(*captions, strict=True)
    return PhraseGrounding(**options).compute(predictions=predictions, references=references)


TWO = [
    caption(1, [(FAR, 1), (EAST, 0), (FAR, 0), (HULL, 1)], [(WEST, 0), (EAST, 0), (HULL, 1)]),
    caption(2, [(HULL, 4), (HULL, 2)], [(HULL, 0), (HULL, 2)]),
]


def test_numbers_of_two_captions() -> None:
    """Four phrases have boxes, of which two are hit at once and one by the second box.

    Caption 1: phrase 0 is hit by its first box, phrase 1 by its second. Caption 2: phrase 0 has no box found, phrase 2
    is hit at once; phrase 1 has no truth, and 4 is no phrase with a truth. R@1 = 2/4, R@5 = R@all = 3/4.
    """
    assert grounded(*TWO, ks=(1, 5)) == {"R@1": 1 / 2, "R@5": 3 / 4, "R@all": 3 / 4}


def test_a_box_counts_for_its_own_phrase() -> None:
    """The best box of all lies on phrase 1 and is found for phrase 0."""
    assert grounded(caption(1, [(HULL, 0)], [(HULL, 1)]))["R@all"] == 0


def test_only_the_first_k_of_a_phrase_are_tried() -> None:
    """Twelve boxes: eleven far, then the right one. Boxes of phrase 1 between them take no place of phrase 0."""
    found = [(FAR, 1)] * 20 + [(FAR, 0)] * 11 + [(HULL, 0)]
    assert grounded(caption(1, found, [(HULL, 0)])) == {"R@1": 0, "R@5": 0, "R@10": 0, "R@all": 1}
    assert grounded(caption(1, found, [(HULL, 0)]), ks=(11, 12)) == {"R@11": 0, "R@12": 1, "R@all": 1}


def test_any_box_and_merged_boxes() -> None:
    """Two boxes of 40 in a hull of 100: the hull has IoU 0.4 with each, and 1 with the hull; one box the reverse."""
    hull, one = (caption(1, [(box, 0)], [(WEST, 0), (EAST, 0)]) for box in (HULL, WEST))
    assert [grounded(each)["R@1"] for each in (hull, one)] == [0, 1]
    assert [grounded(each, merged=True)["R@1"] for each in (hull, one)] == [1, 0]


def test_mmdetection_numbers_phrases_by_rank() -> None:
    """Phrases 0 and 2 have a box; by rank they are 0 and 1, so what was found for phrase 1 hits the box of phrase 2."""
    item = caption(1, [(HULL, 0), (FAR, 1)], [(HULL, 0), (FAR, 2)])
    assert grounded(item)["R@1"] == 1 / 2
    assert grounded(item, mmdet_compatible=True)["R@1"] == 1


@pytest.mark.parametrize("merged", [False, True])
def test_merged_truth_as_predictions_is_perfect(merged: bool) -> None:
    """Each phrase has one box, or several, which are found as their hull where they are merged."""
    rng = np.random.default_rng(0)
    captions = []
    for number in range(20):
        phrases = np.arange(1 + number % 4).repeat(1 if merged else 2)
        low = rng.uniform(0, 50, (len(phrases), 2))
        boxes = np.concatenate([low, low + rng.uniform(1, 50, low.shape)], 1)
        named = list(zip(boxes.tolist(), phrases.tolist(), strict=True))
        captions.append(caption(number, named, named))
    assert set(grounded(*captions, merged=merged).values()) == {1.0}


def test_no_phrase_is_nothing_to_measure() -> None:
    nothing = {"R@1": -1.0, "R@5": -1.0, "R@10": -1.0, "R@all": -1.0}
    assert PhraseGrounding().compute() == nothing
    assert grounded(caption(1, [(HULL, 0)], [])) == nothing


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        ({"labels": [0, 1]}, "image 5: 1 boxes, and labels of shape"),
        ({"labels": [-1]}, "image 5: label 0 of the reference is -1"),
        ({"boxes": [[3, 0, 1, 1]]}, "image 5: box 0 is"),
    ],
)
def test_bad_phrases_are_refused(change: dict[str, Any], rule: str) -> None:
    prediction, reference = caption(5, [(HULL, 0)], [(HULL, 0)])
    with pytest.raises(ValueError, match=rule):
        PhraseGrounding().add(prediction=prediction, reference={**reference, **change})


def test_bad_phrases_of_predictions_are_refused() -> None:
    prediction, reference = caption(5, [(HULL, 0)], [(HULL, 0)])
    with pytest.raises(ValueError, match="image 5: label 0 of the prediction is -3"):
        PhraseGrounding().add(prediction={**prediction, "labels": [-3]}, reference=reference)
    del prediction["labels"]
    with pytest.raises(ValueError, match="image 5: labels is missing"):
        PhraseGrounding().add(prediction=prediction, reference=reference)
