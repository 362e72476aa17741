"""Any backbone of transformers: its batch norms are frozen as they are, and what it does not use is found cheaply."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import nn

import hf_grounding_dino as own
import tiny
from hf_grounding_dino.layers.backbone import freeze_batch_norm, unused_parameters

SMALL = {"embedding_size": 8, "hidden_sizes": [8, 16, 32, 32], "depths": [1, 1, 1, 1]}


def timm(name: str) -> transformers.TimmBackboneConfig:
    """A network of timm, by name."""
    return transformers.TimmBackboneConfig(backbone=name, out_indices=[1, 2, 3])


NORMED: dict[str, Any] = {  # their epsilons are 1e-5 and others, some of timm end in an activation
    "resnet": transformers.ResNetConfig(**SMALL, out_features=["stage2", "stage3", "stage4"]),
    "rt_detr_resnet": transformers.RTDetrResNetConfig(**SMALL, out_features=["stage2", "stage3", "stage4"]),
    "textnet": transformers.TextNetConfig(out_features=["stage2", "stage3"], batch_norm_eps=1e-3),
    "timm resnet": timm("resnet18"),
    "timm efficientnet": timm("efficientnet_b0"),
    "timm mobilenetv3": timm("mobilenetv3_small_050"),
    "timm efficientvit": timm("efficientvit_b0"),
    "timm efficientvit of Grounding DINO 1.5 Edge": timm("efficientvit_l1"),
}
TINY_SWIN: dict[str, Any] = {"image_size": 64, "embed_dim": 8, "num_heads": [1, 2, 2, 4], "window_size": 4}


def swin(*stages: str) -> transformers.SwinConfig:
    """Two layers in each of four stages."""
    return transformers.SwinConfig(**TINY_SWIN, depths=[2, 2, 2, 2], out_features=list(stages))


def live(config: Any) -> Any:
    """The backbone in eval, with statistics as of a trained one, far from 0 and 1."""
    torch.manual_seed(0)
    model = transformers.AutoBackbone.from_config(config).eval()
    with torch.no_grad():
        for norm in (module for module in model.modules() if isinstance(module, nn.BatchNorm2d)):
            norm.running_mean.normal_(std=0.1)
            norm.running_var.uniform_(0.02, 0.1)
            norm.weight.normal_(1.0, 0.2)
            norm.bias.normal_(std=0.3)
    return model


@pytest.mark.parametrize("config", NORMED.values(), ids=NORMED.keys())
def test_a_frozen_batch_norm_computes_what_the_live_one_computes_in_eval(config: Any) -> None:
    """In training too, within 1e-4 of the maps' deviation; nothing of it is trained or counts batches."""
    model = live(config)
    frozen = copy.deepcopy(model)
    freeze_batch_norm(frozen)
    assert not [module for module in frozen.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    names = {name for name in model.state_dict() if not name.endswith("num_batches_tracked")}
    assert frozen.state_dict().keys() == names
    pixels = torch.stack([tiny.noise_image(64, 64), tiny.noise_image(64, 64, 1)])
    with torch.no_grad():
        expected, found = model(pixels).feature_maps, frozen.train()(pixels).feature_maps
    for there, here in zip(expected, found, strict=True):
        assert (here - there).abs().max() <= 1e-4 * there.std()


def test_a_detector_keeps_the_batch_norms_of_its_backbone(tmp_path: Path) -> None:
    """Built, trained a step, saved and loaded, the backbone in the model is the live one with the same numbers."""
    config = timm("mobilenetv3_small_050")
    model = tiny.tiny_model(backbone_config=config).train()
    plain = live(config)
    inside = model.model.backbone.conv_encoder.model
    inside.load_state_dict({n: t for n, t in plain.state_dict().items() if not n.endswith("num_batches_tracked")})
    inputs = tiny.one(tiny.noise_image(70, 91))
    model(**inputs, labels=[tiny.boxes_label(0, 3, 3)]).loss.backward()
    assert [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None] == []
    model.save_pretrained(tmp_path)
    loaded = own.GroundingDinoForObjectDetection.from_pretrained(tmp_path)
    with torch.no_grad():
        expected, found = plain(inputs["pixel_values"]), loaded.model.backbone(inputs["pixel_values"])
    for there, here in zip(expected.feature_maps, found, strict=True):
        assert (here - there).abs().max() <= 1e-4 * there.std()


# --- what no feature map depends on ------------------------------------------------------------------------------

UNUSED: dict[str, Any] = {
    "swin": swin("stage2", "stage3", "stage4"),
    "swin, a gap": swin("stem", "stage3"),
    "swin, the first": swin("stage1"),
    "swin, the stem": swin("stem"),
    "resnet": transformers.ResNetConfig(**SMALL, out_features=["stage2", "stage3"]),
    "convnext": transformers.ConvNextConfig(hidden_sizes=[8] * 4, depths=[1] * 4, out_features=["stage1", "stage2"]),
    "dinov2": transformers.Dinov2Config(
        hidden_size=16, num_attention_heads=2, num_hidden_layers=3, image_size=28, out_features=["stage1", "stage2"]
    ),
    "timm": transformers.TimmBackboneConfig(backbone="mobilenetv3_small_050", out_indices=[1, 2]),
}


@pytest.mark.parametrize("config", UNUSED.values(), ids=UNUSED.keys())
def test_what_gets_no_gradient_is_unused(config: Any) -> None:
    """By a step with numbers, of the backbone as it is built."""
    model = transformers.AutoBackbone.from_config(config).train()
    freeze_batch_norm(model)
    maps = model(tiny.noise_image(64, 64)[None, :, : config.to_dict().get("image_size", 64)]).feature_maps
    sum(feature_map.sum() for feature_map in maps).backward()
    assert unused_parameters(model) == {name for name, p in model.named_parameters() if p.grad is None}


def test_building_a_model_runs_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """Never a Swin; another backbone once, for as many models of its configuration as there are."""
    calls: list[str] = []
    for cls in (transformers.SwinBackbone, transformers.ResNetBackbone):
        forward = cls.forward

        def count(self: Any, *args: Any, forward: Any = forward, **options: Any) -> Any:
            calls.append(type(self).__name__)
            return forward(self, *args, **options)

        monkeypatch.setattr(cls, "forward", count)
    for _ in range(2):
        own.GroundingDinoForObjectDetection(tiny.tiny_config("grounding-dino"))
    assert calls == []
    options = {"layer_type": "basic", "hidden_act": "gelu", "out_features": ["stage2", "stage3", "stage4"]}
    for family in tiny.FAMILIES * 2:
        config = transformers.ResNetConfig(**SMALL, **options)
        own.GroundingDinoForObjectDetection(tiny.tiny_config(family, backbone_config=config))
    assert calls == ["ResNetBackbone"]
