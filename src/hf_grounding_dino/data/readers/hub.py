"""Sets that Hugging Face `datasets` reads: from the Hub, a folder of images, parquet, JSON, or `save_to_disk`."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeAlias

import datasets
import fsspec
import pyarrow as pa
import pyarrow.compute as pc
import torch
from datasets.distributed import split_dataset_by_node
from PIL import Image

from ..images import remote_content
from ..records import DataError, Finding, ImageSource, Record, SourceEntry
from .common import FindingLog, clean_names, image_size, refuse_useless
from .headers import upright_size
from .names import read_names
from .packed import ImageEntry, PackedRecords, RecordPacker
from .rows import CATEGORY_COLUMNS, LayoutWatch, RowReader, as_columns, column_of, row_id
from .stray_names import refuse_stray

_BUILDERS: Final = {
    ".parquet": "parquet", ".arrow": "arrow", ".csv": "csv", ".json": "json", ".jsonl": "json",
}  # fmt: skip
_FILE_COLUMNS: Final = ("file_name", "image", "image_path", "path", "filename")
_READ_AT_ONCE: Final = 256
_FIRST_ROWS: Final = 32

_Data: TypeAlias = datasets.Dataset | datasets.IterableDataset
_LOADING_ERRORS: Final = (OSError, ValueError, KeyError, ImportError, RuntimeError, datasets.exceptions.DatasetsError)


class _Labels(NamedTuple):
    """`names` of the labels in the order of their `ids`; both empty in a grounding set."""

    names: tuple[str, ...] = ()
    ids: tuple[int, ...] = ()


class _Images(NamedTuple):
    """The column of the images, the folder that paths in it start from, and whether `datasets` made the paths."""

    column: str
    folder: Path
    typed: bool


def read(entry: SourceEntry) -> HubRecords | HubStream:
    """Read a set that `datasets` reads; its images stay encoded, and are not read before they are asked for.

    The image is the column of type Image, or a path in `file_name`, `image`, `image_path`, `path` or `filename`,
    which starts in `images` or, left out, in the folder of the annotations. Beside it stand either

    - `objects`, a mapping of lists or a list of mappings: `bbox` (xywh in pixels, unless `bbox_format` in them says
      "xyxy"), `category` (a ClassLabel, a number that `label_map` names, or a name) and, where there are any, `area`
      and `iscrowd`; missing, None or empty, the image has no box; or
    - `caption` and `phrases`: `phrase`, `tokens_positive` ([[start, end], ...]; left out, the phrase is looked up in
      the caption) and `bbox` (xyxy, one or a list).

    Sizes are the columns `width` and `height`, or are read from the heads of the images. The image id is `image_id`
    or `id`, or the row's number from 0. With `streaming` the findings grow while records are read.

    Raises:
        DataError: nothing that can be loaded, no such split, no column of images or boxes, labels without names,
            boxes that look like xyxy, or no valid box at all.
    """
    data = _load(entry)
    first = _first_row(data, entry)
    features: Mapping[str, Any] = data.features or {}
    images = _images(features, first, entry)
    if isinstance(features.get(images.column), datasets.Image):
        data = data.cast_column(images.column, datasets.Image(decode=False))
    is_detection = "objects" in first
    if not is_detection and not ("caption" in first and "phrases" in first):
        raise DataError(f"{entry.annotations}: has columns {', '.join(first)}; needed: objects, or caption and phrases")
    labels = _labels(data, features, entry) if is_detection else _Labels()
    by_key: dict[Hashable, int] = {
        key: i for i, pair in enumerate(zip(labels.ids, labels.names, strict=True)) for key in pair
    }
    reader = RowReader(is_detection, by_key)
    labels = labels._replace(names=clean_names(labels.names))
    if isinstance(data, datasets.Dataset):
        return _read_table(data, images, reader, labels, entry)
    stream = HubStream(_name(entry), data, images, reader, labels)
    stream.look_at_first_rows()
    return stream


# --- at any position ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class HubRecords:
    """A `RecordSet` whose boxes are in memory and whose images stay in the table.

    packed: all but the images.
    table: the column of the images.
    rows: the row of each record.
    """

    packed: PackedRecords
    table: datasets.Dataset
    rows: Sequence[int]
    folder: Path
    name: str
    label_names: tuple[str, ...]
    category_ids: tuple[int, ...]
    findings: tuple[Finding, ...]

    def __len__(self) -> int:
        """Number of records."""
        return len(self.packed)

    @property
    def num_boxes(self) -> int:
        """Number of boxes in all records."""
        return self.packed.num_boxes

    def __getitem__(self, index: int) -> Record:
        """The record at a position.

        Raises:
            IndexError: there is none.
        """
        record = self.packed[index]
        (value,) = self.table[self.rows[index]].values()
        return replace(record, image=_source(value, self.folder))

    def size(self, index: int) -> tuple[int, int] | None:
        """(width, height) as the table or the head of the image says."""
        return self.packed.size(index)


def _read_table(
    data: datasets.Dataset, images: _Images, reader: RowReader, labels: _Labels, entry: SourceEntry
) -> HubRecords:
    where = entry.annotations
    log, watch, packer, rows = FindingLog(where), LayoutWatch(where), RecordPacker(), list[int]()
    seen: set[int | str] = set()
    for number, (row, head) in enumerate(_rows_with_heads(data, images)):
        at = f"{where}, row {number}"
        image_id = row_id(row, number)
        if reader.is_detection and image_id in seen:
            log.add("duplicate id", at, f"image id {image_id!r} is that of an earlier row; left out")
            continue
        size = _size(row, head, images, at, log)
        boxes = reader.read(row, size, at, log, watch) if size else None
        if boxes:
            seen.add(image_id)
            rows.append(number)
            packer.add(ImageEntry(image_id, "", size, boxes.caption), *boxes[:4])
    watch.check()
    names = dict(zip(labels.ids, labels.names, strict=True))
    packed = packer.finish(_name(entry), images.folder, log, names, words=labels.names)
    table = data.select_columns([images.column])
    return HubRecords(
        packed, table, rows, images.folder, packed.name, labels.names, labels.ids, packed.findings
    )  # fmt: skip


def _rows_with_heads(data: datasets.Dataset, images: _Images) -> Iterator[tuple[dict[str, Any], Any]]:
    """Each row without its image, and the image as what `_size` reads: a table's bytes are not copied."""
    cells = data.select_columns([images.column]).with_format("arrow").iter(batch_size=_READ_AT_ONCE)
    others = data.remove_columns([images.column]).iter(batch_size=_READ_AT_ONCE)
    for table, columns in zip(cells, others, strict=True):
        heads = _heads(table[images.column], images.folder)
        for head, values in zip(heads, zip(*columns.values(), strict=True), strict=True):
            yield dict(zip(columns, values, strict=True)), head


def _heads(column: pa.ChunkedArray, folder: Path) -> Iterator[Any]:
    if not pa.types.is_struct(column.type):
        yield from (folder / str(name) for name in column.to_pylist())
        return
    for content, path in zip(pc.struct_field(column, "bytes"), pc.struct_field(column, "path"), strict=True):
        buffer = content.as_buffer()
        yield folder / str(path.as_py()) if buffer is None else pa.BufferReader(buffer)


# --- from the beginning ------------------------------------------------------------------------------------------


class HubStream:
    """A `RecordStream` of a set that is read from its beginning; `findings` are those of the last reading."""

    def __init__(
        self,
        name: str,
        data: datasets.IterableDataset,
        images: _Images,
        reader: RowReader,
        labels: _Labels,
        part: str = "",
    ) -> None:
        self.name = name
        self.label_names = labels.names
        self.category_ids = labels.ids
        self.findings: tuple[Finding, ...] = ()
        self._data = data
        self._images = images
        self._reader = reader
        self._part = part

    def shard(self, index: int, count: int) -> HubStream:
        """Part `index` of `count`: whole files where `count` divides their number, else every `count`-th row."""
        data = split_dataset_by_node(self._data, rank=index, world_size=count)
        labels = _Labels(self.label_names, self.category_ids)
        return HubStream(self.name, data, self._images, self._reader, labels, f"{self._part}{index}/{count}-")

    def __iter__(self) -> Iterator[Record]:
        """All records of this part, in the order of the set."""
        log, watch = FindingLog(self.name), LayoutWatch(self.name)
        try:
            yield from self._records(self._data, log, watch)
        finally:
            self.findings = log.findings

    def look_at_first_rows(self) -> None:
        """Raise a `DataError` where the first rows show that the set cannot be used."""
        log, watch = FindingLog(self.name), LayoutWatch(self.name)
        records = list(self._records(self._data.take(_FIRST_ROWS), log, watch))
        watch.check()
        if not records:
            refuse_useless(0, 0, self.name, log)

    def _records(self, data: datasets.IterableDataset, log: FindingLog, watch: LayoutWatch) -> Iterator[Record]:
        # In worker processes; `datasets` does so where it is iterated by itself.
        fsspec.asyn.reset_lock()
        # Not `iter(data)`, which divides the rows between the workers of a DataLoader once more.
        for number, batch in enumerate(data.iter(batch_size=1)):
            row = {name: values[0] for name, values in batch.items()}
            at = f"{self.name}, row {self._part}{number}"
            try:
                source = _source(row[self._images.column], self._images.folder)
            except ValueError as error:
                log.add("unreadable image", at, f"{error}; left out")
                continue
            size = _size(row, source, self._images, at, log)
            found = self._reader.read(row, size, at, log, watch) if size else None
            if found:
                grounding = found.caption is not None
                yield Record(
                    image_id=row_id(row, f"{self._part}{number}" if self._part else number),
                    image=source,
                    boxes=found.boxes,
                    labels=None if grounding else torch.tensor(found.names, dtype=torch.int64),
                    crowd=torch.tensor(found.crowd, dtype=torch.bool) if any(found.crowd) else None,
                    area=_areas(found.area),
                    size=size,
                    caption=found.caption,
                    spans=tuple(found.names) if grounding else None,
                )


def _areas(areas: list[float]) -> torch.Tensor | None:
    values = torch.tensor(areas, dtype=torch.float32)
    return None if values.isnan().any() else values


# --- loading -----------------------------------------------------------------------------------------------------


def _load(entry: SourceEntry) -> _Data:
    path, split = Path(entry.annotations), entry.split or "train"
    try:
        if (path / "state.json").is_file() or (path / "dataset_dict.json").is_file():
            saved = datasets.load_from_disk(str(path))
            if isinstance(saved, datasets.DatasetDict):
                if split not in saved:
                    raise DataError(f"{path}: has no split {split!r}, only {', '.join(saved)}")
                saved = saved[split]
            return saved.to_iterable_dataset() if entry.streaming else saved
        if path.is_file():
            builder = _BUILDERS.get(path.suffix.lower())
            if builder is None:
                raise DataError(f"{path}: ends in none of {', '.join(_BUILDERS)}")
            files = {split: str(path)}
            return datasets.load_dataset(builder, data_files=files, split=split, streaming=entry.streaming)
        return datasets.load_dataset(entry.annotations, split=split, streaming=entry.streaming)
    except DataError:
        raise
    except _LOADING_ERRORS as error:
        reason = " ".join(str(error.__cause__ or error).split()) or type(error).__name__
        raise DataError(f"{entry.annotations}: cannot be loaded ({reason})") from error


def _first_row(data: _Data, entry: SourceEntry) -> Mapping[str, Any]:
    """The columns; of a stream that does not know them, its first row."""
    if data.features is not None:
        return dict(data.features)
    try:
        row = next(iter(data.take(1)), None)
    except _LOADING_ERRORS as error:
        raise DataError(f"{entry.annotations}: cannot be read ({' '.join(str(error).split())})") from error
    if row is None:
        raise DataError(f"{entry.annotations}: has no rows")
    return dict(row)


def _images(features: Mapping[str, Any], first: Mapping[str, Any], entry: SourceEntry) -> _Images:
    typed = [name for name, feature in features.items() if isinstance(feature, datasets.Image)]
    column = next(iter([*typed, *(name for name in _FILE_COLUMNS if name in first)]), None)
    if column is None:
        named = ", ".join(first)
        raise DataError(f"{entry.annotations}: has columns {named}; none is an image, nor a path called file_name")
    path = Path(entry.annotations)
    folder = Path(entry.images) if entry.images else path if path.is_dir() else path.parent
    return _Images(column, folder, column in typed)


def _labels(data: _Data, features: Mapping[str, Any], entry: SourceEntry) -> _Labels:
    """From `label_map`, the type ClassLabel, or the names that stand in the rows, sorted."""
    if entry.label_map:
        names = read_names(Path(entry.label_map))
        return _Labels(tuple(names.values()), tuple(names))
    if (class_names := _class_names(features.get("objects"))) is not None:
        return _Labels(class_names, tuple(range(len(class_names))))
    if isinstance(data, datasets.IterableDataset):
        raise DataError(f"{entry.annotations}: its categories are no ClassLabel; streaming needs a label_map")
    found: set[Any] = set()
    for batch in data.select_columns(["objects"]).iter(batch_size=_READ_AT_ONCE):
        for objects in batch["objects"]:
            found.update(column_of(as_columns(objects), CATEGORY_COLUMNS))
    found.discard(None)
    if numbers := [value for value in found if not isinstance(value, str)]:
        raise DataError(
            f"{entry.annotations}: categories are numbers ({numbers[0]}, ...) without names: give label_map"
        )
    words = sorted({name.strip() for name in found} - {""})
    return _Labels(tuple(words), tuple(range(len(words))))


def _class_names(objects: Any) -> tuple[str, ...] | None:
    inner = getattr(objects, "feature", objects)
    columns = inner if isinstance(inner, Mapping) else {}
    category = next((columns[name] for name in CATEGORY_COLUMNS if name in columns), None)
    category = getattr(category, "feature", category)
    return tuple(category.names) if isinstance(category, datasets.ClassLabel) else None


def _name(entry: SourceEntry) -> str:
    path = Path(entry.annotations)
    return entry.name or (path.stem if path.exists() else entry.annotations)


# --- images ----------------------------------------------------------------------------------------------------


def _source(value: Any, folder: Path) -> ImageSource:
    """A cell of the column of images as what can be opened; ValueError where its address cannot be had."""
    if isinstance(value, Image.Image):
        return value
    if isinstance(value, Mapping):
        if value.get("bytes") is not None:
            return bytes(value["bytes"])
        path = str(value.get("path"))
        if "://" in path:
            return remote_content(path, allow_local=True)
        return folder / path
    return folder / str(value)


def _size(row: Mapping[str, Any], image: Any, images: _Images, where: str, log: FindingLog) -> tuple[int, int] | None:
    """What the row says, or the head of the image; None, with a finding, where it cannot be used."""
    # Where `datasets` made the paths, absolute ones lead to what it loaded.
    if isinstance(image, Path) and (not images.typed or ".." in image.parts):
        refuse_stray(str(image.absolute()), images.folder, where)
    if isinstance(image, Path) and not image.is_file():
        log.add("missing image", where, f"{image} is not there; left out")
        return None
    stated = image_size(row.get("width"), row.get("height"), where, log)
    if stated or isinstance(image, Image.Image):
        return stated or image.size
    try:
        return upright_size(image)
    except ValueError as error:
        log.add("unreadable image", where, f"{error}; left out")
        return None
