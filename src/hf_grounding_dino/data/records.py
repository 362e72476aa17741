"""What every data set is read into: images with boxes and the words for them, and what is wrong with the files."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal, NamedTuple, Protocol, runtime_checkable

from PIL import Image

if TYPE_CHECKING:
    from torch import Tensor

ImageSource = Path | bytes | Image.Image
"""A file, an encoded image, or a decoded one."""

Spans = tuple[tuple[int, int], ...]
"""Where a caption names a box, as (start, end) characters, end exclusive, one or more."""

FindingKind = Literal[
    "gapped ids", "duplicate id", "duplicate box", "unknown category", "unused category", "no category",
    "missing image", "unreadable image", "wrong size", "no boxes", "malformed box", "outside box", "empty box",
    "crowd", "no phrase", "span past the end", "empty phrase", "malformed entry",
]  # fmt: skip


_LONGEST_SHOWN: Final = 80


class Finding(NamedTuple):
    """One thing that is odd or wrong in a data set.

    kind: its name.
    where: the file, and the line, entry or image in it.
    what: what is there, in one line.
    """

    kind: FindingKind
    where: str
    what: str


def _no_boxes() -> Tensor:
    import torch  # records are named on the command line, which does without

    return torch.zeros(0, 4)


@dataclass(frozen=True, kw_only=True)
class Record:
    """One image, with boxes that labels name (detection) or that parts of a caption name (grounding).

    image_id: as the file has it.
    image: where the pixels are; EXIF orientation is applied when they are read.
    boxes: float32 (n, 4), xyxy in pixels of the upright image, with positive sides, clipped to it where its size is
        known; n may be 0.
    labels: int64 (n,), positions in the set's `label_names`; None in a grounding record.
    crowd: bool (n,), True on a box around a group, which is evaluated, not trained on; None where no box is one.
    area: float32 (n,), pixels, where the file says them (of a mask); None for the area of the box.
    size: (width, height) as the file says, None where it does not.
    caption: the sentence of a grounding record; None in a detection record.
    spans: for each box, where the caption names it.
    absent: positions in `label_names` that were looked for and are not in the image; None where all labels were
        looked for everywhere. Only these are true negatives in federated sets (LVIS).
    incomplete: positions in `label_names` of which not every object is boxed (LVIS `not_exhaustive_category_ids`).
    """

    image_id: int | str
    image: ImageSource
    boxes: Tensor = field(default_factory=_no_boxes)
    labels: Tensor | None = None
    crowd: Tensor | None = None
    area: Tensor | None = None
    size: tuple[int, int] | None = None
    caption: str | None = None
    spans: tuple[Spans, ...] | None = None
    absent: tuple[int, ...] | None = None
    incomplete: tuple[int, ...] = ()


class _Described(Protocol):
    """What sets and streams say of themselves."""

    @property
    def name(self) -> str:
        """Of the set, for people."""
        ...

    @property
    def label_names(self) -> tuple[str, ...]:
        """Of a detection set, in the file's order, as a prompt says them; empty for a grounding set."""
        ...

    @property
    def category_ids(self) -> tuple[int, ...]:
        """The file's own number of each label, for evaluation; as long as `label_names`."""
        ...

    @property
    def findings(self) -> tuple[Finding, ...]:
        """What was odd when it was read."""
        ...


@runtime_checkable
class RecordSet(_Described, Protocol):
    """A data set that can be read at any position."""

    def __len__(self) -> int:
        """Number of records."""
        ...

    def __getitem__(self, index: int) -> Record:
        """The record at a position from 0."""
        ...

    def size(self, index: int) -> tuple[int, int] | None:
        """(width, height) of a record's image where it is known without opening it."""
        ...


@runtime_checkable
class RecordStream(_Described, Protocol):
    """A data set that is read from its beginning, once or again and again; `shard` divides it without overlap."""

    def __iter__(self) -> Iterator[Record]:
        """All records, from the first."""
        ...

    def shard(self, index: int, count: int) -> RecordStream:
        """Part `index` of `count` parts that together hold each record once."""
        ...


@dataclass(frozen=True, kw_only=True)
class SourceEntry:
    """A data set as a recipe names it.

    format: "coco", "odvg", "mdetr", "yolo", "voc", "datasets", or "shapes" (drawn, see `data.readers.shapes`).
    annotations: file or folder of the annotations; of "datasets", a repo on the Hub, a folder or a file that
        `datasets.load_dataset` reads.
    images: folder that file names in the annotations start from; left out, the folder of the annotations.
    label_map: a JSON file {"0": "person", ...} (ODVG detection), one that gives words for names {"tv": "television"}
        (COCO), a text file with a name a line, or a data.yaml (YOLO).
    split: of "datasets" and of folders that have several; left out, "train".
    name: for people; left out, see `set_name`.
    weight: how often an epoch takes each record: 1 once, 0.5 half of them, other halves in later epochs, 2 twice.
    epoch_size: instead of `weight`, how many records an epoch takes.
    streaming: of "datasets", read from the beginning instead of at any position, by each worker of each process its own
        part; it needs an `epoch_size`.
    """

    annotations: str
    format: str = "coco"
    images: str | None = None
    label_map: str | None = None
    split: str | None = None
    name: str | None = None
    weight: float = 1.0
    epoch_size: int | None = None
    streaming: bool = False


_NAMELESS = {"annotations", "_annotations.coco", "annotation", "data", "instances", "labels", "metadata"}


def set_name(entry: SourceEntry, file: Path) -> str:
    """What a set is called: as the entry says, or as its file, or as the folder where all files are called alike."""
    return entry.name or (file.absolute().parent.name if file.stem.lower() in _NAMELESS else file.stem)


class DataError(ValueError):
    """A data set that cannot be used, in one line that names the file, the entry and the rule."""


def shown(value: object) -> str:
    """A value of a file as a message names it: on one line, as JSON, of a long one the beginning."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= _LONGEST_SHOWN else f"{text[: _LONGEST_SHOWN - 3]}..."
