"""Laws 2, 6, 7 and 14: an image's results are its own, whatever else is in the batch and however long the prompt."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

import hf_grounding_dino as own
import tiny

families = pytest.mark.parametrize("family", tiny.FAMILIES)
SIZES = ((91, 74), (48, 101), (64, 64))
PROMPTS = (tiny.PHRASES, ([9],), ([5, 6], [4], [13], [14, 15, 16, 17]))


def tiny_model(family: tiny.Family = "grounding-dino", **changes: Any) -> own.GroundingDinoForObjectDetection:
    """64 wide, as a group norm of one channel cannot norm a map of one cell."""
    return tiny.tiny_model(family, **{"d_model": 64, **changes})


def three() -> list[dict[str, torch.Tensor]]:
    """Three images of unequal sizes, wide and high, with prompts of 8 + 2, 1 + 3 and 8 + 6 tokens."""
    return [tiny.one(tiny.noise_image(h, w), *p) for (h, w), p in zip(SIZES, PROMPTS, strict=True)]


def run(model: Any, inputs: dict[str, torch.Tensor]) -> Any:
    """A forward pass without gradients."""
    with torch.no_grad():
        return model(**inputs)


def assert_batch_equals_singles(model: Any, singles: list[dict[str, torch.Tensor]], batch: Any) -> None:
    """Boxes, logits on each prompt's own tokens and first-stage boxes equal within 1e-4; other logits are -inf."""
    for i, single in enumerate(singles):
        alone, tokens = run(model, single), single["input_ids"].shape[1]
        torch.testing.assert_close(batch.pred_boxes[i], alone.pred_boxes[0], atol=1e-4, rtol=0)
        torch.testing.assert_close(batch.encoder_pred_boxes[i], alone.encoder_pred_boxes[0], atol=1e-4, rtol=0)
        torch.testing.assert_close(batch.logits[i, :, :tokens], alone.logits[0, :, :tokens], atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(
            batch.encoder_logits[i, :, :tokens], alone.encoder_logits[0, :, :tokens], atol=1e-4, rtol=1e-4
        )
        assert (batch.logits[i, :, tokens:] == -math.inf).all()
        assert batch.logits[i, :, :tokens].isfinite().all()


VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "unshared": {"decoder_bbox_embed_share": False},
    "stages 1-4, five levels": {"stages": (1, 2, 3, 4), "num_feature_levels": 5},
    "learned positions": {"position_embedding_type": "learned"},
    "queries from the image": {"embedding_init_target": False},
}


# --- law 2 -------------------------------------------------------------------------------------------------------


@families
@pytest.mark.parametrize("variant", VARIANTS)
def test_batch_equals_its_parts(family: tiny.Family, variant: str) -> None:
    """Three sizes and three prompt lengths in one batch: each image's results equal those it gets alone, to 1e-4.

    Under either attention, and in training without dropout: no statistic is taken over the batch.
    """
    model = tiny_model(family, **VARIANTS[variant]).train(variant == "unshared")
    if variant == "plain":
        model.set_attn_implementation("eager")
    assert_batch_equals_singles(model, three(), run(model, tiny.together(three())))


@families
@pytest.mark.parametrize("garbage", [1e6, math.nan])
def test_padded_pixels_mean_nothing(family: tiny.Family, garbage: float) -> None:
    """Whatever stands in the padding, the results are bit for bit those of zeros."""
    model = tiny_model(family)
    clean, dirty = run(model, tiny.together(three())), run(model, tiny.together(three(), garbage))
    assert dirty.logits.equal(clean.logits)
    assert dirty.pred_boxes.equal(clean.pred_boxes)


@families
def test_padded_tokens_mean_nothing(family: tiny.Family) -> None:
    """Any token after a closed prompt, where `attention_mask` is 0, changes nothing that is real."""
    model = tiny_model(family)
    batch = tiny.together(three())
    clean = run(model, batch)
    batch["input_ids"] = torch.where(batch["attention_mask"] == 0, 77, batch["input_ids"])
    dirty = run(model, batch)
    torch.testing.assert_close(dirty.logits, clean.logits, atol=1e-5, rtol=0)
    torch.testing.assert_close(dirty.pred_boxes, clean.pred_boxes, atol=1e-5, rtol=0)


@families
def test_more_padding_means_nothing(family: tiny.Family) -> None:
    """A canvas 64 pixels larger and a prompt padded by 20 more tokens: the same results, to 1e-4."""
    model = tiny_model(family)
    small = tiny.together(three())
    large = {
        "pixel_values": torch.nn.functional.pad(small["pixel_values"], (0, 64, 0, 64), value=3.0),
        "pixel_mask": torch.nn.functional.pad(small["pixel_mask"], (0, 64, 0, 64)),
        "input_ids": torch.nn.functional.pad(small["input_ids"], (0, 20)),
        "attention_mask": torch.nn.functional.pad(small["attention_mask"], (0, 20)),
    }
    a, b = run(model, small), run(model, large)
    torch.testing.assert_close(a.logits, b.logits, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(a.pred_boxes, b.pred_boxes, atol=1e-4, rtol=0)


@families
@pytest.mark.parametrize("order", [[1, 2, 0]])
def test_order_of_the_batch(family: tiny.Family, order: list[int]) -> None:
    """Row i of the permuted batch equals row order[i] of the batch, to 1e-5."""
    model = tiny_model(family)
    straight = run(model, tiny.together(three()))
    permuted = run(model, tiny.together([three()[i] for i in order]))
    torch.testing.assert_close(permuted.logits, straight.logits[order], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(permuted.pred_boxes, straight.pred_boxes[order], atol=1e-5, rtol=0)


@families
def test_images_of_one_size_among_others(family: tiny.Family) -> None:
    """Images that share a size keep their places: sizes a b a b, prompts all different."""
    model = tiny_model(family)
    prompts = [([i + 3, i + 4], [i + 5])[: 1 + i % 2] for i in range(4)]
    singles = [tiny.one(tiny.noise_image(*SIZES[i % 2], seed=i), *prompts[i]) for i in range(4)]
    assert_batch_equals_singles(model, singles, run(model, tiny.together(singles)))


@families
def test_masks_may_be_left_out(family: tiny.Family) -> None:
    """Without padding, no mask, a mask of ones and `token_type_ids` of zeros mean the same."""
    model = tiny_model(family)
    inputs = three()[0]
    full = {
        **inputs, "attention_mask": torch.ones_like(inputs["input_ids"]),
        "pixel_mask": torch.ones(1, *SIZES[0], dtype=torch.bool),
        "token_type_ids": torch.zeros_like(inputs["input_ids"]),
    }  # fmt: skip
    a, b = run(model, inputs), run(model, full)
    assert a.logits.equal(b.logits)
    assert a.pred_boxes.equal(b.pred_boxes)


@families
@pytest.mark.parametrize("side", [1, 16])
def test_images_smaller_than_the_queries(family: tiny.Family, side: int) -> None:
    """16 px give 4 + 1 + 1 + 1 = 7 tokens for 20 queries: 13 have -inf logits, alone and beside a large image."""
    model = tiny_model(family)
    small, large = tiny.one(tiny.noise_image(side, side), [7, 8], [9]), tiny.one(tiny.noise_image(70, 90), [9])
    levels = [math.ceil(side / 8), math.ceil(side / 16), math.ceil(side / 32), math.ceil(side / 64)]
    real = sum(n * n for n in levels)
    alone, batch = run(model, small), run(model, tiny.together([small, large]))
    tokens = small["input_ids"].shape[1]
    for logits in (alone.logits[0], batch.logits[0], batch.encoder_logits[0]):
        assert logits.shape[0] == 20
        assert (logits[:, tokens:] == -math.inf).all()
        assert logits[:real, :tokens].isfinite().all()
        assert (logits[real:] == -math.inf).all()
    assert batch.pred_boxes.isfinite().all()
    torch.testing.assert_close(batch.logits[0, :real, :tokens], alone.logits[0, :real, :tokens], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(batch.pred_boxes[0, :real], alone.pred_boxes[0, :real], atol=1e-4, rtol=0)
    big = run(model, large)
    torch.testing.assert_close(batch.pred_boxes[1], big.pred_boxes[0], atol=1e-4, rtol=0)


@families
@pytest.mark.parametrize("side", [1, 16])
def test_small_images_train(family: tiny.Family, side: int) -> None:
    """More boxes than tokens, and empty queries: the loss and every gradient are finite."""
    model = tiny_model(family).train()
    singles = [tiny.one(tiny.noise_image(side, side), [7, 8], [9]), tiny.one(tiny.noise_image(70, 90), [9])]
    output = model(**tiny.together(singles), labels=[tiny.boxes_label(0, 9, 2), tiny.boxes_label(1, 2, 1)])
    assert output.loss.isfinite()
    output.loss.backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


def test_mask_of_another_size_is_refused() -> None:
    """A `pixel_mask` that does not fit, or leaves an image without a pixel, is an error that says so."""
    model = tiny_model()
    batch = tiny.together(three())
    with pytest.raises(ValueError, match="pixel_mask"):
        model(**{**batch, "pixel_mask": batch["pixel_mask"][:, 1:]})
    batch["pixel_mask"][1] = 0
    with pytest.raises(ValueError, match="image 1"):
        model(**batch)


# --- law 6 -------------------------------------------------------------------------------------------------------


def phrase_features(model: Any, prompts: list[tuple[list[int], ...]]) -> list[dict[tuple[int, ...], torch.Tensor]]:
    """For each prompt of a padded batch, the text features before fusion of each phrase and its delimiter."""
    seen: list[torch.Tensor] = []
    hook = model.model.text_projection.register_forward_hook(lambda module, args, output: seen.append(output.detach()))
    # With gradients, so that nothing comes from the memory of phrases.
    model(**tiny.together([tiny.one(tiny.noise_image(32, 32), *p) for p in prompts]))
    hook.remove()
    result = []
    for row, prompt in zip(seen[0], prompts, strict=True):
        features, start = {}, 1
        for phrase in prompt:
            features[tuple(phrase)] = row[start : start + len(phrase) + 1]
            start += len(phrase) + 1
        result.append(features)
    return result


@families
def test_phrase_features_are_the_phrases_own(family: tiny.Family) -> None:
    """Before fusion a phrase's features equal those it has alone, to 1e-5: in any order, prompt and batch."""
    model = tiny_model(family)
    a, b, c = tiny.PHRASES
    alone = {tuple(p): phrase_features(model, [(p,)])[0][tuple(p)] for p in (a, b, c)}
    for features in phrase_features(model, [(a, b, c), (c, a, b), (b, a), (a, [5], [6], [7], c), (b,)]):
        for phrase, value in features.items():
            if phrase in alone:
                torch.testing.assert_close(value, alone[phrase], atol=1e-5, rtol=0)


@families
def test_permuted_phrases_permute_the_first_scores(family: tiny.Family) -> None:
    """With fusion scales 0 (nothing crosses before the heads) the first-stage scores of a phrase move with it."""
    model = tiny_model(family)
    for layer in model.model.encoder.layers:
        torch.nn.init.zeros_(layer.fusion_layer.vision_param)
        torch.nn.init.zeros_(layer.fusion_layer.text_param)
    image, (a, b, c) = tiny.noise_image(64, 64), tiny.PHRASES
    first = run_states(model, tiny.one(image, a, b, c))
    second = run_states(model, tiny.one(image, c, a, b))
    moved = {"a": (slice(1, 4), slice(5, 8)), "b": (slice(4, 6), slice(8, 10)), "c": (slice(6, 10), slice(1, 5))}
    for before, after in moved.values():
        torch.testing.assert_close(first[..., before], second[..., after], atol=1e-4, rtol=1e-4)


def run_states(model: Any, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    """First-stage logits of every image token."""
    with torch.no_grad():
        logits: torch.Tensor = model(**inputs, output_hidden_states=True).enc_outputs_class
    return logits


# --- law 7 -------------------------------------------------------------------------------------------------------


def prompt_of(length: int) -> list[list[int]]:
    """Phrases that make a closed prompt of `length` tokens: 2 specials, then pairs (word, dot), one triple if odd."""
    pairs = (length - 2) // 2
    phrases = [[3 + i % 90] for i in range(pairs)]
    if length % 2:
        phrases[-1] = [3, 4]
    return phrases


@families
@pytest.mark.parametrize("length", [256, 257, 5000])
def test_long_prompts_run(family: tiny.Family, length: int) -> None:
    """Any length runs; the logits are max(length, max_text_len = 256) wide and finite on every token."""
    model = tiny_model(family, encoder_layers=1, decoder_layers=1)
    inputs = tiny.one(tiny.noise_image(32, 32), *prompt_of(length))
    assert inputs["input_ids"].shape == (1, length)
    with torch.no_grad():
        output = model(**{**inputs, "pixel_values": tiny.noise_image(64, 64)[None]})
    assert output.logits.shape == (1, 20, max(length, 256))
    assert output.logits[..., :length].isfinite().all()
    assert (output.logits[..., length:] == -math.inf).all()
    assert output.pred_boxes.isfinite().all()


@families
def test_long_and_short_prompts_in_one_batch(family: tiny.Family) -> None:
    """A prompt of 300 tokens beside one of 4: each equals itself alone."""
    model = tiny_model(family)
    singles = [tiny.one(tiny.noise_image(64, 64), *prompt_of(300)), tiny.one(tiny.noise_image(64, 80), [9])]
    assert_batch_equals_singles(model, singles, run(model, tiny.together(singles)))


@families
def test_long_prompts_train(family: tiny.Family) -> None:
    """A box of the last phrase of a prompt of 300 tokens (149 phrases) is learned from; phrase 149 does not exist."""
    model = tiny_model(family).train()
    inputs = tiny.one(tiny.noise_image(64, 64), *prompt_of(300))
    box = torch.tensor([[0.5, 0.5, 0.2, 0.2]])
    assert model(**inputs, labels=[{"boxes": box, "class_labels": torch.tensor([148])}]).loss.isfinite()
    with pytest.raises(ValueError, match="149"):
        model(**inputs, labels=[{"boxes": box, "class_labels": torch.tensor([149])}])


@families
def test_phrase_longer_than_the_text_encoder(family: tiny.Family) -> None:
    """64 positions hold a phrase of 63 tokens with its dot (positions 0 ... 63); one of 64 is refused, not cut."""
    model = tiny_model(family)
    image = tiny.noise_image(64, 64)
    assert run(model, tiny.one(image, list(range(3, 66)), [9])).pred_boxes.isfinite().all()
    with pytest.raises(ValueError, match="64"):
        model(**tiny.one(image, list(range(3, 67)), [9]))


# --- law 14 ------------------------------------------------------------------------------------------------------


@families
def test_boxes_are_of_the_image_without_its_padding(family: tiny.Family) -> None:
    """Beside an image twice as wide, the canvas doubles and no box of the narrow image moves, at any stage."""
    model = tiny_model(family)
    narrow, wide = tiny.one(tiny.noise_image(64, 48), [9]), tiny.one(tiny.noise_image(64, 96), [9])
    alone, batch = run(model, narrow), run(model, tiny.together([narrow, wide]))
    for name in ("pred_boxes", "init_reference_points", "encoder_pred_boxes"):
        torch.testing.assert_close(getattr(batch, name)[0], getattr(alone, name)[0], atol=1e-4, rtol=0)
    for a, b in zip(batch.intermediate_reference_points[0], alone.intermediate_reference_points[0], strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=0)


@families
def test_targets_are_of_the_image_without_its_padding(family: tiny.Family) -> None:
    """The loss of the narrow image is the same alone and beside an image twice as wide without boxes.

    Box terms only: loss_bbox(batch) = Σ over its own boxes / N with N = 3 in both.
    """
    model = tiny_model(family)
    narrow, wide = tiny.one(tiny.noise_image(64, 48), [9]), tiny.one(tiny.noise_image(64, 96), [9])
    label, nothing = tiny.boxes_label(3, 3, 1), {"boxes": torch.zeros(0, 4), "class_labels": torch.zeros(0).long()}
    with torch.no_grad():
        alone = model(**narrow, labels=[label]).loss_dict
        batch = model(**tiny.together([narrow, wide]), labels=[label, nothing]).loss_dict
    for name, value in alone.items():
        if "loss_ce" not in name:
            torch.testing.assert_close(batch[name], value, atol=1e-5, rtol=1e-4)
