"""Each metric with a few random items, a prediction and a reference each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from hf_grounding_dino.evaluation import (
    CocoDetection,
    DescribedObjects,
    GeneralizedReferring,
    LvisDetection,
    OpenVocabularyCoco,
    PhraseGrounding,
    ReferringExpressions,
)

Item = tuple[dict[str, Any], dict[str, Any]]
LABELS = [2, 4, 9]
CATEGORIES = [{"id": label, "frequency": letter} for label, letter in zip(LABELS, "rcf", strict=True)]
SENTENCES = {2: "a dog", 4: "a cat that sees no dog", 9: "one of the many things on the shelf in the hall"}

METRICS: dict[str, Callable[..., Any]] = {
    "coco": CocoDetection,
    "open vocabulary": lambda **options: OpenVocabularyCoco([2, 4], [9], **options),
    "lvis fixed": lambda **options: LvisDetection(CATEGORIES, max_per_class=5, **options),
    "lvis": lambda **options: LvisDetection(CATEGORIES, fixed=False, **options),
    "described": lambda **options: DescribedObjects(SENTENCES, {2: True, 4: False, 9: True}, **options),
    "referring": ReferringExpressions,
    "generalized": GeneralizedReferring,
    "phrases": PhraseGrounding,
}


def items(name: str) -> list[Item]:
    """Seven, with gapped ids in falling order; scores tie, across images too; some means nothing where that may be."""
    made = []
    for number in range(7):
        rng = np.random.default_rng(number)
        low = rng.integers(0, 100, (6, 2))
        boxes = np.concatenate([low, low + rng.integers(5, 60, (6, 2))], 1).astype(np.float32)
        labels = rng.choice(LABELS, 6)
        count = 1 if name == "referring" else number % 5
        reference: dict[str, Any] = {"image_id": 70 - number, "boxes": boxes[:count], "labels": labels[:count]}
        if name.startswith("lvis"):
            reference |= {"neg_category_ids": LABELS, "not_exhaustive_category_ids": []}
        if name == "described" and number % 2:
            reference["asked"] = LABELS[:2]
        scores = rng.integers(1, 4, 6) / 4
        made.append(({"image_id": 70 - number, "boxes": boxes, "labels": labels, "scores": scores}, reference))
    return made


def scores_of_share(name: str, process: int, num_processes: int) -> dict[str, float]:
    """What one process gets that adds every second item, or all; a sampler repeats the first where 2 is no divisor."""
    metric = METRICS[name](num_process=num_processes, process_id=process)
    every = items(name)
    for i in range(process, 8 if num_processes == 2 else 7, num_processes):
        metric.add(prediction=every[i % 7][0], reference=every[i % 7][1])
    scores: dict[str, float] = metric.compute()
    return scores
