"""A model for tests of the page: what it finds is known, and it counts its calls."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from hf_grounding_dino.inference.drawing import Box, Detection
from hf_grounding_dino.processing.defaults import DEFAULTS

SCORES = (0.9, 0.5, 0.3, 0.1)


class CountingFinder:
    """Finds four boxes 10 pixels wide in every picture, of falling score, called by the words in turn."""

    kept = DEFAULTS

    def __init__(self) -> None:
        self.calls: list[tuple[tuple[int, int], Any]] = []

    def doubts(self, prompt: Any) -> list[str]:
        return []

    def detect(
        self,
        image: Image.Image,
        *,
        labels: Sequence[str] | None = None,
        caption: str | None = None,
        threshold: float = 0.05,
    ) -> list[Detection]:
        words = [caption] if labels is None else list(labels)
        if "unknown" in words:
            raise ValueError("Label 0 ('<b>unknown</b>') has no token that the tokenizer knows.")
        self.calls.append((image.size, caption if labels is None else tuple(labels)))
        boxes = [Box(xmin=20 * i, ymin=5, xmax=20 * i + 10, ymax=15) for i in range(len(SCORES))]
        names = [str(words[i % len(words)]) for i in range(len(SCORES))]
        return [Detection(score=s, label=n, box=b) for s, n, b in zip(SCORES, names, boxes, strict=True)]


def picture(path: Path, size: tuple[int, int] = (100, 80), color: tuple[int, int, int] = (40, 50, 60)) -> str:
    """A plain picture in a file."""
    Image.new("RGB", size, color).save(path)
    return str(path)
