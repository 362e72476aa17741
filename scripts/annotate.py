"""Label pictures in bulk: python scripts/annotate.py --images photos --labels "cat, dog" --output labels."""

import sys

from hf_grounding_dino.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["annotate", *sys.argv[1:]]))
