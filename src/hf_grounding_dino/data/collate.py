"""From images with prompts and boxes to the batches that a model trains on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torchvision.ops import box_convert

from ..processing.processing_grounding_dino import GroundingDinoProcessor
from ..processing.prompts import closed_caption, encode_prompt, span_token_mask


class Labels(list[dict[str, Any]]):
    """One label an image, whose boxes `transformers.Trainer` can count for a step of several batches."""

    def ne(self, ignored: int) -> Tensor:
        """One True a box: what `Trainer` calls to count the items of a batch, `labels.ne(-100).sum()`."""
        return torch.ones(sum(len(label["boxes"]) for label in self), dtype=torch.bool)


class GroundingCollator:
    """Make a batch of items, each a dict with `image` (PIL), `text` (labels or a sentence), `boxes` and their words.

    `boxes` is `(n, 4)`, a tensor or lists, xyxy in pixels of the image as it lies in memory (as the processor takes
    it, EXIF or not); `class_labels` says which label of the text each is, or `spans` at which characters of the
    sentence it is named, one or more (start, end) a box. An item's `image_id` and `noise_seed`, where it has them, are
    in its label.
    """

    def __init__(self, processor: GroundingDinoProcessor, *, resize: bool = True) -> None:
        """Use the processor that the model is shipped with, so that training sees what inference sees.

        Args:
            processor: of the model.
            resize: False where the images have the size to train at already.
        """
        self.processor = processor
        self.resize = resize

    def __call__(self, items: Sequence[Any]) -> dict[str, Any]:
        """Inputs of the model with `labels`, boxes relative to each image."""
        texts = [closed_caption(item["text"]) if isinstance(item["text"], str) else item["text"] for item in items]
        options = {} if self.resize else {"do_resize": False}
        batch = dict(self.processor(images=[item["image"] for item in items], text=texts, **options))
        batch["labels"] = Labels(self._label(i, item, batch["input_ids"].shape[1]) for i, item in enumerate(items))
        return batch

    def _label(self, number: int, item: Any, num_tokens: int) -> dict[str, Any]:
        width, height = item["image"].size
        corners = torch.as_tensor(item["boxes"], dtype=torch.float32).reshape(-1, 4)
        boxes = box_convert(corners / torch.tensor([width, height, width, height]), "xyxy", "cxcywh")
        image_id = item.get("image_id", number)
        label: dict[str, Any] = {"boxes": boxes}
        # `Trainer.predict` gathers tensors alone.
        label["image_id"] = torch.tensor(image_id) if isinstance(image_id, int) else image_id
        if "class_labels" in item:
            label["class_labels"] = torch.as_tensor(item["class_labels"], dtype=torch.int64)
        else:
            label["token_mask"] = self._token_mask(item["text"], item["spans"], num_tokens)
        if "noise_seed" in item:
            label["noise_seed"] = item["noise_seed"]
        return label

    def _token_mask(self, caption: str, spans: Sequence[Sequence[tuple[int, int]]], num_tokens: int) -> Tensor:
        prompt = encode_prompt(caption, self.processor.tokenizer)
        mask = torch.zeros(len(spans), num_tokens, dtype=torch.bool)
        for row, box_spans in zip(mask, spans, strict=True):
            row[: len(prompt.input_ids)] = span_token_mask(prompt, box_spans)
        return mask
