"""Parts of the network, what freezing means, and which parameter learns how fast."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from hf_grounding_dino.training.groups import PARTS, GroupSettings, freeze, parameter_groups, part_of, train_mode
from tiny import FAMILIES, Family, boxes_label, noise_image, one, tiny_config, tiny_model, tiny_options

SETTINGS = GroupSettings(learning_rate=1e-3, text_multiplier=0.5, weight_decay=0.05)
EXAMPLES = {
    "model.backbone.conv_encoder.model.swin.encoder.layers.0.blocks.0.mlp.fc1.weight": "backbone",
    "model.text_backbone.encoder.layer.0.output.dense.bias": "text",
    "model.encoder.layers.1.fusion_layer.vision_param": "encoder",
    "model.level_embed": "encoder",
    "model.decoder.layers.0.fc1.weight": "decoder",
    "model.decoder.reference_points_head.layers.0.weight": "decoder",
    "model.query_position_embeddings.weight": "decoder",
    "model.decoder.bbox_embed.0.layers.0.weight": "heads",
    "bbox_embed.2.layers.1.bias": "heads",
    "class_embed.0.bias": "heads",
    "model.encoder_output_bbox_embed.layers.0.weight": "heads",
    "model.text_projection.weight": None,
    "model.input_proj_vision.0.0.weight": None,
    "model.enc_output.weight": None,
}


@pytest.mark.parametrize("prefix", ["", "module.", "base_model.model."])
def test_a_parameter_is_of_the_part_it_stands_in(prefix: str) -> None:
    names = dict(
        tiny_model("mm-grounding-dino", decoder_cls_embed_share=False).named_parameters(remove_duplicate=False)
    )
    assert set(EXAMPLES) <= set(names)
    assert {name: part_of(prefix + name) for name in EXAMPLES} == EXAMPLES


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("shared", [True, False])
def test_each_trained_parameter_is_in_one_group_once(family: Family, shared: bool) -> None:
    """Shared heads have twelve names a tensor with three layers; the optimizer must see each tensor once."""
    model = tiny_model(family, decoder_bbox_embed_share=shared)
    grouped = [id(p) for group in parameter_groups(model, SETTINGS) for p in group["params"]]
    assert len(grouped) == len(set(grouped))
    assert set(grouped) == {id(p) for p in model.parameters() if p.requires_grad}


def test_groups_have_their_rates_and_decays() -> None:
    """1e-3 for the rest, a tenth of it for the backbone, half of it for the text; vectors do not decay."""
    model = tiny_model()
    groups = parameter_groups(model, SETTINGS)
    said = [(group["name"], group["lr"], group["weight_decay"]) for group in groups]
    rates = {"backbone": 1e-4, "text": 5e-4, "rest": 1e-3}
    assert said == [(name, pytest.approx(rate), decay) for name, rate in rates.items() for decay in (0.05, 0.0)]
    names = {id(p): name for name, p in model.named_parameters()}
    for group in groups:
        assert all((p.ndim >= 2) == (group["weight_decay"] > 0) for p in group["params"])
        found = {part_of(names[id(p)]) for p in group["params"]}
        assert found == {group["name"]} or (group["name"] == "rest" and not found & {"backbone", "text"})
    torch.optim.AdamW(groups)


def test_vectors_decay_when_asked() -> None:
    settings = GroupSettings(learning_rate=1e-3, decay_vectors=True)
    groups = parameter_groups(tiny_model(), settings)
    assert [(group["name"], group["weight_decay"]) for group in groups] == [
        (name, 1e-4) for name in ("backbone", "text", "rest")
    ]


def test_a_multiplier_of_0_freezes() -> None:
    model = tiny_model()
    groups = parameter_groups(model, GroupSettings(learning_rate=1e-3, backbone_multiplier=0, text_multiplier=0))
    assert {group["name"] for group in groups} == {"rest"}
    assert not any(p.requires_grad for n, p in model.named_parameters() if part_of(n) in ("backbone", "text"))


@pytest.mark.parametrize("part", PARTS)
def test_freezing_a_part_freezes_it_alone(part: str) -> None:
    model = tiny_model("mm-grounding-dino", decoder_cls_embed_share=False)
    before = {name for name, p in model.named_parameters() if p.requires_grad}
    freeze(model, [part])
    frozen = {name for name in before if not model.get_parameter(name).requires_grad}
    assert frozen == {name for name in before if part_of(name) == part} != set()


def test_an_expression_is_searched_in_every_name_of_a_tied_tensor() -> None:
    model = tiny_model(decoder_bbox_embed_share=False)
    freeze(model, ["re:^bbox_embed.1", "re:input_proj"])
    frozen = {n for n, p in model.named_parameters(remove_duplicate=False) if not p.requires_grad and "swin" not in n}
    heads = {n for n in frozen if "bbox_embed" in n}
    assert all("bbox_embed.1." in n for n in heads) and len(heads) == 12, "three layers of two tensors, two names each"
    assert frozen - heads == {n for n, _ in model.named_parameters() if "input_proj" in n}


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        (["bakcbone"], "no part 'bakcbone': choose from backbone, text, heads, decoder, encoder"),
        (["re:nowhere"], "in no parameter's name"),
        (["re:("], "no regular expression"),
        (["re:."], "Nothing is left to train"),
    ],
)
def test_what_cannot_be_frozen_is_refused(parts: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        freeze(tiny_model(), parts)


def test_nothing_to_train_is_refused() -> None:
    with pytest.raises(ValueError, match="Nothing is left"):
        parameter_groups(tiny_model().requires_grad_(False), SETTINGS)


@pytest.mark.parametrize(
    "changes", [{"learning_rate": 0.0}, {"learning_rate": 1e-3, "text_multiplier": -1.0}], ids=["rate", "multiplier"]
)
def test_impossible_rates_are_refused(changes: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="|".join(changes)):
        GroupSettings(**changes)  # type: ignore[arg-type]


def noisy_model() -> nn.Module:
    """Half of everything is dropped in the text encoder, and half of the updates in the backbone."""
    options = tiny_options()
    options["text_config"].hidden_dropout_prob = options["text_config"].attention_probs_dropout_prob = 0.5
    options["backbone_config"].drop_path_rate = 0.5
    config = tiny_config("grounding-dino", **options)
    return type(tiny_model())(config)


def features(model: nn.Module) -> list[torch.Tensor]:
    inputs = one(noise_image(96, 128))
    text = model.model.text_backbone(input_ids=inputs["input_ids"]).last_hidden_state
    return [text, *model.model.backbone(inputs["pixel_values"].repeat(4, 1, 1, 1))]


def test_what_is_frozen_drops_nothing_in_training() -> None:
    """The features stay those of eval mode; `model.train()` alone would let both encoders drop."""
    model = noisy_model()
    expected = features(model.eval())
    freeze(model, ["backbone", "text"])
    model.train()
    assert not any(torch.equal(a, b) for a, b in zip(features(model), expected, strict=True))
    train_mode(model)
    assert all(torch.equal(a, b) for a, b in zip(features(model), expected, strict=True))
    assert model.training and model.model.encoder.layers[0].training and model.model.text_projection.training
    assert not model.model.text_backbone.encoder.layer[0].attention.self.training
    assert not model.model.backbone.conv_encoder.model.swin.encoder.layers[2].blocks[1].drop_path.training


def test_what_is_trained_drops_in_training() -> None:
    model = noisy_model().eval()
    train_mode(model)
    trained = [m for n, m in model.named_modules() if not n.endswith("swin.layernorm")]  # used by no feature map
    assert all(module.training for module in trained)


def test_a_model_frozen_as_a_whole_is_in_eval_mode() -> None:
    model = tiny_model().requires_grad_(False)
    train_mode(model)
    assert not any(module.training for module in model.modules())


def test_frozen_parts_stay_as_they_are_in_a_step() -> None:
    """Weight decay too leaves them alone; everything that is trained moves."""
    model = tiny_model()
    optimizer = torch.optim.AdamW(
        parameter_groups(model, GroupSettings(learning_rate=1e-2, backbone_multiplier=0, weight_decay=0.5))
    )
    freeze(model, ["decoder"])
    train_mode(model)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    model(**one(noise_image(96, 128)), labels=[boxes_label(0, 3, 3)]).loss.backward()
    optimizer.step()
    still = {name for name, p in model.named_parameters() if torch.equal(p, before[name])}
    assert {part_of(name) for name in still} >= {"backbone", "decoder"}
    assert all(part_of(name) in ("backbone", "decoder") for name in still if not name.endswith("key.bias"))
