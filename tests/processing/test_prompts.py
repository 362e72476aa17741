"""Laws of the prompt: its forms, the blocks of its tokens, the numbers of its phrases."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import BertTokenizer
from transformers.models.grounding_dino.modeling_grounding_dino import build_label_maps

from hf_grounding_dino.data.tokenizer import FIXED_IDS, build_tokenizer
from hf_grounding_dino.processing.prompts import (
    NO_PHRASE,
    caption_words,
    cut_prompt,
    decode_phrases,
    encode_caption,
    encode_labels,
    encode_prompt,
    one_prompt_per_image,
    phrase_numbers,
    phrase_scores,
    span_token_mask,
    special_token_ids,
    sub_sentence_attention,
    without_padding,
)

TOKENIZER = build_tokenizer(["cat", "dog", "remote control", "container", "traffic", "light", "the", "red", "bus"])
SPECIAL = special_token_ids(TOKENIZER)
CLS, SEP, DOT, QUESTION = SPECIAL


def loop_masks(ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The rule read straight: a block is the tokens after one special token, up to and including the next."""
    batch, length = ids.shape
    may_attend = torch.eye(length, dtype=torch.bool).repeat(batch, 1, 1)
    positions = torch.zeros(batch, length, dtype=torch.long)
    for b in range(batch):
        start = 0
        for i in range(length):
            if int(ids[b, i]) in SPECIAL:
                may_attend[b, start : i + 1, start : i + 1] = True
                positions[b, start : i + 1] = torch.arange(i + 1 - start)
                start = i + 1
    return may_attend, positions


closed_prompts = st.lists(st.lists(st.integers(200, 900), min_size=1, max_size=4), min_size=1, max_size=6).map(
    lambda phrases: [CLS, *(token for phrase in phrases for token in [*phrase, DOT]), SEP]
)


# --- the forms of a prompt ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["Cat", "cat.", " cat . ", "CAT ."])
def test_form_of_a_prompt_does_not_matter(text: str) -> None:
    expected = (CLS, *TOKENIZER.convert_tokens_to_ids(["cat"]), DOT, SEP)
    assert encode_caption(text, TOKENIZER).input_ids == expected
    assert encode_labels([text], TOKENIZER).input_ids == expected


def test_labels_and_the_caption_of_transformers_have_the_same_ids() -> None:
    labels = encode_labels(["Cat", "remote control"], TOKENIZER)
    caption = encode_caption("a cat. a remote control.".replace("a ", ""), TOKENIZER)
    assert labels.input_ids == caption.input_ids
    assert labels.phrases == ("Cat", "remote control")
    assert caption.phrases == ("cat", "remote control")


@pytest.mark.parametrize(
    ("text", "num_images", "expected"),
    [
        ("a cat", None, ["a cat"]),
        ("a cat", 3, ["a cat"] * 3),
        (["cat", "dog"], None, [["cat", "dog"]]),
        (("cat", "dog"), 1, [["cat", "dog"]]),
        (["cat", "dog"], 2, [["cat", "dog"]] * 2),
        (["a cat.", "a dog."], 2, ["a cat.", "a dog."]),
        (["a cat.", "a dog?"], None, ["a cat.", "a dog?"]),
        (["a cat.", "a dog."], 3, [["a cat.", "a dog."]] * 3),
        (["a cat.", "a dog"], 3, [["a cat.", "a dog"]] * 3),
        ([["a cat.", "a dog"]], 2, [["a cat.", "a dog"]] * 2),
        ([["cat"], ["dog", "bus"]], 2, [["cat"], ["dog", "bus"]]),
        ([["cat", "dog"]], 2, [["cat", "dog"]] * 2),
        ([["U.S.A."]], 1, [["U.S.A."]]),
        (["a cat.", ["dog"]], 2, ["a cat.", ["dog"]]),
        (np.array(["cat", "dog"]), 2, [["cat", "dog"]] * 2),
        ((label for label in ("cat", "dog")), None, [["cat", "dog"]]),
    ],
)
def test_each_form_of_text_has_one_meaning(text: object, num_images: int | None, expected: list[object]) -> None:
    assert one_prompt_per_image(text, num_images) == expected


@pytest.mark.parametrize(("text", "num_images"), [([], 1), ([["cat"], ["dog"]], 3), (["a.", ["b"]], 1)])
def test_other_numbers_of_prompts_are_refused(text: object, num_images: int) -> None:
    with pytest.raises(ValueError, match=r"No labels|prompts for"):
        one_prompt_per_image(text, num_images)


@pytest.mark.parametrize("text", [5, {"cat": 1}, b"cat", [["cat"], 5]])
def test_what_is_no_text_is_refused(text: object) -> None:
    with pytest.raises(ValueError, match=r"Give a list of labels, not (int|dict|bytes)\."):
        one_prompt_per_image(text, None)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([], "No labels"),
        (["cat", ""], "Label 1 is empty"),
        (["cat", " \t"], "Label 1 is empty"),
        (["cat", " . ? "], r"Label 1 .* has no token"),
        (["日本", "cat"], r"Label 0 \('日本'\) has no token"),
        (["cat", 3], "Label 1 is int"),
    ],
)
def test_labels_that_say_nothing_are_refused_by_name(labels: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        encode_labels(labels, TOKENIZER)


@pytest.mark.parametrize("caption", ["", "  ", "...", "日本."])
def test_captions_that_say_nothing_are_refused(caption: str) -> None:
    with pytest.raises(ValueError, match="has no token"):
        encode_prompt(caption, TOKENIZER)


def test_a_label_keeps_its_number_whatever_it_holds() -> None:
    labels = ["U.S.A.", "cat", "who? me.", "cat", "Container", "containernumber", "a, b"]
    prompt = encode_labels(labels, TOKENIZER)
    numbers = phrase_numbers(torch.tensor([prompt.input_ids]), SPECIAL)[0]
    assert prompt.phrases == tuple(labels)
    assert numbers.unique().tolist() == [NO_PHRASE, *range(len(labels))]
    spelled = decode_phrases(prompt.input_ids, TOKENIZER)
    assert [s.replace(" ", "") for s in spelled] == [
        "usa", "cat", "whome", "cat", "container", "containernumber", "a,b",
    ]  # fmt: skip


def test_names_of_special_tokens_are_words_like_others() -> None:
    for text in (["[MASK] cat", "[SEP]"], "[MASK] cat. [SEP]"):
        prompt = encode_prompt(text, TOKENIZER)
        assert TOKENIZER.mask_token_id not in prompt.input_ids
        assert [s.replace(" ", "") for s in decode_phrases(prompt.input_ids, TOKENIZER)] == ["[mask]cat", "[sep]"]


def test_letters_that_grow_in_lower_case_shift_nothing() -> None:
    prompt = encode_caption("\u0130\u0130\u0130\u0130 cat", TOKENIZER)
    assert prompt.phrases == ("\u0130\u0130\u0130\u0130 cat",)
    tokens = TOKENIZER.convert_ids_to_tokens(list(prompt.input_ids))
    assert caption_words(prompt, [token == "cat" for token in tokens]) == "cat"


# --- blocks and numbers ------------------------------------------------------------------------------------------


@given(st.lists(closed_prompts, min_size=1, max_size=4), st.integers(0, 5))
def test_blocks_equal_the_loop_and_do_not_know_the_padding(prompts: list[list[int]], more: int) -> None:
    length = max(map(len, prompts))
    ids = torch.tensor([prompt + [0] * (length - len(prompt)) for prompt in prompts])
    padded = torch.nn.functional.pad(ids, (0, more))
    for got, same, expected in zip(
        sub_sentence_attention(ids, SPECIAL), sub_sentence_attention(padded, SPECIAL), loop_masks(ids), strict=True
    ):
        assert torch.equal(got, expected)
        window = same[:, :length, :length] if same.ndim == 3 else same[:, :length]
        assert torch.equal(window, got)
    may_attend = sub_sentence_attention(padded, SPECIAL)[0]
    assert may_attend[:, length:].sum() == len(prompts) * more  # padding sees itself alone


@given(st.lists(closed_prompts, min_size=1, max_size=4))
def test_phrase_numbers_are_the_label_maps_of_transformers(prompts: list[list[int]]) -> None:
    length = max(map(len, prompts))
    ids = torch.tensor([prompt + [0] * (length - len(prompt)) for prompt in prompts])
    stock_ids = torch.tensor([[{CLS: 101, SEP: 102, DOT: 1012}.get(t, t) for t in row] for row in ids.tolist()])
    maps = build_label_maps(torch.zeros(len(ids), 3, length), stock_ids)
    for numbers, label_map in zip(phrase_numbers(ids, SPECIAL), maps, strict=True):
        phrases = torch.arange(int(numbers.max()) + 1)
        assert torch.equal((numbers == phrases[:, None]).long(), label_map.long())


def test_two_delimiters_enclose_no_phrase() -> None:
    numbers = phrase_numbers(torch.tensor([[CLS, 7, DOT, QUESTION, 8, DOT, SEP, 0, 0]]), SPECIAL)
    assert numbers.tolist() == [[-1, 0, -1, -1, 1, -1, -1, -1, -1]]
    assert without_padding([CLS, 7, DOT, SEP, 0, 0], SPECIAL) == (CLS, 7, DOT, SEP)
    assert without_padding([0, 0], SPECIAL) == ()


def test_phrase_scores_by_hand() -> None:
    """Two tokens of phrase 0, one of phrase 1, none of phrase 2; what lies outside phrases and past them is ignored."""
    numbers = torch.tensor([-1, 0, 0, -1, 1, -1])
    probabilities = torch.tensor([[0.9, 0.2, 0.4, 0.9, 0.5, 0.9, 0.9, 0.9]])
    torch.testing.assert_close(phrase_scores(probabilities, numbers, 3, "mean"), torch.tensor([[0.3, 0.5, 0.0]]))
    torch.testing.assert_close(phrase_scores(probabilities, numbers, 3, "max"), torch.tensor([[0.4, 0.5, 0.0]]))


# --- back to words -----------------------------------------------------------------------------------------------


def test_words_are_whole_and_in_the_callers_spelling() -> None:
    caption = "The RED  zebra, Traffic-Light and Éclair's bus."
    prompt = encode_caption(caption, TOKENIZER)
    tokens = TOKENIZER.convert_ids_to_tokens(list(prompt.input_ids))

    def words(*wanted: str) -> str:
        return caption_words(prompt, [token in wanted for token in tokens])

    assert words("##b") == "zebra"
    assert words("light") == "Traffic-Light"
    assert words("the", "bus") == "The bus"
    assert words("red", "z") == "RED  zebra"
    assert words("##c") == "Éclair's"
    assert words(",") == words("[CLS]", "[SEP]") == ""


def test_a_prompt_is_cut_between_phrases() -> None:
    prompt = encode_labels(["cat", "remote control", "dog"], TOKENIZER)  # 1 + 2 + 3 + 2 + 1 tokens
    assert cut_prompt(prompt, 9, SPECIAL) is prompt
    for max_length, kept in ((8, 2), (7, 2), (6, 1), (4, 1)):
        cut = cut_prompt(prompt, max_length, SPECIAL)
        assert cut == encode_labels(prompt.phrases[:kept], TOKENIZER)
    with pytest.raises(ValueError, match="'cat' alone does not fit"):
        cut_prompt(prompt, 3, SPECIAL)


def test_spans_cover_the_tokens_they_touch() -> None:
    prompt = encode_caption("a cat on the zoo", TOKENIZER)
    tokens = TOKENIZER.convert_ids_to_tokens(list(prompt.input_ids))
    covered = [
        token for token, inside in zip(tokens, span_token_mask(prompt, [(2, 5), (13, 16)]), strict=True) if inside
    ]
    assert covered == ["cat", "z", "##o", "##o"]
    for bad in ((5, 5), (10, 99), (1, 2)):
        with pytest.raises(ValueError, match=r"Span \["):
            span_token_mask(prompt, [bad])


def test_a_delimiter_inside_a_span_is_no_token_of_it() -> None:
    """It is in no phrase, so that no box can be called by it."""
    prompt = encode_caption("a no. 5 shirt.", TOKENIZER)
    mask = span_token_mask(prompt, [(2, 14)])
    numbers = phrase_numbers(torch.tensor([prompt.input_ids]), SPECIAL)[0]
    assert mask.tolist() == [False, False, *[number >= 0 for number in numbers.tolist()[2:]]]
    with pytest.raises(ValueError, match=r"Span \[4, 5\) covers no token"):
        span_token_mask(prompt, [(4, 5)])


# --- the small tokenizer -----------------------------------------------------------------------------------------


def test_the_small_tokenizer_has_the_ids_of_bert_and_knows_every_ascii_word() -> None:
    vocabulary = TOKENIZER.get_vocab()
    assert {token: vocabulary[token] for token in FIXED_IDS} == FIXED_IDS
    assert sorted(vocabulary.values()) == list(range(1030))
    everything = "".join(map(chr, range(33, 127)))
    assert (
        TOKENIZER.unk_token_id not in TOKENIZER(f"Zebra_9 qwerty {everything} x" + " x".join(everything))["input_ids"]
    )
    assert TOKENIZER.tokenize("Remote CONTROL") == ["remote", "control"]


def test_the_small_tokenizer_depends_on_the_set_of_words_alone(tmp_path: object) -> None:
    words = [f"word{i}" for i in range(1500)]
    tokenizer = build_tokenizer(words)
    assert tokenizer.get_vocab() == build_tokenizer(reversed(words * 2)).get_vocab()
    assert len(tokenizer) > 1500
    assert tokenizer.tokenize("word1499") == ["word1499"]
    tokenizer.save_pretrained(tmp_path)
    loaded = BertTokenizer.from_pretrained(tmp_path)
    assert loaded.get_vocab() == tokenizer.get_vocab()
    assert loaded("Word7, a zebra.") == tokenizer("Word7, a zebra.")
