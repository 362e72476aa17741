"""Asking a model the cases of a task, or taking what it answered before."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from . import UserError, complain
from .problems import user_errors

if TYPE_CHECKING:
    from accelerate import PartialState

    from hf_grounding_dino.evaluation.predictions import Predictions
    from hf_grounding_dino.evaluation.runner import Run
    from hf_grounding_dino.evaluation.sets import CaseTask

    from .detect import Detector

PREDICTIONS_FOLDER = "predictions"


class Asked(NamedTuple):
    """The answers to a task.

    run: what asking took; None where the answers were read.
    """

    predictions: Predictions
    run: Run | None


def join_processes(arguments: argparse.Namespace) -> PartialState:
    """The processes that share the work; on a CPU, too, where accelerate has to be told."""
    import torch
    from accelerate import PartialState

    return PartialState(cpu=arguments.device == "cpu" or not torch.accelerator.is_available())


def detector_for(arguments: argparse.Namespace, processes: PartialState) -> Detector | None:
    """The model that is asked, on the device of this process; None where answers are read instead.

    Raises:
        UserError: it cannot be loaded.
    """
    from .detect import load_detector

    if arguments.predictions is not None:
        return None
    device = arguments.device
    if device == "auto" and processes.num_processes > 1:
        device = str(processes.device)
    return load_detector(arguments.model, device, arguments.dtype)


def ask(task: CaseTask, detector: Detector | None, folder: Path, arguments: argparse.Namespace) -> Asked:
    """Ask the model what it has not answered yet, or open the predictions that are named.

    Args:
        folder: of the task; predictions are kept in a folder of it.

    Raises:
        UserError: there are no such predictions, or they cannot be written.
        DataError: predictions of something else are there.
    """
    from hf_grounding_dino.evaluation.predictions import PredictionStore
    from hf_grounding_dino.evaluation.runner import predict

    if detector is None:
        return Asked(_read(arguments.predictions, task), None)
    for doubt in detector.doubts(_labels_of(task)):
        complain(doubt)
    store = PredictionStore(folder / PREDICTIONS_FOLDER)
    with user_errors(place=store.folder):
        run = predict(
            task,
            detector.model,
            detector.processor,
            store,
            batch_size=arguments.batch_size,
            num_workers=arguments.num_workers,
        )
    return Asked(store, run)


def _labels_of(task: CaseTask) -> list[str]:
    """What a task looks for, where that is labels."""
    from hf_grounding_dino.evaluation.askers import LabelAsker, PhraseLabelAsker

    if isinstance(task.ask, LabelAsker):
        return [words for words in task.ask.labels.values() if words.strip()]
    return [one.name for one in task.ask.prompts.values()] if isinstance(task.ask, PhraseLabelAsker) else []


def results_path(path: Path, task: str) -> Path:
    """Where the results of one of several sets go, whose file is named by `path`."""
    return path.with_name(f"{path.stem}-{task}{path.suffix}")


def _read(path: Path, task: CaseTask) -> Predictions:
    """Predictions at a path: of this run, of the task among several, or a results file."""
    from hf_grounding_dino.evaluation.predictions import PROTOCOL_FILE, PredictionStore
    from hf_grounding_dino.evaluation.results_json import ResultsFile

    for file in (path, results_path(path, task.name)):
        if file.is_file():
            return ResultsFile(file)
    for folder in (path, path / PREDICTIONS_FOLDER, path / task.name / PREDICTIONS_FOLDER):
        if (folder / PROTOCOL_FILE).is_file():
            return PredictionStore(folder)
    raise UserError(f"{path}: there are no predictions of {task.name}")
