"""Hooks fire as in transformers: on every module, on the first call and on those served from a cache."""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

import pytest
import torch
from torch import nn

from tiny import FAMILIES, Family, boxes_label, noise_image, one, sound_stock, stock_twin, tiny_model

families = pytest.mark.parametrize("family", FAMILIES)


def modules_that_fire(model: nn.Module, **inputs: Any) -> Counter[str]:
    fired: Counter[str] = Counter()

    def count(name: str) -> Any:
        return lambda *_: fired.update([name])

    hooks = [module.register_forward_hook(count(name)) for name, module in model.named_modules()]
    model(**inputs)
    for hook in hooks:
        hook.remove()
    return fired


@sound_stock
@pytest.mark.parametrize("grad", [False, True], ids=["inference", "training"])
@families
def test_hooks_fire_on_every_module_that_transformers_calls(family: Family, grad: bool) -> None:
    """Large enough for the ways around a call: oneDNN chains, folded fusion, Swin by windows, kept text features.

    But for the heads of all layers but the last, which have nothing to say without labels.
    """
    model = tiny_model(family).train(grad)
    inputs: dict[str, Any] = one(noise_image(160, 192))
    expected = modules_that_fire(stock_twin(model), **inputs)
    inputs |= {"labels": [boxes_label(0, 3, 3)]} if grad else {}
    with torch.set_grad_enabled(grad):
        model(**inputs)
        plain = model(**inputs)
        fired = modules_that_fire(model, **inputs)
        after = model(**inputs)
    own_names = {name for name, _ in model.named_modules()}
    missing = {name for name in expected if name in own_names and not fired[name]}
    assert not {name for name in missing if grad or not re.match(r"(bbox|class)_embed\.[01]\b", name)}
    assert len(own_names & set(expected)) > 100
    torch.testing.assert_close(after.logits, plain.logits, atol=0, rtol=0)


@pytest.mark.parametrize(
    "name",
    [
        "model",
        "model.backbone.conv_encoder",
        "model.backbone.conv_encoder.model.swin.encoder.layers.0",
        "model.backbone.conv_encoder.model.swin.encoder.layers.1.blocks.0.layernorm_before",
        "model.backbone.conv_encoder.model.swin.encoder.layers.1.blocks.0.mlp.activation_fn",
        "model.text_backbone",
        "model.text_backbone.encoder.layer.0",
        "model.text_projection",
        "model.encoder.layers.0.fusion_layer.attn.values_vision_proj",
        "model.encoder.layers.0.deformable_layer.activation_fn",
        "model.decoder.layers.1",
    ],
)
def test_what_a_hook_gives_back_is_what_counts(name: str) -> None:
    """Registered after a first call, it changes the next one; removed, it leaves nothing behind."""
    model, inputs = tiny_model(), one(noise_image(160, 192))
    with torch.no_grad():
        before = model(**inputs)
        hook = model.get_submodule(name).register_forward_hook(lambda *call: scaled(call[-1]))
        hooked = model(**inputs)
        hook.remove()
        after = model(**inputs)
    assert (hooked.logits - before.logits).nan_to_num(0, 0, 0).abs().max() > 1e-3
    torch.testing.assert_close(after.logits, before.logits, atol=0, rtol=0)


def scaled(output: Any) -> Any:
    """All that is floating in an output, turned over and half as large."""
    if isinstance(output, torch.Tensor):
        return output * -0.5 if output.is_floating_point() else output
    if isinstance(output, dict):
        return type(output)(**{name: scaled(part) for name, part in output.items()})
    if hasattr(output, "_fields"):
        return type(output)(*map(scaled, output))
    return type(output)(map(scaled, output)) if isinstance(output, (tuple, list)) else output


def test_a_hook_on_all_modules_counts_too() -> None:
    """As profilers register them; also where the text features are kept from an earlier call."""
    model, inputs = tiny_model(), one(noise_image(160, 192))
    kinds: set[str] = set()
    with torch.no_grad():
        model(**inputs)
        hook = nn.modules.module.register_module_forward_hook(lambda module, *_: kinds.add(type(module).__name__))
        model(**inputs)
        hook.remove()
    assert kinds >= {"GroundingDinoModel", "SwinStage", "SwinAttention", "BertLayer", "DecoderLayer"}


def test_gradients_pass_a_hooked_base_model() -> None:
    """The loss reads what the base model returns, the first stage and the denoising queries included."""
    model = tiny_model("mm-grounding-dino").train()
    model.enable_denoising(num_queries=4)
    inputs, labels = one(noise_image(96, 128)), [boxes_label(0, 3, 3) | {"noise_seed": 1}]
    model(**inputs, labels=labels).loss.backward()
    expected = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    seen: list[Any] = []
    model.model.register_forward_hook(lambda *call: seen.append(call[-1]))
    model(**inputs, labels=labels).loss.backward()
    assert len(seen) == 1 and seen[0].last_hidden_state.requires_grad
    for name, parameter in model.named_parameters():
        if name in expected:
            torch.testing.assert_close(parameter.grad, expected[name], atol=0, rtol=0)
