"""Any number of labels on one image: prompts of whole labels, one pass of the image backbone, one ranking."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, NamedTuple, get_args

import torch
from transformers import PreTrainedTokenizerBase
from transformers.image_utils import ChannelDimension

from ..layers.encoded_image import EncodedImage
from ..models.grounding_dino.modeling_grounding_dino import GroundingDinoForObjectDetection
from ..processing.defaults import Scoring
from ..processing.image_processing_grounding_dino import read_images
from ..processing.post_processing import Detections, checked_top_k, without_overlaps
from ..processing.processing_grounding_dino import GroundingDinoProcessor
from ..processing.prompts import NO_PHRASE, encode_labels, label_list, phrase_numbers, quoted, special_token_ids
from ..processing.thresholds import above_thresholds

PROMPT_TOKENS = 256
"""How many tokens a prompt has at most in the training of the family's checkpoints."""

_ENDS = 2  # [CLS] and [SEP]


def chunk_labels(
    labels: Iterable[str],
    tokenizer: PreTrainedTokenizerBase,
    max_tokens: int | None = PROMPT_TOKENS,
    max_labels: int | None = None,
) -> list[slice]:
    """Cut a list of labels into prompts of whole labels, in order, each as long as the limits let it be.

    Args:
        labels: what to look for.
        tokenizer: the tokenizer of the processor.
        max_tokens: the most tokens of a prompt, with everything the processor adds; None: no limit.
        max_labels: the most labels of a prompt; None: no limit.

    Returns:
        Slices of `labels`; joined they are the whole list.

    Raises:
        ValueError: a label is too long to be a prompt by itself, a limit is less than 1, or as `encode_labels`.
    """
    labels = label_list(labels)
    for name, limit in (("max_tokens", max_tokens), ("max_labels", max_labels)):
        if limit is not None and limit < 1:
            raise ValueError(f"{name}={limit}: give 1 or more, or None for no limit.")
    room = float("inf") if max_tokens is None else max_tokens - _ENDS
    starts, used = [0], 0
    for i, tokens in enumerate(_label_tokens(labels, tokenizer)):
        if tokens > room:
            raise ValueError(
                f"Label {i} ({quoted(labels[i])}) needs {tokens + _ENDS} tokens alone, more than {max_tokens}."
            )
        if used + tokens > room or i - starts[-1] == max_labels:
            starts.append(i)
            used = 0
        used += tokens
    return [slice(start, end) for start, end in zip(starts, [*starts[1:], len(labels)], strict=True)]


def _label_tokens(labels: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """How many tokens each label takes in a prompt, its delimiter among them."""
    ids = torch.tensor([encode_labels(labels, tokenizer).input_ids])
    numbers = phrase_numbers(ids, special_token_ids(tokenizer))[0]
    counts: list[int] = (numbers[numbers != NO_PHRASE].bincount(minlength=len(labels)) + 1).tolist()
    return counts


class Chunking(NamedTuple):
    """How a long list of labels is divided between prompts.

    tokens: the most tokens of a prompt; None for one prompt of all labels, however long.
    labels: the most labels of a prompt, as the papers count; None for no limit but `tokens`.
    batch: how many prompts of each image run at a time.
    each_ranked: let each prompt keep the best detections of its own, instead of all prompts in one ranking.
    """

    tokens: int | None = PROMPT_TOKENS
    labels: int | None = None
    batch: int = 4
    each_ranked: bool = False


_BY_TOKENS = Chunking()


class LabelPrompts:
    """A list of labels as prompts of whole labels, tokenized once, to be asked of any images.

    Attributes:
        labels: what is looked for, in order.
    """

    def __init__(
        self, labels: Iterable[str], processor: GroundingDinoProcessor, chunking: Chunking = _BY_TOKENS
    ) -> None:
        """Divide the labels.

        Raises:
            ValueError: as `chunk_labels`; or `chunking.batch` is less than 1.
        """
        if chunking.batch < 1:
            raise ValueError(f"chunking.batch={chunking.batch}: give 1 or more.")
        self.labels: list[str] = label_list(labels)
        self._processor, self._each_ranked = processor, chunking.each_ranked
        chunks = chunk_labels(self.labels, processor.tokenizer, chunking.tokens, chunking.labels)
        self._groups = [chunks[first : first + chunking.batch] for first in range(0, len(chunks), chunking.batch)]
        self._words = [processor(text=[self.labels[chunk] for chunk in group]) for group in self._groups]

    def detect(
        self,
        model: GroundingDinoForObjectDetection,
        encoded: EncodedImage,
        sizes: Sequence[tuple[int, int]],
        *,
        threshold: float | Sequence[float] = 0.0,
        top_k: int | None = 300,
        scoring: Scoring = "mean",
        nms_threshold: float | None = None,
        one_label_per_box: bool = False,
    ) -> list[Detections]:
        """What is found in each image: options and results are those of the function `detect`.

        Args:
            model: the detector, in eval mode.
            encoded: what `model.encode_image` made of the images.
            sizes: (height, width) of each, in pixels.
            threshold: one for all labels, or one for each.
            top_k: counted once the thresholds and the suppression of overlaps have been applied.
        """
        least = [threshold] if isinstance(threshold, int | float) else list(threshold)
        # Boxes that compete with no others than those of their own score need not leave the device.
        ranked_alone = self._each_ranked or (nms_threshold is None and len(set(least)) == 1)
        found = self._each_prompt(
            model, encoded, sizes, scoring, min(least), top_k if ranked_alone else None, one_label_per_box
        )
        if self._each_ranked:
            found = [[_merge([part], top_k) for part in parts] for parts in found]
            top_k = None
        results = []
        for parts in found:
            merged = _merge(parts, top_k if ranked_alone else None)
            if len(set(least)) > 1:
                merged = above_thresholds(merged, least)
            if nms_threshold is not None:
                merged = without_overlaps(merged, nms_threshold)
            results.append(merged if top_k is None else {name: values[:top_k] for name, values in merged.items()})
        return results

    def _each_prompt(
        self,
        model: GroundingDinoForObjectDetection,
        encoded: EncodedImage,
        sizes: Sequence[tuple[int, int]],
        scoring: Scoring,
        threshold: float,
        top_k: int | None,
        one_label_per_box: bool,
    ) -> list[list[Detections]]:
        """What each prompt finds in each image."""
        if scoring not in get_args(Scoring):
            raise ValueError(f"scoring={scoring!r}: one of {', '.join(map(repr, get_args(Scoring)))} is possible.")
        post_process: Callable[..., list[Detections]] = self._processor.post_process_grounded_object_detection
        if scoring == "mean":
            post_process = partial(
                self._processor.post_process_object_detection, top_k=top_k, one_label_per_box=one_label_per_box
            )
        found: list[list[Detections]] = [[] for _ in sizes]
        for group, words in zip(self._groups, self._words, strict=True):
            inputs = {name: ids.repeat(len(sizes), 1).to(model.device) for name, ids in words.items()}
            with torch.no_grad():
                outputs = model(**inputs, encoded_image=encoded.repeat(len(group)))
            results = post_process(
                outputs,
                threshold=threshold,
                text_labels=[self.labels[chunk] for chunk in group] * len(sizes),
                target_sizes=[size for size in sizes for _ in group],
            )
            for row, result in enumerate(results):
                start = group[row % len(group)].start
                found[row // len(group)].append({**result, "labels": result["labels"] + start})
        return found


def detect(
    model: GroundingDinoForObjectDetection,
    processor: GroundingDinoProcessor,
    images: Any,
    labels: Iterable[str],
    *,
    threshold: float | Sequence[float] = 0.0,
    top_k: int | None = 300,
    scoring: Scoring = "mean",
    chunking: Chunking = _BY_TOKENS,
    nms_threshold: float | None = None,
    one_label_per_box: bool = False,
) -> list[Detections]:
    """Find any number of labels in images.

    More labels than one prompt holds are divided between prompts, never inside a label. The image backbone runs once
    for all of them, and all compete in one ranking unless `chunking.each_ranked`. Where one prompt holds all, this
    equals the model and the processor called one after the other.

    Args:
        model: the detector, where it is to run, in eval mode.
        processor: its processor.
        images: images as the processor takes them, one or a list.
        labels: what to look for, in all of them.
        threshold: the least score, exclusive; one for all labels, or one for each.
        top_k: how many detections to keep of each image, or of each of its prompts; None keeps all.
        scoring: "mean", as the benchmarks have it: a pair of box and class scores as the mean of its tokens. "max",
            as demonstrations have it: each box has its best class alone, and scores as the best token.
        chunking: how many labels a prompt holds, how many prompts run together, and whether they compete.
        nms_threshold: of two boxes of one class that overlap by more (IoU), keep the better; off by default.
        one_label_per_box: leave each box of a prompt its best class only; always so for "max".

    Returns:
        For each image, by falling score: `scores (k,)`, `boxes (k, 4)` as (x0, y0, x1, y1) in pixels, clipped to the
        image, `text_labels` a list of k strings, and `labels (k,)`, indices into `labels`.

    Raises:
        ValueError: as `chunk_labels`; an image cannot be read; or an option is out of its range.
    """
    checked_top_k(top_k)
    prompts = LabelPrompts(labels, processor, chunking)
    pixels = read_images(images)
    inputs = processor.image_processor(pixels, input_data_format=ChannelDimension.FIRST).to(model.device)
    with torch.no_grad():
        encoded = model.encode_image(**inputs)
    return prompts.detect(
        model,
        encoded,
        [(image.shape[1], image.shape[2]) for image in pixels],
        threshold=threshold,
        top_k=top_k,
        scoring=scoring,
        nms_threshold=nms_threshold,
        one_label_per_box=one_label_per_box,
    )


def _merge(parts: Sequence[Detections], top_k: int | None) -> Detections:
    """One ranking of what the prompts of an image found."""
    scores = torch.cat([part["scores"] for part in parts])
    # Stable, so that a single prompt keeps the order that the processor gave it.
    order = scores.argsort(descending=True, stable=True)[:top_k]
    names = [name for part in parts for name in part["text_labels"]]
    return {
        "scores": scores[order],
        "boxes": torch.cat([part["boxes"] for part in parts])[order],
        "text_labels": [names[i] for i in order.tolist()],
        "labels": torch.cat([part["labels"] for part in parts])[order],
    }
