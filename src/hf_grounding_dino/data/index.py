"""The records of a set in flat arrays: a million images fit into memory, and worker processes share them."""

from __future__ import annotations

import math
import os
from array import array
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from .findings import FindingLog, Tally
from .records import Finding, ImageSource, Record, Spans

Floats = npt.NDArray[np.float32]
Integers = npt.NDArray[np.int64]


class Images(Protocol):
    """Where the images of a set are, by the position of the record."""

    def __getitem__(self, index: int, /) -> ImageSource:
        """What can be opened."""
        ...


@dataclass(frozen=True)
class ImageFiles:
    """Images that are files below a folder."""

    root: Path
    names: list[str]

    def __getitem__(self, index: int) -> Path:
        """The path of one."""
        return self.root / self.names[index]


@dataclass(frozen=True, kw_only=True)
class RecordIndex:
    """A `RecordSet` whose records are made when they are asked for; `IndexBuilder` builds it.

    ids, images, sizes, captions: one a record; a size of (0, 0) is unknown.
    absent, incomplete: of the records that say so; `absent` is None where no record of the set does.
    first: the boxes of record i are rows `first[i]` to `first[i + 1]` of `boxes`, `labels`, `crowd` and `area`.
    spans: of box i of a grounding set, rows `first_span[i]` to `first_span[i + 1]`.
    """

    name: str
    label_names: tuple[str, ...]
    category_ids: tuple[int, ...]
    findings: tuple[Finding, ...]
    ids: list[Any]
    images: Images
    sizes: npt.NDArray[np.int32]
    captions: list[str] | None
    absent: dict[int, tuple[int, ...]] | None
    incomplete: dict[int, tuple[int, ...]]
    first: Integers
    boxes: Floats
    labels: Integers | None
    crowd: npt.NDArray[np.bool_]
    area: Floats
    spans: Integers
    first_span: Integers

    def __len__(self) -> int:
        """Number of records."""
        return len(self.ids)

    @property
    def num_boxes(self) -> int:
        """Number of boxes in all records."""
        return len(self.boxes)

    def size(self, index: int) -> tuple[int, int] | None:
        """(width, height) as the file says."""
        width, height = self.sizes[index].tolist()
        return (width, height) if width else None

    def __getitem__(self, index: int) -> Record:
        """The record at a position.

        Raises:
            IndexError: there is none.
        """
        if not -len(self) <= index < len(self):
            raise IndexError(f"record {index} of {len(self)}")
        index %= len(self)
        rows = slice(*self.first[index : index + 2].tolist())
        crowd, area = self.crowd[rows], self.area[rows]
        return Record(
            image_id=self.ids[index],
            image=self.images[index],
            boxes=torch.from_numpy(self.boxes[rows].copy()),
            labels=None if self.labels is None else torch.from_numpy(self.labels[rows].copy()),
            crowd=torch.from_numpy(crowd.copy()) if crowd.any() else None,
            area=None if np.isnan(area).any() else torch.from_numpy(area.copy()),
            size=self.size(index),
            caption=None if self.captions is None else self.captions[index],
            spans=self._spans(rows) if self.labels is None else None,
            absent=None if self.absent is None else self.absent.get(index, ()),
            incomplete=self.incomplete.get(index, ()),
        )

    def _spans(self, rows: slice) -> tuple[Spans, ...]:
        parts = pairwise(self.first_span[rows.start : rows.stop + 1].tolist())
        return tuple(tuple((start, end) for start, end in self.spans[low:high].tolist()) for low, high in parts)


class IndexBuilder:
    """Takes records one after the other and packs them."""

    def __init__(self, log: FindingLog, root: Path) -> None:
        """Start with none; images that are files lie below `root`, and findings about the whole set go to `log`."""
        self.log = log
        self.tally = Tally()
        self._prefix = os.path.join(root, "")
        self._files = ImageFiles(root, [])
        self._ids: list[Any] = []
        self._sizes = array("i")
        self._captions: list[str] = []
        self._federated = False
        self._absent: dict[int, tuple[int, ...]] = {}
        self._incomplete: dict[int, tuple[int, ...]] = {}
        self._first = array("q", [0])
        self._boxes: list[Tensor] = []
        self._labels = array("q")
        self._crowd = array("b")
        self._area = array("f")
        self._spans = array("q")
        self._first_span = array("q", [0])

    def add(self, record: Record) -> None:
        """Add a record."""
        number, count = len(self._ids), len(record.boxes)
        self.tally.add(record)
        self._ids.append(record.image_id)
        if isinstance(record.image, Path):
            self._files.names.append(str(record.image).removeprefix(self._prefix))
        self._sizes.extend(record.size or (0, 0))
        self._captions += [] if record.caption is None else [record.caption]
        self._federated |= record.absent is not None
        if record.absent:
            self._absent[number] = record.absent
        if record.incomplete:
            self._incomplete[number] = record.incomplete
        self._first.append(self._first[-1] + count)
        self._boxes.append(record.boxes)
        self._labels.extend([] if record.labels is None else record.labels.tolist())
        self._crowd.extend(bytes(count) if record.crowd is None else record.crowd.tolist())
        self._area.extend([math.nan] * count if record.area is None else record.area.tolist())
        for spans in record.spans or ():
            self._spans.extend(end for span in spans for end in span)
            self._first_span.append(len(self._spans) // 2)

    def build(
        self,
        name: str,
        categories: Mapping[int, str],
        label_names: tuple[str, ...],
        *,
        images: Images | None = None,
        crowd: str = "around a group",
    ) -> RecordIndex:
        """The set of all that was added, with the findings about the whole of it.

        Args:
            name: of the set.
            categories: name of each label in the file, by its number; without any it is a grounding set.
            label_names: what the labels are called in prompts.
            images: where the images are, unless each record says it.
            crowd: what boxes are that are not trained on.

        Raises:
            DataError: no record, or no valid box in any of them.
        """
        self.tally.conclude(self.log, categories, crowd)
        return RecordIndex(
            name=name,
            label_names=label_names,
            category_ids=tuple(categories),
            findings=self.log.findings,
            ids=self._ids,
            images=self._files if images is None else images,
            sizes=np.array(self._sizes, dtype=np.int32).reshape(-1, 2),
            captions=None if label_names else self._captions,
            absent=self._absent if self._federated else None,
            incomplete=self._incomplete,
            first=np.array(self._first, dtype=np.int64),
            boxes=torch.cat([torch.zeros(0, 4), *self._boxes]).numpy(),
            labels=np.array(self._labels, dtype=np.int64) if label_names else None,
            crowd=np.array(self._crowd, dtype=np.bool_),
            area=np.array(self._area, dtype=np.float32),
            spans=np.array(self._spans, dtype=np.int64).reshape(-1, 2),
            first_span=np.array(self._first_span, dtype=np.int64),
        )
