"""Answers on disk: written as they come, read again one by one, and found again after a run was cut off."""

from __future__ import annotations

import json
import os
import time
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Final, NamedTuple, Protocol, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ..data.records import DataError, shown
from ..utils.atomic import atomic_file, write_atomic
from ..utils.documents import load_json
from .tasks import Answer, CaseId

PROTOCOL_FILE: Final = "protocol.json"
CASES_A_FILE, SECONDS_A_FILE = 64, 30.0
"""A file of answers is made of so many cases, or of those of so many seconds."""

_SCHEMA: Final = pa.schema(
    [
        ("case_id", pa.string()),  # as JSON, so that 7 and "7" stay two
        ("boxes", pa.list_(pa.float32())),  # x1, y1, x2, y2 one box after the other
        ("scores", pa.list_(pa.float32())),
        ("labels", pa.list_(pa.int64())),
        ("unreadable", pa.string()),
    ]
)
_ROWS_AT_ONCE: Final = 16


class Predictions(Protocol):
    """Answers that can be scored, whoever made them."""

    @property
    def where(self) -> str:
        """The file or folder, for messages."""
        ...

    @property
    def empty_if_absent(self) -> bool:
        """Whether a case that is not there was asked all the same, and nothing was found in it."""
        ...

    def done(self) -> set[CaseId]:
        """The cases that have an answer."""
        ...

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Each answer once, as the metrics take it: `image_id`, `boxes`, `scores`, `labels`."""
        ...


class Unreadable(NamedTuple):
    """A case whose picture could not be read, and why."""

    case_id: CaseId
    reason: str


class PredictionStore:
    """A folder of answers in Parquet files, and the protocol they were made by.

    Several processes write at once, each into files of its own. A file has another name until it is whole.
    """

    empty_if_absent = False

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        """Use a folder, which need not be there."""
        self.folder = Path(folder)

    @property
    def where(self) -> str:
        """The folder."""
        return str(self.folder)

    @property
    def protocol(self) -> dict[str, Any] | None:
        """What the answers were made by, None where nothing is there.

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
        """Say what the answers will be made by; where some are there, it has to be what those were made by.

        Raises:
            DataError: it is not; the first key that differs is named with both values.
        """
        wanted = json.loads(json.dumps(protocol))
        written = self.protocol
        if written is not None:
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
        """Write the answers of a process."""
        return PredictionWriter(self.folder, rank)

    def done(self) -> set[CaseId]:
        """The cases that have an answer."""
        return {json.loads(case_id) for part in self._parts(["case_id"]) for case_id in part["case_id"].to_pylist()}

    def unreadable(self) -> list[Unreadable]:
        """The cases whose pictures could not be read, and were not read later; their answers are empty."""
        found: dict[CaseId, str] = {}
        read: set[CaseId] = set()
        for part in self._parts(["case_id", "unreadable"]):
            for written, reason in zip(part["case_id"].to_pylist(), part["unreadable"].to_pylist(), strict=True):
                if reason is None:
                    read.add(json.loads(written))
                else:
                    found[json.loads(written)] = reason
        return [Unreadable(*item) for item in found.items() if item[0] not in read]

    def answers(self) -> Iterator[tuple[CaseId, Answer]]:
        """Each case once with its answer, a few in memory at a time."""
        unreadable = {one.case_id for one in self.unreadable()}
        seen: set[CaseId] = set()
        for batch in self._parts(_SCHEMA.names):
            for row, written in enumerate(batch["case_id"].to_pylist()):
                case_id = json.loads(written)
                outdated = batch["unreadable"][row].is_valid and case_id not in unreadable
                if case_id not in seen and not outdated:
                    seen.add(case_id)
                    boxes, scores, labels = (batch[name][row].values.to_numpy().copy() for name in _SCHEMA.names[1:4])
                    yield case_id, Answer(boxes.reshape(-1, 4), scores, labels)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Each answer once, as the metrics take it."""
        return (answer.as_prediction(case_id) for case_id, answer in self.answers())

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
    """Writes answers into Parquet files, one after the other; on leaving the block what is left is written."""

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
        """Write what is left, also when the block was cut off: each answer is whole."""
        self.flush()

    def add(self, case_id: CaseId, answer: Answer, unreadable: str | None = None) -> None:
        """Write one answer; `unreadable` says why its picture could not be read."""
        boxes = np.ascontiguousarray(answer.boxes, dtype=np.float32).reshape(-1)
        row = {"case_id": json.dumps(case_id), "boxes": boxes, "scores": answer.scores, "labels": answer.labels}
        self._rows.append({**row, "unreadable": unreadable})
        if len(self._rows) >= CASES_A_FILE or time.monotonic() - self._since > SECONDS_A_FILE:
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
