"""ODVG, one JSON object a line: boxes with labels (detection) or phrases of a caption with boxes (grounding).

The format of mmdet's Grounding DINO and of Open-GroundingDino; a file holds one kind. Lines stay in the file: only
where each begins is kept, so that files of millions of lines fit.
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from ..findings import FindingLog, Tally
from ..records import DataError, Finding, Record, SourceEntry, Spans, set_name
from .boxes import RawBoxes, with_boxes
from .captions import spans_of, strip_caption
from .files import ImageFolder, as_integer, category_number, image_size, json_lines, parse_json, read_json
from .names import clean_names

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
    log, tally = FindingLog(path), Tally()
    kind = _kind_of(path)
    categories = _label_map(entry, path) if kind == "detection" else {}
    folder = ImageFolder(entry.images or path.parent, path)
    records = OdvgRecords(
        name=set_name(entry, path),
        label_names=clean_names(tuple(categories.values())),
        category_ids=tuple(categories),
        path=path,
        root=folder.root,
        kind=kind,
    )
    seen: set[int | str] = set()
    for number, offset, line in json_lines(path):
        record = records.parse(line, number, log)
        if record is None:
            continue
        where, name = f"{path}, line {number}", str(record.image_id)
        if kind == "detection" and name in seen:
            log.add("duplicate id", where, f"{name} has a line already; left out")
        elif folder.check(name, where, log):
            seen.add(name)
            tally.add(record)
            records.offsets.append(offset)
            records.lines.append(number)
            records.sizes.extend(record.size or (0, 0))
    tally.conclude(log, categories)
    records.findings = log.findings
    return records


@dataclass(kw_only=True)
class OdvgRecords:
    """The usable lines of an ODVG file, parsed when they are asked for; a `RecordSet`.

    root: of the images.
    kind: what each line must hold.
    offsets, lines: where each begins, in bytes, and its number from 1.
    sizes: width and height of each, one after the other, 0 where the file does not say.
    """

    name: str
    label_names: tuple[str, ...]
    category_ids: tuple[int, ...]
    path: Path
    root: Path
    kind: Kind
    offsets: array[int] = field(default_factory=lambda: array("q"))
    lines: array[int] = field(default_factory=lambda: array("q"))
    sizes: array[int] = field(default_factory=lambda: array("i"))
    findings: tuple[Finding, ...] = ()

    def __post_init__(self) -> None:
        """Number the labels."""
        self._positions = {number: i for i, number in enumerate(self.category_ids)}

    def __len__(self) -> int:
        """Number of records."""
        return len(self.offsets)

    def size(self, index: int) -> tuple[int, int] | None:
        """(width, height) as the file says, of a position from 0."""
        width, height = self.sizes[2 * index : 2 * index + 2]
        return (width, height) if width else None

    def __getitem__(self, index: int) -> Record:
        """The record at a position, read from its line.

        Raises:
            IndexError: there is none.
            DataError: the file has changed since it was opened.
        """
        if not -len(self) <= index < len(self):
            raise IndexError(f"record {index} of {len(self)}")
        number = self.lines[index]
        try:
            with self.path.open("rb") as file:
                file.seek(self.offsets[index])
                line = file.readline()
        except OSError as error:
            raise DataError(f"{self.path}: {error.strerror}") from error
        record = self.parse(line, number, FindingLog(self.path, limit=0))
        if record is None:
            raise DataError(f"{self.path}, line {number}: has changed since the file was opened")
        return record

    def parse(self, line: bytes, number: int, log: FindingLog) -> Record | None:
        """The record of a line, or None, with a finding, for a line that is left out.

        Raises:
            DataError: a line that is no JSON object, or of the other kind.
        """
        where = f"{self.path}, line {number}"
        content = parse_line(line, self.path, number)
        other = "grounding" if self.kind == "detection" else "detection"
        if content.get(other) is not None:
            raise DataError(f"{where}: has {other!r} in a file of {self.kind} lines; one file holds one kind")
        name, body = content.get("filename"), content.get(self.kind)
        if not isinstance(name, str) or not name:
            log.add("malformed entry", where, "has no filename; left out")
            return None
        size = image_size(content.get("width"), content.get("height"), where, log)
        if not isinstance(body, dict):
            log.add("malformed entry", where, f"has no {self.kind!r} object; left out")
            return None
        record = Record(image_id=name, image=self.root / name, size=size)
        if self.kind == "detection":
            return self._detection(body, record, where, log)
        return _grounding(body, record, where, log)

    def _detection(self, body: dict[str, Any], record: Record, where: str, log: FindingLog) -> Record | None:
        instances = body.get("instances") or []
        if not _are_objects(instances):
            log.add("malformed entry", where, "'instances' is not a list of objects; left out")
            return None
        written = [instance.get("label") for instance in instances]
        labels = [self._positions.get(category_number(label)) for label in written]
        boxes = [instance.get("bbox") for instance in instances]
        return with_boxes(record, RawBoxes(boxes=boxes, names=labels, written=written), where, log)


def _grounding(body: dict[str, Any], record: Record, where: str, log: FindingLog) -> Record | None:
    written, regions = body.get("caption"), body.get("regions") or []
    if not isinstance(written, str) or not written.strip() or not _are_objects(regions):
        log.add("malformed entry", where, "needs a caption and a list of objects 'regions'; left out")
        return None
    caption = strip_caption(written)
    boxes: list[object] = []
    spans: list[Spans | None] = []
    for i, region in enumerate(regions, start=1):
        at, bbox = f"{where}, region {i}", region.get("bbox")
        named = spans_of(region.get("tokens_positive"), region.get("phrase"), caption, at, log)
        several = bbox if isinstance(bbox, list) and bbox and isinstance(bbox[0], list) else [bbox]
        boxes += several
        spans += [named] * len(several)
    return with_boxes(replace(record, caption=caption.text), RawBoxes(boxes=boxes, names=spans), where, log)


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


def _label_map(entry: SourceEntry, path: Path) -> dict[int, str]:
    file = path.with_name(LABEL_MAP_FILE) if entry.label_map is None else Path(entry.label_map)
    if entry.label_map is None and not file.is_file():
        raise DataError(
            f'{path}: detection lines need the option label_map, a JSON file {{"0": "person", ...}}, or'
            f" {LABEL_MAP_FILE} beside them"
        )
    written = read_json(file)
    if not isinstance(written, dict) or not written:
        raise DataError(f'{file}: one JSON object {{"0": "person", ...}} is needed')
    names: dict[int, str] = {}
    for key, name in written.items():
        label = as_integer(key)
        if label is None or label < 0 or label in names or not isinstance(name, str) or not name.strip():
            raise DataError(f'{file}: {key!r}: {name!r} is not of the form "0": "person"')
        names[label] = name
    return names
