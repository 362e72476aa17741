"""The pyramid of images of unequal sizes on one canvas, each as if it were alone, in steps that no size decides.

`layers.encoded_image` runs each image at its own size, for which the host must know the sizes. A graph that serves
any sizes cannot do so: here they are tensors, and masks and indices made from them keep the padding out of windows,
norms and convolutions. The results are equal; this way takes longer, and is for export alone.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from ..layers.context import ImageContext, Size, cell_centres, padding_mask
from ..layers.positions import SinePositionEmbedding
from ..layers.swin import OUT_OF_SIGHT, follows_stock
from ..models.grounding_dino.modeling_grounding_dino import GroundingDinoModel


class Level(NamedTuple):
    """Features on canvases of one size, zero outside the images.

    map_BCHW: the features.
    own_B2: (height, width) of each image's own part, int64.
    """

    map_BCHW: Tensor
    own_B2: Tensor

    @property
    def size(self) -> Size:
        """(height, width) of the canvas."""
        return self.map_BCHW.shape[2], self.map_BCHW.shape[3]


def check_exportable(model: GroundingDinoModel) -> None:
    """Refuse what `encode_on_canvas` cannot run.

    Raises:
        ValueError: the image backbone is not the Swin of transformers as it was built, or positions are learned.
    """
    swin = model.backbone.conv_encoder.model
    if not follows_stock(swin) or swin.swin.embeddings.position_embeddings is not None:
        kind = swin.config.model_type
        raise ValueError(f"Only models with an unchanged Swin backbone without absolute positions, not this {kind}.")
    if not isinstance(model.backbone.position_embedding, SinePositionEmbedding):
        raise ValueError("Only models with `position_embedding_type='sine'`: learned positions end at a size.")


def coarsest_cell(swin: Any) -> int:
    """The side, in pixels, of a cell of the last stage of a Swin backbone."""
    return int(swin.config.patch_size * 2 ** (len(swin.swin.encoder.layers) - 1))


def encode_on_canvas(
    model: GroundingDinoModel, pixel_values: Tensor, pixel_mask: Tensor
) -> tuple[Tensor, ImageContext]:
    """What `flatten_levels` gives of `model.encode_image`, with one graph for all sizes of canvas and images.

    Args:
        model: one that `check_exportable` passes.
        pixel_values: `(B, 3, H, W)`, normalised images at the top left of the canvas, any numbers beside them.
        pixel_mask: `(B, H, W)`, 1 on each image's own pixels.
    """
    levels = _pyramid(model, _canvas(model.backbone.conv_encoder.model, pixel_values.to(model.dtype), pixel_mask))
    device = pixel_values.device
    embed = model.backbone.position_embedding
    positions = [
        embed(level.own_B2, level.size, device) + of for level, of in zip(levels, model.level_embed, strict=True)
    ]
    image_BSD = torch.cat([level.map_BCHW.flatten(2).transpose(1, 2) for level in levels], 1)
    centres_BS2 = torch.cat([cell_centres(level.own_B2, level.size, device) for level in levels], 1)
    padding_BS = torch.cat([padding_mask(level.own_B2, level.size, device) for level in levels], 1)
    ratios = [level.own_B2.flip(1).float() / _numbers(level.size[::-1], device) for level in levels]
    valid_ratios_BL2 = torch.stack(ratios, 1)
    context = ImageContext(
        spatial_shapes=tuple(level.size for level in levels),
        sizes=tuple(level.own_B2 for level in levels),
        may_attend_B11S=padding_BS.logical_not()[:, None, None],
        padding_BS1=padding_BS[..., None],
        valid_ratios_BL2=valid_ratios_BL2,
        references_BSL2=centres_BS2[:, :, None] * valid_ratios_BL2[:, None],
        positions_BSD=torch.cat(positions, 1).to(image_BSD.dtype),
    )
    return image_BSD, context


def _numbers(size: Size, device: torch.device) -> Tensor:
    return torch.stack([torch.scalar_tensor(side, dtype=torch.float32, device=device) for side in size])


def _canvas(swin: Any, pixel_values: Tensor, pixel_mask: Tensor) -> Level:
    """The images on a canvas whose sides every stage halves evenly."""
    height, width = pixel_values.shape[2:]
    coarsest = coarsest_cell(swin)
    # ONNX rounds a quotient towards zero: nothing here may be negative.
    down, right = ((side + coarsest - 1) // coarsest * coarsest - side for side in (height, width))
    own = pixel_mask != 0
    own_B2 = torch.stack([own.any(2).sum(1), own.any(1).sum(1)], 1)
    pixels = torch.where(own[:, None], pixel_values, 0.0)
    return Level(nn.functional.pad(pixels, (0, right, 0, down)), own_B2)


# --- levels ------------------------------------------------------------------------------------------------------


def _pyramid(model: GroundingDinoModel, canvas: Level) -> list[Level]:
    """All levels, as `layers.backbone.feature_pyramid` defines them."""
    maps = masked_swin(model.backbone.conv_encoder.model, canvas)
    levels: list[Level] = []
    projections = cast(Iterable[tuple[nn.Conv2d, nn.GroupNorm]], model.input_proj_vision)
    for i, (convolution, norm) in enumerate(projections):
        if i < len(maps):
            source, own_B2 = maps[i]
        else:
            source, own_B2 = maps[-1] if i == len(maps) else levels[-1]
            own_B2 = (own_B2 + 1) // 2
        levels.append(masked_group_norm(norm, Level(convolution(source), own_B2)))
    return levels


def only_own(map_BCHW: Tensor, own_B2: Tensor) -> Level:
    """A level with zeros outside the images."""
    size = (map_BCHW.shape[2], map_BCHW.shape[3])
    padding = padding_mask(own_B2, size, map_BCHW.device).unflatten(1, size)
    return Level(torch.where(padding[:, None], 0.0, map_BCHW), own_B2)


def masked_group_norm(norm: nn.GroupNorm, level: Level) -> Level:
    """Group norm with the statistics of each image's own cells, in float32, and zeros outside."""
    groups_BGCHW = only_own(*level).map_BCHW.float().unflatten(1, (norm.num_groups, -1))
    count_B1111 = (level.own_B2.prod(1) * groups_BGCHW.shape[2]).float()[:, None, None, None, None]
    mean = groups_BGCHW.sum((2, 3, 4), keepdim=True) / count_B1111
    padding = padding_mask(level.own_B2, level.size, mean.device).unflatten(1, level.size)
    centred = torch.where(padding[:, None, None], 0.0, groups_BGCHW - mean)
    variance = centred.square().sum((2, 3, 4), keepdim=True) / count_B1111
    normed_BCHW = (centred * (variance + norm.eps).rsqrt()).flatten(1, 2).to(level.map_BCHW.dtype)
    scaled = normed_BCHW * norm.weight[:, None, None] + norm.bias[:, None, None]
    return only_own(scaled, level.own_B2)


# --- Swin --------------------------------------------------------------------------------------------------------


class CanvasWindows(NamedTuple):
    """How every canvas is divided into windows, each image padded and rolled by itself.

    order: the cell of N that stands in each slot of the windows.
    is_padding_N1: True on the slots where no cell of an image stands.
    place_N: the slot of each cell.
    mask_V1AA: what is added to scores: `OUT_OF_SIGHT` for cells that a shift made neighbours; None without shift.
    """

    order: Tensor
    is_padding_N1: Tensor
    place_N: Tensor
    mask_V1AA: Tensor | None


def masked_swin(swin: Any, canvas: Level) -> list[Level]:
    """The normed maps of the configured stages, finest first, as `swin.swin_feature_maps` has them for each image."""
    embeddings = swin.swin.embeddings
    patches_BCHW = embeddings.patch_embeddings.projection(canvas.map_BCHW)
    patch = swin.config.patch_size
    own_B2 = (canvas.own_B2 + patch - 1) // patch
    size = (patches_BCHW.shape[2], patches_BCHW.shape[3])
    rows_NC = embeddings.norm(patches_BCHW.flatten(2).transpose(1, 2).flatten(0, 1))
    maps = {"stem": (rows_NC, own_B2, size)}
    for name, stage in zip(swin.stage_names[1:], swin.swin.encoder.layers, strict=True):
        rows_NC = _run_stage(stage, rows_NC, own_B2, size)
        maps[name] = (rows_NC, own_B2, size)
        if name == swin.out_features[-1]:
            break
        rows_NC = _merge(stage.downsample, _as_map(rows_NC, size), own_B2)
        own_B2, size = (own_B2 + 1) // 2, (size[0] // 2, size[1] // 2)
    levels = []
    for name in swin.out_features:
        rows_NC, own_B2, size = maps[name]
        levels.append(only_own(_as_map(swin.hidden_states_norms[name](rows_NC), size), own_B2))
    return levels


def _as_map(rows_NC: Tensor, size: Size) -> Tensor:
    return rows_NC.view(-1, *size, rows_NC.shape[-1]).permute(0, 3, 1, 2)


def _merge(merging: Any, map_BCHW: Tensor, own_B2: Tensor) -> Tensor:
    """`swin.merge_patches` on canvases with even sides."""
    map_BHWC = only_own(map_BCHW, own_B2).map_BCHW.permute(0, 2, 3, 1)
    parts = [map_BHWC[:, row::2, column::2] for column in range(2) for row in range(2)]
    joined_NC = torch.cat(parts, -1).flatten(0, 2)
    merged: Tensor = merging.reduction(merging.norm(joined_NC))
    return merged


def divide(own_B2: Tensor, size: Size, side: int, shift: int) -> CanvasWindows:
    """Divide canvases so that each image has the windows it would have alone."""
    height, width = size
    down, across = ((length + side - 1) // side for length in size)
    own_B1, num_cells, num_slots = own_B2.split(1, 1), height * width, down * across * side**2
    # Each image is padded to whole windows, and rolled within those.
    period_y, period_x = ((own + side - 1) // side * side for own in own_B1)
    image_B1 = torch.arange(own_B2.shape[0], device=own_B2.device)[:, None]

    slot, window = torch.arange(num_slots, device=own_B2.device), side**2
    row, column = _row_and_column(slot // window, across)
    y, x = row * side + slot % window // side, column * side + slot % side
    cell_y, cell_x = (y + shift) % period_y, (x + shift) % period_x
    is_own = (y < period_y) & (x < period_x) & (cell_y < own_B1[0]) & (cell_x < own_B1[1])
    order = cell_y.clamp(max=height - 1) * width + cell_x.clamp(max=width - 1) + image_B1 * num_cells

    row, column = _row_and_column(torch.arange(num_cells, device=own_B2.device), width)
    slot_y, slot_x = (row + period_y - shift) % period_y, (column + period_x - shift) % period_x
    place = (slot_y // side * across + slot_x // side) * window + slot_y % side * side + slot_x % side
    mask_V1AA = None
    if shift:
        came_round = 2 * (y >= period_y - shift).long() + (x >= period_x - shift).long()
        kind_VA = came_round.view(-1, window)
        mask_V1AA = torch.where(kind_VA[:, None, :, None] == kind_VA[:, None, None], 0.0, OUT_OF_SIGHT)
    return CanvasWindows(
        order=order.flatten(),
        is_padding_N1=is_own.logical_not().view(-1, 1),
        place_N=(place + image_B1 * num_slots).flatten(),
        mask_V1AA=mask_V1AA,
    )


def _row_and_column(place: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """Of places in reading order."""
    row = place // torch.scalar_tensor(width, dtype=torch.int64, device=place.device)
    return row, place - row * width


def _run_stage(stage: Any, rows_NC: Tensor, own_B2: Tensor, size: Size) -> Tensor:
    divisions: dict[tuple[int, int], CanvasWindows] = {}
    for layer in stage.blocks:
        key = (layer.window_size, layer.shift_size)
        if key not in divisions:
            divisions[key] = divide(own_B2, size, *key)
        rows_NC = _run_layer(layer, rows_NC, divisions[key])
    return rows_NC


def _run_layer(layer: Any, rows_NC: Tensor, windows: CanvasWindows) -> Tensor:
    """One layer; see `swin.run_layer` and `swin.attend`."""
    attention, mlp = layer.attention, layer.mlp
    slots = layer.layernorm_before(rows_NC).index_select(0, windows.order)
    slots = torch.where(windows.is_padding_N1, 0.0, slots)
    shape = (-1, layer.window_size**2, attention.num_attention_heads, attention.head_dim)
    projections = (attention.q_proj, attention.k_proj, attention.v_proj)
    query, key, value = (project(slots).view(shape).transpose(1, 2) for project in projections)
    scores = (query * attention.scaling) @ key.transpose(-1, -2) + attention.relative_position_bias()
    if windows.mask_V1AA is not None:
        scores = scores + windows.mask_V1AA.to(scores.dtype)
    attended = (scores.softmax(-1) @ value).transpose(1, 2).flatten(2).flatten(0, 1)
    rows_NC = rows_NC + attention.o_proj(attended.index_select(0, windows.place_N))
    return mlp.fc2(mlp.activation_fn(mlp.fc1(layer.layernorm_after(rows_NC)))) + rows_NC
