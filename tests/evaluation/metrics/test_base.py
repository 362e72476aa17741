"""What all metrics share: what they refuse, what they keep, and many processes that equal one."""

from __future__ import annotations

import json
import runpy
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hf_grounding_dino.evaluation.metrics.base import ItemId, ItemMetric, ScoredBoxes


class FirstScores(ItemMetric[float]):
    """Keeps the first score of each item, and remembers in which order they were given to it."""

    def keep(self, found: ScoredBoxes, reference: Mapping[str, Any], where: str) -> float:
        self.before = len(self)
        return float(found.scores[0])

    def score(self, kept: Mapping[ItemId, float]) -> dict[str, float]:
        self.order = list(kept.items())
        return {"sum": sum(kept.values())}


def prediction(image_id: Any, score: float = 0.5) -> dict[str, Any]:
    return {"image_id": image_id, "boxes": [[0, 0, 1, 1]], "scores": [score]}


def add(metric: FirstScores, image_id: Any, score: float = 0.5) -> None:
    metric.add(prediction=prediction(image_id, score), reference={"image_id": image_id, "boxes": []})


def test_items_are_scored_in_the_order_of_their_ids_whatever_order_they_came_in() -> None:
    """Numbers by value, not as text; then strings."""
    metric = FirstScores()
    for image_id in ("b", 10, 2, "10", np.int64(3)):
        add(metric, image_id)
    metric.compute()
    assert [item for item, _ in metric.order] == [2, 3, 10, "10", "b"]


def test_of_an_item_that_comes_again_the_first_counts() -> None:
    metric = FirstScores()
    for score in (0.25, 0.75):
        add(metric, 4, score)
    add(metric, 5, 0.5)
    assert (len(metric), metric.before) == (2, 1)
    assert metric.compute() == {"sum": 0.75}
    assert len(metric) == 0
    assert metric.compute() == {"sum": 0}


def test_all_is_forgotten_when_scoring_fails() -> None:
    class Failing(FirstScores):
        def score(self, kept: Mapping[ItemId, float]) -> dict[str, float]:
            raise RuntimeError("no score")

    metric = Failing()
    add(metric, 1)
    with pytest.raises(RuntimeError, match="no score"):
        metric.compute()
    assert len(metric) == 0


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
    ],
)
def test_what_does_not_go_together_is_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FirstScores().add_batch(**given)


def test_more_processes_than_run_are_refused() -> None:
    """Otherwise each process would take its own share for the whole."""
    metric = FirstScores(num_process=2, process_id=0)
    add(metric, 1)
    with pytest.raises(ValueError, match=r"num_process is 2, but accelerate runs 1 process"):
        metric.compute()


def test_two_processes_equal_one(tmp_path: Path) -> None:
    """7 pictures on 2 processes: 4 each, one of them added by both.

    So it is for COCO, and for fixed AP with 5 detections of a class, which no process can choose alone.
    """
    script = Path(__file__).parent / "two_processes.py"
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(script)]
    subprocess.run([*launch, str(tmp_path)], check=True, capture_output=True, timeout=300)
    single = json.loads(json.dumps(runpy.run_path(str(script))["scores_of_share"](0, 1)))
    assert single["coco"]["AP"] > 0
    assert single["lvis"]["AP"] > 0
    for rank in range(2):
        assert json.loads((tmp_path / f"{rank}_of_2.json").read_text()) == single
