"""What a model that was taught few words, such as the one that ships, says of labels that it cannot know.

Its folder holds `known_words.json`; `save_pretrained` does not write it, so a model that went on learning has none.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import load_file
from transformers import PreTrainedModel

from .prompts import quoted

WORDS_FILE = "known_words.json"
_WEIGHTS_FILE = "model.safetensors"
_WORD = re.compile(r"[^\W_]+")


class KnownWords(NamedTuple):
    """The words of everything that a model was trained to look for, lower case.

    names: those that say what a thing is or looks like; a label without one names nothing that the model knows.
    others: articles, numbers, places.
    about: what they amount to, for people.
    """

    names: frozenset[str]
    others: frozenset[str]
    about: str


def doubts(model: PreTrainedModel, labels: Iterable[str]) -> list[str]:
    """A sentence about each label, or caption, of which the model was taught some words but not all.

    Of a model whose vocabulary is open, or that was trained further, there is nothing to say.

    Raises:
        ValueError: the model was taught no word of a label; what it answers would mean nothing.
    """
    folder = model.name_or_path or ""
    known = _known_words(folder)
    if known is None:
        return []
    strange: dict[str, list[str]] = {}
    for label in labels:
        words = dict.fromkeys(_WORD.findall(label.lower()))
        new = [word for word in words if word not in known.names | known.others]
        if words and (new or not known.names & words.keys()):  # without a word it is no label, which others say
            strange[label] = new if known.names & words.keys() else []
    if not strange or not _is_as_shipped(model, folder):
        return []
    said, name = [], Path(folder).name
    for label, new in strange.items():
        if not new:
            raise ValueError(f"{name} knows no word of {quoted(label)}: {known.about}")
        said.append(f"{name} does not know {', '.join(map(quoted, new))} of {quoted(label)}: {known.about}")
    return said


@lru_cache
def _known_words(folder: str) -> KnownWords | None:
    file = Path(folder, WORDS_FILE)
    if not folder or not file.is_file():
        return None
    content = json.loads(file.read_text(encoding="utf-8"))
    return KnownWords(frozenset(content["names"]), frozenset(content["others"]), content["about"])


def _is_as_shipped(model: PreTrainedModel, folder: str) -> bool:
    """Whether the weights are those of the folder, as far as they have the same names, and not what training made."""
    state = model.state_dict()
    shipped = load_file(Path(folder, _WEIGHTS_FILE))
    both = state.keys() & shipped.keys()
    return all(torch.equal(state[name].cpu(), shipped[name].to(state[name].dtype)) for name in both)
