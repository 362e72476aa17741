"""Images on one canvas, each as if it were alone: equal to running each at its own size."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers

from hf_grounding_dino.export.backbone import check_exportable, coarsest_cell, divide, encode_on_canvas
from hf_grounding_dino.layers.encoded_image import flatten_levels
from tiny import FAMILIES, Family, noise_image, one, tiny_model, together

SIZES = ((70, 101), (96, 50), (33, 120), (65, 9), (96, 120))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("stages", [(2, 3, 4), (1, 2, 3, 4)])
@torch.no_grad()
def test_equal_to_each_image_at_its_own_size(family: Family, stages: tuple[int, ...]) -> None:
    """Canvas 96 x 120, garbage beside the images; the levels beyond the last stage come from padded ones."""
    model = tiny_model(family, stages=stages, num_feature_levels=len(stages) + 1).model
    inputs = together([one(noise_image(*size)) for size in SIZES], garbage=9.0)
    image = inputs["pixel_values"], inputs["pixel_mask"]
    expected = flatten_levels(model.encode_image(*image), model._image_positions)
    got = encode_on_canvas(model, *image)
    # A canvas of 96 x 120 becomes one of 96 x 128, so the levels are compared on the part both have.
    starts = [0, 0]
    for shape, ours in zip(expected[1].spatial_shapes, got[1].spatial_shapes, strict=True):
        assert ours[0] >= shape[0] and ours[1] >= shape[1]
        for name in ("image_BSD", "references_BSL2", "positions_BSD", "padding_BS1"):
            parts = []
            for encoded, size, start in ((expected, shape, starts[0]), (got, ours, starts[1])):
                tensor = encoded[0] if name == "image_BSD" else getattr(encoded[1], name)
                level = tensor[:, start : start + size[0] * size[1]].unflatten(1, size)
                parts.append(level[:, : shape[0], : shape[1]])
            if name == "references_BSL2":  # in units of each padded level: back to units of the image
                parts = [p / e[1].valid_ratios_BL2[:, None, None] for p, e in zip(parts, (expected, got), strict=True)]
            torch.testing.assert_close(parts[1], parts[0], rtol=1e-4, atol=1e-4)
        starts = [starts[0] + shape[0] * shape[1], starts[1] + ours[0] * ours[1]]
    assert got[0].masked_fill(got[1].padding_BS1.logical_not(), 0.0).eq(0).all()


def test_windows_of_a_shifted_image() -> None:
    """An image of 3 x 5 cells on a canvas of 6 x 6, windows of 2, shift 1: padded to 4 x 6, rolled within that.

    The first slot holds cell (1, 1); row 3 of the rolled image is row 0 of the image, row 2 is padding.
    """
    windows = divide(torch.tensor([[3, 5]]), (6, 6), 2, 1)
    order = windows.order.view(3, 3, 2, 2)
    padding = windows.is_padding_N1.view(3, 3, 2, 2)
    assert order[0, 0].tolist() == [[7, 8], [13, 14]] and not padding[0, 0].any()
    assert padding[1, 0].tolist() == [[True, True], [False, False]]
    assert order[1, 0, 1].tolist() == [1, 2]
    assert padding[2].all()
    assert (windows.is_padding_N1.logical_not()).sum() == 3 * 5
    own = [y * 6 + x for y in range(3) for x in range(5)]
    assert windows.order[windows.place_N[own]].tolist() == own


def test_coarsest_cell() -> None:
    """Four stages: patches of 4 pixels, halved three times."""
    assert coarsest_cell(tiny_model().model.backbone.conv_encoder.model) == 4 * 2**3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"position_embedding_type": "learned"}, "position_embedding_type='sine'"),
        (
            {
                "backbone_config": transformers.ResNetConfig(
                    embedding_size=8, hidden_sizes=[8, 8], depths=[1, 1], layer_type="basic", out_indices=[1, 2]
                )
            },
            "not this resnet",
        ),
    ],
)
def test_what_cannot_be_run_so_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_exportable(tiny_model(**changes).model)
