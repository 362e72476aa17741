"""Predictions on disk: written as they come, read again one by one, and resumed from after a run was cut off.

Evaluation and annotation keep what they have found here.
"""

from __future__ import annotations

import functools
import json
import os
import time
import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Final, NamedTuple, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from ..data.records import DataError, shown
from ..utils.atomic import atomic_file, write_atomic
from ..utils.documents import load_json

ItemId = int | str

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
        ("size", pa.list_(pa.int32(), 2)),  # width and height; not in older files
    ]
)
_ROWS_AT_ONCE: Final = 16
_FILES_OPEN: Final = 64


class ScoredBoxes(NamedTuple):
    """What a model found in one item: boxes with scores and labels.

    boxes: (k, 4), xyxy in pixels of the upright image.
    scores: (k,), finite.
    labels: (k,): category ids of the annotation file (detection, described objects), the number of the phrase in its
        caption (phrase grounding), 0 (referring).
    """

    boxes: NDArray[Any]
    scores: NDArray[Any]
    labels: NDArray[np.int64]

    def as_prediction(self, image_id: ItemId) -> dict[str, Any]:
        """As the metrics take it."""
        return {"image_id": image_id, **self._asdict()}

    def at(self, where: NDArray[Any]) -> ScoredBoxes:
        """Those at some places, or under a mask."""
        return ScoredBoxes(*(column[where] for column in self))


NOTHING_FOUND = ScoredBoxes(np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0, np.int64))


def scored_boxes(found: Mapping[str, Any], category_ids: Sequence[int] | None) -> ScoredBoxes:
    """Detections as they are stored and judged: float32, labels as category ids."""
    scores, boxes = (found[name].detach().float().cpu().numpy() for name in ("scores", "boxes"))
    labels = found["labels"].cpu().numpy().astype(np.int64)
    return ScoredBoxes(boxes, scores, labels if category_ids is None else np.array(category_ids, np.int64)[labels])


class Unreadable(NamedTuple):
    """A sample whose image could not be read, and why."""

    sample_id: ItemId
    reason: str


class Stored(NamedTuple):
    """A sample as it lies on disk.

    size: (width, height) of its image.
    unreadable: why the image could not be read; None where it could.
    """

    sample_id: ItemId
    found: ScoredBoxes
    size: tuple[int, int]
    unreadable: str | None


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

    def begin(self, protocol: Mapping[str, Any], *, free: Collection[str] = ()) -> None:
        """Say what the predictions will be made by; existing ones have to be made by the same.

        Args:
            protocol: everything that decides the predictions.
            free: keys that may differ; what was said first stays.

        Raises:
            DataError: they are not; the first key that differs is named with both values.
        """
        wanted = json.loads(json.dumps(protocol))
        if (written := self.protocol) is not None:
            before, now = ({key: one[key] for key in one if key not in free} for one in (written, wanted))
            if difference := _difference(before, now):
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

    def writer(self, rank: int | str = 0) -> PredictionWriter:
        """Write the predictions of a process, whose number or name no other has."""
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
        for batch in self._parts(_SCHEMA.names[:5]):
            for row, written in enumerate(batch["sample_id"].to_pylist()):
                sample_id = json.loads(written)
                outdated = batch["unreadable"][row].is_valid and sample_id not in unreadable
                if sample_id not in seen and not outdated:
                    seen.add(sample_id)
                    yield sample_id, _stored(sample_id, batch, row).found

    def in_order(self) -> Iterator[Stored]:
        """Each sample once, by its id, with all that is stored of it; a few files in memory at a time."""
        places: dict[ItemId, tuple[Path, int]] = {}
        unreadable: dict[ItemId, tuple[Path, int]] = {}
        for file in self._files():
            row = 0
            for part in self._parts(["sample_id", "unreadable"], [file]):
                for written, reason in zip(part["sample_id"].to_pylist(), part["unreadable"].to_pylist(), strict=True):
                    (places if reason is None else unreadable).setdefault(json.loads(written), (file, row))
                    row += 1

        @functools.lru_cache(_FILES_OPEN)
        def table(file: Path) -> pa.RecordBatch:
            return pq.read_table(file).combine_chunks().to_batches()[0]

        for sample_id, (file, row) in sorted(
            (unreadable | places).items(), key=lambda one: (isinstance(one[0], str), one[0])
        ):
            yield _stored(sample_id, table(file), row)

    def _files(self) -> list[Path]:
        return sorted(self.folder.glob("*.parquet"))

    def _parts(self, columns: list[str], files: list[Path] | None = None) -> Iterator[pa.RecordBatch]:
        for file in self._files() if files is None else files:
            try:
                with pq.ParquetFile(file) as part:
                    yield from part.iter_batches(_ROWS_AT_ONCE, columns=columns)
            except (pa.ArrowException, OSError) as error:
                # A disk that was full or lost power; what it held is asked for again.
                reason = " ".join(str(error).split())
                warnings.warn(f"{file}: not a whole Parquet file, so it does not count ({reason})", stacklevel=2)


def _stored(sample_id: ItemId, batch: pa.RecordBatch, row: int) -> Stored:
    """A row of a file; the size is (0, 0) where the file has none."""
    boxes, scores, labels = (batch[name][row].values.to_numpy().copy() for name in ("boxes", "scores", "labels"))
    width, height = (batch["size"][row].as_py() if "size" in batch.schema.names else None) or (0, 0)
    found = ScoredBoxes(boxes.reshape(-1, 4), scores, labels)
    return Stored(sample_id, found, (width, height), batch["unreadable"][row].as_py())


class PredictionWriter:
    """Writes predictions into Parquet files, one after the other; on leaving the block what is left is written."""

    def __init__(self, folder: Path, rank: int | str) -> None:
        self._folder, self._name = folder, f"part-{rank:0>4}"
        self._rows: list[dict[str, Any]] = []
        self._since = time.monotonic()
        self._number = len(list(folder.glob(f"{self._name}-*.parquet")))

    def __enter__(self) -> Self:
        """Begin."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Write what is left, also when the block was cut off: each prediction is whole."""
        self.flush()

    def add(
        self,
        sample_id: ItemId,
        found: ScoredBoxes,
        unreadable: str | None = None,
        size: tuple[int, int] | None = None,
    ) -> None:
        """Write one prediction.

        Args:
            sample_id: its name.
            found: what was found.
            unreadable: why its image could not be read.
            size: (width, height) of the image.
        """
        boxes = np.ascontiguousarray(found.boxes, dtype=np.float32).reshape(-1)
        row = {"sample_id": json.dumps(sample_id), "boxes": boxes, "scores": found.scores, "labels": found.labels}
        self._rows.append({**row, "unreadable": unreadable, "size": size})
        if len(self._rows) >= SAMPLES_A_FILE or time.monotonic() - self._since > SECONDS_A_FILE:
            self.flush()

    def flush(self) -> None:
        """Write what was added since the last time."""
        self._since = time.monotonic()
        if not self._rows:
            return
        table = pa.Table.from_pydict({name: [row[name] for row in self._rows] for name in _SCHEMA.names}, _SCHEMA)
        while (file := self._folder / f"{self._name}-{self._number:06d}.parquet").exists():
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
