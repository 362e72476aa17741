"""Words, captions, token spans and phrase numbers: the one home of phrase logic.

A prompt is a sequence of phrases, each closed by a delimiter ("." or "?"). Everything that the model, the loss
and the post-processing need to know of it are readings of one integer per token, its phrase number:
tokens of one phrase may attend to each other, a box of phrase p has the tokens numbered p as its target, and the
score of phrase p is taken over the tokens numbered p. See section 3.4 of the paper (sub-sentence text features).
"""

from __future__ import annotations

import re
import string
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

NO_PHRASE = -1
PHRASE_DELIMITERS = (".", "?")
_LETTERS = rf"[^\s{re.escape(string.punctuation)}]+"
_WORD = re.compile(rf"{_LETTERS}(?:[-'\u2019_]{_LETTERS})*")

Span = tuple[int, int]
PromptText = str | Sequence[str]
_MOST_QUOTED = 60  # letters
_PROMPTS = "grounding_dino_prompts"
_INNER_DELIMITER = re.compile(rf"[{re.escape(''.join(PHRASE_DELIMITERS))}]\s+\S")


class EncodedPrompt(NamedTuple):
    """One prompt as the model reads it, and the way back to the caller's words.

    `input_ids` holds the special tokens; `phrases` are the caller's own strings, by phrase number; `caption` is
    the caller's sentence, or None for a list of labels; `char_spans` gives for each token of a caption where it
    stands in that sentence (`[start, end)`), `(0, 0)` for tokens of no phrase: delimiters, and those that were added.
    """

    input_ids: tuple[int, ...]
    phrases: tuple[str, ...]
    caption: str | None
    char_spans: tuple[Span, ...]


# --- readings of the token ids, in the model and in the loss -----------------------------------------------------


def is_special(input_ids_BT: Tensor, special_token_ids: Sequence[int]) -> Tensor:
    """Which tokens end a block, `(B, T)` bool: the ones whose id is in `special_token_ids`."""
    ids = torch.tensor(special_token_ids, device=input_ids_BT.device)
    return (input_ids_BT[..., None] == ids).any(-1)


def sub_sentence_attention(input_ids_BT: Tensor, special_token_ids: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Who may attend to whom, and where each token stands in its phrase (section 3.4 of the paper).

    A block is the tokens after one special token up to and including the next; what follows the last special
    token is padding, and each padding token sees itself alone. Nothing here depends on the padded length.

    Returns:
        `may_attend (B, T, T)` bool, True = attends, and `position_ids (B, T)` int64, counted from 0 in each block.
    """
    special = is_special(input_ids_BT, special_token_ids)
    before = special.long().cumsum(1) - special.long()
    remaining = special.long().sum(1, keepdim=True) - before
    real = remaining > 0
    same_block = (before[:, :, None] == before[:, None, :]) & real[:, :, None] & real[:, None, :]
    may_attend = same_block | torch.eye(input_ids_BT.shape[1], dtype=torch.bool, device=input_ids_BT.device)
    return may_attend, same_block.tril(-1).sum(-1)


def phrase_numbers(input_ids_BT: Tensor, special_token_ids: Sequence[int]) -> Tensor:
    """The phrase number of each token, `(B, T)` int64, `NO_PHRASE` on special tokens and padding.

    Phrases count from 0 in the order of the prompt; two delimiters in a row enclose no phrase.
    """
    special = is_special(input_ids_BT, special_token_ids)
    remaining = special.long().flip(1).cumsum(1).flip(1)
    inside = ~special & (remaining > 0)
    before = torch.cat([torch.zeros_like(inside[:, :1]), inside[:, :-1]], 1)
    return torch.where(inside, (inside & ~before).long().cumsum(1) - 1, NO_PHRASE)


def phrase_scores(
    probabilities_QT: Tensor, numbers_T: Tensor, num_phrases: int, reduction: Literal["mean", "max"]
) -> Tensor:
    """The score of each phrase at each query, `(Q, P)`, from the probabilities of its tokens.

    "mean" is what the benchmarks of the family use, "max" what its demonstrations use. A phrase without a token
    scores 0. Depends on nothing but the phrase's own tokens.
    """
    inside = numbers_T >= 0
    target = numbers_T[inside].expand(len(probabilities_QT), -1)
    scores = probabilities_QT.new_zeros(len(probabilities_QT), num_phrases)
    mode: Literal["mean", "amax"] = "mean" if reduction == "mean" else "amax"
    return scores.scatter_reduce(1, target, probabilities_QT[:, : len(numbers_T)][:, inside], mode, include_self=False)


# --- from words to tokens ----------------------------------------------------------------------------------------


def special_token_ids(tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """The ids that end a block: [CLS], [SEP] and the phrase delimiters."""
    ids = tokenizer.convert_tokens_to_ids([tokenizer.cls_token, tokenizer.sep_token, *PHRASE_DELIMITERS])
    return tuple(ids) if isinstance(ids, list) else (ids,)


def lower_case(text: str) -> str:
    """`text` in lower case, character by character, so that character offsets stay true."""
    return "".join(c.lower() if len(c.lower()) == 1 else c for c in text)


def clean_name(name: str) -> str:
    """A category's name as words for a prompt: no "(...)", blanks for underscores, single blanks (mmdet `clean_name`).

    "bow_(decorative_ribbons)" gives "bow"; case, hyphens, slashes and apostrophes stay.
    """
    return " ".join(re.sub(r"\(.*\)", "", name, flags=re.DOTALL).replace("_", " ").split())


def label_list(labels: Any) -> list[Any]:
    """Labels, or what stands for them, as a list.

    Raises:
        ValueError: there are none, or it is one string, a mapping or nothing that can be gone through.
    """
    if isinstance(labels, str):
        raise ValueError(f"Give a list of labels, not one string: {quoted(labels)}.")
    if labels is None:
        raise ValueError("No labels: give at least one label to look for.")
    if isinstance(labels, (bytes, Mapping)) or not isinstance(labels, Iterable):
        raise ValueError(f"Give a list of labels, not {type(labels).__name__}.")
    return list(labels)


def encode_prompt(text: PromptText, tokenizer: PreTrainedTokenizerBase) -> EncodedPrompt:
    """Encode a caption (`str`) or a list of labels; see `encode_caption` and `encode_labels`."""
    return encode_caption(text, tokenizer) if isinstance(text, str) else encode_labels(text, tokenizer)


def encode_labels(labels: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> EncodedPrompt:
    """Encode class names, each as one phrase: label i is phrase i, whatever characters it holds.

    Labels are lower-cased and delimiters inside them are left out, for the model only.

    Raises:
        ValueError: no labels; a label that is not text, is empty, or has no token that the tokenizer knows.
    """
    if not labels:
        raise ValueError("No labels: give at least one label to look for.")
    for i, label in enumerate(labels):
        if not isinstance(label, str):
            raise ValueError(f"Label {i} is {type(label).__name__}, not text: {label!r}.")
        if not label.strip():
            raise ValueError(f"Label {i} is empty: {label!r}.")
        _refuse_half_characters(label)
    specials = special_token_ids(tokenizer)
    cls_id, sep_id, delimiter_id = specials[:3]
    encoded = tokenizer([lower_case(label) for label in labels], add_special_tokens=False, verbose=False)["input_ids"]
    ids = [cls_id]
    for i, (label, label_ids) in enumerate(zip(labels, encoded, strict=True)):
        kept = [t for t in label_ids if t not in specials]
        if all(t == tokenizer.unk_token_id for t in kept):
            raise ValueError(f"Label {i} ({quoted(label)}) has no token that the tokenizer knows.")
        ids += [*kept, delimiter_id]
    ids.append(sep_id)
    return EncodedPrompt(tuple(ids), tuple(labels), None, ((0, 0),) * len(ids))


def _refuse_half_characters(text: str) -> None:
    if not text.isascii() and any("\ud800" <= letter <= "\udfff" for letter in text):
        raise ValueError(f"{quoted(text)} holds characters that are no text.")


def quoted(text: str) -> str:
    """A text of people as an error names it: of a long one the beginning."""
    return repr(text if len(text) <= _MOST_QUOTED else f"{text[: _MOST_QUOTED - 1]}\u2026")


def closed_caption(caption: str) -> str:
    """The caption with a delimiter at its end, so that a list of such is read as captions; no character moves."""
    return caption if caption.rstrip().endswith(PHRASE_DELIMITERS) else f"{caption}."


def encode_caption(caption: str, tokenizer: PreTrainedTokenizerBase) -> EncodedPrompt:
    """Encode a sentence, or several: each part between delimiters is a phrase. Closes the last one by itself.

    Raises:
        ValueError: the caption is not text, or has no token that the tokenizer knows.
    """
    _refuse_half_characters(caption)
    specials = special_token_ids(tokenizer)
    cls_id, sep_id, delimiter_id = specials[:3]
    encoded = tokenizer(lower_case(caption), add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    tokens = [(t, (s, e)) for t, (s, e) in zip(encoded["input_ids"], encoded["offset_mapping"], strict=True)]
    if all(t == tokenizer.unk_token_id or t in specials for t, _ in tokens):
        raise ValueError(f"The caption {quoted(caption)} has no token that the tokenizer knows.")
    if tokens[-1][0] not in specials:
        tokens.append((delimiter_id, (0, 0)))
    phrases, start, end = [], -1, -1
    for token, span in tokens:
        if token not in specials:
            start, end = (span[0] if start < 0 else start), span[1]
        elif start >= 0:
            phrases.append(caption[start:end])
            start = -1
    ids = (cls_id, *(t for t, _ in tokens), sep_id)
    char_spans = [(0, 0) if token in specials else span for token, span in tokens]
    return EncodedPrompt(ids, tuple(phrases), caption, ((0, 0), *char_spans, (0, 0)))


def span_token_mask(prompt: EncodedPrompt, spans: Iterable[Span]) -> Tensor:
    """Which tokens of the phrases of a caption the character spans cover, `(T,)` bool; delimiters are left out.

    Args:
        prompt: an encoded caption.
        spans: `[start, end)` character offsets into the caption.

    Raises:
        ValueError: a span reaches past the caption, or covers no token.
    """
    if prompt.caption is None:
        raise ValueError("Character spans need a caption; this prompt is a list of labels.")
    mask = torch.zeros(len(prompt.input_ids), dtype=torch.bool)
    for start, end in spans:
        if not 0 <= start < end <= len(prompt.caption):
            raise ValueError(f"Span [{start}, {end}) is not inside the caption {prompt.caption!r}.")
        covered = [i for i, (s, e) in enumerate(prompt.char_spans) if s < end and e > start]
        if not covered:
            raise ValueError(f"Span [{start}, {end}) covers no token of the caption {prompt.caption!r}.")
        mask[covered] = True
    return mask


def one_prompt_per_image(text: PromptText | Sequence[PromptText], num_images: int | None) -> list[PromptText]:
    """Read the `text` argument of the processor as one prompt for each image.

    - a string is one caption;
    - a flat list of strings is ONE prompt of labels. The exception keeps scripts written for transformers
      working: as many strings as images, each closed by a delimiter, are captions, one an image. With some of them
      closed it is neither, and refused. A label that looks like a caption ("a cat. a dog") is one label, and warned of.
      (`[["U.S.A."]]`, nested, is a label whatever it looks like.)
    - a list that holds a list has one prompt an image, each a caption or a list of labels;
    - one prompt serves all images.

    Raises:
        ValueError: no text at all, something that is no text, neither one prompt nor one an image, or as many strings
            as there are images, several, of which only some are closed.
    """
    texts = [text] if isinstance(text, str) else label_list(text)
    if not texts:
        raise ValueError("No labels: give at least one label to look for.")
    if isinstance(text, str) or any(isinstance(t, (list, tuple)) for t in texts) or _are_captions(texts, num_images):
        prompts: list[PromptText] = [t if isinstance(t, str) else label_list(t) for t in texts]
    else:
        _look_for_captions(texts, num_images)
        prompts = [texts]
    if num_images is not None and len(prompts) == 1:
        prompts = prompts * num_images
    if num_images is not None and len(prompts) != num_images:
        raise ValueError(f"{len(prompts)} prompts for {num_images} images: give one, or one for each image.")
    return prompts


def _are_captions(texts: Sequence[Any], num_images: int | None) -> bool:
    return all(map(_is_closed, texts)) and (num_images is None or len(texts) == num_images)


def _is_closed(text: Any) -> bool:
    return isinstance(text, str) and text.strip().endswith(PHRASE_DELIMITERS)


def _look_for_captions(labels: Sequence[Any], num_images: int | None) -> None:
    """Say of a flat list of labels what else it could have been meant to be."""
    if len(labels) == num_images and num_images > 1 and any(map(_is_closed, labels)):
        open_label = next(label for label in labels if not _is_closed(label))
        raise ValueError(
            f"{len(labels)} strings for as many images, some closed by '.', but not {quoted(str(open_label))}: close"
            " each for one caption an image, or nest the list, [[...]], for one prompt of labels."
        )
    for label in labels:
        if isinstance(label, str) and _INNER_DELIMITER.search(label):
            warnings.warn(
                f"{quoted(label)} is read as one label, and the model does not see the delimiter inside. For a caption"
                " of several phrases give the string alone, or close each with '.', one an image; nest the list,"
                " [[...]], to say that it is a label.",
                stacklevel=4,
            )


# --- from tokens back to words -----------------------------------------------------------------------------------


def keep_prompts(input_ids: Any, prompts: Sequence[EncodedPrompt] | None) -> None:
    """Let a tensor of token ids carry the prompts it was made of, one a row; nothing else can carry any."""
    if isinstance(input_ids, Tensor) and prompts is not None:
        input_ids.__dict__[_PROMPTS] = list(prompts)


def kept_prompts(input_ids: Any) -> list[EncodedPrompt] | None:
    """The prompts that a tensor of token ids was made of, where it carries them."""
    return vars(input_ids).get(_PROMPTS) if isinstance(input_ids, Tensor) else None


def without_padding(input_ids: Sequence[int], special_token_ids: Sequence[int]) -> tuple[int, ...]:
    """The ids of one prompt up to its last special token: what follows is padding."""
    last = max((i for i, token in enumerate(input_ids) if token in special_token_ids), default=-1)
    return tuple(input_ids[: last + 1])


def decode_phrases(input_ids: Sequence[int], tokenizer: PreTrainedTokenizerBase) -> tuple[str, ...]:
    """The phrases of one prompt as the tokenizer spells them: lower case, without accents, but whole."""
    numbers = phrase_numbers(torch.tensor([list(input_ids)]), special_token_ids(tokenizer))[0].tolist()
    phrases: list[list[int]] = [[] for _ in range(max(numbers, default=NO_PHRASE) + 1)]
    for token, number in zip(input_ids, numbers, strict=True):
        if number != NO_PHRASE:
            phrases[number].append(token)
    return tuple(str(tokenizer.decode(phrase)) for phrase in phrases)


def cut_prompt(prompt: EncodedPrompt, max_length: int, special_token_ids: Sequence[int]) -> EncodedPrompt:
    """The first phrases of a prompt, as many as fit in `max_length` tokens; a phrase is never cut in two.

    Raises:
        ValueError: the first phrase alone does not fit.
    """
    if len(prompt.input_ids) <= max_length:
        return prompt
    ends = [i for i, token in enumerate(prompt.input_ids[:-1]) if token in special_token_ids and i + 2 <= max_length]
    end = ends[-1] if ends else 0
    numbers = phrase_numbers(torch.tensor([prompt.input_ids[: end + 1]]), special_token_ids)
    kept = int(numbers.max()) + 1
    if not kept:
        raise ValueError(f"The phrase {prompt.phrases[0]!r} alone does not fit in max_length={max_length} tokens.")
    ids = (*prompt.input_ids[: end + 1], prompt.input_ids[-1])
    return EncodedPrompt(ids, prompt.phrases[:kept], prompt.caption, (*prompt.char_spans[: end + 1], (0, 0)))


def caption_words(prompt: EncodedPrompt, tokens: Sequence[bool]) -> str:
    """The words of a caption that hold one of the given tokens: whole, in order, in the caller's spelling.

    What stands between two words that follow each other is kept. Empty where the tokens touch no word.

    Args:
        prompt: an encoded caption.
        tokens: for each token of the prompt, whether it counts.
    """
    caption = prompt.caption or ""
    spans = [span for span, counts in zip(prompt.char_spans, tokens, strict=True) if counts and span[1] > span[0]]
    pieces: list[list[int]] = []
    follows = False
    for word in _WORD.finditer(caption):
        chosen = any(start < word.end() and end > word.start() for start, end in spans)
        if chosen and follows:
            pieces[-1][1] = word.end()
        elif chosen:
            pieces.append([word.start(), word.end()])
        follows = chosen
    return " ".join(caption[start:end] for start, end in pieces)
