"""Base and novel categories of COCO."""

from __future__ import annotations

from typing import Any

import pytest

from hf_grounding_dino.evaluation import OpenVocabularyCoco
from hf_grounding_dino.evaluation.metrics.coco import BASE_NAMES, NOVEL_NAMES, open_vocabulary_split

# In the order of their ids 1 to 90, of which ten have no category.
COCO_NAMES = """person, bicycle, car, motorcycle, airplane, bus, train, truck, boat, traffic light, fire hydrant,
stop sign, parking meter, bench, bird, cat, dog, horse, sheep, cow, elephant, bear, zebra, giraffe, backpack, umbrella,
handbag, tie, suitcase, frisbee, skis, snowboard, sports ball, kite, baseball bat, baseball glove, skateboard,
surfboard, tennis racket, bottle, wine glass, cup, fork, knife, spoon, bowl, banana, apple, sandwich, orange, broccoli,
carrot, hot dog, pizza, donut, cake, chair, couch, potted plant, bed, dining table, toilet, tv, laptop, mouse, remote,
keyboard, cell phone, microwave, oven, toaster, sink, refrigerator, book, clock, vase, scissors, teddy bear, hair drier,
toothbrush"""
NAMES = [name.strip() for name in COCO_NAMES.replace("\n", " ").split(",")]
ABSENT = {12, 26, 29, 30, 45, 66, 68, 69, 71, 83}
IDS = [i for i in range(1, 91) if i not in ABSENT]


def test_the_split_has_48_and_17_of_the_80_names() -> None:
    assert len(NAMES) == len(IDS) == 80
    assert (len(set(BASE_NAMES)), len(set(NOVEL_NAMES))) == (len(BASE_NAMES), len(NOVEL_NAMES)) == (48, 17)
    assert not set(BASE_NAMES) & set(NOVEL_NAMES)
    assert {*BASE_NAMES, *NOVEL_NAMES} < set(NAMES)


def test_the_split_is_found_by_name() -> None:
    base, novel = open_vocabulary_split(dict(zip(IDS, NAMES, strict=True)))
    assert base[:5] == [1, 2, 3, 4, 7]
    assert novel[:3] == [5, 6, 17]
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
