"""Folders in the layout of YOLO (Ultralytics): a text file for each image, a line for each box."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Final, NamedTuple

from ..records import DataError, SourceEntry
from .common import FindingLog, as_integer, checked_boxes, read_bytes
from .headers import IMAGE_SUFFIXES, upright_sizes
from .names import names_of, read_names, read_yaml
from .packed import ImageEntry, PackedRecords, RecordPacker
from .stray_names import is_below, refuse_control, refuse_stray

_YAML_NAMES: Final = ("data.yaml", "data.yml", "dataset.yaml")
_NAME_FILES: Final = ("classes.txt", "obj.names", *_YAML_NAMES)
_FAR_OUTSIDE: Final = 2.0
"""No sloppy relative coordinate is as large; pixels are."""


class _Pair(NamedTuple):
    """An image and where its labels are, if it has any."""

    image: Path
    labels: Path


class _Layout(NamedTuple):
    """What is where: `root` is the folder that image ids start from, `with_keypoints` says what follows a box."""

    root: Path
    pairs: list[_Pair]
    names: dict[int, str]
    with_keypoints: bool = False


class _Row(NamedTuple):
    """A line of a label file: the label's number, and xyxy relative to the image."""

    number: int
    corners: list[float]


def read(entry: SourceEntry) -> PackedRecords:
    """Read a YOLO data set: lines "class cx cy w h" or "class x1 y1 x2 y2 ..." (a polygon), relative to the image.

    Its `annotations` are a data.yaml (or the folder that holds it), whose `train`, `val` or `test` is a folder, a list
    of folders, or a text file of images, each image's labels being found with the last folder "images" of its path
    called "labels"; or a folder of label files, whose images are in `images`, in the folder "images" instead of
    "labels", or beside them, and whose names are in `label_map`, or in classes.txt or data.yaml there or one folder up.

    An image whose label file is empty or not there has no box. The image id is the image's path in the data set.
    All images' headers are read, for their sizes.

    Raises:
        DataError: no such file, split or image, no names, boxes in pixels, or no valid box at all.
    """
    path = Path(entry.annotations)
    if path.is_dir() and entry.label_map is None:
        path = next((path / name for name in _YAML_NAMES if (path / name).is_file()), path)
    log = FindingLog(path)
    layout = _layout_of_folder(path, entry, log) if path.is_dir() else _layout_of_yaml(path, entry, log)
    if not layout.pairs:
        raise DataError(f"{path}: no image in its folders")
    packer = RecordPacker()
    _add_all(packer, layout, log, path)
    name = entry.name or (path.absolute().parent.name if path.name in _YAML_NAMES else path.stem)
    return packer.finish(name, layout.root, log, layout.names)


# --- which files -------------------------------------------------------------------------------------------------


def _layout_of_yaml(path: Path, entry: SourceEntry, log: FindingLog) -> _Layout:
    document = read_yaml(path)
    names = read_names(Path(entry.label_map)) if entry.label_map else names_of(document.get("names"), path)
    split = entry.split or "train"
    value = document.get(split)
    if not value:
        known = [key for key in ("train", "val", "test") if document.get(key)]
        raise DataError(f"{path}: has no split {split!r}, only {', '.join(known) or 'none'}")
    root = Path(entry.images) if entry.images else _root(path.parent, document.get("path"))
    pairs: list[_Pair] = []
    for part in value if isinstance(value, list) else [value]:
        source = _place(root, str(part))
        if source is None:
            raise DataError(f"{path}: its {split!r} names {root / str(part)}, which is not there")
        images = _images_in(source) if source.is_dir() else _listed_images(source, root, log)
        found = [_Pair(image, _labels_of(image)) for image in images]
        if source.is_dir():
            _note_orphans(found, log)
        pairs += found
    return _Layout(root, list(dict.fromkeys(pairs)), names, "kpt_shape" in document)


def _root(folder: Path, path: object) -> Path:
    """The folder that `path` of a data.yaml means, where it is there; else the folder of the file."""
    stated = folder / Path(str(path)).expanduser() if path else folder
    return stated if stated.is_dir() else folder


def _place(root: Path, part: str) -> Path | None:
    """A folder or a list of images in `root`; "../train" of exported sets, which means "train", is understood."""
    candidates = [root / part, *([root / part[3:]] if part.startswith("../") else [])]
    return next((candidate for candidate in candidates if candidate.exists()), None)


def _images_in(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file())


def _listed_images(path: Path, root: Path, log: FindingLog) -> list[Path]:
    images = []
    for number, line in enumerate(_text_lines(path), start=1):
        if name := line.strip():
            at = f"{path}, line {number}"
            refuse_control(name, at)
            candidates = [
                place
                for place in (path.parent / name, root / name)
                if is_below(place, root) or is_below(place, path.parent)
            ]
            if not candidates:
                refuse_stray(name, root, at)
            there = next((candidate for candidate in candidates if candidate.is_file()), None)
            if there is None:
                log.add("missing image", at, f"{name} is not there; left out")
            else:
                images.append(there)
    return images


def _labels_of(image: Path) -> Path:
    """The label file of an image: the last folder called "images" in its path becomes "labels"."""
    parts = list(image.with_suffix(".txt").parts)
    last = max((i for i, part in enumerate(parts[:-1]) if part == "images"), default=None)
    if last is not None:
        parts[last] = "labels"
    return Path(*parts)


def _layout_of_folder(folder: Path, entry: SourceEntry, log: FindingLog) -> _Layout:
    if entry.split and (folder / entry.split).is_dir():
        folder /= entry.split
    images = Path(entry.images) if entry.images else _images_of(folder)
    if not images.is_dir():
        raise DataError(f"{folder}: its images should be in {images}, which is not a folder")
    candidates = [folder / name for name in _NAME_FILES] + [folder.parent / name for name in _NAME_FILES]
    file = Path(entry.label_map) if entry.label_map else next(filter(Path.is_file, candidates), None)
    if file is None:
        raise DataError(f"{folder}: label_map is needed: a text file with a name a line, or a data.yaml")
    pairs = [_Pair(path, folder / path.relative_to(images).with_suffix(".txt")) for path in _images_in(images)]
    _note_orphans(pairs, log)
    return _Layout(images, pairs, read_names(file))


def _images_of(folder: Path) -> Path:
    """The folder "images" that stands where the last "labels" of a path does, or the folder itself."""
    parts = list(folder.absolute().parts)
    last = max((i for i, part in enumerate(parts) if part == "labels"), default=None)
    if last is not None:
        parts[last] = "images"
    return Path(*parts) if last is not None and Path(*parts).is_dir() else folder


def _note_orphans(pairs: Iterable[_Pair], log: FindingLog) -> None:
    """Note the label files beside others that belong to no image."""
    known = {pair.labels for pair in pairs}
    for folder in sorted({path.parent for path in known}):
        for path in sorted(folder.glob("*.txt")):
            if path not in known and path.name not in _NAME_FILES:
                log.add("missing image", str(path), "no image of this name; left out")


# --- what is in them ---------------------------------------------------------------------------------------------


def _add_all(packer: RecordPacker, layout: _Layout, log: FindingLog, source: Path) -> None:
    positions = {number: i for i, number in enumerate(layout.names)}
    boxes, far = 0, []
    for pair, size in zip(layout.pairs, upright_sizes(pair.image for pair in layout.pairs), strict=True):
        if isinstance(size, str):
            log.add("unreadable image", str(pair.image), f"{size}; left out")
            continue
        rows = _rows(pair.labels, layout, log)
        boxes += len(rows)
        far += [pair.labels for row in rows if max(map(abs, row.corners)) > _FAR_OUTSIDE]
        scale = (*size, *size)
        pixels = [[side * length for side, length in zip(row.corners, scale, strict=True)] for row in rows]
        labels = [positions[row.number] for row in rows]
        checked = checked_boxes(pixels, labels, size=size, where=str(pair.labels), log=log)
        kept = [labels[i] for i in checked.kept]
        name = _name_in(layout.root, pair.image)
        packer.add(ImageEntry(name, name, size), checked.boxes, kept, [False] * len(kept), [math.nan] * len(kept))
    if 2 * len(far) > boxes:
        raise DataError(
            f"{source}: {len(far)} of {boxes} boxes are far outside their images, first in {far[0]}: YOLO boxes are"
            " relative to the image, from 0 to 1, and these look like pixels"
        )


def _name_in(root: Path, image: Path) -> str:
    return (image.relative_to(root) if image.is_relative_to(root) else image).as_posix()


def _rows(path: Path, layout: _Layout, log: FindingLog) -> list[_Row]:
    """The lines of a label file that can be read; a file that is not there has none."""
    if not path.is_file():
        return []
    rows = []
    for number, line in enumerate(_text_lines(path), start=1):
        where = f"{path}, line {number}"
        if not line.strip():
            continue
        row = _row(line, layout.with_keypoints)
        if isinstance(row, str):
            log.add("malformed entry", where, f"{row}; dropped")
        elif row.number not in layout.names:
            known = f"{min(layout.names)} to {max(layout.names)}"
            log.add("unknown category", where, f"label {row.number} has no name (names: {known}); dropped")
        else:
            rows.append(row)
    return rows


def _row(line: str, with_keypoints: bool) -> _Row | str:
    """What a line says, or what is wrong with it."""
    try:
        first, *numbers = map(float, line.split())
    except ValueError:
        return f"{line.strip()[:60]!r} is not all numbers"
    label = as_integer(first)
    if label is None:
        return f"{first} is no number of a label"
    if with_keypoints:
        numbers = numbers[:4]
    if len(numbers) == 4:
        x, y, width, height = numbers
        return _Row(label, [x - width / 2, y - height / 2, x + width / 2, y + height / 2])
    if len(numbers) < 6 or len(numbers) % 2:
        return f"{1 + len(numbers)} numbers are neither a box (5) nor a polygon (7, 9, ...)"
    return _Row(label, [min(numbers[::2]), min(numbers[1::2]), max(numbers[::2]), max(numbers[1::2])])


def _text_lines(path: Path) -> list[str]:
    try:
        return read_bytes(path).decode("utf-8-sig").splitlines()
    except UnicodeDecodeError:
        raise DataError(f"{path}: not UTF-8 text") from None
