"""Publish the model of a training run with its card: python scripts/publish.py runs/small --to published/small."""

import sys

from hf_grounding_dino.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["publish", *sys.argv[1:]]))
