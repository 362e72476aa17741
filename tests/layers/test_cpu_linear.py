"""Layers over tokens give the same in chunks and through oneDNN, and step aside for whatever is not a plain layer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers.activations import ACT2FN

from hf_grounding_dino.layers import cpu_linear as module
from hf_grounding_dino.layers.cpu_linear import batched_linear, cpu_linear, is_plain_linear


def layers(activation: str = "relu") -> tuple[nn.Module, ...]:
    torch.manual_seed(0)
    return nn.Linear(8, 32), ACT2FN[activation], nn.Dropout(0.5).eval(), nn.Linear(32, 6)


def tokens(dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(2, 125, 8, generator=torch.Generator().manual_seed(1)).to(dtype)


def one_by_one(x: Tensor, steps: tuple[nn.Module, ...]) -> Tensor:
    for step in steps:
        x = step(x)
    return x


@pytest.mark.parametrize("rows", [1, 7, 64, 250, 2048])
@pytest.mark.parametrize("activation", ["relu", "gelu", "silu"])
def test_equal_to_the_layers(rows: int, activation: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ROWS", rows)
    steps = layers(activation)
    wanted = one_by_one(tokens(), steps)
    with torch.no_grad():
        torch.testing.assert_close(cpu_linear(tokens(), *steps), wanted, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(cpu_linear(tokens().mT.contiguous().mT, *steps), wanted, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(cpu_linear(tokens(), *steps), wanted, rtol=0, atol=0)


def operators(function: Callable[[], Any]) -> set[str]:
    """The names of the operators that a call comes down to."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        function()
    return {event.key for event in profile.key_averages()}


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="torch without oneDNN")
def test_float32_goes_through_onednn_with_and_without_gradients() -> None:
    """With one thread, too, where torch sends a convolution that is not dilated elsewhere."""
    steps, x = layers(), torch.randn(2, 2000, 8, requires_grad=True)
    with torch.no_grad():
        assert "aten::mkldnn_linear" in operators(lambda: cpu_linear(x, *steps))
        assert "aten::mkldnn_linear" in operators(lambda: batched_linear(torch.randn(2, 9, 8), torch.randn(2, 64, 8)))
        assert "aten::mkldnn_linear" not in operators(lambda: cpu_linear(x[:, :5], *steps))
    seen = operators(lambda: cpu_linear(x, *steps).sum().backward())
    assert {"aten::mkldnn_convolution", "aten::convolution_backward"} <= seen
    slow = {"aten::addmm", "aten::_slow_conv2d_forward", "aten::slow_conv_dilated2d"}
    assert not slow & seen
    few = operators(lambda: cpu_linear(x[0, :1000], *steps[:1]).sum().backward())
    assert slow & few == {"aten::addmm"}, "a linear layer where torch would not take the convolution to oneDNN"


@pytest.mark.parametrize("shape", [(2, 1500, 8), (3000, 8), (3, 50, 20, 8), (125, 8)])
def test_gradients_equal_those_of_the_layers(shape: tuple[int, ...]) -> None:
    results = []
    for function in (lambda x, steps: cpu_linear(x, *steps), one_by_one):
        steps = layers()
        x = torch.randn(shape, generator=torch.Generator().manual_seed(1)).requires_grad_()
        output = function(x, steps)
        output.square().sum().backward()
        results.append([output, x.grad, *(p.grad for step in steps for p in step.parameters())])
    for fast, plain in zip(*results, strict=True):
        torch.testing.assert_close(fast, plain, rtol=1e-5, atol=2e-5 * plain.abs().max().item())


@pytest.mark.parametrize("labels", [3, 64])
@pytest.mark.parametrize("bias", [False, True])
def test_batched_products(labels: int, bias: bool) -> None:
    generator = torch.Generator().manual_seed(2)
    x, weight, add = (torch.randn(s, generator=generator) for s in ((3, 70, 8), (3, labels, 8), (3, labels)))
    wanted = x @ weight.mT + (add[:, None] if bias else 0)
    with torch.no_grad():
        product = batched_linear(x, weight, add if bias else None)
    torch.testing.assert_close(product, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_types(dtype: torch.dtype) -> None:
    steps = tuple(step.to(dtype) for step in layers())
    with torch.no_grad():
        result = cpu_linear(tokens(dtype), *steps)
        assert result.dtype == dtype
        torch.testing.assert_close(result, one_by_one(tokens(dtype), steps), rtol=2e-2, atol=2e-2)


def test_autocast_is_kept() -> None:
    steps = layers()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert cpu_linear(tokens(), *steps).dtype == torch.bfloat16


class Doubled(nn.Linear):
    """As an adapter would be."""

    def forward(self, input: Tensor) -> Tensor:
        return 2 * super().forward(input)


def test_adapters_hooks_and_other_forwards_are_obeyed() -> None:
    plain = nn.Linear(8, 6)
    wanted = plain(tokens()).detach()

    def subclass(layer: nn.Linear) -> nn.Module:
        other = Doubled(8, 6)
        other.load_state_dict(layer.state_dict())
        return other

    def hooked(layer: nn.Linear) -> nn.Module:
        layer.register_forward_hook(lambda _module, _inputs, output: 2 * output)
        return layer

    def hooked_before(layer: nn.Linear) -> nn.Module:
        layer.register_forward_pre_hook(lambda _module, inputs: (2 * inputs[0],))
        return layer

    def replaced(layer: nn.Linear) -> nn.Module:
        forward = layer.forward
        layer.forward = lambda input: 2 * forward(input)  # type: ignore[method-assign]
        return layer

    changes: list[Any] = [subclass, hooked, replaced]
    for change in changes:
        fresh = nn.Linear(8, 6)
        fresh.load_state_dict(plain.state_dict())
        assert is_plain_linear(fresh)
        changed = change(fresh)
        assert not is_plain_linear(changed)
        with torch.no_grad():
            torch.testing.assert_close(cpu_linear(tokens(), changed), 2 * wanted)
    assert not is_plain_linear(hooked_before(nn.Linear(8, 6)))


def test_dropout_in_training_drops() -> None:
    steps = layers()
    steps[2].train()
    with torch.no_grad():
        assert not torch.equal(cpu_linear(tokens(), *steps), cpu_linear(tokens(), *steps))
