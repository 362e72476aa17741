"""Time this package beside stock transformers: python scripts/benchmark --output benchmark/."""

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])  # where this folder is the package `benchmark`

from benchmark.command import main  # noqa: E402

if __name__ == "__main__":
    sys.exit(main())
