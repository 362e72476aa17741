"""Parts of the network, what freezing means, which parameter learns how fast, and the rate over the steps."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from hf_grounding_dino.training.optim import (
    PARTS,
    freeze,
    learning_rate_schedule,
    parameter_groups,
    part_of,
    train_mode,
)
from tiny import FAMILIES, Family, boxes_label, noise_image, one, tiny_config, tiny_model, tiny_options

EXAMPLES = {
    "model.backbone.conv_encoder.model.swin.encoder.layers.0.blocks.0.mlp.fc1.weight": "backbone",
    "model.text_backbone.encoder.layer.0.output.dense.bias": "text",
    "model.encoder.layers.1.fusion_layer.vision_param": "encoder",
    "model.level_embed": "encoder",
    "model.decoder.layers.0.fc1.weight": "decoder",
    "model.query_position_embeddings.weight": "decoder",
    "model.decoder.bbox_embed.0.layers.0.weight": "heads",
    "class_embed.0.bias": "heads",
    "model.encoder_output_bbox_embed.layers.0.weight": "heads",
    "model.text_projection.weight": None,
    "model.input_proj_vision.0.0.weight": None,
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
def test_groups_hold_each_trained_tensor_once_with_its_rate_and_decay(family: Family, shared: bool) -> None:
    """1e-3 for the rest, a tenth of it for the backbone, half of it for the text; vectors do not decay.

    Shared heads have twelve names a tensor with three layers; the optimizer must see each tensor once.
    """
    model = tiny_model(family, decoder_bbox_embed_share=shared)
    groups = parameter_groups(model, 1e-3, text_lr_mult=0.5, weight_decay=0.05)
    grouped = [id(p) for group in groups for p in group["params"]]
    assert len(grouped) == len(set(grouped))
    assert set(grouped) == {id(p) for p in model.parameters() if p.requires_grad}
    said = [(group["name"], group["lr"], group["weight_decay"]) for group in groups]
    rates = {"backbone": 1e-4, "text": 5e-4, "rest": 1e-3}
    assert said == [(name, pytest.approx(rate), decay) for name, rate in rates.items() for decay in (0.05, 0.0)]
    names = {id(p): name for name, p in model.named_parameters()}
    for group in groups:
        assert all((p.ndim >= 2) == (group["weight_decay"] > 0) for p in group["params"])
        found = {part_of(names[id(p)]) for p in group["params"]}
        assert found == {group["name"]} or (group["name"] == "rest" and not found & {"backbone", "text"})


def test_vectors_decay_when_asked() -> None:
    groups = parameter_groups(tiny_model(), 1e-3, decay_vectors=True)
    assert [(group["name"], group["weight_decay"]) for group in groups] == [
        (name, 1e-4) for name in ("backbone", "text", "rest")
    ]


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


def noisy_model() -> nn.Module:
    """Half of everything is dropped in the text encoder, and half of the updates in the backbone."""
    options = tiny_options()
    options["text_config"].hidden_dropout_prob = options["text_config"].attention_probs_dropout_prob = 0.5
    options["backbone_config"].drop_path_rate = 0.5
    return type(tiny_model())(tiny_config("grounding-dino", **options))


def features(model: nn.Module) -> list[torch.Tensor]:
    inputs = one(noise_image(96, 128))
    text = model.model.text_backbone(input_ids=inputs["input_ids"]).last_hidden_state
    return [text, *model.model.backbone(inputs["pixel_values"].repeat(4, 1, 1, 1))]


def test_what_is_frozen_drops_nothing_in_training() -> None:
    """The features stay those of eval mode; `model.train()` alone would let both encoders drop."""
    model = noisy_model()
    train_mode(model)
    trained = [m for n, m in model.named_modules() if not n.endswith("swin.layernorm")]  # used by no feature map
    assert all(module.training for module in trained)
    expected = features(model.eval())
    freeze(model, ["backbone", "text"])
    model.train()
    assert not any(torch.equal(a, b) for a, b in zip(features(model), expected, strict=True))
    train_mode(model)
    assert all(torch.equal(a, b) for a, b in zip(features(model), expected, strict=True))
    assert model.training and model.model.encoder.layers[0].training and model.model.text_projection.training
    train_mode(model.requires_grad_(False))
    assert not any(module.training for module in model.modules())


def test_frozen_parts_stay_as_they_are_in_a_step() -> None:
    """By a multiplier of 0 or by `freeze`; weight decay too leaves them alone; everything that is trained moves."""
    model = tiny_model()
    optimizer = torch.optim.AdamW(parameter_groups(model, 1e-2, backbone_lr_mult=0, weight_decay=0.5))
    freeze(model, ["decoder"])
    train_mode(model)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    model(**one(noise_image(96, 128)), labels=[boxes_label(0, 3, 3)]).loss.backward()
    optimizer.step()
    still = {name for name, p in model.named_parameters() if torch.equal(p, before[name])}
    assert {part_of(name) for name in still} >= {"backbone", "decoder"}
    assert all(part_of(name) in ("backbone", "decoder") for name in still if not name.endswith("key.bias"))


# The learning rate over the steps: a warm-up in a line from 0.1, each of 4 steps adding (1 - 0.1) / 4; a cosine, of
# which a quarter has (1 + cos 45 degrees) / 2; epochs of 10 steps with falls after 8 and 11.
FACTORS: list[tuple[str, dict[str, Any], dict[int, float]]] = [
    ("cosine", {"max_steps": 104, "warmup_steps": 4},
     {0: 0.1, 1: 0.325, 3: 0.775, 4: 1, 29: (1 + 0.5**0.5) / 2, 54: 0.5, 104: 0, 500: 0}),
    ("step", {"max_steps": 120, "milestones": (80, 110)}, {0: 1, 79: 1, 80: 0.1, 109: 0.1, 110: 0.01, 119: 0.01}),
    ("step", {"max_steps": 120, "milestones": (80,), "gamma": 0.5, "warmup_steps": 4}, {2: 0.55, 80: 0.5}),
    ("constant", {"max_steps": 10, "warmup_steps": 2}, {0: 0.1, 1: 0.55, 2: 1, 12: 1}),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "settings", "factors"), FACTORS, ids=lambda value: str(value)[:20])
def test_the_rate_follows_its_schedule(kind: Any, settings: dict[str, Any], factors: dict[int, float]) -> None:
    """Groups keep their ratio, and a schedule goes on where it stopped."""
    groups = [{"params": [nn.Parameter(torch.ones(1))], "lr": rate} for rate in (1e-3, 1e-4)]
    optimizer = torch.optim.SGD(groups)
    schedule = learning_rate_schedule(optimizer, kind, **settings)
    for step in range(max(factors) + 1):
        if step in factors:
            assert schedule.get_last_lr() == pytest.approx([1e-3 * factors[step], 1e-4 * factors[step]])
        if step == 1:
            state, schedule = schedule.state_dict(), learning_rate_schedule(optimizer, kind, **settings)
            schedule.load_state_dict(state)
        optimizer.step()
        schedule.step()


@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        ("cosine", {"warmup_steps": 10}, "`warmup_steps` is 10, out of 0 to 9"),
        ("step", {}, "they go with 'step'"),
        ("cosine", {"milestones": (5,)}, "they go with 'step'"),
        ("step", {"milestones": (8, 5)}, "must rise between 0 and 10"),
        ("step", {"milestones": (5, 10)}, "must rise between 0 and 10"),
    ],
)
def test_impossible_schedules_are_refused(kind: Any, changes: dict[str, Any], message: str) -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.ones(1))])
    with pytest.raises(ValueError, match=message):
        learning_rate_schedule(optimizer, kind, 10, **changes)
