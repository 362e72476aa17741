"""What a training step asks of a model's predictions, and the loss of what it gets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ...losses.criterion import Predictions, count_boxes, grounding_loss
from ...losses.denoising import Denoising, NoisedQueries, denoising_loss
from ...losses.targets import Targets, prepare_targets
from ...processing.prompts import phrase_numbers
from ..detector import GroundingDinoModelOutput
from .configuration_grounding_dino import AnyGroundingDinoConfig
from .decoder import HeadInputs, predict_layers
from .encoded_image import Prompt


class Lesson(NamedTuple):
    """What a batch teaches: the targets of its images, and its denoising queries when training with them."""

    targets: list[Targets]
    noised: NoisedQueries | None


@torch.compiler.disable(reason="labels are checked on the host: compile without `fullgraph` to give `labels`")
def prepare_lesson(
    labels: Sequence[Mapping[str, Any]],
    input_ids: Tensor | None,
    config: AnyGroundingDinoConfig,
    denoising: Denoising | None,
) -> Lesson:
    """Check the labels, and noise their boxes where there is a label table that is in training.

    Raises:
        ValueError: malformed labels, naming the image and the box; or there are no `input_ids`.
    """
    numbers_BT = phrase_numbers(Prompt.of(input_ids, None, None).input_ids, config.phrase_boundary_token_ids)
    targets = prepare_targets(labels, numbers_BT)
    return Lesson(targets, None if denoising is None or not denoising.training else denoising(targets))


@torch.compiler.disable(reason="boxes are matched on the host: compile without `fullgraph` to give `labels`")
def lesson_loss(
    lesson: Lesson,
    predictions: Predictions,
    output: GroundingDinoModelOutput,
    may_attend_BT: Tensor,
    heads: tuple[nn.ModuleList, nn.ModuleList],
    config: AnyGroundingDinoConfig,
    num_boxes: Tensor | float | None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss of all decoder layers, of the first stage and of the denoising queries, with its terms by name.

    Args:
        predictions: of every decoder layer.
        output: of the base model.
        may_attend_BT: True on tokens, False on padding.
        heads: for boxes and for classes, see `predict_layers`.
        num_boxes: what everything is divided by; None: `count_boxes` of this batch.
    """
    logits, boxes, text = output.encoder_logits, output.encoder_pred_boxes, output.encoder_last_hidden_state_text
    assert logits is not None and boxes is not None and text is not None
    count = count_boxes(lesson.targets, boxes.device) if num_boxes is None else torch.as_tensor(num_boxes)
    every_set = Predictions(
        torch.cat([predictions.logits_KBQT, logits[None, ..., : text.shape[1]]]),
        torch.cat([predictions.boxes_KBQ4, boxes[None]]),
    )
    total, terms = grounding_loss(every_set, lesson.targets, config.loss_weights, config.focal_alpha, count)
    hidden, references, noised = output.denoising_hidden_states, output.denoising_reference_points, lesson.noised
    if hidden is None or references is None or noised is None:
        return total, terms
    inputs = HeadInputs(hidden, references, noised.mask_BN, text, may_attend_BT)
    denoised = Predictions(*predict_layers(range(config.decoder_layers), *heads, inputs))
    extra, extra_terms = denoising_loss(denoised, noised, config.loss_weights, config.focal_alpha, count)
    return total + extra, terms | extra_terms
