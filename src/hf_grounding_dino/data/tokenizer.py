"""A tokenizer for closed worlds: the BERT one, with the few words that are needed at hand."""

from __future__ import annotations

import string
from collections.abc import Iterable, Iterator

from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer
from transformers import BertTokenizer

# Where the uncased BERT vocabulary has them; the checkpoints of the family are bound to these ids.
FIXED_IDS = {"[PAD]": 0, "[UNK]": 100, "[CLS]": 101, "[SEP]": 102, "[MASK]": 103, ".": 1012, "?": 1029}
SMALLEST_VOCABULARY = 1030


def build_tokenizer(words: Iterable[str]) -> BertTokenizer:
    """Build an uncased WordPiece tokenizer that holds `words` whole and any other ASCII word in letters.

    The vocabulary has 1,030 entries, or as many more as the words need. It depends on the set of words alone, not on
    their order.

    Args:
        words: words or phrases; phrases are split as BERT splits them.
    """
    letters = string.ascii_lowercase + string.digits
    pieces = [*letters, *string.punctuation, *(f"##{letter}" for letter in letters)]
    entries = dict.fromkeys(piece for piece in [*pieces, *sorted(_split(words))] if piece not in FIXED_IDS)
    vocabulary = dict(FIXED_IDS)
    slot = 0
    taken = set(FIXED_IDS.values())
    for entry in entries:
        while slot in taken:
            slot += 1
        vocabulary[entry] = slot
        slot += 1
    for slot in sorted(set(range(SMALLEST_VOCABULARY)) - set(vocabulary.values())):
        vocabulary[f"[unused{slot}]"] = slot
    by_id = dict(sorted(vocabulary.items(), key=lambda entry: entry[1]))
    return BertTokenizer(vocab=by_id, do_lower_case=True, model_max_length=512)


def _split(words: Iterable[str]) -> Iterator[str]:
    normalizer, splitter = BertNormalizer(lowercase=True), BertPreTokenizer()
    for phrase in words:
        for word, _ in splitter.pre_tokenize_str(normalizer.normalize_str(phrase)):
            yield word
