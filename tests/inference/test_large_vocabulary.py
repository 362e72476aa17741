"""Any number of labels: whole labels, one pass of the backbone, one ranking, the caller's numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import tiny
from hf_grounding_dino import GroundingDinoForObjectDetection, GroundingDinoImageProcessor, GroundingDinoProcessor
from hf_grounding_dino.data.tokenizer import build_tokenizer
from hf_grounding_dino.inference.large_vocabulary import Chunking, chunk_labels, detect

WORDS = ("cat", "dog", "red", "blue", "remote", "control", "tree", "house")
LABELS = ["cat", "red dog", "Remote Control", "tree", "dog", "blue tree", "house", "cat", "red house"]
# The tokens of each label with its delimiter.
TOKENS = [2, 3, 3, 2, 2, 3, 2, 2, 3]


@pytest.fixture(scope="module")
def processor() -> GroundingDinoProcessor:
    size = {"shortest_edge": 64, "longest_edge": 96}
    return GroundingDinoProcessor(GroundingDinoImageProcessor(size=size), build_tokenizer(WORDS))


@pytest.fixture(scope="module", params=tiny.FAMILIES)
def model(request: pytest.FixtureRequest) -> GroundingDinoForObjectDetection:
    """Random, with logits near 0, so that scores differ by more than rounding."""
    detector = tiny.tiny_model(request.param, d_model=64, max_text_len=64)
    with torch.no_grad():
        detector.model.decoder.layer_norm.weight.mul_(0.1)
        detector.model.decoder.layer_norm.bias.mul_(0.1)
    return detector


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8))


def plain(model: Any, processor: Any, image: Any, labels: list[str], scoring: str = "mean", **options: Any) -> Any:
    """The model and the processor one after the other, best first."""
    inputs = processor(images=image, text=[labels])
    with torch.no_grad():
        outputs = model(**inputs)
    options |= {"target_sizes": [(image.height, image.width)], "text_labels": labels}
    if scoring == "mean":
        return processor.post_process_object_detection(outputs, **options)[0]
    found = processor.post_process_grounded_object_detection(outputs, **options)[0]
    order = found["scores"].argsort(descending=True, stable=True)
    names = [found["text_labels"][i] for i in order.tolist()]
    return {name: found[name][order] for name in ("scores", "boxes", "labels")} | {"text_labels": names}


def assert_same(found: Any, expected: Any) -> None:
    assert found["text_labels"] == expected["text_labels"]
    assert torch.equal(found["labels"], expected["labels"])
    torch.testing.assert_close(found["scores"], expected["scores"], atol=1e-5, rtol=0)
    torch.testing.assert_close(found["boxes"], expected["boxes"], atol=1e-2, rtol=0)


# --- cutting -----------------------------------------------------------------------------------------------------


def test_chunks_hold_whole_labels_in_order(processor: GroundingDinoProcessor) -> None:
    """10 tokens are 8 beside [CLS] and [SEP]: 2 + 3 + 3, then 2 + 2 + 3, where 2 more would be 9, then 2 + 2 + 3."""
    assert chunk_labels(LABELS, processor.tokenizer, 10) == [slice(0, 3), slice(3, 6), slice(6, 9)]


@pytest.mark.parametrize(("max_tokens", "max_labels"), [(256, None), (5, None), (None, 40), (31, 4), (None, None)])
def test_1203_names(processor: GroundingDinoProcessor, max_tokens: int | None, max_labels: int | None) -> None:
    """Each name in exactly one prompt, in order; no prompt over a limit, and each as full as it can be."""
    labels = [LABELS[(i * 7) % len(LABELS)] for i in range(1203)]
    chunks = chunk_labels(labels, processor.tokenizer, max_tokens, max_labels)
    assert [label for chunk in chunks for label in labels[chunk]] == labels
    lengths = [processor(text=[labels[chunk]])["input_ids"].shape[1] for chunk in chunks]
    assert max(lengths) <= (max_tokens or 10**6)
    assert max(chunk.stop - chunk.start for chunk in chunks) <= (max_labels or 10**6)
    for chunk, length in zip(chunks[:-1], lengths, strict=False):
        next_one = TOKENS[LABELS.index(labels[chunk.stop])]
        full = max_tokens is not None and length + next_one > max_tokens
        assert full or chunk.stop - chunk.start == max_labels
    if max_tokens is max_labels is None:
        assert len(chunks) == 1


def test_256_tokens_are_one_prompt_and_257_are_two(processor: GroundingDinoProcessor) -> None:
    """127 labels of 2 tokens and two ends are 256; with one label of 3 tokens among them they are 257."""
    assert len(chunk_labels(["cat"] * 127, processor.tokenizer)) == 1
    assert len(chunk_labels(["cat"] * 126 + ["red cat"], processor.tokenizer)) == 2


def test_bad_labels_are_named(processor: GroundingDinoProcessor) -> None:
    with pytest.raises(ValueError, match=r"Label 1 \('red dog'\) needs 5 tokens alone, more than 4"):
        chunk_labels(LABELS, processor.tokenizer, 4)
    with pytest.raises(ValueError, match="Label 1 is empty"):
        chunk_labels(["cat", " "], processor.tokenizer)
    with pytest.raises(ValueError, match="No labels"):
        chunk_labels([], processor.tokenizer)
    with pytest.raises(ValueError, match="list of labels, not one string"):
        chunk_labels("cat", processor.tokenizer)
    for limits in ({"max_tokens": 0}, {"max_labels": 0}):
        with pytest.raises(ValueError, match="=0: give 1 or more"):
            chunk_labels(LABELS, processor.tokenizer, **limits)


# --- detecting ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scoring", ["mean", "max"])
@pytest.mark.parametrize("chunk_tokens", [256, None])
def test_one_prompt_equals_model_and_processor(
    model: Any, processor: Any, scoring: Any, chunk_tokens: int | None
) -> None:
    image = picture(90, 70)
    (found,) = detect(
        model, processor, image, LABELS, threshold=0.05, top_k=None, scoring=scoring, chunking=Chunking(chunk_tokens)
    )
    options = {"top_k": None} if scoring == "mean" else {}
    assert_same(found, plain(model, processor, image, LABELS, scoring, threshold=0.05, **options))
    assert len(found["scores"]) > 5


def merged(model: Any, processor: Any, image: Any, chunks: list[slice], top_k: int, scoring: str) -> Any:
    """By hand: each prompt by a call of its own, then one ranking of all, with the labels counted on."""
    rows = []
    for chunk in chunks:
        options = {"top_k": None} if scoring == "mean" else {}
        found = plain(model, processor, image, LABELS[chunk], scoring, threshold=0.0, **options)
        numbers = (found["labels"] + chunk.start).tolist()
        rows += list(zip(found["scores"].tolist(), numbers, found["boxes"].tolist(), strict=True))
    rows = sorted(rows, key=lambda row: -row[0])[:top_k]
    scores, labels, boxes = zip(*rows, strict=True)
    names = [LABELS[label] for label in labels]
    return {"scores": torch.tensor(scores), "labels": torch.tensor(labels), "boxes": torch.tensor(boxes)} | {
        "text_labels": names
    }


@pytest.mark.parametrize("scoring", ["mean", "max"])
@pytest.mark.parametrize("chunk_batch", [1, 2, 8])
def test_prompts_share_backbone_and_ranking(model: Any, processor: Any, scoring: Any, chunk_batch: int) -> None:
    """Three prompts on two pictures of unequal sizes equal six calls ranked by hand; the backbone runs once each."""
    images = [picture(90, 70), picture(60, 80, seed=1)]
    runs: list[int] = []
    hook = model.model.backbone.register_forward_hook(lambda module, args, output: runs.append(len(args[0])))
    options: dict[str, Any] = {"chunking": Chunking(10, None, chunk_batch), "top_k": 25, "scoring": scoring}
    found = detect(model, processor, images, LABELS, **options)
    hook.remove()
    assert sum(runs) == 2
    chunks = chunk_labels(LABELS, processor.tokenizer, 10)
    for image, one in zip(images, found, strict=True):
        expected = merged(model, processor, image, chunks, 25, scoring)
        torch.testing.assert_close(one["scores"], expected["scores"], atol=1e-5, rtol=0)
        assert [LABELS[i] for i in one["labels"].tolist()] == one["text_labels"]
        # Equal scores come in no order of their own.
        assert sorted(one["labels"].tolist()) == sorted(expected["labels"].tolist())


def test_labels_by_number(model: Any, processor: Any) -> None:
    """`Chunking.labels` divides by labels, as the papers do, and equals dividing by the tokens they take."""
    image = picture(90, 70)
    # Of 2, 3, 3, 2, 2 and 3 tokens.
    by_number = detect(model, processor, image, LABELS[:6], chunking=Chunking(labels=3))[0]
    by_tokens = detect(model, processor, image, LABELS[:6], chunking=Chunking(10))[0]
    assert torch.equal(by_number["labels"], by_tokens["labels"])
    assert torch.equal(by_number["scores"], by_tokens["scores"])


@pytest.mark.parametrize("scoring", ["mean", "max"])
def test_each_prompt_keeps_its_own(model: Any, processor: Any, scoring: Any) -> None:
    """Nine labels in prompts of 3, of each the best 5: 15 by falling score, as three calls of one prompt give.

    In one ranking they are 5 in all.
    """
    image, options = picture(90, 70), {"top_k": 5, "scoring": scoring}
    chunks = [slice(0, 3), slice(3, 6), slice(6, 9)]
    (found,) = detect(model, processor, image, LABELS, chunking=Chunking(labels=3, each_ranked=True), **options)
    alone = [detect(model, processor, image, LABELS[chunk], **options)[0] for chunk in chunks]
    assert found["scores"].tolist() == sorted(found["scores"].tolist(), reverse=True)
    for chunk, one in zip(chunks, alone, strict=True):
        own = (found["labels"] >= chunk.start) & (found["labels"] < chunk.stop)
        assert own.sum() == 5
        torch.testing.assert_close(found["scores"][own], one["scores"], atol=1e-5, rtol=0)
        torch.testing.assert_close(found["boxes"][own], one["boxes"], atol=1e-2, rtol=0)
        assert torch.equal(found["labels"][own] - chunk.start, one["labels"])
    (ranked,) = detect(model, processor, image, LABELS, chunking=Chunking(labels=3), **options)
    torch.testing.assert_close(ranked["scores"], found["scores"][:5], atol=1e-5, rtol=0)


def test_duplicates_keep_their_numbers(model: Any, processor: Any) -> None:
    """One label twice, in two prompts: each finds the same, under its own number."""
    (found,) = detect(
        model, processor, picture(90, 70), ["cat", "dog", "cat", "dog"], chunking=Chunking(labels=2), top_k=None
    )
    first, second = found["labels"] < 2, found["labels"] >= 2
    assert first.sum() == second.sum() > 0
    torch.testing.assert_close(found["scores"][first], found["scores"][second], atol=1e-5, rtol=0)
    assert set(found["labels"].tolist()) == {0, 1, 2, 3}


def test_overlaps_are_dropped_after_the_ranking(model: Any, processor: Any) -> None:
    """Of one class no two boxes overlap; the same label under another number is another class; the best stays."""
    options: dict[str, Any] = {"chunking": Chunking(labels=1), "top_k": None}
    (every,) = detect(model, processor, picture(90, 70), ["cat", "cat"], **options)
    (found,) = detect(model, processor, picture(90, 70), ["cat", "cat"], nms_threshold=0.0, **options)
    assert 0 < len(found["scores"]) < len(every["scores"])
    assert found["scores"][0] == every["scores"][0]
    assert set(found["labels"].tolist()) == {0, 1}


def test_nothing_found_is_empty_of_the_right_kind(model: Any, processor: Any) -> None:
    for options in ({}, {"scoring": "max"}, {"nms_threshold": 0.5}, {"chunking": Chunking(labels=1)}):
        (found,) = detect(model, processor, picture(90, 70), ["cat", "dog"], threshold=1.1, **options)
        assert found["scores"].shape == (0,) and found["boxes"].shape == (0, 4)
        assert found["labels"].dtype == torch.int64 and found["labels"].shape == (0,)
        assert found["text_labels"] == []


def test_bad_batches_are_refused(model: Any, processor: Any) -> None:
    with pytest.raises(ValueError, match="batch=0"):
        detect(model, processor, picture(90, 70), ["cat"], chunking=Chunking(batch=0))
