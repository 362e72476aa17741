"""Asking all cases: once each, on any number of processes, cut off or not; and scoring what was answered."""

from __future__ import annotations

import json
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from accelerate import PartialState, debug_launcher
from accelerate.state import AcceleratorState
from PIL import Image

import tiny
from hf_grounding_dino import GroundingDinoImageProcessor, GroundingDinoProcessor
from hf_grounding_dino.data.records import DataError
from hf_grounding_dino.data.shapes import CATEGORIES, write_coco
from hf_grounding_dino.data.tokenizer import build_tokenizer
from hf_grounding_dino.evaluation.askers import LabelAsker
from hf_grounding_dino.evaluation.predictions import PredictionStore
from hf_grounding_dino.evaluation.results_json import ResultsFile, write_results
from hf_grounding_dino.evaluation.runner import answers, predict, protocol_of, score
from hf_grounding_dino.evaluation.sets import DetectionTask
from hf_grounding_dino.evaluation.tasks import Answer, Case
from hf_grounding_dino.evaluation.truth import read_truth


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_coco(tmp_path_factory.mktemp("shapes"), count=5, seed=3, split="train")


@pytest.fixture(scope="module")
def processor() -> GroundingDinoProcessor:
    words = sorted({word for name in CATEGORIES for word in name.split()})
    size = {"shortest_edge": 32, "longest_edge": 48}
    return GroundingDinoProcessor(GroundingDinoImageProcessor(size=size), build_tokenizer(words))


@pytest.fixture(scope="module")
def model() -> Any:
    return tiny.tiny_model(d_model=64, max_text_len=64)


def task_of(data: Path, images: Path | None = None, **options: Any) -> DetectionTask:
    return DetectionTask.from_truth(read_truth(data, images or data.parent / "images"), name="shapes", **options)


class Perfect:
    """Finds what is there, without a model; notes the cases, and fails where it is told to."""

    protocol: dict[str, Any] = {"asker": "perfect"}

    def __init__(self, fails_at: int | None = None, memory: int = 99) -> None:
        self.fails_at, self.memory = fails_at, memory
        self.seen: list[Any] = []
        self.batches: list[int] = []

    def __call__(self, model: Any, processor: Any, images: Sequence[Image.Image], cases: Sequence[Case]) -> Any:
        if len(cases) > self.memory:
            raise torch.OutOfMemoryError("too many")
        if len(self.seen) == self.fails_at:
            raise KeyboardInterrupt
        assert not model.training
        self.seen += [case.case_id for case in cases]
        self.batches.append(len(cases))
        return [
            Answer(case.reference["boxes"].astype(np.float32), np.ones(len(case.reference["boxes"]), np.float32),
                   case.reference["labels"])
            for case in cases
        ]  # fmt: skip


def changed(model: Any) -> Any:
    other = deepcopy(model)
    with torch.no_grad():
        other.model.decoder.layer_norm.bias[0] += 1e-3
    return other


def stored(folder: Path) -> dict[Any, Answer]:
    return dict(PredictionStore(folder).answers())


def assert_same(one: dict[Any, Answer], other: dict[Any, Answer]) -> None:
    assert set(one) == set(other)
    for case_id, answer in one.items():
        for left, right in zip(answer, other[case_id], strict=True):
            assert np.array_equal(left, right)


# --- asking ------------------------------------------------------------------------------------------------------


def test_truth_as_answers_scores_one(data: Path, model: Any, processor: Any, tmp_path: Path) -> None:
    """Law 18; and a batch of 2 of 5 pictures, opened by 3 threads, keeps them in order."""
    ask = Perfect()
    task, store = task_of(data, ask=ask), PredictionStore(tmp_path)
    run = predict(task, model, processor, store, batch_size=2, num_workers=3, progress=False)
    assert (run.cases, run.asked, run.unreadable, run.processes) == (5, 5, (), 1)
    assert run.per_second is not None and run.per_second > 0 and run.device == "cpu, float32"
    assert ask.seen == list(task.case_ids) and ask.batches == [2, 2, 1]
    scores = score(task, store)
    assert scores.numbers["AP"] == 1 and (scores.answered, scores.cases) == (5, 5)


def test_a_run_that_was_cut_off_goes_on(data: Path, model: Any, processor: Any, tmp_path: Path) -> None:
    """Cut off after 3 of 5, the second run asks the other 2, a third none; the scores are those of one run."""
    first, second = Perfect(fails_at=3), Perfect()
    store = PredictionStore(tmp_path / "cut")
    with pytest.raises(KeyboardInterrupt):
        predict(task_of(data, ask=first), model, processor, store, progress=False)
    assert len(store.done()) == 3
    run = predict(task_of(data, ask=second), model, processor, store, progress=False)
    assert (run.cases, run.asked, len(second.seen)) == (5, 2, 2)
    assert not set(first.seen) & set(second.seen)
    third = predict(task_of(data, ask=second), model, processor, store, progress=False)
    assert third.asked == 0 and third.per_second is None and len(second.seen) == 2
    whole = PredictionStore(tmp_path / "whole")
    predict(task_of(data, ask=Perfect()), model, processor, whole, progress=False)
    assert_same(stored(tmp_path / "cut"), stored(tmp_path / "whole"))
    assert score(task_of(data), store).numbers == score(task_of(data), whole).numbers


def test_memory_is_made_do_with(data: Path, model: Any, processor: Any, tmp_path: Path) -> None:
    """Room for 2 of a batch of 4: it is halved and stays so; no room for one is the end."""
    ask = Perfect(memory=2)
    predict(task_of(data, ask=ask), model, processor, PredictionStore(tmp_path / "a"), batch_size=4, progress=False)
    assert ask.batches == [2, 2, 1]
    with pytest.raises(torch.OutOfMemoryError):
        task = task_of(data, ask=Perfect(memory=0))
        predict(task, model, processor, PredictionStore(tmp_path / "b"), batch_size=4, progress=False)


def test_unreadable_pictures_are_counted(data: Path, model: Any, processor: Any, tmp_path: Path) -> None:
    """The second of five is no picture, and the last, which ends a batch that has one picture: both have no answer."""
    truth = read_truth(data, data.parent / "images")
    broken = tmp_path / "pictures"
    broken.mkdir()
    for i, name in enumerate(truth.files):
        (broken / name).write_bytes(b"no picture" if i in (1, 4) else truth.image(i).read_bytes())
    ask = Perfect()
    task, store = task_of(data, broken, ask=ask), PredictionStore(tmp_path / "store")
    run = predict(task, model, processor, store, batch_size=2, progress=False)
    gone = [truth.image_ids[1], truth.image_ids[4]]
    assert [one.case_id for one in run.unreadable] == gone
    assert run.unreadable[0].reason == "it is not an image"
    assert ask.batches == [2, 1] and not set(gone) & set(ask.seen)
    assert score(task, store).answered == 5
    files = sorted(store.folder.iterdir())
    assert predict(task, model, processor, store, progress=False).unreadable == run.unreadable
    assert sorted(store.folder.iterdir()) == files, "what is known is not written again"


def test_unreadable_pictures_are_tried_again(data: Path, model: Any, processor: Any, tmp_path: Path) -> None:
    """One of five is cut off, then is back: it alone is asked, and the numbers are those of a run that had it."""
    truth = read_truth(data, data.parent / "images")
    broken = tmp_path / "pictures"
    broken.mkdir()
    for i, name in enumerate(truth.files):
        (broken / name).write_bytes(truth.image(i).read_bytes()[: 40 if i == 1 else None])
    ask = Perfect()
    task, store = task_of(data, broken, ask=ask), PredictionStore(tmp_path / "store")
    predict(task, model, processor, store, progress=False)
    part = score(task, store).numbers
    (broken / truth.files[1]).write_bytes(truth.image(1).read_bytes())
    run = predict(task, model, processor, store, progress=False)
    assert run.unreadable == () and run.asked == 1 and ask.seen[4:] == [truth.image_ids[1]]
    whole = PredictionStore(tmp_path / "whole")
    predict(task_of(data, ask=Perfect()), model, processor, whole, progress=False)
    assert_same(stored(store.folder), stored(whole.folder))
    assert part["AP50"] < score(task, store).numbers["AP50"] == score(task, whole).numbers["AP50"] == 1


def test_another_model_is_refused(data: Path, model: Any, processor: Any, tmp_path: Path) -> None:
    task, store = task_of(data, ask=Perfect()), PredictionStore(tmp_path)
    predict(task, model, processor, store, progress=False)
    with pytest.raises(DataError, match=r"made with model .*, and now it is "):
        predict(task, changed(model), processor, store, progress=False)
    with pytest.raises(DataError, match=r"made with ask\.asker \"perfect\", and now it is \"labels\""):
        predict(task_of(data, ask=FEW), model, processor, store, progress=False)
    with pytest.raises(DataError, match='made with task "shapes", and now it is "b"'):
        predict(replace(task, name="b"), model, processor, store, progress=False)
    with pytest.raises(ValueError, match="batch_size=0"):
        predict(task, model, processor, store, batch_size=0)


def test_the_protocol_has_the_resizing(data: Path, model: Any, processor: Any) -> None:
    protocol = protocol_of(task_of(data), model, processor)
    assert protocol["pictures"]["size"] == {"shortest_edge": 32, "longest_edge": 48}
    assert protocol["dtype"] == "float32"
    assert json.loads(json.dumps(protocol)) == protocol


def test_the_mode_of_the_model_is_left(data: Path, model: Any, processor: Any, tmp_path: Path) -> None:
    learning = deepcopy(model).train()
    predict(task_of(data, ask=Perfect()), learning, processor, PredictionStore(tmp_path), progress=False)
    assert learning.training


# --- two processes -----------------------------------------------------------------------------------------------


FEW = LabelAsker(labels=dict(enumerate(CATEGORIES[:3], 1)), top_k=12)


def on_two(data: Path, folder: Path, model: Any, processor: Any) -> None:
    AcceleratorState._reset_state(reset_partial_state=True)
    state = PartialState(cpu=True)
    assert state.num_processes == 2
    store = PredictionStore(folder / "two")
    run = predict(task_of(data, ask=FEW), model, processor, store, progress=False)
    assert (run.asked, run.processes) == (5, 2)
    # Three of five are there: one process has one to do, the other one.
    resumed = PredictionStore(folder / "resumed")
    assert predict(task_of(data, ask=FEW), model, processor, resumed, progress=False).asked == 2
    state.destroy_process_group()


def test_two_processes_equal_one(
    data: Path, model: Any, processor: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Law 19: five pictures on two processes, and on one, then two; answers equal bit by bit, and so do scores."""
    task = task_of(data, ask=FEW)
    predict(task, model, processor, PredictionStore(tmp_path / "one"), progress=False)
    resumed = PredictionStore(tmp_path / "resumed")
    predict(task.first(3), model, processor, resumed, progress=False)
    assert len(resumed.done()) == 3
    for name in ("KMP_INIT_AT_FORK", "OMP_NUM_THREADS"):
        monkeypatch.setenv(name, "1")
    debug_launcher(on_two, (data, tmp_path, model, processor), num_processes=2)
    ranks = {file.name[:9] for file in (tmp_path / "two").glob("*.parquet")}
    assert ranks == {"part-0000", "part-0001"}
    for folder in ("two", "resumed"):
        assert sum(pq.read_metadata(file).num_rows for file in (tmp_path / folder).glob("*.parquet")) == 5
    numbers = score(task, PredictionStore(tmp_path / "one")).numbers
    for folder in ("two", "resumed"):
        assert_same(stored(tmp_path / folder), stored(tmp_path / "one"))
        assert score(task, PredictionStore(tmp_path / folder)).numbers == numbers


# --- scoring -----------------------------------------------------------------------------------------------------


def store_of(folder: Path, given: dict[Any, Answer]) -> PredictionStore:
    store = PredictionStore(folder)
    store.begin({})
    with store.writer() as writer:
        for case_id, answer in given.items():
            writer.add(case_id, answer)
    return store


def perfect_answers(task: DetectionTask) -> dict[Any, Answer]:
    cases = list(task)
    return dict(zip(task.case_ids, Perfect()(torch.nn.Identity().eval(), None, [], cases), strict=True))


def test_a_part_is_scored_only_when_asked_for(data: Path, tmp_path: Path) -> None:
    """Answers to 2 of 5: an error, or the score of 2."""
    task = task_of(data)
    given = perfect_answers(task)
    store = store_of(tmp_path, {case_id: given[case_id] for case_id in list(task.case_ids)[1:3]})
    first = task.case_ids[0]
    with pytest.raises(DataError, match=f"3 of 5 cases have no answer, the first is {first!r}"):
        score(task, store)
    scores = score(task, store, partial=True)
    assert (scores.answered, scores.cases, scores.numbers["AP"]) == (2, 5, 1)


def test_results_of_any_tool_are_scored(data: Path, tmp_path: Path) -> None:
    """Written and read, the score stays 1; an image that is left out of the file is one where nothing was found."""
    task = task_of(data)
    given = perfect_answers(task)
    path = tmp_path / "results.json"
    write_results(path, (answer.as_prediction(case_id) for case_id, answer in given.items()))
    assert score(task, ResultsFile(path)).numbers["AP"] == 1
    row = {"image_id": task.case_ids[0], "category_id": min(task.labels), "bbox": [1, 2, 3, 4], "score": 0.5}
    path.write_text(json.dumps([row]))
    scores = score(task, ResultsFile(path))
    assert scores.answered == 5 and scores.numbers["AP"] < 0.1
    found = dict(zip(task.case_ids, answers(task, ResultsFile(path)), strict=True))
    assert sum(len(answer.scores) for _, answer in found.values()) == 1


def test_answers_come_with_their_cases(data: Path, tmp_path: Path) -> None:
    task = task_of(data)
    given = perfect_answers(task)
    pairs = list(answers(task, store_of(tmp_path, given)))
    assert [case.case_id for case, _ in pairs] == list(task.case_ids)
    assert_same({case.case_id: answer for case, answer in pairs}, given)


def test_predictions_of_another_set_are_refused(data: Path, tmp_path: Path) -> None:
    task = task_of(data)
    given = perfect_answers(task)
    case_id, answer = next((case_id, answer) for case_id, answer in given.items() if len(answer.scores))
    box, nan = answer.boxes.copy(), answer.scores.copy()
    box[0, 2], nan[0] = box[0, 0] - 1, np.nan
    wrong: list[tuple[dict[Any, Answer], str]] = [
        ({**given, 99: answer}, "image 99 is not in shapes"),
        ({**given, case_id: answer._replace(labels=answer.labels + 500)}, f"image {case_id}: label 5.. is no label of"),
        ({**given, case_id: answer._replace(scores=nan)}, f"image {case_id}: score 0 is nan"),
        ({**given, case_id: answer._replace(boxes=box)}, f"image {case_id}: box 0 is .* x1 <= x2"),
    ]
    for i, (answered, message) in enumerate(wrong):
        with pytest.raises(DataError, match=message) as caught:
            score(task, store_of(tmp_path / str(i), answered))
        assert str(tmp_path / str(i)) in str(caught.value) and "\n" not in str(caught.value)


def test_the_label_asker_from_end_to_end(data: Path, model: Any, processor: Any, tmp_path: Path) -> None:
    """Two protocols of one model differ in what they store: 7 boxes a picture, or 7 of each prompt of 12."""
    for name, each, count in (("a", False, 7), ("b", True, 7 * -(-len(CATEGORIES) // 12))):
        labels = dict(enumerate(CATEGORIES))
        task = task_of(data, ask=LabelAsker(labels=labels, chunk_size=12, top_k=7, each_ranked=each))
        task = replace(task, cases=task.first(1).cases)
        predict(task, model, processor, PredictionStore(tmp_path / name), progress=False)
        ((_, answer),) = PredictionStore(tmp_path / name).answers()
        assert len(answer.scores) == count
