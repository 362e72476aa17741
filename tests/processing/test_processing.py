"""Laws of the processor: one prompt and one image in, the caller's own words and boxes in the image out."""

from __future__ import annotations

import copy
import json
import logging
import pickle
import warnings
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor
from transformers import AutoProcessor

from hf_grounding_dino.data.tokenizer import build_tokenizer
from hf_grounding_dino.models.detector import GroundingDinoObjectDetectionOutput
from hf_grounding_dino.processing.image_processing_grounding_dino import GroundingDinoImageProcessor
from hf_grounding_dino.processing.processing_grounding_dino import GroundingDinoProcessor
from hf_grounding_dino.processing.prompts import encode_labels, kept_prompts
from hf_grounding_dino.utils.printable import warn_once
from label_texts import is_label

TOKENIZER = build_tokenizer(["cat", "dog", "remote", "control", "container", "the", "red", "bus", "a"])
SIZE = {"shortest_edge": 32, "longest_edge": 53}
IMAGE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8))


def make_processor() -> GroundingDinoProcessor:
    return GroundingDinoProcessor(GroundingDinoImageProcessor(size=SIZE), TOKENIZER)


@pytest.fixture
def processor() -> GroundingDinoProcessor:
    return make_processor()


def random_outputs(input_ids: Tensor, queries: int = 12, seed: int = 0, width: int | None = None) -> SimpleNamespace:
    """Outputs as of the model: -inf where the prompt is padded, and past its length."""
    generator = torch.Generator().manual_seed(seed)
    batch, length = input_ids.shape
    logits = torch.full((batch, queries, width or length + 5), -torch.inf)
    noise = 2 * torch.randn(batch, queries, length, generator=generator)
    logits[..., :length] = noise.masked_fill((input_ids == 0)[:, None], -torch.inf)
    boxes = torch.rand(batch, queries, 4, generator=generator)
    return SimpleNamespace(logits=logits, pred_boxes=boxes, input_ids=input_ids)


def outputs_by_hand(input_ids: Tensor, scores: list[dict[str, float]]) -> SimpleNamespace:
    """One image, one query for each dict, which gives the probability of tokens by name; 0.01 for all others."""
    tokens = TOKENIZER.convert_ids_to_tokens(input_ids[0].tolist())
    probabilities = torch.tensor([[[query.get(token, 0.01) for token in tokens] for query in scores]])
    boxes = torch.tensor([[[0.5, 0.5, 0.2, 0.2 + 0.01 * i] for i in range(len(scores))]])
    return SimpleNamespace(logits=probabilities.logit(), pred_boxes=boxes, input_ids=input_ids)


# --- inputs ------------------------------------------------------------------------------------------------------


def test_a_call_pads_and_gives_what_the_model_takes(processor: GroundingDinoProcessor) -> None:
    inputs = processor(images=[IMAGE, IMAGE], text=[["Cat"], ["remote control", "dog"]])
    assert list(inputs) == ["input_ids", "token_type_ids", "attention_mask", "pixel_mask", "pixel_values"]
    assert inputs["input_ids"].shape == (2, 7)
    assert inputs["attention_mask"].sum(1).tolist() == [4, 7]
    assert not inputs["token_type_ids"].any()
    assert inputs["pixel_values"].shape == (2, 3, 32, 48)


def test_one_prompt_serves_all_images(processor: GroundingDinoProcessor) -> None:
    for text in (["cat", "dog"], "cat. dog", [["cat", "dog"]]):
        ids = processor([IMAGE] * 3, text)["input_ids"]
        assert ids.tolist() == [list(encode_labels(["cat", "dog"], TOKENIZER).input_ids)] * 3


def test_text_alone_images_alone_and_neither(processor: GroundingDinoProcessor) -> None:
    assert processor(text="a cat")["input_ids"].shape == (1, 5)
    assert list(processor(images=IMAGE)) == ["pixel_mask", "pixel_values"]
    with pytest.raises(ValueError, match="images, text or both"):
        processor()
    with pytest.raises(ValueError, match="need the images"):
        processor(text="cat", annotations=[])
    with pytest.raises(ValueError, match="2 prompts for 3 images"):
        processor([IMAGE] * 3, [["cat"], ["dog"]])


def test_options_flat_and_nested(processor: GroundingDinoProcessor) -> None:
    flat = processor(IMAGE, "cat", padding="max_length", max_length=12, size={"height": 20, "width": 30})
    nested = processor(
        IMAGE,
        "cat",
        text_kwargs={"padding": "max_length", "max_length": 12},
        images_kwargs={"size": {"height": 20, "width": 30}},
    )
    for inputs in (flat, nested):
        assert inputs["input_ids"].shape == (1, 12)
        assert inputs["pixel_values"].shape == (1, 3, 20, 30)
    assert processor(text="cat", pad_to_multiple_of=8)["input_ids"].shape == (1, 8)
    assert processor(IMAGE, resize_rule="original")["pixel_values"].shape[-2:] == (32, 48)
    lists = processor(IMAGE, "cat", return_tensors=None)["input_ids"]
    assert lists == [list(encode_labels(["cat"], TOKENIZER).input_ids)]
    assert isinstance(processor(IMAGE, "cat", return_tensors="np")["input_ids"], np.ndarray)
    with pytest.raises(ValueError, match="return_offsets_mapping"):
        processor(text="cat", return_offsets_mapping=True)


def test_truncation_drops_whole_phrases(processor: GroundingDinoProcessor) -> None:
    inputs = processor(text=["cat", "remote control", "dog"], truncation=True, max_length=8)
    assert inputs["input_ids"].tolist() == [list(encode_labels(["cat", "remote control"], TOKENIZER).input_ids)]
    results = processor.post_process_object_detection(random_outputs(inputs["input_ids"]))
    assert set(results[0]["text_labels"]) == {"cat", "remote control"}
    assert processor(text=["cat"] * 300, truncation=True)["input_ids"].shape[1] <= 512
    with pytest.raises(ValueError, match="'remote control' alone"):
        processor(text=["remote control"], truncation=True, max_length=4)


def test_annotations_become_labels(processor: GroundingDinoProcessor) -> None:
    target = {"image_id": 7, "annotations": [{"bbox": [0, 0, 30, 20], "area": 600.0, "category_id": 1, "iscrowd": 0}]}
    labels = processor([IMAGE, IMAGE.resize((40, 80))], ["cat", "dog"], annotations=[target, target])["labels"]
    torch.testing.assert_close(labels[0]["boxes"], torch.tensor([[0.25, 0.25, 0.5, 0.5]]))
    assert labels[0]["class_labels"].tolist() == [1]


# --- labels ------------------------------------------------------------------------------------------------------


accepted = partial(is_label, TOKENIZER)

words = st.sampled_from(["cat", "Cat", "container", "containernumber", "U.S.A.", "who?", "a, b", "Éclair", "red  bus"])
one_label = st.one_of(words, st.builds("{} {}".format, words, st.text(max_size=4)), st.text(min_size=1, max_size=8))
label_lists = st.lists(one_label.filter(accepted), min_size=1, max_size=6)


@settings(max_examples=30, deadline=None)
@given(
    st.lists(label_lists, min_size=1, max_size=3), st.integers(0, 9999), st.floats(0, 1), st.floats(0, 1), st.booleans()
)
def test_every_label_is_the_callers_own(
    prompts: list[list[str]], seed: int, one: float, other: float, pass_labels: bool
) -> None:
    processor = make_processor()
    outputs = random_outputs(processor(text=prompts)["input_ids"], seed=seed)
    given_labels = prompts if pass_labels else None
    low, high = (
        processor.post_process_grounded_object_detection(outputs, threshold=threshold, text_labels=given_labels)
        for threshold in sorted((one, other))
    )
    ranked = processor.post_process_object_detection(outputs, given_labels, top_k=None)
    for labels, less, more, every in zip(prompts, high, low, ranked, strict=True):
        for result in (less, more, every):
            assert result["text_labels"] == [labels[i] for i in result["labels"].tolist()]
            assert len(result["text_labels"]) == len(result["scores"]) == len(result["boxes"])
        kept = more["scores"] > max(one, other)
        for name in ("scores", "boxes", "labels"):
            assert torch.equal(more[name][kept], less[name])
        assert len(every["scores"]) == 12 * len(labels)
        assert torch.equal(every["scores"], every["scores"].sort(descending=True).values)


@settings(max_examples=25, deadline=None)
@given(label_lists, one_label.filter(accepted), st.integers(0, 9999))
def test_another_class_changes_no_score(labels: list[str], added: str, seed: int) -> None:
    processor = make_processor()
    more_ids = processor(text=[[*labels, added]])["input_ids"]
    ids = processor(text=[labels])["input_ids"]
    more = random_outputs(more_ids, seed=seed)
    less = SimpleNamespace(logits=more.logits[..., : ids.shape[1]], pred_boxes=more.pred_boxes, input_ids=ids)
    (few,) = processor.post_process_object_detection(less, top_k=None)
    (many,) = processor.post_process_object_detection(more, top_k=None)
    for i in range(len(labels)):
        one, other = (result["scores"][result["labels"] == i] for result in (few, many))
        torch.testing.assert_close(one, other, atol=1e-6, rtol=0)


def test_scores_by_hand(processor: GroundingDinoProcessor) -> None:
    """The best token of the best phrase for the demonstrations, the mean of the tokens for the benchmarks."""
    ids = processor(text=["Cat", "remote CONTROL"])["input_ids"]
    outputs = outputs_by_hand(
        ids, [{"cat": 0.5, "remote": 0.6, "control": 0.2, ".": 0.99}, {"cat": 0.3, "[CLS]": 0.99}]
    )
    (result,) = processor.post_process_grounded_object_detection(outputs, threshold=0.2)
    torch.testing.assert_close(result["scores"], torch.tensor([0.6, 0.3]))
    assert result["text_labels"] == ["remote CONTROL", "Cat"]
    assert result["labels"].tolist() == [1, 0]
    (result,) = processor.post_process_object_detection(outputs)
    torch.testing.assert_close(result["scores"], torch.tensor([0.5, 0.4, 0.3, 0.01]))
    assert result["text_labels"] == ["Cat", "remote CONTROL", "Cat", "remote CONTROL"]
    (result,) = processor.post_process_object_detection(outputs, top_k=3, one_label_per_box=True)
    assert result["labels"].tolist() == [0, 0]
    (result,) = processor.post_process_object_detection(outputs, top_k=2, threshold=0.45)
    assert result["labels"].tolist() == [0]
    (result,) = processor.post_process_referring(outputs, top_k=2)
    torch.testing.assert_close(result["scores"], torch.tensor([0.99, 0.99]))


def test_no_threshold_is_itself_let_through(processor: GroundingDinoProcessor) -> None:
    """One rule, that of transformers, for demonstrations and benchmarks: what scores above the threshold is kept."""
    ids = processor(text=["cat"])["input_ids"]
    outputs = SimpleNamespace(logits=torch.zeros(1, 1, 4), pred_boxes=torch.zeros(1, 1, 4), input_ids=ids)
    assert len(processor.post_process_grounded_object_detection(outputs, threshold=0.5)[0]["scores"]) == 0
    assert len(processor.post_process_object_detection(outputs, threshold=0.5)[0]["scores"]) == 0
    for post_process in (processor.post_process_grounded_object_detection, processor.post_process_object_detection):
        assert len(post_process(outputs, threshold=0.499)[0]["scores"]) == 1
    outputs.logits -= 80  # a score of 2e-35: all that is not 0 is kept where nothing is said
    assert len(processor.post_process_object_detection(outputs)[0]["scores"]) == 1


def test_prompts_that_differ_in_spelling_alone_keep_their_own(processor: GroundingDinoProcessor) -> None:
    """Law 16: within a batch, and where both are read after both were made."""
    spellings = (["Cat", "remote control"], ["cat", "Remote Control"], "cat. remote control.")
    outputs = [random_outputs(processor(IMAGE, text)["input_ids"]) for text in spellings]
    found = [processor.post_process_grounded_object_detection(one, threshold=0)[0]["text_labels"] for one in outputs]
    assert [set(labels) for labels in found[:2]] == [set(labels) for labels in spellings[:2]]
    assert set(" ".join(found[2]).split()) <= {"cat", "remote", "control"}
    outputs = random_outputs(processor(text=[["Cat"], ["cat."], ["CAT"]])["input_ids"])
    results = processor.post_process_grounded_object_detection(outputs, threshold=0)
    assert [set(result["text_labels"]) for result in results] == [{"Cat"}, {"cat."}, {"CAT"}]


def test_given_labels_are_used_word_for_word(processor: GroundingDinoProcessor) -> None:
    outputs = random_outputs(processor(text="cat. dog.")["input_ids"])
    for text_labels in (["Felix", "Rex."], [["Felix", "Rex."]]):
        for result in (
            processor.post_process_grounded_object_detection(outputs, threshold=0, text_labels=text_labels)[0],
            processor.post_process_object_detection(outputs, text_labels)[0],
        ):
            assert set(result["text_labels"]) == {"Felix", "Rex."}


def test_labels_of_a_caption_are_its_words(processor: GroundingDinoProcessor) -> None:
    ids = processor(text="The red Zebra near a bus. a CAT")["input_ids"]
    outputs = outputs_by_hand(
        ids,
        [
            {"##b": 0.6},
            {"the": 0.4, "red": 0.5, "bus": 0.5},
            {"bus": 0.4, "cat": 0.6},
            {"the": 0.31, "a": 0.32},
            {"cat": 0.26},
        ],
    )
    (result,) = processor.post_process_grounded_object_detection(outputs, threshold=0.25, text_threshold=0.35)
    assert result["text_labels"] == ["Zebra", "The red bus", "CAT", "The red Zebra near a bus", "a CAT"]
    assert result["labels"].tolist() == [0, 0, 1, 0, 1]


@settings(max_examples=25, deadline=None)
@given(st.text(max_size=30), st.integers(0, 9999), st.floats(0, 1))
def test_labels_of_a_caption_are_never_empty_nor_fragments(noise: str, seed: int, text_threshold: float) -> None:
    caption = f"a zebra {noise} bus. CAT-like {noise}"
    assume(accepted(caption))
    processor = make_processor()
    outputs = random_outputs(processor(text=caption)["input_ids"], seed=seed)
    (result,) = processor.post_process_grounded_object_detection(outputs, threshold=0, text_threshold=text_threshold)
    assert len(result["text_labels"]) == 12
    for label in result["text_labels"]:
        assert label.strip()
        assert all(piece in caption for piece in label.split())


# --- boxes -------------------------------------------------------------------------------------------------------


def test_boxes_are_clipped_and_in_pixels_of_their_image(processor: GroundingDinoProcessor) -> None:
    ids = processor(text=[["cat"], ["cat"]])["input_ids"]
    boxes = torch.tensor([[[0.5, 0.5, 0.5, 0.5], [0.9, 0.1, 0.4, 0.4]]]).repeat(2, 1, 1)
    outputs = SimpleNamespace(logits=torch.zeros(2, 2, 4), pred_boxes=boxes, input_ids=ids)
    relative = torch.tensor([[0.25, 0.25, 0.75, 0.75], [0.7, 0.0, 1.0, 0.3]])
    calls = (
        lambda **sizes: processor.post_process_grounded_object_detection(outputs, **sizes),
        lambda **sizes: processor.post_process_object_detection(outputs, ["cat"], **sizes),
        lambda **sizes: processor.post_process_referring(outputs, top_k=2, **sizes),
    )
    for call in calls:
        torch.testing.assert_close(call()[0]["boxes"], relative)
        for sizes in ([(10, 20), (30, 40)], torch.tensor([[10, 20], [30, 40]])):
            first, second = call(target_sizes=sizes)
            torch.testing.assert_close(first["boxes"], relative * torch.tensor([20, 10, 20, 10]))
            torch.testing.assert_close(second["boxes"], relative * torch.tensor([40, 30, 40, 30]))
        with pytest.raises(ValueError, match="for each of 2 images"):
            call(target_sizes=[(10, 20)])


def test_low_precision_outputs_give_float32(processor: GroundingDinoProcessor) -> None:
    outputs = random_outputs(processor(text=["cat", "dog"])["input_ids"])
    full = processor.post_process_grounded_object_detection(outputs, threshold=0)[0]
    outputs.logits = outputs.logits.bfloat16()
    outputs.pred_boxes = outputs.pred_boxes.bfloat16()
    half = processor.post_process_grounded_object_detection(outputs, threshold=0)[0]
    assert half["scores"].dtype == half["boxes"].dtype == torch.float32
    torch.testing.assert_close(half["boxes"], full["boxes"], atol=0.01, rtol=0)
    torch.testing.assert_close(half["scores"], full["scores"], atol=0.01, rtol=0)


@pytest.mark.parametrize("part", ["logits", "pred_boxes"])
def test_what_is_not_finite_is_told_once(
    processor: GroundingDinoProcessor, caplog: pytest.LogCaptureFixture, part: str
) -> None:
    """By every reading; -inf, the logit of what is padding, is nothing to tell."""
    outputs = random_outputs(processor(text=["cat", "dog"])["input_ids"])
    outputs.logits[:, 3] = -torch.inf
    readings = (
        processor.post_process_object_detection,
        processor.post_process_grounded_object_detection,
        processor.post_process_referring,
    )
    for read in readings:
        read(outputs)
    assert not caplog.records
    for value in (torch.nan, torch.inf):
        getattr(outputs, part)[0, 0, 1] = value
        for read in readings:
            warn_once.cache_clear()
            caplog.clear()
            read(outputs)
            read(outputs)
            (record,) = caplog.records
            assert "not finite" in record.message


def test_overlaps_are_dropped_class_by_class(processor: GroundingDinoProcessor) -> None:
    ids = processor(text=["cat", "dog"])["input_ids"]
    outputs = outputs_by_hand(ids, [{"cat": 0.9, "dog": 0.2}, {"cat": 0.8, "dog": 0.7}])
    (result,) = processor.post_process_object_detection(outputs, nms_threshold=0.5)
    assert result["text_labels"] == ["cat", "dog"]
    torch.testing.assert_close(result["scores"], torch.tensor([0.9, 0.7]))
    (result,) = processor.post_process_object_detection(outputs, nms_threshold=0.99)
    assert len(result["scores"]) == 4


def test_nothing_found_is_typed(processor: GroundingDinoProcessor) -> None:
    outputs = random_outputs(processor(text=["cat", "dog"])["input_ids"])
    caption = random_outputs(processor(text="the red bus")["input_ids"])
    no_queries = random_outputs(outputs.input_ids, queries=0)
    no_phrases = random_outputs(torch.tensor([[101, 102]]))
    empties = [
        *(processor.post_process_grounded_object_detection(o, threshold=1) for o in (outputs, caption)),
        processor.post_process_grounded_object_detection(no_queries),
        processor.post_process_grounded_object_detection(no_phrases),
        processor.post_process_object_detection(outputs, threshold=1),
        processor.post_process_object_detection(outputs, threshold=1, nms_threshold=0.5, target_sizes=[(4, 4)]),
        processor.post_process_object_detection(no_queries, one_label_per_box=True),
        processor.post_process_object_detection(no_phrases, one_label_per_box=True),
    ]
    for (result,) in empties:
        assert result["text_labels"] == []
        assert (result["scores"].shape, result["scores"].dtype) == ((0,), torch.float32)
        assert (result["boxes"].shape, result["boxes"].dtype) == ((0, 4), torch.float32)
        assert (result["labels"].shape, result["labels"].dtype) == ((0,), torch.int64)
    assert processor.post_process_referring(no_queries)[0]["boxes"].shape == (0, 4)


def test_the_old_name_of_the_threshold_and_input_ids_given_apart(processor: GroundingDinoProcessor) -> None:
    outputs = random_outputs(processor(text=["cat", "dog"])["input_ids"])
    (new,) = processor.post_process_grounded_object_detection(outputs, outputs.input_ids, 0.6, 0.3)
    (old,) = processor.post_process_grounded_object_detection(outputs, box_threshold=0.6, text_threshold=0.3)
    assert 0 < len(new["scores"]) < 12
    assert torch.equal(new["scores"], old["scores"])
    bare = SimpleNamespace(logits=outputs.logits, pred_boxes=outputs.pred_boxes)
    assert processor.post_process_object_detection(bare, input_ids=outputs.input_ids)
    with pytest.raises(ValueError, match="no input_ids"):
        processor.post_process_grounded_object_detection(bare)


def test_padding_of_ids_and_logits_changes_nothing(processor: GroundingDinoProcessor) -> None:
    outputs = random_outputs(processor(text=["cat", "remote control"])["input_ids"])
    wide = SimpleNamespace(
        logits=torch.nn.functional.pad(outputs.logits, (0, 244), value=-torch.inf),
        pred_boxes=outputs.pred_boxes,
        input_ids=torch.nn.functional.pad(outputs.input_ids, (0, 40)),
    )
    for name in ("post_process_grounded_object_detection", "post_process_object_detection", "post_process_referring"):
        (narrow_result,), (wide_result,) = (getattr(processor, name)(o) for o in (outputs, wide))
        assert narrow_result.keys() == wide_result.keys()
        assert len(narrow_result["scores"])
        for key in ("scores", "boxes"):
            torch.testing.assert_close(narrow_result[key], wide_result[key], atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("text_labels", "message"),
    [
        (["cat"], "Image 0: 1 text_labels for a prompt of 2 phrases"),
        ([["cat", "dog"], ["bus"]], "Image 1: 1 text_labels for a prompt of 2 phrases"),
        ([["cat", "dog"]], "1 lists of text_labels for 2 images"),
        ("cat", "not a string"),
    ],
)
def test_labels_that_do_not_fit_the_prompt_are_refused(
    processor: GroundingDinoProcessor, text_labels: Any, message: str
) -> None:
    outputs = random_outputs(processor(text=[["cat", "dog"]] * 2)["input_ids"])
    for call in (processor.post_process_grounded_object_detection, processor.post_process_object_detection):
        with pytest.raises(ValueError, match=message):
            call(outputs, text_labels=text_labels)


def test_ids_that_do_not_fit_the_outputs_are_refused(processor: GroundingDinoProcessor) -> None:
    ids = processor(text=[["cat", "dog"]] * 2)["input_ids"]
    outputs = random_outputs(ids)
    with pytest.raises(ValueError, match="1 rows of input_ids for 2 images"):
        processor.post_process_grounded_object_detection(outputs, ids[:1])
    outputs.logits = outputs.logits[..., :3]
    with pytest.raises(ValueError, match="6 tokens"):
        processor.post_process_grounded_object_detection(outputs)


# --- memory and disk ---------------------------------------------------------------------------------------------


def test_no_other_call_changes_how_a_result_is_read(processor: GroundingDinoProcessor) -> None:
    """Law 27: "a cat" asked first is "a cat", whatever was asked afterwards in the same tokens, on a copy too."""
    first = processor(IMAGE, [["a cat"]])
    outputs = random_outputs(first["input_ids"])
    copied = random_outputs(first["input_ids"].clone())
    with pytest.warns(UserWarning, match="text_labels"):
        before = processor.post_process_grounded_object_detection(copied, threshold=0.0)
    processor(IMAGE, [["A Cat"]])
    with pytest.warns(UserWarning, match="text_labels"):
        after = processor.post_process_grounded_object_detection(copied, threshold=0.0)
    assert set(before[0]["text_labels"]) == set(after[0]["text_labels"]) == {"a cat"}
    assert set(processor.post_process_grounded_object_detection(outputs, threshold=0.0)[0]["text_labels"]) == {"a cat"}
    named = processor.post_process_grounded_object_detection(copied, threshold=0.0, text_labels=["a Cat"])
    assert set(named[0]["text_labels"]) == {"a Cat"}
    assert not [name for name in vars(processor) if "prompt" in name or "memory" in name]


def test_prompts_travel_with_the_batch(processor: GroundingDinoProcessor) -> None:
    """To another device, by the batch's own `to` and that of the outputs, in copies and in pickles."""
    inputs = processor(IMAGE, [["A Cat"]])
    prompts = kept_prompts(inputs["input_ids"])
    assert prompts is not None and prompts[0].phrases == ("A Cat",)
    output = GroundingDinoObjectDetectionOutput(logits=torch.zeros(1), input_ids=inputs["input_ids"])
    for there in (copy.deepcopy(inputs), pickle.loads(pickle.dumps(inputs)), output.to("meta"), inputs.to("meta")):
        assert kept_prompts(there["input_ids"]) == prompts
    assert inputs["pixel_values"].device.type == inputs["input_ids"].device.type == "meta"


@pytest.mark.parametrize("labels", [["the purple cross. a ring"], ["cat", "a no. 5 shirt"]])
def test_a_label_that_looks_like_a_caption_is_said_to_be_one_label(
    processor: GroundingDinoProcessor, labels: list[str]
) -> None:
    """Law 28; nested, it is a label without a word."""
    with pytest.warns(UserWarning, match=f"{labels[-1]!r} is read as one label"):
        inputs = processor(IMAGE, labels)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        nested = processor(IMAGE, [labels])
        processor(IMAGE, ["U.S.A.", "cat", "what?"])
        processor([IMAGE] * 2, "the cat. a dog")
    assert torch.equal(nested["input_ids"], inputs["input_ids"])


def test_captions_of_which_some_are_open_are_refused(processor: GroundingDinoProcessor) -> None:
    """Law 28: two strings for two images are captions when both are closed, labels when none is, else neither."""
    with pytest.raises(ValueError, match=r"'a dog'.*nest the list"):
        processor([IMAGE] * 2, ["a cat.", "a dog"])
    captions, labels = processor([IMAGE] * 2, ["a cat.", "a dog."]), processor([IMAGE] * 2, ["a cat", "a dog"])
    joint = processor([IMAGE] * 2, [["a cat.", "a dog"]])
    assert len(set(map(tuple, captions["input_ids"].tolist()))) == 2
    assert torch.equal(joint["input_ids"], labels["input_ids"])
    assert torch.equal(processor(IMAGE, ["a cat.", "a dog"])["input_ids"][0], labels["input_ids"][0])


def test_a_processor_is_copied_pickled_and_saved(processor: GroundingDinoProcessor, tmp_path: Path) -> None:
    inputs = processor(IMAGE, ["Cat"])
    for other in (copy.deepcopy(processor), pickle.loads(pickle.dumps(processor))):
        assert torch.equal(other(IMAGE, ["Cat"])["pixel_values"], inputs["pixel_values"])
    processor.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "processor_config.json").read_text())
    assert sorted(saved) == ["image_processor", "processor_class"]
    assert saved["processor_class"] == "GroundingDinoProcessor"
    assert saved["image_processor"]["image_processor_type"] == "GroundingDinoImageProcessor"


def test_either_loads_what_the_other_saved(
    processor: GroundingDinoProcessor, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    logger = logging.getLogger("transformers")
    logger.addHandler(caplog.handler)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            processor.save_pretrained(tmp_path / "ours")
            stock = AutoProcessor.from_pretrained(tmp_path / "ours")
            stock.save_pretrained(tmp_path / "stock")
            loaded = GroundingDinoProcessor.from_pretrained(tmp_path / "stock")
    finally:
        logger.removeHandler(caplog.handler)
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING] == []
    assert type(stock) is transformers.GroundingDinoProcessor
    assert type(loaded) is GroundingDinoProcessor
    assert type(loaded.image_processor) is GroundingDinoImageProcessor
    by_us, by_stock = ((tmp_path / by / "processor_config.json").read_text() for by in ("ours", "stock"))
    assert json.loads(by_us) == json.loads(by_stock)
    expected = stock(images=IMAGE, text="a cat. a dog.", return_tensors="pt")
    got = loaded(images=IMAGE, text="a cat. a dog.", return_tensors="pt")
    assert got.keys() == expected.keys()
    for name in expected:
        assert torch.equal(got[name], expected[name])


def test_a_stock_image_processor_is_turned_into_ours() -> None:
    stock = transformers.GroundingDinoImageProcessor(size=SIZE, image_mean=[0.1, 0.2, 0.3])
    processor = GroundingDinoProcessor(stock, TOKENIZER)
    assert type(processor.image_processor) is GroundingDinoImageProcessor
    assert processor.image_processor.to_dict() == stock.to_dict()
    assert processor(IMAGE.convert("L"))["pixel_values"].shape[1] == 3


def test_a_folder_without_tokenizer_files_is_an_error(tmp_path: Path) -> None:
    """Transformers would make a tokenizer that knows no word, and every prompt would be unknown."""
    make_processor().save_pretrained(tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json", "vocab.txt"):
        (tmp_path / name).unlink(missing_ok=True)
    with pytest.raises(Exception, match="tokenizer"):
        GroundingDinoProcessor.from_pretrained(tmp_path)
