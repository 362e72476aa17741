"""A detector that costs nothing: what it finds depends on the image and, a little, on its batch, as really."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from PIL import Image

from hf_grounding_dino.annotation.annotator import Summary, run_annotation
from hf_grounding_dino.annotation.checkpoint import Run, digest_of, relative_root
from hf_grounding_dino.annotation.sources import Source
from hf_grounding_dino.inference.predictor import Predictor, Shard
from hf_grounding_dino.processing.defaults import PostProcessing
from hf_grounding_dino.processing.post_processing import Detections

LABELS = ("red circle", "blue ring")


def prepare(images: Sequence[Image.Image]) -> dict[str, list[torch.Tensor]]:
    """The image processor: pixels as they are."""
    pixels = [torch.from_numpy(np.array(image)).permute(2, 0, 1).float() for image in images]
    return {"pixel_values": pixels, "pixel_mask": [torch.ones(one.shape[1:], dtype=torch.long) for one in pixels]}


class FakePredictor(Predictor):
    """As many boxes as the first pixel says, 0 to 3; sizes follow the mean colour, and the batch it came in."""

    def __init__(self, seconds: float = 0.0, batch_size: int = 4) -> None:
        processor: Any = SimpleNamespace(image_processor=prepare)
        super().__init__(torch.nn.Identity(), processor, batch_size=batch_size, readers=2)  # type: ignore[arg-type]
        self.seconds = seconds
        self.batches: list[set[tuple[int, int]]] = []

    def _find(self, batch: Any) -> list[Detections]:
        time.sleep(self.seconds)
        images = [row.prepared for row in batch]
        self.batches.append({image.size for image in images})
        jitter = float(sum(image.pixels.mean() for image in images)) / 1000
        return [self._one(image, jitter) for image in images]

    def _one(self, image: Any, jitter: float) -> Detections:
        count = int(image.pixels[0, 0, 0]) % 4
        width, height = image.size
        share = (float(image.pixels.mean()) + jitter) / 256
        boxes = [[i + 0.123, 1.0, i + share * (width - i), share * height] for i in range(count)]
        labels = torch.arange(count) % len(LABELS)
        return {"boxes": torch.tensor(boxes).reshape(-1, 4), "labels": labels, "scores": 0.9 - torch.arange(count) / 10}


def run_of(source: Source, output: Path, format: str = "coco", **changes: Any) -> Run:
    """What a run with the fake predictor was asked for."""
    options: dict[str, Any] = {
        "model": "fake", "dtype": "float32", "labels": list(LABELS), "format": format,
        "post": PostProcessing(threshold=0.3, nms=0.7, top_k=None), "images": len(source.names),
        "names": digest_of(source.names), "root": relative_root(source.root, output),
    }  # fmt: skip
    return Run(**(options | changes))


def label(
    source: Source,
    output: Path,
    format: str = "coco",
    shard: Shard | None = None,
    predictor: Predictor | None = None,
    **changes: Any,
) -> Summary:
    """A run with the fake predictor."""
    run = run_of(source, output, format, **changes)
    predictor = predictor or FakePredictor()
    return run_annotation(predictor, source, output, run, shard=shard or Shard(), progress=False)
