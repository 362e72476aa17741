"""What all metrics share: what they refuse, what they keep, order, and many processes that equal one."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from accelerate import PartialState, debug_launcher
from accelerate.state import AcceleratorState

from evaluation.metrics.every_metric import METRICS, items, scores_of_share
from hf_grounding_dino.evaluation.metrics.base import ItemId, ItemMetric, ScoredBoxes

EVERY = pytest.mark.parametrize("name", METRICS)
pytestmark = pytest.mark.filterwarnings("ignore:.*fewer than")


class FirstScores(ItemMetric[float]):
    """Keeps the first score of each item, and remembers in which order they were given to it."""

    def keep(self, found: ScoredBoxes, reference: Mapping[str, Any], where: str) -> float:
        return float(found.scores[0])

    def score(self, kept: Mapping[ItemId, float]) -> dict[str, float]:
        self.order = list(kept)
        if "fail" in kept:
            raise RuntimeError("no score")
        return {"sum": sum(kept.values())}


def prediction(image_id: Any, score: float = 0.5) -> dict[str, Any]:
    return {"image_id": image_id, "boxes": [[0, 0, 1, 1]], "scores": [score]}


def add(metric: FirstScores, image_id: Any, score: float = 0.5) -> None:
    metric.add(prediction=prediction(image_id, score), reference={"image_id": image_id, "boxes": []})


def test_items_are_scored_by_id_the_first_of_each_and_forgotten() -> None:
    """Numbers by value, not as text; then strings; whatever scoring does, nothing is kept."""
    metric = FirstScores()
    for image_id, score in (("b", 0.5), (10, 0.25), (2, 0.5), (10, 0.75), ("10", 0.5), (np.int64(3), 0.5)):
        add(metric, image_id, score)
    assert len(metric) == 5 and metric.compute() == {"sum": 2.25}
    assert metric.order == [2, 3, 10, "10", "b"] and len(metric) == 0
    add(metric, "fail")
    with pytest.raises(RuntimeError, match="no score"):
        metric.compute()
    assert len(metric) == 0


@EVERY
def test_neither_order_nor_repetition_counts(name: str) -> None:
    every = items(name)
    predictions, references = zip(*every, strict=True)
    whole = METRICS[name]().compute(predictions=predictions, references=references)
    assert any(0 < value < 1 for value in whole.values())
    metric = METRICS[name]()
    metric.add_batch(predictions=predictions[4:], references=references[4:])
    metric.add_batch(predictions=[*predictions[:4], predictions[6]], references=[*references[:4], references[6]])
    assert metric.compute() == whole


@EVERY
def test_the_truth_as_predictions_is_perfect(name: str) -> None:
    """Law 18; AR1 alone allows fewer boxes than there are things. Without an item there is nothing to measure."""
    references = [reference for _, reference in items(name)]
    found = [{**reference, "scores": np.ones(len(reference["boxes"]))} for reference in references]
    scores = METRICS[name]().compute(predictions=found, references=references)
    del scores["AR1" if "AR1" in scores else next(reversed(scores))]
    assert {round(value, 9) for value in scores.values()} <= {-1, 1} and 1 in scores.values()
    assert set(METRICS[name]().compute().values()) == {-1}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"predictions": [prediction(1)], "references": []}, "1 predictions for 0 references"),
        ({"predictions": [prediction(1)]}, "takes predictions and references together"),
        ({"predictions": [], "references": [], "sources": []}, "not sources"),
        ({"predictions": [prediction(1)], "references": [{"image_id": 2}]}, "of image 1 stands beside .* image 2"),
        ({"predictions": [{}], "references": [{}]}, "a prediction has no image_id"),
        ({"predictions": [prediction(1) | {"scores": ["x"]}], "references": [{"image_id": 1}]}, "scores is not an"),
        ({"predictions": [prediction(1) | {"scores": []}], "references": [{"image_id": 1}]}, "1 boxes, 0 scores and 1"),
        ({"predictions": [prediction(1) | {"boxes": [1, 2]}], "references": [{"image_id": 1}]}, r"not \(2,\)"),
        ({"predictions": [prediction(1, np.nan)], "references": [{"image_id": 1}]}, "image 1: score 0 is nan"),
    ],
)
def test_what_does_not_go_together_is_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FirstScores().add_batch(**given)


@EVERY
def test_bad_references_are_refused(name: str) -> None:
    given, reference = items(name)[1]
    bad = [({"boxes": [[5, 0, 1, 1]], "labels": [2]}, "image 69: box 0 is .* x1 <= x2"), ({"boxes": None}, "boxes")]
    for change, message in bad:
        with pytest.raises(ValueError, match=message):
            METRICS[name]().add(
                prediction=given, reference={k: v for k, v in (reference | change).items() if v is not None}
            )


# --- many processes ----------------------------------------------------------------------------------------------


def on_two(folder: Path) -> None:
    AcceleratorState._reset_state(reset_partial_state=True)
    state = PartialState(cpu=True)
    scores = {name: scores_of_share(name, state.process_index, 2) for name in METRICS}
    (folder / f"{state.process_index}.json").write_text(json.dumps(scores))
    state.destroy_process_group()


def test_two_processes_equal_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Law 19: 7 items on 2 processes, 4 each, one of them added by both.

    Of fixed AP 5 detections of a class count, which no process can choose alone.
    """
    for name in ("KMP_INIT_AT_FORK", "OMP_NUM_THREADS"):
        monkeypatch.setenv(name, "1")
    single = {name: scores_of_share(name, 0, 1) for name in METRICS}
    debug_launcher(on_two, (tmp_path,), num_processes=2)
    for rank in range(2):
        assert json.loads((tmp_path / f"{rank}.json").read_text()) == single


def test_more_processes_than_run_are_refused() -> None:
    """Otherwise each process would take its own share for the whole."""
    metric = FirstScores(num_process=2, process_id=0)
    add(metric, 1)
    with pytest.raises(ValueError, match=r"num_process is 2, but accelerate runs 1 process"):
        metric.compute()
