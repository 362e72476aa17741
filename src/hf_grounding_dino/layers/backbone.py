"""Images to a pyramid of features: any image backbone of transformers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.ops import FrozenBatchNorm2d
from transformers import AutoBackbone, PretrainedConfig

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

    def __init__(self, config: PretrainedConfig) -> None:
        super().__init__()
        self.model: Any = AutoBackbone.from_config(config)
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

    def __init__(
        self, config: PretrainedConfig, position_embedding: SinePositionEmbedding | LearnedPositionEmbedding
    ) -> None:
        """Build the backbone of a configuration of its own."""
        super().__init__()
        self.conv_encoder = ConvEncoder(config)
        self.position_embedding = position_embedding

    def forward(self, pixel_values: Tensor) -> tuple[Tensor, ...]:
        """Feature maps of the configured stages, finest first, each `(B, C, H, W)`."""
        maps: tuple[Tensor, ...] = self.conv_encoder(pixel_values)
        return maps


def build_input_projections(channels: Sequence[int], width: int, num_levels: int, num_groups: int) -> nn.ModuleList:
    """A 1 x 1 convolution for each stage, then 3 x 3 convolutions of stride 2 for the levels beyond."""
    layers = [nn.Conv2d(stage, width, kernel_size=1) for stage in channels]
    for level in range(len(channels), num_levels):
        before = channels[-1] if level == len(channels) else width
        layers.append(nn.Conv2d(before, width, kernel_size=3, stride=2, padding=1))
    return nn.ModuleList(nn.Sequential(c, nn.GroupNorm(num_groups, width)) for c in layers)


def feature_pyramid(backbone: ImageBackbone, projections: nn.ModuleList, pixel_values: Tensor) -> list[Tensor]:
    """All levels of images that share one size, each `(B, D, H, W)`."""
    maps = list(backbone(pixel_values))
    levels = [project(source) for project, source in zip(projections, maps, strict=False)]
    for project in projections[len(maps) :]:
        levels.append(project(maps[-1] if len(levels) == len(maps) else levels[-1]))
    return levels
