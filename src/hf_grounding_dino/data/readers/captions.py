"""Which characters of a caption name a box: spans as files have them, and phrases looked up."""

from __future__ import annotations

import re
import unicodedata
from typing import NamedTuple

from ...processing.prompts import PHRASE_DELIMITERS
from ..findings import FindingLog
from ..records import Spans, shown


class Caption(NamedTuple):
    """A sentence without the blanks around it.

    text: what a prompt is made of.
    shift: how many characters were cut off before it.
    length: characters of the sentence as written.
    """

    text: str
    shift: int
    length: int


def strip_caption(written: str) -> Caption:
    """Cut the blanks off both ends; spans into the sentence as written go through `checked_spans`."""
    return Caption(written.strip(), len(written) - len(written.lstrip()), len(written))


def checked_spans(raw: object, caption: Caption, where: str, log: FindingLog) -> Spans | None:
    """Spans [[start, end], ...] of the sentence as written, as spans of the stripped one; ends are exclusive.

    One flat pair is taken for a list of one. None, with a finding, for a box that is to be dropped: a span that ends
    past the sentence or starts before it ("span past the end"), or one that holds nothing, or no span ("empty phrase").
    """
    pairs = [raw] if _is_pair(raw) else raw
    if not isinstance(pairs, list) or not all(_is_pair(pair) for pair in pairs):
        log.add("malformed entry", where, f"spans {shown(raw)} are not a list of [start, end]; its boxes are dropped")
        return None
    spans = []
    for start, end in pairs:
        if end > caption.length or start < 0:
            text = f"characters {start} to {end} of a caption of {caption.length}; its boxes are dropped"
            log.add("span past the end", where, text)
            return None
        start, end = max(start - caption.shift, 0), min(end - caption.shift, len(caption.text))
        if not _has_word(caption.text[max(start, 0) : max(end, 0)]):
            log.add("empty phrase", where, f"span {start} to {end} holds no word; its boxes are dropped")
            return None
        spans.append((start, end))
    if not spans:
        log.add("empty phrase", where, "no span says which words name it; its boxes are dropped")
        return None
    return tuple(sorted(set(spans)))


def spans_of(stated: object, phrase: object, caption: Caption, where: str, log: FindingLog) -> Spans | None:
    """What names a box: the spans that are stated, or the phrase, looked up."""
    if stated is None:
        return phrase_spans(phrase, caption, where, log)
    return checked_spans(stated, caption, where, log)


def _has_word(text: str) -> bool:
    """Whether a tokenizer finds something in it that is no delimiter: blanks, controls and lone accents are dropped."""
    return any(not c.isspace() and c not in PHRASE_DELIMITERS and unicodedata.category(c)[0] not in "CM" for c in text)


def phrase_spans(raw: object, caption: Caption, where: str, log: FindingLog) -> Spans | None:
    """Where a phrase, or each of a list of phrases, first stands in the caption as whole words, in any case.

    None, with a finding, for a box that is to be dropped: a phrase without a word ("empty phrase"), or one that is not
    there ("no phrase").
    """
    phrases = [raw] if isinstance(raw, str) else raw
    if not isinstance(phrases, list) or not all(isinstance(phrase, str) for phrase in phrases):
        log.add("no phrase", where, f"neither 'tokens_positive' nor 'phrase' ({shown(raw)}) names it; dropped")
        return None
    if not any(phrase.strip() for phrase in phrases):
        log.add("empty phrase", where, "its phrase holds no word; its boxes are dropped")
        return None
    spans = []
    for phrase in phrases:
        if not phrase.strip():
            continue
        found = find_phrase(phrase, caption.text)
        if found is None:
            text = f"{shown(phrase)} does not stand in the caption {shown(caption.text)}; its boxes are dropped"
            log.add("no phrase", where, text)
            return None
        spans.append(found)
    return tuple(sorted(set(spans)))


def find_phrase(phrase: str, caption: str) -> tuple[int, int] | None:
    """The first place of a phrase among the words of a caption: "cat" is not in "cattle", nor in "cat-like"."""
    words = r"\s+".join(re.escape(word) for word in phrase.split())
    found = re.search(rf"(?<!\w)(?<!\w-){words}(?!-?\w)", caption, flags=re.IGNORECASE)
    return found.span() if found else None


def _is_pair(value: object) -> bool:
    return isinstance(value, list | tuple) and len(value) == 2 and all(type(number) is int for number in value)
