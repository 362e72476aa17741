"""Targets of a batch, and the loss of a model's outputs against them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...losses.criterion import Predictions, count_boxes, grounding_loss
from ...losses.denoising import Denoising, NoisedQueries, denoising_loss
from ...losses.targets import Targets
from ...losses.targets import prepare_targets as prepare_images
from ...processing.prompts import phrase_numbers
from ..detector import GroundingDinoObjectDetectionOutput, TextInputs
from .configuration_grounding_dino import AnyGroundingDinoConfig


class BatchTargets(NamedTuple):
    """The targets of a batch's images, and its denoising queries when training with them."""

    images: list[Targets]
    noised: NoisedQueries | None


@torch.compiler.disable(reason="labels are checked on the host: compile without `fullgraph` to give `labels`")
def prepare_targets(
    labels: Sequence[Mapping[str, Any]],
    input_ids: Tensor | None,
    config: AnyGroundingDinoConfig,
    denoising: Denoising | None,
) -> BatchTargets:
    """Check the labels, and noise their boxes where there is a label embedding that is in training.

    Raises:
        ValueError: malformed labels, naming the image and the box; or there are no `input_ids`.
    """
    numbers_BT = phrase_numbers(TextInputs.from_ids(input_ids).input_ids, config.phrase_boundary_token_ids)
    images = prepare_images(labels, numbers_BT)
    return BatchTargets(images, None if denoising is None or not denoising.training else denoising(images))


@torch.compiler.disable(reason="boxes are matched on the host: compile without `fullgraph` to give `labels`")
def compute_loss(
    outputs: GroundingDinoObjectDetectionOutput,
    targets: BatchTargets,
    config: AnyGroundingDinoConfig,
    num_boxes: Tensor | float | None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss of all decoder layers, of the encoder's proposals and of the denoising queries, with its terms by name.

    Args:
        outputs: with `auxiliary_outputs`, or the last layer alone is supervised.
        num_boxes: what everything is divided by; None: `count_boxes` of this batch.
    """
    last = {"logits": outputs.logits, "pred_boxes": outputs.pred_boxes}
    proposals = {"logits": outputs.encoder_logits, "pred_boxes": outputs.encoder_pred_boxes}
    length = targets.images[0].tokens_GT.shape[1]
    device = targets.images[0].boxes_G4.device
    count = count_boxes(targets.images, device) if num_boxes is None else torch.as_tensor(num_boxes)
    total, terms = grounding_loss(
        _stacked([*(outputs.auxiliary_outputs or ()), last, proposals], length),
        targets.images,
        config.loss_weights,
        config.focal_alpha,
        count,
    )
    if outputs.denoising_outputs is None or targets.noised is None:
        return total, terms
    denoised = _stacked(outputs.denoising_outputs, length)
    extra, extra_terms = denoising_loss(denoised, targets.noised, config.loss_weights, config.focal_alpha, count)
    return total + extra, terms | extra_terms


def _stacked(layers: Sequence[Mapping[str, Any]], length: int) -> Predictions:
    logits = torch.stack([layer["logits"][..., :length] for layer in layers])
    return Predictions(logits, torch.stack([layer["pred_boxes"] for layer in layers]))
