"""How long COCO and LVIS scoring takes and how much memory, on made-up answers.

python scripts/time_scoring.py coco --images 5000
python scripts/time_scoring.py lvis --images 20000

An image of COCO has 7 things of 80 labels and 300 boxes, one of LVIS 12 of 1203 and 9,300; half of the boxes lie about
the things. Answers are made one at a time, as a run reads them from disk; the time that this takes is left out.
"""

from __future__ import annotations

import argparse
import resource
import sys
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hf_grounding_dino.evaluation import CocoDetection, LvisDetection


class Size(NamedTuple):
    """Of a benchmark."""

    images: int
    truths: int
    boxes: int
    labels: int


SIZES = {"coco": Size(5_000, 7, 300, 80), "lvis": Size(20_000, 12, 9_300, 1_203)}
SIDE = 500.0


def boxes_anywhere(count: int, rng: np.random.Generator) -> NDArray[np.float32]:
    """Boxes (count, 4), xyxy in pixels."""
    low = rng.uniform(0, SIDE, (count, 2))
    return np.concatenate([low, low + rng.uniform(5, 130, (count, 2))], 1).astype(np.float32)


def items(size: Size) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """A prediction and a reference for each image."""
    rng = np.random.default_rng(0)
    for number in range(size.images):
        truth, labels = boxes_anywhere(size.truths, rng), rng.integers(0, size.labels, size.truths)
        chosen = rng.integers(0, size.truths, size.boxes // 2)
        near = truth[chosen] + rng.normal(0, 5, (len(chosen), 4)).astype(np.float32)
        near[:, 2:] = np.maximum(near[:, 2:], near[:, :2])
        far = boxes_anywhere(size.boxes - len(near), rng)
        said = rng.integers(0, size.labels, size.boxes)
        right = rng.random(len(near)) < 0.5
        said[: len(near)][right] = labels[chosen][right]
        found = {"boxes": np.concatenate([near, far]), "scores": rng.random(size.boxes, np.float32), "labels": said}
        reference = {"image_id": number, "boxes": truth, "labels": labels}
        known = {"neg_category_ids": rng.integers(0, size.labels, 20).tolist(), "not_exhaustive_category_ids": []}
        yield {"image_id": number, **found}, {**reference, **known}


def main() -> None:
    """Score and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("benchmark", choices=SIZES)
    parser.add_argument("--images", type=int, help="how many (as many as the benchmark has)")
    parser.add_argument("--boxes", type=int, help="found in each (as many as its protocol keeps)")
    arguments = parser.parse_args()
    wanted = {key: getattr(arguments, key) for key in ("images", "boxes") if getattr(arguments, key) is not None}
    size = SIZES[arguments.benchmark]._replace(**wanted)
    classes = [{"id": label, "name": str(label), "frequency": "rcf"[label % 3]} for label in range(size.labels)]
    metric: Any = LvisDetection(classes) if arguments.benchmark == "lvis" else CocoDetection(range(size.labels))
    seconds = computed = 0.0
    for prediction, reference in items(size):
        started, began = time.perf_counter(), time.process_time()
        metric.add(prediction=prediction, reference=reference)
        seconds, computed = seconds + time.perf_counter() - started, computed + time.process_time() - began
    started, began = time.perf_counter(), time.process_time()
    scores = metric.compute()
    seconds, computed = seconds + time.perf_counter() - started, computed + time.process_time() - began
    # In kilobytes on Linux, in bytes on macOS.
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1e9 if sys.platform == "darwin" else 1e6)
    sys.stdout.write(
        f"{arguments.benchmark}: {size.images:,} images x {size.boxes:,} boxes x {size.labels:,} labels, "
        f"AP {scores['AP']:.4f}: {seconds:.1f} s, {computed:.1f} s of CPU, {peak:.2f} GB at most\n"
    )


if __name__ == "__main__":
    main()
