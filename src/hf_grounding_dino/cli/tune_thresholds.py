"""Choose the threshold of each label: `hf-grounding-dino tune-thresholds --model DIR --annotations val.json`."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING

from . import UserError, quiet_libraries, say, table
from .data_options import add_data_options, benchmark_lines, chosen_tasks, named_benchmark
from .files import check_folder
from .model_options import add_model_option, named_model
from .predicting import join_processes, predict_task, predictor_for
from .problems import user_errors

if TYPE_CHECKING:
    from hf_grounding_dino.evaluation.threshold_tuning import TunedThresholds


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `tune-thresholds`."""
    add_data_options(parser)
    add_model_option(parser)
    parser.add_argument("--to", type=Path, metavar="FOLDER", help="for thresholds.json (the folder of the model)")
    parser.add_argument(
        "--output", type=Path, default=Path("threshold_tuning"), metavar="FOLDER",
        help="for the predictions (%(default)s); resumes existing predictions",
    )  # fmt: skip
    parser.epilog = 'The pipeline and `detect` use the file with threshold "tuned". Use images that neither '
    parser.epilog += "trained the model nor will measure it."


def run(arguments: argparse.Namespace) -> int:
    """Choose thresholds, write them beside the model and print them.

    Raises:
        UserError: whatever is wrong with the options, the data, the model or the predictions.
    """
    if arguments.list:
        say("\n".join(benchmark_lines()))
        return 0
    benchmark = named_benchmark(arguments)
    arguments.model = named_model(arguments.model)
    folder = arguments.to or Path(arguments.model)
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder for thresholds.json; name one with --to")
    if not os.access(folder, os.W_OK):
        raise UserError(f"{folder / 'thresholds.json'} cannot be written: name another folder with --to")
    check_folder(arguments.output)
    with quiet_libraries(), user_errors(ValueError, place=arguments.output):
        from hf_grounding_dino.evaluation.prompting import LabelPrompting
        from hf_grounding_dino.evaluation.runner import samples_with_predictions
        from hf_grounding_dino.evaluation.threshold_tuning import tune_thresholds

        processes = join_processes(arguments)
        tasks = chosen_tasks(arguments, benchmark).tasks
        if len(tasks) > 1:
            raise UserError(
                f"thresholds are chosen on one set, not on {len(tasks)}: {', '.join(t.name for t in tasks)}"
            )
        task = tasks[0]
        if not task.labels:
            raise UserError(f"{task.name}: has sentences instead of labels, so there are no thresholds to choose")
        predicted = predict_task(task, predictor_for(arguments, processes), arguments.output, arguments)
        if not processes.is_main_process:
            return 0
        # By the words of the prompts, which are what a user of the model gives as labels.
        words = task.prompting.labels if isinstance(task.prompting, LabelPrompting) else task.labels
        tuned = tune_thresholds(samples_with_predictions(task, predicted.predictions), words)
        written = tuned.thresholds(f"{len(task)} images of {task.name}").write(folder)
    say(f"{as_text(tuned)}written: {written}")
    return 0


def as_text(tuned: TunedThresholds) -> str:
    """The thresholds and what they give, for a terminal."""
    rows: list[tuple[str, ...]] = [("", "threshold", "precision", "recall", "F1", "objects", "")]
    for name, choice in [*tuned.labels.items(), ("all labels", tuned.overall)]:
        note = "" if choice.own else "(too few objects: that of all labels)"
        shares = (choice.threshold, choice.precision, choice.recall, choice.f1)
        rows.append((name, *(f"{share:.3f}" for share in shares), str(choice.num_truths), note))
    return "".join(f"{line}\n" for line in table(rows, "<>>>>><"))
