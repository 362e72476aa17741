"""Answers on disk: exact, whole or not there, and never of two runs."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hf_grounding_dino.data.records import DataError
from hf_grounding_dino.evaluation.metrics.base import ScoredBoxes
from hf_grounding_dino.evaluation.predictions import ResultsFile, write_results
from hf_grounding_dino.inference import predictions
from hf_grounding_dino.inference.predictions import PredictionStore


def answer(seed: int, count: int = 3) -> ScoredBoxes:
    rng = np.random.default_rng(seed)
    corners = rng.random((count, 4), dtype=np.float32)
    corners[:, 2:] += corners[:, :2]
    return ScoredBoxes(corners, -np.sort(-rng.random(count, dtype=np.float32)), rng.integers(0, 90, count))


def assert_same(one: ScoredBoxes, other: ScoredBoxes) -> None:
    for left, right in zip(one, other, strict=True):
        assert left.dtype == right.dtype and left.shape == right.shape
        assert np.array_equal(left, right)


# --- the store ---------------------------------------------------------------------------------------------------


def test_answers_come_back_bit_by_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two processes, files of two cases; 7 and "7" are two cases; an answer may be empty."""
    monkeypatch.setattr(predictions, "SAMPLES_A_FILE", 2)
    store = PredictionStore(tmp_path / "new")
    store.begin({"task": "a"})
    given: dict[Any, ScoredBoxes] = {
        7: answer(0),
        "7": answer(1),
        8: answer(2, 0),
        "x/y.jpg": answer(3, 9000),
        9: answer(4),
    }
    with store.writer(0) as first, store.writer(1) as second:
        for i, (sample_id, one) in enumerate(given.items()):
            (first, second)[i % 2].add(sample_id, one)
    assert store.done() == set(given)
    found = dict(store)
    assert set(found) == set(given)
    for sample_id, one in given.items():
        assert_same(found[sample_id], one)
    assert sorted(file.name for file in store.folder.glob("*.parquet")) == [
        "part-0000-000000.parquet", "part-0000-000001.parquet", "part-0001-000000.parquet",
    ]  # fmt: skip


def test_what_came_before_a_crash_is_there(tmp_path: Path) -> None:
    store = PredictionStore(tmp_path)
    store.begin({})
    with pytest.raises(KeyboardInterrupt), store.writer() as writer:
        writer.add(1, answer(1))
        raise KeyboardInterrupt
    assert store.done() == {1}


def test_files_are_written_after_some_seconds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(predictions, "SECONDS_A_FILE", 0.0)
    store = PredictionStore(tmp_path)
    store.begin({})
    writer = store.writer()
    writer.add(1, answer(1))
    assert store.done() == {1}


def test_a_second_writer_of_a_rank_overwrites_nothing(tmp_path: Path) -> None:
    """Also where a file in between was removed: numbers 0 and 2 are there, the next ones are 3 and on."""
    store = PredictionStore(tmp_path)
    store.begin({})
    with store.writer() as writer:
        for i in range(3):
            writer.add(i, answer(i))
            writer.flush()
    (tmp_path / "part-0000-000001.parquet").unlink()
    with store.writer() as writer:
        for i in range(3, 5):
            writer.add(i, answer(i))
            writer.flush()
    assert store.done() == {0, 2, 3, 4}


def test_half_a_file_does_not_count(tmp_path: Path) -> None:
    """A file that was being written, and one that the disk cut off: the second is mentioned."""
    store = PredictionStore(tmp_path)
    store.begin({})
    with store.writer() as writer:
        writer.add(1, answer(1))
        writer.flush()
        writer.add(2, answer(2))
    whole = (tmp_path / "part-0000-000001.parquet").read_bytes()
    (tmp_path / "part-0000-000002.unfinished").write_bytes(whole[:100])
    assert store.done() == {1, 2}
    (tmp_path / "part-0000-000001.parquet").write_bytes(whole[:-30])
    with pytest.warns(UserWarning, match=r"part-0000-000001\.parquet: not a whole Parquet file"):
        assert store.done() == {1}


def test_each_case_comes_once(tmp_path: Path) -> None:
    store = PredictionStore(tmp_path)
    store.begin({})
    for rank in range(2):
        with store.writer(rank) as writer:
            writer.add(5, answer(rank))
    ((sample_id, found),) = store
    assert sample_id == 5
    assert_same(found, answer(0))


@pytest.mark.parametrize("ranks", [(0, 1), (1, 0)])
def test_what_was_read_later_counts_whichever_file_comes_first(tmp_path: Path, ranks: tuple[int, int]) -> None:
    store = PredictionStore(tmp_path)
    store.begin({})
    for rank, given, reason in zip(ranks, (answer(0, 0), answer(1)), ("it is not an image", None), strict=True):
        with store.writer(rank) as writer:
            writer.add(2, given, reason)
    assert store.unreadable() == []
    ((sample_id, found),) = store
    assert sample_id == 2
    assert_same(found, answer(1))


@pytest.mark.parametrize(
    ("now", "message"),
    [
        ({"task": "b", "ask": {"top_k": 300}}, 'made with task "a", and now it is "b"'),
        ({"task": "a", "ask": {"top_k": 100}}, r"made with ask\.top_k 300, and now it is 100"),
        ({"task": "a", "ask": {}}, r"made with ask\.top_k 300, and now it is nothing"),
        ({"task": "a", "ask": {"top_k": 300}, "model": "f"}, 'made with model nothing, and now it is "f"'),
    ],
)
def test_another_protocol_is_refused(tmp_path: Path, now: dict[str, Any], message: str) -> None:
    store = PredictionStore(tmp_path)
    store.begin({"task": "a", "ask": {"top_k": 300}})
    store.begin({"ask": {"top_k": 300}, "task": "a"})
    with pytest.raises(DataError, match=message):
        store.begin(now)


def test_predictions_without_a_protocol_are_refused(tmp_path: Path) -> None:
    store = PredictionStore(tmp_path)
    store.begin({})
    with store.writer() as writer:
        writer.add(1, answer(1))
    os.unlink(tmp_path / "protocol.json")
    with pytest.raises(DataError, match=r"no protocol\.json says how"):
        store.begin({})
    (tmp_path / "protocol.json").write_text('{"task": ')
    with pytest.raises(DataError, match=r"protocol\.json: not JSON"):
        store.begin({})


# --- results files -----------------------------------------------------------------------------------------------

ROW: dict[str, Any] = {"image_id": 4, "category_id": 2, "bbox": [1, 2, 3.5, 4], "score": 0.25}


def results(folder: Path, rows: Any) -> Path:
    path = folder / "results.json"
    path.write_text(rows if isinstance(rows, str) else json.dumps(rows))
    return path


def test_results_of_any_tool(tmp_path: Path) -> None:
    """By image, by falling score; masks are passed over; what is not in the file was found nothing in."""
    rows = [
        ROW,
        ROW | {"image_id": "a", "score": -2},
        ROW | {"category_id": 7, "score": 0.5, "segmentation": {"size": [1, 2], "counts": "x"}},
    ]
    file = ResultsFile(results(tmp_path, rows))
    assert len(file) == 3 and file.done() == {4, "a"} and file.empty_if_absent
    (one, first), (other, second) = file
    assert (one, other) == (4, "a")
    assert first.scores.tolist() == [0.5, 0.25] and first.labels.tolist() == [7, 2]
    assert first.boxes.tolist() == [[1, 2, 4.5, 6]] * 2
    assert second.scores.tolist() == [-2]
    assert list(ResultsFile(results(tmp_path, []))) == []


def test_written_results_are_read_again(tmp_path: Path) -> None:
    """Scores exactly; boxes up to the rounding of x + width in float64."""
    given = {4: answer(1), "a": answer(2), 5: answer(3, 0)}
    path = tmp_path / "deep" / "out.json"
    assert write_results(path, given.items()) == 6
    found = dict(ResultsFile(path))
    assert set(found) == {4, "a"}
    for sample_id, one in found.items():
        assert np.array_equal(one.scores.astype(np.float32), given[sample_id].scores)
        assert np.array_equal(one.labels, given[sample_id].labels)
        np.testing.assert_allclose(one.boxes, given[sample_id].boxes, atol=1e-12)
    assert not list(path.parent.glob("*.unfinished"))


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (json.dumps([ROW, ROW])[:-30], r"results\.json, line 1, column \d+: not JSON, or cut off"),
        ({"annotations": []}, "a list of predictions is needed"),
        ([ROW, {"image_id": 4, "category_id": 1, "bbox": [1, 2, 3, 4]}], "entry 2: has no score"),
        ([ROW, 5], "entry 2: has no image_id"),
        ([ROW, ROW | {"score": float("nan")}], "entry 2: score is a finite number, not nan"),
        ([ROW | {"score": "high"}], "entry 1: score is a finite number, not 'high'"),
        ([ROW | {"bbox": [1, 2, 3]}], "entry 1: bbox is"),
        ([ROW | {"bbox": [1, 2, -3, 1]}], "entry 1: bbox .* negative width"),
        ([ROW | {"category_id": "cat"}], "entry 1: image_id and category_id are whole numbers"),
    ],
)
def test_bad_results_are_refused(tmp_path: Path, rows: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        ResultsFile(results(tmp_path, rows))
