"""What an image is asked for in training: labels that are in it among labels that are not, or its caption.

The rules are those of MM-Grounding-DINO's `RandomSamplingNegPos` without its slips: no label that is in the image is
drawn again as one that is not, and the special tokens count in the budget.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from ..processing.prompts import encode_labels, special_token_ids
from .records import DataError, Record

_LEAST_LETTERS = 2


@dataclass(frozen=True, kw_only=True)
class PromptSettings:
    """How label prompts are drawn; captions are taken as they are.

    negatives: the largest number of labels in a prompt that are not in the image; 0 for none.
    full_share: how often, in [0, 1], that many are drawn; else a number from 1 to it, each equally likely.
    max_tokens: how many tokens a prompt may have, delimiters counted, [CLS] and [SEP] not. A recipe of the family cuts
        prompts at 256 with them.
    all_labels: ask for every label of the set, as written and in the file's order, in every prompt (a closed set);
        nothing is drawn, and labels that were not looked for in an image count as absent from it.
    shuffle: mix the labels of a prompt; otherwise they keep the file's order.
    """

    negatives: int = 85
    full_share: float = 0.5
    max_tokens: int = 254
    all_labels: bool = False
    shuffle: bool = True

    def __post_init__(self) -> None:
        """Refuse what cannot be drawn.

        Raises:
            ValueError: a negative number of labels, a share outside [0, 1], no room for one label.
        """
        if self.negatives < 0:
            raise ValueError(f"negatives is at least 0, not {self.negatives}")
        if not 0 <= self.full_share <= 1:
            raise ValueError(f"full_share is in [0, 1], not {self.full_share}")
        if self.max_tokens < 2:
            raise ValueError(f"max_tokens is at least 2, a word and its delimiter, not {self.max_tokens}")


class TrainingPrompt(NamedTuple):
    """A prompt, the boxes it asks for, and which of its words call each.

    text: labels, or a caption with the record's own characters.
    boxes: float32 (n, 4), as in the record; boxes around groups and boxes that no word calls are left out.
    class_labels: int64 (n,), positions in `text`; None for a caption.
    spans: for each box (start, end) characters of the caption; None for labels.
    """

    text: list[str] | str
    boxes: Tensor
    class_labels: Tensor | None
    spans: list[list[tuple[int, int]]] | None


class _Reading(NamedTuple):
    """One way to say a label, and the tokens that the model reads; two labels with equal tokens are one to it."""

    text: str
    token_ids: tuple[int, ...]

    @property
    def cost(self) -> int:
        return len(self.token_ids) + 1


class _Draft:
    """A label prompt that grows while its tokens fit."""

    def __init__(self, max_tokens: int) -> None:
        self.room = max_tokens
        self.texts: list[str] = []
        self.labels: list[int] = []
        self.place_of: dict[tuple[int, ...], int] = {}

    def add(self, label: int, reading: _Reading) -> int | None:
        """Where the prompt says it, now or already; None where it does not fit."""
        if reading.token_ids not in self.place_of:
            if reading.cost > self.room:
                return None
            self.room -= reading.cost
            self.place_of[reading.token_ids] = len(self.texts)
            self.texts.append(reading.text)
            self.labels.append(label)
        return self.place_of[reading.token_ids]


class PromptSampler:
    """Draw the prompt of an image; it depends on the record and the random generator alone.

    A detection record gets a list of labels. All that its boxes are called come in, and a box is dropped only where its
    label exceeds the tokens. Beside them stand labels that are not in the image: never one that a box has (a box
    around a group, too), nor one in `incomplete`, nor one that the model reads alike; where `absent` is given, only
    labels in it. Of a name "a/b" one side is drawn each time. Labels that read alike share one place.

    An image with no box to train on gets absent labels only, one at least. Where none is known to be absent, it is one
    that is not known to be there, and where even that fails (only a group of the set's only label) one that is.

    A grounding record gets its caption and its spans, unchanged; phrases without a box are its negatives.
    """

    def __init__(
        self, label_names: Sequence[str], tokenizer: PreTrainedTokenizerBase, settings: PromptSettings
    ) -> None:
        """Read each label once.

        Args:
            label_names: all labels of the set, which records number; none for a set of captions.
            tokenizer: of the model.
            settings: how prompts are drawn.

        Raises:
            DataError: a label that is empty, unknown to the tokenizer or too long for a prompt; with `all_labels`, more
                tokens than a prompt may have.
        """
        self.label_names = tuple(label_names)
        self.settings = settings
        self._whole = _read(self.label_names, tokenizer) if self.label_names else []
        if settings.all_labels:
            self._check_all_fit()
        # All ways to say each label.
        self._readings = [_alternatives(reading, tokenizer) for reading in self._whole]
        for label, readings in enumerate(self._readings):
            longest = max(readings, key=lambda reading: reading.cost)
            if longest.cost > settings.max_tokens:
                raise DataError(
                    f"label {label} ({longest.text!r}) has {longest.cost} tokens, more than max_tokens, "
                    f"{settings.max_tokens}"
                )

    def __call__(self, record: Record, rng: np.random.Generator) -> TrainingPrompt:
        """The prompt of a record, with the boxes to train on; it is never empty.

        Raises:
            DataError: a record with neither a caption nor labels of this set, or spans that are not one list a box.
        """
        trained = torch.ones(len(record.boxes), dtype=torch.bool) if record.crowd is None else ~record.crowd.bool()
        if record.caption is not None:
            return _caption_prompt(record, record.caption, trained)
        labels = self._labels(record)
        if self.settings.all_labels:
            return TrainingPrompt(list(self.label_names), record.boxes[trained], labels[trained], None)
        draft = _Draft(self.settings.max_tokens)
        places = self._add_present(draft, np.unique(labels[trained].numpy()), rng)
        self._add_absent(draft, record, {*labels.tolist(), *record.incomplete}, rng)
        order = rng.permutation(len(draft.texts)) if self.settings.shuffle else np.argsort(draft.labels, kind="stable")
        position = np.argsort(order)
        kept = [box for box in trained.nonzero()[:, 0].tolist() if int(labels[box]) in places]
        asked = [int(position[places[int(labels[box])]]) for box in kept]
        return TrainingPrompt(
            text=[draft.texts[place] for place in order],
            boxes=record.boxes[torch.tensor(kept, dtype=torch.int64)],
            class_labels=torch.tensor(asked, dtype=torch.int64),
            spans=None,
        )

    def _labels(self, record: Record) -> Tensor:
        if record.labels is None:
            raise DataError(f"image {record.image_id!r} has neither a caption nor labels")
        if not self.label_names:
            raise DataError(f"image {record.image_id!r} has labels, but its set has no label names")
        outside = (record.labels < 0) | (record.labels >= len(self.label_names))
        if outside.any():
            worst = int(record.labels[outside][0])
            raise DataError(
                f"image {record.image_id!r} has a box with label {worst}; the set's labels are numbered 0 to "
                f"{len(self.label_names) - 1}"
            )
        return record.labels

    def _add_present(self, draft: _Draft, labels: NDArray[np.int64], rng: np.random.Generator) -> dict[int, int]:
        """Add the labels that boxes have; where each stands in the draft, if it does."""
        drawn = [(label, _pick(self._readings[label], rng)) for label in rng.permutation(labels).tolist()]
        places = {label: draft.add(label, reading) for label, reading in drawn}
        return {label: place for label, place in places.items() if place is not None}

    def _add_absent(self, draft: _Draft, record: Record, present: Collection[int], rng: np.random.Generator) -> None:
        unseen = np.setdiff1d(np.arange(len(self.label_names)), np.array(sorted(present), dtype=np.int64))
        absent = unseen if record.absent is None else np.intersect1d(unseen, np.array(record.absent, dtype=np.int64))
        seen = {reading.token_ids for label in present for reading in (self._whole[label], *self._readings[label])}
        most = min(self.settings.negatives, len(absent))
        if most:
            full = rng.random() < self.settings.full_share
            self._add_some(draft, absent, most if full else int(rng.integers(1, most + 1)), seen, rng)
        for pool, avoided in ((absent, seen), (unseen, seen), (np.arange(len(self.label_names)), set())):
            if not draft.texts:
                self._add_some(draft, pool, 1, avoided, rng)

    def _add_some(
        self,
        draft: _Draft,
        pool: NDArray[np.int64],
        count: int,
        avoided: Collection[tuple[int, ...]],
        rng: np.random.Generator,
    ) -> None:
        """Add `count` labels of the pool that read unlike `avoided` and unlike each other, while they fit."""
        taken = {*avoided, *draft.place_of}
        for label in rng.permutation(pool).tolist():
            free = [reading for reading in self._readings[label] if reading.token_ids not in taken]
            if not free:
                continue
            reading = _pick(free, rng)
            count -= 1
            if draft.add(label, reading) is None or not count:
                return
            taken.add(reading.token_ids)

    def _check_all_fit(self) -> None:
        total = sum(reading.cost for reading in self._whole)
        if not self.label_names or total > self.settings.max_tokens:
            raise DataError(
                f"all_labels: the {len(self.label_names)} labels of the set have {total} tokens together; "
                f"a prompt has 1 to max_tokens, {self.settings.max_tokens}"
            )


def _caption_prompt(record: Record, caption: str, trained: Tensor) -> TrainingPrompt:
    spans = record.spans or ()
    if len(spans) != len(record.boxes):
        raise DataError(f"image {record.image_id!r} has {len(record.boxes)} boxes and {len(spans)} lists of spans")
    if not caption.strip():
        raise DataError(f"image {record.image_id!r} has an empty caption")
    kept = [list(of_box) for of_box, is_kept in zip(spans, trained.tolist(), strict=True) if is_kept]
    return TrainingPrompt(caption, record.boxes[trained], None, kept)


def _read(names: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> list[_Reading]:
    """Each name with the tokens that the model reads for it.

    Raises:
        DataError: a name is empty or has no known token.
    """
    try:
        prompt = encode_labels(names, tokenizer)
    except ValueError as error:
        raise DataError(f"the label names cannot be asked for: {error}") from error
    specials = special_token_ids(tokenizer)
    blocks = [tuple(ids) for is_end, ids in groupby(prompt.input_ids, key=lambda t: t in specials) if not is_end]
    return [_Reading(name, ids) for name, ids in zip(names, blocks, strict=True)]


def _alternatives(whole: _Reading, tokenizer: PreTrainedTokenizerBase) -> tuple[_Reading, ...]:
    """The sides of "a/b" that the tokenizer knows, or the whole name where a side is no word ("w/o lid", "x (a/b)")."""
    sides = [side.strip() for side in whole.text.split("/")]
    are_words = all(sum(c.isalpha() for c in side) >= _LEAST_LETTERS for side in sides)
    if len(sides) < 2 or not are_words or "(" in whole.text:
        return (whole,)
    known = []
    for side in sides:
        try:
            known += _read([side], tokenizer)
        except DataError:
            continue
    return tuple(known) or (whole,)


def _pick(readings: Sequence[_Reading], rng: np.random.Generator) -> _Reading:
    return readings[int(rng.integers(len(readings)))]
