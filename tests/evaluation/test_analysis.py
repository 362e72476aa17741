"""What is counted as right, wrong, missed and confused, on cases small enough to count by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from PIL import Image

from hf_grounding_dino.evaluation.analysis import (
    DUPLICATE,
    MISPLACED,
    NOTHING_THERE,
    OTHER_LABEL,
    Analysis,
    Limits,
    analyse_detection,
)
from hf_grounding_dino.evaluation.matching import match, truths_of
from hf_grounding_dino.evaluation.reliability import ScoreHistogram, calibration_error
from hf_grounding_dino.evaluation.sentences import NOTHING_MEANT, WRONG_PLACE, analyse_sentences
from hf_grounding_dino.evaluation.tasks import Answer, Case

LABELS = {1: "cat", 5: "dog"}
IMAGE = Image.new("RGB", (100, 80))
A, B, C = [0, 0, 20, 20], [40, 40, 60, 70], [70, 0, 90, 10]


def case(boxes: list[Any], labels: list[int], number: int = 0, **fields: Any) -> Case:
    reference = {"image_id": number, "boxes": boxes, "labels": labels, **fields}
    return Case(number, IMAGE, reference)


def answer(*rows: tuple[list[Any], float, int]) -> Answer:
    boxes = np.array([row[0] for row in rows], np.float32).reshape(-1, 4)
    scores = np.array([row[1] for row in rows], np.float32)
    return Answer(boxes, scores, np.array([row[2] for row in rows], np.int64))


def analysed(*pairs: tuple[Case, Answer], limits: Limits | None = None) -> Analysis:
    return analyse_detection(iter(pairs), LABELS, limits)


def test_the_better_box_takes_the_truth() -> None:
    """Two boxes of the right label on one truth: the one of the higher score is right, the closer one is not."""
    truths = truths_of(case([A], [1]).reference)
    matching = match(answer(([0, 0, 20, 20], 0.4, 1), ([0, 0, 20, 18], 0.6, 1)), truths)
    assert matching.truth.tolist() == [-1, 0]
    assert matching.overlap[:, 0].tolist() == pytest.approx([1.0, 0.9])


def test_boxes_on_a_crowd_count_neither_way() -> None:
    """Two cats in a crowd box, which holds them whole, and one dog in it: the cats are ignored, the dog is wrong."""
    reference = case([[0, 0, 90, 80]], [1], iscrowd=[1]).reference
    matching = match(answer((A, 0.9, 1), (B, 0.8, 1), (C, 0.7, 5)), truths_of(reference))
    assert matching.ignored.tolist() == [True, True, False]
    assert matching.wrong.tolist() == [False, False, True]


def test_labels_nobody_looked_for_are_not_judged() -> None:
    """Federated: a cat is there, dogs are absent, label 7 was not looked for, and not all cats are annotated."""
    fields = {"neg_category_ids": [5], "not_exhaustive_category_ids": [1]}
    matching = match(answer((A, 0.9, 1), (B, 0.8, 1), (B, 0.7, 5), (B, 0.6, 7)), truths_of(case([A], [1], **fields)[2]))
    assert matching.right.tolist() == [True, False, False, False]
    assert matching.wrong.tolist() == [False, False, True, False]


def test_each_mistake_is_of_one_kind() -> None:
    """At 0.3: A right; A once more; B called dog; C a third covered (IoU 1/3); one in the void; one below."""
    found = answer(
        (A, 0.9, 1), (A, 0.8, 1), (B, 0.7, 5), ([80, 0, 100, 10], 0.6, 1), ([0, 60, 20, 80], 0.5, 5), (C, 0.2, 5)
    )
    analysis = analysed((case([A, B, C], [1, 1, 1]), found))
    assert analysis.mistakes == {DUPLICATE: 1, OTHER_LABEL: 1, MISPLACED: 1, NOTHING_THERE: 1}
    assert analysis.called == {(1, 1): 1, (1, 5): 1, (1, None): 1, (None, 5): 1}
    (worst,) = analysis.false_positives
    assert worst.kind == DUPLICATE
    assert worst.found is not None
    assert worst.found.score == pytest.approx(0.8)
    # B, of 600 pixels, is larger than C, of 200; its best box calls it a dog.
    (missed,) = analysis.misses
    assert missed.truth is not None
    assert missed.truth.box == (40.0, 40.0, 60.0, 70.0)
    assert missed.found is not None
    assert missed.found.label == "dog"


def test_the_worst_are_bounded_and_ordered() -> None:
    """30 pictures with a wrong box each, scores 0.50 to 0.79: the best twelve are kept, the highest first."""
    pairs = [(case([], [], i), answer((A, 0.5 + i / 100, 1))) for i in range(30)]
    analysis = analysed(*pairs)
    assert [mistake.case_id for mistake in analysis.false_positives] == list(range(29, 17, -1))
    assert [m.case_id for m in analysed(*pairs, limits=Limits(worst=2)).false_positives] == [29, 28]


def test_scores_are_compared_with_what_is_right() -> None:
    """Four boxes of 0.62, one of them right, and two of 0.98, both right.

    Error: (4 x |0.25 - 0.62| + 2 x |1 - 0.98|) / 6 = 0.253.
    """
    histogram = ScoreHistogram()
    histogram.num_truths = 4
    scores = np.array([0.62, 0.62, 0.62, 0.62, 0.98, 0.98, 0.03], np.float32)
    histogram.add(scores, np.array([True, False, False, False, True, True, False]))
    bins = histogram.bins(lowest=0.05)
    assert [(row.low, row.boxes, row.right) for row in bins] == [(0.6, 4, 1), (0.95, 2, 2)]
    assert calibration_error(bins) == pytest.approx((4 * 0.37 + 2 * 0.02) / 6)
    points = {round(point.threshold, 2): point for point in histogram.operating_points()}
    assert (points[0.5].precision, points[0.5].recall) == pytest.approx((3 / 6, 3 / 4))
    assert (points[0.9].precision, points[0.9].recall) == pytest.approx((1, 2 / 4))
    assert 0.99 not in points


def test_no_cases_and_no_boxes_are_no_error() -> None:
    assert analysed().bins == []
    analysis = analysed((case([A], [1]), answer()), (case([], [], 1), answer()))
    assert analysis.evidence.empty == 2
    assert analysis.called == {(1, None): 1}
    assert analysis.points == []


def test_expressions_are_hit_by_their_best_box() -> None:
    """Three expressions of 2, 5 and 12 words: hit, far off at 0.8, and not found at 0.1; one means nothing, at 0.9."""
    texts = ["the cat", "the dog on the left", "a b c d e f g h i j k l", "no such thing"]
    boxes: list[Any] = [[A], [B], [C], []]
    answers = [
        answer((B, 0.2, 0), (A, 0.7, 0)),
        answer((A, 0.8, 0), (B, 0.5, 0)),
        answer((A, 0.1, 0)),
        answer((A, 0.9, 0)),
    ]
    cases = [
        Case(i, IMAGE, {"image_id": i, "boxes": own}, text)
        for i, (own, text) in enumerate(zip(boxes, texts, strict=True))
    ]
    analysis = analyse_sentences(zip(cases, answers, strict=True))
    assert [tuple(row) for row in analysis.lengths] == [("1 to 3", 2, 1), ("4 to 6", 1, 0), ("10 or more", 1, 0)]
    assert [(mistake.case_id, mistake.kind) for mistake in analysis.false_positives] == [
        (3, NOTHING_MEANT),
        (1, WRONG_PLACE),
    ]
    assert [mistake.case_id for mistake in analysis.misses] == [2]
    assert (analysis.evidence.num_truths, analysis.evidence.located) == (3, 2)


def test_phrases_are_judged_one_by_one() -> None:
    """Phrase 0 is hit; phrase 1, of two words, is missed by its own box though another phrase's box hits it."""
    text = "a cat beside red dogs"
    spans = (((0, 5),), ((13, 21),), ((6, 12),))
    own = Case(0, IMAGE, {"image_id": 0, "boxes": [A, B], "labels": [0, 1]}, text, spans)
    analysis = analyse_sentences([(own, answer((A, 0.9, 0), (B, 0.8, 0), ([40, 50, 60, 90], 0.6, 1), (C, 0.5, 2)))])
    (failure,) = analysis.false_positives
    assert failure.kind == WRONG_PLACE
    assert failure.truth is not None
    assert (failure.truth.label, failure.text) == ("red dogs", text)
    assert failure.overlap == pytest.approx(400 / 1000)
    assert sum(row.expressions for row in analysis.lengths) == 2
