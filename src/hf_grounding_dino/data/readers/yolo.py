"""Folders in the layout of YOLO (Ultralytics): a text file for each image, a line for each box."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Final, NamedTuple

from ..findings import FindingLog
from ..index import IndexBuilder, RecordIndex
from ..records import DataError, Record, SourceEntry
from .boxes import RawBoxes, with_boxes
from .files import IMAGE_SUFFIXES, as_integer, is_below, read_lines, refuse_control, refuse_stray, upright_sizes
from .names import clean_names, names_of, read_names, read_yaml

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


def read(entry: SourceEntry) -> RecordIndex:
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
    builder = IndexBuilder(log, layout.root)
    _add_all(builder, layout, log, path)
    name = entry.name or (path.absolute().parent.name if path.name in _YAML_NAMES else path.stem)
    return builder.build(name, layout.names, clean_names(tuple(layout.names.values())))


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
    for number, name in enumerate(map(str.strip, read_lines(path)), start=1):
        at = f"{path}, line {number}"
        refuse_control(name, at)
        places = [
            place
            for place in (path.parent / name, root / name)
            if is_below(place, root) or is_below(place, path.parent)
        ]
        if not places:
            refuse_stray(name, root, at)
        there = next(filter(Path.is_file, places), None)
        if there is not None:
            images.append(there)
        elif name:
            log.add("missing image", at, f"{name} is not there; left out")
    return images


def _swapped(path: Path, old: str, new: str) -> Path:
    """The path whose last folder called `old` is called `new`."""
    parts = list(path.parts)
    last = max((i for i, part in enumerate(parts) if part == old), default=None)
    if last is not None:
        parts[last] = new
    return Path(*parts)


def _labels_of(image: Path) -> Path:
    return _swapped(image.parent, "images", "labels") / f"{image.stem}.txt"


def _layout_of_folder(folder: Path, entry: SourceEntry, log: FindingLog) -> _Layout:
    if entry.split and (folder / entry.split).is_dir():
        folder /= entry.split
    swapped = _swapped(folder.absolute(), "labels", "images")
    images = Path(entry.images) if entry.images else swapped if swapped.is_dir() else folder
    if not images.is_dir():
        raise DataError(f"{folder}: its images should be in {images}, which is not a folder")
    candidates = [folder / name for name in _NAME_FILES] + [folder.parent / name for name in _NAME_FILES]
    file = Path(entry.label_map) if entry.label_map else next(filter(Path.is_file, candidates), None)
    if file is None:
        raise DataError(f"{folder}: label_map is needed: a text file with a name a line, or a data.yaml")
    pairs = [_Pair(path, folder / path.relative_to(images).with_suffix(".txt")) for path in _images_in(images)]
    _note_orphans(pairs, log)
    return _Layout(images, pairs, read_names(file))


def _note_orphans(pairs: Iterable[_Pair], log: FindingLog) -> None:
    """Note the label files beside others that belong to no image."""
    known = {pair.labels for pair in pairs}
    for folder in sorted({path.parent for path in known}):
        for path in sorted(folder.glob("*.txt")):
            if path not in known and path.name not in _NAME_FILES:
                log.add("missing image", str(path), "no image of this name; left out")


# --- what is in them ---------------------------------------------------------------------------------------------


def _add_all(builder: IndexBuilder, layout: _Layout, log: FindingLog, source: Path) -> None:
    positions = {number: i for i, number in enumerate(layout.names)}
    boxes, far = 0, []
    for (path, labels), size in zip(layout.pairs, upright_sizes(pair.image for pair in layout.pairs), strict=True):
        if isinstance(size, str):
            log.add("unreadable image", str(path), f"{size}; left out")
            continue
        rows = _rows(labels, layout, log)
        boxes += len(rows)
        far += [labels for row in rows if max(map(abs, row.corners)) > _FAR_OUTSIDE]
        pixels = [[side * length for side, length in zip(row.corners, (*size, *size), strict=True)] for row in rows]
        raw = RawBoxes(boxes=pixels, names=[positions[row.number] for row in rows])
        name = (path.relative_to(layout.root) if path.is_relative_to(layout.root) else path).as_posix()
        if record := with_boxes(Record(image_id=name, image=path, size=size), raw, str(labels), log):
            builder.add(record)
    if 2 * len(far) > boxes:
        raise DataError(
            f"{source}: {len(far)} of {boxes} boxes are far outside their images, first in {far[0]}: YOLO boxes are"
            " relative to the image, from 0 to 1, and these look like pixels"
        )


def _rows(path: Path, layout: _Layout, log: FindingLog) -> list[_Row]:
    """The lines of a label file that can be read; a file that is not there has none."""
    if not path.is_file():
        return []
    rows = []
    for number, line in enumerate(read_lines(path), start=1):
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
