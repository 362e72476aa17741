"""Laws 3, 5, 13 and 15: one training step reaches every parameter, and refuses labels that would teach nonsense."""

from __future__ import annotations

import functools
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import hf_grounding_dino as own
import tiny

families = pytest.mark.parametrize("family", tiny.FAMILIES)
one_family = pytest.mark.parametrize("family", tiny.FAMILIES[1:])
"""For what the type plays no part in: both are one network."""
SHARING = [
    ("grounding-dino", {}),
    ("grounding-dino", {"decoder_bbox_embed_share": False}),
    ("mm-grounding-dino", {}),
    ("mm-grounding-dino", {"decoder_bbox_embed_share": False}),
    ("mm-grounding-dino", {"decoder_cls_embed_share": False}),
    ("mm-grounding-dino", {"decoder_bbox_embed_share": False, "decoder_cls_embed_share": False}),
]
SINGLES = (tiny.one(tiny.noise_image(91, 74)), tiny.one(tiny.noise_image(70, 100), [9], [4, 5]))
NOTHING = {"boxes": torch.zeros(0, 4), "class_labels": torch.zeros(0, dtype=torch.long)}


def labels() -> list[dict[str, Tensor]]:
    """Three boxes of three phrases, two boxes of two phrases."""
    return [tiny.boxes_label(0, 3, 3), tiny.boxes_label(1, 2, 2)]


def step(model: Any, targets: list[dict[str, Tensor]] | None = None) -> Any:
    """Forward and backward on two images of unequal sizes and prompts."""
    model.zero_grad(set_to_none=True)
    output = model(**tiny.together(list(SINGLES)), labels=labels() if targets is None else targets)
    output.loss.backward()
    return output


def is_key_bias(name: str) -> bool:
    """A constant added to every key adds a constant to each softmax's logits, so its gradient is zero."""
    return name.endswith((".key.bias", ".k_lin.bias", ".k_proj.bias"))


def assert_every_parameter_learns(model: Any) -> None:
    """What requires a gradient has one, finite and, but for key biases, not zero everywhere."""
    without = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert without == []
    learning = [(n, p.grad) for n, p in model.named_parameters() if p.requires_grad]
    assert [n for n, g in learning if not g.isfinite().all()] == []
    assert [n for n, g in learning if not g.any() and not is_key_bias(n)] == []


def kept(model: Any) -> list[str]:
    """The parameters that do not require a gradient."""
    return sorted(n for n, p in model.named_parameters() if not p.requires_grad)


SWIN = "model.backbone.conv_encoder.model.swin."
UNUSED = [f"{SWIN}layernorm.bias", f"{SWIN}layernorm.weight"]


# --- law 3 -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("family", "changes"), SHARING)
def test_every_parameter_learns(family: tiny.Family, changes: dict[str, Any]) -> None:
    """One step from random weights; all that does not learn is Swin's last norm, which feeds nothing."""
    model = tiny.tiny_model(family, **changes).train()
    assert kept(model) == UNUSED
    step(model)
    assert_every_parameter_learns(model)


VARIANTS: dict[str, dict[str, Any]] = {
    "stages 1-4": {"stages": (1, 2, 3, 4), "num_feature_levels": 5, "d_model": 64},
    "learned positions": {"position_embedding_type": "learned"},
    "queries from the image": {"embedding_init_target": False},
    "one decoder layer": {"decoder_layers": 1},
}


@one_family
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_parameter_learns_in_other_networks(family: tiny.Family, variant: str) -> None:
    """The same for other levels, positions, queries and depths."""
    model = tiny.tiny_model(family, **VARIANTS[variant]).train()
    assert kept(model) == UNUSED
    step(model)
    assert_every_parameter_learns(model)


@one_family
def test_unused_backbone_stages_do_not_learn(family: tiny.Family) -> None:
    """Stages 2 and 3 of four: the fourth feeds nothing, so it requires no gradient, and the rest gets one."""
    model = tiny.tiny_model(family, stages=(2, 3)).train()
    step(model)
    assert_every_parameter_learns(model)


@families
def test_freshly_initialised_model_learns(family: tiny.Family) -> None:
    """From the initialisation itself, where the last box layers are 0: no parameter is without a gradient (DDP)."""
    torch.manual_seed(0)
    model = own.GroundingDinoForObjectDetection(tiny.tiny_config(family)).train()
    step(model)
    assert [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None] == []


@one_family
def test_frozen_backbone(family: tiny.Family) -> None:
    """`freeze_backbone()` stops the image backbone and nothing else; `unfreeze_backbone()` undoes it, to the letter."""
    model = tiny.tiny_model(family).train()
    model.model.freeze_backbone()
    backbone = sorted(n for n, _ in model.named_parameters() if n.startswith("model.backbone.conv_encoder"))
    assert kept(model) == backbone
    step(model)
    assert all(model.get_parameter(n).grad is None for n in backbone)
    assert_every_parameter_learns(model)
    model.model.unfreeze_backbone()
    assert kept(model) == UNUSED
    step(model)
    assert_every_parameter_learns(model)


@one_family
def test_loaded_model_learns(family: tiny.Family, tmp_path: Path) -> None:
    """What a load gives requires the same gradients as what was saved."""
    tiny.tiny_model(family).save_pretrained(tmp_path)
    model = own.GroundingDinoForObjectDetection.from_pretrained(tmp_path).train()
    assert kept(model) == UNUSED
    step(model)
    assert_every_parameter_learns(model)


@one_family
def test_first_stage_reads_the_image(family: tiny.Family) -> None:
    """The first stage's logits differ from image to image (in stock they compare learned queries with plain text)."""
    model = tiny.tiny_model(family)
    with torch.no_grad():
        a, b = (model(**tiny.one(tiny.noise_image(64, 80, seed))).encoder_logits for seed in (1, 2))
    assert not a.equal(b)


# --- law 5 -------------------------------------------------------------------------------------------------------


def gradients(model: Any) -> tuple[dict[str, Tensor], int]:
    """The gradients of a step and the bytes that its forward pass keeps for the backward pass, each storage once."""
    storages: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    model.zero_grad(set_to_none=True)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = model(**tiny.together(list(SINGLES)), labels=labels()).loss
    loss.backward()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}, sum(storages.values())


@families
def test_checkpointing_changes_no_gradient(family: tiny.Family) -> None:
    """Gradients with checkpointing equal those without, within 1e-6; forward keeps at most 60 % of the bytes."""
    model = tiny.tiny_model(family).train()
    plain, plain_bytes = gradients(model)
    model.gradient_checkpointing_enable()
    assert model.is_gradient_checkpointing
    saving, saving_bytes = gradients(model)
    assert set(saving) == set(plain)
    for name, value in plain.items():
        torch.testing.assert_close(saving[name], value, atol=1e-6, rtol=1e-5, msg=lambda m, n=name: f"{n}: {m}")
    assert saving_bytes < 0.6 * plain_bytes
    model.gradient_checkpointing_disable()
    assert gradients(model)[1] > 0.95 * plain_bytes


def test_reentrant_checkpointing_is_refused() -> None:
    """Its contexts would lose their gradients."""
    with pytest.raises(ValueError, match="reentrant"):
        tiny.tiny_model().gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": True})


@one_family
def test_checkpointing_reaches_every_stack(family: tiny.Family) -> None:
    """Image backbone, text encoder, feature enhancer and decoder each have layers that are computed again."""
    model = tiny.tiny_model(family).train()
    model.gradient_checkpointing_enable()
    marked = [n for n, m in model.named_modules() if getattr(m, "gradient_checkpointing", False)]
    for stack in ("model.backbone", "model.text_backbone", "model.encoder", "model.decoder"):
        assert any(name.startswith(stack) for name in marked), stack


@families
def test_checkpointing_keeps_the_outputs(family: tiny.Family) -> None:
    """States and weights asked for with checkpointing on equal those with it off."""
    model = tiny.tiny_model(family).train()
    inputs = tiny.together(list(SINGLES))
    plain = model(**inputs, output_hidden_states=True, output_attentions=True)
    model.gradient_checkpointing_enable()
    saving = model(**inputs, output_hidden_states=True, output_attentions=True)
    assert list(plain) == list(saving)
    for a, b in zip(plain.to_tuple(), saving.to_tuple(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-5)


@one_family
def test_text_encoder_learns_nothing_when_frozen_with_checkpointing(family: tiny.Family) -> None:
    """A frozen text encoder and backbone under checkpointing: the rest still learns."""
    model = tiny.tiny_model(family).train()
    model.model.freeze_backbone()
    model.model.text_backbone.requires_grad_(False)
    model.gradient_checkpointing_enable()
    step(model)
    assert_every_parameter_learns(model)


# --- law 13 ------------------------------------------------------------------------------------------------------


@families
def test_image_without_boxes(family: tiny.Family) -> None:
    """One image of two has no box: all losses are finite, everything learns."""
    model = tiny.tiny_model(family).train()
    output = step(model, [labels()[0], NOTHING])
    assert all(value.isfinite() for value in output.loss_dict.values())
    assert_every_parameter_learns(model)


@pytest.mark.parametrize(("family", "changes"), SHARING)
def test_batch_without_boxes(family: tiny.Family, changes: dict[str, Any]) -> None:
    """No box anywhere: the box losses are 0, the class loss is finite and pushes down, and no gradient is None (DDP).

    Boxes come from detached references, so the box heads' gradients are exactly zero.
    """
    model = tiny.tiny_model(family, **changes).train()
    output = step(model, [NOTHING, NOTHING])
    for name, value in output.loss_dict.items():
        assert value.isfinite(), name
        assert (value > 0) if "loss_ce" in name else (value == 0), name
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name
            assert not ("bbox_embed" in name and parameter.grad.any()), name
    assert model.model.text_projection.weight.grad.any()
    assert model.model.enc_output.weight.grad.any()


@one_family
@pytest.mark.parametrize("empty", [torch.zeros(0, 4), torch.zeros(0), []], ids=["(0, 4)", "(0,)", "list"])
def test_forms_of_no_boxes(family: tiny.Family, empty: Any) -> None:
    """No boxes may be `(0, 4)`, `(0,)` or an empty list, with classes or with a token mask."""
    model = tiny.tiny_model(family)
    expected = model(**SINGLES[0], labels=[NOTHING]).loss
    for more in (
        {"class_labels": torch.zeros(0).long()},
        {"class_labels": []},
        {"token_mask": torch.zeros(0, 11).bool()},
    ):
        assert model(**SINGLES[0], labels=[{"boxes": empty, **more}]).loss.equal(expected)


@one_family
def test_more_boxes_than_queries(family: tiny.Family) -> None:
    """50 boxes for 20 queries: 20 are matched, the loss is finite."""
    model = tiny.tiny_model(family).train()
    output = step(model, [tiny.boxes_label(5, 50, 3), NOTHING])
    assert output.loss.isfinite()
    assert_every_parameter_learns(model)


# --- law 15 ------------------------------------------------------------------------------------------------------

GOOD = [0.5, 0.5, 0.2, 0.2]
MALFORMED: dict[str, dict[str, Any]] = {
    "pixels": {"boxes": [GOOD, [50.0, 40.0, 20.0, 30.0]]},
    "a centre in pixels": {"boxes": [GOOD, [1.5, 0.5, 0.2, 0.2]]},
    "negative centre": {"boxes": [GOOD, [-0.5, 0.5, 0.2, 0.2]]},
    "no width": {"boxes": [GOOD, [0.5, 0.5, 0.0, 0.2]]},
    "no height": {"boxes": [GOOD, [0.5, 0.5, 0.2, 0.0]]},
    "negative width": {"boxes": [GOOD, [0.5, 0.5, -0.2, 0.2]]},
    "corners the wrong way round": {"boxes": [GOOD, [0.5, 0.5, 0.2, -0.0005]]},
    "nan": {"boxes": [GOOD, [0.5, math.nan, 0.2, 0.2]]},
    "infinite": {"boxes": [GOOD, [0.5, 0.5, math.inf, 0.2]]},
    "class past the prompt": {"class_labels": [0, 3]},
    "negative class": {"class_labels": [0, -1]},
    "token mask without a token": {"token_mask": [[1, 5], []]},
    "token mask on [CLS]": {"token_mask": [[1], [0, 1]]},
    "token mask on a dot": {"token_mask": [[1], [3]]},
}  # fmt: skip
MISSHAPEN: dict[str, dict[str, Any]] = {
    "boxes of five": {"boxes": torch.rand(2, 5)},
    "boxes of one dimension": {"boxes": torch.rand(8)},
    "boxes of three dimensions": {"boxes": torch.rand(1, 2, 4)},
    "fewer classes": {"class_labels": torch.tensor([0])},
    "more classes": {"class_labels": torch.tensor([0, 1, 2])},
    "float classes": {"class_labels": torch.tensor([0.0, 1.0])},
    "bool classes": {"class_labels": torch.tensor([True, False])},
    "classes as one-hot": {"class_labels": torch.tensor([[1, 0, 0], [0, 1, 0]])},
    "classes as a column": {"class_labels": torch.tensor([[0], [1]])},
    "neither": {"class_labels": None},
    "both": {"class_labels": torch.tensor([0, 1]), "token_mask": [[1], [4]]},
    "fewer masks": {"token_mask": torch.ones(1, 11).bool()},
    "mask of one dimension": {"token_mask": torch.ones(11).bool()},
    "mask longer than the prompt": {"token_mask": torch.ones(2, 12).bool()},
    "float mask": {"token_mask": torch.tensor([0, 0.5, 0.5, 0, 0, 0, 0, 0, 0, 0, 0]).repeat(2, 1)},
    "no boxes key": {"boxes": None},
}


def malformed(change: dict[str, Any], **more: Any) -> dict[str, Any]:
    """A label of two boxes with one thing wrong; `token_mask` is given by the tokens of each box, of 11."""
    label: dict[str, Any] = {"boxes": torch.tensor([GOOD, GOOD]), **more}
    if "token_mask" not in change:
        label["class_labels"] = torch.tensor([0, 1])
    for key, value in change.items():
        if key == "token_mask" and not isinstance(value, Tensor):
            mask = torch.zeros(2, 11, dtype=torch.bool)
            for row, tokens in enumerate(value):
                mask[row, tokens] = True
            label[key] = mask
        else:
            label[key] = torch.tensor(value) if isinstance(value, list) else value
    return {key: value for key, value in label.items() if value is not None}


def refusal(label: dict[str, Any]) -> str:
    """What the model says of a batch whose second image has this label; its phrases are tokens 1-2, 4, 6-8 of 11."""
    batch = tiny.together([SINGLES[1], SINGLES[0]])
    with pytest.raises(ValueError) as caught:
        anyone()(**batch, labels=[labels()[1], label])
    return str(caught.value)


@functools.cache
def anyone() -> Any:
    """A model for labels that it refuses."""
    return tiny.tiny_model()


@pytest.mark.parametrize("case", MALFORMED)
def test_malformed_label_is_refused(case: str) -> None:
    """The error names the image by place and by id, and the second box."""
    message = refusal(malformed(MALFORMED[case], image_id=torch.tensor([4711])))
    assert "mage 1" in message
    assert "4711" in message
    assert "box 1" in message
    assert "mage 1" in refusal(malformed(MALFORMED[case]))


@pytest.mark.parametrize("case", MISSHAPEN)
def test_misshapen_label_is_refused(case: str) -> None:
    """The error names the image by place and by id, and the entry at fault."""
    message = refusal(malformed(MISSHAPEN[case], image_id="kitchen.jpg"))
    assert "mage 1" in message
    assert "kitchen.jpg" in message
    assert any(key in message for key in ("boxes", "class_labels", "token_mask"))


@pytest.mark.parametrize("count", [0, 1, 3])
def test_labels_for_another_number_of_images_are_refused(count: int) -> None:
    """Two images, not two labels: the error holds both numbers."""
    with pytest.raises(ValueError, match=rf"{count}.*2"):
        tiny.tiny_model()(**tiny.together(list(SINGLES)), labels=(labels() * 2)[:count])


def test_class_index_counts_this_images_phrases() -> None:
    """Phrase 2 exists in the first prompt (three phrases) and not in the second (two)."""
    model, batch = tiny.tiny_model(), tiny.together(list(SINGLES))
    box = torch.tensor([GOOD])
    two, one = {"boxes": box, "class_labels": torch.tensor([2])}, {"boxes": box, "class_labels": torch.tensor([1])}
    assert model(**batch, labels=[two, one]).loss.isfinite()
    with pytest.raises(ValueError, match="mage 1"):
        model(**batch, labels=[one, two])


def test_boxes_that_touch_the_edges_are_taken() -> None:
    """The whole image, and a box that rounding puts 1e-6 outside, are well-formed."""
    model = tiny.tiny_model()
    boxes = torch.tensor([[0.5, 0.5, 1.0, 1.0], [1.0, 0.5, 1e-3, 1.000001]])
    assert model(**SINGLES[0], labels=[{"boxes": boxes, "class_labels": torch.tensor([0, 2])}]).loss.isfinite()
