"""Deformable attention alone, at the sizes of the encoder and of the decoder."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hf_grounding_dino import multi_scale_deformable_attention, multi_scale_deformable_attention_reference

from .measure import Row, Side, Timing, interleaved, one_line, timed
from .models import Bench
from .settings import Size

_STRIDES = (8, 16, 32, 64)
_SPREAD_IN_CELLS = 2.0
# A kernel is shorter than its launch may take, so that many are launched at once.
_CALLS_A_RUN = {"cuda": 10}
_COPIED_BYTES = 2**28
_COPIED_BYTES_TINY = 2**20
_STOCK_MODULE = "MultiScaleDeformableAttention"

Attention = Callable[[Tensor, list[Size], Tensor, Tensor], Tensor]


class Arguments(NamedTuple):
    """The tensors of one call."""

    value: Tensor
    locations: Tensor
    weights: Tensor


def kernel(bench: Bench) -> Iterator[Row]:
    """Ours against its plain definition and against stock's `grid_sample`, forward and with the backward."""
    levels = [(math.ceil(bench.settings.size[0] / s), math.ceil(bench.settings.size[1] / s)) for s in _STRIDES]
    places = {"encoder": sum(h * w for h, w in levels), "decoder": bench.own.config.num_queries}
    bytes_per_second = copy_rate(bench)
    for (place, queries), dtype in itertools.product(places.items(), bench.settings.dtypes):
        arguments = _arguments(bench, levels, queries, getattr(torch, dtype))
        for backward in (False, True):
            what = f"{place}, {queries:,} queries, {dtype}, forward{' and backward' if backward else ''}"
            yield from _measure(bench, what, levels, arguments, backward, bytes_per_second)


def _measure(
    bench: Bench, what: str, levels: list[Size], arguments: Arguments, backward: bool, bytes_per_second: float
) -> Iterator[Row]:
    attentions: dict[str, Attention] = {
        "ours": multi_scale_deformable_attention,
        "stock": stock_attention(bench),
        "ours, plain definition": multi_scale_deformable_attention_reference,
    }
    calls = _CALLS_A_RUN.get(bench.device.type, 1)
    sides = {name: _side(attention, levels, arguments, backward, calls) for name, attention in attentions.items()}
    timings = interleaved(sides, bench.settings.repeats, bench.device)
    timings = {name: timing.scaled(1 / calls) for name, timing in timings.items()}
    measures = _bandwidth(arguments, timings["ours"], backward, bytes_per_second)
    for other in ("stock", "ours, plain definition"):
        difference, note = _difference(attentions["ours"], attentions[other], levels, arguments)
        further = measures if other == "stock" else {}
        times = timings["ours"], timings[other]
        yield Row(
            "kernel", what, "ours", other, *times, size=bench.settings.size, measures=difference | further, note=note
        )


def stock_attention(bench: Bench) -> Attention:
    """Stock's module, called as ours is.

    Raises:
        LookupError: this version of transformers has no such module.
    """
    modules = [module for module in bench.stock.modules() if type(module).__name__ == _STOCK_MODULE]
    if not modules:
        raise LookupError(f"this transformers has no {_STOCK_MODULE}")
    module: Any = modules[0]

    def attend(value: Tensor, levels: list[Size], locations: Tensor, weights: Tensor) -> Tensor:
        shapes = torch.tensor(levels, device=value.device)
        starts = torch.cat([shapes.new_zeros(1), shapes.prod(1).cumsum(0)[:-1]])
        return module(value, shapes, levels, starts, locations.to(value.dtype), weights, 64)

    return attend


def _arguments(bench: Bench, levels: list[Size], queries: int, dtype: torch.dtype) -> Arguments:
    """Points near each cell's own place where there is a query a cell, anywhere otherwise."""
    config = bench.own.config
    heads, points = config.encoder_attention_heads, config.encoder_n_points
    tokens = sum(h * w for h, w in levels)
    generator = torch.Generator().manual_seed(bench.settings.seed)
    value = torch.randn(1, tokens, heads, config.d_model // heads, generator=generator)
    cells = torch.tensor([(w, h) for h, w in levels], dtype=torch.float32)
    if queries == tokens:
        centres = torch.cat([_centres(level) for level in levels])
    else:
        centres = torch.rand(queries, 2, generator=generator)
    spread = _SPREAD_IN_CELLS * torch.randn(1, queries, heads, len(levels), points, 2, generator=generator)
    locations = centres[:, None, None, None] + spread / cells[:, None]
    weights = torch.rand(1, queries, heads, len(levels), points, generator=generator).flatten(3).softmax(-1)
    weights = weights.unflatten(3, (len(levels), points))
    place = bench.device
    return Arguments(value.to(place, dtype), locations.to(place), weights.to(place, dtype))


def _centres(level: Size) -> Tensor:
    height, width = level
    y, x = torch.meshgrid((torch.arange(height) + 0.5) / height, (torch.arange(width) + 0.5) / width, indexing="ij")
    return torch.stack([x, y], -1).flatten(0, 1)


def _side(attention: Attention, levels: list[Size], arguments: Arguments, backward: bool, calls: int) -> Side:
    value, locations, weights = (tensor.clone().requires_grad_(backward) for tensor in arguments)
    gradient = torch.ones(1, locations.shape[1], value.shape[2] * value.shape[3]).to(value)

    def run() -> None:
        for _ in range(calls):
            with torch.inference_mode(not backward):
                output = attention(value, levels, locations, weights)
            if backward:
                torch.autograd.grad(output, (value, locations, weights), gradient)

    return run


@torch.no_grad()
def _difference(
    own: Attention, other: Attention, levels: list[Size], arguments: Arguments
) -> tuple[dict[str, float], str]:
    value, locations, weights = arguments
    try:
        a = own(value, levels, locations, weights).float()
        b = other(value, levels, locations, weights).float()
    except Exception as error:
        return {}, f"outputs not compared: {one_line(error)}"
    if not b.isfinite().all():
        return {}, "the other side's output is not finite"
    return {"largest difference": (a - b).abs().max().item()}, ""


def copy_rate(bench: Bench) -> float:
    """Bytes a second that a copy reads and writes on the device: the best of some runs."""
    source = torch.ones(_COPIED_BYTES_TINY if bench.settings.tiny else _COPIED_BYTES, dtype=torch.uint8)
    source = source.to(bench.device)
    target = torch.empty_like(source)
    target.copy_(source)
    best = min(timed(lambda: target.copy_(source), bench.device) for _ in range(5))
    return 2 * source.numel() / max(best, 1e-9)


def traffic(arguments: Arguments, backward: bool) -> int:
    """Bytes that must cross the memory's bus at least once.

    Forward: the three arguments are read and the output is written. Backward: the arguments and the output's gradient
    are read, and a gradient of each argument is written.
    """
    value = arguments.value
    output = arguments.locations.shape[1] * value.shape[2] * value.shape[3] * value.element_size()
    given = sum(tensor.numel() * tensor.element_size() for tensor in arguments)
    return (given + output) + (2 * given + output if backward else 0)


def _bandwidth(arguments: Arguments, own: Timing, backward: bool, bytes_per_second: float) -> dict[str, float]:
    if not own.seconds:
        return {}
    achieved = traffic(arguments, backward) / own.median
    return {"GB/s": achieved / 1e9, "share of the memory-bandwidth floor": achieved / bytes_per_second}
