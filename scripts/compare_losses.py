"""Compare AP over steps under transformers' loss and under ours: python scripts/compare_losses.py.

OUTPUT gets comparison.json, comparison.md and comparison.png. Stopped and started again, it goes on with the runs that
are not finished.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from hf_grounding_dino.training.comparison import ComparisonSettings, compare, read_trials
from hf_grounding_dino.training.comparison_report import write_report


def main() -> None:
    """Read the command line, train and measure, write table and plot."""
    default = ComparisonSettings()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("runs/comparison"))
    parser.add_argument("--steps", type=int, default=default.steps, help="of each run")
    parser.add_argument("--seeds", type=int, default=default.seeds, help="how many, each with a run of every variant")
    parser.add_argument("--every", type=int, default=default.every, help="steps between evaluations")
    parser.add_argument("--pictures", type=int, default=default.pictures, help="held-out ones to measure on")
    parser.add_argument("--batch-size", type=int, default=default.batch_size)
    parser.add_argument("--learning-rate", type=float, default=default.learning_rate)
    parser.add_argument("--side", type=int, default=default.side, help="of the pictures, in pixels")
    parser.add_argument(
        "--negatives", type=int, default=default.negatives, help="most labels that are not in the picture"
    )
    parser.add_argument("--denoising-queries", type=int, default=default.denoising_queries)
    parser.add_argument("--closed", action="store_true", help="all labels in every prompt, in one order")
    parser.add_argument("--threads", type=int, default=1, help="of the arithmetic")
    options = vars(parser.parse_args())
    output = options.pop("output")
    torch.set_num_threads(options.pop("threads"))
    try:
        settings = ComparisonSettings(**options)
        read_trials(output, settings)
    except ValueError as error:
        parser.error(str(error))
    write_report(output, settings, compare(settings, output))


if __name__ == "__main__":
    main()
