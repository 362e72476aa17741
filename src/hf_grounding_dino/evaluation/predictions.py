"""Predictions on disk: written as they come, read again one by one, resumed; and COCO results JSON of any tool."""

from __future__ import annotations

import json
import os
import time
import warnings
from array import array
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Final, NamedTuple, Protocol, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ..data.readers.files import parse_json, read_bytes
from ..data.records import DataError, shown
from ..utils.atomic import atomic_file, write_atomic
from ..utils.documents import load_json
from .ground_truth import corners_of, is_number
from .metrics.base import ItemId, ScoredBoxes
from .metrics.matching import xywh

PROTOCOL_FILE: Final = "protocol.json"
SAMPLES_A_FILE, SECONDS_A_FILE = 64, 30.0
"""A file of predictions is made of so many samples, or of those of so many seconds."""

_SCHEMA: Final = pa.schema(
    [
        ("sample_id", pa.string()),  # as JSON, so that 7 and "7" stay two
        ("boxes", pa.list_(pa.float32())),  # x1, y1, x2, y2 one box after the other
        ("scores", pa.list_(pa.float32())),
        ("labels", pa.list_(pa.int64())),
        ("unreadable", pa.string()),
    ]
)
_ROWS_AT_ONCE: Final = 16
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


class Unreadable(NamedTuple):
    """A sample whose image could not be read, and why."""

    sample_id: ItemId
    reason: str


class PredictionStore:
    """A folder of predictions in Parquet files, and the protocol they were made by.

    Several processes write at once, each into files of its own. A file has another name until it is whole.
    """

    empty_if_absent = False

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        """Use a folder, which need not exist."""
        self.folder = Path(folder)

    @property
    def where(self) -> str:
        """The folder."""
        return str(self.folder)

    @property
    def protocol(self) -> dict[str, Any] | None:
        """What the predictions were made by, None where there are none.

        Raises:
            DataError: the file that says it is no JSON object.
        """
        file = self.folder / PROTOCOL_FILE
        if not file.is_file():
            return None
        try:
            protocol = load_json(file.read_bytes())
        except ValueError as error:
            raise DataError(f"{file}: not JSON, or cut off ({error})") from None
        if not isinstance(protocol, dict):
            raise DataError(f"{file}: one JSON object is needed")
        return protocol

    def begin(self, protocol: Mapping[str, Any]) -> None:
        """Say what the predictions will be made by; existing ones have to be made by the same.

        Raises:
            DataError: they are not; the first key that differs is named with both values.
        """
        wanted = json.loads(json.dumps(protocol))
        if (written := self.protocol) is not None:
            if difference := _difference(written, wanted):
                key, there, asked = difference
                raise DataError(
                    f"{self.folder}: its predictions were made with {key} {there}, and now it is {asked}; "
                    "give another folder, or remove this one"
                )
            return
        if parts := self._files():
            raise DataError(f"{parts[0]}: there are predictions, but no {PROTOCOL_FILE} says how they were made")
        self.folder.mkdir(parents=True, exist_ok=True)
        write_atomic(self.folder / PROTOCOL_FILE, json.dumps(wanted, indent=1, ensure_ascii=False).encode())

    def writer(self, rank: int = 0) -> PredictionWriter:
        """Write the predictions of a process."""
        return PredictionWriter(self.folder, rank)

    def done(self) -> set[ItemId]:
        """The samples that have a prediction."""
        return {json.loads(one) for part in self._parts(["sample_id"]) for one in part["sample_id"].to_pylist()}

    def unreadable(self) -> list[Unreadable]:
        """The samples whose images could not be read, and were not read later; their predictions are empty."""
        found: dict[ItemId, str] = {}
        read: set[ItemId] = set()
        for part in self._parts(["sample_id", "unreadable"]):
            for written, reason in zip(part["sample_id"].to_pylist(), part["unreadable"].to_pylist(), strict=True):
                if reason is None:
                    read.add(json.loads(written))
                else:
                    found[json.loads(written)] = reason
        return [Unreadable(*item) for item in found.items() if item[0] not in read]

    def __iter__(self) -> Iterator[tuple[ItemId, ScoredBoxes]]:
        """Each sample once with its prediction, a few in memory at a time."""
        unreadable = {one.sample_id for one in self.unreadable()}
        seen: set[ItemId] = set()
        for batch in self._parts(_SCHEMA.names):
            for row, written in enumerate(batch["sample_id"].to_pylist()):
                sample_id = json.loads(written)
                outdated = batch["unreadable"][row].is_valid and sample_id not in unreadable
                if sample_id not in seen and not outdated:
                    seen.add(sample_id)
                    boxes, scores, labels = (batch[name][row].values.to_numpy().copy() for name in _SCHEMA.names[1:4])
                    yield sample_id, ScoredBoxes(boxes.reshape(-1, 4), scores, labels)

    def _files(self) -> list[Path]:
        return sorted(self.folder.glob("*.parquet"))

    def _parts(self, columns: list[str]) -> Iterator[pa.RecordBatch]:
        for file in self._files():
            try:
                with pq.ParquetFile(file) as part:
                    yield from part.iter_batches(_ROWS_AT_ONCE, columns=columns)
            except (pa.ArrowException, OSError) as error:
                # A disk that was full or lost power; what it held is asked for again.
                reason = " ".join(str(error).split())
                warnings.warn(f"{file}: not a whole Parquet file, so it does not count ({reason})", stacklevel=2)


class PredictionWriter:
    """Writes predictions into Parquet files, one after the other; on leaving the block what is left is written."""

    def __init__(self, folder: Path, rank: int) -> None:
        self._folder, self._rank = folder, rank
        self._rows: list[dict[str, Any]] = []
        self._since = time.monotonic()
        self._number = len(list(folder.glob(f"part-{rank:04d}-*.parquet")))

    def __enter__(self) -> Self:
        """Begin."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Write what is left, also when the block was cut off: each prediction is whole."""
        self.flush()

    def add(self, sample_id: ItemId, found: ScoredBoxes, unreadable: str | None = None) -> None:
        """Write one prediction; `unreadable` says why its image could not be read."""
        boxes = np.ascontiguousarray(found.boxes, dtype=np.float32).reshape(-1)
        row = {"sample_id": json.dumps(sample_id), "boxes": boxes, "scores": found.scores, "labels": found.labels}
        self._rows.append({**row, "unreadable": unreadable})
        if len(self._rows) >= SAMPLES_A_FILE or time.monotonic() - self._since > SECONDS_A_FILE:
            self.flush()

    def flush(self) -> None:
        """Write what was added since the last time."""
        self._since = time.monotonic()
        if not self._rows:
            return
        table = pa.Table.from_pydict({name: [row[name] for row in self._rows] for name in _SCHEMA.names}, _SCHEMA)
        while (file := self._folder / f"part-{self._rank:04d}-{self._number:06d}.parquet").exists():
            self._number += 1
        with atomic_file(file) as unfinished:
            pq.write_table(table, unfinished, compression="zstd")
        self._rows = []


def _difference(written: Any, wanted: Any, key: str = "") -> tuple[str, str, str] | None:
    """The first key whose values differ, with both, as they are shown."""
    if isinstance(written, dict) and isinstance(wanted, dict):
        for name in dict.fromkeys([*wanted, *written]):
            below = f"{key}.{name}" if key else name
            if name not in written or name not in wanted:
                there, asked = (shown(values[name]) if name in values else "nothing" for values in (written, wanted))
                return below, there, asked
            if found := _difference(written[name], wanted[name], below):
                return found
        return None
    return None if written == wanted else (key, shown(written), shown(wanted))


# --- COCO results JSON -------------------------------------------------------------------------------------------


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
