"""Predictions that are scored: those that a run has stored, and COCO results JSON of any tool."""

from __future__ import annotations

import json
import os
from array import array
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np

from ..data.readers.files import parse_json, read_bytes
from ..data.records import DataError
from ..inference.predictions import ItemId, ScoredBoxes
from ..utils.atomic import atomic_file
from .ground_truth import corners_of, is_number
from .metrics.matching import xywh

_FIELDS: Final = ("image_id", "category_id", "bbox", "score")
_ROW: Final = object()


class Predictions(Protocol):
    """Predictions that can be scored, whoever made them."""

    @property
    def where(self) -> str:
        """The file or folder, for messages."""
        ...

    @property
    def empty_if_absent(self) -> bool:
        """Whether a sample that is not there was asked all the same, and nothing was found in it."""
        ...

    def done(self) -> set[ItemId]:
        """The samples that have a prediction."""
        ...

    def __iter__(self) -> Iterator[tuple[ItemId, ScoredBoxes]]:
        """Each prediction once."""
        ...


class ResultsFile:
    """The predictions of a list `[{"image_id", "category_id", "bbox", "score"}]`, kept in flat arrays.

    An image that is not in it has none.
    """

    empty_if_absent = True

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Read a file.

        Raises:
            DataError: no JSON list, cut off, an entry without one of the four fields, a score that is no finite number,
                or a box that is not [x, y, width, height] with sides of at least 0.
        """
        self.path = Path(path)
        self._images: dict[ItemId, int] = {}
        self._rows, self._labels = array("q"), array("q")
        self._boxes, self._scores = array("d"), array("d")
        self._read()
        rows, scores = np.array(self._rows, dtype=np.int64), np.array(self._scores)
        # By image, and there by falling score; of equal scores the earlier entry comes first.
        self._order = np.lexsort((-scores, rows))
        self._first = np.concatenate([[0], np.bincount(rows, minlength=len(self._images)).cumsum()]).astype(np.int64)

    @property
    def where(self) -> str:
        """The file."""
        return str(self.path)

    def done(self) -> set[ItemId]:
        """The images that have a prediction."""
        return set(self._images)

    def __len__(self) -> int:
        """Number of entries."""
        return len(self._scores)

    def __iter__(self) -> Iterator[tuple[ItemId, ScoredBoxes]]:
        """The predictions of each image once, by falling score; boxes and scores are float64."""
        boxes = np.frombuffer(self._boxes).reshape(-1, 4) if len(self) else np.zeros((0, 4))
        every = ScoredBoxes(boxes, np.array(self._scores), np.array(self._labels, dtype=np.int64))
        for image_id, image in self._images.items():
            yield image_id, every.at(self._order[self._first[image] : self._first[image + 1]])

    def _read(self) -> None:
        entries = parse_json(read_bytes(self.path), str(self.path), object_hook=self._entry)
        if not isinstance(entries, list):
            raise DataError(f"{self.path}: a list of predictions is needed")
        for number, entry in enumerate(entries, start=1):
            if entry is not _ROW:
                lacking = [name for name in _FIELDS if not isinstance(entry, dict) or name not in entry]
                raise DataError(f"{self.path}, entry {number}: has no {lacking[0] if lacking else _FIELDS[0]}")

    def _entry(self, entry: dict[str, Any]) -> Any:
        """Take an entry into the arrays as soon as it is read, so that the file is never there as objects."""
        if not all(name in entry for name in _FIELDS):
            return entry
        where = f"{self.path}, entry {len(self) + 1}"
        image_id, label, score = (entry[name] for name in ("image_id", "category_id", "score"))
        if not isinstance(image_id, int | str) or type(label) is not int:
            raise DataError(f"{where}: image_id and category_id are whole numbers, not {image_id!r} and {label!r}")
        if not is_number(score):
            raise DataError(f"{where}: score is a finite number, not {score!r}")
        corners = corners_of(entry, where)
        self._rows.append(self._images.setdefault(image_id, len(self._images)))
        self._labels.append(label)
        self._boxes.extend(corners)
        self._scores.append(score)
        return _ROW


def write_results(path: str | os.PathLike[str], predictions: Iterable[tuple[ItemId, ScoredBoxes]]) -> int:
    """Write predictions as a results file, one image in memory at a time; the file appears when it is whole.

    Returns:
        Number of entries.
    """
    file = Path(path)
    file.parent.mkdir(parents=True, exist_ok=True)
    count = 0
    with atomic_file(file) as unfinished, unfinished.open("w", encoding="utf-8") as stream:
        stream.write("[")
        for image_id, found in predictions:
            columns = (xywh(found.boxes).tolist(), found.labels.tolist(), found.scores.tolist())
            for box, label, score in zip(*columns, strict=True):
                entry = {"image_id": image_id, "category_id": label, "bbox": box, "score": score}
                stream.write(f"{',' if count else ''}\n{json.dumps(entry)}")
                count += 1
        stream.write("\n]\n")
    return count
