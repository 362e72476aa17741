"""The heads of every decoder layer: which there are, which are one, and what they say."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ...layers.heads import BoxHead, ContrastiveHead, pad_logits
from ..detector import GroundingDinoModelOutput
from .configuration_grounding_dino import AnyGroundingDinoConfig


def build_heads(config: AnyGroundingDinoConfig, epsilon: float) -> tuple[nn.ModuleList, nn.ModuleList]:
    """A box head, whose logit has this epsilon, and a class head for each decoder layer."""
    boxes = nn.ModuleList(BoxHead(config.d_model, epsilon, config.clamps_apart) for _ in range(config.decoder_layers))
    classes = nn.ModuleList(ContrastiveHead(config.biased_class_heads) for _ in range(config.decoder_layers))
    return boxes, classes


def refuse_untied_heads(model: PreTrainedModel, missing_keys: set[str]) -> None:
    """Refuse a checkpoint with different heads where its configuration shares them.

    Args:
        model: the detector, with what the checkpoint holds.
        missing_keys: what it does not hold.

    Raises:
        ValueError: naming the tensors and the flag.
    """
    for target, source in model.get_expanded_tied_weights_keys().items():
        if target in missing_keys or source in missing_keys:
            continue
        if not torch.equal(model.get_parameter(target), model.get_parameter(source)):
            flag = "decoder_bbox_embed_share" if "bbox_embed" in target else "decoder_cls_embed_share"
            raise ValueError(
                f"The checkpoint holds different values for {source} and {target}, but its configuration has"
                f" `{flag}=True`: set `{flag}` to False in config.json."
            )


def tied_heads(config: AnyGroundingDinoConfig) -> dict[str, str]:
    """Which parameters are one tensor, as `{pattern of the copy: source}`; the names are those of transformers."""
    tied = {}
    if config.decoder_bbox_embed_share and config.decoder_layers > 1:
        tied[r"bbox_embed.(?![0])\d+"] = "bbox_embed.0"
    tied["model.decoder.bbox_embed"] = "bbox_embed"
    if config.biased_class_heads:
        if config.decoder_cls_embed_share and config.decoder_layers > 1:
            tied[r"class_embed.(?![0])\d+"] = "class_embed.0"
        tied["model.decoder.class_embed"] = "class_embed"
    return tied


class HeadInputs(NamedTuple):
    """What the heads read, K decoder layers of it.

    hidden_BKQD: normed queries after each layer.
    references_BKQ4: the box that each layer's prediction starts from.
    query_mask_BQ: False on queries that are not real; None: all are.
    text_BTD, may_attend_BT: the enhanced words, and which of them are no padding.
    """

    hidden_BKQD: Tensor
    references_BKQ4: Tensor
    query_mask_BQ: Tensor | None
    text_BTD: Tensor
    may_attend_BT: Tensor


def head_inputs(output: GroundingDinoModelOutput, may_attend_BT: Tensor) -> HeadInputs:
    """What the heads read of the base model's output.

    Args:
        may_attend_BT: True on tokens, False on padding.
    """
    first, after = output.init_reference_points, output.intermediate_reference_points
    hidden, text = output.intermediate_hidden_states, output.encoder_last_hidden_state_text
    assert first is not None and after is not None and hidden is not None and text is not None
    references_BKQ4 = torch.cat([first[:, None], after[:, :-1]], 1)
    return HeadInputs(hidden, references_BKQ4, output.query_mask, text, may_attend_BT)


def predict_layers(
    layers: Sequence[int], box_heads: nn.ModuleList, class_heads: nn.ModuleList, inputs: HeadInputs, width: int = 0
) -> list[dict[str, Tensor]]:
    """What the heads say after each of some layers.

    Args:
        width: the least width of the logits; 0 for T, whatever it is.

    Returns:
        `logits (B, Q, T)`, -inf on padding and on empty queries, and `pred_boxes (B, Q, 4)` of each layer.
    """
    predictions = []
    for i in layers:
        box_head, hidden_BQD = box_heads[i], inputs.hidden_BKQD[:, i]
        assert isinstance(box_head, BoxHead)
        logits = class_heads[i](hidden_BQD, inputs.text_BTD, inputs.may_attend_BT[:, None, None])
        if inputs.query_mask_BQ is not None:
            logits = logits.masked_fill(inputs.query_mask_BQ.logical_not()[..., None], -torch.inf)
        boxes = box_head.refine(hidden_BQD, inputs.references_BKQ4[:, i])
        predictions.append({"logits": pad_logits(logits, width) if width else logits, "pred_boxes": boxes})
    return predictions
