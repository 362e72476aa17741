"""What the models return, beside what transformers returns: the order above all."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers.models.grounding_dino.modeling_grounding_dino import GroundingDinoObjectDetectionOutput

from tiny import FAMILIES, Family, boxes_label, noise_image, one, stock_twin, tiny_model, together

families = pytest.mark.parametrize("family", FAMILIES)
everything = {"output_attentions": True, "output_hidden_states": True}


@pytest.mark.parametrize("options", [{}, everything], ids=["plain", "everything"])
@families
def test_the_loss_comes_first_and_all_else_in_the_order_of_transformers(
    family: Family, options: dict[str, Any]
) -> None:
    model = tiny_model(family, auxiliary_loss=True)
    inputs, labels = one(noise_image(96, 128)), [boxes_label(0, 3, 3)]
    order = list(GroundingDinoObjectDetectionOutput.__dataclass_fields__)
    with torch.no_grad():
        output = model(**inputs, labels=labels, **options)
        as_tuple = model(**inputs, labels=labels, **options, return_dict=False)
        without = model(**inputs, **options)
    assert list(output) == [name for name in order if name in output]
    assert list(without) == [name for name in order if name in without]
    assert output[0] is output.loss and torch.equal(as_tuple[0], output.loss)
    assert output[:2] == (output.loss, output.loss_dict) and without[0] is without.logits
    assert len(as_tuple) == len(output)


@families
def test_the_base_model_keeps_the_order_of_transformers(family: Family) -> None:
    model = tiny_model(family)
    inputs = one(noise_image(96, 128))
    with torch.no_grad():
        expected = stock_twin(model).model(**inputs, token_type_ids=torch.zeros_like(inputs["input_ids"]), **everything)
        output = model.model(**inputs, **everything)
    assert list(output) == list(expected)
    assert [type(part) for part in output.to_tuple()] == [type(part) for part in expected.to_tuple()]


def test_a_configuration_without_return_dict_still_detects() -> None:
    model, inputs = tiny_model(), one(noise_image(96, 128))
    with torch.no_grad():
        expected = model(**inputs)
        model.config.return_dict = False
        logits, boxes, *_ = model(**inputs)
    torch.testing.assert_close(logits, expected.logits)
    torch.testing.assert_close(boxes, expected.pred_boxes)


def test_outputs_and_encoded_images_move() -> None:
    """Every tensor, in whatever it lies, and nothing else; `meta` stands for another device."""
    model = tiny_model()
    batch = together([one(noise_image(96, 128)), one(noise_image(96, 80))])
    with torch.no_grad():
        output = model(**batch, labels=[boxes_label(0, 3, 3), boxes_label(1, 0, 3)], **everything)
        encoded = model.encode_image(batch["pixel_values"], batch["pixel_mask"])
    moved = output.to("meta")
    assert type(moved) is type(output) and list(moved) == list(output)
    assert {tensor.device.type for tensor in tensors_of(list(moved.values()))} == {"meta"}
    assert len(tensors_of(list(moved.values()))) == len(tensors_of(list(output.values())))
    half = output.to(torch.float16)
    assert half.logits.dtype == torch.float16 and half.input_ids.dtype == torch.int64
    assert {t.device.type for t in tensors_of(encoded.to("meta"))} == {"meta"}
    assert {t.dtype for t in tensors_of(encoded.to(torch.float64))} == {torch.float64}


def tensors_of(value: Any) -> list[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return [value]
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else ()
    return [tensor for part in parts for tensor in tensors_of(part)]


@families
def test_evaluation_keeps_predictions_alone(family: Family) -> None:
    """What `Trainer.evaluate` gathers of a batch is what it drops by the configuration's list, not feature maps."""
    model = tiny_model(family)
    with torch.no_grad():
        output = model(**one(noise_image(96, 128)), labels=[boxes_label(0, 3, 3)], **everything)
    kept = [name for name in output if name not in [*model.config.keys_to_ignore_at_inference, "loss"]]
    assert kept == ["logits", "pred_boxes", "input_ids"]
    assert "keys_to_ignore_at_inference" not in model.config.to_dict()


def test_the_loss_takes_the_number_of_items_of_a_step() -> None:
    """`num_items_in_batch`, as `Trainer` gives it, is `num_boxes`; without a box in the step it divides by 1."""
    model = tiny_model().train()
    inputs, labels = one(noise_image(96, 128)), [boxes_label(0, 3, 3)]
    loss = model(**inputs, labels=labels).loss
    torch.testing.assert_close(model(**inputs, labels=labels, num_items_in_batch=torch.tensor(12)).loss, loss * 3 / 12)
    torch.testing.assert_close(model(**inputs, labels=labels, num_items_in_batch=3).loss, loss)
    nothing = [boxes_label(0, 0, 3)]
    assert model(**inputs, labels=nothing, num_items_in_batch=torch.tensor(0)).loss.isfinite()
