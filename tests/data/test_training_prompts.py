"""What is asked for in training: all that is in the image, nothing of it twice, and within the tokens."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from hf_grounding_dino.data.records import DataError, Record
from hf_grounding_dino.data.shapes import CATEGORIES, VOCABULARY
from hf_grounding_dino.data.tokenizer import build_tokenizer
from hf_grounding_dino.data.training_prompts import PromptSampler, PromptSettings, TrainingPrompt
from hf_grounding_dino.processing.prompts import encode_labels

WORDS = ("cat", "dog", "bus", "car", "pen", "pencil", "monitor", "tv", "red", "light")
TOKENIZER = build_tokenizer([*VOCABULARY, *WORDS])
IMAGE = Image.new("RGB", (100, 100))

# Few words, so that labels often read alike, in other cases and behind slashes.
sides = st.lists(st.sampled_from(WORDS), min_size=1, max_size=3).map(" ".join)
names = st.one_of(sides, sides.map(str.upper), st.tuples(sides, sides).map("/".join), sides.map(lambda s: f" {s}. "))


@st.composite
def worlds(draw: st.DrawFn) -> tuple[list[str], Record, PromptSettings, int]:
    """Label names, an image with some of them, settings and a seed."""
    label_names = draw(st.lists(names, min_size=1, max_size=12))
    some = st.lists(st.integers(0, len(label_names) - 1), max_size=8)
    labels = draw(some)
    record = boxed(labels, crowd=draw(st.lists(st.booleans(), min_size=len(labels), max_size=len(labels))))
    absent = draw(st.none() | some.map(lambda found: tuple(i for i in set(found) if i not in labels)))
    record = replace(record, absent=absent, incomplete=tuple(draw(some)))
    prompt_settings = PromptSettings(
        negatives=draw(st.integers(0, 15)),
        full_share=draw(st.sampled_from([0.0, 0.5, 1.0])),
        max_tokens=draw(st.integers(10, 60)),
        shuffle=draw(st.booleans()),
    )
    return label_names, record, prompt_settings, draw(st.integers(0, 1000))


def boxed(labels: list[int], crowd: list[bool] | None = None) -> Record:
    """An image with a box for each label; box i starts at x = i."""
    boxes = torch.tensor([[i, 0, i + 5, 5] for i in range(len(labels))], dtype=torch.float32).reshape(-1, 4)
    return Record(
        image_id=7,
        image=IMAGE,
        boxes=boxes,
        labels=torch.tensor(labels, dtype=torch.int64),
        crowd=None if crowd is None else torch.tensor(crowd, dtype=torch.bool),
    )


def sample(label_names: list[str], record: Record, seed: int = 0, **options: object) -> TrainingPrompt:
    sampler = PromptSampler(label_names, TOKENIZER, PromptSettings(**options))
    return sampler(record, np.random.default_rng(seed))


def ways_to_say(name: str) -> set[str]:
    return {side.strip(" .").lower() for side in (name, *name.split("/"))}


def said(prompt: TrainingPrompt) -> list[str]:
    return [text.strip(" .").lower() for text in prompt.text]


def num_tokens(prompt: TrainingPrompt) -> int:
    return len(encode_labels(prompt.text, TOKENIZER).input_ids) - 2


def box_numbers(prompt: TrainingPrompt) -> list[int]:
    return [int(x) for x in prompt.boxes[:, 0].tolist()]


# --- laws of label prompts ---------------------------------------------------------------------------------------


@given(worlds())
@settings(max_examples=120, deadline=None)
def test_laws_of_every_prompt(world: tuple[list[str], Record, PromptSettings, int]) -> None:
    """It is never empty, keeps its budget, says nothing twice, and depends on the record and the random numbers alone.

    A box is missing only where it is a crowd, or where its label has no room beside the labels of the others. A label
    that no box has is not in the image: crowds and labels in `incomplete` are in it, and in a federated set only what
    is in `absent` is known not to be.
    """
    label_names, record, prompt_settings, seed = world
    sampler = PromptSampler(label_names, TOKENIZER, prompt_settings)
    sampler(record, np.random.default_rng(seed + 1))
    prompt = sampler(record, np.random.default_rng(seed))
    again = PromptSampler(label_names, TOKENIZER, prompt_settings)(record, np.random.default_rng(seed))
    roomy = PromptSampler(label_names, TOKENIZER, replace(prompt_settings, max_tokens=10_000))
    single = [i for i, crowd in enumerate(record.crowd.tolist()) if not crowd]
    assert box_numbers(roomy(record, np.random.default_rng(seed))) == single

    assert prompt.text == again.text and torch.equal(prompt.class_labels, again.class_labels)
    assert num_tokens(prompt) <= prompt_settings.max_tokens
    assert prompt.text and len(set(said(prompt))) == len(prompt.text), "no two labels of a prompt read alike"
    assert prompt.spans is None and prompt.class_labels.dtype == torch.int64

    kept, called = box_numbers(prompt), prompt.class_labels.tolist()
    for box, asked in zip(kept, called, strict=True):
        assert said(prompt)[asked] in ways_to_say(label_names[record.labels[box]])
    kept_labels = {int(record.labels[box]) for box in kept}
    assert set(kept) <= set(single)
    assert not [box for box in set(single) - set(kept) if int(record.labels[box]) in kept_labels]

    present = {*record.labels.tolist(), *record.incomplete}
    in_it = {way for label in present for way in ways_to_say(label_names[label])}
    everything = range(len(label_names)) if record.absent is None else record.absent
    may_be_drawn = {way for label in everything if label not in present for way in ways_to_say(label_names[label])}
    negatives = {text for place, text in enumerate(said(prompt)) if place not in called}
    if len(prompt.text) > 1 or called:
        assert not in_it & negatives and negatives <= may_be_drawn
        # Without a box, one label is asked for even where none is wanted.
        assert len(negatives) <= max(prompt_settings.negatives, not called)


# --- how many, and which -----------------------------------------------------------------------------------------


def test_how_many_are_drawn_which_and_where_they_stand() -> None:
    """Of 64 labels one is in the image. Of 4 negatives at most, 4 are drawn in 1/2 + 1/2 * 1/4 = 5/8 of the prompts.

    The others have 1, 2 or 3 in 1/8 each. Of 800 prompts that is 500 and 100, with a deviation of 14 and 10. Together
    they draw 800 * (4 * 5/8 + (1 + 2 + 3) / 8) = 2,600 labels, each of the 63 about 41 times.
    """
    sampler = PromptSampler(CATEGORIES, TOKENIZER, PromptSettings(negatives=4))
    prompts = [sampler(boxed([5]), np.random.default_rng(seed)) for seed in range(800)]
    counts = Counter(len(prompt.text) - 1 for prompt in prompts)
    assert set(counts) == {1, 2, 3, 4}
    assert abs(counts[4] - 500) < 56 and all(abs(counts[n] - 100) < 40 for n in (1, 2, 3))
    drawn = Counter(text for prompt in prompts for text in prompt.text if text != CATEGORIES[5])
    assert len(drawn) == 63 and max(drawn.values()) < 75
    assert {int(prompt.class_labels[0]) for prompt in prompts} == {0, 1, 2, 3, 4}
    ordered = sample(list(CATEGORIES), boxed([60, 3]), negatives=20, full_share=1.0, shuffle=False)
    assert len(ordered.text) == 22 and ordered.text == sorted(ordered.text, key=CATEGORIES.index)
    assert [ordered.text[i] for i in ordered.class_labels] == [CATEGORIES[60], CATEGORIES[3]]


def test_only_labels_that_were_looked_for_are_negatives_in_a_federated_set() -> None:
    """Looked for and not there: bus and car. The dog is there, not every one boxed; nobody looked for the pen."""
    record = replace(boxed([0]), absent=(2, 3), incomplete=(1,))
    prompt = sample(["cat", "dog", "bus", "car", "pen"], record, full_share=1.0)
    assert sorted(prompt.text) == ["bus", "car", "cat"]


def test_one_side_of_a_slash_is_drawn_each_time() -> None:
    """Of 200 prompts about half have "Monitor" and half "TV"; "w/o light" is no choice."""
    sampler = PromptSampler(["Monitor/TV", "w/o light"], TOKENIZER, PromptSettings(negatives=0))
    seen = Counter(text for seed in range(200) for text in sampler(boxed([0, 1]), np.random.default_rng(seed)).text)
    assert set(seen) == {"Monitor", "TV", "w/o light"}
    assert seen["w/o light"] == 200
    assert 70 < seen["TV"] < 130


def test_a_negative_that_may_name_what_is_there_is_not_drawn() -> None:
    """Whichever side "pen/pencil" shows, the label "PENCIL" could be true of it; "pencil/tv" can still be "tv"."""
    for seed in range(20):
        prompt = sample(["pen/pencil", "PENCIL", "pencil/tv"], boxed([0]), seed, full_share=1.0)
        positive = prompt.text[prompt.class_labels[0]]
        assert sorted(prompt.text) == sorted([positive, "tv"])


def test_labels_that_read_alike_share_one_place() -> None:
    prompt = sample(["cat", "Cat."], boxed([0, 1, 0]), full_share=1.0)
    assert len(prompt.text) == 1
    assert prompt.class_labels.tolist() == [0, 0, 0]


def test_boxes_go_only_with_the_label_that_exceeds_the_tokens() -> None:
    """Tokens: 3 of "red light", 2 of "cat" and of "dog". Of these 7 only 5 fit, so one label goes with its boxes."""
    labels = ["cat", "dog", "red light", "bus"]
    for seed in range(20):
        prompt = sample(labels, boxed([0, 0, 1, 2]), seed, max_tokens=5)
        assert num_tokens(prompt) in (4, 5)
        assert box_numbers(prompt) in ([0, 1, 2], [0, 1, 3], [2, 3])
        assert "bus" not in prompt.text or num_tokens(prompt) == 5


def test_a_full_prompt_has_at_most_256_tokens_with_the_special_ones() -> None:
    """Names of 3 tokens and a delimiter: 63 of the 85 fit in 254, with 252; the special tokens make it 254."""
    label_names = [f"{word} cat dog" for word in VOCABULARY if word.isalpha()]
    prompt = sample(label_names, boxed([]), full_share=1.0)
    assert len(label_names) > 85
    assert len(prompt.text) == 63
    assert len(encode_labels(prompt.text, TOKENIZER).input_ids) == 254


# --- images with nothing in them -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("label_names", "record", "options", "asked"),
    [
        (["cat", "dog"], boxed([]), {"full_share": 1.0}, [["cat", "dog"]]),
        (["cat", "CAT", "dog", "bus"], boxed([]), {"negatives": 3, "full_share": 1.0}, [["bus", "cat", "dog"]]),
        (["cat", "dog"], boxed([]), {"negatives": 0}, [["cat"], ["dog"]]),
        (["cat", "dog", "bus"], replace(boxed([0], crowd=[True]), absent=(), incomplete=(1,)), {}, [["bus"]]),
        (["cat"], boxed([0], crowd=[True]), {}, [["cat"]]),
    ],
)
def test_an_image_without_a_box_to_train_on_is_asked_for_something(
    label_names: list[str], record: Record, options: dict[str, float], asked: list[list[str]]
) -> None:
    """Of absent labels; else of one that is not known to be there; else, of a group of the only label, of that.

    Of four labels that read as three, three negatives are these three.
    """
    for seed in range(10):
        prompt = sample(label_names, record, seed, **options)
        assert sorted(said(prompt)) in asked
        assert prompt.boxes.shape == (0, 4) and prompt.class_labels.shape == (0,)


# --- closed sets -------------------------------------------------------------------------------------------------


def test_a_closed_set_asks_for_every_label_as_written_in_its_order() -> None:
    label_names = ["dog", "Monitor/TV", "cat", "dog"]
    record = boxed([3, 1, 0], crowd=[False, True, False])
    prompt = sample(label_names, record, all_labels=True)
    assert prompt.text == label_names
    assert prompt.class_labels.tolist() == [3, 0]
    assert box_numbers(prompt) == [0, 2]


def test_a_closed_set_that_does_not_fit_is_refused_at_once() -> None:
    with pytest.raises(DataError, match=r"64 labels .* 192 tokens .*max_tokens, 191"):
        PromptSampler(CATEGORIES, TOKENIZER, PromptSettings(all_labels=True, max_tokens=191))
    PromptSampler(CATEGORIES, TOKENIZER, PromptSettings(all_labels=True, max_tokens=192))


# --- captions ----------------------------------------------------------------------------------------------------


def test_a_caption_comes_back_with_its_own_characters_and_spans() -> None:
    """Two boxes of one phrase stay two; the crowd between them goes with its span."""
    caption = " Two red Cats and a bus"
    record = replace(
        boxed([0, 0, 0], crowd=[False, True, False]),
        labels=None,
        caption=caption,
        spans=(((5, 13),), ((18, 23),), ((5, 13), (1, 4))),
    )
    prompt = sample([], record)
    assert prompt.text == caption
    assert prompt.spans == [[(5, 13)], [(5, 13), (1, 4)]]
    assert box_numbers(prompt) == [0, 2] and prompt.class_labels is None
    nothing = sample([], replace(boxed([]), labels=None, caption="the third cat", spans=None))
    assert (nothing.text, nothing.spans, nothing.boxes.shape) == ("the third cat", [], (0, 4))


# --- bad input ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("label_names", "message"),
    [
        (["cat", " "], "Label 1 is empty"),
        (["cat", "..."], r"Label 1 \('\.\.\.'\) has no token"),
        (["cat", "cat " * 10], r"label 1 \('cat cat.*11 tokens, more than max_tokens, 10"),
    ],
)
def test_a_label_that_cannot_be_asked_for_is_named(label_names: list[str], message: str) -> None:
    with pytest.raises(DataError, match=message):
        PromptSampler(label_names, TOKENIZER, PromptSettings(max_tokens=10))


@pytest.mark.parametrize(
    ("record", "label_names", "message"),
    [
        (boxed([2]), ["cat", "dog"], "image 7 has a box with label 2; .* 0 to 1"),
        (boxed([0]), [], "image 7 has labels, but its set has no label names"),
        (replace(boxed([0]), labels=None), ["cat"], "image 7 has neither a caption nor labels"),
        (replace(boxed([0]), labels=None, caption="a cat"), ["cat"], "image 7 has 1 boxes and 0 lists of spans"),
        (replace(boxed([]), labels=None, caption=" "), ["cat"], "image 7 has an empty caption"),
    ],
)
def test_a_record_that_does_not_fit_its_set_is_named(record: Record, label_names: list[str], message: str) -> None:
    with pytest.raises(DataError, match=message):
        sample(label_names, record)


@pytest.mark.parametrize("options", [{"negatives": -1}, {"full_share": 1.5}, {"max_tokens": 1}])
def test_settings_that_cannot_be_drawn_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        PromptSettings(**options)
