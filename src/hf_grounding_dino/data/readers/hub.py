"""Sets that Hugging Face `datasets` reads: from the Hub, a folder of images, parquet, JSON, or `save_to_disk`."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeAlias

import datasets
import fsspec
import pyarrow as pa
import pyarrow.compute as pc
from datasets.distributed import split_dataset_by_node
from PIL import Image

from ...utils.printable import one_line
from ..findings import FindingLog, Tally
from ..images import remote_content
from ..index import IndexBuilder, RecordIndex
from ..records import DataError, Finding, ImageSource, Record, SourceEntry
from .files import image_size, refuse_stray, upright_size
from .names import clean_names, read_names
from .rows import CATEGORY_COLUMNS, LayoutWatch, RowReader, as_columns, column_of, row_id

_BUILDERS: Final = {
    ".parquet": "parquet", ".arrow": "arrow", ".csv": "csv", ".json": "json", ".jsonl": "json",
}  # fmt: skip
_FILE_COLUMNS: Final = ("file_name", "image", "image_path", "path", "filename")
_READ_AT_ONCE: Final = 256
_FIRST_ROWS: Final = 32

_Data: TypeAlias = datasets.Dataset | datasets.IterableDataset
_LOADING_ERRORS: Final = (OSError, ValueError, KeyError, ImportError, RuntimeError, datasets.exceptions.DatasetsError)


class _Images(NamedTuple):
    """The column of the images, the folder that paths in it start from, and whether `datasets` made the paths."""

    column: str
    folder: Path
    typed: bool


def read(entry: SourceEntry) -> RecordIndex | HubStream:
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
    categories = _categories(data, features, entry) if is_detection else {}
    by_key: dict[Hashable, int] = {key: i for i, pair in enumerate(categories.items()) for key in pair}
    reader = RowReader(by_key if is_detection else None)
    if isinstance(data, datasets.Dataset):
        return _read_table(data, images, reader, categories, entry)
    names = clean_names(tuple(categories.values()))
    stream = HubStream(_name(entry), data, images, reader, names, tuple(categories))
    stream.look_at_first_rows()
    return stream


# --- at any position ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TableImages:
    """Images that stay in the table; `rows` is the row of each record."""

    column: datasets.Dataset
    rows: Sequence[int]
    folder: Path

    def __getitem__(self, index: int) -> ImageSource:
        """The encoded image, or its file."""
        (value,) = self.column[self.rows[index]].values()
        return _source(value, self.folder)


def _read_table(
    data: datasets.Dataset, images: _Images, reader: RowReader, categories: dict[int, str], entry: SourceEntry
) -> RecordIndex:
    where = entry.annotations
    log, watch, rows = FindingLog(where), LayoutWatch(where), list[int]()
    builder = IndexBuilder(log, images.folder)
    seen: set[int | str] = set()
    for number, (row, head) in enumerate(_rows_with_heads(data, images)):
        at = f"{where}, row {number}"
        image_id = row_id(row, number)
        if reader.positions is not None and image_id in seen:
            log.add("duplicate id", at, f"image id {image_id!r} is that of an earlier row; left out")
            continue
        size = _size(row, head, images, at, log)
        record = size and reader.read(row, Record(image_id=image_id, image=b"", size=size), at, log, watch)
        if record:
            seen.add(image_id)
            rows.append(number)
            builder.add(record)
    watch.check()
    names = clean_names(tuple(categories.values()))
    table = TableImages(data.select_columns([images.column]), rows, images.folder)
    return builder.build(_name(entry), categories, names, images=table)


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


@dataclass
class HubStream:
    """A `RecordStream` of a set that is read from its beginning; `findings` are those of the last reading.

    part: which part of the set it is, as image ids and findings have it before the number of a row.
    """

    name: str
    data: datasets.IterableDataset
    images: _Images
    reader: RowReader
    label_names: tuple[str, ...]
    category_ids: tuple[int, ...]
    part: str = ""
    findings: tuple[Finding, ...] = field(default=(), init=False)

    def shard(self, index: int, count: int) -> HubStream:
        """Part `index` of `count`: whole files where `count` divides their number, else every `count`-th row."""
        data = split_dataset_by_node(self.data, rank=index, world_size=count)
        return replace(self, data=data, part=f"{self.part}{index}/{count}-")

    def __iter__(self) -> Iterator[Record]:
        """All records of this part, in the order of the set."""
        log, watch = FindingLog(self.name), LayoutWatch(self.name)
        try:
            yield from self._records(self.data, log, watch)
        finally:
            self.findings = log.findings

    def look_at_first_rows(self) -> None:
        """Raise a `DataError` where the first rows show that the set cannot be used."""
        log, watch = FindingLog(self.name), LayoutWatch(self.name)
        records = list(self._records(self.data.take(_FIRST_ROWS), log, watch))
        watch.check()
        if not records:
            Tally().conclude(log, {})

    def _records(self, data: datasets.IterableDataset, log: FindingLog, watch: LayoutWatch) -> Iterator[Record]:
        # In worker processes; `datasets` does so where it is iterated by itself.
        fsspec.asyn.reset_lock()
        # Not `iter(data)`, which divides the rows between the workers of a DataLoader once more.
        for number, batch in enumerate(data.iter(batch_size=1)):
            row = {name: values[0] for name, values in batch.items()}
            at = f"{self.name}, row {self.part}{number}"
            try:
                source = _source(row[self.images.column], self.images.folder)
            except ValueError as error:
                log.add("unreadable image", at, f"{error}; left out")
                continue
            if size := _size(row, source, self.images, at, log):
                image_id = row_id(row, f"{self.part}{number}" if self.part else number)
                image = Record(image_id=image_id, image=source, size=size)
                if record := self.reader.read(row, image, at, log, watch):
                    yield record


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
        raise DataError(f"{entry.annotations}: cannot be loaded ({one_line(error.__cause__ or error)})") from error


def _first_row(data: _Data, entry: SourceEntry) -> Mapping[str, Any]:
    """The columns; of a stream that does not know them, its first row."""
    if data.features is not None:
        return dict(data.features)
    try:
        row = next(iter(data.take(1)), None)
    except _LOADING_ERRORS as error:
        raise DataError(f"{entry.annotations}: cannot be read ({one_line(error)})") from error
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


def _categories(data: _Data, features: Mapping[str, Any], entry: SourceEntry) -> dict[int, str]:
    """From `label_map`, the type ClassLabel, or the names that stand in the rows, sorted."""
    if entry.label_map:
        return read_names(Path(entry.label_map))
    if (class_names := _class_names(features.get("objects"))) is not None:
        return dict(enumerate(class_names))
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
    return dict(enumerate(sorted({name.strip() for name in found} - {""})))


def _class_names(objects: Any) -> Sequence[str] | None:
    inner = getattr(objects, "feature", objects)
    columns = inner if isinstance(inner, Mapping) else {}
    category = next((columns[name] for name in CATEGORY_COLUMNS if name in columns), None)
    category = getattr(category, "feature", category)
    return category.names if isinstance(category, datasets.ClassLabel) else None


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
