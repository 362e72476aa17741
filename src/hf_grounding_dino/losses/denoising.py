"""Contrastive denoising in training (DINO, arXiv 2203.03605, section 3.3): queries near boxes find them back.

They need no matching, so the decoder learns to refine boxes from the first step on. They are decoded beside the
matching queries, which do not see them: without labels, or out of training, the network is the one without them.

An image of G boxes has R groups of 2 G queries, R = max(1, num_queries // G): each box once with noise within half its
size, to be found back, and once with more, to be told apart as background. Every image has its own R, whichever its
batch, and its loss is divided by R; for an image alone that is what mmdetection computes. Of more boxes than
`num_queries`, that many are drawn, so that no image has more than 2 `num_queries` of these queries; one without boxes
has none.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from torchvision.ops import box_convert

from .criterion import Matches, Predictions, paired_losses
from .targets import Targets
from .weights import LossWeights

BOX_EPSILON = 1e-3
"""How near to 0 and 1 a noised coordinate may come, as in mmdetection."""
NO_GROUP = -1


@dataclass(frozen=True, kw_only=True)
class DenoisingSettings:
    """How much noise, and how many queries."""

    num_queries: int = 100
    """Positive queries of an image, about: R · G, see the head of this module; as many negative ones beside them."""
    label_noise: float = 0.5
    """In [0, 1]; half of it is the probability that a label is drawn anew."""
    box_noise: float = 1.0
    """At least 0; at 1 a corner moves by less than half the box's size for a positive query, by more for a negative."""

    def __post_init__(self) -> None:
        """Refuse what makes no sense.

        Raises:
            ValueError: naming the setting.
        """
        if self.num_queries < 1:
            raise ValueError(f"`num_queries` of denoising must be at least 1, not {self.num_queries}.")
        if not 0 <= self.label_noise <= 1:
            raise ValueError(f"`label_noise` must be in [0, 1], not {self.label_noise}.")
        if not 0 <= self.box_noise < float("inf"):
            raise ValueError(f"`box_noise` must be at least 0, not {self.box_noise}.")


class ImageNoise(NamedTuple):
    """The denoising queries of one image, group by group, in each first the positive ones, then the negative ones.

    labels_N: rows of the label embedding.
    boxes_N4: (cx, cy, w, h) in [0, 1], float32.
    sources_N: the box each was made from.
    groups_N: the group each is in.
    is_positive_N: True where the box is to be found back.
    """

    labels_N: Tensor
    boxes_N4: Tensor
    sources_N: Tensor
    groups_N: Tensor
    is_positive_N: Tensor


class NoisedQueries(NamedTuple):
    """The denoising queries of a batch, before the matching queries in the decoder; padding comes last.

    content_BND: rows of the label embedding, zeros on padding.
    boxes_BN4: (cx, cy, w, h) in [0, 1], float32.
    groups_BN: the group each is in, -1 on padding.
    shares_B: 1 over the number of groups, what an image's loss is multiplied by.
    positives: the positive queries with their boxes and tokens, as of one prediction set.
    """

    content_BND: Tensor
    boxes_BN4: Tensor
    groups_BN: Tensor
    shares_B: Tensor
    positives: Matches

    def may_attend(self, num_matching: int, matching_B11Q: Tensor | None) -> Tensor:
        """Who sees whom, `(B, 1, N + Q, N + Q)`, where these queries stand before the matching ones.

        Matching queries see matching queries; denoising queries see those and their own group, padding being one.

        Args:
            matching_B11Q: False on matching queries that nobody is to see; None: there are none.
        """
        batch, noised = self.groups_BN.shape
        own_group_BNN = self.groups_BN[:, :, None] == self.groups_BN[:, None]
        noised_BAN = nn.functional.pad(own_group_BNN, (0, 0, 0, num_matching))
        if matching_B11Q is None:
            matching_B11Q = noised_BAN.new_ones(batch, 1, 1, num_matching)
        matching_BAQ = matching_B11Q[:, 0].expand(-1, noised + num_matching, -1)
        return torch.cat([noised_BAN, matching_BAQ], 2)[:, None]

    @property
    def mask_BN(self) -> Tensor:  # noqa: N802
        """False on padding."""
        return self.groups_BN != NO_GROUP


class Denoising(nn.Module):
    """The label embedding: what a denoising query begins with, by the number of its box's phrase in the prompt.

    The number says nothing of the phrase's meaning, which comes in through the decoder's attention to the text.
    """

    def __init__(self, num_labels: int, width: int, settings: DenoisingSettings) -> None:
        """Draw the table from the normal distribution, as mmdetection does.

        Raises:
            ValueError: `num_labels` is below 1.
        """
        super().__init__()
        if num_labels < 1:
            raise ValueError(f"`num_labels` must be at least 1, not {num_labels}.")
        self.settings = settings
        self.label_embedding = nn.Embedding(num_labels, width)

    def forward(self, targets: Sequence[Targets]) -> NoisedQueries:
        """The denoising queries of a batch."""
        images = [noise_image(t, self.label_embedding.num_embeddings, self.settings) for t in targets]
        groups_BN = pad_sequence([i.groups_N for i in images], batch_first=True, padding_value=NO_GROUP)
        labels_BN = pad_sequence([i.labels_N for i in images], batch_first=True)
        content_BND = self.label_embedding(labels_BN).masked_fill((groups_BN == NO_GROUP)[..., None], 0.0)
        shares = [1 / num_groups(len(t.boxes_G4), self.settings.num_queries) for t in targets]
        return NoisedQueries(
            content_BND=content_BND,
            boxes_BN4=pad_sequence([i.boxes_N4 for i in images], batch_first=True, padding_value=0.5),
            groups_BN=groups_BN,
            shares_B=torch.tensor(shares, device=groups_BN.device),
            positives=_positives(images, targets),
        )


def num_groups(num_boxes: int, num_queries: int) -> int:
    """R, at least 1: how often each box of an image is noised both ways."""
    return max(1, num_queries // max(1, num_boxes))


def noise_image(target: Targets, num_labels: int, settings: DenoisingSettings) -> ImageNoise:
    """Noise the boxes and labels of one image.

    Drawn on the CPU, from a generator seeded with `target.noise_seed` or else the global one, in this order: which
    boxes, a permutation's first, when there are more than `num_queries`; then over all N queries whether a label
    is replaced `rand(N)`, by which `randint(N)`, the direction of each corner coordinate `randint(N, 4)`, how far
    `rand(N, 4)`. Labels past the table's end begin again at its start.
    """
    seed, device = target.noise_seed, target.boxes_G4.device
    generator = torch.default_generator if seed is None else torch.Generator().manual_seed(seed)
    total = len(target.boxes_G4)
    kept = torch.arange(total)
    if total > settings.num_queries:
        kept = torch.randperm(total, generator=generator)[: settings.num_queries]
    sources_N = kept.repeat(2 * num_groups(total, settings.num_queries))
    count = len(sources_N)
    place_N = torch.arange(count)
    is_positive_N = place_N // max(1, len(kept)) % 2 == 0
    replaces_N = torch.rand(count, generator=generator) < settings.label_noise / 2
    random_N = torch.randint(num_labels, (count,), generator=generator)
    sign_N4 = 2.0 * torch.randint(2, (count, 4), generator=generator) - 1
    part_N4 = torch.rand(count, 4, generator=generator) + is_positive_N.logical_not()[:, None]
    offsets_N4 = (sign_N4 * part_N4 * settings.box_noise / 2).to(device)
    sources_N = sources_N.to(device)
    own_N = target.phrases_G[sources_N] % num_labels
    return ImageNoise(
        labels_N=torch.where(replaces_N.to(device), random_N.to(device), own_N),
        boxes_N4=_move_corners(target.boxes_G4[sources_N], offsets_N4),
        sources_N=sources_N,
        groups_N=(place_N // max(1, 2 * len(kept))).to(device),
        is_positive_N=is_positive_N.to(device),
    )


def _move_corners(boxes_N4: Tensor, offsets_N4: Tensor) -> Tensor:
    """Move corners by parts of the box's size, inside the image; corners that pass one another leave a least box."""
    sizes_N4 = boxes_N4[:, 2:].repeat(1, 2)
    corners_N4 = (box_convert(boxes_N4, "cxcywh", "xyxy") + offsets_N4 * sizes_N4).clamp(0.0, 1.0)
    return box_convert(corners_N4, "xyxy", "cxcywh").clamp(BOX_EPSILON, 1 - BOX_EPSILON)


def _positives(images: Sequence[ImageNoise], targets: Sequence[Targets]) -> Matches:
    queries = [image.is_positive_N.nonzero()[:, 0] for image in images]
    sources = [image.sources_N[chosen] for image, chosen in zip(images, queries, strict=True)]
    images_M = torch.cat([torch.full_like(chosen, b) for b, chosen in enumerate(queries)])
    return Matches(
        sets_M=torch.zeros_like(images_M),
        images_M=images_M,
        queries_M=torch.cat(queries),
        boxes_M4=torch.cat([t.boxes_G4[source] for t, source in zip(targets, sources, strict=True)]),
        tokens_MT=torch.cat([t.tokens_GT[source] for t, source in zip(targets, sources, strict=True)]),
    )


def denoising_loss(
    predictions: Predictions, noised: NoisedQueries, weights: LossWeights, alpha: float, num_boxes: Tensor
) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss of the denoising queries, each image's divided by its number of groups.

    Positive queries should give their box and its words, negative ones no word at all; those of the padding count
    for nothing.

    Args:
        predictions: of every decoder layer, logits -inf on the padding.
        alpha, num_boxes: as in `losses.grounding_loss`.

    Returns:
        The weighted total, and the terms before weighting: `loss_ce_dn`, `loss_bbox_dn` and `loss_giou_dn` for the
        last layer, with `_0`, `_1`, ... for the layers before it.
    """
    num_layers = len(predictions.logits_KBQT)
    terms = paired_losses(predictions, noised.positives.repeat(num_layers), noised.shares_B, alpha, num_boxes)
    return terms.total(weights), terms.named([*(f"_dn_{i}" for i in range(num_layers - 1)), "_dn"])
