"""Attention between image and text in its cheap order, against its definition."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from hf_grounding_dino.layers import fusion
from hf_grounding_dino.layers.context import ImageContext, TextContext
from hf_grounding_dino.layers.fusion import BidirectionalAttention
from tiny import randomize

IMAGE_TOKENS, TEXT_TOKENS = 50, 9


def attention(dropout: float = 0.0) -> BidirectionalAttention:
    module = BidirectionalAttention(width=32, inner_width=32, num_heads=2, dropout=dropout)
    randomize(module)
    return module.eval()


def contexts(padded: bool) -> tuple[ImageContext, TextContext]:
    """Two images and prompts, of which the second has 13 image tokens and 4 text tokens of its own when padded."""
    image_mask = torch.ones(2, 1, 1, IMAGE_TOKENS, dtype=torch.bool)
    text_mask = torch.ones(2, 1, 1, TEXT_TOKENS, dtype=torch.bool)
    if padded:
        # The first 20 rows are padding, so that the first chunks of an image can hold no token of its own.
        image_mask[1, ..., :20] = image_mask[1, ..., 33:] = False
        text_mask[1, ..., 4:] = False
    none = torch.empty(0)
    image = ImageContext((), (), image_mask if padded else None, None, none, none, none)
    return image, TextContext(none, text_mask, none)


def features(scale: float = 1.0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    image = scale * torch.randn(2, IMAGE_TOKENS, 32, generator=generator)
    return image, torch.randn(2, TEXT_TOKENS, 32, generator=generator)


@pytest.mark.parametrize("padded", [False, True])
def test_the_cheap_order_equals_the_definition_with_every_gradient(padded: bool) -> None:
    module, (image, text) = attention(), contexts(padded)
    results = []
    for output_attentions in (False, True):
        inputs = [t.requires_grad_() for t in features()]
        from_text, from_image, *_ = module(*inputs, image, text, output_attentions)
        real = text.may_attend_B11T[:, 0, 0]
        (from_text.square().sum() + from_image[real].pow(3).sum()).backward()
        gradients = {name: p.grad for name, p in module.named_parameters()}
        results.append([from_text, from_image[real], *(t.grad for t in inputs), *gradients.values()])
        module.zero_grad()
    for cheap, defined in zip(*results, strict=True):
        assert defined.abs().max() > 1e-6 or cheap.abs().max() < 1e-4  # a key's bias cancels in the softmax
        torch.testing.assert_close(cheap, defined, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("rows", [1, 7, 16, 1024])
@pytest.mark.parametrize("scale", [1.0, 300.0])
def test_chunks_equal_the_definition(padded: bool, rows: int, scale: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Scores of hundreds stay finite, too."""
    monkeypatch.setattr(fusion, "IMAGE_ROWS", rows)
    module, (image, text) = attention(), contexts(padded)
    real = text.may_attend_B11T[:, 0, 0]
    with torch.no_grad():
        cheap = module(*features(scale), image, text, False)
        defined = module(*features(scale), image, text, True)
    torch.testing.assert_close(cheap[0], defined[0], rtol=1e-4, atol=1e-4 * scale)
    torch.testing.assert_close(cheap[1][real], defined[1][real], rtol=1e-4, atol=1e-4 * scale)


def test_no_projection_of_the_image_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    module, (image, text) = attention(), contexts(False)

    refused, project = (module.vision_proj, module.values_vision_proj, module.out_vision_proj), torch.nn.Linear.forward

    def refuse(layer: Any, x: torch.Tensor) -> torch.Tensor:
        assert layer not in refused, "projected"
        return project(layer, x)

    monkeypatch.setattr(torch.nn.Linear, "forward", refuse)
    module(*features(), image, text, False)


def test_dropped_weights_are_the_definition() -> None:
    """With every weight dropped, what is left are the last biases."""
    module, (image, text) = attention(dropout=0.999999).train(), contexts(False)
    from_text, from_image, *_ = module(*features(), image, text, False)
    torch.testing.assert_close(from_text, module.out_vision_proj.bias.expand_as(from_text), rtol=0, atol=1e-3)
    torch.testing.assert_close(from_image, module.out_text_proj.bias.expand_as(from_image), rtol=0, atol=1e-3)
