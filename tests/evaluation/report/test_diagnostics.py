"""What is counted as right, wrong, missed and confused, on cases small enough to count by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from PIL import Image

from hf_grounding_dino.evaluation.metrics.base import ScoredBoxes, read_ground_truth
from hf_grounding_dino.evaluation.metrics.matching import match
from hf_grounding_dino.evaluation.report.calibration import ScoreHistogram, calibration_error
from hf_grounding_dino.evaluation.report.diagnostics import (
    LIMITS,
    Analysis,
    Limits,
    analyse_detection,
    analyse_sentences,
)
from hf_grounding_dino.evaluation.tasks import Sample

LABELS = {1: "cat", 5: "dog"}
IMAGE = Image.new("RGB", (100, 80))
A, B, C = [0, 0, 20, 20], [40, 40, 60, 70], [70, 0, 90, 10]


def sample(boxes: list[Any], labels: list[int], number: int = 0, **fields: Any) -> Sample:
    reference = {"image_id": number, "boxes": boxes, "labels": labels, **fields}
    return Sample(number, IMAGE, reference)


def found(*rows: tuple[list[Any], float, int]) -> ScoredBoxes:
    boxes = np.array([row[0] for row in rows], np.float32).reshape(-1, 4)
    scores = np.array([row[1] for row in rows], np.float32)
    return ScoredBoxes(boxes, scores, np.array([row[2] for row in rows], np.int64))


def analysed(*pairs: tuple[Sample, ScoredBoxes], limits: Limits = LIMITS) -> Analysis:
    return analyse_detection(iter(pairs), LABELS, limits)


def test_the_better_box_takes_the_truth() -> None:
    """Two boxes of the right label on one truth: the one of the higher score is right, the closer one is not."""
    truths = read_ground_truth(sample([A], [1]).reference)
    matching = match(found(([0, 0, 20, 20], 0.4, 1), ([0, 0, 20, 18], 0.6, 1)), truths)
    assert matching.truth.tolist() == [-1, 0]
    assert matching.iou[:, 0].tolist() == pytest.approx([1.0, 0.9])


def test_boxes_on_a_crowd_count_neither_way() -> None:
    """Two cats in a crowd box, which holds them whole, and one dog in it: the cats are ignored, the dog is wrong."""
    reference = sample([[0, 0, 90, 80]], [1], iscrowd=[1]).reference
    matching = match(found((A, 0.9, 1), (B, 0.8, 1), (C, 0.7, 5)), read_ground_truth(reference))
    assert matching.ignored.tolist() == [True, True, False]
    assert matching.wrong.tolist() == [False, False, True]


def test_labels_nobody_looked_for_are_not_judged() -> None:
    """Federated: a cat is there, dogs are absent, label 7 was not looked for, and not all cats are annotated."""
    fields = {"neg_category_ids": [5], "not_exhaustive_category_ids": [1]}
    matching = match(
        found((A, 0.9, 1), (B, 0.8, 1), (B, 0.7, 5), (B, 0.6, 7)), read_ground_truth(sample([A], [1], **fields)[2])
    )
    assert matching.right.tolist() == [True, False, False, False]
    assert matching.wrong.tolist() == [False, False, True, False]


def test_errors_are_those_of_tide() -> None:
    """At 0.3: A right; A once more; B called dog; C a third covered (IoU 1/3), as cat and as dog; one in the void.

    C is near its Loc box and B on its Cls box, so of the objects without a right box D alone is a Miss.
    """
    beside, d = [80, 0, 100, 10], [0, 30, 10, 40]
    boxes = found(
        (A, 0.9, 1),
        (A, 0.8, 1),
        (B, 0.7, 5),
        (beside, 0.6, 1),
        (beside, 0.55, 5),
        ([0, 60, 20, 80], 0.5, 5),
        (d, 0.2, 5),
    )
    analysis = analysed((sample([A, B, C, d], [1, 1, 1, 1]), boxes))
    assert analysis.errors == {"Dupe": 1, "Cls": 1, "Loc": 1, "Both": 1, "Bkg": 1, "Miss": 1}
    assert analysis.called == {(1, 1): 1, (1, 5): 1, (1, None): 2, (None, 5): 1}
    (worst,) = analysis.false_positives
    assert worst.kind == "Dupe" and worst.found is not None and worst.found.score == pytest.approx(0.8)
    (missed,) = analysis.misses
    assert missed.kind == "Miss" and missed.truth is not None and missed.truth.box == (0.0, 30.0, 10.0, 40.0)
    assert missed.found is not None and missed.found.label == "dog", "its best box, whatever it scores"


def test_an_iou_of_the_foreground_threshold_is_no_loc_error() -> None:
    """A box of half of A has IoU 0.5: right; the same with one row less is Loc; IoU below 0.1 is Bkg."""
    for height, errors in ((10, {}), (9, {"Loc": 1}), (1, {"Bkg": 1, "Miss": 1})):
        analysis = analysed((sample([A], [1]), found(([0, 0, 20, height], 0.9, 1))))
        assert {kind: count for kind, count in analysis.errors.items() if count} == errors


def test_the_worst_are_bounded_and_ordered() -> None:
    """30 images with a wrong box each, scores 0.50 to 0.79: the best twelve are kept, the highest first."""
    pairs = [(sample([], [], i), found((A, 0.5 + i / 100, 1))) for i in range(30)]
    analysis = analysed(*pairs)
    assert [error.sample_id for error in analysis.false_positives] == list(range(29, 17, -1))
    assert [m.sample_id for m in analysed(*pairs, limits=Limits(worst=2)).false_positives] == [29, 28]


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


def test_no_samples_and_no_boxes_are_no_error() -> None:
    assert analysed().bins == []
    analysis = analysed((sample([A], [1]), found()), (sample([], [], 1), found()))
    assert analysis.evidence.empty == 2
    assert analysis.called == {(1, None): 1}
    assert analysis.points == []


def test_expressions_are_hit_by_their_best_box() -> None:
    """Three expressions of 2, 5 and 12 words: hit, far off at 0.8, and not found at 0.1; one means nothing, at 0.9."""
    texts = ["the cat", "the dog on the left", "a b c d e f g h i j k l", "no such thing"]
    boxes: list[Any] = [[A], [B], [C], []]
    answers = [
        found((B, 0.2, 0), (A, 0.7, 0)),
        found((A, 0.8, 0), (B, 0.5, 0)),
        found((A, 0.1, 0)),
        found((A, 0.9, 0)),
    ]
    cases = [
        Sample(i, IMAGE, {"image_id": i, "boxes": own}, text)
        for i, (own, text) in enumerate(zip(boxes, texts, strict=True))
    ]
    analysis = analyse_sentences(zip(cases, answers, strict=True))
    assert [tuple(row) for row in analysis.lengths] == [("1 to 3", 2, 1), ("4 to 6", 1, 0), ("10 or more", 1, 0)]
    assert [(error.sample_id, error.kind) for error in analysis.false_positives] == [
        (3, "Bkg"),
        (1, "Bkg"),
    ]
    assert [error.sample_id for error in analysis.misses] == [2]
    assert (analysis.evidence.num_truths, analysis.evidence.located) == (3, 2)


def test_phrases_are_judged_one_by_one() -> None:
    """Phrase 0 is hit; phrase 1, of two words, is missed by its own box though another phrase's box hits it."""
    text = "a cat beside red dogs"
    spans = (((0, 5),), ((13, 21),), ((6, 12),))
    own = Sample(0, IMAGE, {"image_id": 0, "boxes": [A, B], "labels": [0, 1]}, text, spans)
    analysis = analyse_sentences([(own, found((A, 0.9, 0), (B, 0.8, 0), ([40, 50, 60, 90], 0.6, 1), (C, 0.5, 2)))])
    (failure,) = analysis.false_positives
    assert failure.kind == "Loc"
    assert failure.truth is not None
    assert (failure.truth.label, failure.text) == ("red dogs", text)
    assert failure.iou == pytest.approx(400 / 1000)
    assert sum(row.expressions for row in analysis.lengths) == 2
