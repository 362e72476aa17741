"""Adapters change nothing until they are trained, act where they stand, and disappear into the weights."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from hf_grounding_dino.training.adapters import LoraSettings, add_lora, merge_lora
from hf_grounding_dino.training.optim import parameter_groups
from tiny import FAMILIES, STOCK_MODEL, Family, boxes_label, noise_image, one, sound_stock, tiny_model

pytest.importorskip("peft")

SETTINGS = LoraSettings(rank=4, alpha=8)
INPUTS = one(noise_image(96, 128))
LABELS = [boxes_label(0, 3, 3)]


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Half of every adapter begins at random."""
    torch.manual_seed(0)


def outputs(model: Any) -> tuple[Tensor, Tensor]:
    model.eval()
    with torch.no_grad():
        output = model(**INPUTS)
    return output.logits, output.pred_boxes


def distance(a: tuple[Tensor, Tensor], b: tuple[Tensor, Tensor]) -> float:
    finite = [(x.nan_to_num(neginf=0.0), y.nan_to_num(neginf=0.0)) for x, y in zip(a, b, strict=True)]
    return max(float((x - y).detach().abs().max()) for x, y in finite)


def shake_adapters(model: Any) -> None:
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.copy_(0.2 * torch.randn(parameter.shape, generator=generator))


@pytest.mark.parametrize("family", FAMILIES)
def test_new_adapters_change_nothing(family: Family) -> None:
    """What is added is exactly 0; without gradients plain layers may go through oneDNN, so compare with them."""
    model = tiny_model(family)
    model.eval()
    expected = model(**INPUTS)
    adapted = add_lora(model, SETTINGS).eval()
    got = adapted(**INPUTS)
    assert distance((got.logits, got.pred_boxes), (expected.logits, expected.pred_boxes)) == 0
    assert distance(outputs(adapted), (expected.logits, expected.pred_boxes)) <= 1e-5


def test_every_adapter_acts() -> None:
    """Once B is not 0, both halves of every adapter get a gradient; a layer that is never called would give none."""
    adapted = add_lora(tiny_model(), SETTINGS).train()
    shake_adapters(adapted)
    adapted(**INPUTS, labels=LABELS).loss.backward()
    trained = {name: p for name, p in adapted.named_parameters() if p.requires_grad}
    assert all("lora_" in name for name in trained)
    silent = {name for name, p in trained.items() if p.grad is None or not p.grad.any()}
    assert not silent
    for part in ("text_backbone", "text_enhancer_layer", "fusion_layer", "deformable_layer", "decoder"):
        assert any(part in name for name in trained), part
    assert not any("swin" in name or "bbox_embed" in name for name in trained)


@pytest.mark.parametrize("family", FAMILIES)
def test_merged_equals_unmerged(family: Family) -> None:
    """In float64, where rounding chooses no other queries."""
    model = tiny_model(family).double()
    base = outputs(model)
    adapted = add_lora(model, SETTINGS)
    shake_adapters(adapted)
    apart = outputs(adapted)
    assert distance(apart, base) > 1e-2
    merged: Any = merge_lora(adapted)
    assert distance(outputs(merged), apart) <= 1e-5
    assert distance(outputs(adapted), apart) == 0, "the model that trains on is left as it is"
    assert type(merged) is type(tiny_model(family))


@sound_stock
def test_stock_loads_what_was_merged(tmp_path: Path) -> None:
    family: Family = "mm-grounding-dino"
    adapted = add_lora(tiny_model(family), SETTINGS)
    shake_adapters(adapted)
    merged: Any = merge_lora(adapted)
    merged.save_pretrained(tmp_path)
    stock, info = STOCK_MODEL[family].from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert distance(outputs(stock), outputs(merged)) <= 1e-4


def test_gradient_checkpointing_changes_no_gradient() -> None:
    def gradients(checkpointing: bool) -> dict[str, Tensor]:
        torch.manual_seed(0)
        model = tiny_model()
        if checkpointing:
            model.gradient_checkpointing_enable()
        adapted = add_lora(model, SETTINGS).train()
        shake_adapters(adapted)
        adapted(**INPUTS, labels=LABELS).loss.backward()
        return {name: p.grad for name, p in adapted.named_parameters() if p.grad is not None}

    plain, saving = gradients(False), gradients(True)
    assert plain.keys() == saving.keys()
    assert all(torch.allclose(plain[name], saving[name], rtol=1e-4, atol=1e-6) for name in plain)


def test_heads_can_be_trained_beside_and_stay_tied() -> None:
    adapted = add_lora(tiny_model().double(), LoraSettings(rank=4, also_train=("heads",))).train()
    optimizer = torch.optim.AdamW(parameter_groups(adapted, 1e-2))
    adapted(**INPUTS, labels=LABELS).loss.backward()
    optimizer.step()
    merged: Any = merge_lora(adapted)
    assert not torch.equal(merged.bbox_embed[0].layers[0].weight, tiny_model().double().bbox_embed[0].layers[0].weight)
    assert merged.bbox_embed[0].layers[0].weight is merged.model.decoder.bbox_embed[2].layers[0].weight
    assert distance(outputs(merged), outputs(adapted)) <= 1e-5


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        ("nothing", "No linear layer"),
        (("vision_proj",), "fusion folds"),
        (r".*fusion_layer\.attn\..*", "fusion folds"),
        (r".*bbox_embed\.\d\.layers\.0", "also_train"),
        (r"model\.backbone\.position_embedding", "No linear layer"),
    ],
)
def test_targets_that_cannot_work_are_refused(targets: Any, message: str) -> None:
    model = tiny_model()
    with pytest.raises(ValueError, match=message):
        add_lora(model, LoraSettings(targets=targets))
    assert all(p.requires_grad for n, p in model.named_parameters() if "swin.layernorm" not in n), "nothing was done"


def test_endings_of_names_are_targets_too() -> None:
    adapted = add_lora(tiny_model(), LoraSettings(targets=("decoder.layers.0.fc1", "text_projection")))
    names = {name.split(".lora_")[0] for name, _ in adapted.named_parameters() if "lora_" in name}
    prefix = "base_model.model.model."
    assert names == {f"{prefix}decoder.layers.0.fc1", f"{prefix}text_projection"}


def test_without_peft_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ImportError, match="pip install peft"):
        add_lora(tiny_model(), SETTINGS)
