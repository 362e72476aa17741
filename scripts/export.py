"""Write a model for another runtime: python scripts/export.py --model DIR --format onnx exported/model.onnx."""

import sys

from hf_grounding_dino.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["export", *sys.argv[1:]]))
