"""Words to features: any text encoder of transformers, each token seeing its own phrase alone."""

from __future__ import annotations

import inspect

import torch
from torch import Tensor, nn
from transformers import AutoModel, PretrainedConfig, PreTrainedModel


def build_text_backbone(config: PretrainedConfig) -> PreTrainedModel:
    """The text encoder, without the pooling layer that nothing here reads, where it has one."""
    try:
        model: PreTrainedModel = AutoModel.from_config(config, add_pooling_layer=False)
    except TypeError:  # an encoder that never has a pooling layer has no such argument
        model = AutoModel.from_config(config)
    return model


def encode_text(
    encoder: nn.Module,
    input_ids_BT: Tensor,
    token_type_ids_BT: Tensor | None,
    position_ids_BT: Tensor,
    may_attend_B1TT: Tensor,
) -> Tensor:
    """Last hidden states `(B, T, C)` with each token seeing its own phrase alone.

    Raises:
        ValueError: a phrase is longer than the encoder has positions for.
    """
    _check_phrase_length(encoder, position_ids_BT)
    dtype = next(encoder.parameters()).dtype
    # Additive, because every attention implementation of transformers takes that form.
    mask = torch.zeros_like(may_attend_B1TT, dtype=dtype).masked_fill(
        may_attend_B1TT.logical_not(), torch.finfo(dtype).min
    )
    if token_type_ids_BT is None:
        token_type_ids_BT = torch.zeros_like(input_ids_BT)
    optional = {"token_type_ids": token_type_ids_BT, "position_ids": position_ids_BT}
    accepted = inspect.signature(encoder.forward).parameters
    arguments = {name: value for name, value in optional.items() if name in accepted}
    states: Tensor = encoder(input_ids=input_ids_BT, attention_mask=mask, **arguments).last_hidden_state
    return states


def _check_phrase_length(encoder: nn.Module, position_ids_BT: Tensor) -> None:
    if torch.compiler.is_exporting():
        return  # the table of positions ends there, and so does the run
    limit = getattr(encoder.config, "max_position_embeddings", None)
    if limit is None or position_ids_BT.shape[1] <= limit:
        return
    if torch.compiler.is_compiling():
        assert (position_ids_BT < limit).all(), "A phrase is longer than the text encoder reads: divide it with '.'."
        return
    longest = int(position_ids_BT.max()) + 1
    if longest > limit:
        raise ValueError(f"A phrase has {longest} tokens, the text encoder reads {limit}: divide the caption with '.'.")
