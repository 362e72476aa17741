"""Train or fine-tune a model: `hf-grounding-dino train finetune_small --set train.0.annotations=x.json`."""

from __future__ import annotations

import argparse
import logging
import re
from pathlib import Path
from typing import TYPE_CHECKING

from hf_grounding_dino.utils.memory import is_out_of_memory

from . import PROGRAM, UserError, complete_with, decide_kernel, quiet_libraries, say, table
from .files import check_folder
from .problems import user_errors

if TYPE_CHECKING:
    from hf_grounding_dino.training.trainer import TrainingReport

INTERRUPTED = 130
_WORKER_DIED = re.compile(r"^DataLoader worker .*(exited unexpectedly|killed by signal)", re.DOTALL)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `train`."""
    recipe = parser.add_argument(
        "recipe", metavar="RECIPE", nargs="?", help="a YAML file, or the name of a recipe (see --list)"
    )
    complete_with(recipe, _recipe_names)
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="change an option, as train.0.annotations=x.json",
    )
    parser.add_argument("--resume", action="store_true", help="go on from the state in output_dir")
    parser.add_argument("--list", action="store_true", help="show the recipes that come with the package")
    parser.add_argument("--show", action="store_true", help="print the recipe with all its options, and do nothing")
    parser.epilog = (
        f"On many processes: accelerate launch -m hf_grounding_dino train RECIPE, or torchrun in its place. {PROGRAM}"
        " validate looks through a data set first."
    )


def _recipe_names() -> list[str]:
    from hf_grounding_dino.training.recipes import recipe_names

    return list(recipe_names())


def run(arguments: argparse.Namespace) -> int:
    """Train; 0 when all steps are done, 130 when a signal stopped it before, with a state to go on from.

    Raises:
        UserError: whatever is wrong with the recipe, the model, the data or the disk.
    """
    from hf_grounding_dino.training.recipes import recipe_names, recipe_summary, recipe_text

    if arguments.list:
        say("\n".join(table([(name, recipe_summary(name)) for name in recipe_names()], "<")))
        return 0
    if arguments.recipe is None:
        raise UserError(f"name a recipe: {', '.join(recipe_names())}, or a YAML file")
    try:
        recipe_text(arguments.recipe)  # a name that is none is told before torch is imported
    except ValueError as error:
        raise UserError(error) from error
    from hf_grounding_dino.training.recipe import as_yaml, read_recipe

    with user_errors(ValueError):
        recipe = read_recipe(arguments.recipe, arguments.set)
    if arguments.show:
        say(as_yaml(recipe).rstrip("\n"))
        return 0
    import torch
    from accelerate import PartialState

    from hf_grounding_dino.training.checkpoint import StateError
    from hf_grounding_dino.training.trainer import train

    check_folder(Path(recipe.output_dir))
    logging.getLogger("accelerate").setLevel(logging.ERROR)
    mistakes = (ValueError, FloatingPointError, ImportError, StateError)
    with quiet_libraries(), user_errors(*mistakes, place=recipe.output_dir):
        decide_kernel("cuda" if torch.cuda.is_available() else "cpu")
        try:
            report = train(recipe, resume=arguments.resume)
        except (MemoryError, RuntimeError) as error:
            if (lack := _lack(error, recipe.micro_batch_size or recipe.batch_size)) is None:
                raise
            raise UserError(f"{lack}; --resume goes on from the last state, if there is one") from error
    if PartialState().is_main_process:
        say(summary(report, recipe.output_dir).rstrip("\n"))
    return 0 if report.steps == report.max_steps else INTERRUPTED


def _lack(error: Exception, micro_batch_size: int) -> str | None:
    """What the computer has too little of for a run; None where the error is another."""
    if _WORKER_DIED.search(str(error)):
        return "a process that reads images was killed, as where memory runs out: choose a smaller num_workers"
    if is_out_of_memory(error):
        return (
            f"no memory for {micro_batch_size} images at once: choose a smaller micro_batch_size, or"
            " gradient_checkpointing=true"
        )
    return None


def summary(report: TrainingReport, output_dir: str) -> str:
    """What came of a run, for people."""
    lines = []
    if report.steps < report.max_steps:
        lines.append(f"stopped after step {report.steps} of {report.max_steps}; go on with --resume")
    if report.after:
        before = {name: f"{score:.3f}" for name, score in report.before.items()}
        rows = [(name, before.get(name, ""), f"{score:.3f}") for name, score in report.after.items()]
        lines += table([("", "before", "after"), *rows])
    lines += [f"lost {fall:.3f} of {name}" for name, fall in report.lost.items()]
    shares = ", ".join(f"{part} {share:.0%}" for part, share in sorted(report.time_shares.items(), key=lambda x: -x[1]))
    lines.append(f"{report.seconds:.0f} s: {shares}")
    if report.skipped:
        lines.append(f"{len(report.skipped)} images could not be read, see report.json")
    drawn = ", curves.png, examples.png" if report.steps == report.max_steps else ""
    lines.append(f"best/ (step {report.best_step}), last/{drawn} and report.json are in {output_dir}")
    return "".join(f"{line}\n" for line in lines)
