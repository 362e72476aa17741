"""Law 8 on the CPU: half precision is finite everywhere, keeps coordinates in float32, and finds the same objects."""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterator
from typing import Any

import pytest
import torch

import tiny
from hf_grounding_dino.layers import deformable_attention as deformable

families = pytest.mark.parametrize("family", tiny.FAMILIES)
halves = pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["float16", "bfloat16"])
SINGLES = (tiny.one(tiny.noise_image(91, 74)), tiny.one(tiny.noise_image(70, 100), [9]))
LABELS = [tiny.boxes_label(0, 3, 3), tiny.boxes_label(1, 2, 1)]


def batch(dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    """Two images of unequal sizes and prompts, pixels in `dtype`."""
    inputs = tiny.together(list(SINGLES))
    return inputs | {"pixel_values": inputs["pixel_values"].to(dtype)}


@pytest.fixture
def sampled(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[torch.dtype]]:
    """The types of all sampling locations that reach deformable attention."""
    dtypes: list[torch.dtype] = []
    for name in ("multi_scale_deformable_attention", "multi_scale_deformable_attention_reference"):
        function = getattr(deformable, name)

        def record(value: Any, shapes: Any, locations: Any, weights: Any, function: Any = function) -> Any:
            dtypes.append(locations.dtype)
            return function(value, shapes, locations, weights)

        monkeypatch.setattr(deformable, name, record)
    yield dtypes
    assert len(dtypes) >= 5, "two encoder layers and three decoder layers sample"
    assert set(dtypes) == {torch.float32}


def assert_sound(output: Any) -> None:
    """Real logits finite, padding -inf, boxes float32 and finite, in [0, 1]."""
    for i, single in enumerate(SINGLES):
        tokens = single["input_ids"].shape[1]
        assert output.logits[i, :, :tokens].isfinite().all()
        assert (output.logits[i, :, tokens:] == -torch.inf).all()
    for name in ("pred_boxes", "init_reference_points", "encoder_pred_boxes", "intermediate_reference_points"):
        boxes = getattr(output, name)
        assert boxes.dtype == torch.float32, name
        assert boxes.isfinite().all(), name
        assert boxes.min() >= 0, name
        assert boxes.max() <= 1, name


def assert_gradients_are_finite(model: torch.nn.Module) -> None:
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name


@families
@halves
@pytest.mark.usefixtures("sampled")
def test_eval(family: tiny.Family, dtype: torch.dtype) -> None:
    """Weights in half precision, pixels too or in float32 as the processor gives them, no gradients."""
    model = tiny.tiny_model(family).to(dtype)
    for pixels in (dtype, torch.float32):
        with torch.no_grad():
            assert_sound(model(**batch(pixels)))


@families
@halves
@pytest.mark.usefixtures("sampled")
def test_train(family: tiny.Family, dtype: torch.dtype) -> None:
    """Weights and pixels in half precision, forward, loss (float32) and backward: every gradient is finite."""
    model = tiny.tiny_model(family, auxiliary_loss=True).to(dtype).train()
    output = model(**batch(dtype), labels=LABELS)
    assert_sound(output)
    assert output.loss.dtype == torch.float32
    assert output.loss.isfinite()
    assert all(v.isfinite() and v.dtype == torch.float32 for v in output.loss_dict.values())
    assert all(layer["pred_boxes"].dtype == torch.float32 for layer in output.auxiliary_outputs)
    output.loss.backward()
    assert_gradients_are_finite(model)


@families
@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.usefixtures("sampled")
def test_autocast(family: tiny.Family, training: bool) -> None:
    """float32 weights under bfloat16 autocast: finite, and every gradient too."""
    model = tiny.tiny_model(family).train(training)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = model(**batch(), labels=LABELS)
    assert_sound(output)
    assert output.loss.isfinite()
    output.loss.backward()
    assert_gradients_are_finite(model)


@families
@halves
def test_large_activations(family: tiny.Family, dtype: torch.dtype) -> None:
    """Layer outputs beyond 65504, the largest float16, are saturated and not infinite: what follows stays finite.

    A feed-forward bias of 30000 in the last encoder layers, where trained weights are known to overflow.
    """
    model = tiny.tiny_model(family)
    with torch.no_grad():
        for layer in model.model.encoder.layers:
            layer.deformable_layer.fc2.bias.fill_(30000.0)
            layer.text_enhancer_layer.fc2.bias.fill_(30000.0)
        model = model.to(dtype)
        assert_sound(model(**batch(dtype)))


@families
@halves
@pytest.mark.parametrize("autocast", [False, True], ids=["weights", "autocast"])
def test_same_detections(family: tiny.Family, dtype: torch.dtype, autocast: bool) -> None:
    """The queries that float32 chooses with a clear margin are chosen in half precision, and end in the same boxes.

    Queries are chosen by rank, so a model is taken (the first seed) whose three best first-stage scores and the fourth
    lie apart by 2 % of the largest logit, and each query's two best words by 5 %: several times bfloat16's
    2^-8 = 0.4 %. Then box i stays within 0.02, and its best word stays its best word.
    """
    model, inputs = clearly_separated(family)
    with torch.no_grad():
        exact = model(**inputs)
        if autocast:
            with torch.autocast("cpu", dtype=dtype):
                half = model(**inputs)
        else:
            half = copy.deepcopy(model).to(dtype)(**inputs | {"pixel_values": inputs["pixel_values"].to(dtype)})
    torch.testing.assert_close(half.init_reference_points, exact.init_reference_points, atol=0.02, rtol=0)
    torch.testing.assert_close(half.pred_boxes, exact.pred_boxes, atol=0.02, rtol=0)
    tokens = inputs["input_ids"].shape[1]
    logits, half_logits = exact.logits[0, :, :tokens], half.logits[0, :, :tokens].float()
    assert half_logits.argmax(-1).equal(logits.argmax(-1))


def gaps(scores: torch.Tensor, count: int) -> float:
    """The smallest distance between neighbours among the best `count` of each row, over the largest of all."""
    best = scores.topk(count).values
    return float((best[..., :-1] - best[..., 1:]).min() / scores.abs().max())


@functools.cache
def clearly_separated(family: tiny.Family) -> tuple[Any, dict[str, torch.Tensor]]:
    """The first seed whose queries are chosen, and whose words are best, by a margin; and its inputs.

    What all words have in common (biases, and what they take from the image) is made small, as it hides the margins.
    """
    inputs = tiny.one(tiny.noise_image(72, 80))
    tokens = inputs["input_ids"].shape[1]
    for seed in range(300):
        model = tiny.tiny_model(family, seed=seed, num_queries=3, decoder_layers=2, encoder_layers=1)
        with torch.no_grad():
            for layer in model.model.encoder.layers:
                layer.fusion_layer.text_param.mul_(0.3)
            model.model.encoder.layers[-1].text_enhancer_layer.layer_norm_after.bias.zero_()
            if family == "mm-grounding-dino":
                for head in (*model.class_embed, model.model.encoder_output_class_embed):
                    head.bias.zero_()
            output = model(**inputs, output_hidden_states=True)
        first_stage = gaps(output.enc_outputs_class[0, :, :tokens].amax(-1), 4)
        if first_stage > 0.02 and gaps(output.logits[0, :, :tokens], 2) > 0.05:
            return model, inputs
    raise AssertionError("no seed has clear detections")
