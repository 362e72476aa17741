"""What travels along the layers and never changes: the geometry of the pyramid, masks and positions."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

Size = tuple[int, int]
OwnSizes = tuple[Size, ...] | Tensor
"""(height, width) of each image's own part of a level; a tensor `(B, 2)` where a graph is made for any sizes."""


PositionEmbed = Callable[[tuple[tuple[Size, ...], ...], tuple[Size, ...]], Tensor]
"""Own sizes by level and image, and the padded size of each level, to the position of every token, `(B, S, D)`."""


class ImageContext(NamedTuple):
    """Where each image token lies. Masks are None when no image of the batch is padded.

    spatial_shapes: (height, width) of each padded level.
    sizes: (height, width) of the image's own part, by level and image.
    may_attend_B11S: True on an image's own tokens.
    padding_BS1: True on padding.
    valid_ratios_BL2: own width and height over padded width and height, float32.
    references_BSL2: each token's centre (x, y) in units of each padded level, float32.
    positions_BSD: position and level embedding of each token.
    """

    spatial_shapes: tuple[Size, ...]
    sizes: tuple[OwnSizes, ...]
    may_attend_B11S: Tensor | None
    padding_BS1: Tensor | None
    valid_ratios_BL2: Tensor
    references_BSL2: Tensor
    positions_BSD: Tensor

    @property
    def fewest_tokens(self) -> int:
        """How many tokens the smallest image of the batch has of its own; 0, as it may be, where only a graph knows."""
        known = [level for level in self.sizes if isinstance(level, tuple)]
        tokens = [sum(h * w for h, w in image) for image in zip(*known, strict=True)]
        return min(tokens) if tokens else 0  # torch before 2.12 cannot trace `default`


class TextContext(NamedTuple):
    """Which text tokens see which.

    may_attend_B1TT: True inside a phrase (the sub-sentence mask).
    may_attend_B11T: True on real tokens, False on padding.
    positions_BTD: embedding of each token's place in its phrase.
    """

    may_attend_B1TT: Tensor
    may_attend_B11T: Tensor
    positions_BTD: Tensor


def cell_centres(sizes: OwnSizes, padded: Size, device: torch.device) -> Tensor:
    """Centres (x, y) of a level's cells in units of each image's own part, `(B, H * W, 2)`, float32.

    Args:
        sizes: (height, width) of each image's own part of this level.
        padded: (H, W) of the padded level.
    """
    y = torch.arange(padded[0], device=device, dtype=torch.float32) + 0.5
    x = torch.arange(padded[1], device=device, dtype=torch.float32) + 0.5
    own = torch.as_tensor(sizes, device=device, dtype=torch.float32)
    y_BH1 = (y / own[:, :1])[:, :, None].expand(-1, -1, padded[1])
    x_B1W = (x / own[:, 1:])[:, None, :].expand(-1, padded[0], -1)
    return torch.stack([x_B1W, y_BH1], -1).flatten(1, 2)


def padding_mask(sizes: OwnSizes, padded: Size, device: torch.device) -> Tensor:
    """True on the cells of a level outside each image's own part, `(B, H * W)`."""
    own = torch.as_tensor(sizes, device=device)
    y_BH = torch.arange(padded[0], device=device) >= own[:, :1]
    x_BW = torch.arange(padded[1], device=device) >= own[:, 1:]
    return (y_BH[:, :, None] | x_BW[:, None, :]).flatten(1)


def build_image_context(
    sizes: tuple[tuple[Size, ...], ...], spatial_shapes: tuple[Size, ...], embed: PositionEmbed
) -> ImageContext:
    """Gather the geometry of a padded pyramid from the images' own level sizes."""
    batch, levels = len(sizes[0]), list(zip(sizes, spatial_shapes, strict=True))
    is_padded = any(size != padded for own, padded in levels for size in own)
    if not is_padded:  # every image is as the first
        sizes, levels = tuple(own[:1] for own in sizes), [(own[:1], padded) for own, padded in levels]
    positions_BSD = embed(sizes, spatial_shapes)
    device = positions_BSD.device
    ratios = [[[w / padded[1], h / padded[0]] for (h, w) in own] for own, padded in levels]
    valid_ratios_BL2 = torch.tensor(ratios, device=device, dtype=torch.float32).transpose(0, 1)
    centres_BS2 = torch.cat([cell_centres(own, padded, device) for own, padded in levels], 1)
    padding_BS = torch.cat([padding_mask(own, padded, device) for own, padded in levels], 1) if is_padded else None
    return ImageContext(
        spatial_shapes=spatial_shapes,
        sizes=tuple(own if is_padded else own * batch for own in sizes),
        may_attend_B11S=None if padding_BS is None else padding_BS.logical_not()[:, None, None],
        padding_BS1=None if padding_BS is None else padding_BS[..., None],
        valid_ratios_BL2=valid_ratios_BL2.expand(batch, -1, -1),
        references_BSL2=(centres_BS2[:, :, None] * valid_ratios_BL2[:, None]).expand(batch, -1, -1, -1),
        positions_BSD=positions_BSD.expand(batch, -1, -1),
    )
