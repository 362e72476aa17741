"""Running a model over all samples: once each, on any number of processes, interrupted or not; and scoring."""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from accelerate import PartialState, debug_launcher
from accelerate.state import AcceleratorState

import tiny
from evaluation.roots import truth_as_predictions, write_predictions
from hf_grounding_dino import GroundingDinoImageProcessor, GroundingDinoProcessor
from hf_grounding_dino.data.records import DataError
from hf_grounding_dino.data.shapes import CATEGORIES, write_coco
from hf_grounding_dino.data.tokenizer import build_tokenizer
from hf_grounding_dino.evaluation.datasets import annotations_task
from hf_grounding_dino.evaluation.ground_truth import prompt_names, read_annotations
from hf_grounding_dino.evaluation.metrics.base import ScoredBoxes
from hf_grounding_dino.evaluation.metrics.coco import CocoDetection
from hf_grounding_dino.evaluation.predictions import ResultsFile, write_results
from hf_grounding_dino.evaluation.prompting import LabelPrompting
from hf_grounding_dino.evaluation.runner import (
    RunFacts,
    evaluate,
    predict,
    protocol_of,
    samples_with_predictions,
    score,
)
from hf_grounding_dino.evaluation.tasks import Sample, Task
from hf_grounding_dino.inference.predictions import PredictionStore
from hf_grounding_dino.inference.predictor import Predictor


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


def task_of(data: Path, images: Path | None = None, prompting: Any = None) -> Task:
    file = read_annotations(data, images or data.parent / "images")
    labels = [category.id for category in file.categories]
    prompting = prompting or LabelPrompting(labels=prompt_names(file.categories))
    return annotations_task(file, "shapes", prompting, functools.partial(CocoDetection, labels))


def run(task: Task, model: Any, processor: Any, store: PredictionStore, batch_size: int = 1) -> RunFacts:
    return predict(task, Predictor(model, processor, batch_size=batch_size, readers=2), store, progress=False)


@dataclass(frozen=True, eq=False)
class PerfectPrompt:
    """Finds what is there."""

    owner: Perfect
    sample: Sample

    @classmethod
    def find(cls, model: Any, processor: Any, encoded: Any, sizes: Any, prompts: Sequence[PerfectPrompt]) -> Any:
        owner = prompts[0].owner
        if len(owner.seen) == owner.fails_at:
            raise KeyboardInterrupt
        assert not model.training
        owner.seen += [prompt.sample.sample_id for prompt in prompts]
        owner.batches.append(len(prompts))
        truths = [prompt.sample.reference for prompt in prompts]
        return [
            {
                "boxes": torch.from_numpy(truth["boxes"]),
                "scores": torch.ones(len(truth["boxes"])),
                "labels": torch.from_numpy(truth["labels"]),
            }
            for truth in truths
        ]


class Perfect:
    """Finds what is there; notes the samples, and fails where it is told to."""

    protocol: dict[str, Any] = {"prompting": "perfect"}
    labels_of_all = ()

    def __init__(self, fails_at: int | None = None) -> None:
        self.fails_at = fails_at
        self.seen: list[Any] = []
        self.batches: list[int] = []

    def prompt(self, sample: Sample) -> PerfectPrompt:
        return PerfectPrompt(self, sample)

    def category_ids(self, sample: Sample) -> None:
        return None


def changed(model: Any) -> Any:
    other = deepcopy(model)
    with torch.no_grad():
        other.model.decoder.layer_norm.bias[0] += 1e-3
    return other


def stored(folder: Path) -> dict[Any, ScoredBoxes]:
    return dict(PredictionStore(folder))


def assert_same(one: dict[Any, ScoredBoxes], other: dict[Any, ScoredBoxes]) -> None:
    assert set(one) == set(other)
    for sample_id, answer in one.items():
        for left, right in zip(answer, other[sample_id], strict=True):
            assert np.array_equal(left, right)


# --- asking ------------------------------------------------------------------------------------------------------


def test_truth_as_answers_scores_one(data: Path, model: Any, processor: Any, tmp_path: Path) -> None:
    """Law 18; and 5 images in batches of 2."""
    prompting = Perfect()
    task, store = task_of(data, prompting=prompting), PredictionStore(tmp_path)
    facts = run(task, model, processor, store, batch_size=2)
    assert (facts.samples, facts.asked, facts.unreadable, facts.processes) == (5, 5, (), 1)
    assert facts.per_second is not None and facts.per_second > 0 and facts.device == "cpu, float32"
    assert set(prompting.seen) == set(task.sample_ids) and prompting.batches == [2, 2, 1]
    scores = score(task, store)
    assert scores.numbers["AP"] == 1 and (scores.scored, scores.samples) == (5, 5)


def test_a_run_that_was_cut_off_goes_on(data: Path, model: Any, processor: Any, tmp_path: Path) -> None:
    """Cut off after 3 of 5, the second run asks the other 2, a third none; the scores are those of one run."""
    first, second = Perfect(fails_at=3), Perfect()
    store = PredictionStore(tmp_path / "cut")
    with pytest.raises(KeyboardInterrupt):
        run(task_of(data, prompting=first), model, processor, store)
    assert len(store.done()) == 3
    facts = run(task_of(data, prompting=second), model, processor, store)
    assert (facts.samples, facts.asked, len(second.seen)) == (5, 2, 2)
    assert not set(first.seen) & set(second.seen)
    third = run(task_of(data, prompting=second), model, processor, store)
    assert third.asked == 0 and third.per_second is None and len(second.seen) == 2
    whole = PredictionStore(tmp_path / "whole")
    run(task_of(data, prompting=Perfect()), model, processor, whole)
    assert_same(stored(tmp_path / "cut"), stored(tmp_path / "whole"))
    assert score(task_of(data), store).numbers == score(task_of(data), whole).numbers


def test_unreadable_images_are_counted(data: Path, model: Any, processor: Any, tmp_path: Path) -> None:
    """The second of five is no image, and the last, which ends a batch that has one image: both have no answer."""
    truth = read_annotations(data, data.parent / "images")
    broken = tmp_path / "images"
    broken.mkdir()
    for i, name in enumerate(truth.files):
        (broken / name).write_bytes(b"no image" if i in (1, 4) else truth.image(i).read_bytes())
    prompting = Perfect()
    task, store = task_of(data, broken, prompting=prompting), PredictionStore(tmp_path / "store")
    facts = run(task, model, processor, store, batch_size=2)
    gone = [truth.image_ids[1], truth.image_ids[4]]
    assert [one.sample_id for one in facts.unreadable] == gone
    assert facts.unreadable[0].reason == "it is not an image"
    assert prompting.batches == [2, 1] and not set(gone) & set(prompting.seen)
    assert score(task, store).scored == 5
    files = sorted(store.folder.iterdir())
    assert run(task, model, processor, store).unreadable == facts.unreadable
    assert sorted(store.folder.iterdir()) == files, "what is known is not written again"


def test_unreadable_images_are_tried_again(data: Path, model: Any, processor: Any, tmp_path: Path) -> None:
    """One of five is cut off, then is back: it alone is asked, and the numbers are those of a run that had it."""
    truth = read_annotations(data, data.parent / "images")
    broken = tmp_path / "images"
    broken.mkdir()
    for i, name in enumerate(truth.files):
        (broken / name).write_bytes(truth.image(i).read_bytes()[: 40 if i == 1 else None])
    prompting = Perfect()
    task, store = task_of(data, broken, prompting=prompting), PredictionStore(tmp_path / "store")
    run(task, model, processor, store)
    part = score(task, store).numbers
    (broken / truth.files[1]).write_bytes(truth.image(1).read_bytes())
    facts = run(task, model, processor, store)
    assert facts.unreadable == () and facts.asked == 1 and prompting.seen[4:] == [truth.image_ids[1]]
    whole = PredictionStore(tmp_path / "whole")
    run(task_of(data, prompting=Perfect()), model, processor, whole)
    assert_same(stored(store.folder), stored(whole.folder))
    assert part["AP50"] < score(task, store).numbers["AP50"] == score(task, whole).numbers["AP50"] == 1


def test_another_model_is_refused(data: Path, model: Any, processor: Any, tmp_path: Path) -> None:
    task, store = task_of(data, prompting=Perfect()), PredictionStore(tmp_path)
    run(task, model, processor, store)
    with pytest.raises(DataError, match=r"made with model .*, and now it is "):
        run(task, changed(model), processor, store)
    with pytest.raises(DataError, match=r"made with prompting\.prompting \"perfect\", and now it is \"labels\""):
        run(task_of(data, prompting=FEW), model, processor, store)
    with pytest.raises(DataError, match='made with task "shapes", and now it is "b"'):
        run(replace(task, name="b"), model, processor, store)
    with pytest.raises(ValueError, match="batch_size=0"):
        run(task, model, processor, store, batch_size=0)


def test_the_protocol_has_the_resizing(data: Path, model: Any, processor: Any) -> None:
    protocol = protocol_of(task_of(data), Predictor(model, processor))
    assert protocol["images"]["size"] == {"shortest_edge": 32, "longest_edge": 48}
    assert protocol["dtype"] == "float32"
    assert json.loads(json.dumps(protocol)) == protocol


# --- two processes -----------------------------------------------------------------------------------------------


FEW = LabelPrompting(labels=dict(enumerate(CATEGORIES[:3], 1)), top_k=12)


def on_two(data: Path, folder: Path, model: Any, processor: Any) -> None:
    AcceleratorState._reset_state(reset_partial_state=True)
    state = PartialState(cpu=True)
    assert state.num_processes == 2
    store = PredictionStore(folder / "two")
    facts = run(task_of(data, prompting=FEW), model, processor, store)
    assert (facts.asked, facts.processes) == (5, 2)
    # Three of five are there: one process has one to do, the other one.
    resumed = PredictionStore(folder / "resumed")
    assert run(task_of(data, prompting=FEW), model, processor, resumed).asked == 2
    state.destroy_process_group()


def test_two_processes_equal_one(
    data: Path, model: Any, processor: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Law 19: five images on two processes, and on one, then two; answers equal bit by bit, and so do scores."""
    task = task_of(data, prompting=FEW)
    run(task, model, processor, PredictionStore(tmp_path / "one"))
    resumed = PredictionStore(tmp_path / "resumed")
    run(task.first(3), model, processor, resumed)
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


def test_a_part_is_scored_only_when_asked_for(data: Path, tmp_path: Path) -> None:
    """Answers to 2 of 5: an error, or the score of 2."""
    task = task_of(data)
    given = truth_as_predictions(task)
    store = write_predictions(tmp_path, {sample_id: given[sample_id] for sample_id in list(task.sample_ids)[1:3]})
    first = task.sample_ids[0]
    with pytest.raises(DataError, match=f"3 of 5 samples have no prediction, the first is {first!r}"):
        score(task, store)
    scores = score(task, store, partial=True)
    assert (scores.scored, scores.samples, scores.numbers["AP"]) == (2, 5, 1)


def test_results_of_any_tool_are_scored(data: Path, tmp_path: Path) -> None:
    """Written and read, the score stays 1; an image that is left out of the file is one where nothing was found."""
    task = task_of(data)
    given = truth_as_predictions(task)
    path = tmp_path / "results.json"
    write_results(path, given.items())
    assert score(task, ResultsFile(path)).numbers["AP"] == 1
    row = {"image_id": task.sample_ids[0], "category_id": min(task.labels), "bbox": [1, 2, 3, 4], "score": 0.5}
    path.write_text(json.dumps([row]))
    scores = score(task, ResultsFile(path))
    assert scores.scored == 5 and scores.numbers["AP"] < 0.1
    assert sum(len(found.scores) for _, found in samples_with_predictions(task, ResultsFile(path))) == 1


def test_predictions_of_another_set_are_refused(data: Path, tmp_path: Path) -> None:
    task = task_of(data)
    given = truth_as_predictions(task)
    sample_id, answer = next((sample_id, answer) for sample_id, answer in given.items() if len(answer.scores))
    box, nan = answer.boxes.copy(), answer.scores.copy()
    box[0, 2], nan[0] = box[0, 0] - 1, np.nan
    wrong: list[tuple[dict[Any, ScoredBoxes], str]] = [
        ({**given, 99: answer}, "image 99 is not in shapes"),
        (
            {**given, sample_id: answer._replace(labels=answer.labels + 500)},
            f"image {sample_id}: label 5.. is no label of",
        ),
        ({**given, sample_id: answer._replace(scores=nan)}, f"image {sample_id}: score 0 is nan"),
        ({**given, sample_id: answer._replace(boxes=box)}, f"image {sample_id}: box 0 is .* x1 <= x2"),
    ]
    for i, (answered, message) in enumerate(wrong):
        with pytest.raises(DataError, match=message) as caught:
            score(task, write_predictions(tmp_path / str(i), answered))
        assert str(tmp_path / str(i)) in str(caught.value) and "\n" not in str(caught.value)


def test_labels_from_end_to_end(data: Path, model: Any, processor: Any, tmp_path: Path) -> None:
    """Two protocols of one model differ in what they store: 7 boxes an image, or 7 of each prompt of 12.

    Scored from the disk or as they come, the numbers are the same.
    """
    labels = dict(enumerate(CATEGORIES))
    for name, each, count in (("a", False, 7), ("b", True, 7 * -(-len(CATEGORIES) // 12))):
        prompting = LabelPrompting(labels=labels, chunk_size=12, top_k=7, each_ranked=each)
        task, store = task_of(data, prompting=prompting).first(2), PredictionStore(tmp_path / name)
        run(task, model, processor, store)
        assert [len(found.scores) for _, found in store] == [count] * 2
        assert evaluate(task, Predictor(model, processor), progress=False) == score(task, store).numbers
