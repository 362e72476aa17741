"""Law 16 at length: whatever the labels hold, and however many there are, a result is the caller's string and index.

500 lists here; `HF_GROUNDING_DINO_LABEL_LISTS=10000` checks as many as it says.
"""

from __future__ import annotations

import os
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from PIL import Image

from hf_grounding_dino import GroundingDinoImageProcessor, GroundingDinoPipeline, GroundingDinoProcessor
from hf_grounding_dino.data.tokenizer import build_tokenizer
from hf_grounding_dino.inference.large_vocabulary import chunk_labels
from label_texts import is_label
from tiny import tiny_model

LISTS = int(os.environ.get("HF_GROUNDING_DINO_LABEL_LISTS", "500"))
THROUGH_THE_MODEL = max(LISTS // 20, 24)
QUERIES = 6
TOKENIZER = build_tokenizer(["cat", "dog", "remote", "control", "container", "number", "the", "red", "bus", "a"])
PROCESSOR = GroundingDinoProcessor(
    GroundingDinoImageProcessor(size={"shortest_edge": 80, "longest_edge": 133}), TOKENIZER
)

quickly: Any = settings(
    deadline=None,
    database=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)

# --- lists of labels ---------------------------------------------------------------------------------------------


accepted = partial(is_label, TOKENIZER)

WORDS = (
    *("cat", "Cat", "CAT", "cats", "cat.", "a cat?", "U.S.A.", "who? me", "Éclair", "red  bus", "a, b", "#1", "straße"),
    *("container", "containernumber", "container number", "number", "[SEP]", "[CLS] cat", "##er", "İstanbul bus"),
    *("日本 cat", "Ω dog", "🐈 cat", "cat\tdog", "don't", "e\u0301 bus", ".cat", "cat . dog", "?!x", "1.5 V", "a.b.c"),
)
word = st.sampled_from(WORDS)
noise = st.text(min_size=1, max_size=6)
label = st.one_of(word, st.builds("{} {}".format, word, noise), st.builds("{}{}".format, noise, word), noise)
few = st.lists(label.filter(accepted), min_size=1, max_size=12)


def pieces_of(text: str) -> list[str]:
    """Its beginnings, each a substring of the next."""
    return [text[:end] for end in range(1, len(text) + 1) if accepted(text[:end])]


def many(words: list[str], count: int) -> list[str]:
    """As many labels as asked for, in turns numbered, upper case, closed by a dot, and the same again."""
    forms = ("{} {}", "{1} {0}", "{}.{}", "{}, {}", "{}? {}")
    labels = [forms[i % 5].format(words[i % len(words)], i % 97) for i in range(count)]
    return [name.upper() if i % 7 == 0 else name for i, name in enumerate(labels)]


sizes = st.one_of(st.integers(1, 40), st.integers(1, 40), st.integers(1, 300), st.sampled_from([999, 2000]))
substrings = st.builds(pieces_of, st.builds("{}{}".format, word, word)).filter(bool)
repeated = st.builds(lambda names, times: names * times, few, st.integers(2, 5))
label_lists = st.one_of(few, few, repeated, substrings, st.builds(many, few, sizes))

# --- the law -----------------------------------------------------------------------------------------------------


def random_outputs(input_ids: torch.Tensor, seed: int) -> Any:
    generator = torch.Generator().manual_seed(seed)
    batch, length = input_ids.shape
    logits = 3 * torch.randn(batch, QUERIES, length, generator=generator)
    boxes = torch.rand(batch, QUERIES, 4, generator=generator)
    return SimpleNamespace(logits=logits, pred_boxes=boxes, input_ids=input_ids)


def assert_the_callers(result: dict[str, Any], labels: list[str]) -> None:
    indices = result["labels"].tolist()
    assert all(0 <= index < len(labels) for index in indices)
    assert [labels[index] for index in indices] == result["text_labels"]
    assert len(result["scores"]) == len(result["boxes"]) == len(indices)


@settings(quickly, max_examples=LISTS)
@given(label_lists, st.integers(0, 2**31), st.booleans())
def test_post_processing(labels: list[str], seed: int, named: bool) -> None:
    """All queries pass a threshold of 0; that its phrase is the best is computed anew, token by token."""
    ids = PROCESSOR(text=[labels])["input_ids"]
    outputs = random_outputs(ids, seed)
    names = [labels] if named else None
    (grounded,) = PROCESSOR.post_process_grounded_object_detection(outputs, threshold=0.0, text_labels=names)
    (ranked,) = PROCESSOR.post_process_object_detection(outputs, names, top_k=20)
    for result in (grounded, ranked):
        assert_the_callers(result, labels)
    assert len(grounded["scores"]) == QUERIES and len(ranked["scores"]) == min(20, QUERIES * len(labels))
    number, owner = 0, []
    for token in ids[0, 1:-1].tolist():
        owner.append(number if token != 1012 else -1)
        number += token == 1012
    assert number == len(labels)
    scores = outputs.logits[0, :, 1:-1].masked_fill(torch.tensor(owner) < 0, -torch.inf).sigmoid()
    of_label = scores.masked_fill(torch.tensor(owner) != grounded["labels"][:, None], -torch.inf).amax(1)
    torch.testing.assert_close(of_label, scores.amax(1), atol=1e-6, rtol=0)
    torch.testing.assert_close(of_label, grounded["scores"], atol=1e-6, rtol=0)


@pytest.fixture(scope="module")
def pipe() -> GroundingDinoPipeline:
    sizes = {"num_queries": QUERIES, "encoder_layers": 1, "decoder_layers": 1}
    return GroundingDinoPipeline(tiny_model(**sizes), PROCESSOR, device="cpu")


def test_pipeline(pipe: GroundingDinoPipeline) -> None:
    """Through the model: every label is one of the caller's, and long lists are cut between labels alone."""
    picture = Image.new("RGB", (40, 32), (200, 30, 60))

    @settings(quickly, max_examples=THROUGH_THE_MODEL)
    @given(st.one_of(few, repeated, substrings, st.builds(many, few, st.integers(1, 60))))
    def check(labels: list[str]) -> None:
        found = pipe(picture, candidate_labels=labels, threshold=0.0, chunk_tokens=60)
        prompts = chunk_labels(labels, TOKENIZER, 60)
        assert len(found) == QUERIES * len(prompts)
        assert {one["label"] for one in found} <= set(labels)

    check()


def test_pipeline_with_2000_labels(pipe: GroundingDinoPipeline) -> None:
    """The label of a detection is found by number: all 2,000 are different, and each is the caller's own string."""
    labels = [f"{WORDS[i % len(WORDS)]} {i}" for i in range(2000)]
    found = pipe(Image.new("RGB", (32, 32)), candidate_labels=labels, threshold=0.0, chunk_batch=16)
    assert {one["label"] for one in found} <= set(labels)
    assert len(found) == QUERIES * len(chunk_labels(labels, TOKENIZER))
