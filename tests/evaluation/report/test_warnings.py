"""Each warning comes when it is due, with its numbers, and not otherwise."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from transformers import PreTrainedTokenizerBase

from hf_grounding_dino import GroundingDinoProcessor
from hf_grounding_dino.assets import NANO
from hf_grounding_dino.evaluation.metrics.base import ScoredBoxes
from hf_grounding_dino.evaluation.report import Facts
from hf_grounding_dino.evaluation.report.diagnostics import analyse_detection
from hf_grounding_dino.evaluation.report.warnings import advise
from hf_grounding_dino.evaluation.tasks import Sample

# Ids with gaps, as COCO has them: no label is its own position.
LABELS = {2: "cat", 3: "dog", 5: "bird", 9: "horse", 10: "cow"}
IDS = list(LABELS)
SIZE = (200, 120)


def facts(samples: int = 10, scored: int = 10, **fields: Any) -> Facts:
    return Facts(model="m", data="d", date="2026-01-31", samples=samples, scored=scored, **fields)


def pairs(relabel: Callable[[int], int] = lambda label: label, scale: Any = 1.0) -> list[tuple[Sample, ScoredBoxes]]:
    """Ten images of five boxes, all found, their labels and coordinates changed."""
    rng = np.random.default_rng(3)
    made = []
    for i in range(10):
        low = rng.uniform(0, [140, 70], (5, 2))
        boxes = np.concatenate([low, low + rng.uniform(20, 50, (5, 2))], 1)
        reference = {"image_id": i, "boxes": boxes, "labels": np.array(IDS)}
        found = np.array([relabel(label) for label in IDS])
        answer = ScoredBoxes((boxes * scale).astype(np.float32), np.linspace(0.9, 0.5, 5, dtype=np.float32), found)
        made.append((Sample(i, Image.new("RGB", SIZE), reference), answer))
    return made


def advice(
    answers: list[tuple[Sample, ScoredBoxes]], ap: float = 0.0, labels: dict[int, str] = LABELS, **options: Any
) -> list[str]:
    analysis = analyse_detection(answers, labels)
    return advise(labels, {"AP": ap}, analysis, options.pop("facts", facts()), **options)


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return GroundingDinoProcessor.from_pretrained(NANO).tokenizer


def test_nothing_is_said_where_all_is_well(tokenizer: PreTrainedTokenizerBase) -> None:
    labels = dict(zip(IDS, ["red square", "blue circle", "green star", "white ring", "cyan heart"], strict=True))
    assert advice(pairs(), 1.0, labels, tokenizer=tokenizer) == []


@pytest.mark.parametrize(
    ("relabel", "expected"),
    [
        (lambda label: label - 1, "Adding 1 to every label would make 100% of them right."),
        (lambda label: label + 1, "Subtracting 1 from every label would make 100% of them right."),
        (IDS.index, "positions in the list of categories, counted from 0, would make 100% of them right."),
        (lambda label: IDS.index(label) + 1, "positions in the list of categories, counted from 1, would make 100%"),
        (lambda label: IDS[IDS.index(label) * 2 % 5 - 2], "Reading 9 ('horse') as 2 ('cat'), "),
        (lambda label: 77, "No fixed exchange of labels explains what they are called."),
    ],
)
def test_the_class_map_is_suspected_when_boxes_are_right_and_labels_wrong(
    relabel: Callable[[int], int], expected: str
) -> None:
    (line,) = advice(pairs(relabel))
    assert line.startswith("The class map may be wrong: AP is 0.000, yet 100% of the 50 boxes are found")
    assert expected in line


def test_a_low_ap_with_bad_boxes_is_no_question_of_the_class_map() -> None:
    assert advice(pairs(lambda label: label - 1), ap=0.3) == []
    far = [(case, answer._replace(boxes=answer.boxes + 1000)) for case, answer in pairs(lambda label: label - 1)]
    assert advice(far) == []


@pytest.mark.parametrize(
    ("scale", "reading"),
    [
        (1 / np.array([*SIZE, *SIZE]), "shares of the image's sides"),
        # 200 x 120: the shortest edge to 800 gives 6.667 times, and 1333 for the longest.
        (1333 / 200, "pixels of the image resized to 800/1333"),
        (640 / np.array([*SIZE, *SIZE]), "pixels of the image resized to 640 × 640"),
    ],
)
def test_boxes_of_another_scale_are_recognised(scale: Any, reading: str) -> None:
    (line,) = advice(pairs(scale=scale))
    assert f"The boxes seem to be {reading}" in line
    assert "find 100% of 50 boxes" in line


def test_images_that_are_gone_say_nothing_of_the_scale() -> None:
    gone = [(case._replace(image=Path("nowhere.png")), answer) for case, answer in pairs(scale=0.01)]
    assert advice(gone) == []


def test_what_was_left_out_is_counted() -> None:
    left = facts(samples=40, scored=10, missing=("a.jpg", "b.jpg", "c.jpg", "d.jpg"), unreadable=("e.jpg: no image",))
    made = pairs()
    empty = ScoredBoxes(np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0, np.int64))
    subset, missing, unreadable, none = advice([(made[0][0], empty), *made[1:]], 0.9, facts=left)
    assert subset.startswith("Only 10 of 40 samples (25.0%)")
    assert missing == "4 images are missing: a.jpg, b.jpg, c.jpg and 1 more."
    assert unreadable == "1 image is unreadable: e.jpg: no image."
    assert none.startswith("1 of 10 samples has no box at all")


def test_labels_that_hide_in_each_other_are_named() -> None:
    labels = dict(zip(IDS, ["container", "containernumber", "Cat", " cat", "cow"], strict=True))
    same, inside = advice(pairs(), 0.9, labels)
    assert same.startswith("1 label is there more than once: 'Cat' (5, 9)")
    assert inside.startswith("1 label is part of another: 'container' in 'containernumber'")


def test_unknown_words_are_named(tokenizer: PreTrainedTokenizerBase) -> None:
    labels = dict(zip(IDS, ["red square", "龘 龘 square", "green star", "white ring", "cyan heart"], strict=True))
    (line,) = advice(pairs(), 0.9, labels, tokenizer=tokenizer)
    assert line.startswith(
        "1 of 5 labels is made mostly of words that the tokenizer does not know: '龘 龘 square' (67%)"
    )
