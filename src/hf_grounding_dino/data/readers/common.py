"""What readers share: JSON files, findings, boxes checked against the image, names, folders of images."""

from __future__ import annotations

import json
import math
import os
import re
from collections import Counter
from collections.abc import Hashable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ...processing.prompts import clean_name
from ...utils.documents import ObjectHook, load_json
from ..records import DataError, Finding, FindingKind, shown
from .stray_names import refuse_stray

MIN_SIDE: Final = 1.0
"""Pixels that a box must have in width and in height (recipe of mmdet's ODVG data set)."""

OUTSIDE_TOLERANCE: Final = 0.1
"""Pixels by which a box may leave its image unmentioned: files round to two decimals. It is clipped all the same."""

_ROUNDING: Final = 1e-6
_ODDITIES: Final[dict[FindingKind, str]] = {
    "malformed box": "is not four finite numbers; dropped",
    "empty box": "has no pixel in the image; dropped",
    "duplicate box": "is there already; kept once",
    "outside box": "leaves the image; clipped",
}
# What takes boxes or images away; of kinds that are as frequent, the earlier one is the cause.
_LOSSES: Final[tuple[FindingKind, ...]] = (
    "unknown category", "no category", "malformed box", "empty box", "span past the end", "empty phrase", "no phrase",
    "missing image", "unreadable image", "malformed entry", "no boxes",
)  # fmt: skip


class FindingLog:
    """Findings of one file: of each kind the first `limit` one by one, then one finding that says how many more."""

    def __init__(self, file: str | os.PathLike[str], limit: int = 20) -> None:
        """`file` is named where the number of further findings is told; a `limit` of 0 keeps none."""
        self.file = os.fspath(file)
        self.limit = limit
        self._kept: dict[FindingKind, list[Finding]] = {}
        self._count: Counter[FindingKind] = Counter()

    def add(self, kind: FindingKind, where: str, what: str) -> None:
        """Note one finding; `where` names the file and the line, entry or image in it."""
        self._count[kind] += 1
        if self._count[kind] <= self.limit:
            self._kept.setdefault(kind, []).append(Finding(kind, where, what))

    def count(self, kind: FindingKind) -> int:
        """How many of a kind were noted, kept or not."""
        return self._count[kind]

    @property
    def findings(self) -> tuple[Finding, ...]:
        """All that is kept, kinds in the order in which they came up."""
        kept = []
        for kind, findings in self._kept.items():
            more = self._count[kind] - len(findings)
            kept += [*findings, Finding(kind, self.file, f"and {more} more")] if more else findings
        return tuple(kept)


def read_json(path: Path) -> Any:
    """The content of a JSON file.

    Raises:
        DataError: no such file, or no JSON; the line and the column are named.
    """
    return parse_json(read_bytes(path), str(path))


def read_bytes(path: Path) -> bytes:
    """The content of a file.

    Raises:
        DataError: the file is not there, is a folder or may not be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}") from error


def parse_json(raw: bytes, where: str, line: int | None = None, object_hook: ObjectHook | None = None) -> Any:
    """The value that UTF-8 JSON text holds; `line` is its number where the text is one line of a file.

    Raises:
        DataError: text that is no JSON, or cut off.
    """
    try:
        return load_json(raw, object_hook)
    except DataError:
        raise
    except json.JSONDecodeError as error:
        at = f"line {line or error.lineno}, column {error.colno}"
        raise DataError(f"{where}, {at}: not JSON, or cut off ({error.msg})") from None
    except UnicodeDecodeError as error:
        number = line or raw.count(b"\n", 0, error.start) + 1
        raise DataError(f"{where}, line {number}: not UTF-8 text") from None
    except ValueError as error:
        raise DataError(f"{where}, line {line or 1}: JSON that cannot be read ({error})") from None


def read_document(path: Path, lists: Sequence[str]) -> dict[str, Any]:
    """A JSON file that is one object with the lists named (the COCO family).

    Raises:
        DataError: the file is something else.
    """
    document = read_json(path)
    if not isinstance(document, dict):
        raise DataError(f"{path}: one JSON object with {', '.join(lists)} is needed, not a {type(document).__name__}")
    for name in lists:
        if not isinstance(document.get(name), list):
            raise DataError(f"{path}: has no list {name!r}")
    return document


def json_lines(path: Path) -> Iterator[tuple[int, int, bytes]]:
    """(number from 1, offset in bytes, text) of each line that is not blank, one in memory at a time.

    Raises:
        DataError: the file cannot be read.
    """
    try:
        with path.open("rb") as file:
            offset = 0
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield number, offset, line
                offset += len(line)
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}") from error


def as_integer(value: object) -> int | None:
    """A whole number given as int, as text or as float; None for everything else."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if isinstance(value, str) and re.fullmatch(r"\s*[+-]?\d{1,18}\s*", value):
        return int(value)
    return int(value) if isinstance(value, float) and value.is_integer() and abs(value) < 2**63 else None


def category_number(value: object) -> int:
    """A category's number; -1, which none has, for anything that is no whole number."""
    number = as_integer(value)
    return -1 if number is None else number


def image_size(width: object, height: object, where: str, log: FindingLog) -> tuple[int, int] | None:
    """(width, height) in pixels, None where the file has none; anything but two positive numbers is "wrong size"."""
    if width is None and height is None:
        return None
    size = as_integer(width), as_integer(height)
    if size[0] is None or size[1] is None or min(size[0], size[1]) < 1 or max(size[0], size[1]) >= 2**31:
        log.add("wrong size", where, f"width {width!r} and height {height!r} are no size of an image; not used")
        return None
    return size[0], size[1]


class CheckedBoxes(NamedTuple):
    """The boxes that can be used.

    boxes: float32 (k, 4), xyxy in pixels, clipped, with sides of at least a pixel.
    kept: for each of them, its position among the boxes given.
    """

    boxes: Tensor
    kept: list[int]


def checked_boxes(
    raw: Sequence[object],
    names: Sequence[Hashable],
    *,
    size: tuple[int, int] | None,
    where: str,
    log: FindingLog,
    layout: Literal["xyxy", "xywh"] = "xyxy",
    numbers: Sequence[int] | None = None,
) -> CheckedBoxes:
    """Turn an image's boxes as a file has them into boxes of a record, and note what is odd.

    Wrong lengths, non-numbers and NaN are "malformed box" and dropped; what leaves the image is clipped ("outside
    box"); sides below one pixel after that are "empty box" and dropped; a box that repeats an earlier one under the
    same name is "duplicate box" and dropped. One box has one finding at most.

    Args:
        raw: Boxes in pixels, four numbers each, in `layout`.
        names: For each box what it is called by, a label or spans; only boxes with equal names are duplicates.
        size: (width, height) of the image; unknown, boxes are clipped at 0 alone.
        where: The file, and the image or line in it.
        log: Takes the findings.
        layout: Corners, or the upper left corner and the sides.
        numbers: What findings call the boxes; left out, they count from 1.
    """
    if not raw:
        return CheckedBoxes(torch.zeros(0, 4), [])
    corners = _corners(raw, layout)
    limit = np.array([*size, *size] if size else [np.inf] * 4, dtype=np.float64)
    clipped = np.clip(corners, 0, limit)
    side = (clipped[:, 2:] - clipped[:, :2]).min(axis=1)
    outside = np.abs(clipped - corners).max(axis=1)
    boxes = clipped.astype(np.float32)
    kept: list[int] = []
    seen: set[Hashable] = set()
    for i, row in enumerate(boxes.tolist()):
        key = (names[i], *row)
        odd = _oddity(float(outside[i]), float(side[i]), key in seen)
        if odd is not None:
            box = f"box {numbers[i] if numbers else i + 1} {shown(raw[i])}"
            log.add(odd, where, f"{box} {_ODDITIES[odd]}")
        if odd is None or odd == "outside box":
            seen.add(key)
            kept.append(i)
    return CheckedBoxes(torch.from_numpy(boxes[kept]), kept)


def _oddity(outside: float, side: float, seen: bool) -> FindingKind | None:
    """What is odd about a box that left its image by `outside` pixels and has sides of at least `side`."""
    if math.isnan(outside):
        return "malformed box"
    if side < MIN_SIDE - _ROUNDING:
        return "empty box"
    if seen:
        return "duplicate box"
    return "outside box" if outside > OUTSIDE_TOLERANCE else None


def named_boxes(
    raw: Sequence[object],
    names: Sequence[Hashable | None],
    written: Sequence[object],
    *,
    size: tuple[int, int] | None,
    where: str,
    log: FindingLog,
    layout: Literal["xyxy", "xywh"] = "xyxy",
) -> CheckedBoxes:
    """`checked_boxes`, and boxes without a name are dropped as "no category" or "unknown category".

    Args:
        raw: As in `checked_boxes`.
        names: What each box is called by, as there, or None.
        written: What the file says of it, None where it says nothing.
    """
    unique = [("unnamed", i) if name is None else name for i, name in enumerate(names)]
    checked = checked_boxes(raw, unique, size=size, where=where, log=log, layout=layout)
    rows = []
    for row, i in enumerate(checked.kept):
        if names[i] is not None:
            rows.append(row)
        elif written[i] is None:
            log.add("no category", where, f"box {i + 1} has no category; dropped")
        else:
            log.add("unknown category", where, f"box {i + 1}: there is no category {shown(written[i])}; dropped")
    return CheckedBoxes(checked.boxes[rows], [checked.kept[row] for row in rows])


def _corners(raw: Sequence[object], layout: str) -> npt.NDArray[np.float64]:
    """(n, 4) xyxy; NaN where a box is malformed."""
    try:
        corners = np.array(raw, dtype=np.float64)
        if corners.shape != (len(raw), 4):
            raise ValueError("boxes of other lengths")
    except (ValueError, TypeError, OverflowError):
        corners = np.array([_four_numbers(box) for box in raw])
    # What float32 cannot hold is as good as no number.
    corners[~(np.abs(corners) < 1e30).all(axis=1)] = np.nan
    if layout == "xywh":
        corners[:, 2:] += corners[:, :2]
    return corners


def _four_numbers(box: object) -> list[float]:
    """The numbers of one box, or four NaN."""
    try:
        numbers = [float(number) for number in box]  # type: ignore[attr-defined]
    except (ValueError, TypeError, OverflowError):
        numbers = []
    return numbers if len(numbers) == 4 else [float("nan")] * 4


def clean_names(names: Sequence[str]) -> tuple[str, ...]:
    """Each name cleaned, or as written where its clean form is empty or another name's clean form as well."""
    cleaned = [clean_name(name) for name in names]
    uses = Counter(name.casefold() for name in cleaned)
    pairs = zip(names, cleaned, strict=True)
    return tuple(clean if clean and uses[clean.casefold()] == 1 else name for name, clean in pairs)


def note_gaps(ids: Sequence[int], where: str, log: FindingLog) -> None:
    """One finding "gapped ids" where the category numbers are not all of those from the lowest to the highest."""
    missing = max(ids) - min(ids) + 1 - len(set(ids))
    if missing:
        log.add("gapped ids", where, f"{len(ids)} category ids from {min(ids)} to {max(ids)}, {missing} left out")


def note_unused(names: Sequence[str], used: Sequence[int] | npt.NDArray[np.int64], where: str, log: FindingLog) -> None:
    """A finding "unused category" for each name that has no box; `used` counts the boxes of each."""
    for name, count in zip(names, used, strict=True):
        if not count:
            log.add("unused category", where, f"{name!r} has no box")


class ImageFolder:
    """Which images are there: each folder is listed once, however many images are asked for."""

    def __init__(self, root: str | os.PathLike[str], annotations: str | os.PathLike[str]) -> None:
        """`root` is the folder that names in the file `annotations` start from.

        Raises:
            DataError: no such folder.
        """
        self.root = Path(root)
        self.annotations = os.fspath(annotations)
        self._listed: dict[str, frozenset[str]] = {}
        if not self.root.is_dir():
            raise DataError(f"{self.annotations}: its images should be in {self.root}, which is not a folder")

    def path(self, name: str) -> Path:
        """Where an image would be."""
        return self.root / name

    def has(self, name: str, where: str | None = None) -> bool:
        """Whether a file with that name, which may hold folders, is there; `where` says what has the name.

        Raises:
            DataError: the name leads out of the folder, or holds control characters.
        """
        refuse_stray(name, self.root, where or self.annotations)
        folder, base = os.path.split(os.path.join(self.root, name))
        if folder not in self._listed:
            self._listed[folder] = _files_in(folder)
        return base in self._listed[folder]

    def check(self, name: str, where: str, log: FindingLog) -> bool:
        """As `has`; an image that is not there is the finding "missing image"."""
        there = self.has(name, where)
        if not there:
            log.add("missing image", where, f"{self.path(name)} is not there; left out")
        return there


def _files_in(folder: str) -> frozenset[str]:
    try:
        with os.scandir(folder) as entries:
            return frozenset(entry.name for entry in entries if entry.is_file())
    except OSError:
        return frozenset()


def refuse_useless(records: int, boxes: int, where: str, log: FindingLog) -> None:
    """Refuse a set that nothing can be learned from.

    Raises:
        DataError: no record, or no valid box in any of them; the first finding of the most frequent kind says why.
    """
    if records and boxes:
        return
    findings = {finding.kind: finding for finding in reversed(log.findings)}
    kinds = [kind for kind in _LOSSES if kind in findings]
    first = findings[max(kinds, key=log.count)] if kinds else None
    reason = f"; first finding: {first.kind}, {first.where}: {first.what}" if first else ""
    raise DataError(f"{where}: {'no box is valid' if records else 'no image can be used'}{reason}")


def note_without_boxes(count: int, records: int, where: str, log: FindingLog) -> None:
    """One finding "no boxes" that says how many of the records have none; they are kept."""
    if count:
        log.add("no boxes", where, f"{count} of {records} images have no box; kept")
