"""`supervision` reads our results with the loaders it has for transformers."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import supervision
import torch

from hf_grounding_dino import GroundingDinoImageProcessor, GroundingDinoProcessor
from hf_grounding_dino.data.tokenizer import build_tokenizer

PROCESSOR = GroundingDinoProcessor(GroundingDinoImageProcessor(), build_tokenizer(["cat", "remote", "control"]))
LABELS = ["Cat", "remote control"]


def results(threshold: float) -> list[dict[str, Any]]:
    """Of both post-processings, on random numbers for 12 queries."""
    ids = PROCESSOR(text=[LABELS])["input_ids"]
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(1, 12, ids.shape[1], generator=generator)
    boxes = 0.3 + 0.3 * torch.rand(1, 12, 4, generator=generator)
    outputs = SimpleNamespace(logits=logits, pred_boxes=boxes, input_ids=ids)
    options = {"threshold": threshold, "target_sizes": [(300, 400)]}
    grounded = PROCESSOR.post_process_grounded_object_detection(outputs, **options)
    return [*grounded, *PROCESSOR.post_process_object_detection(outputs, **options)]


def test_its_loader_reads_our_results() -> None:
    """Boxes, scores and class numbers as they are; the caller's words as class names."""
    for result in results(0.3):
        detections = supervision.Detections.from_transformers(result)
        assert len(detections) == len(result["scores"]) > 3
        np.testing.assert_array_equal(detections.xyxy, result["boxes"].numpy())
        np.testing.assert_array_equal(detections.confidence, result["scores"].numpy())
        np.testing.assert_array_equal(detections.class_id, result["labels"].numpy())
        named = supervision.Detections.from_transformers(result, id2label=dict(enumerate(LABELS)))
        assert list(named["class_name"]) == result["text_labels"]
        kept = named[named.confidence > 0.5]
        assert len(kept.with_nms(0.5)) <= len(kept)


def test_nothing_found_is_an_empty_set() -> None:
    for result in results(1.0):
        detections = supervision.Detections.from_transformers(result)
        assert len(detections) == 0 and detections.xyxy.shape == (0, 4)
