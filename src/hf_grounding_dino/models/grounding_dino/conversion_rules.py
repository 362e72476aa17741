"""How Grounding DINO's weights are called elsewhere: tables that are read both ways, see `models.weight_names`.

"Theirs" are the names of the original repository (IDEA-Research/GroundingDINO, which Open-GroundingDino shares) and of
mmdetection (MM-Grounding-DINO, LLMDet). "Ours" are those of transformers, as they stand in its files.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import Tensor

from ..weight_names import SAME, Change, Layout, Rule

QKV = "{query,key,value}"
SWIN = "model.backbone.conv_encoder.model"
BOX_LAYERS = 3


def _merge_order_to_ours(parts: Tensor) -> list[Tensor]:
    """The four cells that patch merging joins: `nn.Unfold` puts channels first, rows before columns; Swin cells first.

    The last dimension is (C, row, column) there and (column, row, C) here.
    """
    channels = parts.shape[-1] // 4
    return [parts.unflatten(-1, (channels, 2, 2)).transpose(-1, -3).flatten(-3)]


def _merge_order_to_theirs(parts: Sequence[Tensor]) -> Tensor:
    channels = parts[0].shape[-1] // 4
    return parts[0].unflatten(-1, (2, 2, channels)).transpose(-1, -3).flatten(-3)


FUSED = Change(lambda fused: fused.chunk(3), lambda parts: torch.cat(list(parts)))
MERGE_ORDER = Change(_merge_order_to_ours, _merge_order_to_theirs)
SCALAR = Change(lambda part: [part.reshape(())], lambda parts: parts[0].reshape(1))


def _rules(theirs: str, ours: str, names: Mapping[str, str]) -> list[Rule]:
    return [Rule(theirs + there, ours + here, FUSED if QKV in here else SAME) for there, here in names.items()]


_SWIN_BLOCK = {"norm1.@": "layernorm_before.@", "norm2.@": "layernorm_after.@"}
_FUSION = {
    "gamma_v": "vision_param",
    "gamma_l": "text_param",
    "layer_norm_v.@": "layer_norm_vision.@",
    "layer_norm_l.@": "layer_norm_text.@",
    "attn.v_proj.@": "attn.vision_proj.@",
    "attn.l_proj.@": "attn.text_proj.@",
    "attn.values_v_proj.@": "attn.values_vision_proj.@",
    "attn.values_l_proj.@": "attn.values_text_proj.@",
    "attn.out_v_proj.@": "attn.out_vision_proj.@",
    "attn.out_l_proj.@": "attn.out_text_proj.@",
}


def _deformable(theirs: str, ours: str) -> dict[str, str]:
    parts = ("sampling_offsets", "attention_weights", "value_proj", "output_proj")
    return {f"{theirs}.{part}.@": f"{ours}.{part}.@" for part in parts}


def _attention(theirs: str, ours: str) -> dict[str, str]:
    return {f"{theirs}.in_proj_@": f"{ours}.{QKV}.@", f"{theirs}.out_proj.@": f"{ours}.out_proj.@"}


def _original_elsewhere() -> dict[str, str]:
    elsewhere = {
        "backbone.0.patch_embed.proj.@": f"{SWIN}.embeddings.patch_embeddings.projection.@",
        "backbone.0.patch_embed.norm.@": f"{SWIN}.embeddings.norm.@",
        "backbone.0.layers.*.downsample.@": f"{SWIN}.encoder.layers.*.downsample.@",
        **{f"backbone.0.norm{i}.@": f"{SWIN}.hidden_states_norms.stage{i + 1}.@" for i in range(4)},
        "input_proj.*.*.@": "model.input_proj_vision.*.*.@",
        "bert.@": "model.text_backbone.@",
        "feat_map.@": "model.text_projection.@",
        "transformer.level_embed": "model.level_embed",
        "transformer.tgt_embed.@": "model.query_position_embeddings.@",
        "transformer.enc_output.@": "model.enc_output.@",
        "transformer.enc_output_norm.@": "model.enc_output_norm.@",
        "transformer.enc_out_bbox_embed.layers.*.@": "model.encoder_output_bbox_embed.layers.*.@",
        "transformer.decoder.norm.@": "model.decoder.layer_norm.@",
        "transformer.decoder.ref_point_head.layers.*.@": "model.decoder.reference_points_head.layers.*.@",
        "bbox_embed.*.layers.*.@": "bbox_embed.*.layers.*.@",
        # One module under two names.
        "transformer.decoder.bbox_embed.*.layers.*.@": "bbox_embed.*.layers.*.@",
    }
    return elsewhere


def original_rules(num_stages: int, num_layers: int) -> list[Rule]:
    """The table of the original repository; the numbers are not needed, since nothing there depends on them."""
    block = "backbone.0.layers.*.blocks.*."
    swin = {
        **_SWIN_BLOCK,
        "attn.qkv.@": f"attention.self.{QKV}.@",
        "attn.proj.@": "attention.output.dense.@",
        "attn.relative_position_bias_table": "attention.self.relative_position_bias_table",
        "mlp.fc1.@": "intermediate.dense.@",
        "mlp.fc2.@": "output.dense.@",
    }
    encoder = {
        **_deformable("self_attn", "self_attn"),
        "norm1.@": "self_attn_layer_norm.@",
        "linear1.@": "fc1.@",
        "linear2.@": "fc2.@",
        "norm2.@": "final_layer_norm.@",
    }
    text = {
        **_attention("self_attn", "self_attn"),
        "norm1.@": "layer_norm_before.@",
        "linear1.@": "fc1.@",
        "linear2.@": "fc2.@",
        "norm2.@": "layer_norm_after.@",
    }
    decoder = {
        **_attention("self_attn", "self_attn"),
        "norm2.@": "self_attn_layer_norm.@",
        **_attention("ca_text", "encoder_attn_text"),
        "catext_norm.@": "encoder_attn_text_layer_norm.@",
        **_deformable("cross_attn", "encoder_attn"),
        "norm1.@": "encoder_attn_layer_norm.@",
        "linear1.@": "fc1.@",
        "linear2.@": "fc2.@",
        "norm3.@": "final_layer_norm.@",
    }
    layer = "model.encoder.layers.*."
    return [
        *_rules(block, f"{SWIN}.encoder.layers.*.blocks.*.", swin),
        *_rules("transformer.encoder.layers.*.", f"{layer}deformable_layer.", encoder),
        *_rules("transformer.encoder.text_layers.*.", f"{layer}text_enhancer_layer.", text),
        *_rules("transformer.encoder.fusion_layers.*.", f"{layer}fusion_layer.", _FUSION),
        *_rules("transformer.decoder.layers.*.", "model.decoder.layers.*.", decoder),
        *_rules("", "", _original_elsewhere()),
    ]


def _mmdet_elsewhere(num_stages: int, num_layers: int) -> dict[str, str]:
    elsewhere = {
        "backbone.patch_embed.projection.@": f"{SWIN}.embeddings.patch_embeddings.projection.@",
        "backbone.patch_embed.norm.@": f"{SWIN}.embeddings.norm.@",
        **{f"backbone.norm{i}.@": f"{SWIN}.hidden_states_norms.stage{i + 1}.@" for i in range(4)},
        **_neck("neck.convs", range(num_stages), 0),
        **_neck("neck.extra_convs", range(8), num_stages),
        "language_model.language_backbone.body.model.@": "model.text_backbone.@",
        "text_feat_map.@": "model.text_projection.@",
        "level_embed": "model.level_embed",
        "query_embedding.@": "model.query_position_embeddings.@",
        "memory_trans_fc.@": "model.enc_output.@",
        "memory_trans_norm.@": "model.enc_output_norm.@",
        "decoder.norm.@": "model.decoder.layer_norm.@",
        "decoder.ref_point_head.layers.*.@": "model.decoder.reference_points_head.layers.*.@",
        **_box_head(num_layers, "model.encoder_output_bbox_embed"),
    }
    for i in range(num_layers):
        elsewhere |= _box_head(i, f"bbox_embed.{i}")
    return elsewhere


def mmdet_rules(num_stages: int, num_layers: int) -> list[Rule]:
    """The table of mmdetection.

    Args:
        num_stages: stages of Swin that are used; the neck counts further levels from there anew.
        num_layers: decoder layers; head number `num_layers` is that of the encoder's proposals.
    """
    feed_forward = {"ffn.layers.0.0.@": "fc1.@", "ffn.layers.1.@": "fc2.@"}
    swin = {
        **_SWIN_BLOCK,
        "attn.w_msa.qkv.@": f"attention.self.{QKV}.@",
        "attn.w_msa.proj.@": "attention.output.dense.@",
        "attn.w_msa.relative_position_bias_table": "attention.self.relative_position_bias_table",
        "ffn.layers.0.0.@": "intermediate.dense.@",
        "ffn.layers.1.@": "output.dense.@",
    }
    encoder = {
        **_deformable("self_attn", "self_attn"),
        "norms.0.@": "self_attn_layer_norm.@",
        **feed_forward,
        "norms.1.@": "final_layer_norm.@",
    }
    text = {
        **_attention("self_attn.attn", "self_attn"),
        "norms.0.@": "layer_norm_before.@",
        **feed_forward,
        "norms.1.@": "layer_norm_after.@",
    }
    decoder = {
        **_attention("self_attn.attn", "self_attn"),
        "norms.0.@": "self_attn_layer_norm.@",
        **_attention("cross_attn_text.attn", "encoder_attn_text"),
        "norms.1.@": "encoder_attn_text_layer_norm.@",
        **_deformable("cross_attn", "encoder_attn"),
        "norms.2.@": "encoder_attn_layer_norm.@",
        **feed_forward,
        "norms.3.@": "final_layer_norm.@",
    }
    head = "bbox_head.cls_branches"
    stage, layer = f"{SWIN}.encoder.layers.*.", "model.encoder.layers.*."
    return [
        Rule("backbone.stages.*.downsample.@", f"{stage}downsample.@", MERGE_ORDER),
        *_rules("backbone.stages.*.blocks.*.", f"{stage}blocks.*.", swin),
        *_rules("encoder.layers.*.", f"{layer}deformable_layer.", encoder),
        *_rules("encoder.text_layers.*.", f"{layer}text_enhancer_layer.", text),
        *_rules("encoder.fusion_layers.*.", f"{layer}fusion_layer.", _FUSION),
        *_rules("decoder.layers.*.", "model.decoder.layers.*.", decoder),
        *_rules("", "", _mmdet_elsewhere(num_stages, num_layers)),
        Rule(f"{head}.{num_layers}.bias", "model.encoder_output_class_embed.bias", SCALAR),
        *(Rule(f"{head}.{i}.bias", f"class_embed.{i}.bias", SCALAR) for i in range(num_layers)),
    ]


def _neck(theirs: str, numbers: Iterable[int], first: int) -> dict[str, str]:
    kinds = {"conv": 0, "gn": 1}
    return {
        f"{theirs}.{i}.{kind}.@": f"model.input_proj_vision.{first + i}.{kinds[kind]}.@"
        for i in numbers
        for kind in kinds
    }


def _box_head(branch: int, ours: str) -> dict[str, str]:
    """Every second of the modules there is a ReLU."""
    return {f"bbox_head.reg_branches.{branch}.{2 * j}.@": f"{ours}.layers.{j}.@" for j in range(BOX_LAYERS)}


RULES: dict[Layout, Callable[[int, int], list[Rule]]] = {"original": original_rules, "mmdet": mmdet_rules}

LOGIT_EPSILONS: dict[Layout, tuple[float, float]] = {"original": (1e-3, 1e-3), "mmdet": (1e-3, 1e-5)}
"""`logit_epsilon` and `logit_epsilon_heads` of the code that the weights were trained with; the weights cannot tell."""
