"""Score a model on Shapes: python scripts/evaluate_shapes.py --model runs/nano/last."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from hf_grounding_dino import GroundingDinoForObjectDetection
from hf_grounding_dino.assets import NANO
from hf_grounding_dino.evaluation.shapes import ShapesEvaluator
from hf_grounding_dino.processing_grounding_dino import GroundingDinoProcessor


def main() -> None:
    """Read the command line, evaluate, print the scores as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--model", type=Path, default=NANO)
    parser.add_argument("--count", type=int, default=500, help="scenes for each part")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="float32", help="of the weights")
    args = parser.parse_args()
    model = GroundingDinoForObjectDetection.from_pretrained(args.model, dtype=args.dtype)
    processor = GroundingDinoProcessor.from_pretrained(args.model)
    scores = ShapesEvaluator(model, processor, count=args.count, seed=args.seed).evaluate()
    sys.stdout.write(json.dumps({name: round(score, 4) for name, score in scores.items()}, indent=2) + "\n")


if __name__ == "__main__":
    main()
