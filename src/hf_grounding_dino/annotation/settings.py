"""What a run was asked for, kept in its folder so that it goes on as it began."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from ..data.records import shown
from ..utils.documents import load_json
from .answers import AnnotationError
from .files import WORK_FOLDER, write_text

_VERSION = 1
_FILE = PurePosixPath(WORK_FOLDER, "run.json")
_FOR_PEOPLE = ("root", "model_name", "revision")
"""What may differ from one computer to another that works on a run; the first one's counts."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """All that the output of a run depends on.

    model: a fingerprint that tells it from others.
    model_name, revision: for people, the repo and the commit on the Hub, or the folder and None.
    dtype: what it computes in.
    labels: in order.
    threshold, thresholds, scoring, nms, top_k, chunk_size: as in `Options`.
    format: of the files that are written.
    pictures: how many the source has.
    names: a digest of their names.
    root: the folder that names start from, relative to the output folder; None where pictures are not files. It may
        differ from one computer to another: the first one's counts.
    """

    model: str
    dtype: str
    labels: Sequence[str]
    threshold: float
    thresholds: Mapping[str, float]
    nms: float | None
    top_k: int | None
    format: str
    pictures: int
    names: str
    root: str | None
    scoring: str = "max"
    chunk_size: int | None = None
    model_name: str = ""
    revision: str | None = None


def digest_of(names: Sequence[str]) -> str:
    """What tells a list of names from others."""
    digest = hashlib.sha256()
    for name in names:
        digest.update(name.encode(errors="surrogateescape") + b"\n")
    return digest.hexdigest()[:16]


def relative_root(root: Path | None, output: Path) -> str | None:
    """The folder of the pictures as seen from the output folder; None where no path leads there."""
    try:
        return (
            None if root is None else Path(os.path.relpath(os.path.realpath(root), os.path.realpath(output))).as_posix()
        )
    except ValueError:  # on another drive
        return None


def has_begun(output: Path) -> bool:
    """Whether a run has been begun in this folder."""
    return (output / _FILE).is_file()


def begin(output: Path, settings: Settings) -> Settings:
    """Keep the settings of a run, or check that those it was begun with are the same; those it was begun with.

    Raises:
        AnnotationError: one is another now; or they cannot be written.
    """
    if not has_begun(output):
        content = {"version": _VERSION, **asdict(settings)}
        write_text(output, _FILE, json.dumps(content, indent=2) + "\n")
    begun = read_settings(output)
    for name, there in asdict(begun).items():
        now = asdict(settings)[name]
        if there != now and name not in _FOR_PEOPLE:
            raise AnnotationError(
                f"{output}: the run in it was begun with {_describe(name, there, now)}; go on with that, or choose"
                " another output folder"
            )
    return begun


def _describe(name: str, there: Any, now: Any) -> str:
    if name == "names":
        return "other pictures (same number, other names)"
    if name == "model":
        return "another model"
    if name == "pictures":
        return f"{there} pictures, there are {now} now"
    return f"{name} {shown(there)}, not {shown(now)}"


def read_settings(output: Path) -> Settings:
    """The settings of the run in a folder.

    Raises:
        AnnotationError: there is none, or one of another version of this package.
    """
    path = output / _FILE
    try:
        content = load_json(path.read_bytes())
        if content.pop("version") != _VERSION:
            raise ValueError
        settings = Settings(**content)
        kinds = ((settings.pictures, int), (settings.labels, list), (settings.format, str))
        if not all(isinstance(value, kind) for value, kind in kinds):
            raise TypeError
        return settings
    except FileNotFoundError:
        raise AnnotationError(f"{output}: no run has been begun in it") from None
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        raise AnnotationError(
            f"{path}: cannot be read, or is of another version; choose another output folder"
        ) from None
