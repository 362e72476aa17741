"""What one pass through the network has found, under the names of transformers."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from ...layers.context import ImageContext
from ...layers.heads import pad_logits
from ..detector import GroundingDinoModelOutput
from .decoder import DecoderOutput
from .feature_enhancer import EnhancerOutput
from .query_selection import EncoderProposals, grid_proposals


def hidden_states(
    enhanced: EnhancerOutput,
    proposals: EncoderProposals,
    decoded: DecoderOutput,
    image: ImageContext,
    norm: nn.Module,
    box_head: nn.Module,
) -> dict[str, Any]:
    """What the output holds with `output_hidden_states`, by name.

    Args:
        norm: of the decoder's states.
        box_head: of the encoder's proposals.
    """
    offsets_BS4 = box_head(proposals.features_BSD).float()
    return {
        "decoder_hidden_states": (norm(proposals.content_BQD), *decoded.hidden),
        "encoder_vision_hidden_states": enhanced.image_states,
        "encoder_text_hidden_states": enhanced.text_states,
        "enc_outputs_class": proposals.all_logits_BST,
        "enc_outputs_coord_logits": offsets_BS4 + torch.special.logit(grid_proposals(image).boxes_BS4),
    }


def model_output(
    enhanced: EnhancerOutput,
    proposals: EncoderProposals,
    decoded: DecoderOutput,
    denoised: DecoderOutput | None,
    width: int,
    **on_demand: Any,
) -> GroundingDinoModelOutput:
    """The output of the base model.

    Args:
        denoised: of the denoising queries, in training with them; `decoded` is of the matching queries alone.
        width: the least width of the logits.
        **on_demand: the fields that a call has asked for.
    """
    if denoised is not None:
        on_demand["denoising_hidden_states"] = torch.stack(denoised.hidden, 1)
        on_demand["denoising_reference_points"] = torch.stack(denoised.references, 1)
    if enhanced.weights:  # a tuple of layers for each kind, as transformers orders them
        on_demand["encoder_attentions"] = tuple(zip(*enhanced.weights, strict=True))
        on_demand["decoder_attentions"] = tuple(zip(*decoded.weights, strict=True))
    if "enc_outputs_class" in on_demand:
        on_demand["enc_outputs_class"] = pad_logits(on_demand["enc_outputs_class"], width)
    may_attend_B11Q = proposals.may_attend_B11Q
    return GroundingDinoModelOutput(
        last_hidden_state=decoded.hidden[-1],
        init_reference_points=decoded.references[0],
        intermediate_hidden_states=torch.stack(decoded.hidden, 1),
        intermediate_reference_points=torch.stack(decoded.refined, 1),
        encoder_last_hidden_state_vision=enhanced.image_BSD,
        encoder_last_hidden_state_text=enhanced.text_BTD,
        encoder_logits=pad_logits(proposals.logits_BQT, width),
        encoder_pred_boxes=proposals.boxes_BQ4,
        query_mask=None if may_attend_B11Q is None else may_attend_B11Q[:, 0, 0],
        **on_demand,
    )
