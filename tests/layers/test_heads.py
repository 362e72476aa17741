"""Boxes near the edge of the image: how far a head can move them, and how near to the edge a reference counts."""

from __future__ import annotations

from math import exp, log

import pytest
import torch

import tiny
from hf_grounding_dino.layers.heads import BoxHead, logit

REFERENCES = [0.0, 1e-8, 2e-6, 1e-5, 5e-4, 1e-3, 0.3, 0.5, 1 - 1e-3, 1 - 5e-4, 1 - 1e-5, 1.0]


@pytest.mark.parametrize("epsilon", [1e-5, 1e-3])
def test_the_logit_of_the_original(epsilon: float) -> None:
    """log(max(x, e) / max(1 - x, e)), as the original and mmdetection write it."""
    found = logit(torch.tensor(REFERENCES), epsilon, clamps_apart=True)
    expected = [log(max(x, epsilon) / max(1 - x, epsilon)) for x in torch.tensor(REFERENCES).tolist()]
    torch.testing.assert_close(found, torch.tensor(expected), atol=1e-6, rtol=1e-6)


@tiny.sound_stock
@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_saturated_boxes_are_those_of_transformers_by_default(family: tiny.Family) -> None:
    """Sides of 1 to the last bit, as a bias of 20 leaves them, which the next layer brings back to the middle."""
    model = tiny.tiny_model(family)
    with torch.no_grad():
        model.model.encoder_output_bbox_embed.layers[-1].bias[2:] += 20
        model.bbox_embed[0].layers[-1].bias[2:] -= 11
        twin, inputs = tiny.stock_twin(model), tiny.one(tiny.noise_image(91, 74))
        ours, stock = model(**inputs), twin(**inputs, attention_mask=torch.ones_like(inputs["input_ids"]))
    assert (ours.init_reference_points[..., 2:] > 1 - 1e-6).all()
    torch.testing.assert_close(ours.intermediate_reference_points, stock.intermediate_reference_points)
    torch.testing.assert_close(ours.pred_boxes, stock.pred_boxes)


def test_the_epsilon_decides_how_far_from_the_edge_a_head_gets() -> None:
    """An offset of 5 takes a side of 1e-8 to 1 / (1 + exp(11.51 - 5)), or with 1e-3 to 1 / (1 + exp(6.91 - 5))."""
    for epsilon in (1e-5, 1e-3):
        head = BoxHead(8, epsilon, clamps_apart=True)
        with torch.no_grad():
            for parameter in head.parameters():
                parameter.zero_()
            head.layers[-1].bias.fill_(5.0)
            refined = head.refine(torch.zeros(1, 1, 8), torch.full((1, 1, 4), 1e-8))
        torch.testing.assert_close(refined, torch.full((1, 1, 4), 1 / (1 + exp(-log(epsilon) - 5))))


def test_a_reference_at_the_edge_has_a_finite_gradient() -> None:
    references = torch.tensor(REFERENCES, requires_grad=True)
    logit(references, 1e-5, clamps_apart=True).sum().backward()
    assert references.grad is not None and references.grad.isfinite().all()
