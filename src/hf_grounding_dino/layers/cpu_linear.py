"""Layers that treat each token by itself: linear layers and what stands between them.

On a CPU they run in float32 through oneDNN, which multiplies matrices up to twice as fast as the BLAS behind
`nn.Linear`, and without gradients some rows at a time, so that what lies between two layers stays in the cache.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn
from transformers.activations import GELUActivation

ROWS = 2048
FEWEST_ROWS = 64
"""Below this, bringing tensors into the form of oneDNN costs more than it gains."""
CONVOLUTION_VALUES = 20480
"""Up to this many values torch keeps a convolution of one image from oneDNN (`use_mkldnn` in its Convolution.cpp)."""

RECORDING_HOOKS = "transformers.utils.output_capturing"

Step = Callable[[Tensor], Tensor]


def cpu_linear(x: Tensor, *layers: nn.Module) -> Tensor:
    """The layers one after another, for tokens in the last dimension but one; the result does not depend on the way.

    Args:
        x: `(..., D)`.
    """
    rows = x.numel() // x.shape[-1]
    if torch.compiler.is_compiling() or x.device.type != "cpu" or rows < FEWEST_ROWS:
        return _chain(layers)(x)
    if torch.is_grad_enabled():
        return _chain([partial(_differentiable, layer) for layer in layers])(x)
    chain = _onednn_chain(x, layers) or _chain(layers)
    tokens = x.reshape(rows, x.shape[-1])
    pieces = [chain(chunk) for chunk in tokens.split(ROWS)]
    joined = pieces[0] if len(pieces) == 1 else torch.cat(pieces)
    return joined.view(*x.shape[:-1], -1)


def _differentiable(layer: nn.Module, x: Tensor) -> Tensor:
    """A layer with gradients; a linear one as a convolution of single pixels, which goes through oneDNN both ways."""
    suits = x.numel() > CONVOLUTION_VALUES and _suits_onednn(x)
    if not (suits and isinstance(layer, nn.Linear) and _is_plain_on_cpu(layer)):
        output: Tensor = layer(x)
        return output
    pixels = x.reshape(1, -1, 1, x.shape[-1]).permute(0, 3, 1, 2)
    # A single pixel has nothing to dilate; but what is dilated goes through oneDNN on any number of threads.
    output = nn.functional.conv2d(pixels, layer.weight[:, :, None, None], layer.bias, dilation=2)
    return output.permute(0, 2, 3, 1).reshape(*x.shape[:-1], -1)


def _chain(steps: Sequence[Step]) -> Step:
    def run(x: Tensor) -> Tensor:
        for step in steps:
            x = step(x)
        return x

    return run


def batched_linear(x_BRD: Tensor, weight_BED: Tensor, bias_BE: Tensor | None = None) -> Tensor:
    """`x @ weight.mT + bias` for each of a batch, through oneDNN under the same conditions."""
    few = weight_BED.shape[1] < FEWEST_ROWS
    if few or torch.is_grad_enabled() or torch.compiler.is_compiling() or not _suits_onednn(x_BRD):
        product = x_BRD @ weight_BED.mT
        return product if bias_BE is None else product + bias_BE[:, None]
    biases = [None] * len(x_BRD) if bias_BE is None else list(bias_BE)
    products = [
        nn.functional.linear(x.to_mkldnn(), weight.contiguous(), bias).to_dense()
        for x, weight, bias in zip(x_BRD, weight_BED, biases, strict=True)
    ]
    return products[0][None] if len(products) == 1 else torch.stack(products)


def _suits_onednn(x: Tensor) -> bool:
    return (
        x.device.type == "cpu"
        and x.dtype == torch.float32
        and torch.backends.mkldnn.is_available()
        and not torch.is_autocast_enabled("cpu")
    )


def _onednn_chain(x: Tensor, layers: tuple[nn.Module, ...]) -> Step | None:
    """The same layers on tensors in the form of oneDNN; None where one of them cannot be brought into it."""
    if not _suits_onednn(x):
        return None
    steps: list[Step] = [Tensor.to_mkldnn]
    for layer in layers:
        if isinstance(layer, nn.Dropout) and not layer.training and not is_hooked(layer):
            continue
        plain = not is_hooked(layer) if isinstance(layer, nn.ReLU | GELUActivation) else _is_plain_on_cpu(layer)
        if not plain:
            return None
        steps.append(layer)
    return _chain([*steps, Tensor.to_dense])


def _is_plain_on_cpu(layer: nn.Module) -> bool:
    return is_plain_linear(layer) and layer.get_parameter("weight").device.type == "cpu"


def is_plain_linear(layer: nn.Module) -> bool:
    """Whether a layer is `nn.Linear` and nothing else: no adapter, no quantised weight, no hook, no other forward."""
    return type(layer) is nn.Linear and type(layer.weight) is nn.Parameter and not is_hooked(layer)


def is_hooked(module: nn.Module) -> bool:
    """Whether a call does more than the class's `forward`: hooks, on the module or on all, or another `forward`.

    What transformers leaves behind to record outputs for those who ask is no such hook.
    """
    hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    if "forward" in vars(module) or nn.modules.module._has_any_global_hook():
        return True
    return any(hook.__module__ != RECORDING_HOOKS for kind in hooks for hook in kind.values())
