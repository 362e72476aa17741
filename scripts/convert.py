"""Make a model folder from another package's checkpoint, or the reverse: python scripts/convert.py FILE.pth folder."""

import sys

from hf_grounding_dino.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["convert", *sys.argv[1:]]))
