"""R@k of phrases, any box and merged boxes, on cases whose result is known."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from hf_grounding_dino.evaluation.metrics.base import read_prediction
from hf_grounding_dino.evaluation.metrics.referring import PhraseGrounding

WEST, EAST, HULL = [0.0, 0.0, 4.0, 10.0], [6.0, 0.0, 10.0, 10.0], [0.0, 0.0, 10.0, 10.0]
FAR = [50.0, 50.0, 60.0, 60.0]

Named = tuple[list[float], int]


def caption(number: int, found: list[Named], truth: list[Named]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Boxes with phrase numbers; those found come best first."""
    prediction = {"image_id": number, "boxes": [box for box, _ in found], "labels": [phrase for _, phrase in found]}
    prediction["scores"] = [1 - i / 100 for i in range(len(found))]
    return prediction, {"image_id": number, "boxes": [box for box, _ in truth], "labels": [each for _, each in truth]}


def scores_of(*captions: tuple[dict[str, Any], dict[str, Any]], **options: Any) -> dict[str, float]:
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
    assert scores_of(*TWO, ks=(1, 5)) == {"R@1": 1 / 2, "R@5": 3 / 4, "R@all": 3 / 4}


def test_a_box_counts_for_its_own_phrase() -> None:
    """The best box of all lies on phrase 1 and is found for phrase 0."""
    assert scores_of(caption(1, [(HULL, 0)], [(HULL, 1)]))["R@all"] == 0


def test_only_the_first_k_of_a_phrase_are_tried() -> None:
    """Twelve boxes: eleven far, then the right one. Boxes of phrase 1 between them take no place of phrase 0."""
    found = [(FAR, 1)] * 20 + [(FAR, 0)] * 11 + [(HULL, 0)]
    assert scores_of(caption(1, found, [(HULL, 0)])) == {"R@1": 0, "R@5": 0, "R@10": 0, "R@all": 1}
    assert scores_of(caption(1, found, [(HULL, 0)]), ks=(11, 12)) == {"R@11": 0, "R@12": 1, "R@all": 1}


def test_any_box_and_merged_boxes() -> None:
    """Two boxes of 40 in a hull of 100: the hull has IoU 0.4 with each, and 1 with the hull; one box the reverse."""
    hull, one = (caption(1, [(box, 0)], [(WEST, 0), (EAST, 0)]) for box in (HULL, WEST))
    assert [scores_of(each)["R@1"] for each in (hull, one)] == [0, 1]
    assert [scores_of(each, merged=True)["R@1"] for each in (hull, one)] == [1, 0]


def test_mmdetection_numbers_phrases_by_rank() -> None:
    """Phrases 0 and 2 have a box; by rank they are 0 and 1, so what was found for phrase 1 hits the box of phrase 2."""
    item = caption(1, [(HULL, 0), (FAR, 1)], [(HULL, 0), (FAR, 2)])
    assert scores_of(item)["R@1"] == 1 / 2
    assert scores_of(item, mmdet_compatible=True)["R@1"] == 1


@pytest.mark.parametrize("merged", [False, True])
def test_truth_as_predictions_is_perfect(merged: bool) -> None:
    """Each phrase has one box, or several, which are found as their hull where they are merged."""
    rng = np.random.default_rng(0)
    captions = []
    for number in range(20):
        phrases = np.arange(1 + number % 4).repeat(1 if merged else 2)
        low = rng.uniform(0, 50, (len(phrases), 2))
        boxes = np.concatenate([low, low + rng.uniform(1, 50, low.shape)], 1)
        named = list(zip(boxes.tolist(), phrases.tolist(), strict=True))
        captions.append(caption(number, named, named))
    assert set(scores_of(*captions, merged=merged).values()) == {1.0}


def test_parts_together_are_the_whole() -> None:
    metric = PhraseGrounding()
    for prediction, reference in [*TWO[::-1], TWO[0]]:
        metric.add(prediction=prediction, reference=reference)
    assert metric.compute() == scores_of(*TWO)
    kept = {each["image_id"]: metric.keep(read_prediction(found, ""), each, "") for found, each in TWO}
    assert metric.score(dict(reversed(kept.items()))) == metric.score(kept) == scores_of(*TWO)


def test_nothing_to_measure() -> None:
    nothing = {"R@1": -1.0, "R@5": -1.0, "R@10": -1.0, "R@all": -1.0}
    assert PhraseGrounding().compute() == nothing
    assert scores_of(caption(1, [(HULL, 0)], [])) == nothing


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        ({"labels": [0, 1]}, "image 5: 1 boxes, and labels of shape"),
        ({"labels": [-1]}, "image 5: label 0 of the reference is -1"),
        ({"boxes": [[3, 0, 1, 1]]}, "image 5: box 0 is"),
    ],
)
def test_bad_references_are_refused(change: dict[str, Any], rule: str) -> None:
    prediction, reference = caption(5, [(HULL, 0)], [(HULL, 0)])
    with pytest.raises(ValueError, match=rule):
        PhraseGrounding().add(prediction=prediction, reference={**reference, **change})


def test_bad_predictions_are_refused() -> None:
    prediction, reference = caption(5, [(HULL, 0)], [(HULL, 0)])
    with pytest.raises(ValueError, match="image 5: label 0 of the prediction is -3"):
        PhraseGrounding().add(prediction={**prediction, "labels": [-3]}, reference=reference)
    del prediction["labels"]
    with pytest.raises(ValueError, match="image 5: labels is missing"):
        PhraseGrounding().add(prediction=prediction, reference=reference)
