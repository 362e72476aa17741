"""Conversion: names and values land where they belong, both ways; what does not fit is said; nothing half written."""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, Protocol

import pytest
import torch
import transformers
from safetensors.torch import load_file
from torch import Tensor, nn

import hf_grounding_dino as own
from hf_grounding_dino.assets import NANO
from hf_grounding_dino.layers.swin import merge_patches
from hf_grounding_dino.models.checkpoint_reader import CONFIG_KEY
from hf_grounding_dino.models.grounding_dino.conversion import ConversionError, convert_from_hf, convert_to_hf
from hf_grounding_dino.models.grounding_dino.conversion_rules import MERGE_ORDER
from hf_grounding_dino.models.grounding_dino.infer_config import contradictions
from hf_grounding_dino.models.weight_names import Layout
from tiny import FAMILIES, Family, tiny_model

SWIN = "model.backbone.conv_encoder.model"
GOLDENS = Path(__file__).parents[1] / "goldens"
PAIRS: list[tuple[Family, Layout]] = [(FAMILIES[0], "original"), (FAMILIES[0], "mmdet"), (FAMILIES[1], "mmdet")]


def model_with_told_heads(family: Family, **changes: Any) -> own.GroundingDinoForObjectDetection:
    """A tiny model with as many heads as published ones have, so that its weights tell its configuration."""
    text = transformers.BertConfig(
        vocab_size=1100, hidden_size=64, num_hidden_layers=2, num_attention_heads=1, intermediate_size=64,
        max_position_embeddings=64,
    )  # fmt: skip
    return tiny_model(family, text_config=text, encoder_attention_heads=8, decoder_attention_heads=8, **changes)


def on_disk(folder: Path) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in load_file(folder / "model.safetensors").items() if ".swin." not in name}


def same(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def mmdet_linear(out: int, into: int) -> dict[str, tuple[int, ...]]:
    return {"weight": (out, into), "bias": (out,)}


Parts = dict[str, dict[str, tuple[int, ...]]]


def mmdet_swin(parts: Parts, norms: dict[str, int]) -> None:
    for s, (width, heads) in enumerate(zip((8, 16, 32, 64), (1, 2, 2, 4), strict=True)):
        block = f"backbone.stages.{s}.blocks.0"
        parts[f"{block}.attn.w_msa.qkv"] = mmdet_linear(3 * width, width)
        parts[f"{block}.attn.w_msa.proj"] = mmdet_linear(width, width)
        parts[f"{block}.attn.w_msa"] = {
            "relative_position_bias_table": (49, heads),
            "relative_position_index": (16, 16),
        }
        parts[f"{block}.ffn.layers.0.0"] = mmdet_linear(4 * width, width)
        parts[f"{block}.ffn.layers.1"] = mmdet_linear(width, 4 * width)
        norms.update({f"{block}.norm1": width, f"{block}.norm2": width})
        if s < 3:
            parts[f"backbone.stages.{s}.downsample.reduction"] = {"weight": (2 * width, 4 * width)}
            norms[f"backbone.stages.{s}.downsample.norm"] = 4 * width
        if s > 0:
            parts[f"neck.convs.{s - 1}.conv"] = {"weight": (32, width, 1, 1), "bias": (32,)}
            norms.update({f"backbone.norm{s}": width, f"neck.convs.{s - 1}.gn": 32})


def mmdet_text(parts: Parts, norms: dict[str, int]) -> None:
    bert = "language_model.language_backbone.body.model"
    for name, rows in (("word", 1100), ("position", 64), ("token_type", 2)):
        parts[f"{bert}.embeddings.{name}_embeddings"] = {"weight": (rows, 64)}
    parts[f"{bert}.embeddings"] = {"position_ids": (1, 64)}
    for name in ("attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense"):
        parts[f"{bert}.encoder.layer.0.{name}"] = mmdet_linear(64, 64)
    parts[f"{bert}.encoder.layer.0.intermediate.dense"] = mmdet_linear(48, 64)
    parts[f"{bert}.encoder.layer.0.output.dense"] = mmdet_linear(64, 48)
    for name in ("embeddings", "encoder.layer.0.attention.output", "encoder.layer.0.output"):
        norms[f"{bert}.{name}.LayerNorm"] = 64


def mmdet_shapes() -> dict[str, tuple[int, ...]]:
    """Names and shapes of a small MM-Grounding-DINO as mmdetection writes them; by hand, from its modules.

    Swin of width 8 with one block a stage and windows of 4, BERT of width 64, D = 32, 8 heads, 4 levels, 1 point, one
    encoder layer, two decoder layers.
    """
    parts: Parts = {
        "backbone.patch_embed.projection": {"weight": (8, 3, 4, 4), "bias": (8,)},
        "backbone.patch_embed.norm": {"weight": (8,), "bias": (8,)},
        "text_feat_map": mmdet_linear(32, 64),
        "memory_trans_fc": mmdet_linear(32, 32),
        "decoder.ref_point_head.layers.0": mmdet_linear(32, 64),
        "decoder.ref_point_head.layers.1": mmdet_linear(32, 32),
        "neck.extra_convs.0.conv": {"weight": (32, 64, 3, 3), "bias": (32,)},
        "query_embedding": {"weight": (20, 32)},
        "dn_query_generator.label_embedding": {"weight": (9, 32)},
    }
    norms = {"memory_trans_norm": 32, "decoder.norm": 32, "neck.extra_convs.0.gn": 32}
    mmdet_swin(parts, norms)
    mmdet_text(parts, norms)
    attentions = ["encoder.text_layers.0.self_attn.attn"]
    deformables, feed_forwards = ["encoder.layers.0.self_attn"], {"encoder.layers.0": 64, "encoder.text_layers.0": 32}
    norms |= {f"encoder.{kind}.0.norms.{i}": 32 for kind in ("layers", "text_layers") for i in range(2)}
    for i in range(2):
        attentions += [f"decoder.layers.{i}.self_attn.attn", f"decoder.layers.{i}.cross_attn_text.attn"]
        deformables.append(f"decoder.layers.{i}.cross_attn")
        feed_forwards[f"decoder.layers.{i}"] = 96
        norms |= {f"decoder.layers.{i}.norms.{j}": 32 for j in range(4)}
    for name in attentions:
        parts[name] = {"in_proj_weight": (96, 32), "in_proj_bias": (96,)}
        parts[f"{name}.out_proj"] = mmdet_linear(32, 32)
    for name in deformables:
        parts[f"{name}.sampling_offsets"] = mmdet_linear(64, 32)
        parts[f"{name}.attention_weights"] = mmdet_linear(32, 32)
        parts[f"{name}.value_proj"] = parts[f"{name}.output_proj"] = mmdet_linear(32, 32)
    for name, width in feed_forwards.items():
        parts[f"{name}.ffn.layers.0.0"], parts[f"{name}.ffn.layers.1"] = (
            mmdet_linear(width, 32),
            mmdet_linear(32, width),
        )
    fusion = "encoder.fusion_layers.0"
    parts[fusion] = {"gamma_v": (32,), "gamma_l": (32,)}
    for name in ("v_proj", "l_proj", "values_v_proj", "values_l_proj", "out_v_proj", "out_l_proj"):
        parts[f"{fusion}.attn.{name}"] = mmdet_linear(32, 32)
    norms |= {f"{fusion}.layer_norm_v": 32, f"{fusion}.layer_norm_l": 32}
    for i in range(3):
        parts[f"bbox_head.cls_branches.{i}"] = {"bias": (1,)}
        for j, out in ((0, 32), (2, 32), (4, 4)):
            parts[f"bbox_head.reg_branches.{i}.{j}"] = mmdet_linear(out, 32)
    shapes = {f"{name}.{kind}": shape for name, kinds in parts.items() for kind, shape in kinds.items()}
    shapes |= {f"{name}.{kind}": (width,) for name, width in norms.items() for kind in ("weight", "bias")}
    return {**shapes, "level_embed": (4, 32)}


def mmdet_state() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(shape, generator=generator) for name, shape in mmdet_shapes().items()}


class Foreign(Protocol):
    def __call__(self, family: Family, layout: Layout, **entries: Any) -> tuple[Path, Path]: ...


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Family, Layout], tuple[Path, Path]]:
    """Makes, once, a model folder and the checkpoint that this package makes of it."""

    @cache
    def make(family: Family, layout: Layout) -> tuple[Path, Path]:
        place = tmp_path_factory.mktemp(family)
        model_with_told_heads(family).save_pretrained(place / "model")
        convert_from_hf(place / "model", place / "made.pth", layout)
        return place / "model", place / "made.pth"

    return make


@pytest.fixture
def foreign(tmp_path: Path, made: Callable[[Family, Layout], tuple[Path, Path]]) -> Foreign:
    """A model folder, and the checkpoint that another package would have of it, with `entries` beside the weights."""

    def build(family: Family, layout: Layout, **entries: Any) -> tuple[Path, Path]:
        folder, file = made(family, layout)
        loaded = torch.load(file, weights_only=True)
        del loaded[CONFIG_KEY]
        torch.save(loaded | entries, tmp_path / "plain.pth")
        return folder, tmp_path / "plain.pth"

    return build


# --- values ------------------------------------------------------------------------------------------------------


def test_patch_merging_gives_what_mmdetection_gives() -> None:
    """Its merging is `nn.Unfold`, norm, reduction; ours, with the weights re-ordered, gives the same 3 x 2 cells."""
    torch.manual_seed(0)
    norm, reduction = nn.LayerNorm(4 * 5), nn.Linear(4 * 5, 10, bias=False)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    picture = torch.randn(1, 5, 6, 4)
    there = reduction(norm(nn.Unfold(2, stride=2)(picture).transpose(1, 2)))

    class Merging(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.reduction = nn.LayerNorm(4 * 5), nn.Linear(4 * 5, 10, bias=False)

    ours = Merging()
    for mine, theirs in (
        (ours.norm.weight, norm.weight),
        (ours.norm.bias, norm.bias),
        (ours.reduction.weight, reduction.weight),
    ):
        (changed,) = MERGE_ORDER.to_ours(theirs.detach())
        assert not torch.equal(changed, theirs) and torch.equal(MERGE_ORDER.to_theirs([changed]), theirs)
        mine.data.copy_(changed)
    here, size = merge_patches(ours, picture.permute(0, 2, 3, 1).reshape(24, 5), 1, (6, 4))
    assert size == (3, 2)
    assert torch.allclose(here, there[0], atol=1e-6)


def test_a_checkpoint_of_mmdetection_lands_where_it_belongs(tmp_path: Path) -> None:
    """One layer of each kind by hand. Attention is q, k, v of 32 rows each; level 3 of the neck is its extra one.

    Of the heads 0 and 1 belong to the decoder, 2 to the first stage.
    """
    theirs = mmdet_state()
    extra = {"lmm.model.weight": torch.ones(2), "connector.0.bias": torch.ones(2), "strange.weight": torch.ones(3)}
    torch.save({"state_dict": theirs | extra, "meta": {"epoch": 1}}, tmp_path / "mm.pth")
    report = convert_to_hf(tmp_path / "mm.pth", tmp_path / "out", tokenizer=None)
    assert report.layout == "mmdet" and report.model_type == "mm-grounding-dino" and report.label_embedding == 9
    assert report.missing == [] and report.misshaped == [] and report.unexpected == ["strange.weight"]
    assert {"lmm.model.weight", "connector.0.bias"} <= set(report.dropped)
    assert len(report.dropped) == 2 + 4 + 1  # with the position index of each of four blocks, and the position ids
    ours = on_disk(tmp_path / "out")
    layer, query = "model.encoder.layers.0", "model.decoder.layers.1"
    expected = {
        f"{SWIN}.embeddings.norm.bias": theirs["backbone.patch_embed.norm.bias"],
        f"{SWIN}.encoder.layers.1.blocks.0.attention.self.key.weight": theirs[
            "backbone.stages.1.blocks.0.attn.w_msa.qkv.weight"
        ][16:32],
        f"{SWIN}.encoder.layers.3.blocks.0.output.dense.bias": theirs["backbone.stages.3.blocks.0.ffn.layers.1.bias"],
        f"{SWIN}.hidden_states_norms.stage2.weight": theirs["backbone.norm1.weight"],
        "model.input_proj_vision.2.1.bias": theirs["neck.convs.2.gn.bias"],
        "model.input_proj_vision.3.0.weight": theirs["neck.extra_convs.0.conv.weight"],
        "model.text_projection.bias": theirs["text_feat_map.bias"],
        f"{layer}.deformable_layer.self_attn_layer_norm.weight": theirs["encoder.layers.0.norms.0.weight"],
        f"{layer}.deformable_layer.final_layer_norm.weight": theirs["encoder.layers.0.norms.1.weight"],
        f"{layer}.deformable_layer.fc2.bias": theirs["encoder.layers.0.ffn.layers.1.bias"],
        f"{layer}.text_enhancer_layer.self_attn.value.bias": theirs[
            "encoder.text_layers.0.self_attn.attn.in_proj_bias"
        ][64:],
        f"{layer}.text_enhancer_layer.layer_norm_after.bias": theirs["encoder.text_layers.0.norms.1.bias"],
        f"{layer}.fusion_layer.text_param": theirs["encoder.fusion_layers.0.gamma_l"],
        f"{layer}.fusion_layer.attn.out_vision_proj.bias": theirs["encoder.fusion_layers.0.attn.out_v_proj.bias"],
        f"{query}.self_attn_layer_norm.bias": theirs["decoder.layers.1.norms.0.bias"],
        f"{query}.encoder_attn_text_layer_norm.bias": theirs["decoder.layers.1.norms.1.bias"],
        f"{query}.encoder_attn_layer_norm.bias": theirs["decoder.layers.1.norms.2.bias"],
        f"{query}.final_layer_norm.bias": theirs["decoder.layers.1.norms.3.bias"],
        f"{query}.encoder_attn_text.query.weight": theirs["decoder.layers.1.cross_attn_text.attn.in_proj_weight"][:32],
        f"{query}.encoder_attn.value_proj.weight": theirs["decoder.layers.1.cross_attn.value_proj.weight"],
        "model.enc_output_norm.bias": theirs["memory_trans_norm.bias"],
        "model.decoder.reference_points_head.layers.0.weight": theirs["decoder.ref_point_head.layers.0.weight"],
        "bbox_embed.1.layers.1.weight": theirs["bbox_head.reg_branches.1.2.weight"],
        "class_embed.1.bias": theirs["bbox_head.cls_branches.1.bias"][0],
        "model.encoder_output_bbox_embed.layers.2.bias": theirs["bbox_head.reg_branches.2.4.bias"],
        "model.encoder_output_class_embed.bias": theirs["bbox_head.cls_branches.2.bias"][0],
    }
    assert not [name for name, tensor in expected.items() if not torch.equal(ours[name], tensor)]
    convert_from_hf(tmp_path / "out", tmp_path / "back.pth", "mmdet")
    back = torch.load(tmp_path / "back.pth", weights_only=True)["state_dict"]
    kept = {n: t for n, t in theirs.items() if not n.endswith(("relative_position_index", "position_ids"))}
    assert same(back, kept)


@pytest.mark.parametrize("case", ["one", "second_alone", "second_other_words_alone"])
def test_the_numbers_of_mmdetection(tmp_path: Path, case: str) -> None:
    """From its neck and its text projection on, with its weights: logits within 1e-5, boxes within 1e-6.

    The numbers are mmdetection 3.3.0's (GroundingDINO, random weights, float32), and so are the weights but for image
    backbone, neck and text encoder, whose outputs stand in the file.
    """
    golden = load_file(GOLDENS / "mmdetection.safetensors")
    options = {"decoder_layers": 2, "encoder_ffn_dim": 128, "decoder_ffn_dim": 128, "decoder_bbox_embed_share": False}
    points = {"encoder_n_points": 4, "decoder_n_points": 4, "decoder_cls_embed_share": False}
    model_with_told_heads("mm-grounding-dino", **options, **points).save_pretrained(tmp_path / "other")
    convert_from_hf(tmp_path / "other", tmp_path / "other.pth", "mmdet")
    state = torch.load(tmp_path / "other.pth", weights_only=True)["state_dict"]
    theirs = {n.removeprefix("state_dict."): t for n, t in golden.items() if n.startswith("state_dict.")}
    assert theirs.keys() < state.keys()
    torch.save({"state_dict": state | theirs}, tmp_path / "theirs.pth")
    convert_to_hf(tmp_path / "theirs.pth", tmp_path / "out", tokenizer=None)
    model = own.GroundingDinoForObjectDetection.from_pretrained(tmp_path / "out").eval()
    for i, projection in enumerate(model.model.input_proj_vision):
        projection.register_forward_hook(lambda *_, level=golden[f"{case}.features.{i}"]: level)
    model.model.text_projection.register_forward_hook(lambda *_: golden[f"{case}.text"])
    pixels = torch.zeros(1, 3, *golden[f"{case}.size"].tolist())
    # With gradients, so that no text comes from the memory of phrases.
    output = model(pixel_values=pixels, input_ids=golden[f"{case}.input_ids"])
    logits = output.logits[..., : golden[f"{case}.logits"].shape[-1]]
    torch.testing.assert_close(logits.detach(), golden[f"{case}.logits"], atol=1e-5, rtol=0)
    torch.testing.assert_close(output.pred_boxes.detach(), golden[f"{case}.boxes"], atol=1e-6, rtol=0)


@pytest.mark.parametrize(("family", "layout"), PAIRS)
def test_boxes_saturate_as_they_do_where_the_weights_come_from(
    tmp_path: Path, foreign: Foreign, family: Family, layout: Layout
) -> None:
    """The original's epsilon is 1e-3 everywhere; mmdetection's 1e-3 between layers and 1e-5 in the heads.

    A model of transformers (1e-5 everywhere) that goes there and comes back keeps its own.
    """
    folder, file = foreign(family, layout)
    convert_to_hf(file, tmp_path / "theirs", tokenizer=None)
    convert_from_hf(folder, tmp_path / "ours.pth", layout)
    convert_to_hf(tmp_path / "ours.pth", tmp_path / "back", tokenizer=None)
    expected = {"theirs": (1e-3, 1e-3 if layout == "original" else 1e-5), "back": (1e-5, 1e-5)}
    for name, epsilons in expected.items():
        config = own.GroundingDinoConfig.from_pretrained(tmp_path / name)
        assert (config.logit_epsilon, config.logit_epsilon_heads) == epsilons


@pytest.mark.parametrize(("family", "layout"), PAIRS)
def test_there_and_back_changes_no_bit(tmp_path: Path, foreign: Foreign, family: Family, layout: Layout) -> None:
    """The configuration is told by the weights; the heads of these models are one, as their configuration says."""
    folder, file = foreign(family, layout)
    report = convert_to_hf(file, tmp_path / "again", tokenizer=None)
    assert not report.unexpected and not report.dropped
    assert same(on_disk(folder), on_disk(tmp_path / "again"))
    before, after = (transformers.AutoConfig.from_pretrained(path) for path in (folder, tmp_path / "again"))
    assert contradictions(after, before) == [] and after.decoder_bbox_embed_share
    assert after.encoder_n_points == before.encoder_n_points and after.num_queries == before.num_queries


def test_the_configuration_travels_where_weights_do_not_tell_it(tmp_path: Path) -> None:
    """Nano has 16 heads that are 16 wide, a prompt length of its own, and sees pictures smaller than others do."""
    convert_from_hf(NANO, tmp_path / "nano.pth", "mmdet")
    convert_to_hf(tmp_path / "nano.pth", tmp_path / "again", tokenizer=str(NANO))
    before, after = (own.GroundingDinoConfig.from_pretrained(path) for path in (NANO, tmp_path / "again"))
    differing = {k for k, v in before.to_dict().items() if after.to_dict()[k] != v}
    assert differing <= {"dtype", "backbone_config", "text_config", "transformers_version"}
    assert before.decoder_attention_heads == after.decoder_attention_heads
    assert same(on_disk(NANO), on_disk(tmp_path / "again"))
    pictures = [own.GroundingDinoImageProcessor.from_pretrained(path).to_dict() for path in (NANO, tmp_path / "again")]
    assert pictures[0] == pictures[1]


@pytest.mark.parametrize(("family", "layout"), [PAIRS[0], PAIRS[2]])
def test_the_folder_loads_in_transformers_without_a_warning(
    tmp_path: Path, foreign: Foreign, family: Family, layout: Layout, caplog: pytest.LogCaptureFixture
) -> None:
    _, file = foreign(family, layout)
    convert_to_hf(file, tmp_path / "out", tokenizer=str(NANO))
    library = logging.getLogger("transformers")
    library.addHandler(caplog.handler)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            stock = transformers.AutoModelForZeroShotObjectDetection.from_pretrained(tmp_path / "out")
            transformers.AutoProcessor.from_pretrained(tmp_path / "out")
    finally:
        library.removeHandler(caplog.handler)
    assert [record.message for record in caplog.records if record.levelno >= logging.WARNING] == []
    assert type(stock).__module__.startswith("transformers.")


def test_wrappers_are_taken_off(tmp_path: Path, foreign: Foreign) -> None:
    """DistributedDataParallel and `torch.compile` put words before every name."""
    folder, file = foreign("grounding-dino", "original")
    state = torch.load(file, weights_only=True)["model"]
    torch.save({f"module._orig_mod.{name}": tensor for name, tensor in state.items()}, tmp_path / "ddp.pth")
    convert_to_hf(tmp_path / "ddp.pth", tmp_path / "out", tokenizer=None)
    assert same(on_disk(folder), on_disk(tmp_path / "out"))


def test_the_weights_are_written_as_asked_for_and_a_tokenizer_can_come_later(tmp_path: Path, foreign: Foreign) -> None:
    _, file = foreign("grounding-dino", "original")
    convert_to_hf(file, tmp_path / "out", tokenizer=None, dtype=torch.bfloat16, max_shard_size="300KB")
    shards = list((tmp_path / "out").glob("model-*.safetensors"))
    assert len(shards) > 1
    assert {tensor.dtype for shard in shards for tensor in load_file(shard).values()} == {torch.bfloat16}
    transformers.AutoTokenizer.from_pretrained(NANO).save_pretrained(tmp_path / "out")
    own.GroundingDinoProcessor.from_pretrained(tmp_path / "out")
    transformers.AutoProcessor.from_pretrained(tmp_path / "out")


def test_six_heads_that_differ_are_not_shared(tmp_path: Path) -> None:
    """Loading them under a configuration that shares would give the wrong boxes."""
    torch.save({"state_dict": mmdet_state()}, tmp_path / "mm.pth")
    convert_to_hf(tmp_path / "mm.pth", tmp_path / "out", tokenizer=None)
    model = own.GroundingDinoForObjectDetection.from_pretrained(tmp_path / "out")
    assert not model.config.decoder_bbox_embed_share and not model.config.decoder_cls_embed_share
    first, second = model.bbox_embed[0].layers[0].weight, model.bbox_embed[1].layers[0].weight
    assert not torch.equal(first, second) and model.model.decoder.bbox_embed[1].layers[0].weight is second


# --- what does not fit -------------------------------------------------------------------------------------------


def test_a_configuration_of_another_size_is_refused_with_the_cause(tmp_path: Path, foreign: Foreign) -> None:
    _, file = foreign("grounding-dino", "original")
    wider = model_with_told_heads("grounding-dino", d_model=64, num_queries=30).config
    with pytest.raises(ConversionError, match="`d_model` is 32 in the weights, 64 in the configuration; `num_queries`"):
        convert_to_hf(file, tmp_path / "out", tokenizer=None, config=wider)
    assert not (tmp_path / "out").exists()


def test_what_is_missing_is_named(tmp_path: Path, foreign: Foreign) -> None:
    _, file = foreign("grounding-dino", "original")
    loaded = torch.load(file, weights_only=True)
    del loaded["model"]["feat_map.bias"], loaded["model"]["transformer.decoder.layers.1.ca_text.in_proj_weight"]
    torch.save(loaded, file)
    with pytest.raises(ConversionError, match=r"the file is not complete\. Tensors missing: 4") as refusal:
        convert_to_hf(file, tmp_path / "out", tokenizer=None)
    attention = "model.decoder.layers.1.encoder_attn_text"
    expected = [f"{attention}.{part}.weight" for part in ("key", "query", "value")]
    assert refusal.value.report is not None
    assert refusal.value.report.missing == [*expected, "model.text_projection.bias"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["plain.pth"]


def test_copies_of_one_module_must_be_equal(tmp_path: Path, foreign: Foreign) -> None:
    _, file = foreign("grounding-dino", "original")
    loaded = torch.load(file, weights_only=True)
    name = "transformer.decoder.bbox_embed.1.layers.0.bias"
    loaded["model"][name] = loaded["model"][name] + 1
    torch.save(loaded, file)
    with pytest.raises(ConversionError, match=re.escape(name)):
        convert_to_hf(file, tmp_path / "out", tokenizer=None)


def test_what_is_converted_already_is_said(tmp_path: Path) -> None:
    torch.save(tiny_model("grounding-dino").state_dict(), tmp_path / "hf.pth")
    with pytest.raises(ConversionError, match="has the names of transformers already"):
        convert_to_hf(tmp_path / "hf.pth", tmp_path / "out", tokenizer=None)


def test_the_original_repository_has_no_place_for_biases(tmp_path: Path) -> None:
    tiny_model("mm-grounding-dino").save_pretrained(tmp_path / "mm")
    with pytest.raises(ConversionError, match="use mmdet"):
        convert_from_hf(tmp_path / "mm", tmp_path / "out.pth", "original")
    assert not (tmp_path / "out.pth").exists()


def test_a_tokenizer_with_more_words_than_the_model_is_refused(tmp_path: Path) -> None:
    """30 rows of embeddings cannot serve the words of nano."""
    state = mmdet_state()
    name = "language_model.language_backbone.body.model.embeddings.word_embeddings.weight"
    state[name] = state[name][:30].clone()
    torch.save({"state_dict": state}, tmp_path / "mm.pth")
    with pytest.raises(ConversionError, match=r"words, the text encoder .* has 30"):
        convert_to_hf(tmp_path / "mm.pth", tmp_path / "out", tokenizer=str(NANO))


def test_a_full_disk_leaves_nothing(tmp_path: Path, foreign: Foreign, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, file = foreign("grounding-dino", "original")
    before = sorted(tmp_path.rglob("*"))

    def write_half(self: object, folder: Path, **options: object) -> None:
        (folder / "model.safetensors").write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(own.GroundingDinoForObjectDetection, "save_pretrained", write_half)
    with pytest.raises(ConversionError, match=r"cannot be written: .*No space left"):
        convert_to_hf(file, tmp_path / "out", tokenizer=None)
    monkeypatch.setattr(torch, "save", lambda entries, path: write_half(None, path.parent))
    with pytest.raises(ConversionError, match=r"cannot be written: .*No space left"):
        convert_from_hf(folder, tmp_path / "new.pth", "original")
    (tmp_path / "model.safetensors").unlink()
    assert sorted(tmp_path.rglob("*")) == before


def test_what_is_there_is_not_overwritten(tmp_path: Path, foreign: Foreign) -> None:
    folder, file = foreign("grounding-dino", "original")
    with pytest.raises(ConversionError, match="exists already"):
        convert_to_hf(file, folder, tokenizer=None)
    with pytest.raises(ConversionError, match="exists already"):
        convert_from_hf(folder, file, "original")
