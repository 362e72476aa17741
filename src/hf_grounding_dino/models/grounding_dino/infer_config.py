"""What a checkpoint's tensors say of the network they belong to."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import BertConfig, SwinConfig

from .configuration_grounding_dino import AnyGroundingDinoConfig, GroundingDinoConfig, MMGroundingDinoConfig
from .conversion_rules import SWIN

HEADS = 8
"""Attention heads of all published models; the weights do not tell them."""
TEXT_HEAD_WIDTH = 64
"""Of BERT, whatever its size."""

_SWIN_NAMES = {
    (96, (2, 2, 6, 2)): "Swin-T",
    (96, (2, 2, 18, 2)): "Swin-S",
    (128, (2, 2, 18, 2)): "Swin-B",
    (192, (2, 2, 18, 2)): "Swin-L",
}
# What the weights tell of a configuration, and so what it can contradict.
_TOLD = (
    "model_type", "d_model", "num_feature_levels", "num_queries", "encoder_layers", "decoder_layers",
    "encoder_ffn_dim", "decoder_ffn_dim", "embedding_init_target",
)  # fmt: skip
_TOLD_OF_SWIN = ("embed_dim", "depths", "num_heads", "window_size", "patch_size", "out_indices")
_TOLD_OF_TEXT = ("vocab_size", "hidden_size", "num_hidden_layers", "intermediate_size", "max_position_embeddings")


class Weights:
    """Shapes of tensors under the names that transformers writes."""

    def __init__(self, state: Mapping[str, Tensor]) -> None:
        """Look at `state`, whose tensors may be on any device."""
        self.state = state

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor.

        Raises:
            ValueError: it is missing.
        """
        if name not in self.state:
            raise ValueError(f"the weights have no {name}: the file is not complete.")
        return tuple(self.state[name].shape)

    def numbers(self, pattern: str) -> list[int]:
        """Which numbers stand where `pattern` has its group, in order."""
        matches = (re.match(pattern, name) for name in self.state)
        return sorted({int(match[1]) for match in matches if match})

    def all_equal(self, pattern: str) -> bool:
        """Whether the tensors whose names differ only in the group of `pattern` are equal."""
        first: dict[str, Tensor] = {}
        for name, tensor in self.state.items():
            match = re.match(pattern, name)
            one = first.setdefault(name[match.end() :], tensor) if match else tensor
            if one is not tensor and not torch.equal(one, tensor):
                return False
        return True


def infer_config(state: Mapping[str, Tensor]) -> AnyGroundingDinoConfig:
    """The configuration of the network whose weights these are.

    The number of attention heads is not in the weights: it is taken to be that of all published models.

    Args:
        state: weights under the names that transformers writes.

    Raises:
        ValueError: weights are missing, or are of no such network.
    """
    weights = Weights(state)
    levels, width = weights.shape("model.level_embed")
    encoder, decoder = "model.encoder.layers.0.deformable_layer", "model.decoder.layers.0"
    queries = state.get("model.query_position_embeddings.weight")
    options: dict[str, Any] = {
        "backbone_config": infer_swin(weights),
        "text_config": infer_text(weights),
        "d_model": width,
        "num_feature_levels": levels,
        "encoder_layers": len(weights.numbers(r"model\.encoder\.layers\.(\d+)\.")),
        "decoder_layers": len(weights.numbers(r"model\.decoder\.layers\.(\d+)\.")),
        "encoder_ffn_dim": weights.shape(f"{encoder}.fc1.weight")[0],
        "decoder_ffn_dim": weights.shape(f"{decoder}.fc1.weight")[0],
        "encoder_attention_heads": HEADS,
        "decoder_attention_heads": HEADS,
        "encoder_n_points": _points(weights, f"{encoder}.self_attn", levels),
        "decoder_n_points": _points(weights, f"{decoder}.encoder_attn", levels),
        "embedding_init_target": queries is not None,
        "decoder_bbox_embed_share": weights.all_equal(r"bbox_embed\.(\d+)\."),
    }
    if queries is not None:
        options["num_queries"] = len(queries)
    if "class_embed.0.bias" not in state:
        return GroundingDinoConfig(**options)
    return MMGroundingDinoConfig(**options, decoder_cls_embed_share=weights.all_equal(r"class_embed\.(\d+)\."))


def infer_swin(weights: Weights) -> SwinConfig:
    """The backbone."""
    embed_dim, channels, patch_size, _ = weights.shape(f"{SWIN}.embeddings.patch_embeddings.projection.weight")
    stage, first = rf"{re.escape(SWIN)}\.encoder\.layers", f"{SWIN}.encoder.layers.0.blocks.0"
    stages = weights.numbers(rf"{stage}\.(\d+)\.blocks")
    tables = [
        weights.shape(f"{SWIN}.encoder.layers.{i}.blocks.0.attention.self.relative_position_bias_table") for i in stages
    ]
    window_size = (math.isqrt(tables[0][0]) + 1) // 2
    out = weights.numbers(rf"{re.escape(SWIN)}\.hidden_states_norms\.stage(\d+)\.")
    options: dict[str, Any] = {
        "image_size": 32 * window_size,
        "patch_size": patch_size,
        "num_channels": channels,
        "embed_dim": embed_dim,
        "depths": [len(weights.numbers(rf"{stage}\.{i}\.blocks\.(\d+)\.")) for i in stages],
        "num_heads": [heads for _, heads in tables],
        "window_size": window_size,
        "mlp_ratio": weights.shape(f"{first}.intermediate.dense.weight")[0] / embed_dim,
        "qkv_bias": f"{first}.attention.self.query.bias" in weights.state,
        "out_indices": out,
    }
    return SwinConfig(**options)


def infer_text(weights: Weights) -> BertConfig:
    """The text encoder."""
    embeddings, layer = "model.text_backbone.embeddings", "model.text_backbone.encoder.layer"
    words, width = weights.shape(f"{embeddings}.word_embeddings.weight")
    return BertConfig(
        vocab_size=words,
        hidden_size=width,
        num_hidden_layers=len(weights.numbers(rf"{re.escape(layer)}\.(\d+)\.")),
        num_attention_heads=max(1, width // TEXT_HEAD_WIDTH),
        intermediate_size=weights.shape(f"{layer}.0.intermediate.dense.weight")[0],
        max_position_embeddings=weights.shape(f"{embeddings}.position_embeddings.weight")[0],
        type_vocab_size=weights.shape(f"{embeddings}.token_type_embeddings.weight")[0],
    )


def _points(weights: Weights, attention: str, levels: int) -> int:
    """How many points each head looks at in each level."""
    outputs = weights.shape(f"{attention}.attention_weights.weight")[0]
    points, rest = divmod(outputs, HEADS * levels)
    if rest:
        raise ValueError(
            f"{attention}.attention_weights has {outputs} outputs, which {HEADS} heads and {levels} levels do not"
            " divide: give the configuration."
        )
    return points


def contradictions(config: AnyGroundingDinoConfig, found: AnyGroundingDinoConfig) -> list[str]:
    """How a configuration differs from `found`, what the weights tell; the backbone first, by its name where it can."""
    given_swin, found_swin = swin_name(config.backbone_config), swin_name(found.backbone_config)
    if given_swin and found_swin and given_swin != found_swin:
        yours = [f"the weights are those of a {found_swin}, the configuration is of a {given_swin}"]
    else:
        yours = _differences(config.backbone_config, found.backbone_config, _TOLD_OF_SWIN)
    text = _differences(config.text_config, found.text_config, _TOLD_OF_TEXT)
    return [*yours, *text, *_differences(config, found, _TOLD)]


def swin_name(backbone_config: Any) -> str | None:
    """Swin-T, -S, -B or -L; None for any other size."""
    return _SWIN_NAMES.get((backbone_config.embed_dim, tuple(backbone_config.depths)))


def _differences(given: Any, found: Any, names: Iterable[str]) -> list[str]:
    pairs = ((name, _plain(getattr(given, name)), _plain(getattr(found, name))) for name in names)
    return [
        f"`{name}` is {there} in the weights, {here} in the configuration"
        for name, here, there in pairs
        if here != there
    ]


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple | list) else value
