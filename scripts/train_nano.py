"""Train grounding-dino-nano on Shapes: python scripts/train_nano.py --output runs/nano."""

from __future__ import annotations

import argparse
from pathlib import Path

from hf_grounding_dino.training.loop import TrainingSettings
from hf_grounding_dino.training.nano import train_nano


def main() -> None:
    """Read the command line and train."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("runs/nano"))
    parser.add_argument("--max-steps", type=int, default=7200)
    parser.add_argument("--batch-size", type=int, default=12)
    parser.add_argument("--learning-rate", type=float, default=6e-4)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--mixed-every", type=int, default=1, help="batches between ones that are not referring alone")
    parser.add_argument("--start-from", type=Path, help="folder of a model to begin with")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--resume", action="store_true", help="go on from the state in --output")
    args = parser.parse_args()
    settings = TrainingSettings(max_steps=args.max_steps, learning_rate=args.learning_rate, seed=args.seed)
    train_nano(
        args.output,
        settings=settings,
        batch_size=args.batch_size,
        num_workers=args.workers,
        mixed_every=args.mixed_every,
        start_from=args.start_from,
        resume=args.resume,
    )


if __name__ == "__main__":
    main()
