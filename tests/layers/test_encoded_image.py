"""One encoding of an image serves many prompts."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import tiny
from hf_grounding_dino import GroundingDinoForObjectDetection
from hf_grounding_dino.layers.encoded_image import flatten_levels

PROMPTS = (tiny.PHRASES, ([9],), ([5, 6], [4], [13], [14, 15, 16, 17]))
SIZES = ((91, 74), (48, 101))


@pytest.fixture(scope="module", params=tiny.FAMILIES)
def model(request: pytest.FixtureRequest) -> GroundingDinoForObjectDetection:
    return tiny.tiny_model(request.param, d_model=64)


def batch() -> dict[str, Tensor]:
    """Two images of unequal sizes, padded with garbage."""
    return tiny.together([tiny.one(tiny.noise_image(h, w)) for h, w in SIZES], garbage=7.0)


def pixels(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: inputs[name] for name in ("pixel_values", "pixel_mask") if name in inputs}


def words(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: inputs[name] for name in ("input_ids", "attention_mask") if name in inputs}


def runs_of_backbone(model: Any) -> tuple[list[int], Any]:
    runs: list[int] = []
    return runs, model.model.backbone.register_forward_hook(lambda module, args, output: runs.append(len(args[0])))


def assert_same(one: Any, other: Any, row: int = 0, width: int | None = None) -> None:
    torch.testing.assert_close(one.pred_boxes[row], other.pred_boxes[0], atol=1e-5, rtol=0)
    logits, expected = one.logits[row, :, :width], other.logits[0, :, :width]
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_one_image_many_prompts(model: GroundingDinoForObjectDetection) -> None:
    """Encoded once and asked three times, one by one and in a batch, equals three full calls; one backbone run."""
    image = tiny.noise_image(91, 74)
    full = [model(**tiny.one(image, *prompt)) for prompt in PROMPTS]
    runs, hook = runs_of_backbone(model)
    encoded = model.encode_image(image[None])
    alone = [model(input_ids=tiny.phrases_to_ids(*prompt), encoded_image=encoded) for prompt in PROMPTS]
    prompts = words(tiny.together([tiny.one(image, *prompt) for prompt in PROMPTS]))
    together = model(**prompts, encoded_image=encoded.repeat(3))
    hook.remove()
    assert runs == [1]
    for row, (one, expected, prompt) in enumerate(zip(alone, full, PROMPTS, strict=True)):
        assert_same(one, expected)
        assert_same(together, expected, row, tiny.phrases_to_ids(*prompt).shape[1])


@torch.no_grad()
def test_images_of_a_batch_can_be_chosen(model: GroundingDinoForObjectDetection) -> None:
    """Of a padded batch: the second, the first and the second again, each as it is alone."""
    singles = [model(**tiny.one(tiny.noise_image(h, w))) for h, w in SIZES]
    encoded = model.encode_image(**pixels(batch()))
    prompts = tiny.phrases_to_ids(*tiny.PHRASES).expand(3, -1)
    chosen = model(input_ids=prompts, encoded_image=encoded.select([1, 0, 1]))
    for row, image in enumerate((1, 0, 1)):
        assert_same(chosen, singles[image], row)
    one = model(input_ids=prompts[:1], encoded_image=encoded.select([1]))
    assert_same(one, singles[1])


@torch.no_grad()
def test_repeat_keeps_images_together(model: GroundingDinoForObjectDetection) -> None:
    encoded = model.encode_image(**pixels(batch()))
    twice = encoded.repeat(2)
    assert twice.num_images == 4
    assert [group.rows for group in twice.groups] == [(0, 1), (2, 3)]
    for group, before in zip(twice.groups, encoded.groups, strict=True):
        for level, own in zip(group.maps, before.maps, strict=True):
            assert level.stride(0) == 0, "one image needs no copies"
            assert torch.equal(level[1:], own)
    three = encoded.select([1]).repeat(3)
    tokens, context = flatten_levels(three, model.model._image_positions)
    assert tokens.stride(0) == context.positions_BSD.stride(0) == 0, "nor do its tokens"
    assert context.sizes == tuple((size,) * 3 for size in context.spatial_shapes)


@torch.no_grad()
def test_the_base_model_takes_it_too(model: GroundingDinoForObjectDetection) -> None:
    inputs = batch()
    encoded = model.model.encode_image(**pixels(inputs))
    output, expected = model.model(**words(inputs), encoded_image=encoded), model.model(**inputs)
    torch.testing.assert_close(output.last_hidden_state, expected.last_hidden_state, atol=1e-5, rtol=0)


def test_gradients_reach_the_backbone(model: GroundingDinoForObjectDetection) -> None:
    """A loss over two prompts on one encoding trains the backbone as two full calls do."""
    image, labels = tiny.noise_image(91, 74), [tiny.boxes_label(i, 2, 1) for i in range(2)]
    inputs = words(tiny.together([tiny.one(image, *prompt) for prompt in PROMPTS[:2]]))
    encoded = model.encode_image(image[None]).repeat(2)
    shared = model(**inputs, encoded_image=encoded, labels=labels).loss
    full = model(**inputs, pixel_values=image.expand(2, -1, -1, -1), labels=labels).loss
    parameter = model.model.backbone.conv_encoder.model.get_parameter(
        "swin.embeddings.patch_embeddings.projection.bias"
    )
    (one,), (other,) = torch.autograd.grad(shared, parameter), torch.autograd.grad(full, parameter)
    torch.testing.assert_close(shared, full)
    torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)
    assert one.abs().max() > 0


def test_what_is_missing_or_too_much_is_named(model: GroundingDinoForObjectDetection) -> None:
    inputs = batch()
    encoded = model.encode_image(**pixels(inputs))
    for network in (model, model.model):
        with pytest.raises(ValueError, match="`pixel_values`, with `pixel_mask`, or `encoded_image`"):
            network(**words(inputs))
        with pytest.raises(ValueError, match="`encoded_image`, which has both inside"):
            network(**inputs, encoded_image=encoded)
        with pytest.raises(ValueError, match="`encoded_image`, which has both inside"):
            network(**words(inputs), pixel_mask=inputs["pixel_mask"], encoded_image=encoded)
        with pytest.raises(ValueError, match="1 images for 2 prompts"):
            network(**words(inputs), encoded_image=encoded.select([0]))
        with pytest.raises(ValueError, match="Give `input_ids`"):
            network(**pixels(inputs))
    for rows in ([], [2], [-1]):
        with pytest.raises(ValueError, match="images 0 to 1"):
            encoded.select(rows)
