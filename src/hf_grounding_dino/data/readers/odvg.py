"""ODVG, one JSON object a line: boxes with labels (detection) or phrases of a caption with boxes (grounding).

The format of mmdet's Grounding DINO and of Open-GroundingDino; a file holds one kind. Lines stay in the file: only
where each begins is kept, so that files of millions of lines fit.
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from ..records import DataError, Finding, Record, SourceEntry, set_name
from .captions import checked_spans, phrase_spans, strip_caption
from .common import (
    FindingLog,
    ImageFolder,
    as_integer,
    category_number,
    checked_boxes,
    clean_names,
    image_size,
    json_lines,
    named_boxes,
    note_gaps,
    note_unused,
    note_without_boxes,
    parse_json,
    read_json,
    refuse_useless,
)

Kind = Literal["detection", "grounding"]

LABEL_MAP_FILE = "label_map.json"
"""What the label map of a file is called, beside it, where nothing else is said."""


def read(entry: SourceEntry) -> OdvgRecords:
    """Read an ODVG file once: check every line, keep where the usable ones begin.

    Detection lines need `label_map`, a JSON object {"0": "person", ...}, by default `label_map.json` beside them. A
    region of a grounding line without `tokens_positive` is looked up by its phrase, as whole words in any case. Boxes
    are xyxy in pixels.

    Raises:
        DataError: a line that is no JSON object or of the other kind, a label map that is missing or malformed, no
            image, or no valid box.
    """
    path = Path(entry.annotations)
    log = FindingLog(path)
    kind = _kind_of(path)
    labels = _label_map(entry, path, log) if kind == "detection" else LabelMap({}, (), ())
    folder = ImageFolder(entry.images or path.parent, path)
    parser = LineParser(path, folder.root, kind, labels)
    scan = _scan(parser, folder, log)
    note_without_boxes(scan.without_boxes, len(scan.offsets), str(path), log)
    refuse_useless(len(scan.offsets), scan.num_boxes, str(path), log)
    if kind == "detection":
        note_unused(labels.written, scan.label_counts, str(path), log)
    return OdvgRecords(
        name=set_name(entry, path),
        label_names=labels.names,
        category_ids=tuple(labels.positions),
        findings=log.findings,
        parser=parser,
        offsets=np.array(scan.offsets, dtype=np.int64),
        lines=np.array(scan.lines, dtype=np.int64),
        sizes=np.array(scan.sizes, dtype=np.int32).reshape(-1, 2),
    )


@dataclass(frozen=True)
class OdvgRecords:
    """The usable lines of an ODVG file, parsed when they are asked for; a `RecordSet`.

    offsets, lines: where each begins, in bytes, and its number from 1.
    sizes: (width, height) of each, 0 where the file does not say.
    """

    name: str
    label_names: tuple[str, ...]
    category_ids: tuple[int, ...]
    findings: tuple[Finding, ...]
    parser: LineParser
    offsets: npt.NDArray[np.int64]
    lines: npt.NDArray[np.int64]
    sizes: npt.NDArray[np.int32]

    def __len__(self) -> int:
        """Number of records."""
        return len(self.offsets)

    def size(self, index: int) -> tuple[int, int] | None:
        """(width, height) as the file says."""
        width, height = self.sizes[index].tolist()
        return (width, height) if width else None

    def __getitem__(self, index: int) -> Record:
        """The record at a position, read from its line.

        Raises:
            IndexError: there is none.
            DataError: the file has changed since it was opened.
        """
        if not -len(self) <= index < len(self):
            raise IndexError(f"record {index} of {len(self)}")
        path, number = self.parser.path, int(self.lines[index])
        try:
            with path.open("rb") as file:
                file.seek(int(self.offsets[index]))
                line = file.readline()
        except OSError as error:
            raise DataError(f"{path}: {error.strerror}") from error
        record = self.parser.record(line, number, FindingLog(path, limit=0))
        if record is None:
            raise DataError(f"{path}, line {number}: has changed since the file was opened")
        return record


class LabelMap(NamedTuple):
    """What the labels of detection lines stand for.

    positions: for each label of the file, in the map's order, its position among the names.
    written: the names as the map has them.
    names: the same, cleaned for prompts.
    """

    positions: dict[int, int]
    written: tuple[str, ...]
    names: tuple[str, ...]


@dataclass(frozen=True)
class LineParser:
    """Makes a record of a line.

    kind: what each line must hold.
    labels: of a detection file.
    """

    path: Path
    root: Path
    kind: Kind
    labels: LabelMap

    def record(self, line: bytes, number: int, log: FindingLog) -> Record | None:
        """The record of a line, or None, with a finding, for a line that is left out.

        Raises:
            DataError: a line that is no JSON object, or of the other kind.
        """
        where = f"{self.path}, line {number}"
        content = parse_line(line, self.path, number)
        other = "grounding" if self.kind == "detection" else "detection"
        if content.get(other) is not None:
            raise DataError(f"{where}: has {other!r} in a file of {self.kind} lines; one file holds one kind")
        name = content.get("filename")
        if not isinstance(name, str) or not name:
            log.add("malformed entry", where, "has no filename; left out")
            return None
        size = image_size(content.get("width"), content.get("height"), where, log)
        body = content.get(self.kind)
        if not isinstance(body, dict):
            log.add("malformed entry", where, f"has no {self.kind!r} object; left out")
            return None
        image = _Listed(name, self.root / name, size)
        if self.kind == "detection":
            return self._detection(body, image, where, log)
        return _grounding(body, image, where, log)

    def _detection(self, body: dict[str, Any], image: _Listed, where: str, log: FindingLog) -> Record | None:
        instances = body.get("instances") or []
        if not _are_objects(instances):
            log.add("malformed entry", where, "'instances' is not a list of objects; left out")
            return None
        written = [instance.get("label") for instance in instances]
        labels = [self.labels.positions.get(category_number(label)) for label in written]
        boxes = [instance.get("bbox") for instance in instances]
        checked = named_boxes(boxes, labels, written, size=image.size, where=where, log=log)
        return Record(
            image_id=image.name,
            image=image.path,
            boxes=checked.boxes,
            labels=torch.tensor([labels[i] for i in checked.kept], dtype=torch.int64),
            size=image.size,
        )


class _Listed(NamedTuple):
    name: str
    path: Path
    size: tuple[int, int] | None


def _grounding(body: dict[str, Any], image: _Listed, where: str, log: FindingLog) -> Record | None:
    written, regions = body.get("caption"), body.get("regions") or []
    if not isinstance(written, str) or not written.strip() or not _are_objects(regions):
        log.add("malformed entry", where, "needs a caption and a list of objects 'regions'; left out")
        return None
    caption = strip_caption(written)
    boxes: list[object] = []
    spans: list[tuple[tuple[int, int], ...]] = []
    numbers: list[int] = []
    total = 0
    for i, region in enumerate(regions, start=1):
        at = f"{where}, region {i}"
        if region.get("tokens_positive") is None:
            named = phrase_spans(region.get("phrase"), caption, at, log)
        else:
            named = checked_spans(region["tokens_positive"], caption, at, log)
        region_boxes = _boxes_of(region.get("bbox"))
        if named is not None:
            boxes += region_boxes
            spans += [named] * len(region_boxes)
            numbers += range(total + 1, total + 1 + len(region_boxes))
        total += len(region_boxes)
    checked = checked_boxes(boxes, spans, size=image.size, where=where, log=log, numbers=numbers)
    if regions and not checked.kept:
        log.add("malformed entry", where, "none of its boxes can be used, so the caption would be untrue; left out")
        return None
    return Record(
        image_id=image.name,
        image=image.path,
        boxes=checked.boxes,
        size=image.size,
        caption=caption.text,
        spans=tuple(spans[i] for i in checked.kept),
    )


def _boxes_of(value: object) -> list[object]:
    """One box, or a list of boxes."""
    return list(value) if isinstance(value, list) and value and isinstance(value[0], list) else [value]


def _are_objects(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(item, dict) for item in value)


def parse_line(line: bytes, path: Path, number: int) -> dict[str, Any]:
    """The object of a line.

    Raises:
        DataError: anything else.
    """
    content = parse_json(line, str(path), number)
    if not isinstance(content, dict):
        kind = "array" if isinstance(content, list) else type(content).__name__
        raise DataError(f"{path}, line {number}: a JSON object is needed on each line, not one {kind}")
    return content


def _kind_of(path: Path) -> Kind:
    """What the first line holds that says it."""
    for number, _, line in json_lines(path):
        content = parse_line(line, path, number)
        if content.get("grounding") is not None:
            return "grounding"
        if content.get("detection") is not None:
            return "detection"
    raise DataError(f"{path}: no line has 'detection' or 'grounding'")


def _label_map(entry: SourceEntry, path: Path, log: FindingLog) -> LabelMap:
    file = path.with_name(LABEL_MAP_FILE) if entry.label_map is None else Path(entry.label_map)
    if entry.label_map is None and not file.is_file():
        raise DataError(
            f'{path}: detection lines need the option label_map, a JSON file {{"0": "person", ...}}, or'
            f" {LABEL_MAP_FILE} beside them"
        )
    written = read_json(file)
    if not isinstance(written, dict) or not written:
        raise DataError(f'{file}: one JSON object {{"0": "person", ...}} is needed')
    positions: dict[int, int] = {}
    for key, name in written.items():
        label = as_integer(key)
        if label is None or label < 0 or label in positions or not isinstance(name, str) or not name.strip():
            raise DataError(f'{file}: {key!r}: {name!r} is not of the form "0": "person"')
        positions[label] = len(positions)
    note_gaps(tuple(positions), str(file), log)
    names = tuple(written.values())
    return LabelMap(positions, names, clean_names(names))


@dataclass
class _Scan:
    """What the first pass over a file collects."""

    num_labels: int
    offsets: array[int] = field(default_factory=lambda: array("q"))
    lines: array[int] = field(default_factory=lambda: array("q"))
    sizes: array[int] = field(default_factory=lambda: array("i"))
    without_boxes: int = 0
    num_boxes: int = 0

    def __post_init__(self) -> None:
        self.label_counts = np.zeros(self.num_labels, dtype=np.int64)

    def take(self, record: Record, number: int, offset: int) -> None:
        self.offsets.append(offset)
        self.lines.append(number)
        self.sizes.extend(record.size or (0, 0))
        self.num_boxes += len(record.boxes)
        self.without_boxes += not len(record.boxes)
        if record.labels is not None:
            np.add.at(self.label_counts, record.labels.numpy(), 1)


def _scan(parser: LineParser, folder: ImageFolder, log: FindingLog) -> _Scan:
    scan = _Scan(len(parser.labels.names))
    seen: set[int | str] = set()
    for number, offset, line in json_lines(parser.path):
        record = parser.record(line, number, log)
        if record is None:
            continue
        where, name = f"{parser.path}, line {number}", str(record.image_id)
        if parser.kind == "detection" and name in seen:
            log.add("duplicate id", where, f"{name} has a line already; left out")
        elif folder.check(name, where, log):
            scan.take(record, number, offset)
            seen.add(name)
    return scan
