"""What is known of each picture once the model has seen it, and the one error of this package."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, field
from typing import Any

_BOX_DIGITS = 2  # a hundredth of a pixel
_SCORE_DIGITS = 4
_LEAST_SIDE = 1.02  # readers take boxes below a pixel for mistakes, and files round


class AnnotationError(ValueError):
    """Pictures that cannot be labelled as asked, in one line that says what to mend."""


@dataclass(frozen=True)
class LabelledPicture:
    """One picture with its boxes, best first, or what is wrong with it.

    index: its position among all pictures of the source, from 0.
    name: its path in the source, with "/".
    size: (width, height) of the upright picture, in pixels.
    boxes: (x0, y0, x1, y1) in pixels of the upright picture, to a hundredth, with sides of more than a pixel.
    labels: for each box the position of its label in the run's list.
    scores: for each box, in [0, 1], to four digits.
    problem: why it could not be labelled; None where it was.
    """

    index: int
    name: str
    size: tuple[int, int] = (0, 0)
    boxes: list[list[float]] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    problem: str | None = None


def rounded_boxes(
    boxes: list[list[float]], labels: list[int], scores: list[float]
) -> tuple[list[list[float]], list[int], list[float]]:
    """What a `LabelledPicture` keeps of boxes, labels and scores: a box with a side of hardly a pixel is dropped."""
    rows = [
        ([round(side, _BOX_DIGITS) for side in box], label, round(score, _SCORE_DIGITS))
        for box, label, score in zip(boxes, labels, scores, strict=True)
    ]
    kept = [row for row in rows if min(row[0][2] - row[0][0], row[0][3] - row[0][1]) >= _LEAST_SIDE]
    return [row[0] for row in kept], [row[1] for row in kept], [row[2] for row in kept]


def to_line(answer: LabelledPicture) -> bytes:
    """A line of a journal, with its end; a lone surrogate in a name is escaped as all that is not ASCII."""
    content = asdict(answer)
    if answer.problem is None:
        del content["problem"]
    else:
        content = {"index": answer.index, "name": answer.name, "problem": answer.problem}
    return json.dumps(content).encode() + b"\n"


def from_line(line: bytes) -> LabelledPicture:
    """The picture of a line that `to_line` made.

    Raises:
        ValueError: it is cut off, or another thing.
    """
    try:
        content: Any = json.loads(line)  # whole: half a character is how Python names a file that is not in UTF-8
        answer = LabelledPicture(**{**content, "size": tuple(content.get("size", (0, 0)))})
        _check(answer)
    except (TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise ValueError(str(error)) from error
    return answer


def _check(answer: LabelledPicture) -> None:
    """Refuse fields of other types: journals may come from elsewhere."""
    numbers = [*answer.scores, *(side for box in answer.boxes for side in box)]
    if (
        not all(type(one) is int and one >= 0 for one in (answer.index, *answer.size, *answer.labels))
        or not (isinstance(answer.name, str) and isinstance(answer.problem, str | None))
        or not all(type(one) in (int, float) and math.isfinite(one) for one in numbers)
        or not len(answer.boxes) == len(answer.labels) == len(answer.scores)
        or [len(answer.size), *map(len, answer.boxes)] != [2] + [4] * len(answer.boxes)
    ):
        raise ValueError("not the answer to a picture")
