"""What a run was asked for and what it has found so far, kept in its folder: it is resumed as it began."""

from __future__ import annotations

import hashlib
import os
import unicodedata
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from ..data.records import DataError
from ..inference.predictions import PredictionStore, Stored
from ..inference.predictor import Shard
from ..processing.defaults import PostProcessing
from ..utils.atomic import lock

WORK_FOLDER = ".annotate"
"""Inside the output folder: the settings and the predictions of a run."""

_BOX_DIGITS = 2  # a hundredth of a pixel
_SCORE_DIGITS = 4
_LEAST_SIDE = 1.02  # readers take boxes below a pixel for mistakes, and files round
_LONGEST_PART_IN_BYTES = 240
_UNWRITABLE = ("Cc", "Cs", "Zl", "Zp")  # control characters, lone surrogates, line and paragraph separators
_VERSION = 2


class AnnotationError(ValueError):
    """Images that cannot be labelled as asked, in one line that says what to mend."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """All that the output of a run depends on.

    model: a fingerprint that tells it from others.
    dtype: what it computes in.
    labels: in order.
    post: which boxes are kept.
    format: of the files that are written.
    images: how many the source has.
    names: a digest of their names.
    root: the folder that names start from, relative to the output folder; None where images are not files.
    model_name, revision: for people, the repo and the commit on the Hub, or the folder and None.

    The last three may differ from one computer to another that works on a run; the first one's count.
    """

    model: str
    dtype: str
    labels: Sequence[str]
    post: PostProcessing
    format: str
    images: int
    names: str
    root: str | None
    model_name: str = ""
    revision: str | None = None


@dataclass(frozen=True)
class LabelledImage:
    """One image with its boxes, best first, or what is wrong with it.

    index: its position among all images of the source, from 0.
    name: its path in the source, with "/".
    size: (width, height) of the upright image, in pixels.
    boxes: (x0, y0, x1, y1) in pixels of the upright image, to a hundredth, with sides of more than a pixel.
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


class Checkpoint:
    """The state of a run in its output folder; several processes may work on it at once."""

    def __init__(self, output: Path) -> None:
        """Use a folder, which need not be there."""
        self.output = output
        self.store = PredictionStore(output / WORK_FOLDER)

    @property
    def has_begun(self) -> bool:
        """Whether a run has been begun in this folder."""
        return self.store.protocol is not None

    def begin(self, run: Run) -> None:
        """Keep the settings of a run, or check that those it was begun with are the same.

        Raises:
            AnnotationError: one is another now.
        """
        try:
            self.store.begin({"version": _VERSION, **asdict(run)}, free=("root", "model_name", "revision"))
        except DataError as error:
            raise AnnotationError(error) from error

    def run(self) -> Run:
        """The settings of the run.

        Raises:
            AnnotationError: there is none, or one of another version of this package.
        """
        try:
            content: Any = self.store.protocol
            if content is None:
                raise AnnotationError(f"{self.output}: no run has been begun in it")
            content = dict(content)
            if content.pop("version") != _VERSION:
                raise ValueError
            run = Run(**{**content, "post": PostProcessing(**content["post"])})
            kinds = ((run.images, int), (run.labels, list), (run.format, str))
            if not all(isinstance(value, kind) for value, kind in kinds):
                raise TypeError
        except AnnotationError:
            raise
        except (ValueError, TypeError, KeyError) as error:
            raise AnnotationError(
                f"{self.store.folder}: cannot be read, or is of another version; choose another output folder"
            ) from error
        return run

    @contextmanager
    def at_work(self, shard: Shard) -> Iterator[None]:
        """Keep other processes from the same shard.

        Raises:
            AnnotationError: another process is at work on it.
        """
        name = f"shard-{shard.index + 1}-of-{shard.count}.lock"
        with (self.store.folder / name).open("ab") as file:
            if not lock(file):
                raise AnnotationError(f"another process is at work on shard {shard} of {self.output}")
            yield

    def labelled(self) -> Iterator[LabelledImage]:
        """What has been found so far, each image once, in the order of their names.

        Raises:
            AnnotationError: predictions that are not of this package's making.
        """
        for index, stored in enumerate(self.store.in_order()):
            yield _labelled(index, stored, self.output)


def _labelled(index: int, stored: Stored, output: Path) -> LabelledImage:
    """The image with rounded boxes; a box with a side of hardly a pixel is dropped."""
    name = stored.sample_id
    if stored.unreadable is not None:
        return LabelledImage(index, str(name), problem=stored.unreadable)
    if not isinstance(name, str) or name_problem(name) or min(stored.size) < 1:
        raise AnnotationError(f"{output}: the predictions of {name!r} are not of this run")
    boxes, scores = stored.found.boxes.tolist(), stored.found.scores.tolist()
    rows = [
        ([round(side, _BOX_DIGITS) for side in box], label, round(score, _SCORE_DIGITS))
        for box, label, score in zip(boxes, stored.found.labels.tolist(), scores, strict=True)
    ]
    kept = [row for row in rows if min(row[0][2] - row[0][0], row[0][3] - row[0][1]) >= _LEAST_SIDE]
    return LabelledImage(index, name, stored.size, *([row[i] for row in kept] for i in range(3)))  # type: ignore[arg-type]


def digest_of(names: Sequence[str]) -> str:
    """What tells a list of names from others."""
    digest = hashlib.sha256()
    for name in names:
        digest.update(name.encode(errors="surrogatepass") + b"\n")
    return digest.hexdigest()[:16]


def relative_root(root: Path | None, output: Path) -> str | None:
    """The folder of the images as seen from the output folder; None where no path leads there."""
    try:
        return (
            None if root is None else Path(os.path.relpath(os.path.realpath(root), os.path.realpath(output))).as_posix()
        )
    except ValueError:  # on another drive
        return None


def is_writable_text(text: str) -> bool:
    """Whether a label or a name can stand on a line of any of the formats."""
    return not any(unicodedata.category(letter) in _UNWRITABLE for letter in text)


def name_problem(name: str) -> str | None:
    """Why no file may be called after an image of this name, None where one may.

    A name that is absolute, on another drive or climbs with ".." could lead out of the output folder.
    """
    parts = name.replace("\\", "/").split("/")
    if not is_writable_text(name):
        return "its name holds characters that are no text"
    if not PurePosixPath(name).name:
        return "it has no name"
    if name.startswith(("/", "\\")) or PureWindowsPath(name).drive or ".." in parts:
        return "its name leads out of the output folder"
    if parts[0] == WORK_FOLDER:
        return f"its name leads into {WORK_FOLDER}"
    if max(len(part.encode()) for part in parts) > _LONGEST_PART_IN_BYTES:
        return f"a part of its name is longer than {_LONGEST_PART_IN_BYTES} bytes"
    return None
