"""A page to try a model on: python scripts/app.py --model IDEA-Research/grounding-dino-tiny."""

import sys

from hf_grounding_dino.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["app", *sys.argv[1:]]))
