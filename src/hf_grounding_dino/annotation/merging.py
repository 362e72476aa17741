"""From the journals of all shards to the files of the format that was asked for."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from .answers import AnnotationError, LabelledPicture
from .files import WORK_FOLDER, atomic_file
from .journal import Answers
from .settings import Settings, digest_of, read_settings
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


def _refuse_others(answers: Answers, run: Settings, output: Path) -> None:
    """Refuse journals that are not of this run: they name the files that will be written."""
    if run.format not in FORMATS:
        raise AnnotationError(
            f"{output}: its run is of the format {run.format!r}, which is none of {', '.join(FORMATS)}"
        )
    names: list[str] = []
    for place, answer in enumerate(answers):
        if answer.index != place or any(label >= len(run.labels) for label in answer.labels):
            raise AnnotationError(f"{output}: picture {answer.index} in its journals is none of this run")
        names.append(answer.name)
    try:
        same = digest_of(names) == run.names
    except UnicodeEncodeError:  # no name of a file or of a table
        same = False
    if not same:
        raise AnnotationError(f"{output}: the names in its journals are not those that the run was begun with")


def merge(output: Path) -> Summary:
    """Write the files of a run whose pictures are all done; to repeat it does no harm.

    Raises:
        AnnotationError: no run was begun in this folder, pictures are not done yet, the journals are of another run, or
            a file cannot be written.
    """
    run = read_settings(output)
    answers = Answers(output / WORK_FOLDER)
    left = run.pictures - len(answers)
    if left:
        raise AnnotationError(
            f"{output}: {left} of {run.pictures} pictures are not done yet: run the shards that are left"
        )
    _refuse_others(answers, run, output)
    summary = summarize(answers, run.pictures, written=True)
    FORMATS[run.format].write(output, run, _Good(answers))
    (output / PROBLEMS_FILE).unlink(missing_ok=True)
    if summary.problems:
        with atomic_file(output, PROBLEMS_FILE) as file:
            for name, reason in summary.problems:
                file.write(json.dumps({"picture": name, "problem": reason}) + "\n")
    return summary
