"""Find what words name in pictures: python scripts/detect.py photo.jpg --labels "cat, remote control"."""

import sys

from hf_grounding_dino.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["detect", *sys.argv[1:]]))
