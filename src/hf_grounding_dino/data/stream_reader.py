"""Records of a stream by position, for readers that ask for ever later ones."""

from __future__ import annotations

import os
from collections.abc import Iterator

from .records import DataError, Record, RecordStream


class StreamReader:
    """A stream that starts again when it ends, read at positions from 0, in each process by itself.

    Asking for a later position reads all in between, so that going on after a million records reads a million records
    once; asking for one that is gone starts from the beginning. A copy, by `pickle`, and a forked process start there.
    """

    def __init__(self, stream: RecordStream) -> None:
        """Read nothing yet."""
        self.stream = stream
        self._kept: dict[int, Record] = {}
        self._restart()

    def __reduce__(self) -> tuple[type[StreamReader], tuple[RecordStream]]:
        """Copy the stream alone: how far it was read cannot be copied."""
        return type(self), (self.stream,)

    def read(self, position: int, keep_from: int | None = None) -> Record:
        """The record at a position.

        Args:
            position: from 0, counted on over the end of the stream.
            keep_from: the first position that can be asked for again, if it is not this one.

        Raises:
            DataError: the stream is empty.
        """
        keep_from = position if keep_from is None else keep_from
        if self._process != os.getpid() or position < min(self._kept, default=self._next):
            self._restart()
        while self._next <= position:
            record = self._following()
            if self._next >= keep_from:
                self._kept[self._next] = record
            self._next += 1
        self._kept = {place: record for place, record in self._kept.items() if place >= keep_from}
        return self._kept[position]

    def _restart(self) -> None:
        self._process = os.getpid()
        self._records: Iterator[Record] = iter(())
        self._next = 0
        self._kept = {}

    def _following(self) -> Record:
        record = next(self._records, None)
        if record is None:
            self._records = iter(self.stream)
            record = next(self._records, None)
        if record is None:
            raise DataError(f"{self.stream.name}: the stream holds no record, or too few for so many processes")
        return record
