"""Running a model over all samples of a task, on any number of processes, and scoring its predictions."""

from __future__ import annotations

import functools
import json
import time
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import gather_object

from ..data.records import DataError
from ..inference.predictions import PredictionStore, Unreadable, scored_boxes
from ..inference.predictor import Predictor, Request
from ..models.loading import model_fingerprint
from ..utils.progress import progress_bar
from .metrics.base import NOTHING_FOUND, ItemId, ItemMetric, ScoredBoxes
from .predictions import Predictions
from .tasks import Sample, Task

_IMAGE_OPTIONS = (
    "size", "resize_rule", "resample", "do_resize", "do_rescale", "do_normalize", "image_mean", "image_std",
)  # fmt: skip


class RunFacts(NamedTuple):
    """What a run took; the same on every process.

    samples: of the task; of them `asked` were asked now, and the others before.
    seconds: from the first sample to the last.
    unreadable: samples whose images cannot be read, of earlier runs too; their predictions are empty.
    device: what it ran on, in words.
    """

    samples: int
    asked: int
    seconds: float
    unreadable: tuple[Unreadable, ...]
    device: str
    processes: int

    @property
    def per_second(self) -> float | None:
        """Samples a second, of all processes together; None where none was asked."""
        return self.asked / self.seconds if self.asked and self.seconds else None


class Scores(NamedTuple):
    """What a metric says.

    numbers: name to value.
    metric: with what it keeps beside the numbers.
    scored: the samples that were scored, of `samples` in the task.
    """

    numbers: dict[str, float]
    metric: ItemMetric[Any]
    scored: int
    samples: int


def evaluate(task: Task, predictor: Predictor, *, progress: bool = True) -> dict[str, float]:
    """Measure a model on a task, without keeping its predictions: what training does.

    The same samples, prompts and metric as `predict` and `score`, so the same numbers. Each process takes a part, and
    all get the result.

    Raises:
        DataError: an image cannot be read; it is named.
    """
    state = PartialState()
    metric = task.new_metric(num_process=state.num_processes, process_id=state.process_index)
    rows = range(state.process_index, len(task), state.num_processes)
    with progress_bar(len(task), name=task.name, shown=progress and state.is_main_process, leave=False) as bar:
        for sample, found, problem in _run(task, predictor, rows):
            if problem is not None:
                raise DataError(f"{task.name}: image {sample.sample_id} cannot be read: {problem}")
            prediction = found.as_prediction(sample.sample_id)
            metric.add_batch(predictions=[prediction], references=[sample.reference])
            bar.update(min(state.num_processes, bar.total - bar.n))
    return metric.compute()


def predict(task: Task, predictor: Predictor, store: PredictionStore, *, progress: bool = True) -> RunFacts:
    """Ask a model every sample without a prediction; every process takes its share and writes what it gets.

    Interrupted, it resumes when it is called again, with as many processes as there are then. Images that could not be
    read are tried again.

    Args:
        task: what is asked, and how.
        predictor: the model, and how many images run together; that changes no prediction.
        store: takes the predictions.
        progress: show a bar, with samples a second and the time that is left.

    Raises:
        DataError: the store holds predictions of another task, protocol or model.
    """
    state = PartialState()
    if state.is_main_process:
        store.begin(protocol_of(task, predictor))
    state.wait_for_everyone()
    known = {one.sample_id: one.reason for one in store.unreadable()}
    done = store.done() - known.keys()
    todo = [i for i, sample_id in enumerate(task.sample_ids) if sample_id not in done]
    own = todo[state.process_index :: state.num_processes]
    # All have to know what is done before any of them adds to it.
    state.wait_for_everyone()
    started = time.perf_counter()
    shown = progress and state.is_main_process and bool(todo)
    bar = progress_bar(len(task), done=len(task) - len(todo), name=task.name, shown=shown)
    with bar, store.writer(state.process_index) as writer:
        for sample, found, problem in _run(task, predictor, own):
            if problem is None or known.get(sample.sample_id) != problem:
                writer.add(sample.sample_id, found, problem)
            # The other processes are about as far.
            bar.update(min(state.num_processes, bar.total - bar.n))
    state.wait_for_everyone()
    seconds = time.perf_counter() - started
    if state.num_processes > 1:
        seconds = max(gather_object([seconds]))
    ids = set(task.sample_ids)
    unreadable = tuple(one for one in store.unreadable() if one.sample_id in ids)
    return RunFacts(len(task), len(todo), seconds, unreadable, _device(predictor.model), state.num_processes)


def score(task: Task, predictions: Predictions, *, partial: bool = False) -> Scores:
    """Score predictions, one sample in memory at a time beside what the metric keeps. Call it on one process.

    Args:
        task: what was asked.
        predictions: a store, or a results file of any tool.
        partial: score the samples that have a prediction, instead of refusing where some have none.

    Raises:
        DataError: samples without a prediction, a prediction of a sample that the task does not have, a label that is
            none of the task's, or boxes or scores that are no numbers; the file and the sample are named.
    """
    metric = task.new_metric()
    scored = 0
    for sample, found in samples_with_predictions(task, predictions, partial=partial):
        try:
            metric.add_batch(predictions=[found.as_prediction(sample.sample_id)], references=[sample.reference])
        except ValueError as error:
            raise DataError(f"{predictions.where}: {error}") from error
        scored += 1
    return Scores(metric.compute(), metric, scored, len(task))


def samples_with_predictions(
    task: Task, predictions: Predictions, *, partial: bool = False
) -> Iterator[tuple[Sample, ScoredBoxes]]:
    """Each sample that was asked with its prediction, in the order of the files.

    Raises:
        DataError: as `score`, but boxes and scores are not looked at.
    """
    rows = {sample_id: row for row, sample_id in enumerate(task.sample_ids)}
    labels = np.array(sorted(task.labels), dtype=np.int64)
    if not (predictions.empty_if_absent or partial):
        _refuse_gaps(rows, predictions)
    seen = set()
    for sample_id, found in predictions:
        if sample_id in task.left_out:
            continue
        if sample_id not in rows:
            raise DataError(f"{predictions.where}: image {sample_id!r} is not in {task.name}")
        strange = np.setdiff1d(found.labels, labels) if len(labels) else labels
        if len(strange):
            raise DataError(f"{predictions.where}, image {sample_id!r}: label {strange[0]} is no label of {task.name}")
        seen.add(sample_id)
        yield task[rows[sample_id]], found
    if predictions.empty_if_absent:
        for sample_id, row in rows.items():
            if sample_id not in seen:
                yield task[row], NOTHING_FOUND


def protocol_of(task: Task, predictor: Predictor) -> dict[str, Any]:
    """Everything that decides the predictions, as JSON; processes and batches do not."""
    options: dict[str, Any] = json.loads(predictor.processor.image_processor.to_json_string())
    return {
        "task": task.name,
        "prompting": task.prompting.protocol,
        "dtype": str(predictor.model.dtype).removeprefix("torch."),
        "model": model_fingerprint(predictor.model),
        "images": {name: options[name] for name in _IMAGE_OPTIONS if name in options},
    }


def _run(task: Task, predictor: Predictor, rows: Sequence[int]) -> Iterator[tuple[Sample, ScoredBoxes, str | None]]:
    """The samples at some positions, each with what is found in it, or why its image cannot be read."""

    def request(row: int) -> Request:
        sample = task[row]
        return Request(sample, sample.image, task.prompting.prompt(sample))

    for answer in predictor.run(functools.partial(request, row) for row in rows):
        sample: Sample = answer.request.id
        if answer.problem is not None:
            yield sample, NOTHING_FOUND, answer.problem
        else:
            yield sample, scored_boxes(answer.found, task.prompting.category_ids(sample)), None


def _refuse_gaps(rows: dict[ItemId, int], predictions: Predictions) -> None:
    done = predictions.done()
    if gaps := [sample_id for sample_id in rows if sample_id not in done]:
        raise DataError(
            f"{predictions.where}: {len(gaps)} of {len(rows)} samples have no prediction, the first is {gaps[0]!r}; "
            "resume the run, or score what is there with --partial"
        )


def _device(model: torch.nn.Module) -> str:
    parameter = next(model.parameters())
    name = torch.cuda.get_device_name(parameter.device) if parameter.device.type == "cuda" else parameter.device.type
    return f"{name}, {str(parameter.dtype).removeprefix('torch.')}"
