"""Where the images to label come from: files, tar shards (WebDataset), tables of `datasets`."""

from __future__ import annotations

import os
import tarfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple, Protocol

import datasets
import pyarrow as pa
import pyarrow.compute as pc
from huggingface_hub.constants import HF_HUB_CACHE

from ..data.images import remote_content
from ..data.readers.files import IMAGE_SUFFIXES, is_below
from ..data.records import ImageSource
from ..utils.image_files import MOST_BYTES
from ..utils.printable import one_line
from .checkpoint import AnnotationError


class Source(Protocol):
    """Images that can be opened at any position, from any thread."""

    @property
    def names(self) -> Sequence[str]:
        """Of each image its path in the source, with "/", sorted, each once; not all need be fit for a file name."""
        ...

    @property
    def root(self) -> Path | None:
        """The folder that the names start from, None where the images are not files."""
        ...

    def image(self, index: int) -> ImageSource:
        """What can be opened.

        Raises:
            OSError, ValueError: it is not there any more.
        """
        ...


# --- files -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class FileSource:
    """Image files below one folder."""

    root: Path
    names: Sequence[str]

    @classmethod
    def from_paths(cls, paths: Iterable[str | Path], root: Path) -> FileSource:
        """The files, whose names start from `root`.

        Raises:
            AnnotationError: there are none, or one is not below `root`.
        """
        top = Path(os.path.abspath(root))
        names = set()
        for path in paths:
            place = Path(os.path.abspath(path))
            if not place.is_relative_to(top):
                raise AnnotationError(f"{path} is not below {root}")
            names.add(place.relative_to(top).as_posix())
        if not names:
            raise AnnotationError("no images")
        return cls(top, sorted(names))

    def image(self, index: int) -> Path:
        """The file."""
        return self.root / self.names[index]


# --- tar shards --------------------------------------------------------------------------------------------------


class _Member(NamedTuple):
    name: str
    archive: Path
    offset: int
    size: int
    problem: str | None


@dataclass(frozen=True)
class TarSource:
    """The images in the tar shards of a WebDataset; a name is that of the shard, "/", and that in the shard."""

    members: Sequence[_Member]
    names: Sequence[str]
    root: None = None

    @classmethod
    def from_archives(cls, archives: Sequence[str | Path], extension: str | None = None) -> TarSource:
        """Read the tables of contents.

        Args:
            archives: uncompressed tar files.
            extension: which member of each sample is its image, such as "img.png": what follows the first dot of its
                name. By default any that is one of an image.

        Raises:
            AnnotationError: a file that is no tar file, compressed or cut off, or no image in any.
        """
        paths = sorted({Path(os.path.abspath(archive)) for archive in archives})
        if not paths:
            raise AnnotationError("no tar files")
        top = Path(os.path.commonpath([path.parent for path in paths]))
        members: dict[str, _Member] = {}
        extensions: set[str] = set()
        for path in paths:
            shard = path.relative_to(top).with_suffix("").as_posix()
            for member in _members(path):
                own = PurePosixPath(member.name).name.partition(".")[2].lower()
                extensions.add(own)
                if own == extension.lower() if extension else f".{own}" in IMAGE_SUFFIXES:
                    members[f"{shard}/{_tidy(member.name)}"] = member  # as in unpacking, the last of a name counts
        if not members:
            found = ", ".join(sorted(extensions)[:10]) or "nothing"
            raise AnnotationError(f"no image in {', '.join(map(str, paths[:3]))}: there is {found}; name it")
        names = sorted(members)
        return cls([members[name] for name in names], names)

    def image(self, index: int) -> bytes:
        """The content of the member."""
        member = self.members[index]
        if member.problem is not None:
            raise ValueError(member.problem)
        with member.archive.open("rb") as file:
            file.seek(member.offset)
            return file.read(member.size)


def _members(path: Path) -> Iterator[_Member]:
    try:
        with tarfile.open(path, "r:") as archive:
            for entry in archive:
                if entry.isreg():
                    yield _Member(entry.name, path, entry.offset_data, entry.size, _problem(entry))
    except OSError as error:
        raise AnnotationError(f"{path}: {error.strerror or error}") from error
    except (tarfile.TarError, ValueError, OverflowError) as error:
        raise AnnotationError(f"{path}: not a whole, uncompressed tar file ({error})") from error


def _problem(entry: tarfile.TarInfo) -> str | None:
    """Why a member is not read: what a sparse one claims to be has nothing to do with what is stored."""
    if entry.issparse():
        return f"it is stored as a sparse file (of {entry.size:,} bytes): pack it as it is"
    return f"it has {entry.size:,} bytes, more than {MOST_BYTES:,}" if entry.size > MOST_BYTES else None


def _tidy(name: str) -> str:
    """Without "." and empty parts; what is absolute stays so."""
    return str(PurePosixPath(name)) if not name.startswith("/") else name


# --- tables ------------------------------------------------------------------------------------------------------

_DOWNLOADS = (HF_HUB_CACHE, datasets.config.HF_DATASETS_CACHE)
_BUILDERS = {".parquet": "parquet", ".json": "json", ".jsonl": "json", ".csv": "csv", ".arrow": "arrow"}


@dataclass(frozen=True)
class TableSource:
    """The column of images of a set of `datasets`.

    Names are the file names in the column, where each row has its own; else the numbers of the rows.

    folders: below which rows may name files; None for everywhere, and URLs of local networks.
    """

    names: Sequence[str]
    table: datasets.Dataset
    column: str
    rows: Sequence[int]
    root: Path | None
    folders: Sequence[Path] | None

    @classmethod
    def from_dataset(
        cls,
        table: datasets.Dataset,
        column: str | None = None,
        *,
        where: str | Path | None = None,
        allow_local: bool = False,
    ) -> TableSource:
        """Take the images of a table.

        Args:
            table: as `datasets` reads it.
            column: a column of images, or of paths of files; by default the first of type Image.
            where: the folder or file that the table was read from. Rows may name files in that folder, or in what
                `datasets` keeps of downloads; other files are not read, nor are URLs of this machine and of local
                networks.
            allow_local: read those, too.

        Raises:
            AnnotationError: no such column, or no rows.
        """
        typed = [name for name, feature in table.features.items() if isinstance(feature, datasets.Image)]
        chosen = column or next(iter(typed), None)
        if chosen is None or chosen not in table.features:
            known = ", ".join(table.features)
            raise AnnotationError(f"there is no column {column or 'of images'}, only {known}: name one")
        if not len(table):
            raise AnnotationError("the data set has no rows")
        table = table.select_columns([chosen])
        if chosen in typed:
            table = table.cast_column(chosen, datasets.Image(decode=False))
        folders = None if allow_local else [*_folder_of(where), *map(Path, _DOWNLOADS)]
        names, root = _row_names(table, chosen, folders)
        order = sorted(range(len(names)), key=names.__getitem__)
        return cls([names[row] for row in order], table, chosen, order, root, folders)

    def image(self, index: int) -> ImageSource:
        """The cell as what can be opened."""
        value: Any = self.table[self.rows[index]][self.column]
        if isinstance(value, Mapping):
            if value.get("bytes") is not None:
                return bytes(value["bytes"])
            value = value.get("path")
        if value is None:
            raise ValueError("the row has no image")
        if "://" in str(value):
            return remote_content(str(value), allow_local=self.folders is None)
        if not _may_be_read(str(value), self.folders):
            raise ValueError(f"{value} is outside the folder of the data set, which is not allowed here")
        return Path(str(value))


def _folder_of(where: str | Path | None) -> list[Path]:
    """The folder of a table that was read from the disk."""
    path = None if where is None else Path(where)
    if path is None or not path.exists():
        return []
    return [path if path.is_dir() else path.parent]


def _may_be_read(path: str, folders: Sequence[Path] | None) -> bool:
    return folders is None or any(is_below(Path(path), folder) for folder in folders)


def open_table(name: str, split: str = "train") -> datasets.Dataset:
    """Read a repo on the Hub, a folder (of images, of parquet files, of `save_to_disk`) or a file with `datasets`.

    Raises:
        AnnotationError: it cannot be read, or has no such split.
    """
    path = Path(name)
    try:
        if (path / "state.json").is_file() or (path / "dataset_dict.json").is_file():
            saved = datasets.load_from_disk(name)
            return saved[split] if isinstance(saved, datasets.DatasetDict) else saved
        if path.is_file():
            builder = _BUILDERS.get(path.suffix.lower())
            if builder is None:
                raise AnnotationError(f"{name}: ends in none of {', '.join(_BUILDERS)}")
            return datasets.load_dataset(builder, data_files={split: name}, split=split)
        return datasets.load_dataset(name, split=split)
    except AnnotationError:
        raise
    except Exception as error:  # the builders of datasets have no error in common
        reason = one_line(error.__cause__ or error)
        raise AnnotationError(f"{name}: cannot be loaded ({reason})") from error


def _row_names(table: datasets.Dataset, column: str, folders: Sequence[Path] | None) -> tuple[list[str], Path | None]:
    """The name of each row, and the folder that names start from where all are files.

    A file that may not be read keeps its whole name, and leaves those of the others as they would be without it.
    """
    paths: list[str | None] = []
    stored: list[bool] = []
    for batch in table.with_format("arrow").iter(batch_size=1000):
        values = batch[column]
        if pa.types.is_struct(values.type):
            stored += pc.is_valid(pc.struct_field(values, "bytes")).to_pylist()
            paths += pc.struct_field(values, "path").to_pylist()
        else:
            stored += [False] * len(values)
            paths += values.to_pylist()
    texts = [path for path in paths if path and "://" not in path]
    if len(texts) < len(paths) or len(set(texts)) < len(texts):
        return [f"{row:08d}.jpg" for row in range(len(paths))], None
    if any(stored):
        return texts, None
    places = [Path(os.path.abspath(path)) for path in texts]
    allowed = [place for place in places if _may_be_read(str(place), folders)] or places
    root = Path(os.path.commonpath([place.parent for place in allowed]))
    return [(place.relative_to(root) if place.is_relative_to(root) else place).as_posix() for place in places], root
