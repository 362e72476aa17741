"""Thresholds of the highest F1, on cases that can be counted by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_grounding_dino.evaluation.metrics.base import ScoredBoxes
from hf_grounding_dino.evaluation.tasks import Sample
from hf_grounding_dino.evaluation.threshold_tuning import TunedThresholds, tune_thresholds

LABELS = {3: "cat", 7: "dog"}
SIDE = 10.0


def place(column: int) -> list[float]:
    """Boxes of different columns do not touch."""
    return [20 * column, 0, 20 * column + SIDE, SIDE]


def scene(
    truths: list[tuple[int, int]], found: list[tuple[int, int, float]], crowd: tuple[int, ...] = ()
) -> tuple[Sample, ScoredBoxes]:
    """Truths as (column, label), boxes found as (column, label, score); the truths at positions `crowd` are groups."""
    reference = {
        "image_id": 1,
        "boxes": np.array([place(column) for column, _ in truths]).reshape(-1, 4),
        "labels": np.array([label for _, label in truths], dtype=np.int64),
        "iscrowd": np.array([i in crowd for i in range(len(truths))]),
    }
    found = sorted(found, key=lambda one: -one[2])
    answer = ScoredBoxes(
        np.array([place(column) for column, _, _ in found], dtype=np.float32).reshape(-1, 4),
        np.array([score for *_, score in found], dtype=np.float32),
        np.array([label for _, label, _ in found], dtype=np.int64),
    )
    return Sample(1, b"", reference), answer


def test_by_hand() -> None:
    """Cats 0, 1, 2 are there. Found: 0 at 0.9, 1 at 0.8, nothing (5) at 0.6, 2 at 0.5, nothing (6, 7) at 0.4, 0.3.

    F1 = 2 hits / (kept + 3): 0.5, 0.8, 0.667, 0.857, 0.75, 0.667. The best keeps four, so the threshold is half way
    from 0.5 to 0.4, precision 3/4, recall 1. A dog occurs never and is found at 0.95, so it takes the threshold of all,
    where F1 is 2 * 3 / (5 + 3).
    """
    found = [(0, 3, 0.9), (1, 3, 0.8), (5, 3, 0.6), (2, 3, 0.5), (6, 3, 0.4), (7, 3, 0.3), (0, 7, 0.95)]
    result = tune_thresholds([scene([(0, 3), (1, 3), (2, 3)], found)], LABELS, min_truths=1)
    cat, dog = result.labels["cat"], result.labels["dog"]
    assert cat.threshold == pytest.approx(0.45)
    assert (cat.precision, cat.recall, cat.f1) == pytest.approx((0.75, 1.0, 6 / 7))
    assert result.overall.threshold == pytest.approx(0.45)
    assert result.overall.f1 == pytest.approx(6 / 8)
    assert not dog.own and dog.threshold == result.overall.threshold and dog.f1 == 0
    thresholds = result.thresholds("by hand")
    assert thresholds.for_labels(["cat", "dog"]) == pytest.approx([0.45, 0.45])
    assert list(thresholds.labels) == ["cat"]


def test_few_objects_take_the_threshold_of_all() -> None:
    """One dog at 0.2 against four cats at 0.9: all together are best at 0.45 or lower, by the F1 of five."""
    cats = [(column, 3) for column in range(4)]
    pictures = [scene([*cats, (9, 7)], [*((*cat, 0.9) for cat in cats), (9, 7, 0.2)])]
    few = tune_thresholds(pictures, LABELS, min_truths=2).labels["dog"]
    assert not few.own and few.num_truths == 1
    assert tune_thresholds(pictures, LABELS, min_truths=1).labels["dog"].own


def test_a_box_on_a_crowd_counts_neither_way() -> None:
    pictures = [scene([(0, 3), (1, 3)], [(0, 3, 0.5), (1, 3, 0.9)], crowd=(1,))]
    cat = tune_thresholds(pictures, LABELS, min_truths=1).labels["cat"]
    assert (cat.precision, cat.recall, cat.num_truths) == (1.0, 1.0, 1)


def test_a_second_box_on_one_object_is_wrong() -> None:
    pictures = [scene([(0, 3)], [(0, 3, 0.9), (0, 3, 0.8)])]
    cat = tune_thresholds(pictures, LABELS, min_truths=1).labels["cat"]
    assert cat.threshold == pytest.approx(0.85) and cat.precision == 1


def test_nothing_is_there() -> None:
    with pytest.raises(ValueError, match="no object"):
        tune_thresholds([scene([], [(0, 3, 0.5)])], LABELS)


def test_nothing_is_right() -> None:
    """A threshold of 1 lets nothing through."""
    assert tune_thresholds([scene([(0, 3)], [(5, 3, 0.5)])], LABELS).overall.threshold == 1


def f1_at(pictures: list[tuple[Sample, ScoredBoxes]], threshold: float) -> float:
    """F1 of all labels, by a plain loop; each column holds one truth at most, so the best box of it is right."""
    hits = kept = wanted = 0
    for case, answer in pictures:
        there = {(box[0], label) for box, label in zip(case.reference["boxes"], case.reference["labels"], strict=True)}
        wanted += len(there)
        for box, score, label in zip(*answer, strict=True):
            if score > threshold:
                kept += 1
                hits += (float(box[0]), label) in there
                there.discard((float(box[0]), label))
    return 2 * hits / (kept + wanted)


one_scene = st.tuples(
    st.sets(st.tuples(st.integers(0, 4), st.sampled_from([3, 7])), max_size=6),
    st.lists(
        st.tuples(st.integers(0, 4), st.sampled_from([3, 7]), st.integers(1, 20).map(lambda n: n / 20)), max_size=8
    ),
)


@settings(max_examples=200, deadline=None)
@given(st.lists(one_scene, min_size=1, max_size=3))
def test_no_threshold_is_better(drawn: list[tuple[set[tuple[int, int]], list[tuple[int, int, float]]]]) -> None:
    pictures = [scene(sorted(truths), found) for truths, found in drawn]
    if not any(truths for truths, _ in drawn):
        return
    result: TunedThresholds = tune_thresholds(pictures, LABELS)
    best = max(f1_at(pictures, step / 40 - 0.01) for step in range(42))
    assert f1_at(pictures, result.overall.threshold) == pytest.approx(best)
    assert result.overall.f1 == pytest.approx(best)
