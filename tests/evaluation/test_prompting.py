"""Prompting gives what the model and the processor give to each image alone, in the papers' manner."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.ops import box_convert

import tiny
from hf_grounding_dino import GroundingDinoImageProcessor, GroundingDinoProcessor
from hf_grounding_dino.data.tokenizer import build_tokenizer
from hf_grounding_dino.evaluation.benchmarks import ClassPrompt
from hf_grounding_dino.evaluation.metrics.base import ScoredBoxes
from hf_grounding_dino.evaluation.prompting import (
    CaptionPrompting,
    ExpressionPrompting,
    LabelInPhrasePrompting,
    LabelPrompting,
    Prompting,
)
from hf_grounding_dino.evaluation.tasks import Sample
from hf_grounding_dino.inference.large_vocabulary import Chunking, detect
from hf_grounding_dino.inference.predictions import scored_boxes
from hf_grounding_dino.inference.predictor import Predictor, Request

WORDS = ("cat", "dog", "red", "blue", "remote", "control", "tree", "house")
LABELS = {40: "cat", 3: "red dog", 7: "cat", 8: "tree", 1: "blue house"}
SPANS = (((0, 7),), ((12, 16), (20, 25)), ((0, 7), (12, 16)))
CAPTION = "Red dog and tree or house"


@pytest.fixture(scope="module")
def processor() -> GroundingDinoProcessor:
    size = {"shortest_edge": 64, "longest_edge": 96}
    return GroundingDinoProcessor(GroundingDinoImageProcessor(size=size), build_tokenizer((*WORDS, "and", "or")))


@pytest.fixture(scope="module")
def model() -> Any:
    detector = tiny.tiny_model("mm-grounding-dino", d_model=64, max_text_len=64)
    with torch.no_grad():
        detector.model.decoder.layer_norm.weight.mul_(0.1)
        detector.model.decoder.layer_norm.bias.mul_(0.1)
    return detector


def image_of(width: int, height: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8))


IMAGES = [image_of(90, 70), image_of(60, 80, 1), image_of(90, 60, 2)]


def samples(texts: Any = ("", "", ""), spans: Any = ()) -> list[Sample]:
    return [Sample(i, b"", {"image_id": i}, text, spans) for i, text in enumerate(texts)]


def ask(prompting: Prompting, model: Any, processor: Any, images: Any, asked: list[Sample]) -> list[ScoredBoxes]:
    """What is found in each image; all of them in one batch."""
    requests = [Request(one, image, prompting.prompt(one)) for one, image in zip(asked, images, strict=True)]
    found = Predictor(model, processor, batch_size=len(images)).run(requests, in_order=True)
    return [scored_boxes(one.found, prompting.category_ids(one.request.id)) for one in found]


def outputs(model: Any, processor: Any, image: Image.Image, text: Any) -> tuple[Any, Any, Any]:
    """The processor's inputs, probabilities (Q, T) and boxes (Q, 4) in pixels."""
    inputs = processor(images=image, text=text)
    with torch.no_grad():
        found = model(**inputs)
    scale = torch.tensor([image.width, image.height] * 2)
    return inputs, found.logits[0].sigmoid(), box_convert(found.pred_boxes[0], "cxcywh", "xyxy").clamp(0, 1) * scale


def assert_close(found: ScoredBoxes, expected: ScoredBoxes) -> None:
    assert found.boxes.dtype == found.scores.dtype == np.float32 and found.labels.dtype == np.int64
    assert all(isinstance(column, np.ndarray) for column in found)
    np.testing.assert_allclose(found.scores, expected.scores, atol=1e-5)
    assert found.labels.tolist() == expected.labels.tolist()
    np.testing.assert_allclose(found.boxes, expected.boxes, atol=1e-2)


def best_pairs(scores_QP: Any, boxes_Q4: Any, numbers: Any, top_k: int) -> ScoredBoxes:
    """By hand: all pairs of query and phrase, sorted, cut."""
    pairs = [(-float(s), q, p) for q, row in enumerate(scores_QP.tolist()) for p, s in enumerate(row)]
    pairs = sorted(pairs)[:top_k]
    boxes = np.array([boxes_Q4[q].tolist() for _, q, _ in pairs])
    return ScoredBoxes(boxes, np.array([-s for s, _, _ in pairs]), np.array([numbers[p] for _, _, p in pairs]))


PROMPTINGS: list[tuple[Prompting, list[Sample]]] = [
    (LabelPrompting(labels=LABELS), samples()),
    (LabelPrompting(labels=LABELS, chunk_size=2, top_k=7, each_ranked=True), samples()),
    (LabelPrompting(labels=LABELS, asked={0: (7, 1), 1: (), 2: (7, 1)}, top_k=9), samples()),
    (
        LabelInPhrasePrompting(prompts={5: ClassPrompt("red ", "dog", " and tree"), 2: ClassPrompt("", "cat", "")}),
        samples(),
    ),
    (CaptionPrompting(top_k=25), samples((CAPTION, "A cat. A dog?", "tree"), (((0, 3),),))),
    (ExpressionPrompting(top_k=4), samples((CAPTION, "red tree.", "dog"))),
]


@pytest.mark.parametrize(("prompting", "asked"), PROMPTINGS, ids=lambda value: type(value).__name__)
def test_a_batch_equals_its_parts(model: Any, processor: Any, prompting: Prompting, asked: list[Sample]) -> None:
    """Three pictures of unequal sizes, where the asker has them with three sentences."""
    together = ask(prompting, model, processor, IMAGES, asked)
    assert sum(len(answer.scores) for answer in together) > 8
    for image, case, answer in zip(IMAGES, asked, together, strict=True):
        (alone,) = ask(prompting, model, processor, [image], [case])
        np.testing.assert_allclose(np.sort(answer.scores), np.sort(alone.scores), atol=1e-5)
        assert sorted(answer.labels.tolist()) == sorted(alone.labels.tolist())
        assert (np.diff(answer.scores) <= 0).all()


@pytest.mark.parametrize(
    "prompting", [prompting for prompting, _ in PROMPTINGS], ids=lambda value: type(value).__name__
)
def test_the_protocol_is_json(prompting: Prompting) -> None:
    assert json.loads(json.dumps(prompting.protocol)) == prompting.protocol


def test_the_protocol_tells_promptings_apart() -> None:
    """Another prompt, order, chunk or sample: another protocol."""
    plain = LabelPrompting(labels=LABELS)
    others = [
        LabelPrompting(labels=LABELS | {1: "house"}),
        LabelPrompting(labels=LABELS, chunk_size=2),
        LabelPrompting(labels=LABELS, top_k=10),
        LabelPrompting(labels=LABELS, each_ranked=True),
        LabelPrompting(labels=LABELS, asked={0: (7,)}),
        LabelPrompting(labels=LABELS, asked={0: (8,)}),
    ]
    assert len({json.dumps(prompting.protocol) for prompting in [plain, *others]}) == 7


def test_labels_are_category_ids(model: Any, processor: Any) -> None:
    """Of names given twice each answers under its own id, with equal scores."""
    (answer, _, _) = ask(LabelPrompting(labels=LABELS, top_k=1000), model, processor, IMAGES, samples())
    (found,) = detect(model, processor, IMAGES[0], list(LABELS.values()), top_k=1000)
    ids = np.array(list(LABELS))
    expected = ScoredBoxes(found["boxes"].numpy(), found["scores"].numpy(), ids[found["labels"].numpy()])
    assert len(answer.scores) == 20 * 5
    np.testing.assert_allclose(answer.scores, expected.scores, atol=1e-5)
    one, other = (np.sort(answer.scores[answer.labels == number]) for number in (40, 7))
    np.testing.assert_allclose(one, other, atol=1e-5)
    assert set(answer.labels.tolist()) == set(LABELS)


def test_the_lvis_protocol(model: Any, processor: Any) -> None:
    """Chunks of 2 of 5 labels, the best 7 of each: 21 boxes, as three calls give them."""
    prompting = LabelPrompting(labels=LABELS, chunk_size=2, top_k=7, each_ranked=True)
    (answer,) = ask(prompting, model, processor, IMAGES[:1], samples()[:1])
    assert len(answer.scores) == 21
    ids, names = list(LABELS), list(LABELS.values())
    for start in (0, 2, 4):
        part = names[start : start + 2]
        (found,) = detect(model, processor, IMAGES[0], part, top_k=7, chunking=Chunking(None))
        own = np.isin(answer.labels, ids[start : start + 2])
        np.testing.assert_allclose(answer.scores[own], found["scores"].numpy(), atol=1e-5)


def test_what_has_no_name_is_not_asked(model: Any, processor: Any) -> None:
    """ChessPieces has a class with a blank name: the others answer as if it were not there."""
    with_blank = ask(LabelPrompting(labels={0: " ", **LABELS}, top_k=20), model, processor, IMAGES[:1], samples()[:1])
    without = ask(LabelPrompting(labels=LABELS, top_k=20), model, processor, IMAGES[:1], samples()[:1])
    assert_close(with_blank[0], without[0])
    prompts = {number: ClassPrompt("", name, "") for number, name in LABELS.items()}
    phrased = LabelInPhrasePrompting(prompts={0: ClassPrompt("", "", ""), **prompts}, top_k=20)
    np.testing.assert_allclose(
        ask(phrased, model, processor, IMAGES[:1], samples()[:1])[0].scores, without[0].scores, atol=1e-5
    )
    with pytest.raises(ValueError, match="no label has a name"):
        LabelInPhrasePrompting(prompts={0: ClassPrompt("", " ", "")})


def test_only_the_name_scores(model: Any, processor: Any) -> None:
    """Tokens 1 to 6 are red dog and tree . cat: "dog" is token 2, "cat" token 6."""
    prompts = {5: ClassPrompt("red ", "dog", " and tree"), 2: ClassPrompt("", "cat", "")}
    _, probabilities, boxes = outputs(model, processor, IMAGES[0], "red dog and tree. cat.")
    expected = best_pairs(probabilities[:, [2, 6]], boxes, [5, 2], 15)
    (answer,) = ask(LabelInPhrasePrompting(prompts=prompts, top_k=15), model, processor, IMAGES[:1], samples()[:1])
    assert_close(answer, expected)


def test_phrases_score_as_the_mean_of_their_tokens(model: Any, processor: Any) -> None:
    """Tokens 1 to 6 are red dog and tree or house; the phrases are 1 2, then 4 and 6, then 1 2 4; one ranking."""
    _, probabilities, boxes = outputs(model, processor, IMAGES[0], CAPTION)
    scores = torch.stack([probabilities[:, own].mean(1) for own in ([1, 2], [4, 6], [1, 2, 4])], 1)
    (answer,) = ask(CaptionPrompting(top_k=25), model, processor, IMAGES[:1], samples((CAPTION,), SPANS))
    assert_close(answer, best_pairs(scores, boxes, [0, 1, 2], 25))


def test_a_phrase_without_a_token_comes_last(model: Any, processor: Any) -> None:
    """The blank between two words has no token: its 20 pairs score 0."""
    (answer,) = ask(
        CaptionPrompting(top_k=40), model, processor, IMAGES[:1], samples((CAPTION,), (((3, 4),), ((0, 3),)))
    )
    assert answer.labels.tolist() == [1] * 20 + [0] * 20
    assert not answer.scores[20:].any() and answer.scores[:20].all()


def test_the_best_token_of_an_expression(model: Any, processor: Any) -> None:
    _, probabilities, boxes = outputs(model, processor, IMAGES[0], CAPTION)
    (answer,) = ask(ExpressionPrompting(top_k=4), model, processor, IMAGES[:1], samples((CAPTION,)))
    assert_close(answer, best_pairs(probabilities.amax(1, keepdim=True), boxes, [0], 4))
