"""Choose a threshold for each label: python scripts/calibrate.py --model DIR --annotations val.json --images val/."""

import sys

from hf_grounding_dino.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["calibrate", *sys.argv[1:]]))
