"""What was found so far: a file of JSON lines for each shard, only ever added to, that a kill cannot spoil."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO

from ..utils.atomic import lock
from .answers import AnnotationError, LabelledPicture, from_line, to_line
from .files import cannot_write, name_problem


@dataclass(frozen=True)
class Shard:
    """Part `index` of `count`, from 0."""

    index: int = 0
    count: int = 1

    def __str__(self) -> str:
        """As people write it, from 1."""
        return f"{self.index + 1}/{self.count}"


class Journal:
    """The journal of one shard, open for adding to; a last line that was cut off is removed.

    Only one process can hold it at a time.
    """

    def __init__(self, folder: Path, shard: Shard) -> None:
        """Open it, or begin it.

        Raises:
            AnnotationError: another process holds it, or it cannot be written.
        """
        self.path = folder / f"shard-{shard.index + 1}-of-{shard.count}.jsonl"
        try:
            # Unbuffered, so that nothing is left to be written when the disk is full.
            self._file: IO[bytes] = open(self.path, "ab", buffering=0)  # noqa: SIM115
        except OSError as error:
            raise cannot_write(self.path, error) from error
        try:
            if not lock(self._file):
                raise AnnotationError(f"another process is at work on shard {shard} of {self.path}")
            _cut_torn_line(self.path)
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def add(self, answers: Sequence[LabelledPicture]) -> None:
        """Write the answers; when this returns, a kill of the process does not lose them.

        Raises:
            AnnotationError: they cannot be written, as on a full disk.
        """
        rest = memoryview(b"".join(map(to_line, answers)))
        try:
            while rest:
                rest = rest[self._file.write(rest) :]
        except OSError as error:
            raise cannot_write(self.path, error) from error


def _cut_torn_line(path: Path) -> None:
    """Remove what follows the last line end."""
    with path.open("r+b") as file:
        end = file.seek(0, os.SEEK_END)
        while end:
            start = max(0, end - 65536)
            file.seek(start)
            line_end = file.read(end - start).rfind(b"\n")
            end = start + line_end + 1 if line_end >= 0 else start
            if line_end >= 0:
                break
        file.truncate(end)


class Answers:
    """What all journals of a run hold, each picture once, in the order of the pictures; the lines stay on disk.

    It may be read while processes add to the journals; it holds what was there when it was made. A picture that could
    not be labelled at first, and later was, is there as it was later.
    """

    def __init__(self, folder: Path, *, with_problems: bool = True) -> None:
        """Find the lines.

        Args:
            with_problems: hold the pictures that could not be labelled, too.

        Raises:
            AnnotationError: a line that is damaged.
        """
        self._paths = sorted(folder.glob("shard-*.jsonl"))
        self._places: dict[int, tuple[int, int]] = {}
        problems: dict[int, tuple[int, int]] = {}
        for number, path in enumerate(self._paths):
            for offset, answer in _lines(path):
                kept = self._places if answer.problem is None else problems
                kept.setdefault(answer.index, (number, offset))
        if with_problems:
            self._places = problems | self._places

    def __len__(self) -> int:
        """Number of pictures."""
        return len(self._places)

    def __contains__(self, index: object) -> bool:
        """Whether a picture is there."""
        return index in self._places

    def __iter__(self) -> Iterator[LabelledPicture]:
        """All pictures by rising index."""
        with ExitStack() as stack:
            files = [stack.enter_context(path.open("rb")) for path in self._paths]
            for _, (number, offset) in sorted(self._places.items()):
                files[number].seek(offset)
                yield from_line(files[number].readline())


def _lines(path: Path) -> Iterator[tuple[int, LabelledPicture]]:
    """Offset and content of each whole line."""
    offset = 0
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.endswith(b"\n"):
                return
            try:
                answer = from_line(line)
                if answer.problem is None and (problem := name_problem(answer.name)):
                    raise ValueError(problem)
            except ValueError as error:
                raise AnnotationError(
                    f"{path}, line {number}: damaged; delete the line, and its picture is done again"
                ) from error
            yield offset, answer
            offset += len(line)
