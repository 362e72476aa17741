"""Train or fine-tune a model: `hf-grounding-dino train finetune_small --set train.0.annotations=x.json`."""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from . import PROGRAM, UserError, decide_kernel, quiet_libraries
from .pictures import check_folder
from .problems import user_errors

if TYPE_CHECKING:
    from hf_grounding_dino.training.conduct import Report

INTERRUPTED = 130


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `train`."""
    parser.add_argument("recipe", metavar="RECIPE", nargs="?", help="a YAML file, or the name of a recipe (see --list)")
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


def run(arguments: argparse.Namespace) -> int:
    """Train; 0 when all steps are done, 130 when a signal stopped it before, with a state to go on from.

    Raises:
        UserError: whatever is wrong with the recipe, the model, the data or the disk.
    """
    from hf_grounding_dino.training.recipe import as_yaml, read_recipe, recipe_names, recipe_summary

    if arguments.list:
        width = max(map(len, recipe_names()))
        sys.stdout.writelines(f"{name:{width}}  {recipe_summary(name)}\n" for name in recipe_names())
        return 0
    if arguments.recipe is None:
        raise UserError(f"name a recipe: {', '.join(recipe_names())}, or a YAML file")
    with user_errors(ValueError):
        recipe = read_recipe(arguments.recipe, arguments.set)
    if arguments.show:
        sys.stdout.write(as_yaml(recipe))
        return 0
    import torch
    from accelerate import PartialState

    from hf_grounding_dino.training.conduct import run_recipe
    from hf_grounding_dino.training.states import StateError

    check_folder(Path(recipe.output_dir))
    logging.getLogger("accelerate").setLevel(logging.ERROR)
    mistakes = (ValueError, FloatingPointError, ImportError, StateError)
    with quiet_libraries(), user_errors(*mistakes, place=recipe.output_dir):
        decide_kernel("cuda" if torch.cuda.is_available() else "cpu")
        report = run_recipe(recipe, resume=arguments.resume)
    if PartialState().is_main_process:
        sys.stdout.write(summary(report, recipe.output_dir))
    return 0 if report.steps == report.max_steps else INTERRUPTED


def summary(report: Report, output_dir: str) -> str:
    """What came of a run, for people."""
    lines = []
    if report.steps < report.max_steps:
        lines.append(f"stopped after step {report.steps} of {report.max_steps}; go on with --resume")
    if report.after:
        width = max(map(len, report.after))
        lines.append(f"{'':{width}}  before   after")
        for name, score in report.after.items():
            before = report.before.get(name)
            lines.append(f"{name:{width}}  {'' if before is None else f'{before:6.3f}':6}  {score:6.3f}")
    lines += [f"lost {fall:.3f} of {name}" for name, fall in report.lost.items()]
    shares = ", ".join(f"{part} {share:.0%}" for part, share in sorted(report.time_shares.items(), key=lambda x: -x[1]))
    lines.append(f"{report.seconds:.0f} s: {shares}")
    if report.skipped:
        lines.append(f"{len(report.skipped)} pictures could not be read, see report.json")
    drawn = ", curves.png, examples.png" if report.steps == report.max_steps else ""
    lines.append(f"best/ (step {report.best_step}), last/{drawn} and report.json are in {output_dir}")
    return "".join(f"{line}\n" for line in lines)
