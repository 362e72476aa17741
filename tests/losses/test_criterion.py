"""Laws 10 and 11: the loss equals one written in plain loops, and a batch's loss is the sum of its images'."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from scipy.optimize import linear_sum_assignment
from torch import Tensor

import tiny
from hf_grounding_dino.losses.criterion import Matches, Predictions, grounding_loss, paired_losses
from hf_grounding_dino.losses.matcher import match
from hf_grounding_dino.losses.targets import prepare_targets
from hf_grounding_dino.losses.weights import LossWeights
from hf_grounding_dino.processing.prompts import phrase_numbers
from loops import Box, giou, l1, phrase_tokens, token_sum

families = pytest.mark.parametrize("family", tiny.FAMILIES)
PROMPTS = (tiny.PHRASES, ([9],), ([5, 6], [4], [13], [14, 15, 16, 17]))
SIZES = ((91, 74), (48, 101), (70, 70))
NUM_BOXES = (3, 0, 5)
PRESETS = {"paper": ((1.0, 5.0, 2.0), (2.0, 5.0, 2.0)), "mmdet": ((2.0, 5.0, 2.0), (1.0, 5.0, 2.0))}
"""Weights of class, L1 and GIoU in the match and in the loss: recipe 3.2 and 3.3."""


def singles() -> list[dict[str, Tensor]]:
    """Three images of unequal sizes and prompts."""
    return [tiny.one(tiny.noise_image(h, w), *p) for (h, w), p in zip(SIZES, PROMPTS, strict=True)]


def labels() -> list[dict[str, Tensor]]:
    """3, 0 and 5 boxes of 3, 1 and 4 phrases."""
    return [tiny.boxes_label(i, n, len(p)) for i, (n, p) in enumerate(zip(NUM_BOXES, PROMPTS, strict=True))]


# --- the loss in plain loops -------------------------------------------------------------------------------------


def assign(
    logits: list[list[float]], boxes: list[Box], wanted: list[Box], tokens: list[list[int]], match: Any, alpha: float
) -> dict[int, int]:
    """The cheapest one-to-one assignment, from query to box (recipe 3.2)."""
    cost = [
        [
            match[0] * token_sum(logits[q], tokens[g], alpha, 1e-12)
            + match[1] * l1(boxes[q], wanted[g])
            - match[2] * giou(boxes[q], wanted[g])
            for g in range(len(wanted))
        ]
        for q in range(len(boxes))
    ]
    if not wanted:
        return {}
    return dict(zip(*(i.tolist() for i in linear_sum_assignment(cost)), strict=True))


def slow_terms(
    logits: Tensor, boxes: Tensor, targets: list[tuple[list[Box], list[list[int]]]], match: Any, alpha: float = 0.25
) -> tuple[float, float, float]:
    """Class, L1 and GIoU loss of one prediction set `(B, Q, T)` and `(B, Q, 4)`, over N boxes, at least 1."""
    class_sum = l1_sum = giou_sum = 0.0
    for b, (wanted, tokens) in enumerate(targets):
        rows, cells = boxes[b].double().tolist(), logits[b].double().tolist()
        assigned = assign(cells, rows, wanted, tokens, match, alpha)
        for q in range(len(rows)):
            class_sum += token_sum(cells[q], tokens[assigned[q]] if q in assigned else [], alpha, 0.0)
        l1_sum += sum(l1(rows[q], wanted[g]) for q, g in assigned.items())
        giou_sum += sum(1 - giou(rows[q], wanted[g]) for q, g in assigned.items())
    count = max(sum(len(wanted) for wanted, _ in targets), 1)
    return class_sum / count, l1_sum / count, giou_sum / count


def wanted(label: dict[str, Tensor], prompt: tuple[list[int], ...]) -> tuple[list[Box], list[list[int]]]:
    """Boxes, and the tokens each is called by."""
    return label["boxes"].tolist(), [phrase_tokens(prompt, c) for c in label["class_labels"].tolist()]


def prediction_sets(output: Any) -> dict[str, tuple[Tensor, Tensor]]:
    """Logits and boxes of each layer by the suffix of its terms."""
    sets = {f"_{i}": (a["logits"], a["pred_boxes"]) for i, a in enumerate(output.auxiliary_outputs)}
    sets[""] = (output.logits, output.pred_boxes)
    sets["_enc"] = (output.encoder_logits, output.encoder_pred_boxes)
    return {suffix: (z.detach(), b.detach()) for suffix, (z, b) in sets.items()}


def total(loss_dict: dict[str, Tensor], weights: tuple[float, float, float]) -> float:
    """Σ over all sets of w_class · loss_ce + w_l1 · loss_bbox + w_giou · loss_giou."""
    by_name = dict(zip(("loss_ce", "loss_bbox", "loss_giou"), weights, strict=True))
    return sum(w * v.item() for name, w in by_name.items() for key, v in loss_dict.items() if key.startswith(name))


# --- law 11 ------------------------------------------------------------------------------------------------------


def test_autocast_changes_nothing() -> None:
    """Matching too is in float32 (law 8): in half precision two costs of one label would often be equal."""
    generator = torch.Generator().manual_seed(0)
    logits, boxes = torch.randn(2, 300, 64, generator=generator), 0.2 + 0.2 * torch.rand(2, 300, 4, generator=generator)
    numbers = torch.arange(64)[None] // 4
    label = {"boxes": 0.2 + 0.2 * torch.rand(40, 4, generator=generator), "class_labels": torch.arange(40) % 16}
    (targets,) = prepare_targets([label], numbers)
    found = []
    for enabled in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            found.append(match(logits, boxes, targets, LossWeights(1, 0, 0, 1, 1, 1), 0.25))
    for (queries, objects), (same_queries, same_objects) in zip(*found, strict=True):
        assert torch.equal(queries, same_queries) and torch.equal(objects, same_objects)


def test_areas_of_small_boxes_are_taken_as_they_are() -> None:
    """Sides of 1e-3, moved by half a side: IoU 1/3, a hull of no more than the union, so a loss of 2/3.

    With an epsilon of 1e-7 in the areas it is 0.688.
    """
    box = torch.tensor([0.5, 0.5, 1e-3, 1e-3])
    first = torch.zeros(1, dtype=torch.long)
    predictions = Predictions(torch.zeros(1, 1, 1, 2), (box + torch.tensor([5e-4, 0, 0, 0])).view(1, 1, 1, 4))
    matches = Matches(first, first, first, box[None], torch.ones(1, 2))
    terms = paired_losses(predictions, matches, torch.ones(1), 0.25, torch.tensor(1.0))
    assert terms.giou_K.item() == pytest.approx(2 / 3, rel=1e-3)


@families
@pytest.mark.parametrize("preset", PRESETS)
def test_every_term_equals_the_loops(family: tiny.Family, preset: str) -> None:
    """Three decoder layers and the first stage, three terms each: 12 numbers equal the loops within 1e-5.

    total = Σ over the 4 sets of w_class · ce + 5 · bbox + 2 · giou, w_class = 2 ("paper") or 1 ("mmdet").
    """
    model = tiny.tiny_model(family, loss_preset=preset, auxiliary_loss=True)
    output = model(**tiny.together(singles()), labels=labels())
    match, weights = PRESETS[preset]
    targets = [wanted(label, prompt) for label, prompt in zip(labels(), PROMPTS, strict=True)]
    expected = {}
    for suffix, (logits, boxes) in prediction_sets(output).items():
        terms = slow_terms(logits, boxes, targets, match)
        expected |= {f"{n}{suffix}": v for n, v in zip(("loss_ce", "loss_bbox", "loss_giou"), terms, strict=True)}
    assert len(expected) == 12
    assert {name: value.item() for name, value in output.loss_dict.items()} == pytest.approx(expected, rel=1e-5)
    assert output.loss.item() == pytest.approx(total(output.loss_dict, weights), rel=1e-5)


@pytest.mark.parametrize("changes", [{"decoder_layers": 1}, {"decoder_layers": 2}, {"focal_alpha": 0.6}])
def test_other_depths_and_alpha_equal_the_loops(changes: dict[str, Any]) -> None:
    """One decoder layer leaves no `_0`; alpha is the configuration's in the match and in the loss."""
    model = tiny.tiny_model("mm-grounding-dino", auxiliary_loss=True, **changes)
    output = model(**tiny.together(singles()), labels=labels())
    sets = prediction_sets(output)
    assert set(output.loss_dict) == {f"{n}{s}" for n in ("loss_ce", "loss_bbox", "loss_giou") for s in sets}
    targets = [wanted(label, prompt) for label, prompt in zip(labels(), PROMPTS, strict=True)]
    for suffix, (logits, boxes) in sets.items():
        terms = slow_terms(logits, boxes, targets, PRESETS["mmdet"][0], changes.get("focal_alpha", 0.25))
        found = [output.loss_dict[f"{n}{suffix}"].item() for n in ("loss_ce", "loss_bbox", "loss_giou")]
        assert found == pytest.approx(list(terms), rel=1e-5)


@families
def test_custom_weights_equal_the_loops(family: tiny.Family) -> None:
    """`loss_preset="custom"` reads the configuration's own fields, in the match and in the total."""
    fields = {
        "class_cost": 3.0, "bbox_cost": 0.5, "giou_cost": 4.0,
        "class_loss_coefficient": 7.0, "bbox_loss_coefficient": 0.25, "giou_loss_coefficient": 1.5,
    }  # fmt: skip
    model = tiny.tiny_model(family, loss_preset="custom", auxiliary_loss=True, **fields)
    output = model(**tiny.together(singles()), labels=labels())
    targets = [wanted(label, prompt) for label, prompt in zip(labels(), PROMPTS, strict=True)]
    for suffix, (logits, boxes) in prediction_sets(output).items():
        terms = slow_terms(logits, boxes, targets, (3.0, 0.5, 4.0))
        found = [output.loss_dict[f"{n}{suffix}"].item() for n in ("loss_ce", "loss_bbox", "loss_giou")]
        assert found == pytest.approx(list(terms), rel=1e-5)
    assert output.loss.item() == pytest.approx(total(output.loss_dict, (7.0, 0.25, 1.5)), rel=1e-5)


@families
@pytest.mark.parametrize("preset", PRESETS)
def test_presets_refuse_other_weights(family: tiny.Family, preset: str) -> None:
    """A preset sets all six weights: another value in any of the fields is refused with a message, not ignored."""
    for field in ("class_cost", "bbox_cost", "giou_cost", "class_loss_coefficient", "bbox_loss_coefficient",
                  "giou_loss_coefficient"):  # fmt: skip
        with pytest.raises((ValueError, StrictDataclassError), match=r"class_cost[\s\S]*custom"):
            tiny.tiny_config(family, loss_preset=preset, **{field: 9.0})


def test_each_familys_own_preset() -> None:
    """Grounding DINO trains as its paper says, MM-Grounding-DINO as mmdet does."""
    for family, preset in (("grounding-dino", "paper"), ("mm-grounding-dino", "mmdet")):
        config = tiny.tiny_config(family)
        assert config.loss_preset == preset
        assert tuple(config.loss_weights) == (*PRESETS[preset][0], *PRESETS[preset][1])


@families
def test_small_images_equal_the_loops(family: tiny.Family) -> None:
    """7 image tokens for 20 queries and 9 boxes: empty queries take no box and no part in the class loss.

    (64 wide, as a group norm of one channel cannot norm a map of one cell.)
    """
    model = tiny.tiny_model(family, auxiliary_loss=True, d_model=64)
    prompt = ([7, 8], [9])
    label = tiny.boxes_label(0, 9, 2)
    output = model(**tiny.one(tiny.noise_image(16, 16), *prompt), labels=[label])
    boxes, tokens = wanted(label, prompt)
    for suffix, (logits, found) in prediction_sets(output).items():
        real = (logits[0] > -math.inf).any(-1)
        assert real.sum() == 7
        terms = slow_terms(logits[:, real], found[:, real], [(boxes, tokens)], PRESETS[model.config.loss_preset][0])
        assert [output.loss_dict[f"{n}{suffix}"].item() for n in ("loss_ce", "loss_bbox", "loss_giou")] == (
            pytest.approx(list(terms), rel=1e-5)
        )


# --- law 10 ------------------------------------------------------------------------------------------------------


def test_what_is_not_finite_is_seen_in_its_term() -> None:
    """One logit, or one value of the boxes, of one set and one image: -inf alone is padding."""
    model = tiny.tiny_model()
    output = model(**tiny.together(singles()), labels=labels())
    numbers_BT = phrase_numbers(tiny.together(singles())["input_ids"], model.config.phrase_boundary_token_ids)
    targets = prepare_targets(labels(), numbers_BT)
    logits_BQT, boxes_BQ4 = output.logits.detach()[..., : numbers_BT.shape[1]], output.pred_boxes.detach()
    sets = Predictions(logits_BQT.expand(3, -1, -1, -1), boxes_BQ4.expand(3, -1, -1, -1))
    weights, count = model.config.loss_weights, torch.tensor(8.0)
    for number, suffix in enumerate(("_0", "", "_enc")):
        for value in (torch.nan, torch.inf):
            logits_KBQT = sets.logits_KBQT.clone()
            logits_KBQT[number, 2, 1, 1] = value
            loss, terms = grounding_loss(sets._replace(logits_KBQT=logits_KBQT), targets, weights, 0.25, count)
            assert not loss.isfinite()
            assert f"loss_ce{suffix}" in {name for name, term in terms.items() if not term.isfinite()}
        boxes_KBQ4 = sets.boxes_KBQ4.clone()
        boxes_KBQ4[number] = torch.nan
        _, terms = grounding_loss(sets._replace(boxes_KBQ4=boxes_KBQ4), targets, weights, 0.25, count)
        broken = {name for name, term in terms.items() if not term.isfinite()}
        assert broken == {f"loss_bbox{suffix}", f"loss_giou{suffix}"}


def test_a_model_of_weights_that_are_not_finite_has_no_loss() -> None:
    """Its logits are NaN from end to end, where a loss of 0 would look perfect."""
    model = tiny.tiny_model()
    with torch.no_grad():
        next(model.model.encoder.parameters())[0] = torch.nan
    assert model(**tiny.together(singles()), labels=labels()).loss.isnan()


@families
def test_batch_is_the_sum_of_its_images(family: tiny.Family) -> None:
    """loss(batch) = Σ loss(image) · N(image) / N(batch): N = max(3, 1), max(0, 1), max(5, 1) and 8.

    The prompts have 3, 1 and 4 phrases, so an offset counted over the batch would show; every term obeys it.
    """
    model = tiny.tiny_model(family)
    batch = model(**tiny.together(singles()), labels=labels())
    alone = [model(**single, labels=[label]) for single, label in zip(singles(), labels(), strict=True)]
    shares = [max(n, 1) / sum(NUM_BOXES) for n in NUM_BOXES]
    for name, value in batch.loss_dict.items():
        expected = sum(s * a.loss_dict[name] for s, a in zip(shares, alone, strict=True))
        torch.testing.assert_close(value, expected, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(
        batch.loss, sum(s * a.loss for s, a in zip(shares, alone, strict=True)), atol=1e-4, rtol=1e-4
    )


@families
def test_gradient_of_a_batch_is_the_sum_of_its_images(family: tiny.Family) -> None:
    """With one `num_boxes` for the step, gradients of three images in a row equal those of the batch, within 1e-4."""
    model = tiny.tiny_model(family)
    model(**tiny.together(singles()), labels=labels(), num_boxes=8).loss.backward()
    batch = {n: p.grad.clone() for n, p in model.named_parameters() if p.requires_grad}
    model.zero_grad()
    for single, label in zip(singles(), labels(), strict=True):
        model(**single, labels=[label], num_boxes=8).loss.backward()
    for name, value in batch.items():
        difference = (model.get_parameter(name).grad - value).abs().max()
        assert difference <= 1e-4 * max(1.0, value.abs().max().item()), name


@families
def test_order_of_images_and_boxes_means_nothing(family: tiny.Family) -> None:
    """Images and the boxes inside them may come in any order: every term stays, within 1e-5."""
    model = tiny.tiny_model(family)
    straight = model(**tiny.together(singles()), labels=labels()).loss_dict
    flipped_labels = [{k: v.flip(0) for k, v in label.items()} for label in labels()][::-1]
    flipped = model(**tiny.together(singles()[::-1]), labels=flipped_labels).loss_dict
    for name, value in straight.items():
        torch.testing.assert_close(flipped[name], value, atol=1e-5, rtol=1e-5)


@families
@pytest.mark.parametrize("as_tensor", [False, True])
def test_num_boxes_divides(family: tiny.Family, as_tensor: bool) -> None:
    """loss(num_boxes=20) · 20 = loss · 8, for every term."""
    model = tiny.tiny_model(family)
    own_count = model(**tiny.together(singles()), labels=labels())
    given = model(**tiny.together(singles()), labels=labels(), num_boxes=torch.tensor(20.0) if as_tensor else 20)
    torch.testing.assert_close(given.loss * 20, own_count.loss * 8)
    for name, value in own_count.loss_dict.items():
        torch.testing.assert_close(given.loss_dict[name] * 20, value * 8)


# --- targets -----------------------------------------------------------------------------------------------------


@families
def test_classes_and_their_tokens_mean_the_same(family: tiny.Family) -> None:
    """`class_labels` [c] and a `token_mask` True on phrase c's tokens give equal losses, in one batch too."""
    model = tiny.tiny_model(family)
    length = tiny.together(singles())["input_ids"].shape[1]
    masks = []
    for i, (label, prompt) in enumerate(zip(labels(), PROMPTS, strict=True)):
        own_length = singles()[i]["input_ids"].shape[1]
        mask = torch.zeros(len(label["boxes"]), own_length if i == 2 else length, dtype=torch.bool)
        for row, phrase in enumerate(label["class_labels"].tolist()):
            mask[row, phrase_tokens(prompt, phrase)] = True
        masks.append({"boxes": label["boxes"], "token_mask": mask})
    by_class = model(**tiny.together(singles()), labels=labels())
    for targets in (masks, [masks[0], *labels()[1:]], [labels()[0], *masks[1:]]):
        by_token = model(**tiny.together(singles()), labels=targets)
        assert by_token.loss.equal(by_class.loss)


@families
def test_several_spans(family: tiny.Family) -> None:
    """A box called by phrases 0 and 2, and one called by half a phrase: equal to the loops with those tokens."""
    model = tiny.tiny_model(family, auxiliary_loss=True)
    tokens = [[*phrase_tokens(tiny.PHRASES, 0), *phrase_tokens(tiny.PHRASES, 2)], phrase_tokens(tiny.PHRASES, 2)[:1]]
    boxes = tiny.boxes_label(4, 2, 1)["boxes"]
    mask = torch.zeros(2, 11, dtype=torch.bool)
    for row, places in enumerate(tokens):
        mask[row, places] = True
    output = model(**singles()[0], labels=[{"boxes": boxes, "token_mask": mask}])
    for suffix, (logits, found) in prediction_sets(output).items():
        terms = slow_terms(logits, found, [(boxes.tolist(), tokens)], PRESETS[model.config.loss_preset][0])
        assert [output.loss_dict[f"{n}{suffix}"].item() for n in ("loss_ce", "loss_bbox", "loss_giou")] == (
            pytest.approx(list(terms), rel=1e-5)
        )


# --- where gradients go ------------------------------------------------------------------------------------------


def reached(model: Any, term: str) -> set[str]:
    """Which box heads the gradient of one term reaches."""
    model.zero_grad(set_to_none=True)
    model(**tiny.together(singles()), labels=labels()).loss_dict[term].backward()
    heads = {f"layer {i}": head for i, head in enumerate(model.bbox_embed)}
    heads["first stage"] = model.model.encoder_output_bbox_embed
    return {name for name, head in heads.items() if any(p.grad is not None and p.grad.any() for p in head.parameters())}


@families
def test_look_forward_twice(family: tiny.Family) -> None:
    """Layer i's box = MLP_i(h_i) + logit(ref_i), where ref_i keeps the gradient of MLP_{i-1} and of nothing earlier.

    So the last box loss of two layers reaches heads 1 and 0, and of three layers heads 2 and 1 (DINO, section 3.5).
    """
    two = tiny.tiny_model(family, decoder_layers=2, decoder_bbox_embed_share=False)
    assert {"layer 1", "layer 0"} <= reached(two, "loss_bbox")
    assert "first stage" not in reached(two, "loss_bbox")
    three = tiny.tiny_model(family, decoder_layers=3, decoder_bbox_embed_share=False)
    assert reached(three, "loss_bbox") == {"layer 2", "layer 1"}
    assert reached(three, "loss_giou") == {"layer 2", "layer 1"}


@families
def test_first_stage_learns_boxes_from_its_own_loss_alone(family: tiny.Family) -> None:
    """Recipe 3.6: the decoder's references are detached, the first stage's own loss takes its boxes with gradient."""
    model = tiny.tiny_model(family, decoder_layers=2, decoder_bbox_embed_share=False)
    assert reached(model, "loss_bbox_enc") == {"first stage"}
    assert reached(model, "loss_bbox_0") == {"layer 0"}


@pytest.mark.parametrize("family", tiny.FAMILIES[1:])
def test_tiny_model_overfits(family: tiny.Family) -> None:
    """40 steps on two images of noise with two boxes each: the loss falls below half of its first value."""
    torch.manual_seed(0)
    model = tiny.tiny_model(family, decoder_layers=2, num_queries=8, encoder_layers=1).train()
    inputs = tiny.together([tiny.one(tiny.noise_image(72, 72, i), [7, 8], [9]) for i in range(2)])
    targets = [tiny.boxes_label(i, 2, 2) for i in range(2)]
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=3e-3)
    losses = []
    for _ in range(40):
        optimizer.zero_grad()
        loss = model(**inputs, labels=targets).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 2, (losses[0], losses[-1])
