"""Run by a test on two processes: each adds its share of the pictures and writes the scores it gets."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import PartialState

from hf_grounding_dino.evaluation import CocoDetection, LvisDetection

LABELS = [2, 4, 9]


def picture(number: int) -> tuple[dict[str, Any], dict[str, Any]]:
    rng = np.random.default_rng(number)
    low = rng.integers(0, 100, (6, 2))
    boxes = np.concatenate([low, low + rng.integers(5, 60, (6, 2))], 1).astype(np.float32)
    labels = rng.choice(LABELS, 6)
    reference = {"image_id": 70 - number, "boxes": boxes[:4], "labels": labels[:4], "neg_category_ids": LABELS}
    # Scores tie, across pictures and processes too.
    found = {"boxes": boxes, "labels": labels, "scores": rng.integers(1, 4, 6) / 4}
    return {"image_id": 70 - number, **found}, {**reference, "not_exhaustive_category_ids": []}


def scores_of_share(process: int, num_processes: int) -> dict[str, Any]:
    """What one process gets that adds every second picture, or all."""
    processes = {"num_process": num_processes, "process_id": process}
    categories = [{"id": label, "frequency": letter} for label, letter in zip(LABELS, "rcf", strict=True)]
    coco = CocoDetection(**processes)
    lvis = LvisDetection(categories, max_per_class=5, **processes)
    # As a sampler does: where 2 do not divide 7, the first picture comes again.
    share = [i % 7 for i in range(process, 8 if num_processes == 2 else 7, num_processes)]
    for prediction, reference in map(picture, share):
        coco.add(prediction=prediction, reference=reference)
        lvis.add(prediction=prediction, reference=reference)
    scores = {"coco": coco.compute(), "lvis": lvis.compute()}
    found = {"coco": [c.num_found for c in coco.classes], "lvis": [c.num_found for c in lvis.classes]}
    return {**scores, "found": found}


def main(folder: Path) -> None:
    state = PartialState(cpu=True)
    scores = scores_of_share(state.process_index, state.num_processes)
    (folder / f"{state.process_index}_of_{state.num_processes}.json").write_text(json.dumps(scores))
    state.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
