"""Language-guided query selection (section 3.3 of the paper): the image tokens most like any word become queries."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ...layers.context import ImageContext, cell_centres

PROPOSAL_SIZE = 0.05
PROPOSAL_MARGIN = 0.01


class GridProposals(NamedTuple):
    """A square box around each image token.

    boxes_BS4: (cx, cy, w, h) in [0, 1] of the un-padded image, 1 where the token proposes nothing.
    keeps_features_BS1: False on padding and where the box comes within 1 % of an edge of the image.
    """

    boxes_BS4: Tensor
    keeps_features_BS1: Tensor


class SelectedQueries(NamedTuple):
    """Where decoding begins.

    indices_BQ: which image tokens were chosen, best first.
    may_attend_BQ: False on places left empty because an image has fewer tokens than there are queries; None: none is.
    """

    indices_BQ: Tensor
    may_attend_BQ: Tensor | None


class EncoderProposals(NamedTuple):
    """Queries as the decoder gets them, and what the encoder proposes for them (two-stage Deformable DETR).

    content_BQD: what each query begins with.
    boxes_BQ4: float32, with gradient.
    logits_BQT: similarity of the chosen tokens to the words.
    may_attend_B11Q: see `SelectedQueries`.
    all_logits_BST, features_BSD: of every image token.
    """

    content_BQD: Tensor
    boxes_BQ4: Tensor
    logits_BQT: Tensor
    may_attend_B11Q: Tensor | None
    all_logits_BST: Tensor
    features_BSD: Tensor


def grid_proposals(image: ImageContext) -> GridProposals:
    """Propose at each token a box of 5 % of the image, doubled from level to level (Deformable DETR, A.4)."""
    device = image.references_BSL2.device
    boxes = []
    for level, (own, padded) in enumerate(zip(image.sizes, image.spatial_shapes, strict=True)):
        centres = cell_centres(own, padded, device)
        boxes.append(torch.cat([centres, torch.full_like(centres, PROPOSAL_SIZE * 2.0**level)], -1))
    boxes_BS4 = torch.cat(boxes, 1)
    inside = ((boxes_BS4 > PROPOSAL_MARGIN) & (boxes_BS4 < 1 - PROPOSAL_MARGIN)).all(-1, keepdim=True)
    if image.padding_BS1 is not None:
        inside = inside & image.padding_BS1.logical_not()
    return GridProposals(boxes_BS4.masked_fill(inside.logical_not(), 1.0), inside)


def select_queries(logits_BST: Tensor, image: ImageContext, num_queries: int) -> SelectedQueries:
    """Choose the tokens whose best word scores highest; never a token of the padding."""
    scores_BS = logits_BST.amax(-1).float()
    if image.padding_BS1 is not None:
        scores_BS = scores_BS.masked_fill(image.padding_BS1[..., 0], -torch.inf)
    # A graph for any size is ready for the smallest.
    missing = num_queries if torch.compiler.is_exporting() else num_queries - scores_BS.shape[1]
    if missing > 0:
        scores_BS = torch.nn.functional.pad(scores_BS, (0, missing), value=-torch.inf)
    best_BQ, indices_BQ = scores_BS.topk(num_queries, dim=1)
    may_attend_BQ = best_BQ != -torch.inf if image.fewest_tokens < num_queries else None
    return SelectedQueries(indices_BQ.clamp(max=logits_BST.shape[1] - 1), may_attend_BQ)


def gather_tokens(x_BSD: Tensor, indices_BQ: Tensor) -> Tensor:
    """`x_BSD` at the chosen tokens, `(B, Q, D)`."""
    return x_BSD.gather(1, indices_BQ[..., None].expand(-1, -1, x_BSD.shape[-1]))
