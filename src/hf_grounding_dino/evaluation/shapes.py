"""How well a model finds Shapes: all names in one prompt, pairs it never saw, and referring expressions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torchvision.ops import box_iou
from tqdm import tqdm

from ..data.shapes import CATEGORIES, UNSEEN_PAIRS, ShapesDataset, Split, category_name
from ..modeling_grounding_dino import GroundingDinoForObjectDetection
from ..processing_grounding_dino import GroundingDinoProcessor
from .average_precision import coco_average_precision

HIT_IOU = 0.5


class ShapesEvaluator:
    """Runs a model over Shapes scenes that no training run sees.

    Args:
        count: scenes for each of the three parts.
        seed: of the scenes.
        batch_size: pictures at a time; it changes no result.
    """

    def __init__(
        self,
        model: GroundingDinoForObjectDetection,
        processor: GroundingDinoProcessor,
        *,
        count: int = 500,
        seed: int = 1,
        batch_size: int = 8,
    ) -> None:
        self.model = model.eval()
        self.processor = processor
        self.count = count
        self.seed = seed
        self.batch_size = batch_size

    def evaluate(self) -> dict[str, float]:
        """All scores, in [0, 1].

        `AP`, `AP50`, `AP75` over the seen pairs in unseen scenes; `unseen_AP50` (and `unseen_AP`) over the pairs of
        colour and shape that never occur in training; `referring_P@1`: the best box for an expression has IoU >= 0.5
        with what it means.
        """
        seen = self._detection("val", set(range(len(CATEGORIES))))
        unseen = self._detection("unseen", {CATEGORIES.index(category_name(*pair)) for pair in UNSEEN_PAIRS})
        return {
            **seen,
            "unseen_AP": unseen["AP"],
            "unseen_AP50": unseen["AP50"],
            "referring_P@1": self._referring(),
        }

    def _detection(self, split: Split, only: set[int]) -> dict[str, float]:
        dataset = ShapesDataset(self.count, seed=self.seed, split=split, task="detection")
        names = list(CATEGORIES)
        pictures, detections = [], []
        for items in self._batches(dataset, f"{split} pairs"):
            scenes = [dataset.scene(item["image_id"]) for item in items]
            pictures += [_all_names(scene) for scene in scenes]
            inputs, outputs = self._run([scene.image for scene in scenes], [names])
            sizes = [(scene.image.height, scene.image.width) for scene in scenes]
            detections += self.processor.post_process_object_detection(
                outputs, names, target_sizes=sizes, input_ids=inputs["input_ids"]
            )
        return coco_average_precision(pictures, detections, len(CATEGORIES), only)

    def _referring(self) -> float:
        dataset = ShapesDataset(self.count, seed=self.seed, split="val", task="referring")
        hits = 0
        for items in self._batches(dataset, "referring"):
            _, outputs = self._run([item["image"] for item in items], [item["text"] for item in items])
            sizes = [(item["image"].height, item["image"].width) for item in items]
            best = self.processor.post_process_referring(outputs, target_sizes=sizes, top_k=1)
            for item, found in zip(items, best, strict=True):
                hits += int(box_iou(found["boxes"].cpu(), item["boxes"]).item() >= HIT_IOU)
        return hits / self.count

    def _batches(self, dataset: ShapesDataset, title: str) -> Iterator[list[Any]]:
        for start in tqdm(range(0, self.count, self.batch_size), desc=title):
            yield [dataset[i] for i in range(start, min(start + self.batch_size, self.count))]

    @torch.inference_mode()
    def _run(self, images: Sequence[Any], text: Sequence[Any]) -> tuple[Any, Any]:
        # A sentence a picture, or one list of labels for all of them, in a list of its own either way.
        inputs = self.processor(images=list(images), text=list(text)).to(self.model.device)
        return inputs, self.model(**inputs)


def _all_names(scene: Any) -> dict[str, Any]:
    return {
        "image": scene.image,
        "boxes": torch.tensor([shape.box for shape in scene.objects], dtype=torch.float32).reshape(-1, 4),
        "class_labels": torch.tensor([CATEGORIES.index(shape.name) for shape in scene.objects], dtype=torch.int64),
    }
