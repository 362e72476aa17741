"""Time this package beside stock transformers: python scripts/benchmark.py --output benchmark/."""

import sys

from hf_grounding_dino.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["benchmark", *sys.argv[1:]]))
