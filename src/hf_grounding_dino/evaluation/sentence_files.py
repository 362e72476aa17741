"""Files of sentences as samples: captions with phrases, referring expressions (MDETR's JSON), and the groups of D3."""

from __future__ import annotations

import pickle
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from ..data.readers.files import ImageFolder, as_integer, read_json
from ..data.records import DataError
from .ground_truth import Json, annotation_entries, corners_of, image_entries, image_file, read_entries
from .metrics.base import ItemId
from .tasks import Sample

Spans = tuple[tuple[int, int], ...]


class _Entry(NamedTuple):
    """An image entry with its annotations, each with where it stands."""

    where: str
    image_id: ItemId
    entry: Json
    caption: str
    image: Path
    annotations: list[tuple[str, Json]]


def caption_samples(path: Path, images: Path | None) -> tuple[list[Sample], list[str]]:
    """The captions of an MDETR-style file, with the phrases that `tokens_positive_eval` names.

    A box is of every phrase of which its `tokens_positive` have a span. Where a caption's boxes have none of those,
    they go by their `phrase_ids`, the smallest of the caption for its first phrase. The reference has `boxes` (n, 4)
    and `labels` (n,), the number of the phrase; a box of two phrases is there twice.

    Returns:
        The samples, and the images that do not exist; those are only looked for where `images` is given.

    Raises:
        DataError: as `ground_truth.read_annotations`; no caption, no phrases, a span that is not inside the caption, or
            a box of no phrase.
    """
    entries, missing = _entries(path, images)
    samples = []
    for one in entries:
        phrases = _phrases(one)
        boxes, labels = [], []
        for (where, annotation), own in zip(one.annotations, _phrase_numbers(one, phrases), strict=True):
            boxes += [corners_of(annotation, where)] * len(own)
            labels += own
        reference = {"image_id": one.image_id, "boxes": _array(boxes), "labels": np.array(labels, dtype=np.int64)}
        samples.append(Sample(one.image_id, one.image, reference, one.caption, phrases))
    return samples, missing


def expression_samples(
    path: Path, images: Path | None, *, dataset_name: str | None = None, generalized: bool = False
) -> tuple[list[Sample], list[str]]:
    """The expressions of an MDETR-style file, one an image entry.

    The reference has `boxes` (n, 4) and, where the file says it, `dataset_name`. Annotations of category -1 and boxes
    of four zeros stand for "nothing is meant".

    Returns:
        As `caption_samples`.

    Raises:
        DataError: as `ground_truth.read_annotations`; no expression, none of the set wanted, or, unless `generalized`,
            one that means nothing.
    """
    entries, missing = _entries(path, images, dataset_name)
    samples = []
    for one in entries:
        meant = [(where, entry) for where, entry in one.annotations if not _is_placeholder(entry)]
        boxes = [corners_of(entry, where) for where, entry in meant]
        if not boxes and not generalized:
            raise DataError(f"{one.where}: means no box; only generalized expressions (gRefCOCO) may")
        name = one.entry.get("dataset_name")
        reference: Json = {"image_id": one.image_id, "boxes": _array(boxes)}
        samples.append(
            Sample(one.image_id, one.image, {**reference, "dataset_name": name} if name else reference, one.caption)
        )
    return samples, missing


@dataclass(frozen=True)
class Sentences:
    """The sentences of D3.

    texts: sentence id to text.
    presence: sentence id to whether it describes what is there, not what is absent.
    asked: image id to the ids of the sentences of its group.
    """

    texts: Mapping[int, str]
    presence: Mapping[int, bool]
    asked: Mapping[ItemId, tuple[int, ...]]


def read_sentences(folder: Path) -> Sentences:
    """Read which sentences go with which images: `images`, `groups` and `sentences`, as .pkl or .json (D3's d3_pkl).

    Of pickles only plain values are read; what would run code is refused.

    Raises:
        DataError: a file does not exist or is something else, or names what does not exist.
    """
    images, groups, sentences = (_table(folder, name) for name in ("images", "groups", "sentences"))
    try:
        texts = {number: str(one["raw_sent"]) for number, one in sentences.items()}
        presence = {number: not one["is_negative"] for number, one in sentences.items()}
        inner = {number: tuple(sorted(int(own) for own in one["inner_sent_id"])) for number, one in groups.items()}
        asked: dict[ItemId, tuple[int, ...]] = {number: inner[int(one["group_id"])] for number, one in images.items()}
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{folder}: images, groups and sentences do not fit together ({error!r})") from None
    if strange := [own for numbers in inner.values() for own in numbers if own not in texts]:
        raise DataError(f"{folder}: a group has the sentence {strange[0]}, which is not among the sentences")
    return Sentences(texts, presence, asked)


def _entries(path: Path, images: Path | None, dataset_name: str | None = None) -> tuple[list[_Entry], list[str]]:
    document = read_entries(path, ("images", "annotations"))
    listed = image_entries(document, path)
    folder = None if images is None else ImageFolder(images, path)
    annotations: dict[ItemId, list[tuple[str, Json]]] = {image_id: [] for image_id in listed}
    for where, annotation in annotation_entries(document, listed, path):
        annotations[annotation["image_id"]].append((where, annotation))
    entries, missing = [], []
    for image_id, entry in listed.items():
        if dataset_name is not None and entry.get("dataset_name") != dataset_name:
            continue
        where = f"{path}, image {image_id}"
        caption = entry.get("caption")
        if not isinstance(caption, str) or not caption.strip():
            raise DataError(f"{where}: has no caption")
        file, there = image_file(entry, folder)
        image = (images or Path()) / file
        if folder is not None and not there:
            missing.append(str(image))
        entries.append(_Entry(where, image_id, entry, caption, image, annotations[image_id]))
    if not entries:
        raise DataError(f"{path}: has no image whose dataset_name is {dataset_name!r}")
    return entries, missing


def _phrases(one: _Entry) -> tuple[Spans, ...]:
    raw = one.entry.get("tokens_positive_eval")
    if not isinstance(raw, list) or not raw:
        raise DataError(f"{one.where}: has no tokens_positive_eval, the phrases that are to be found")
    return tuple(_spans(phrase, one) for phrase in raw)


def _spans(raw: object, one: _Entry) -> Spans:
    if not isinstance(raw, list) or not raw:
        raise DataError(f"{one.where}: a phrase is a list of [start, end], not {raw!r}")
    for span in raw:
        if not isinstance(span, list) or len(span) != 2 or not all(type(end) is int for end in span):
            raise DataError(f"{one.where}: a span is [start, end], not {span!r}")
        if not 0 <= span[0] < span[1] <= len(one.caption):
            raise DataError(f"{one.where}: span {span} is not inside a caption of {len(one.caption)} characters")
    return tuple((start, end) for start, end in raw)


def _phrase_numbers(one: _Entry, phrases: Sequence[Spans]) -> list[list[int]]:
    """For each annotation the phrases that it is a box of."""
    of_span: dict[tuple[int, int], list[int]] = {}
    for number, spans in enumerate(phrases):
        for span in spans:
            of_span.setdefault(span, []).append(number)
    found = []
    for _, annotation in one.annotations:
        own: list[Any] = [tuple(span) for span in annotation.get("tokens_positive") or [] if isinstance(span, list)]
        found.append(sorted({number for span in own for number in of_span.get(span, [])}))
    return found if all(found) else _by_phrase_ids(one, len(phrases))


def _by_phrase_ids(one: _Entry, num_phrases: int) -> list[list[int]]:
    written = [annotation.get("phrase_ids") for _, annotation in one.annotations]
    keys = [as_integer(ids[0] if isinstance(ids, list) and len(ids) == 1 else ids) for ids in written]
    ranks = {key: rank for rank, key in enumerate(sorted({key for key in keys if key is not None}))}
    if None in keys or len(ranks) != num_phrases:
        raise DataError(
            f"{one.where}: a box is of no phrase: neither do its tokens_positive hold a span of tokens_positive_eval, "
            f"nor have the boxes {num_phrases} different phrase_ids for {num_phrases} phrases"
        )
    return [[ranks[key]] for key in keys if key is not None]


def _is_placeholder(annotation: Json) -> bool:
    return as_integer(annotation.get("category_id")) == -1 or annotation.get("bbox") == [0, 0, 0, 0]


def _array(boxes: list[tuple[float, float, float, float]]) -> Any:
    return np.array(boxes, dtype=np.float64).reshape(-1, 4)


class _PlainUnpickler(pickle.Unpickler):
    """Reads numbers, text and containers, NumPy's too, and nothing that could run code."""

    _ALLOWED = frozenset(
        {("collections", "OrderedDict"), ("collections", "defaultdict"), ("builtins", "list"), ("builtins", "dict")}
        | {("builtins", "set"), ("numpy", "dtype"), ("numpy", "ndarray")}
        | {
            (module, name)
            for module in ("numpy.core.multiarray", "numpy._core.multiarray")
            for name in ("scalar", "_reconstruct")
        }
    )

    def find_class(self, module: str, name: str) -> Any:
        """Give one of the harmless classes.

        Raises:
            UnpicklingError: it is another one.
        """
        if (module, name) not in self._ALLOWED:
            raise pickle.UnpicklingError(f"it holds {module}.{name}, and only plain values are read")
        return super().find_class(module, name)


def _table(folder: Path, name: str) -> dict[int, Json]:
    """A mapping from numbers, from `name`.json or `name`.pkl."""
    file = folder / f"{name}.json"
    if file.is_file():
        table = read_json(file)
    else:
        file = folder / f"{name}.pkl"
        table = _read_pickle(file)
    try:
        return {int(key): value for key, value in table.items()}
    except (AttributeError, TypeError, ValueError):
        raise DataError(f"{file}: a mapping from numbers is needed") from None


def _read_pickle(file: Path) -> Any:
    try:
        with file.open("rb") as stream:
            return _load(stream)
    except OSError as error:
        raise DataError(f"{file}: {error.strerror}") from error
    # A damaged pickle leads to errors of nearly every kind.
    except Exception as error:
        raise DataError(f"{file}: not a pickle of plain values ({' '.join(str(error).split())})") from None


def _load(stream: BinaryIO) -> Any:
    return _PlainUnpickler(stream).load()
