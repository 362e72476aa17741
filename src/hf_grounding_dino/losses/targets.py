"""The ground truth of each image, checked: its boxes and the words each is called by."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

EDGE_TOLERANCE = 1e-3


class Targets(NamedTuple):
    """One image: boxes (cx, cy, w, h) in [0, 1] of the un-padded image, and True on the tokens each is called by.

    phrases_G: the phrase of the prompt in which the first of these tokens lies.
    noise_seed: where the image's denoising noise begins; None: wherever the global generator is.
    """

    boxes_G4: Tensor
    tokens_GT: Tensor
    phrases_G: Tensor
    noise_seed: int | None = None


def prepare_targets(labels: Sequence[Mapping[str, Any]], phrase_numbers_BT: Tensor) -> list[Targets]:
    """Check the labels of a batch and turn classes into tokens.

    Args:
        labels: a dict an image with `boxes (n, 4)` and either `class_labels (n,)`, which phrase of the prompt each
            box is, or `token_mask (n, T)`, which tokens it is called by; and, if it likes, an int `noise_seed`, from
            which all noise of its denoising queries follows.
        phrase_numbers_BT: see `prompts.phrase_numbers`.

    Raises:
        ValueError: anything malformed, naming the image and the box.
    """
    if len(labels) != len(phrase_numbers_BT):
        raise ValueError(f"`labels` describe {len(labels)} images, the batch holds {len(phrase_numbers_BT)}.")
    return [
        _image_targets(_ImageName(i, label.get("image_id")), label, phrase_numbers_BT[i])
        for i, label in enumerate(labels)
    ]


def _image_targets(name: _ImageName, label: Mapping[str, Any], numbers_T: Tensor) -> Targets:
    boxes_G4, tokens_GT = _boxes_and_tokens(name, label, numbers_T)
    first_G = tokens_GT.long().argmax(1)
    return Targets(boxes_G4, tokens_GT, numbers_T[first_G], _noise_seed(name, label.get("noise_seed")))


def _noise_seed(name: _ImageName, seed: Any) -> int | None:
    if seed is None:
        return None
    try:
        return operator.index(seed) % 2**63
    except TypeError:
        raise ValueError(f"{name}: `noise_seed` must be an integer, not {seed!r}.") from None


class _ImageName(NamedTuple):
    """What an error calls an image; read only then, as the id may lie on a device."""

    number: int
    image_id: Any

    def __str__(self) -> str:
        """The image's number in the batch, and its id where it has one."""
        image_id = self.image_id
        if isinstance(image_id, Tensor) and image_id.numel() == 1:
            image_id = image_id.item()
        return f"Image {self.number}" if image_id is None else f"Image {self.number} (image_id {image_id})"


def _boxes_and_tokens(name: _ImageName, label: Mapping[str, Any], numbers_T: Tensor) -> tuple[Tensor, Tensor]:
    device = numbers_T.device
    if "boxes" not in label:
        raise ValueError(f"{name}: the label has no `boxes`, only {sorted(label)}.")
    boxes = torch.as_tensor(label["boxes"], device=device, dtype=torch.float32)
    if boxes.numel() == 0:
        boxes = boxes.reshape(0, 4)
    if boxes.ndim != 2 or boxes.shape[1] != 4:
        raise ValueError(f"{name}: `boxes` must be (n, 4), not {tuple(boxes.shape)}.")
    _check_boxes(name, boxes)
    if ("class_labels" in label) == ("token_mask" in label):
        raise ValueError(f"{name}: give either `class_labels` or `token_mask`.")
    if "token_mask" in label:
        return boxes, _check_token_mask(name, label["token_mask"], boxes, numbers_T)
    classes = torch.as_tensor(label["class_labels"], device=device)
    if classes.shape != boxes.shape[:1]:
        raise ValueError(f"{name}: `class_labels` must be ({len(boxes)},), not {tuple(classes.shape)}.")
    if len(classes) and (classes.is_floating_point() or classes.dtype == torch.bool):
        raise ValueError(f"{name}: `class_labels` must be integers, not {classes.dtype}.")
    num_phrases = int(numbers_T.max()) + 1
    _refuse(
        name, (classes < 0) | (classes >= num_phrases), classes, f"is no phrase of the prompt, which has {num_phrases}"
    )
    return boxes, numbers_T == classes[:, None]


def _check_boxes(name: _ImageName, boxes: Tensor) -> None:
    _refuse(name, ~boxes.isfinite().all(1), boxes, "is not finite")
    outside = (boxes < -EDGE_TOLERANCE) | (boxes > 1 + EDGE_TOLERANCE)
    _refuse(name, outside.any(1), boxes, "is not (cx, cy, w, h) in [0, 1]; boxes in pixels must be divided by the size")
    _refuse(name, (boxes[:, 2:] <= 0).any(1), boxes, "has no area (w and h must be positive)")


def _check_token_mask(name: _ImageName, mask: Any, boxes: Tensor, numbers_T: Tensor) -> Tensor:
    token_mask = torch.as_tensor(mask, device=numbers_T.device)
    if token_mask.ndim != 2 or len(token_mask) != len(boxes) or token_mask.shape[1] > len(numbers_T):
        raise ValueError(
            f"{name}: `token_mask` must be ({len(boxes)}, {len(numbers_T)}), not {tuple(token_mask.shape)}."
        )
    if token_mask.is_floating_point():
        raise ValueError(f"{name}: `token_mask` must be boolean, not {token_mask.dtype}.")
    tokens_GT = torch.nn.functional.pad(token_mask.bool(), (0, len(numbers_T) - token_mask.shape[1]))
    _refuse(name, ~tokens_GT.any(1), boxes, "is called by no token")
    _refuse(name, (tokens_GT & (numbers_T < 0)).any(1), boxes, "is called by a token outside every phrase")
    return tokens_GT


def _refuse(name: _ImageName, wrong_G: Tensor, values: Tensor, reason: str) -> None:
    if bool(wrong_G.any()):
        index = int(wrong_G.nonzero()[0])
        raise ValueError(f"{name}, box {index}: {values[index].tolist()} {reason}.")
