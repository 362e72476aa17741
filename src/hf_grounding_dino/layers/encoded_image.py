"""Images after the backbone, each at its own size, and the one canvas of tokens that a transformer wants of them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from .context import ImageContext, PositionEmbed, Size, build_image_context


class ImageGroup(NamedTuple):
    """Images of one size.

    rows: which images of the batch these are.
    maps: the levels, finest first, each `(images, D, H, W)`, without padding.
    """

    rows: tuple[int, ...]
    maps: tuple[Tensor, ...]


class EncodedImage(NamedTuple):
    """Images before they meet any words: one encoding serves many prompts.

    groups: the images of a batch by size.
    """

    groups: tuple[ImageGroup, ...]

    @property
    def num_images(self) -> int:
        """How many images there are."""
        return sum(len(group.rows) for group in self.groups)

    def select(self, rows: Sequence[int]) -> EncodedImage:
        """The images of the given numbers, in that order; one may come several times, for several prompts.

        One image for all prompts takes no memory of its own.

        Raises:
            ValueError: no numbers, or one that no image has.
        """
        rows = list(rows)
        if not rows or not all(0 <= row < self.num_images for row in rows):
            raise ValueError(f"Choose from images 0 to {self.num_images - 1}, not {rows}.")
        groups = []
        for group in self.groups:
            place = {row: i for i, row in enumerate(group.rows)}
            chosen = [(new, place[row]) for new, row in enumerate(rows) if row in place]
            if chosen:
                new_rows, places = zip(*chosen, strict=True)
                groups.append(ImageGroup(new_rows, tuple(_take(level, places) for level in group.maps)))
        return EncodedImage(tuple(groups))

    def repeat(self, times: int) -> EncodedImage:
        """Each image `times` times in a row."""
        return self.select([row for row in range(self.num_images) for _ in range(times)])

    def to(self, where: torch.device | str | int | torch.dtype) -> EncodedImage:
        """The same images on a device, or with their features in another type."""
        groups = (group._replace(maps=tuple(level.to(where) for level in group.maps)) for group in self.groups)
        return EncodedImage(tuple(groups))


def _take(x: Tensor, places: Sequence[int]) -> Tensor:
    if set(places) == {places[0]}:
        return x[places[0] :][:1].expand(len(places), *x.shape[1:])
    return x[torch.tensor(places, device=x.device)]


def unpadded_sizes(pixel_values: Tensor, pixel_mask: Tensor | None) -> list[Size]:
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


def encode_by_size(
    pixel_values: Tensor, pixel_mask: Tensor | None, pyramid: Callable[[Tensor], Sequence[Tensor]]
) -> EncodedImage:
    """Run each image at its own size, so that a batch equals its parts; images of one size run together.

    Norms and windows of a backbone would see padded pixels; here they meet none.

    Args:
        pyramid: images of one size to their levels, finest first.
    """
    groups: dict[Size, list[int]] = defaultdict(list)
    for i, size in enumerate(unpadded_sizes(pixel_values, pixel_mask)):
        groups[size].append(i)
    return EncodedImage(
        tuple(ImageGroup(tuple(rows), tuple(pyramid(_crop(pixel_values, rows, size)))) for size, rows in groups.items())
    )


def _crop(pixel_values: Tensor, rows: list[int], size: Size) -> Tensor:
    if len(rows) < len(pixel_values):
        pixel_values = pixel_values[rows]
    return pixel_values[:, :, : size[0], : size[1]]


def flatten_levels(encoded: EncodedImage, embed: PositionEmbed) -> tuple[Tensor, ImageContext]:
    """All levels on one canvas of tokens.

    Args:
        embed: see `PositionEmbed`.

    Returns:
        The flattened levels `(B, S, D)`, zero on padding, and where each token lies.
    """
    groups, batch = encoded.groups, encoded.num_images
    # One image for several prompts is laid out once.
    shared = len(groups) == 1 and batch > 1 and all(level.stride(0) == 0 for level in groups[0].maps)
    sizes, spatial_shapes, flattened = [], [], []
    for maps in zip(*(group.maps for group in groups), strict=True):
        padded: Size = (max(level.shape[2] for level in maps), max(level.shape[3] for level in maps))
        own = {row: _size(level) for group, level in zip(groups, maps, strict=True) for row in group.rows}
        canvas = torch.cat([_pad(level, padded) for level in maps]) if len(maps) > 1 else maps[0]
        flattened.append(canvas[: 1 if shared else None].flatten(2).transpose(1, 2))
        sizes.append(tuple(own[row] for row in range(batch)))
        spatial_shapes.append(padded)
    image_BSD = torch.cat(flattened, 1)
    order = [row for group in groups for row in group.rows]
    if order != sorted(order):
        image_BSD = image_BSD[torch.tensor(order, device=image_BSD.device).argsort()]
    context = build_image_context(tuple(sizes), tuple(spatial_shapes), embed)
    context = context._replace(positions_BSD=context.positions_BSD.to(image_BSD.dtype))
    return image_BSD.expand(batch, -1, -1), context


def _size(level: Tensor) -> Size:
    return level.shape[2], level.shape[3]


def _pad(level: Tensor, size: Size) -> Tensor:
    return nn.functional.pad(level, (0, size[1] - level.shape[3], 0, size[0] - level.shape[2]))
