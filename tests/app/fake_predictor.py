"""A model for tests of the app: what it finds is known, and it counts its calls."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

from PIL import Image

from hf_grounding_dino.inference.drawing import Box, Detection
from hf_grounding_dino.inference.prompting import LabelPrompt

SCORES = (0.9, 0.5, 0.3, 0.1)


class CountingPredictor:
    """Finds four boxes 10 pixels wide in every image, of falling score, called by the words in turn."""

    model = SimpleNamespace(name_or_path="")

    def __init__(self) -> None:
        self.calls: list[tuple[tuple[int, int], Any]] = []

    def predict(self, image: Image.Image, prompt: Any) -> Any:
        words = prompt.labels if isinstance(prompt, LabelPrompt) else (prompt.caption,)
        if "unknown" in words:
            raise ValueError("Label 0 ('<b>unknown</b>') has no token that the tokenizer knows.")
        self.calls.append((image.size, words if isinstance(prompt, LabelPrompt) else prompt.caption))
        boxes = [Box(xmin=20 * i, ymin=5, xmax=20 * i + 10, ymax=15) for i in range(len(SCORES))]
        names = [str(words[i % len(words)]) for i in range(len(SCORES))]
        found = [Detection(score=s, label=n, box=b) for s, n, b in zip(SCORES, names, boxes, strict=True)]
        return SimpleNamespace(detections=found)


def image_file(path: Path, size: tuple[int, int] = (100, 80), color: tuple[int, int, int] = (40, 50, 60)) -> str:
    """A plain image in a file."""
    Image.new("RGB", size, color).save(path)
    return str(path)
