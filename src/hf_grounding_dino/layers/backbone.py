"""Images to a pyramid of features: any image backbone of transformers, each image at its own size.

Shapes: `B` batch, `H`, `W` pixels or cells, `S` image tokens, `C` width of a stage, `D` width.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.ops import FrozenBatchNorm2d
from transformers import AutoBackbone

from ..models.grounding_dino.configuration_grounding_dino import GROUP_NORM_GROUPS, AnyGroundingDinoConfig
from .context import ImageContext, Size, build_image_context
from .positions import LearnedPositionEmbedding, SinePositionEmbedding
from .swin import follows_stock, is_swin, swin_feature_maps, unused_of_swin

PROBE_SIDE = 64


def freeze_batch_norm(module: Any) -> None:
    """Replace every batch norm by one that computes, in training too, what it computes in eval, as DETR does.

    timm joins batch norms with what follows them, an activation or dropout, so a backbone of timm does it by itself.
    """
    if hasattr(module, "freeze_batch_norm_2d"):
        module.freeze_batch_norm_2d()
        return
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d):
            frozen = FrozenBatchNorm2d(child.num_features, eps=child.eps)
            frozen.load_state_dict(child.state_dict(), strict=False)  # one without weights has none to give
            setattr(module, name, frozen)
        else:
            freeze_batch_norm(child)


def unused_parameters(model: Any) -> frozenset[str]:
    """The names of a backbone's parameters that no feature map depends on, such as stages after the last one asked for.

    Swin's are known. Of any other backbone they are found once for each configuration, by following the feature maps of
    a twin without data back to the parameters.

    Args:
        model: of `AutoBackbone`, its batch norms frozen.
    """
    if is_swin(model):
        return unused_of_swin(model)
    config = model.config
    key = (type(config), config.to_json_string(use_diff=False))
    if key not in _found_unused:
        _found_unused[key] = _unused_of_twin(config)
    return _found_unused[key]


_found_unused: dict[tuple[type, str], frozenset[str]] = {}


def _unused_of_twin(config: Any) -> frozenset[str]:
    side = getattr(config, "image_size", None) or PROBE_SIDE
    height, width = side if isinstance(side, list | tuple) else (side, side)
    with torch.inference_mode(False), torch.enable_grad(), torch.device("meta"):
        twin: Any = AutoBackbone.from_config(config)
        freeze_batch_norm(twin)
        maps = twin(torch.zeros(1, 3, height, width)).feature_maps
    steps: list[Any] = [feature_map.grad_fn for feature_map in maps]
    seen = set(steps)
    for step in steps:  # which grows meanwhile
        before = {function for function, _ in step.next_functions if function is not None} - seen
        seen |= before
        steps += before
    used = {id(step.variable) for step in steps if hasattr(step, "variable")}
    return frozenset(name for name, parameter in twin.named_parameters() if id(parameter) not in used)


class ConvEncoder(nn.Module):
    """The image backbone as transformers offers it."""

    def __init__(self, config: AnyGroundingDinoConfig) -> None:
        super().__init__()
        self.model: Any = AutoBackbone.from_config(config.backbone_config)
        freeze_batch_norm(self.model)
        self.unused = unused_parameters(self.model)
        self.freeze_unused()

    def forward(self, pixel_values: Tensor) -> tuple[Tensor, ...]:
        """Feature maps of the configured stages, finest first, each `(B, C, H, W)`."""
        if follows_stock(self.model):
            return swin_feature_maps(self.model, pixel_values)
        maps: tuple[Tensor, ...] = self.model(pixel_values).feature_maps
        return maps

    def set_requires_grad(self, value: bool) -> None:
        """Train the backbone or keep it."""
        self.model.requires_grad_(value)
        self.freeze_unused()

    def freeze_unused(self) -> None:
        """Never train parameters that no feature map depends on."""
        for name in self.unused:
            self.model.get_parameter(name).requires_grad_(False)


class ImageBackbone(nn.Module):
    """Images to feature maps, and the position of each cell."""

    def __init__(self, config: AnyGroundingDinoConfig) -> None:
        super().__init__()
        self.conv_encoder = ConvEncoder(config)
        self.position_embedding: SinePositionEmbedding | LearnedPositionEmbedding
        if config.position_embedding_type == "sine":
            self.position_embedding = SinePositionEmbedding(config.d_model, config.positional_embedding_temperature)
        else:
            self.position_embedding = LearnedPositionEmbedding(config.d_model)

    def forward(self, pixel_values: Tensor) -> tuple[Tensor, ...]:
        """Feature maps of the configured stages, finest first, each `(B, C, H, W)`."""
        maps: tuple[Tensor, ...] = self.conv_encoder(pixel_values)
        return maps


def build_input_projections(channels: Sequence[int], config: AnyGroundingDinoConfig) -> nn.ModuleList:
    """A 1 x 1 convolution for each stage, then 3 x 3 convolutions of stride 2 for the levels beyond."""
    layers = [nn.Conv2d(width, config.d_model, kernel_size=1) for width in channels]
    for level in range(len(channels), config.num_feature_levels):
        width = channels[-1] if level == len(channels) else config.d_model
        layers.append(nn.Conv2d(width, config.d_model, kernel_size=3, stride=2, padding=1))
    return nn.ModuleList(nn.Sequential(c, nn.GroupNorm(GROUP_NORM_GROUPS, config.d_model)) for c in layers)


def feature_pyramid(backbone: ImageBackbone, projections: nn.ModuleList, pixel_values: Tensor) -> list[Tensor]:
    """All levels of images that share one size, each `(B, D, H, W)`."""
    maps = list(backbone(pixel_values))
    levels = [project(source) for project, source in zip(projections, maps, strict=False)]
    for project in projections[len(maps) :]:
        levels.append(project(maps[-1] if len(levels) == len(maps) else levels[-1]))
    return levels


def image_sizes(pixel_values: Tensor, pixel_mask: Tensor | None) -> list[Size]:
    """(height, width) of each image's own pixels, which fill the top left of the canvas.

    Raises:
        ValueError: the mask has another size than the pixels, or an image has no pixel of its own.
    """
    batch, _, height, width = pixel_values.shape
    if pixel_mask is None:
        return [(height, width)] * batch
    if pixel_mask.shape != (batch, height, width):
        raise ValueError(f"`pixel_mask` is {tuple(pixel_mask.shape)}, `pixel_values` need {(batch, height, width)}.")
    own = pixel_mask.bool()
    if torch.compiler.is_compiling():
        # A graph is for one size; it asks this of every mask while it runs.
        assert own.all(), "A compiled model takes images of one size, without padding: batch them by size."
        return [(height, width)] * batch
    sizes = torch.stack([own.any(2).sum(1), own.any(1).sum(1)], 1).tolist()
    for i, (h, w) in enumerate(sizes):
        if not h or not w:
            raise ValueError(f"`pixel_mask` leaves no pixel of image {i}.")
    return [(h, w) for h, w in sizes]


def padded_pyramid(
    pixel_values: Tensor,
    pixel_mask: Tensor | None,
    pyramid: Callable[[Tensor], list[Tensor]],
    embed: Callable[[tuple[tuple[Size, ...], ...], tuple[Size, ...]], Tensor],
) -> tuple[Tensor, ImageContext]:
    """Run each image at its own size, then pad the feature maps, so that a batch equals its parts.

    Norms and windows of a backbone would see padded pixels; here they meet none. Images of one size run together.

    Args:
        pyramid: images of one size to their levels.
        embed: level sizes of each image and padded level sizes to positions `(B, S, D)`.

    Returns:
        The flattened levels `(B, S, D)`, zero on padding, and their geometry.
    """
    groups: dict[Size, list[int]] = defaultdict(list)
    for i, size in enumerate(image_sizes(pixel_values, pixel_mask)):
        groups[size].append(i)
    results = [(rows, pyramid(_crop(pixel_values, rows, size))) for size, rows in groups.items()]
    sizes, spatial_shapes, flattened = [], [], []
    for level in range(len(results[0][1])):
        maps = [(rows, levels[level]) for rows, levels in results]
        padded: Size = (max(m.shape[2] for _, m in maps), max(m.shape[3] for _, m in maps))
        own = {row: (m.shape[2], m.shape[3]) for rows, m in maps for row in rows}
        order = [row for rows, _ in maps for row in rows]
        canvas = torch.cat([_pad(m, padded) for _, m in maps])
        if len(maps) > 1:
            canvas = canvas[torch.tensor(order, device=canvas.device).argsort()]
        flattened.append(canvas.flatten(2).transpose(1, 2))
        sizes.append(tuple(own[row] for row in range(len(order))))
        spatial_shapes.append(padded)
    positions = embed(tuple(sizes), tuple(spatial_shapes))
    image_BSD = torch.cat(flattened, 1)
    context = build_image_context(tuple(sizes), tuple(spatial_shapes), positions.to(image_BSD.dtype))
    return image_BSD, context


def _crop(pixel_values: Tensor, rows: list[int], size: Size) -> Tensor:
    if len(rows) < len(pixel_values):
        pixel_values = pixel_values[rows]
    return pixel_values[:, :, : size[0], : size[1]]


def _pad(maps: Tensor, size: Size) -> Tensor:
    return nn.functional.pad(maps, (0, size[1] - maps.shape[3], 0, size[0] - maps.shape[2]))
