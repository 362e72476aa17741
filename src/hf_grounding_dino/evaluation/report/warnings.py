"""What an evaluation's predictions, labels and counts say is wrong with how it was done."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torchvision.ops import box_convert
from transformers import PreTrainedTokenizerBase

from ...data.readers.files import upright_size
from ...data.records import ImageSource
from ...layers.context import Size
from ...processing.prompts import lower_case
from ..metrics.matching import box_iou
from .diagnostics import Analysis, BoxSample, Evidence

if TYPE_CHECKING:
    from . import Facts

NEAR_ZERO = 0.02
"""Below this, an AP says that something is wrong with the evaluation before it says anything of the model."""

_GOOD_SHARE = 0.5
_EVIDENT_SHARE = 0.8
_FEWEST_LABELS = 3
_MOST_NAMED = 3
_LEAST_SHARE, _LEAST_GAIN, _HIT_IOU = 0.4, 2.0, 0.5
# (shortest edge, longest edge) of usual resizings, then sides of usual squares.
_EDGES = ((800, 1333), (600, 1000), (640, 1066), (480, 800), (320, 533))
_SQUARES = (1333, 1024, 800, 640, 512, 384, 320)

Boxes = NDArray[Any]
Reading = Callable[[Boxes, Size], Boxes]


def advise(
    labels: Mapping[int, str],
    numbers: Mapping[str, float],
    analysis: Analysis,
    facts: Facts,
    tokenizer: PreTrainedTokenizerBase | None = None,
) -> list[str]:
    """What to check before believing the numbers, a sentence each; empty where all seems well.

    Args:
        labels: category id to name; empty for a task with sentences.
        numbers: what the metric says.
        analysis: of the same predictions.
        facts: what is known beside them.
        tokenizer: of the model; without it the labels' tokens are not looked at.
    """
    return [
        *_coverage(facts, analysis.evidence, analysis.samples),
        *_wrong_boxes(numbers, analysis, labels),
        *_odd_labels(labels),
        *(_unknown_tokens(labels, tokenizer) if tokenizer is not None else ()),
    ]


def _coverage(facts: Facts, evidence: Evidence, samples: int) -> Iterator[str]:
    if facts.scored < facts.samples:
        share = facts.scored / facts.samples
        yield (
            f"Only {facts.scored:,} of {facts.samples:,} samples ({share:.1%}) were evaluated, "
            "so the numbers are not those of the whole dataset."
        )
    for files, what in ((facts.missing, "missing"), (facts.unreadable, "unreadable")):
        if files:
            verb = "image is" if len(files) == 1 else "images are"
            yield f"{len(files):,} {verb} {what}: {_some(list(files))}."
    if evidence.empty:
        verb = "has" if evidence.empty == 1 else "have"
        yield (
            f"{evidence.empty:,} of {samples:,} samples {verb} no box at all; a benchmark keeps the best boxes "
            "whatever they score, so a threshold may have been applied."
        )


# --- boxes in the wrong scale, labels in the wrong order ---------------------------------------------------------


def _wrong_boxes(numbers: Mapping[str, float], analysis: Analysis, labels: Mapping[int, str]) -> Iterator[str]:
    evidence = analysis.evidence
    if not evidence.num_truths:
        yield "There is no box to be found in what was evaluated, so nothing is measured."
        return
    located = evidence.located / evidence.num_truths
    if located < _GOOD_SHARE and (other := other_reading(evidence.samples)):
        yield (
            f"The boxes seem to be {other.reading}: read so they find {other.share:.0%} of {other.num_truths:,} boxes "
            f"of the first images, read as pixels of the image {other.share_now:.0%}."
        )
    right = sum(count for (truth, said), count in evidence.called.items() if truth == said)
    precise = numbers.get("AP", right / evidence.num_truths)
    if labels and 0 <= precise < NEAR_ZERO and located >= _GOOD_SHARE:
        known = "AP" if "AP" in numbers else "the share of right labels"
        yield (
            f"The class map may be wrong: {known} is {precise:.3f}, yet {located:.0%} of the {evidence.num_truths:,} "
            f"boxes are found when labels are left aside. {_class_map(evidence, labels)}"
        )


def _class_map(evidence: Evidence, labels: Mapping[int, str]) -> str:
    """Which mapping of labels would make most of them right, if one would."""
    total = sum(evidence.called.values())

    def explained(meaning: Mapping[int, int]) -> float:
        return sum(count for (truth, said), count in evidence.called.items() if meaning.get(said) == truth) / total

    common = _most_common_names(evidence)
    meaning = {said: truth for truth, said in common.items()}
    # Any exchange explains no less than the regular ones, which are simpler.
    share, text = max((explained(regular), text) for text, regular in _regular_maps(sorted(labels)))
    if share >= _GOOD_SHARE and share >= _EVIDENT_SHARE * explained(meaning):
        return f"{text} would make {share:.0%} of them right."
    if len(meaning) == len(common) >= _FEWEST_LABELS and explained(meaning) >= _EVIDENT_SHARE:
        pairs = [f"{_name(labels, said)} as {_name(labels, truth)}" for said, truth in meaning.items()]
        return f"Reading {_some(pairs)} would make {explained(meaning):.0%} of them right."
    return "No fixed exchange of labels explains what they are called."


def _regular_maps(ids: Sequence[int]) -> Iterator[tuple[str, dict[int, int]]]:
    """Usual mistakes: each with the category id that is meant by each number that is said."""
    every = range(min(ids) - 2, max(ids) + 3)
    yield "Adding 1 to every label", {i: i + 1 for i in every}
    yield "Subtracting 1 from every label", {i: i - 1 for i in every}
    for start in (0, 1):
        text = f"Reading the labels as positions in the list of categories, counted from {start},"
        yield text, {i + start: label for i, label in enumerate(ids)}
    yield "Reading each label as the one before it in the list of categories", {b: a for a, b in pairwise(ids)}
    yield "Reading each label as the one after it in the list of categories", dict(pairwise(ids))


def _most_common_names(evidence: Evidence) -> dict[int, int]:
    """For each label that is there, what it is called most often."""
    names: dict[int, int] = {}
    for (truth, said), _ in Counter(evidence.called).most_common():
        names.setdefault(truth, said)
    return names


class OtherReading(NamedTuple):
    """A reading of the boxes that fits better.

    reading: in words, after "the boxes seem to be".
    share, share_now: of the truths, how many have a box on them in this reading, and as they are.
    num_truths: how many truths were looked at.
    """

    reading: str
    share: float
    share_now: float
    num_truths: int


def other_reading(samples: Sequence[BoxSample]) -> OtherReading | None:
    """The reading of the boxes under which they find at least twice as many truths, and many; None without one."""
    sized = [(sample, size) for sample in samples if (size := _size(sample.image)) is not None]
    total = sum(len(sample.truths) for sample, _ in sized)
    if not total:
        return None

    def share(read: Reading) -> float:
        return sum(_located(read(sample.boxes, size), sample.truths) for sample, size in sized) / total

    now = share(lambda boxes, _: boxes)
    best, words = max((share(read), words) for words, read in _readings())
    enough = best >= _LEAST_SHARE and best >= _LEAST_GAIN * now
    return OtherReading(words, best, now, total) if enough else None


def _located(boxes: Boxes, truths: Boxes) -> int:
    return int((box_iou(boxes, truths) >= _HIT_IOU).any(0).sum())


def _readings() -> Iterator[tuple[str, Reading]]:
    def corners(layout: str) -> Reading:
        return lambda boxes, _: box_convert(torch.from_numpy(boxes), layout, "xyxy").numpy()

    def shares(layout: str = "xyxy", side: float = 1.0) -> Reading:
        return lambda boxes, size: corners(layout)(boxes, size) * np.array([*size, *size]) / side

    def resized(shortest: int, longest: int) -> Reading:
        return lambda boxes, size: boxes / min(shortest / min(size), longest / max(size))

    yield "shares of the image's sides, (x0, y0, x1, y1) in [0, 1]", shares()
    yield "centres and sides in [0, 1]", shares("cxcywh")
    yield "centres and sides (x, y, width, height) in pixels", corners("cxcywh")
    yield "corners and sides (x, y, width, height) in pixels", corners("xywh")
    for shortest, longest in _EDGES:
        yield f"pixels of the image resized to {shortest}/{longest}", resized(shortest, longest)
    for side in _SQUARES:
        yield f"pixels of the image resized to {side} × {side}", shares(side=side)


def _size(image: ImageSource) -> Size | None:
    try:
        return image.size if isinstance(image, Image.Image) else upright_size(image)
    except ValueError:
        return None


# --- labels ------------------------------------------------------------------------------------------------------


def _odd_labels(labels: Mapping[int, str]) -> Iterator[str]:
    by_words: dict[str, list[int]] = {}
    for label, name in labels.items():
        by_words.setdefault(" ".join(lower_case(name).split()), []).append(label)
    same = [f"{labels[ids[0]]!r} ({', '.join(map(str, ids))})" for ids in by_words.values() if len(ids) > 1]
    if same:
        verb = "label is" if len(same) == 1 else "labels are"
        yield (
            f"{len(same):,} {verb} there more than once: {_some(same)}; the model cannot tell them apart, "
            "so each takes boxes of the other."
        )
    inside = [(short, long) for long in by_words for short in _contained(long, by_words)]
    if inside:
        count = len({short for short, _ in inside})
        verb = "label is part of another" if count == 1 else "labels are part of others"
        examples = _some([f"{short!r} in {long!r}" for short, long in inside])
        yield (
            f"{count:,} {verb}: {examples}; a tool that goes by the text of a label may mix them up, "
            "and so may the model."
        )


def _contained(long: str, names: Mapping[str, object]) -> list[str]:
    """The names that stand inside `long`; looked up by its substrings, which are few, not by all names."""
    parts = {long[i:j] for i in range(len(long)) for j in range(i + 1, len(long) + 1) if j - i < len(long)}
    return sorted(part for part in parts if part in names)


def _unknown_tokens(labels: Mapping[int, str], tokenizer: PreTrainedTokenizerBase) -> Iterator[str]:
    if not labels:
        return
    names = list(labels.values())
    encoded = tokenizer([lower_case(name) for name in names], add_special_tokens=False, verbose=False)["input_ids"]
    shares = [ids.count(tokenizer.unk_token_id) / len(ids) if ids else 1.0 for ids in encoded]
    mostly = [f"{name!r} ({share:.0%})" for name, share in zip(names, shares, strict=True) if share >= _GOOD_SHARE]
    if mostly:
        verb = "is" if len(mostly) == 1 else "are"
        yield (
            f"{len(mostly):,} of {len(names):,} labels {verb} made mostly of words that the tokenizer does not know: "
            f"{_some(mostly)}; the model sees {tokenizer.unk_token} instead."
        )


def _name(labels: Mapping[int, str], label: int) -> str:
    return f"{label} ({labels[label]!r})" if label in labels else str(label)


def _some(items: Sequence[str]) -> str:
    """The first few of them, and how many more there are."""
    more = len(items) - _MOST_NAMED
    return ", ".join(items[:_MOST_NAMED]) + (f" and {more:,} more" if more > 0 else "")
