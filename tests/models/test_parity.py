"""Law 1: the model computes what stock transformers computes, and both read each other's checkpoints."""

from __future__ import annotations

import copy
import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import ResNetConfig

import hf_grounding_dino as own
import tiny
from silence import silence

families = pytest.mark.parametrize("family", tiny.FAMILIES)

RESNET = {
    "embedding_size": 8, "hidden_sizes": [8, 16, 32, 32], "depths": [1, 1, 1, 1], "layer_type": "basic",
    "out_features": ["stage2", "stage3", "stage4"],
}  # fmt: skip

VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "unshared": {"decoder_bbox_embed_share": False},
    # 64 wide, as a group norm of one channel cannot norm a map of one cell.
    "five levels": {"num_feature_levels": 5, "d_model": 64},
    "stages 1-4": {"stages": (1, 2, 3, 4)},
    "stages 1-4, five levels, unshared": {
        "stages": (1, 2, 3, 4), "num_feature_levels": 5, "decoder_bbox_embed_share": False,
    },
    "three levels": {"num_feature_levels": 3},
    "learned positions": {"position_embedding_type": "learned"},
    "resnet": {"backbone_config": ResNetConfig(**RESNET)},
    "gelu": {"activation_function": "gelu"},
}  # fmt: skip

COMMON_FIELDS = (
    "logits", "pred_boxes", "last_hidden_state", "encoder_last_hidden_state_vision", "encoder_last_hidden_state_text",
    "intermediate_hidden_states", "intermediate_reference_points", "init_reference_points", "encoder_pred_boxes",
)  # fmt: skip
STATE_FIELDS = (
    "enc_outputs_class", "enc_outputs_coord_logits", "encoder_vision_hidden_states", "encoder_text_hidden_states",
    "decoder_hidden_states",
)  # fmt: skip


def assert_same(ours: Any, theirs: Any, what: str) -> None:
    """Nested tuples of tensors are equal in structure, and in value within 1e-4; infinities equal themselves."""
    assert (ours is None) == (theirs is None), what
    if isinstance(theirs, tuple | list):
        assert len(ours) == len(theirs), f"{what}: {len(ours)} entries, stock has {len(theirs)}"
        for i, (a, b) in enumerate(zip(ours, theirs, strict=True)):
            assert_same(a, b, f"{what}[{i}]")
    elif theirs is not None:
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4, msg=lambda m: f"{what}: {m}")


def inputs() -> dict[str, torch.Tensor]:
    """One image whose sides are multiples of nothing, with a closed caption of three phrases."""
    return tiny.one(tiny.noise_image(91, 74))


def assert_same_outputs(ours: Any, theirs: Any, fields: tuple[str, ...] = COMMON_FIELDS, **options: Any) -> None:
    """Both models give the same on `inputs()`."""
    with torch.no_grad():
        a, b = ours(**inputs(), **options), theirs(**inputs(), **options)
    for field in fields:
        assert getattr(b, field) is not None, field
        assert_same(getattr(a, field), getattr(b, field), field)


def load_strictly(cls: Any, path: Path) -> Any:
    """Load without a missing, unexpected or mismatched key, an error or a warning."""
    with silence():
        model, info = cls.from_pretrained(path, output_loading_info=True)
    assert {name: list(keys) for name, keys in info.items() if keys} == {}
    return model.eval()


# --- equal to stock ----------------------------------------------------------------------------------------------


@tiny.sound_stock
@families
@pytest.mark.parametrize("variant", VARIANTS)
def test_outputs_equal_stock(family: tiny.Family, variant: str) -> None:
    """Same weights, batch 1, closed caption: |ours - stock| <= 1e-4 in every field both have, but `encoder_logits`.

    (`encoder_logits` of stock compares the learned queries with text from before the fusion, recipe 7.1 row 1.)
    """
    model = tiny.tiny_model(family, **VARIANTS[variant])
    assert_same_outputs(model, tiny.stock_twin(model))


@tiny.sound_stock
@pytest.mark.parametrize("boxes_shared", [True, False])
@pytest.mark.parametrize("classes_shared", [True, False])
def test_every_sharing_of_mm_heads_equals_stock(boxes_shared: bool, classes_shared: bool) -> None:
    """The four combinations of MM-Grounding-DINO's share flags, with three different heads where not shared."""
    model = tiny.tiny_model(
        "mm-grounding-dino", decoder_bbox_embed_share=boxes_shared, decoder_cls_embed_share=classes_shared
    )
    assert model.bbox_embed[0].layers[0].weight.equal(model.bbox_embed[2].layers[0].weight) == boxes_shared
    assert model.class_embed[0].bias.equal(model.class_embed[2].bias) == classes_shared
    assert_same_outputs(model, tiny.stock_twin(model))


@tiny.sound_stock
@families
@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_attention_implementations_equal_stock(family: tiny.Family, implementation: str) -> None:
    """`attn_implementation` is a choice of speed: each equals stock within 1e-4."""
    config = tiny.tiny_config(family)
    model = own.GroundingDinoForObjectDetection._from_config(config, attn_implementation=implementation).eval()
    tiny.randomize(model)
    assert model.config._attn_implementation == implementation
    assert_same_outputs(model, tiny.stock_twin(model))


@tiny.sound_stock
@families
def test_hidden_states_equal_stock(family: tiny.Family) -> None:
    """With `output_hidden_states=True`: the states of every layer, and every token's first-stage logits and boxes."""
    model = tiny.tiny_model(family)
    assert_same_outputs(model, tiny.stock_twin(model), STATE_FIELDS, output_hidden_states=True)


ATTENTION_FIELDS = ("encoder_attentions", "decoder_attentions")


def attentions(model: Any) -> dict[str, Any]:
    """Both attention fields of a model."""
    with torch.no_grad():
        output = model(**inputs(), output_attentions=True)
    return {name: getattr(output, name) for name in ATTENTION_FIELDS}


@tiny.sound_stock
@families
@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_attentions_equal_stock(family: tiny.Family, implementation: str) -> None:
    """With `output_attentions=True`: the kinds of attention in stock's order, each a tuple of layers, values equal.

    Under "sdpa" too, which has no weights to give: they are then computed step by step.
    """
    model = tiny.tiny_model(family)
    model.set_attn_implementation(implementation)
    stock = attentions(tiny.stock_twin(model))
    for name, kinds in attentions(model).items():
        assert [len(layers) for layers in kinds] == [len(layers) for layers in stock[name]]
        for kind, (layers, stock_layers) in enumerate(zip(kinds, stock[name], strict=True)):
            for i, (weights, stock_weights) in enumerate(zip(layers, stock_layers, strict=True)):
                assert_same(weights, stock_weights, f"{name}[{kind}][{i}]")


@tiny.sound_stock
@families
@pytest.mark.parametrize(
    ("kinds", "result"),
    [("encoder_attentions", "encoder_last_hidden_state_vision"), ("decoder_attentions", "last_hidden_state")],
)
def test_gradients_of_attentions_equal_stock(family: tiny.Family, kinds: str, result: str) -> None:
    """What is returned is what the model goes on with, so that explanations by gradients read it as from stock.

    In float64: where a sample lies on the edge of a cell, the gradient jumps with the rounding of float32.
    """

    def gradients(model: Any) -> list[torch.Tensor | None]:
        wide = {name: x.double() if x.is_floating_point() else x for name, x in inputs().items()}
        output = model.double()(**wide, output_attentions=True)
        weights = [weights for layers in getattr(output, kinds) for weights in layers]
        for one in weights:
            one.retain_grad()
        output[result].square().sum().backward()
        return [one.grad for one in weights]

    model = tiny.tiny_model(family)
    expected = gradients(tiny.stock_twin(model))
    assert any(grad is not None for grad in expected)
    for i, (grad, theirs) in enumerate(zip(gradients(model), expected, strict=True)):
        assert_same(grad, theirs, f"{kinds}, number {i}")


@tiny.sound_stock
@families
def test_outputs_have_every_field_of_stock(family: tiny.Family) -> None:
    """An import swap: whatever field a script reads of stock's output exists here, in the same order.

    All that stock fills is filled, but the two large fields that come on demand.
    """
    model = tiny.tiny_model(family)
    with torch.no_grad():
        ours, theirs = model(**inputs()), tiny.stock_twin(model)(**inputs())
    assert set(type(theirs).__dataclass_fields__) <= set(type(ours).__dataclass_fields__)
    for field in (*STATE_FIELDS, *ATTENTION_FIELDS, "loss", "loss_dict", "auxiliary_outputs"):
        assert getattr(ours, field) is None, f"{field} is computed without being asked for"
    assert list(ours) == [k for k in theirs if k not in ("enc_outputs_class", "enc_outputs_coord_logits")]


# --- one repo, two engines ---------------------------------------------------------------------------------------

SHARING = [
    ("grounding-dino", {}),
    ("grounding-dino", {"decoder_bbox_embed_share": False}),
    ("mm-grounding-dino", {}),
    ("mm-grounding-dino", {"decoder_bbox_embed_share": False, "decoder_cls_embed_share": False}),
    ("mm-grounding-dino", {"decoder_bbox_embed_share": False}),
    ("mm-grounding-dino", {"decoder_cls_embed_share": False}),
    ("mm-grounding-dino", {"backbone_config": ResNetConfig(**RESNET)}),
    ("grounding-dino", {"position_embedding_type": "learned"}),
]
sharings = pytest.mark.parametrize(("family", "changes"), SHARING)


@tiny.sound_stock
@sharings
def test_stock_loads_what_we_save(family: tiny.Family, changes: dict[str, Any], tmp_path: Path) -> None:
    """Ours to disk, stock from disk by its auto class: no key and no warning is left over, the outputs are equal."""
    model = tiny.tiny_model(family, **changes)
    with silence():
        model.save_pretrained(tmp_path)
    stock = load_strictly(transformers.AutoModelForZeroShotObjectDetection, tmp_path)
    assert type(stock) is tiny.STOCK_MODEL[family]
    assert_same_outputs(model, stock)


@tiny.sound_stock
@sharings
def test_we_load_what_stock_saves(family: tiny.Family, changes: dict[str, Any], tmp_path: Path) -> None:
    """Stock to disk, ours from disk: no key and no warning is left over, and the outputs are equal."""
    stock = tiny.stock_twin(tiny.tiny_model(family, **changes))
    stock.save_pretrained(tmp_path)
    assert_same_outputs(load_strictly(own.GroundingDinoForObjectDetection, tmp_path), stock)


@families
def test_parameter_names_are_stocks(family: tiny.Family) -> None:
    """In memory too the names, and so the patterns of adapters and parameter groups, are those of stock."""
    model = tiny.tiny_model(family)
    stock = tiny.STOCK_MODEL[family](tiny.STOCK_CONFIG[family](**tiny.tiny_options()))
    assert {n: p.shape for n, p in model.named_parameters()} == {n: p.shape for n, p in stock.named_parameters()}
    assert set(model.state_dict()) == set(stock.state_dict())


@families
@pytest.mark.parametrize("name", ["GroundingDinoForObjectDetection", "MMGroundingDinoForObjectDetection"])
def test_either_name_loads_either_type(family: tiny.Family, name: str, tmp_path: Path) -> None:
    """The repo's own `model_type` decides, and a save writes back that type and stock's name for it."""
    model = tiny.tiny_model(family)
    model.save_pretrained(tmp_path / "first")
    loaded = getattr(own, name).from_pretrained(tmp_path / "first").eval()
    assert loaded.config.model_type == family
    assert isinstance(loaded, own.GroundingDinoForObjectDetection)
    assert_same_outputs(loaded, model)
    loaded.save_pretrained(tmp_path / "second")
    written = json.loads((tmp_path / "second" / "config.json").read_text())
    assert written["model_type"] == family
    assert written["architectures"] == [tiny.STOCK_MODEL[family].__name__]


STOCK_BASE = {
    "grounding-dino": transformers.GroundingDinoModel,
    "mm-grounding-dino": transformers.MMGroundingDinoModel,
}


@families
def test_base_model_is_written_as_stock_writes_it(family: tiny.Family, tmp_path: Path) -> None:
    """The model without heads too: `architectures` holds stock's class name, and stock's base finds every key."""
    own.GroundingDinoModel(tiny.tiny_config(family)).save_pretrained(tmp_path)
    written = json.loads((tmp_path / "config.json").read_text())
    assert written["model_type"] == family
    assert written["architectures"] == [STOCK_BASE[family].__name__]
    load_strictly(STOCK_BASE[family], tmp_path)


@families
def test_our_base_loads_stock_base(family: tiny.Family, tmp_path: Path) -> None:
    """A save of stock's model without heads leaves ours no key over."""
    STOCK_BASE[family](tiny.STOCK_CONFIG[family](**tiny.tiny_options())).save_pretrained(tmp_path)
    load_strictly(own.GroundingDinoModel, tmp_path)


@tiny.sound_stock
@families
def test_base_of_a_detector_equals_stock(family: tiny.Family, tmp_path: Path) -> None:
    """`GroundingDinoModel.from_pretrained` of a detector's repo gives what stock's base model gives of it."""
    tiny.tiny_model(family, decoder_bbox_embed_share=False).save_pretrained(tmp_path)
    base, info = own.GroundingDinoModel.from_pretrained(tmp_path, output_loading_info=True)
    assert sorted(info["missing_keys"]) == []
    assert_same_outputs(base.eval(), STOCK_BASE[family].from_pretrained(tmp_path).eval(), COMMON_FIELDS[2:])


def assert_tied(model: Any) -> None:
    """Head i is decoder head i, one tensor; and all heads are one where the configuration shares them."""
    share = {
        "bbox_embed": model.config.decoder_bbox_embed_share,
        "class_embed": getattr(model.config, "decoder_cls_embed_share", True),
    }
    for name, shared in share.items():
        heads, decoder_heads = getattr(model, name), getattr(model.model.decoder, name)
        for i, (head, decoder_head) in enumerate(zip(heads, decoder_heads, strict=True)):
            for p, q, first in zip(head.parameters(), decoder_head.parameters(), heads[0].parameters(), strict=True):
                assert p is q, (name, i)
                assert (p is first) == (shared or i == 0), (name, i)


@sharings
def test_heads_and_decoder_heads_are_one_tensor(family: tiny.Family, changes: dict[str, Any], tmp_path: Path) -> None:
    """Tied after construction, after loading and after a copy; and never more than the flags say."""
    model = tiny.tiny_model(family, **changes)
    assert_tied(model)
    model.save_pretrained(tmp_path)
    assert_tied(own.GroundingDinoForObjectDetection.from_pretrained(tmp_path))
    assert_tied(copy.deepcopy(model))


@pytest.mark.parametrize(
    ("family", "flag"),
    [
        ("grounding-dino", "decoder_bbox_embed_share"),
        ("mm-grounding-dino", "decoder_bbox_embed_share"),
        ("mm-grounding-dino", "decoder_cls_embed_share"),
    ],
)
def test_missing_share_flag_is_refused(family: tiny.Family, flag: str, tmp_path: Path) -> None:
    """Three different heads in the weights, no flag in config.json (so True): an error that names it, no silent tie."""
    tiny.tiny_model(family, **{flag: False}).save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    written = json.loads(path.read_text())
    del written[flag]
    path.write_text(json.dumps(written))
    with pytest.raises(ValueError, match=flag):
        own.GroundingDinoForObjectDetection.from_pretrained(tmp_path)


@families
def test_equal_heads_without_flag_load(family: tiny.Family, tmp_path: Path) -> None:
    """Heads that hold equal values may be tied: an unshared save of equal heads loads with the flag removed."""
    model = tiny.tiny_model(family, decoder_bbox_embed_share=False)
    for head in model.bbox_embed[1:]:
        head.load_state_dict(model.bbox_embed[0].state_dict())
    model.save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    written = json.loads(path.read_text())
    del written["decoder_bbox_embed_share"]
    path.write_text(json.dumps(written))
    loaded = own.GroundingDinoForObjectDetection.from_pretrained(tmp_path).eval()
    assert_tied(loaded)
    assert_same_outputs(loaded, model)


# --- the usual ways to hold a model ------------------------------------------------------------------------------


def pickles(module: Any) -> bool:
    """Whether transformers leaves its own module fit for pickling."""
    try:
        pickle.dumps(module)
    except (AttributeError, pickle.PicklingError):
        return False
    return True


@families
@pytest.mark.parametrize("way", ["copy", "pickle"])
def test_copies(family: tiny.Family, way: str) -> None:
    """A copy has the class, the ties, the outputs, what requires a gradient, and no tensor in common with its original.

    (transformers 5.23 hooks a local function into every backbone, which pickle refuses.)
    """
    if way == "pickle" and not pickles(transformers.AutoBackbone.from_config(tiny.tiny_options()["backbone_config"])):
        pytest.skip("the backbone of this transformers cannot be pickled")
    model = tiny.tiny_model(family)
    twin = copy.deepcopy(model) if way == "copy" else pickle.loads(pickle.dumps(model))
    assert type(twin) is type(model)
    assert_tied(twin)
    assert_same_outputs(twin, model)
    assert {p.data_ptr() for p in twin.parameters()}.isdisjoint(p.data_ptr() for p in model.parameters())
    wanted = {n: p.requires_grad for n, p in model.named_parameters()}
    assert {n: p.requires_grad for n, p in twin.named_parameters()} == wanted


@families
def test_construction_on_meta(family: tiny.Family) -> None:
    """Without memory: the same names and shapes, all on `meta`, still tied."""
    real = tiny.tiny_model(family)
    with torch.device("meta"):
        model = own.GroundingDinoForObjectDetection(tiny.tiny_config(family))
    assert {p.device.type for p in model.parameters()} == {"meta"}
    assert {n: p.shape for n, p in model.named_parameters()} == {n: p.shape for n, p in real.named_parameters()}
    assert_tied(model)


@families
def test_fresh_model_starts_as_the_paper_says(family: tiny.Family) -> None:
    """Recipe 3.8: last box layers 0, fusion scales 1e-4; MM's class bias -ln(0.99 / 0.01) = -4.595."""
    model = own.GroundingDinoForObjectDetection(tiny.tiny_config(family))
    for head in (*model.bbox_embed, model.model.encoder_output_bbox_embed):
        assert head.layers[-1].weight.abs().max() == 0
        assert head.layers[-1].bias.abs().max() == 0
    for layer in model.model.encoder.layers:
        assert layer.fusion_layer.vision_param.unique().tolist() == pytest.approx([1e-4])
        assert layer.fusion_layer.text_param.unique().tolist() == pytest.approx([1e-4])
    if family == "mm-grounding-dino":
        for head in (*model.class_embed, model.model.encoder_output_class_embed):
            assert head.bias.item() == pytest.approx(-4.59512)
