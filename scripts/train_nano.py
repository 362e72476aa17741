"""Train grounding-dino-nano from random weights: python scripts/train_nano.py runs/nano [--set max_steps=14400]."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from hf_grounding_dino.cli.main import main
from hf_grounding_dino.training.nano import write_start

FROM_NOTHING = ("max_steps=14400", "learning_rate=6.0e-4", "warmup_steps=200")


def train_nano() -> int:
    """Write the start, unless it is there, and run the recipe `nano` from it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("output", type=Path)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="as in `train`")
    parser.add_argument("--resume", action="store_true", help="go on from the state in the folder")
    arguments = parser.parse_args()
    start = arguments.output / "start"
    if not start.exists():
        write_start(start)
    options = [f"model={start}", f"output_dir={arguments.output}", *FROM_NOTHING, *arguments.set]
    given = [word for option in options for word in ("--set", option)]
    return main(["train", "nano", *given, *(["--resume"] if arguments.resume else [])])


if __name__ == "__main__":
    sys.exit(train_nano())
