"""Multi-scale deformable attention (Deformable DETR, arXiv 2010.04159, equation 3)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .kernel import kernel_serves

FAR_OUTSIDE = 2.0


def multi_scale_deformable_attention_reference(
    value: Tensor, spatial_shapes: Sequence[tuple[int, int]], sampling_locations: Tensor, attention_weights: Tensor
) -> Tensor:
    """The plain definition of `multi_scale_deformable_attention`, same contract."""
    batch, _, heads, width = value.shape
    queries = sampling_locations.shape[1]
    levels = value.split([h * w for h, w in spatial_shapes], 1)
    # Half-precision coordinates would be off by up to half a cell, so everything here is at least float32.
    dtype = torch.promote_types(value.dtype, torch.float32)
    # Beyond -1 and 2 nothing of a map is near; grid_sample has no good answer for what is not finite.
    grids = 2 * sampling_locations.to(dtype).nan_to_num(FAR_OUTSIDE).clamp(-1.0, FAR_OUTSIDE) - 1
    sampled = []
    for level, (height, level_width) in enumerate(spatial_shapes):
        maps = levels[level].to(dtype).permute(0, 2, 3, 1).reshape(batch * heads, width, height, level_width)
        grid = grids[:, :, :, level].transpose(1, 2).flatten(0, 1)
        sampled.append(nn.functional.grid_sample(maps, grid, "bilinear", "zeros", align_corners=False))
    weights = attention_weights.to(dtype).transpose(1, 2).reshape(batch * heads, 1, queries, -1)
    output = (torch.stack(sampled, -2).flatten(-2) * weights).sum(-1)
    return output.view(batch, heads * width, queries).transpose(1, 2).to(value.dtype)


def multi_scale_deformable_attention(
    value: Tensor, spatial_shapes: Sequence[tuple[int, int]], sampling_locations: Tensor, attention_weights: Tensor
) -> Tensor:
    """Weighted sum of bilinear samples from every level of a feature pyramid.

    Zero outside the map, where infinite and NaN locations are too; pixel centres at half integers. Locations and sums
    are at least float32. Served by the kernel where there is one (`kernel_status`), else by the plain definition.

    Args:
        value: `(B, S, H, C)`, the levels' cells one after another, rows first.
        spatial_shapes: (height, width) of each level, Σ height · width = S.
        sampling_locations: `(B, N, H, L, P, 2)`, (x, y) in units of each level: [0, 1] is inside.
        attention_weights: `(B, N, H, L, P)`, already normalised.

    Returns:
        `(B, N, H * C)` in the type of `value`.

    Raises:
        ValueError: a level is empty, the levels do not add up to S, or a tensor is of the wrong shape, integer, or on
            another device; the message names it.
    """
    _check(value, spatial_shapes, sampling_locations, attention_weights)
    if torch.compiler.is_exporting() or not kernel_serves(value.device.type):
        return multi_scale_deformable_attention_reference(value, spatial_shapes, sampling_locations, attention_weights)
    dtype = torch.promote_types(value.dtype, torch.float32)
    sides = [side for shape in spatial_shapes for side in shape]
    output: Tensor = torch.ops.hf_grounding_dino.deformable_attention(
        value, sides, sampling_locations.to(dtype), attention_weights.to(dtype)
    )
    return output


def _check(
    value: Tensor, spatial_shapes: Sequence[tuple[int, int]], sampling_locations: Tensor, attention_weights: Tensor
) -> None:
    if value.ndim != 4 or not value.is_floating_point():
        raise ValueError(f"`value` must be (B, S, H, C) and floating, not {tuple(value.shape)} of {value.dtype}.")
    if any(h < 1 or w < 1 for h, w in spatial_shapes):
        raise ValueError(f"`spatial_shapes` holds an empty level: {list(spatial_shapes)}.")
    if sum(h * w for h, w in spatial_shapes) != value.shape[1]:
        raise ValueError(f"`spatial_shapes` {list(spatial_shapes)} do not add up to the {value.shape[1]} of `value`.")
    batch, _, heads, _ = value.shape
    start = (batch, *sampling_locations.shape[1:2], heads, len(spatial_shapes))
    for name, tensor, rest in (
        ("sampling_locations", sampling_locations, 2),
        ("attention_weights", attention_weights, 1),
    ):
        if tensor.ndim != 4 + rest or tensor.shape[:4] != start or not tensor.is_floating_point():
            raise ValueError(
                f"`{name}` must begin with {start} and be floating, not {tuple(tensor.shape)} of {tensor.dtype}."
            )
        if tensor.device != value.device:
            raise ValueError(f"`{name}` is on {tensor.device}, `value` on {value.device}.")
    if sampling_locations.shape[4:] != (attention_weights.shape[4], 2):
        raise ValueError(
            f"`sampling_locations` {tuple(sampling_locations.shape)} must be the shape of `attention_weights`"
            f" {tuple(attention_weights.shape)} and (x, y)."
        )


def _backward_fake(
    grad_output: Tensor,
    value: Tensor,
    spatial_shapes: list[int],
    sampling_locations: Tensor,
    attention_weights: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    packed = torch.contiguous_format
    grads = (torch.empty_like(t, memory_format=packed) for t in (value, sampling_locations, attention_weights))
    return tuple(grads)  # type: ignore[return-value]


def _fake(value: Tensor, spatial_shapes: list[int], sampling_locations: Tensor, attention_weights: Tensor) -> Tensor:
    batch, _, heads, width = value.shape
    return value.new_empty(batch, sampling_locations.shape[1], heads * width)


def _save_inputs(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    value, ctx.spatial_shapes, sampling_locations, attention_weights = inputs
    ctx.save_for_backward(value, sampling_locations, attention_weights)


def _backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor, None, Tensor, Tensor]:
    value, locations, weights = ctx.saved_tensors
    of_value, of_locations, of_weights = torch.ops.hf_grounding_dino.deformable_attention_backward(
        grad_output, value, ctx.spatial_shapes, locations, weights
    )
    return of_value, None, of_locations, of_weights


def _define_operators() -> None:
    name, backward = (f"hf_grounding_dino::deformable_attention{end}" for end in ("", "_backward"))
    inputs = "Tensor value, SymInt[] spatial_shapes, Tensor sampling_locations, Tensor attention_weights"
    torch.library.define(name, f"({inputs}) -> Tensor")
    torch.library.define(backward, f"(Tensor grad_output, {inputs}) -> (Tensor, Tensor, Tensor)")
    torch.library.register_fake(name, _fake)
    torch.library.register_fake(backward, _backward_fake)
    torch.library.register_autograd(name, _backward, setup_context=_save_inputs)


# A copy of this module, as remote code is, may have been here before.
if not hasattr(torch.ops.hf_grounding_dino, "deformable_attention"):
    _define_operators()
