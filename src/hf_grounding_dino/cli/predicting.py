"""What `evaluate` and `tune-thresholds` share: predictions for a task, made now or read."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from . import UserError, complain
from .problems import user_errors

if TYPE_CHECKING:
    from accelerate import PartialState

    from hf_grounding_dino.evaluation.predictions import Predictions
    from hf_grounding_dino.evaluation.runner import RunFacts
    from hf_grounding_dino.evaluation.tasks import Task
    from hf_grounding_dino.inference.predictor import Predictor

PREDICTIONS_FOLDER = "predictions"


class Predicted(NamedTuple):
    """The predictions for a task.

    run: what making them took; None where they were read.
    """

    predictions: Predictions
    run: RunFacts | None


def join_processes(arguments: argparse.Namespace) -> PartialState:
    """The processes that share the work; on a CPU, too, where accelerate has to be told."""
    import torch
    from accelerate import PartialState

    return PartialState(cpu=arguments.device == "cpu" or not torch.accelerator.is_available())


def predictor_for(arguments: argparse.Namespace, processes: PartialState) -> Predictor | None:
    """The model on the device of this process; None where predictions are read instead.

    Raises:
        UserError: it cannot be loaded.
    """
    from .detect import load_detector

    if arguments.predictions is not None:
        return None
    device = arguments.device
    if device == "auto" and processes.num_processes > 1:
        device = str(processes.device)
    return load_detector(arguments.model, device, arguments.dtype, arguments.batch_size, arguments.num_workers)


def predict_task(task: Task, predictor: Predictor | None, folder: Path, arguments: argparse.Namespace) -> Predicted:
    """Make the predictions that are missing, or open those that are named.

    Args:
        folder: of the task; predictions are kept in a folder of it.

    Raises:
        UserError: there are no such predictions, or they cannot be written.
        DataError: predictions of something else are there.
    """
    from hf_grounding_dino.evaluation.runner import predict
    from hf_grounding_dino.inference.predictions import PredictionStore
    from hf_grounding_dino.processing.closed_vocabulary import doubts

    if predictor is None:
        return Predicted(_read(arguments.predictions, task), None)
    for doubt in doubts(predictor.model, task.prompting.labels_of_all):
        complain(doubt)
    store = PredictionStore(folder / PREDICTIONS_FOLDER)
    with user_errors(place=store.folder):
        return Predicted(store, predict(task, predictor, store))


def results_path(path: Path, task: str) -> Path:
    """Where the results of one of several datasets go, whose file is named by `path`."""
    return path.with_name(f"{path.stem}-{task}{path.suffix}")


def _read(path: Path, task: Task) -> Predictions:
    """Predictions at a path: of this run, of the task among several, or a results file."""
    from hf_grounding_dino.evaluation.predictions import ResultsFile
    from hf_grounding_dino.inference.predictions import PROTOCOL_FILE, PredictionStore

    for file in (path, results_path(path, task.name)):
        if file.is_file():
            return ResultsFile(file)
    for folder in (path, path / PREDICTIONS_FOLDER, path / task.name / PREDICTIONS_FOLDER):
        if (folder / PROTOCOL_FILE).is_file():
            return PredictionStore(folder)
    raise UserError(f"{path}: there are no predictions of {task.name}")
