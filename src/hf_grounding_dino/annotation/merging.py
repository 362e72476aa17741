"""From the journals of all shards to the files of the format that was asked for."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from .answers import AnnotationError, LabelledPicture
from .files import WORK_FOLDER, atomic_file
from .journal import Answers
from .settings import read_settings
from .writers import FORMATS

PROBLEMS_FILE = "problems.jsonl"


@dataclass(frozen=True)
class Summary:
    """How far a run has come.

    pictures: of the source.
    done: by any shard, those with problems among them.
    boxes: in them.
    problems: (name, reason) of those that could not be labelled, in the order of the pictures.
    written: whether the files are there, which needs all pictures to be done.
    """

    pictures: int
    done: int
    boxes: int
    problems: list[tuple[str, str]]
    written: bool


def summarize(answers: Answers, pictures: int, written: bool) -> Summary:
    """Count what is in the journals."""
    boxes, problems = 0, []
    for answer in answers:
        boxes += len(answer.boxes)
        if answer.problem is not None:
            problems.append((answer.name, answer.problem))
    return Summary(pictures, len(answers), boxes, problems, written)


@dataclass(frozen=True)
class _Good:
    """The pictures that were labelled; each loop reads them anew."""

    answers: Answers

    def __iter__(self) -> Iterator[LabelledPicture]:
        return (answer for answer in self.answers if answer.problem is None)


def merge(output: Path) -> Summary:
    """Write the files of a run whose pictures are all done; to repeat it does no harm.

    Raises:
        AnnotationError: no run was begun in this folder, pictures are not done yet, or a file cannot be written.
    """
    run = read_settings(output)
    answers = Answers(output / WORK_FOLDER)
    left = run.pictures - len(answers)
    if left:
        raise AnnotationError(
            f"{output}: {left} of {run.pictures} pictures are not done yet: run the shards that are left"
        )
    summary = summarize(answers, run.pictures, written=True)
    FORMATS[run.format].write(output, run, _Good(answers))
    (output / PROBLEMS_FILE).unlink(missing_ok=True)
    if summary.problems:
        with atomic_file(output, PROBLEMS_FILE) as file:
            for name, reason in summary.problems:
                file.write(json.dumps({"picture": name, "problem": reason}) + "\n")
    return summary
