"""How a detector is asked, and how its answer is read: labels, captions, phrases of a caption, referring expressions.

A prompt is a value. `find` asks the prompts of one kind about a batch of encoded images, a prompt an image; the batch
changes no answer. Results are `Detections`: `scores (k,)` falling, `boxes (k, 4)` xyxy in pixels of the image,
`labels (k,)`, and `text_labels`, a list of k strings.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol, Self, TypeVar

import torch
from torch import Tensor

from ..layers.context import Size
from ..layers.encoded_image import EncodedImage
from ..models.grounding_dino.modeling_grounding_dino import GroundingDinoForObjectDetection
from ..processing.closed_vocabulary import doubts
from ..processing.defaults import DEFAULTS, PostProcessing
from ..processing.post_processing import (
    Detections,
    boxes_in_image,
    class_detections,
    image_sizes,
    warn_of_broken,
    without_overlaps,
)
from ..processing.processing_grounding_dino import GroundingDinoProcessor
from ..processing.prompts import EncodedPrompt, Span, closed_caption, encode_caption, span_token_mask
from .large_vocabulary import Chunking, LabelPrompts

Key = TypeVar("Key", bound=Hashable)
Spans = tuple[Span, ...]

_LISTS_KEPT = 16


class Prompt(Hashable, Protocol):
    """What is asked about an image."""

    @classmethod
    def find(
        cls,
        model: GroundingDinoForObjectDetection,
        processor: GroundingDinoProcessor,
        encoded: EncodedImage,
        sizes: Sequence[Size],
        prompts: Sequence[Self],
    ) -> list[Detections]:
        """What is found in each image.

        Args:
            model: in eval mode.
            processor: its processor.
            encoded: the images, from `model.encode_image`.
            sizes: (height, width) of each.
            prompts: of each.
        """
        ...


@dataclass(frozen=True)
class LabelPrompt:
    """Labels, however many; `labels` of a result are positions in the list.

    labels: what to look for; of none, nothing is found.
    post: which boxes are kept.
    chunking: how the list is divided between prompts; by default as `post.chunk_size` says.
    """

    labels: tuple[str, ...]
    post: PostProcessing = DEFAULTS
    chunking: Chunking | None = None

    @classmethod
    def find(
        cls,
        model: GroundingDinoForObjectDetection,
        processor: GroundingDinoProcessor,
        encoded: EncodedImage,
        sizes: Sequence[Size],
        prompts: Sequence[Self],
    ) -> list[Detections]:
        """As `Prompt.find`; images with the same labels run together."""
        found: list[Detections] = [{}] * len(prompts)
        for prompt, rows in grouped(prompts):
            own = encoded if len(rows) == len(prompts) else encoded.select(rows)
            for row, result in zip(rows, prompt._find(model, processor, own, [sizes[r] for r in rows]), strict=True):
                found[row] = result
        return found

    def _find(
        self,
        model: GroundingDinoForObjectDetection,
        processor: GroundingDinoProcessor,
        encoded: EncodedImage,
        sizes: Sequence[Size],
    ) -> list[Detections]:
        if not self.labels:
            none = torch.zeros(0)
            return [
                {"scores": none, "boxes": none.reshape(0, 4), "labels": none.long(), "text_labels": []} for _ in sizes
            ]
        post = self.post
        return self.texts(processor).detect(
            model,
            encoded,
            sizes,
            threshold=post.per_label(self.labels) if post.thresholds else post.threshold,
            top_k=post.top_k,
            scoring=post.scoring,
            nms_threshold=post.nms,
        )

    def texts(self, processor: GroundingDinoProcessor) -> LabelPrompts:
        """The labels divided between prompts and tokenized.

        Raises:
            ValueError: as `large_vocabulary.chunk_labels`.
        """
        return _label_prompts(self.labels, processor, self.chunking or Chunking(labels=self.post.chunk_size))

    def doubts(self, model: GroundingDinoForObjectDetection) -> list[str]:
        """What is to be said of words that the model was not trained on; see `closed_vocabulary.doubts`.

        Raises:
            ValueError: it was trained on no word of a label.
        """
        return doubts(model, self.labels)


@lru_cache(_LISTS_KEPT)
def _label_prompts(labels: tuple[str, ...], processor: GroundingDinoProcessor, chunking: Chunking) -> LabelPrompts:
    return LabelPrompts(labels, processor, chunking)


@dataclass(frozen=True)
class CaptionPrompt:
    """A sentence; a detection is called by the words that are found in it."""

    caption: str
    post: PostProcessing = DEFAULTS

    @classmethod
    def find(
        cls,
        model: GroundingDinoForObjectDetection,
        processor: GroundingDinoProcessor,
        encoded: EncodedImage,
        sizes: Sequence[Size],
        prompts: Sequence[Self],
    ) -> list[Detections]:
        """As `Prompt.find`."""
        found: list[Detections] = [{}] * len(prompts)
        for post, rows in grouped(prompt.post for prompt in prompts):
            own = encoded if len(rows) == len(prompts) else encoded.select(rows)
            inputs, outputs = _outputs(model, processor, own, [closed_caption(prompts[row].caption) for row in rows])
            results = processor.post_process_grounded_object_detection(
                outputs,
                inputs["input_ids"],
                threshold=post.threshold,
                text_threshold=post.text_threshold,
                target_sizes=[sizes[row] for row in rows],
            )
            for row, result in zip(rows, results, strict=True):
                order = result["scores"].argsort(descending=True, stable=True)
                ranked = {name: result[name][order] for name in ("scores", "boxes", "labels")}
                ranked["text_labels"] = [result["text_labels"][i] for i in order.tolist()]
                if post.nms is not None:
                    ranked = without_overlaps(ranked, post.nms)
                found[row] = {name: values[: post.top_k] for name, values in ranked.items()}
        return found

    def doubts(self, model: GroundingDinoForObjectDetection) -> list[str]:
        """As `LabelPrompt.doubts`."""
        return doubts(model, [self.caption])


@dataclass(frozen=True)
class PhrasePrompt:
    """Phrases of a caption, each of which scores as the mean of its tokens; `labels` are positions in `phrases`.

    caption: closed by a delimiter if it is not.
    phrases: for each phrase where the caption names it, as (start, end) characters.
    top_k: pairs of box and phrase that are kept, over all phrases together.
    """

    caption: str
    phrases: tuple[Spans, ...]
    top_k: int = 300

    @classmethod
    def find(
        cls,
        model: GroundingDinoForObjectDetection,
        processor: GroundingDinoProcessor,
        encoded: EncodedImage,
        sizes: Sequence[Size],
        prompts: Sequence[Self],
    ) -> list[Detections]:
        """As `Prompt.find`."""
        captions = [closed_caption(prompt.caption) for prompt in prompts]
        _, outputs = _outputs(model, processor, encoded, captions)
        warn_of_broken(outputs)
        tensors = image_sizes(sizes, len(sizes), outputs.pred_boxes.device)
        found = []
        for prompt, caption, logits_QT, boxes_Q4, size in zip(
            prompts, captions, outputs.logits, outputs.pred_boxes, tensors, strict=True
        ):
            tokens_PT = _phrase_tokens(encode_caption(caption, processor.tokenizer), prompt.phrases)
            tokens_PT = tokens_PT.to(logits_QT.device)
            probabilities_QT = logits_QT[:, : tokens_PT.shape[1]].float().sigmoid()
            # Nothing of another phrase has a part in the mean; a phrase without a token scores 0.
            scores_QP = (probabilities_QT @ tokens_PT.T) / tokens_PT.sum(1).clamp(min=1)
            scores, labels, queries = class_detections(
                scores_QP, threshold=-1.0, top_k=prompt.top_k, one_label_per_box=False
            )
            words = [" ".join(caption[start:end] for start, end in spans) for spans in prompt.phrases]
            boxes = boxes_in_image(boxes_Q4[queries], size)
            names = [words[label] for label in labels.tolist()]
            found.append({"scores": scores, "boxes": boxes, "labels": labels, "text_labels": names})
        return found


def _phrase_tokens(prompt: EncodedPrompt, phrases: Sequence[Spans]) -> Tensor:
    """Which tokens each phrase takes, float32 (P, T)."""
    masks_PT = torch.zeros(len(phrases), len(prompt.input_ids))
    for phrase, spans in enumerate(phrases):
        for span in spans:
            # Characters that the tokenizer drops have no token.
            if any(start < span[1] and end > span[0] for start, end in prompt.char_spans):
                masks_PT[phrase][span_token_mask(prompt, [span])] = 1
    return masks_PT


@dataclass(frozen=True)
class ReferringPrompt:
    """A whole sentence that refers to things; a box scores as its best token, and all `labels` are 0."""

    sentence: str
    top_k: int = 30

    @classmethod
    def find(
        cls,
        model: GroundingDinoForObjectDetection,
        processor: GroundingDinoProcessor,
        encoded: EncodedImage,
        sizes: Sequence[Size],
        prompts: Sequence[Self],
    ) -> list[Detections]:
        """As `Prompt.find`."""
        _, outputs = _outputs(model, processor, encoded, [closed_caption(prompt.sentence) for prompt in prompts])
        most = max(prompt.top_k for prompt in prompts)
        results = processor.post_process_referring(outputs, target_sizes=list(sizes), top_k=most)
        found = []
        for prompt, result in zip(prompts, results, strict=True):
            scores, boxes = result["scores"][: prompt.top_k], result["boxes"][: prompt.top_k]
            labels = torch.zeros(len(scores), dtype=torch.int64, device=scores.device)
            names = [prompt.sentence] * len(scores)
            found.append({"scores": scores, "boxes": boxes, "labels": labels, "text_labels": names})
        return found


def prompt_of(
    labels: Sequence[str] | None = None, caption: str | None = None, post: PostProcessing = DEFAULTS
) -> LabelPrompt | CaptionPrompt:
    """The prompt for labels or for a caption, whichever is given.

    Raises:
        ValueError: none or both are given.
    """
    if (labels is None) == (caption is None):
        raise ValueError("Give either labels or a caption.")
    return CaptionPrompt(str(caption), post) if labels is None else LabelPrompt(tuple(labels), post)


def grouped(keys: Iterable[Key]) -> list[tuple[Key, list[int]]]:
    """The positions of each key."""
    groups: dict[Key, list[int]] = {}
    for row, key in enumerate(keys):
        groups.setdefault(key, []).append(row)
    return list(groups.items())


def _outputs(
    model: GroundingDinoForObjectDetection,
    processor: GroundingDinoProcessor,
    encoded: EncodedImage,
    captions: Sequence[str],
) -> tuple[Any, Any]:
    """What the processor makes of closed captions, one an image, and what the model says to them."""
    inputs = processor(text=list(captions)).to(model.device)
    return inputs, model(**inputs, encoded_image=encoded)
