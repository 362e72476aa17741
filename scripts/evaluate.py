"""Measure a model by the protocols of the papers: python scripts/evaluate.py coco --data DIR --model DIR."""

import sys
from pathlib import Path

# Python looks beside a script first, so this file would stand for the library `evaluate`, in its neighbours too.
sys.path = [folder for folder in sys.path if Path(folder).resolve() != Path(__file__).resolve().parent]

if __name__ == "__main__":
    from hf_grounding_dino.cli.main import main

    sys.exit(main(["evaluate", *sys.argv[1:]]))
else:
    del sys.modules[__name__]
    import evaluate  # noqa: F401
