"""Asking a model all cases of a task, on any number of processes, and scoring the answers."""

from __future__ import annotations

import json
import sys
import time
from collections import deque
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from PIL import Image
from tqdm import tqdm

from ..data.images import load_image
from ..data.records import DataError
from ..models.grounding_dino.modeling_grounding_dino import GroundingDinoForObjectDetection
from ..models.loading import model_fingerprint
from ..processing.processing_grounding_dino import GroundingDinoProcessor
from ..utils.memory import in_batches
from ..utils.printable import printable
from .askers import nothing_found
from .metric import ItemMetric
from .predictions import Predictions, PredictionStore, PredictionWriter, Unreadable
from .tasks import Answer, Case, CaseId, Task

_AHEAD = 4
_SECONDS_IN_LOGS = 30  # between two states of the bar, where no terminal overwrites the one before
_PICTURE_OPTIONS = (
    "size", "resize_rule", "resample", "do_resize", "do_rescale", "do_normalize", "image_mean", "image_std",
)  # fmt: skip


@runtime_checkable
class NamesItsCases(Protocol):
    """A task that knows what its cases are called without making them."""

    @property
    def case_ids(self) -> Sequence[CaseId]:
        """The `case_id` of each case, in their order."""
        ...


@runtime_checkable
class LeavesOut(Protocol):
    """A task that is a part of its data."""

    @property
    def left_out(self) -> Collection[CaseId]:
        """The cases that are not asked; predictions of them are passed over."""
        ...


class Run(NamedTuple):
    """What asking took; the same on every process.

    cases: of the task; of them `asked` were asked now, and the others before.
    seconds: from the first case to the last.
    unreadable: cases whose pictures cannot be read, of earlier runs too; their answers are empty.
    device: what it ran on, in words.
    """

    cases: int
    asked: int
    seconds: float
    unreadable: tuple[Unreadable, ...]
    device: str
    processes: int
    batch_size: int

    @property
    def per_second(self) -> float | None:
        """Cases a second, of all processes together; None where none was asked."""
        return self.asked / self.seconds if self.asked and self.seconds else None


class Scores(NamedTuple):
    """What a metric says.

    numbers: name to value.
    metric: with what it keeps beside the numbers.
    answered: the cases that were scored, of `cases` in the task.
    """

    numbers: dict[str, float]
    metric: ItemMetric[Any]
    answered: int
    cases: int


class _Ready(NamedTuple):
    """A case with its picture, or with the reason why it has none."""

    case: Case
    image: Image.Image | None
    reason: str = ""


def predict(
    task: Task,
    model: GroundingDinoForObjectDetection,
    processor: GroundingDinoProcessor,
    store: PredictionStore,
    *,
    batch_size: int = 1,
    num_workers: int = 2,
    progress: bool = True,
) -> Run:
    """Ask a model every case that has no answer yet; every process takes its share and writes what it gets.

    Cut off, it goes on where it was when it is called again, with as many processes as there are then. Pictures that
    could not be read are tried again.

    Args:
        task: what is asked, and how.
        model: where it is to run; it is asked in eval mode.
        store: takes the answers.
        batch_size: pictures at a time; it changes no answer. Where memory does not suffice it is halved.
        num_workers: threads that open pictures while the model works.
        progress: show a bar, with pictures a second and the time that is left.

    Raises:
        DataError: the store holds predictions of another task, protocol or model.
        ValueError: `batch_size` or `num_workers` is less than 1.
    """
    if batch_size < 1 or num_workers < 1:
        raise ValueError(f"batch_size={batch_size}, num_workers={num_workers}: give 1 or more")
    state = PartialState()
    if state.is_main_process:
        store.begin(protocol_of(task, model, processor))
    state.wait_for_everyone()
    ids = case_ids(task)
    gone = {one.case_id: one.reason for one in store.unreadable()}
    done = store.done() - gone.keys()
    todo = [i for i, case_id in enumerate(ids) if case_id not in done]
    own = todo[state.process_index :: state.num_processes]
    # All have to know what is done before any of them adds to it.
    state.wait_for_everyone()
    was_training, started = model.training, time.perf_counter()
    model.eval()
    bar = tqdm(
        total=len(ids), initial=len(ids) - len(todo), desc=printable(task.name), unit="picture", smoothing=0.1,
        disable=not (progress and state.is_main_process and todo),
        mininterval=0.1 if sys.stderr.isatty() else _SECONDS_IN_LOGS,
    )  # fmt: skip
    try:
        with bar, store.writer(state.process_index) as writer:
            asked = _Asked(task, model, processor, writer, gone)
            _ask_all(asked, own, batch_size, num_workers, bar, state.num_processes)
    finally:
        model.train(was_training)
    state.wait_for_everyone()
    seconds = max(_gathered(time.perf_counter() - started, state))
    known = set(ids)
    unreadable = tuple(one for one in store.unreadable() if one.case_id in known)
    return Run(len(ids), len(todo), seconds, unreadable, _device(model), state.num_processes, batch_size)


def score(task: Task, predictions: Predictions, *, partial: bool = False) -> Scores:
    """Score answers, one case in memory at a time beside what the metric keeps. Call it on one process.

    Args:
        task: what was asked.
        predictions: a store, or a results file of any tool.
        partial: score the cases that have an answer, instead of refusing where some have none.

    Raises:
        DataError: cases without an answer, an answer to a case that the task does not have, a label that is none of the
            task's, or boxes or scores that are no numbers; the file and the case are named.
    """
    metric = task.metric()
    answered = 0
    for case, prediction in answers_with_cases(task, predictions, partial=partial):
        try:
            metric.add_batch(predictions=[prediction], references=[case.reference])
        except ValueError as error:
            raise DataError(f"{predictions.where}: {error}") from error
        answered += 1
    return Scores(metric.compute(), metric, answered, len(task))


def answers_with_cases(
    task: Task, predictions: Predictions, *, partial: bool = False
) -> Iterator[tuple[Case, Mapping[str, Any]]]:
    """Each case that was asked with its answer as the metrics take it, in the order of the files.

    Raises:
        DataError: as `score`, but boxes and scores are not looked at.
    """
    rows = {case_id: row for row, case_id in enumerate(case_ids(task))}
    labels = np.array(sorted(task.labels), dtype=np.int64)
    if not (predictions.empty_if_absent or partial):
        _refuse_gaps(rows, predictions)
    left_out = task.left_out if isinstance(task, LeavesOut) else ()
    seen = set()
    for prediction in predictions:
        case_id = prediction["image_id"]
        if case_id in left_out:
            continue
        if case_id not in rows:
            raise DataError(f"{predictions.where}: image {case_id!r} is not in {task.name}")
        strange = np.setdiff1d(prediction["labels"], labels) if len(labels) else labels
        if len(strange):
            raise DataError(f"{predictions.where}, image {case_id!r}: label {strange[0]} is no label of {task.name}")
        seen.add(case_id)
        yield task[rows[case_id]], prediction
    if predictions.empty_if_absent:
        for case_id, row in rows.items():
            if case_id not in seen:
                yield task[row], nothing_found().as_prediction(case_id)


def answers(task: Task, predictions: Predictions, *, partial: bool = False) -> Iterator[tuple[Case, Answer]]:
    """As `answers_with_cases`, in the types that answers are kept in.

    Raises:
        DataError: as there.
    """
    for case, found in answers_with_cases(task, predictions, partial=partial):
        yield case, Answer(found["boxes"].astype(np.float32), found["scores"].astype(np.float32), found["labels"])


def case_ids(task: Task) -> Sequence[CaseId]:
    """What the cases of a task are called."""
    return task.case_ids if isinstance(task, NamesItsCases) else [case.case_id for case in task]


def protocol_of(
    task: Task, model: GroundingDinoForObjectDetection, processor: GroundingDinoProcessor
) -> dict[str, Any]:
    """Everything that decides the answers, as JSON; processes and batches do not."""
    pictures: dict[str, Any] = json.loads(processor.image_processor.to_json_string())
    return {
        "task": task.name,
        "ask": task.ask.protocol,
        "dtype": str(model.dtype).removeprefix("torch."),
        "model": model_fingerprint(model),
        "pictures": {name: pictures[name] for name in _PICTURE_OPTIONS if name in pictures},
    }


class _Asked(NamedTuple):
    """What all batches of a run have in common; `gone` are the cases with unreadable pictures of earlier runs."""

    task: Task
    model: GroundingDinoForObjectDetection
    processor: GroundingDinoProcessor
    writer: PredictionWriter
    gone: Mapping[CaseId, str]


def _ask_all(asked: _Asked, own: Sequence[int], batch_size: int, num_workers: int, bar: Any, processes: int) -> None:
    batch: list[_Ready] = []
    for count, ready in enumerate(_opened(asked.task, own, num_workers, batch_size), start=1):
        case_id = ready.case.case_id
        if ready.image is None:
            if asked.gone.get(case_id) != ready.reason:
                asked.writer.add(case_id, nothing_found(), ready.reason)
        else:
            batch.append(ready)
        if len(batch) == batch_size or count == len(own):
            batch_size = _ask(asked, batch, batch_size)
            batch = []
        # The other processes are about as far.
        bar.update(min(processes, bar.total - bar.n))


def _ask(asked: _Asked, batch: Sequence[_Ready], batch_size: int) -> int:
    """Ask a batch; gives the batch size that there is memory for."""

    def run(some: Sequence[_Ready]) -> None:
        images = [ready.image for ready in some if ready.image is not None]
        found = asked.task.ask(asked.model, asked.processor, images, [ready.case for ready in some])
        for ready, answer in zip(some, found, strict=True):
            asked.writer.add(ready.case.case_id, answer)

    return in_batches(batch, run, batch_size)


def _opened(task: Task, indices: Sequence[int], num_workers: int, batch_size: int) -> Iterator[_Ready]:
    """The cases in their order, their pictures opened by threads a few cases ahead."""
    waiting: deque[Future[_Ready]] = deque()
    with ThreadPoolExecutor(num_workers) as threads:
        try:
            for index in indices:
                waiting.append(threads.submit(_open, task, index))
                if len(waiting) > _AHEAD * num_workers + batch_size:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def _open(task: Task, index: int) -> _Ready:
    case = task[index]
    try:
        return _Ready(case, load_image(case.image))
    except ValueError as error:
        return _Ready(case, None, str(error))


def _refuse_gaps(rows: Mapping[CaseId, int], predictions: Predictions) -> None:
    done = predictions.done()
    gaps = [case_id for case_id in rows if case_id not in done]
    if gaps:
        raise DataError(
            f"{predictions.where}: {len(gaps)} of {len(rows)} cases have no answer, the first is {gaps[0]!r}; "
            "go on asking, or score what is there as a part"
        )


def _gathered(value: Any, state: PartialState) -> list[Any]:
    return gather_object([value]) if state.num_processes > 1 else [value]


def _device(model: torch.nn.Module) -> str:
    parameter = next(model.parameters())
    name = torch.cuda.get_device_name(parameter.device) if parameter.device.type == "cuda" else parameter.device.type
    return f"{name}, {str(parameter.dtype).removeprefix('torch.')}"
