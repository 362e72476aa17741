"""The console command as a module: `python -m hf_grounding_dino detect ...`."""

import sys

from .cli.main import main

if __name__ == "__main__":
    sys.exit(main())
