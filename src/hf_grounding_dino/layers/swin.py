"""The feature maps of transformers' Swin, exactly, without rolling, padding and partitioning its maps.

The rows of a map travel in the order of the windows that attend next, so a window is a slice; cells that only pad a
window exist for the length of its attention. On a CPU, with nothing recorded for a gradient, a layer runs over a few
windows at a time, which stay in the cache. The stock modules own the parameters and do all arithmetic but attention.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .context import Size
from .cpu_linear import cpu_linear, is_hooked

ROWS_AT_A_TIME = 4096
OUT_OF_SIGHT = -100.0
"""What stock Swin adds to the score of two cells that a shift made neighbours."""


def is_swin(model: Any) -> bool:
    """Whether a backbone is the Swin of transformers."""
    return type(model).__name__ == "SwinBackbone" and model.config.model_type == "swin"


def unused_of_swin(model: Any) -> frozenset[str]:
    """The names of the parameters that no feature map of a Swin backbone depends on."""
    last = model.stage_names.index(model.out_features[-1])
    beyond = [f"swin.encoder.layers.{i}." for i in range(last, len(model.stage_names) - 1)]
    ends = ("swin.layernorm.", f"swin.encoder.layers.{last - 1}.downsample.", *beyond)
    return frozenset(name for name, _ in model.named_parameters() if name.startswith(ends))


def follows_stock(model: Any) -> bool:
    """Whether `swin_feature_maps` may stand in for a call of this backbone.

    It may for the Swin of transformers as it was built, and not where calling a layer means more than its arithmetic:
    hooks, another attention, layers wrapped for sharding or offloading, `torch.jit.trace`.
    """
    if not is_swin(model):
        return False
    if model.config._attn_implementation not in ("eager", "sdpa"):
        return False
    if torch.jit.is_tracing():  # type: ignore[attr-defined]
        return False
    stages = list(model.swin.encoder.layers)
    layers = [layer for stage in stages for layer in stage.blocks]
    called = [(model.swin, "SwinModel"), (model.swin.encoder, "SwinEncoder"), *((s, "SwinStage") for s in stages)]
    for layer in layers:
        called += [(layer, "SwinLayer"), (layer.attention, "SwinAttention"), (layer.mlp, "SwinMLP")]
    as_built = all(type(module).__name__ == name for module, name in called)
    return as_built and not any(is_hooked(module) for module in model.modules())


def swin_feature_maps(model: Any, pixel_values: Tensor) -> tuple[Tensor, ...]:
    """What `model(pixel_values).feature_maps` holds, faster.

    Args:
        model: a Swin backbone that `follows_stock`.
        pixel_values: `(B, 3, H, W)` of any size.

    Returns:
        The normalised map of each stage in `model.out_features`, finest first, each `(B, C, H', W')`.
    """
    rows, size = model.swin.embeddings(pixel_values)
    batch = rows.shape[0]
    rows_NC = rows.flatten(0, 1)
    maps = {"stem": (rows_NC, size)}
    for name, stage in zip(model.stage_names[1:], model.swin.encoder.layers, strict=True):
        if stage.training and stage.gradient_checkpointing:
            rows_NC = checkpoint(run_stage, stage, rows_NC, batch, size, use_reentrant=False)
        else:
            rows_NC = run_stage(stage, rows_NC, batch, size)
        maps[name] = (rows_NC, size)
        if name == model.out_features[-1]:
            break
        rows_NC, size = merge_patches(stage.downsample, rows_NC, batch, size)
    return tuple(_norm(model.hidden_states_norms[name], *maps[name], batch) for name in model.out_features)


def _norm(norm: nn.Module, rows_NC: Tensor, size: Size, batch: int) -> Tensor:
    return norm(rows_NC).view(batch, *size, -1).permute(0, 3, 1, 2).contiguous()


def merge_patches(merging: Any, rows_NC: Tensor, batch: int, size: Size) -> tuple[Tensor, Size]:
    """Join each 2 x 2 cells, the upper before the lower and then the left before the right, and halve the map."""
    height, width = size
    map_BHWC = rows_NC.view(batch, height, width, -1)
    if height % 2 or width % 2:
        map_BHWC = nn.functional.pad(map_BHWC, (0, 0, 0, width % 2, 0, height % 2))
    half = ((height + 1) // 2, (width + 1) // 2)
    joined = map_BHWC.view(batch, half[0], 2, half[1], 2, -1).permute(0, 1, 3, 4, 2, 5)
    return cpu_linear(merging.norm(joined.reshape(batch * half[0] * half[1], -1)), merging.reduction), half


class Windows(NamedTuple):
    """How the maps of a batch are divided into windows of `side` x `side` cells, `down` x `across` in each map."""

    side: int
    shift: int
    down: int
    across: int
    order_N: Tensor
    """The cell, in reading order, of each row in the order of windows."""
    place_N: Tensor
    """The other way: where in the order of windows each cell stands."""
    slots_N: Tensor | None
    """Where in its windows, padding counted, each row in the order of windows stands; None without padding."""


class Chunk(NamedTuple):
    """Whole rows of windows, and the cells in them."""

    windows: slice
    cells: slice


def divide(batch: int, size: Size, side: int, shift: int, device: torch.device) -> Windows:
    """Divide maps that are padded at the right and the bottom, then rolled by `shift` to the left and up."""
    down, across = (-(-length // side) for length in size)
    compiling = torch.compiler.is_dynamo_compiling()
    place_rows = torch.ops.hf_grounding_dino.window_rows if compiling else rows_of_windows
    order_N, place_N, slots_N = place_rows(batch, *size, side, shift, device)
    padded = size[0] * size[1] != down * across * side**2
    return Windows(side, shift, down, across, order_N, place_N, slots_N if padded else None)


def rows_of_windows(
    batch: int, height: int, width: int, side: int, shift: int, device: torch.device
) -> tuple[Tensor, Tensor, Tensor]:
    """`order_N`, `place_N` and `slots_N` of `Windows`."""
    down, across = -(-height // side), -(-width // side)
    y = (torch.arange(height, device=device) - shift) % (down * side)
    x = (torch.arange(width, device=device) - shift) % (across * side)
    window_HW = (y // side * across)[:, None] + x // side
    slot_HW = window_HW * side**2 + (y % side * side)[:, None] + x % side
    slots_in_map = down * across * side**2
    slot_N = (torch.arange(batch, device=device)[:, None] * slots_in_map + slot_HW.flatten()).flatten()
    order_N = slot_N.argsort()
    return order_N, order_N.argsort(), slot_N[order_N]


def _empty_rows(
    batch: int, height: int, width: int, side: int, shift: int, device: torch.device
) -> tuple[Tensor, Tensor, Tensor]:
    rows = torch.empty(batch * height * width, dtype=torch.int64, device=device)
    return rows, torch.empty_like(rows), torch.empty_like(rows)


# `rows_of_windows` in one piece, because inductor fails on a scatter by what it computes there. Another copy of this
# module, loaded as remote code, may have defined it already; defining it anew would free what that copy's graphs call.
if not hasattr(torch.ops.hf_grounding_dino, "window_rows"):
    torch.library.custom_op("hf_grounding_dino::window_rows", rows_of_windows, mutates_args=()).register_fake(
        _empty_rows
    )


def chunks(windows: Windows, batch: int, size: Size) -> list[Chunk]:
    """Rows of windows in parts of about `ROWS_AT_A_TIME` cells."""
    cells = [0] * windows.down
    for y in range(size[0]):
        cells[(y - windows.shift) % (windows.down * windows.side) // windows.side] += size[1]
    parts, window, cell = [], 0, 0
    first_window, first_cell = 0, 0
    for i, count in enumerate(cells * batch, start=1):
        window, cell = window + windows.across, cell + count
        if cell - first_cell >= ROWS_AT_A_TIME or i == windows.down * batch:
            parts.append(Chunk(slice(first_window, window), slice(first_cell, cell)))
            first_window, first_cell = window, cell
    return parts


class TakeRows(torch.autograd.Function):
    """`index_select` of rows that are taken once each, so that its gradient need not accumulate."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, index: Tensor) -> Tensor:
        """Take the rows."""
        ctx.save_for_backward(index)
        ctx.num_rows = rows.shape[0]
        return rows.index_select(0, index)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        """Put the gradients back."""
        (index,) = ctx.saved_tensors
        return spread_rows(gradient, index, ctx.num_rows), None


def take_rows(rows: Tensor, index: Tensor) -> Tensor:
    """The rows at `index`, which names none twice."""
    return TakeRows.apply(rows, index) if torch.is_grad_enabled() else rows.index_select(0, index)


def spread_rows(rows: Tensor, index: Tensor, num_rows: int) -> Tensor:
    """As many rows as asked for: these at `index`, and zeros."""
    return rows.new_zeros(num_rows, rows.shape[1]).index_copy_(0, index, rows)


def run_stage(stage: Any, rows_NC: Tensor, batch: int, size: Size) -> Tensor:
    """All layers of a stage over the cells in reading order."""
    divisions: dict[tuple[int, int], Windows] = {}
    place_N: Tensor | None = None
    for layer in stage.blocks:
        key = (layer.window_size, layer.shift_size)
        if key not in divisions:
            divisions[key] = divide(batch, size, *key, rows_NC.device)
        windows = divisions[key]
        index_N = windows.order_N if place_N is None else place_N[windows.order_N]
        place_N = windows.place_N
        if torch.compiler.is_compiling() or rows_NC.device.type != "cpu" or layer.training or _records(layer, rows_NC):
            everything = Chunk(slice(0, batch * windows.down * windows.across), slice(0, len(index_N)))
            rows_NC = run_layer(layer, take_rows(rows_NC, index_N), windows, everything, batch)
            continue
        done_NC = torch.empty_like(rows_NC)
        for chunk in chunks(windows, batch, size):
            rows = rows_NC.index_select(0, index_N[chunk.cells])
            done_NC[chunk.cells] = run_layer(layer, rows, windows, chunk, 1)
        rows_NC = done_NC
    return rows_NC if place_N is None else take_rows(rows_NC, place_N)


def _records(layer: nn.Module, rows_NC: Tensor) -> bool:
    return torch.is_grad_enabled() and (rows_NC.requires_grad or any(p.requires_grad for p in layer.parameters()))


def run_layer(layer: Any, rows_NC: Tensor, windows: Windows, chunk: Chunk, batch: int) -> Tensor:
    """One layer over a chunk, rows in the order of its windows."""
    normed_NC, slots_N = layer.layernorm_before(rows_NC), windows.slots_N
    area = windows.side**2
    if slots_N is not None:
        slots_N = slots_N[chunk.cells] - chunk.windows.start * area
        normed_NC = spread_rows(normed_NC, slots_N, (chunk.windows.stop - chunk.windows.start) * area)
    attended_NC = attend(layer.attention, normed_NC, windows, chunk.windows.start)
    if slots_N is not None:
        attended_NC = take_rows(attended_NC, slots_N)
    update = layer.dropout(cpu_linear(attended_NC, layer.attention.o_proj))
    # Stochastic depth drops whole images.
    rows_NC = rows_NC + layer.drop_path(update.unflatten(0, (batch, -1))).flatten(0, 1)
    mlp = layer.mlp
    return layer.dropout(cpu_linear(layer.layernorm_after(rows_NC), mlp.fc1, mlp.activation_fn, mlp.fc2)) + rows_NC


def attend(attention: Any, rows: Tensor, windows: Windows, first: int) -> Tensor:
    """Attention inside each window, padding taking part with its biases alone as in stock.

    Args:
        rows: `(V * A, C)`, windows of whole rows of windows.
        first: the number of the first window.
    """
    shape = (-1, windows.side**2, attention.num_attention_heads, attention.head_dim)
    projections = (attention.q_proj, attention.k_proj, attention.v_proj)
    query, key, value = (cpu_linear(rows, project).view(shape).transpose(1, 2) for project in projections)
    bias_1MAA = attention.relative_position_bias()
    dropout = attention.attention_dropout if attention.training else 0.0
    if rows.device.type == "cpu":
        # Faster here than SDPA, whose blocks are made for longer sequences.
        scores_VMAA = (query * attention.scaling) @ key.transpose(-1, -2)
        scores_VMAA += bias_1MAA
        hide_strangers_(scores_VMAA, windows, first)
        output = nn.functional.dropout(scores_VMAA.softmax(-1), dropout) @ value
    else:
        mask = bias_1MAA.to(query.dtype)
        if windows.shift:
            mask = mask.repeat(len(query), 1, 1, 1)
            hide_strangers_(mask, windows, first)
        output = nn.functional.scaled_dot_product_attention(query, key, value, mask, dropout, scale=attention.scaling)
    return output.transpose(1, 2).reshape(-1, shape[2] * shape[3])


def hide_strangers_(scores_VMAA: Tensor, windows: Windows, first: int) -> None:
    """Lower the scores of cells that a shift brought together from opposite sides, in the outermost windows."""
    if not windows.shift:
        return
    came_round = torch.arange(windows.side, device=scores_VMAA.device) // (windows.side - windows.shift)
    row_A, column_A = came_round.repeat_interleave(windows.side), came_round.repeat(windows.side)
    # 1 for strangers, 0 for neighbours.
    by_row_AA, by_column_AA = ((x[:, None] - x).abs().to(scores_VMAA.dtype) for x in (row_A, column_A))
    grid = scores_VMAA.view(-1, windows.across, *scores_VMAA.shape[1:])
    last_row = grid[(-1 - first // windows.across) % windows.down :: windows.down]
    last_row += OUT_OF_SIGHT * by_row_AA
    grid[:, -1] += OUT_OF_SIGHT * by_column_AA
    last_row[:, -1] -= OUT_OF_SIGHT * by_row_AA * by_column_AA  # strangers twice over count once
