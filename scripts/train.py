"""Train or fine-tune a model: python scripts/train.py finetune_small --set train.0.annotations=mine.json."""

import sys

from hf_grounding_dino.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
