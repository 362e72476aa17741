"""Contrastive denoising: its noise and its terms equal plain loops, and nothing else of the network knows of it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

import hf_grounding_dino as own
import tiny
from hf_grounding_dino.losses.denoising import Denoising, DenoisingSettings, NoisedQueries, noise_image, num_groups
from hf_grounding_dino.losses.targets import Targets, prepare_targets
from hf_grounding_dino.models.detector import GroundingDinoModelOutput
from hf_grounding_dino.models.grounding_dino.heads import HeadInputs, predict_layers
from hf_grounding_dino.processing.prompts import phrase_numbers
from loops import Box, corners, giou, l1, phrase_tokens, token_sum

families = pytest.mark.parametrize("family", tiny.FAMILIES)
PROMPTS = (tiny.PHRASES, ([9],), ([5, 6], [4], [13], [14, 15, 16, 17]))
SIZES = ((91, 74), (48, 101), (70, 70))
NUM_BOXES = (3, 0, 5)
NUM_QUERIES = 7
"""So images of 3, 0 and 5 boxes have 7 // 3 = 2, none and 7 // 5 = 1 groups, and 12, 0 and 10 denoising queries."""
NUM_LABELS = 3
"""Fewer than the third prompt's 4 phrases: the last one shares the label of the first."""
TABLE = "denoising.label_embedding.weight"
LOSS_WEIGHTS = {"grounding-dino": (2.0, 5.0, 2.0), "mm-grounding-dino": (1.0, 5.0, 2.0)}


def singles() -> list[dict[str, Tensor]]:
    """Three images of unequal sizes and prompts."""
    return [tiny.one(tiny.noise_image(h, w), *p) for (h, w), p in zip(SIZES, PROMPTS, strict=True)]


def labels() -> list[dict[str, Any]]:
    """3, 0 and 5 boxes of 3, 1 and 4 phrases, each image with a seed of its own."""
    counts = enumerate(zip(NUM_BOXES, PROMPTS, strict=True))
    return [tiny.boxes_label(i, n, len(p)) | {"noise_seed": 100 + i} for i, (n, p) in counts]


def denoising_model(family: tiny.Family = "grounding-dino", **changes: Any) -> Any:
    """A tiny model in training, with a label embedding."""
    model = tiny.tiny_model(family, **changes).train()
    torch.manual_seed(0)
    model.enable_denoising(NUM_QUERIES, num_labels=NUM_LABELS)
    return model


def targets_of(inputs: dict[str, Tensor], targets: list[dict[str, Any]]) -> list[Targets]:
    """The checked labels of a batch."""
    special = tiny.tiny_config("grounding-dino").phrase_boundary_token_ids
    return prepare_targets(targets, phrase_numbers(inputs["input_ids"], special))


def decode(model: Any, noised: NoisedQueries | None) -> GroundingDinoModelOutput:
    """The batch of three images through the network."""
    output: GroundingDinoModelOutput = model.model(**tiny.together(singles()), noised=noised)
    return output


def batch_noise(model: Any) -> NoisedQueries:
    """The denoising queries of the three images."""
    return model.denoising(targets_of(tiny.together(singles()), labels()))


# --- the noise ---------------------------------------------------------------------------------------------------


def slow_noise(boxes: list[Box], phrases: list[int], seed: int, settings: DenoisingSettings) -> list[dict[str, Any]]:
    """The denoising queries of one image in loops (recipe 3.7), drawing in the order that `noise_image` states."""
    generator = torch.Generator().manual_seed(seed)
    kept = list(range(len(boxes)))
    if len(boxes) > settings.num_queries:
        kept = torch.randperm(len(boxes), generator=generator)[: settings.num_queries].tolist()
    groups = max(1, settings.num_queries // max(1, len(boxes)))
    count = groups * 2 * len(kept)
    replaces = torch.rand(count, generator=generator).tolist()
    uniform = torch.randint(NUM_LABELS, (count,), generator=generator).tolist()
    signs = torch.randint(2, (count, 4), generator=generator).tolist()
    parts = torch.rand(count, 4, generator=generator).tolist()
    queries: list[dict[str, Any]] = []
    for group in range(groups):
        for is_positive in (True, False):
            for source in kept:
                n = len(queries)
                corner = corners(boxes[source])
                for i in range(4):
                    size = boxes[source][2 + i % 2]
                    part = parts[n][i] if is_positive else parts[n][i] + 1
                    corner[i] += (2 * signs[n][i] - 1) * part * settings.box_noise * size / 2
                    corner[i] = min(max(corner[i], 0.0), 1.0)
                x0, y0, x1, y1 = corner
                box = [min(max(v, 1e-3), 1 - 1e-3) for v in ((x0 + x1) / 2, (y0 + y1) / 2, x1 - x0, y1 - y0)]
                is_replaced = replaces[n] < settings.label_noise / 2
                label = uniform[n] if is_replaced else phrases[source] % NUM_LABELS
                queries.append(
                    {"box": box, "label": label, "source": source, "group": group, "is_positive": is_positive}
                )
    return queries


@pytest.mark.parametrize("num_boxes", [0, 1, 3, 7, 8, 30])
def test_noise_equals_the_loops(num_boxes: int) -> None:
    """7 queries: 7 groups of one box, 2 of three, 1 of seven, and 1 of seven that are drawn from 8 or from 30.

    At most 14 queries, whatever the number of boxes.
    """
    settings = DenoisingSettings(num_queries=7, label_noise=0.8, box_noise=1.3)
    label = tiny.boxes_label(num_boxes, num_boxes, 4) | {"noise_seed": 5}
    target = targets_of(singles()[2], [label])[0]
    noise = noise_image(target, NUM_LABELS, settings)
    slow = slow_noise(label["boxes"].tolist(), label["class_labels"].tolist(), 5, settings)
    assert len(slow) == len(noise.labels_N) <= 14
    assert noise.labels_N.tolist() == [q["label"] for q in slow]
    assert noise.sources_N.tolist() == [q["source"] for q in slow]
    assert noise.groups_N.tolist() == [q["group"] for q in slow]
    assert noise.is_positive_N.tolist() == [q["is_positive"] for q in slow]
    torch.testing.assert_close(noise.boxes_N4, torch.tensor([q["box"] for q in slow]).reshape(-1, 4))


def one_box(num_queries: int, **settings: float) -> Any:
    """The noise of one box of 0.2 × 0.1 in the middle, of phrase 0, in `num_queries` groups."""
    box, tokens, phrases = torch.tensor([[0.5, 0.5, 0.2, 0.1]]), torch.tensor([[False, True]]), torch.tensor([0])
    chosen = DenoisingSettings(num_queries=num_queries, **settings)
    return noise_image(Targets(box, tokens, phrases, 1), 256, chosen)


def test_positive_queries_are_near_and_negative_ones_are_not() -> None:
    """Corners 0.4, 0.45, 0.6, 0.55 move by u · size / 2, u in [0, 1) for positives and in [1, 2) for negatives.

    Both ways alike, u uniform: |offset| / size is 0.25 ± 0.01 and 0.75 ± 0.01 on average over 4,000 corners. Negative
    corners that pass one another leave a box of least size, which is left aside here.
    """
    noise, size = one_box(2000), torch.tensor([0.2, 0.1, 0.2, 0.1])
    found = torch.cat(
        [noise.boxes_N4[:, :2] - noise.boxes_N4[:, 2:] / 2, noise.boxes_N4[:, :2] + noise.boxes_N4[:, 2:] / 2], 1
    )
    offsets = (found - torch.tensor([0.4, 0.45, 0.6, 0.55])) / size
    near, far = offsets[noise.is_positive_N], offsets[~noise.is_positive_N]
    assert len(near) == len(far) == 2000
    assert near.abs().max() <= 0.5 + 1e-5
    assert near.abs().mean() == pytest.approx(0.25, abs=0.01)
    assert near.mean() == pytest.approx(0.0, abs=0.01)
    is_whole = (noise.boxes_N4[~noise.is_positive_N, 2:] > 1e-3).all(1)
    assert 1000 < is_whole.sum() < 2000
    assert far[is_whole].abs().min() >= 0.5 - 1e-5
    assert far[is_whole].abs().max() <= 1 + 1e-5
    assert far[is_whole].abs().mean() == pytest.approx(0.75, abs=0.01)


def test_labels_are_replaced_half_as_often_as_said() -> None:
    """0.5 / 2 · 255 / 256 = 0.249 of 8,000 labels differ, ± 0.02, and spread over the table; with 0.0 none does."""
    replaced = one_box(4000).labels_N
    assert (replaced != 0).float().mean() == pytest.approx(0.249, abs=0.02)
    assert len(replaced.unique()) > 250
    assert not one_box(100, label_noise=0.0).labels_N.any()


def test_without_noise_positives_are_the_boxes() -> None:
    """box_noise = 0: every query is the box."""
    torch.testing.assert_close(one_box(3, box_noise=0.0).boxes_N4, torch.tensor([[0.5, 0.5, 0.2, 0.1]]).repeat(6, 1))


def test_noise_follows_the_seed_or_the_global_generator() -> None:
    """With a seed nothing else matters, and the global generator stays; without one, it alone matters."""
    target = targets_of(singles()[0], labels()[:1])[0]
    settings, state = DenoisingSettings(), torch.get_rng_state()
    seeded = noise_image(target, 256, settings).boxes_N4
    assert torch.get_rng_state().equal(state)
    assert noise_image(target, 256, settings).boxes_N4.equal(seeded)
    assert not noise_image(target._replace(noise_seed=1), 256, settings).boxes_N4.equal(seeded)
    free = target._replace(noise_seed=None)
    first, second = (noise_image(free, 256, settings).boxes_N4 for _ in range(2))
    assert not first.equal(second)
    torch.set_rng_state(state)
    assert noise_image(free, 256, settings).boxes_N4.equal(first)


def test_label_is_the_phrase_of_the_first_token() -> None:
    """A box called by phrases 1 and 2, and one by the last token of phrase 2, have labels 1 and 2."""
    mask = torch.zeros(2, 11, dtype=torch.bool)
    mask[0, [*phrase_tokens(tiny.PHRASES, 1), *phrase_tokens(tiny.PHRASES, 2)]] = True
    mask[1, phrase_tokens(tiny.PHRASES, 2)[-1]] = True
    label = {"boxes": tiny.boxes_label(0, 2, 1)["boxes"], "token_mask": mask}
    assert targets_of(singles()[0], [label])[0].phrases_G.tolist() == [1, 2]
    assert targets_of(singles()[2], labels()[2:])[0].phrases_G.equal(labels()[2]["class_labels"])


# --- law 11 ------------------------------------------------------------------------------------------------------


def slow_terms(logits: Tensor, boxes: Tensor, alpha: float) -> tuple[float, float, float]:
    """Class, L1 and GIoU loss of one layer's denoising queries `(B, N, T)` and `(B, N, 4)`, over 8 boxes."""
    class_sum = l1_sum = giou_sum = 0.0
    for b, (label, prompt) in enumerate(zip(labels(), PROMPTS, strict=True)):
        wanted, phrases = label["boxes"].tolist(), label["class_labels"].tolist()
        queries = slow_noise(wanted, phrases, label["noise_seed"], DenoisingSettings(num_queries=NUM_QUERIES))
        groups = len({q["group"] for q in queries})
        for n, query in enumerate(queries):
            g, cells, found = query["source"], logits[b, n].double().tolist(), boxes[b, n].double().tolist()
            tokens = phrase_tokens(prompt, phrases[g]) if query["is_positive"] else []
            class_sum += token_sum(cells, tokens, alpha, 0.0) / groups
            if query["is_positive"]:
                l1_sum += l1(found, wanted[g]) / groups
                giou_sum += (1 - giou(found, wanted[g])) / groups
    return class_sum / 8, l1_sum / 8, giou_sum / 8


@families
def test_every_term_equals_the_loops(family: tiny.Family) -> None:
    """Three layers, three terms each: 9 numbers equal the loops within 1e-5, and the total is theirs and the rest's.

    total = Σ over all sets, denoising or not, of w_class · ce + 5 · bbox + 2 · giou.
    """
    model = denoising_model(family)
    output, noised = model(**tiny.together(singles()), labels=labels()), batch_noise(model)
    assert noised.groups_BN.shape == (3, 12)
    base, real = decode(model, noised), tiny.together(singles())["attention_mask"].bool()
    references, text = base.denoising_reference_points, base.encoder_last_hidden_state_text
    assert references is not None and text is not None
    inputs = HeadInputs(denoised(base), references, noised.mask_BN, text, real)
    layers = predict_layers(range(3), model.bbox_embed, model.class_embed, inputs)
    expected = {}
    for suffix, layer in zip(("_dn_0", "_dn_1", "_dn"), layers, strict=True):
        terms = slow_terms(layer["logits"].detach(), layer["pred_boxes"].detach(), model.config.focal_alpha)
        expected |= {f"{n}{suffix}": v for n, v in zip(("loss_ce", "loss_bbox", "loss_giou"), terms, strict=True)}
    assert {k: v.item() for k, v in output.loss_dict.items() if "_dn" in k} == pytest.approx(expected, rel=1e-5)
    assert len(output.loss_dict) == 12 + 9
    by_name = dict(zip(("loss_ce", "loss_bbox", "loss_giou"), LOSS_WEIGHTS[family], strict=True))
    total = sum(w * v.item() for n, w in by_name.items() for k, v in output.loss_dict.items() if k.startswith(n))
    assert output.loss.item() == pytest.approx(total, rel=1e-5)


def test_queries_begin_with_their_label_and_box() -> None:
    """Query n of image b begins with the table's row of its label; padding with zeros and the middle box."""
    model = denoising_model()
    noised, table = batch_noise(model), model.denoising.label_embedding.weight
    for b, label in enumerate(labels()):
        slow = slow_noise(
            label["boxes"].tolist(), label["class_labels"].tolist(), 100 + b, DenoisingSettings(num_queries=7)
        )
        content = [table[q["label"]] for q in slow] + [torch.zeros(32)] * (12 - len(slow))
        assert noised.content_BND[b].equal(torch.stack(content))
        boxes = [q["box"] for q in slow] + [[0.5] * 4] * (12 - len(slow))
        torch.testing.assert_close(noised.boxes_BN4[b], torch.tensor(boxes))


# --- laws 10 and 12 ----------------------------------------------------------------------------------------------


@families
def test_batch_is_the_sum_of_its_images(family: tiny.Family) -> None:
    """loss(batch) = Σ loss(image) · max(N(image), 1) / 8, every term; the images have 2, no and 1 groups."""
    model = denoising_model(family)
    batch = model(**tiny.together(singles()), labels=labels())
    alone = [model(**single, labels=[label]) for single, label in zip(singles(), labels(), strict=True)]
    shares = [max(n, 1) / 8 for n in NUM_BOXES]
    assert batch.loss_dict["loss_bbox_dn"] > 0
    for name, value in batch.loss_dict.items():
        expected = sum(s * a.loss_dict[name] for s, a in zip(shares, alone, strict=True))
        torch.testing.assert_close(value, expected, atol=1e-5, rtol=1e-4, msg=lambda m, n=name: f"{n}: {m}")


def gradients(model: Any, inputs: dict[str, Tensor], targets: list[dict[str, Any]]) -> dict[str, Tensor]:
    """Of the loss over 8 boxes."""
    model.zero_grad(set_to_none=True)
    model(**inputs, labels=targets, num_boxes=8).loss.backward()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.requires_grad}


@families
def test_gradient_of_a_batch_is_the_sum_of_its_images(family: tiny.Family) -> None:
    """Three images in a row give the gradients of the batch, within 1e-3; the label embedding's too.

    (Where the true gradient is 0, as before a norm, what rounding leaves is above 1e-4.)
    """
    model = denoising_model(family)
    batch = gradients(model, tiny.together(singles()), labels())
    parts = [gradients(model, single, [label]) for single, label in zip(singles(), labels(), strict=True)]
    assert batch[TABLE].any()
    for name, value in batch.items():
        difference = (sum(part[name] for part in parts) - value).abs().max()
        assert difference <= 1e-3 * max(1.0, value.abs().max().item()), name


# --- who sees whom -----------------------------------------------------------------------------------------------


def matching(output: GroundingDinoModelOutput) -> Tensor:
    """The matching queries after each layer, `(B, layers, Q, D)`."""
    assert output.intermediate_hidden_states is not None
    return output.intermediate_hidden_states


def denoised(output: GroundingDinoModelOutput) -> Tensor:
    """The denoising queries after each layer, `(B, layers, N, D)`."""
    assert output.denoising_hidden_states is not None
    return output.denoising_hidden_states


def changed(before: Tensor, after: Tensor) -> Tensor:
    """Which queries `(B, Q)` differ by more than 1e-5 after any layer."""
    return ((before - after).abs().amax(-1) > 1e-5).any(1)


@torch.no_grad()
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_a_denoising_query_reaches_its_own_group_alone(attention: str) -> None:
    """Another content of query 1 of image 0 changes queries 0 to 5, group 0, and neither 6 to 11 nor any other image.

    No matching query changes, and padding of another content changes nothing at all but itself.
    """
    model = denoising_model(attn_implementation=attention)
    noised = batch_noise(model)
    before = decode(model, noised)
    content = noised.content_BND.clone()
    content[0, 1] += 3.0
    after = decode(model, noised._replace(content_BND=content))
    assert not changed(matching(before), matching(after)).any()
    groups = changed(denoised(before), denoised(after))
    assert groups[0].tolist() == [True] * 6 + [False] * 6
    assert not groups[1:].any()
    content = noised.content_BND.masked_fill((noised.groups_BN == -1)[..., None], 3.0)
    after = decode(model, noised._replace(content_BND=content))
    assert not changed(matching(before), matching(after)).any()
    assert not (changed(denoised(before), denoised(after)) & (noised.groups_BN != -1)).any()


@torch.no_grad()
def test_denoising_queries_see_the_matching_ones() -> None:
    """Other matching queries change every denoising query of images that have one."""
    model = denoising_model()
    noised = batch_noise(model)
    before = decode(model, noised)
    model.model.query_position_embeddings.weight += 1.0
    after = decode(model, noised)
    assert changed(denoised(before), denoised(after))[noised.groups_BN != -1].all()


@torch.no_grad()
@families
@pytest.mark.parametrize("changes", [{}, {"embedding_init_target": False}, {"num_queries": 60}], ids=str)
def test_training_outputs_are_those_without(family: tiny.Family, changes: dict[str, Any]) -> None:
    """All that the caller sees, states and weights too, equals what the same model gives without denoising.

    60 queries are more than the smallest image has tokens, so some are empty.
    """
    model = tiny.tiny_model(family, auxiliary_loss=True, **changes).train()
    options = {"output_hidden_states": True, "output_attentions": True, "labels": labels()}
    plain = model(**tiny.together(singles()), **options)
    model.enable_denoising(NUM_QUERIES)
    noised = model(**tiny.together(singles()), **options)
    assert len(noised.loss_dict) == len(plain.loss_dict) + 9
    assert noised.loss > plain.loss
    for name, value in plain.loss_dict.items():
        torch.testing.assert_close(noised.loss_dict.pop(name), value, atol=1e-5, rtol=1e-4)
    assert list(noised) == list(plain)
    for name in set(plain) - {"loss", "loss_dict"}:
        torch.testing.assert_close(noised[name], plain[name], atol=1e-4, rtol=1e-4, msg=lambda m, n=name: f"{n}: {m}")
    model.disable_denoising()
    assert model(**tiny.together(singles()), labels=labels()).loss_dict.keys() == plain.loss_dict.keys()


@torch.no_grad()
@families
def test_out_of_training_nothing_changes(family: tiny.Family) -> None:
    """In eval mode, with labels or without, and in training without: bit for bit what it is without a table."""
    model = tiny.tiny_model(family)
    inputs = tiny.together(singles())
    plain = model(**inputs, labels=labels()), model(**inputs), model.train()(**inputs)
    model.enable_denoising()
    noised = model.eval()(**inputs, labels=labels()), model.eval()(**inputs), model.train()(**inputs)
    for a, b in zip(plain, noised, strict=True):
        assert list(a) == list(b)
        for key, value in a.items():
            for x, y in zip(*((v.values() if key == "loss_dict" else [v]) for v in (value, b[key])), strict=True):
                assert x.equal(y), key


# --- laws 3, 5, 8 and 13 -----------------------------------------------------------------------------------------


@families
def test_every_parameter_learns(family: tiny.Family) -> None:
    """The label embedding has a gradient that is not zero; every other parameter has one still."""
    model = denoising_model(family)
    model(**tiny.together(singles()), labels=labels()).loss.backward()
    assert [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None] == []
    assert model.denoising.label_embedding.weight.grad.any()


@families
def test_no_box_anywhere(family: tiny.Family) -> None:
    """The denoising terms are there and 0, the loss is finite, and the table's gradient is zero, not missing (DDP)."""
    model = denoising_model(family)
    nothing = {"boxes": torch.zeros(0, 4), "class_labels": torch.zeros(0).long()}
    output = model(**tiny.together(singles()), labels=[nothing] * 3)
    output.loss.backward()
    assert output.loss.isfinite()
    assert [v.item() for k, v in output.loss_dict.items() if "_dn" in k] == [0.0] * 9
    assert [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None] == []
    assert model.denoising.label_embedding.weight.grad.equal(torch.zeros(NUM_LABELS, 32))


@pytest.mark.parametrize("family", tiny.FAMILIES[1:])
def test_checkpointing_changes_no_gradient(family: tiny.Family) -> None:
    """Within 1e-6."""
    model, inputs = denoising_model(family), tiny.together(singles())
    plain = gradients(model, inputs, labels())
    model.gradient_checkpointing_enable()
    for name, value in gradients(model, inputs, labels()).items():
        torch.testing.assert_close(value, plain[name], atol=1e-6, rtol=1e-5, msg=lambda m, n=name: f"{n}: {m}")


@families
@pytest.mark.parametrize("autocast", [False, True])
def test_bfloat16(family: tiny.Family, autocast: bool) -> None:
    """All finite, the terms float32 and within 10 % of those in float32."""
    model, inputs = denoising_model(family), tiny.together(singles())
    expected = model(**inputs, labels=labels()).loss_dict
    if not autocast:
        model.to(torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        output = model(**inputs, labels=labels())
    output.loss.backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)
    for name, value in output.loss_dict.items():
        if "_dn" in name:
            assert value.dtype == torch.float32
            assert value.item() == pytest.approx(expected[name].item(), rel=0.1), name


def test_more_boxes_than_queries() -> None:
    """50 boxes, 7 queries: 7 boxes are noised, 14 queries, one group."""
    model = denoising_model()
    label = tiny.boxes_label(5, 50, 3)
    noised = model.denoising(targets_of(singles()[0], [label]))
    assert noised.groups_BN.tolist() == [[0] * 14]
    assert noised.shares_B.tolist() == [1.0]
    assert model(**singles()[0], labels=[label]).loss.isfinite()
    assert [num_groups(n, 7) for n in (0, 1, 3, 4, 7, 8)] == [7, 7, 2, 1, 1, 1]


# --- the table on disk -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", tiny.FAMILIES[1:])
def test_table_is_saved_beside_the_model(family: tiny.Family, tmp_path: Path) -> None:
    """Loaded with its settings; config.json and model.safetensors are those of the model without, byte for byte."""
    model = tiny.tiny_model(family)
    model.save_pretrained(tmp_path / "plain")
    model.enable_denoising(17, 0.25, 0.5, num_labels=5)
    model.save_pretrained(tmp_path / "noised")
    assert TABLE in model.state_dict()
    for name in ("config.json", "model.safetensors"):
        assert (tmp_path / "plain" / name).read_bytes() == (tmp_path / "noised" / name).read_bytes()
    loaded, info = own.GroundingDinoForObjectDetection.from_pretrained(tmp_path / "noised", output_loading_info=True)
    assert {name: list(keys) for name, keys in info.items() if keys} == {}
    assert loaded.denoising.settings == DenoisingSettings(num_queries=17, label_noise=0.25, box_noise=0.5)
    assert loaded.denoising.label_embedding.weight.equal(model.denoising.label_embedding.weight)
    assert not loaded.denoising.training
    assert own.GroundingDinoForObjectDetection.from_pretrained(tmp_path / "plain").denoising is None
    own.GroundingDinoModel.from_pretrained(tmp_path / "noised")


@pytest.mark.parametrize("family", tiny.FAMILIES[1:])
def test_stock_loads_it(family: tiny.Family, tmp_path: Path) -> None:
    """No missing, unexpected or mismatched key."""
    model = tiny.tiny_model(family)
    model.enable_denoising()
    model.save_pretrained(tmp_path)
    _, info = tiny.STOCK_MODEL[family].from_pretrained(tmp_path, output_loading_info=True)
    assert {name: list(keys) for name, keys in info.items() if keys} == {}


def test_saved_weights_of_another_state(tmp_path: Path) -> None:
    """`state_dict=`, as an average of weights gives: the table is taken from there; other ranks write nothing."""
    model = denoising_model()
    state = {name: value + 1 for name, value in model.state_dict().items()}
    table = state[TABLE]
    model.save_pretrained(tmp_path / "other", is_main_process=False)
    assert not (tmp_path / "other" / "denoising.safetensors").exists()
    model.save_pretrained(tmp_path, state_dict=state)
    with safe_open(tmp_path / "denoising.safetensors", "pt") as file:
        assert file.get_tensor("label_embedding.weight").equal(table)


def test_an_older_table_does_not_stay(tmp_path: Path) -> None:
    """Saved with a table, then without one into the same folder: what is loaded has none."""
    model = denoising_model()
    model.save_pretrained(tmp_path)
    model.disable_denoising()
    model.save_pretrained(tmp_path)
    assert own.GroundingDinoForObjectDetection.from_pretrained(tmp_path).denoising is None


@pytest.mark.parametrize("form", ["nested.pth", "flat.pt", "model.safetensors"])
def test_table_of_mmdetection(form: str, tmp_path: Path) -> None:
    """`dn_query_generator.label_embedding.weight`, 6 × 32, among other tensors; the settings stay as they are."""
    table = torch.randn(6, 32)
    state = {"bbox_head.bias": torch.zeros(2), "dn_query_generator.label_embedding.weight": table}
    if form.endswith("safetensors"):
        save_file(state, tmp_path / form)
    else:
        torch.save({"meta": {"epoch": 3}, "state_dict": state} if "nested" in form else state, tmp_path / form)
    model = tiny.tiny_model().train()
    model.load_denoising(tmp_path / form)
    assert model.denoising.label_embedding.weight.equal(table)
    assert model.denoising.settings == DenoisingSettings()
    model.enable_denoising(9, num_labels=6)
    assert model.denoising.label_embedding.weight.equal(table), "a table of that size is kept"
    model.load_denoising(tmp_path / form)
    assert model.denoising.settings.num_queries == 9
    assert model(**tiny.together(singles()), labels=labels()).loss_dict["loss_ce_dn"] > 0
    model.enable_denoising(9, num_labels=7)
    assert model.denoising.label_embedding.weight.shape == (7, 32)


def test_table_takes_the_models_type() -> None:
    """A model in bfloat16 has its table in bfloat16."""
    model = tiny.tiny_model().to(torch.bfloat16)
    model.enable_denoising()
    assert model.denoising.label_embedding.weight.dtype == torch.bfloat16


# --- refusals ----------------------------------------------------------------------------------------------------


def test_files_without_a_table_are_refused(tmp_path: Path) -> None:
    """No file, no table in it, another width, not a file of tensors: each names the file."""
    model = tiny.tiny_model()
    save_file({"a": torch.zeros(1)}, tmp_path / "none.safetensors")
    save_file({"label_embedding.weight": torch.zeros(5, 16)}, tmp_path / "narrow.safetensors")
    (tmp_path / "text.safetensors").write_text("no")
    (tmp_path / "text.pth").write_text("no")
    torch.save([1, 2], tmp_path / "list.pth")
    torch.save({"state_dict": Path("x")}, tmp_path / "object.pth")
    with pytest.raises(FileNotFoundError, match=r"denoising\.safetensors"):
        model.load_denoising(tmp_path)
    for name in ("none.safetensors", "text.safetensors", "text.pth", "list.pth", "object.pth"):
        with pytest.raises(ValueError, match=name):
            model.load_denoising(tmp_path / name)
    with pytest.raises(ValueError, match=r"narrow\.safetensors.*\(5, 16\).*32 wide"):
        model.load_denoising(tmp_path / "narrow.safetensors")
    assert model.denoising is None


@pytest.mark.parametrize(
    ("setting", "value"),
    [("num_queries", 0), ("label_noise", 1.5), ("label_noise", math.nan), ("box_noise", -1.0), ("num_labels", 0)],
)
def test_settings_out_of_range_are_refused(setting: str, value: float) -> None:
    """The message names the setting."""
    with pytest.raises(ValueError, match=setting):
        tiny.tiny_model().enable_denoising(**{setting: value})


@pytest.mark.parametrize("seed", [1.5, "one", torch.tensor([1, 2])], ids=str)
def test_noise_seed_must_be_an_integer(seed: Any) -> None:
    """The message names the image and the entry."""
    with pytest.raises(ValueError, match=r"mage 1.*noise_seed"):
        tiny.tiny_model()(
            **tiny.together(singles()), labels=[labels()[0], labels()[1] | {"noise_seed": seed}, labels()[2]]
        )


def test_a_table_can_be_built_alone() -> None:
    """Drawn from the normal distribution: mean 0 and deviation 1, within 0.05 over 8,192 numbers."""
    torch.manual_seed(0)
    weight = Denoising(256, 32, DenoisingSettings()).label_embedding.weight
    assert weight.mean().item() == pytest.approx(0.0, abs=0.05)
    assert weight.std().item() == pytest.approx(1.0, abs=0.05)
