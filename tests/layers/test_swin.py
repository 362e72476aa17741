"""The fast way through Swin is the stock way, at every size and option, and it steps aside when it must."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

import tiny
from hf_grounding_dino.layers import swin
from hf_grounding_dino.layers.swin import follows_stock, swin_feature_maps

SIZES = [(64, 64), (61, 83), (12, 150), (97, 40), (9, 7)]
"""Windows that fit, that do not, a map of less than a window in one direction, in both."""
OPTIONS: dict[str, dict[str, Any]] = {
    "stages 2-4": {},
    "all stages and the stem": {"out_features": ["stem", "stage1", "stage2", "stage3", "stage4"]},
    "stages 1 and 3": {"out_features": ["stage1", "stage3"]},
    "odd window": {"window_size": 3},
    "no bias, other activation and patch": {"qkv_bias": False, "hidden_act": "relu", "patch_size": 2, "mlp_ratio": 2.0},
    "eager": {"attn_implementation": "eager"},
}
cases = pytest.mark.parametrize(
    ("changes", "size"),
    [*(({}, size) for size in SIZES), *((changes, SIZES[1]) for changes in OPTIONS.values() if changes)],
    ids=str,
)
"""Every size, and every option at one of them."""


def backbone(seed: int = 0, **changes: Any) -> Any:
    """A tiny stock Swin with random weights, biases of positions large enough to matter."""
    if not {"out_features", "out_indices"} & changes.keys():
        changes["out_indices"] = [2, 3, 4]
    attention = changes.pop("attn_implementation", "sdpa")
    defaults: dict[str, Any] = {
        "image_size": 64, "embed_dim": 8, "depths": [2, 1, 3, 2], "num_heads": [1, 2, 2, 4], "window_size": 4,
        "drop_path_rate": 0.0,
    }  # fmt: skip
    model = transformers.AutoBackbone.from_config(
        transformers.SwinConfig(**defaults | changes), attn_implementation=attention
    )
    tiny.randomize(model, seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "relative_position_bias" in name or "q_proj" in name:
                parameter.mul_(4)
    return model.eval()


def images(height: int, width: int, count: int = 2) -> Tensor:
    """Noise `(count, 3, height, width)`."""
    return torch.stack([tiny.noise_image(height, width, seed) for seed in range(count)])


def assert_equal_maps(own: tuple[Tensor, ...], stock: tuple[Tensor, ...], tolerance: float = 1e-5) -> None:
    """Equal up to `tolerance` of the largest value of each map."""
    assert len(own) == len(stock)
    for ours, theirs in zip(own, stock, strict=True):
        assert ours.shape == theirs.shape
        assert ours.dtype == theirs.dtype
        assert ours.is_contiguous()
        assert (ours - theirs).abs().max() <= tolerance * theirs.abs().max()


@pytest.fixture
def never_stock(monkeypatch: pytest.MonkeyPatch) -> Callable[[Any], None]:
    """Makes every stock forward that is to be passed by raise."""

    def forbid(model: Any) -> None:
        def refuse(*_: Any, **__: Any) -> None:
            raise AssertionError("the stock way was taken")

        layer = model.swin.encoder.layers[0].blocks[0]
        for module in (model, model.swin, model.swin.encoder, layer, layer.attention):
            monkeypatch.setattr(type(module), "forward", refuse)

    return forbid


@cases
@torch.no_grad()
def test_maps_are_the_stock_maps(
    changes: dict[str, Any], size: tuple[int, int], never_stock: Callable[[Any], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without gradients, in parts of one row of windows, of several (some with the end of an image inside), of all."""
    model, pixels = backbone(**changes), images(*size)
    stock = model(pixels).feature_maps
    assert follows_stock(model)
    never_stock(model)
    for rows in (1, 50, 10**6):
        monkeypatch.setattr(swin, "ROWS_AT_A_TIME", rows)
        assert_equal_maps(swin_feature_maps(model, pixels), stock)


@cases
def test_gradients_are_the_stock_gradients(changes: dict[str, Any], size: tuple[int, int]) -> None:
    """Of every parameter and of the pixels, in train mode; parameters no map depends on have none either way.

    In float64 rounding hides nothing, but for "eager", whose softmax stock takes in float32. A bias of the keys cancels
    in the softmax, so its gradient is rounding alone.
    """
    model, pixels = backbone(**changes).train().double(), images(*size).double()
    gradients = []
    for maps_of in (lambda x: model(x).feature_maps, lambda x: swin_feature_maps(model, x)):
        model.zero_grad()
        leaf = pixels.clone().requires_grad_()
        maps = maps_of(leaf)
        sum((m * torch.linspace(-1, 1, m.numel()).view_as(m)).sum() for m in maps).backward()
        gradients.append({"pixels": leaf.grad} | {name: p.grad for name, p in model.named_parameters()})
    stock, own = gradients
    assert {name for name, g in own.items() if g is None} == {name for name, g in stock.items() if g is None}
    tolerance = 1e-5 if model.config._attn_implementation == "eager" else 1e-10
    for name, expected in stock.items():
        if expected is not None:
            scale = 1.0 if name.endswith("k_proj.bias") else expected.abs().max()
            assert (own[name] - expected).abs().max() <= tolerance * scale, name


@torch.no_grad()
def test_absolute_positions_are_added() -> None:
    model, pixels = backbone(use_absolute_embeddings=True), images(64, 64)
    expected = model(pixels).feature_maps
    assert_equal_maps(swin_feature_maps(model, pixels), expected)
    model.swin.embeddings.position_embeddings.zero_()
    assert (swin_feature_maps(model, pixels)[0] - expected[0]).abs().max() > 0.1


def test_a_frozen_backbone_gives_the_same_maps_with_gradients_recorded() -> None:
    """Nothing requires a gradient, then only the last stage does."""
    model, pixels = backbone(), images(61, 83)
    stock = [m.detach() for m in model(pixels).feature_maps]
    model.requires_grad_(False)
    maps = swin_feature_maps(model, pixels)
    assert not any(m.requires_grad for m in maps)
    assert_equal_maps(maps, tuple(stock))
    model.swin.encoder.layers[3].requires_grad_(True)
    maps = swin_feature_maps(model, pixels)
    assert [m.requires_grad for m in maps] == [False, False, True]
    maps[2].square().sum().backward()
    assert all(p.grad is not None for p in model.swin.encoder.layers[3].parameters())


@pytest.mark.parametrize("recorded", [False, True], ids=["no_grad", "recorded"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["float16", "bfloat16"])
def test_half_precision_is_no_further_from_float32_than_stock(dtype: torch.dtype, recorded: bool) -> None:
    model, pixels = backbone(), images(61, 83)
    with torch.set_grad_enabled(recorded):
        exact = model(pixels).feature_maps
        half = copy.deepcopy(model).to(dtype)
        stock, own = half(pixels.to(dtype)).feature_maps, swin_feature_maps(half, pixels.to(dtype))
    for ours, theirs, truth in zip(own, stock, exact, strict=True):
        assert ours.dtype == dtype
        assert (ours - truth).norm() <= 1.5 * (theirs - truth).norm()


@torch.no_grad()
def test_autocast_gives_the_types_of_stock() -> None:
    model, pixels = backbone(), images(61, 83)
    with torch.autocast("cpu", torch.bfloat16):
        stock, own = model(pixels).feature_maps, swin_feature_maps(model, pixels)
    assert [m.dtype for m in own] == [m.dtype for m in stock]
    assert_equal_maps(own, stock, tolerance=0.05)


@pytest.mark.parametrize("recorded", [False, True], ids=["no_grad", "recorded"])
def test_stochastic_depth_drops_the_images_that_stock_drops(recorded: bool) -> None:
    model, pixels = backbone(drop_path_rate=0.5).train(), images(29, 31, 5)
    with torch.set_grad_enabled(recorded):
        torch.manual_seed(1)
        stock = model(pixels).feature_maps
        torch.manual_seed(1)
        assert_equal_maps(swin_feature_maps(model, pixels), stock)
        assert (swin_feature_maps(model, pixels)[2] - stock[2]).abs().max() > 0.01


@pytest.mark.parametrize("option", ["hidden_dropout_prob", "attention_probs_dropout_prob"])
@torch.no_grad()
def test_dropout_is_random_in_training_alone(option: str) -> None:
    model, pixels = backbone(**{option: 0.5}).train(), images(29, 31)
    model.swin.embeddings.eval()
    assert (swin_feature_maps(model, pixels)[0] - swin_feature_maps(model, pixels)[0]).abs().max() > 0.01
    model.eval()
    assert_equal_maps(swin_feature_maps(model, pixels), model(pixels).feature_maps)


def test_the_network_goes_the_fast_way(never_stock: Callable[[Any], None]) -> None:
    image_backbone = tiny.tiny_model().model.backbone
    pixels = images(61, 83)
    stock = image_backbone.conv_encoder.model(pixels).feature_maps
    never_stock(image_backbone.conv_encoder.model)
    assert_equal_maps(image_backbone(pixels), stock)


@pytest.mark.parametrize("train", [False, True], ids=["eval", "train"])
def test_it_compiles_as_one_graph(train: bool, never_stock: Callable[[Any], None]) -> None:
    image_backbone = tiny.tiny_model().model.backbone.train(train)
    never_stock(image_backbone.conv_encoder.model)
    pixels = images(37, 50)
    compiled = torch.compile(image_backbone, fullgraph=True, backend="aot_eager")
    gradients = []
    for forward in (image_backbone, compiled):
        with torch.set_grad_enabled(train):
            maps = forward(pixels)
        if train:
            image_backbone.zero_grad()
            sum(m.square().sum() for m in maps).backward()
            gradients.append([p.grad for p in image_backbone.parameters() if p.grad is not None])
        else:
            assert_equal_maps(maps, image_backbone(pixels))
    for eager, traced in zip(*gradients, strict=True) if train else ():
        assert (eager - traced).abs().max() <= 1e-5 * eager.abs().max() + 1e-4


@torch.no_grad()
def test_adapters_on_the_linear_layers_are_heard() -> None:
    """A layer put in place of a projection works as in stock."""
    model, pixels = backbone(), images(29, 31)
    before = swin_feature_maps(model, pixels)
    block = model.swin.encoder.layers[1].blocks[0]
    block.attention.v_proj = torch.nn.Sequential(block.attention.v_proj, torch.nn.Tanh())
    assert follows_stock(model)
    assert_equal_maps(swin_feature_maps(model, pixels), model(pixels).feature_maps)
    assert (swin_feature_maps(model, pixels)[0] - before[0]).abs().max() > 0.01


def hooked(model: Any) -> None:
    """Somebody watches a layer."""
    model.swin.encoder.layers[1].blocks[0].register_forward_hook(lambda *_: None)


def hooked_stage(model: Any) -> None:
    """Somebody watches a stage, where transformers leaves hooks of its own."""
    model.swin.encoder.layers[1].register_forward_hook(lambda *_: None)


def hooked_inside(model: Any) -> None:
    """Somebody watches what a layer is made of."""
    model.swin.encoder.layers[1].blocks[0].mlp.fc2.register_forward_pre_hook(lambda *_: None)


def replaced(model: Any) -> None:
    """Somebody put their own forward on a layer, as offloading does."""
    layer = model.swin.encoder.layers[1].blocks[0]
    layer.forward = layer.forward


def wrapped(model: Any) -> None:
    """A stage is of a class derived from stock, as sharding makes them."""
    stage = model.swin.encoder.layers[1]
    stage.__class__ = type("ShardedStage", (type(stage),), {})


def other_attention(model: Any) -> None:
    """Attention that somebody registered with transformers."""
    model.config._attn_implementation = "flex_attention"


@pytest.mark.parametrize("change", [hooked, hooked_stage, hooked_inside, replaced, wrapped, other_attention])
def test_it_steps_aside(change: Callable[[Any], None]) -> None:
    model = backbone()
    assert follows_stock(model)
    change(model)
    assert not follows_stock(model)


def test_other_backbones_run_as_they_are() -> None:
    config = transformers.ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 16, 16, 32], depths=[1, 1, 1, 1], layer_type="basic", out_indices=[2, 3, 4]
    )
    image_backbone = tiny.tiny_model(backbone_config=config).model.backbone
    assert not follows_stock(image_backbone.conv_encoder.model)
    pixels = images(64, 64)
    assert_equal_maps(image_backbone(pixels), image_backbone.conv_encoder.model(pixels).feature_maps)


def test_checkpointing_changes_no_gradient() -> None:
    """Stages that run twice give the gradients of stages that run once."""
    gradients = []
    for enable in (False, True):
        image_backbone = tiny.tiny_model().model.backbone.train()
        model = image_backbone.conv_encoder.model
        if enable:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        assert follows_stock(model)
        sum(m.square().sum() for m in image_backbone(images(37, 50))).backward()
        gradients.append([p.grad for p in model.parameters() if p.grad is not None])
    for plain, checkpoint in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, checkpoint, rtol=1e-6, atol=1e-6)
