"""From the numbers of the model to scored, labelled boxes: the three readings the family is used with.

Everything here takes the outputs of one image, already without the padding of its prompt, and loops over no box.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchvision.ops import batched_nms, box_convert

from ..utils.printable import warn_once
from .prompts import EncodedPrompt, caption_words, phrase_scores

logger = logging.getLogger(__name__)

Detections = dict[str, Any]
_NOT_FINITE = (
    "the model gives scores or boxes that are not finite, which are not found: its weights are broken, or too large for"
    " this dtype"
)


def warn_of_broken(outputs: Any) -> None:
    """Say in the log, once, that a model gave numbers that are not finite: no threshold lets them through.

    Args:
        outputs: what the model gave: `logits`, -inf where there is no token or no query, and `pred_boxes`.
    """
    extremes = [values.float().amax() for values in (outputs.logits, outputs.pred_boxes) if values.numel()]
    if extremes and not (torch.stack(extremes) < torch.inf).all():  # NaN is not
        warn_once(logger, _NOT_FINITE)


def image_sizes(target_sizes: Any, num_images: int, device: torch.device) -> list[Tensor | None]:
    """The `(height, width)` of each image as a float32 tensor, or None for each where no sizes are given.

    Args:
        target_sizes: pairs (height, width), or a tensor `(n, 2)`, or None.
        num_images: how many images the outputs hold.
        device: where the boxes are.

    Raises:
        ValueError: not one pair for each image.
    """
    if target_sizes is None:
        return [None] * num_images
    expected = f"target_sizes is one (height, width) for each of {num_images} images"
    if not isinstance(target_sizes, Tensor):
        try:
            target_sizes = torch.tensor([[float(side) for side in size] for size in target_sizes])
        except (TypeError, ValueError):
            raise ValueError(f"{expected}, not {target_sizes!r}.") from None
    if tuple(target_sizes.shape) != (num_images, 2):
        raise ValueError(f"{expected}, not of shape {tuple(target_sizes.shape)}.")
    return list(target_sizes.to(device, torch.float32))


def checked_top_k(top_k: int | None, least: int = 1) -> int | None:
    """`top_k` itself.

    Raises:
        ValueError: it is neither None nor a whole number of at least `least`.
    """
    if top_k is not None and (not isinstance(top_k, (int, np.integer)) or top_k < least):
        raise ValueError(f"top_k={top_k!r}: give a whole number from {least} on, or None for all.")
    return top_k


def names_per_image(text_labels: Any, num_images: int) -> list[list[str] | None]:
    """The names of the phrases of each image, None for each where none are given; a flat list serves all images.

    Raises:
        ValueError: neither one list nor one for each image.
    """
    if text_labels is None:
        return [None] * num_images
    if isinstance(text_labels, str):
        raise ValueError("text_labels is a list of labels, or one list an image, not a string.")
    if all(isinstance(label, str) for label in text_labels):
        return [list(text_labels)] * num_images
    if len(text_labels) != num_images:
        raise ValueError(f"{len(text_labels)} lists of text_labels for {num_images} images.")
    return [list(labels) for labels in text_labels]


def boxes_in_image(boxes_Q4: Tensor, size: Tensor | None) -> Tensor:
    """Boxes in corner form, float32, clipped to the image: in pixels, or in [0, 1] where `size` is None.

    Args:
        boxes_Q4: boxes in centre form, relative to the image.
        size: `(height, width)` of the image.
    """
    corners_Q4 = box_convert(boxes_Q4.float(), "cxcywh", "xyxy").clamp(0, 1)
    return corners_Q4 if size is None else corners_Q4 * size.flip(0).repeat(2)


def grounded_detections(
    probabilities_QT: Tensor, numbers_T: Tensor, num_phrases: int, threshold: float
) -> tuple[Tensor, Tensor, Tensor]:
    """The queries that score above `threshold`, in their order: `scores (K,)`, `labels (K,)`, `queries (K,)`.

    A query is called by its best phrase, and scores as the best token of that phrase.
    """
    if num_phrases == 0:
        none = torch.zeros(0, dtype=torch.int64, device=probabilities_QT.device)
        return probabilities_QT.new_zeros(0), none, none
    scores_Q, labels_Q = phrase_scores(probabilities_QT, numbers_T, num_phrases, "max").max(1)
    queries_K = (scores_Q > threshold).nonzero()[:, 0]
    return scores_Q[queries_K], labels_Q[queries_K], queries_K


def caption_labels(
    prompt: EncodedPrompt, probabilities_KT: Tensor, numbers_T: Tensor, labels_K: Tensor, text_threshold: float
) -> list[str]:
    """For each detection the words of its phrase that score above `text_threshold`, or all of the phrase."""
    probabilities_KT = probabilities_KT[:, : len(numbers_T)]
    counts_KT = (probabilities_KT > text_threshold) & (numbers_T == labels_K[:, None])
    phrase_and_tokens = torch.cat([labels_K[:, None], counts_KT.long()], 1)
    kinds, kind_K = torch.unique(phrase_and_tokens, dim=0, return_inverse=True)
    words = [caption_words(prompt, tokens) or prompt.phrases[phrase] for phrase, *tokens in kinds.tolist()]
    return [words[kind] for kind in kind_K.tolist()]


def class_detections(
    scores_QP: Tensor, *, threshold: float, top_k: int | None, one_label_per_box: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """The `top_k` pairs of query and class, best first: `scores (K,)`, `labels (K,)`, `queries (K,)`.

    Args:
        scores_QP: the score of each class at each query.
        threshold: the least score, exclusive, as everywhere.
        top_k: how many pairs to keep; None keeps all.
        one_label_per_box: let only the best class of each query take part.
    """
    num_phrases = max(scores_QP.shape[1], 1)
    candidates_QP = scores_QP > threshold
    if one_label_per_box and scores_QP.numel():
        best_QP = torch.zeros_like(candidates_QP).scatter_(1, scores_QP.argmax(1, keepdim=True), True)
        candidates_QP = candidates_QP & best_QP
    pairs_N = candidates_QP.flatten().nonzero()[:, 0]
    scores_N = scores_QP.flatten()[pairs_N]
    # Stable, so that equal scores come in the order of the queries on every device.
    order_K = scores_N.argsort(descending=True, stable=True)[: checked_top_k(top_k)]
    pairs_K = pairs_N[order_K]
    return scores_N[order_K], pairs_K % num_phrases, pairs_K // num_phrases


def without_overlaps(detections: Detections, nms_threshold: float) -> Detections:
    """Drop each box that a better one of the same class overlaps by more than `nms_threshold` (IoU).

    Raises:
        ValueError: `nms_threshold` is not from 0 to 1.
    """
    if not isinstance(nms_threshold, (int, float, np.number)) or not 0 <= nms_threshold <= 1:
        raise ValueError(f"nms_threshold={nms_threshold!r}: give a number from 0 to 1, or None for all boxes.")
    kept_K = batched_nms(detections["boxes"], detections["scores"], detections["labels"], nms_threshold)
    names: Sequence[str] = detections["text_labels"]
    return {
        "scores": detections["scores"][kept_K],
        "boxes": detections["boxes"][kept_K],
        "text_labels": [names[i] for i in kept_K.tolist()],
        "labels": detections["labels"][kept_K],
    }


def referring_detections(logits_QT: Tensor, top_k: int) -> tuple[Tensor, Tensor]:
    """The `top_k` queries that answer to any token of the sentence, best first: `scores (K,)`, `queries (K,)`."""
    scores_Q = logits_QT.float().sigmoid().amax(1)
    order_K = scores_Q.argsort(descending=True, stable=True)[: checked_top_k(top_k)]
    return scores_Q[order_K], order_K


def listed(found: Detections, size: tuple[int, int] | None = None) -> list[dict[str, Any]]:
    """Detections as the pipelines of transformers give them: `score`, `label`, and `box` in whole pixels.

    Args:
        found: `scores (K,)`, `boxes (K, 4)` xyxy, and `text_labels` where there are labels.
        size: (width, height) of the image, for boxes that may be in [0, 1].
    """
    boxes_K4, scores = found["boxes"], found["scores"].tolist()
    if size is not None and boxes_K4.numel() and boxes_K4.max() <= 1:
        boxes_K4 = boxes_K4 * boxes_K4.new_tensor(size).repeat(2)
    corners = ("xmin", "ymin", "xmax", "ymax")
    rows = zip(scores, found.get("text_labels") or [""] * len(scores), boxes_K4.int().tolist(), strict=True)
    return [{"score": s, "label": label, "box": dict(zip(corners, box, strict=True))} for s, label, box in rows]
