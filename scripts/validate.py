"""Say what is odd in a data set: python scripts/validate.py --format coco --annotations annotations.json."""

import sys

from hf_grounding_dino.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["validate", *sys.argv[1:]]))
