"""Records in flat arrays: a million images fit into memory, and worker processes share them."""

from __future__ import annotations

from array import array
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ..records import Finding, Record
from .common import FindingLog, clean_names, note_gaps, note_unused, note_without_boxes, refuse_useless

Spans = tuple[tuple[int, int], ...]
Floats = npt.NDArray[np.float32]
Integers = npt.NDArray[np.int64]


class BoxColumns(NamedTuple):
    """Per box of the whole set; the boxes of record i are rows `first[i]` to `first[i + 1]`."""

    first: Integers
    boxes: Floats
    labels: Integers | None
    crowd: npt.NDArray[np.bool_]
    area: Floats
    spans: Integers
    first_span: Integers


class ImageColumns(NamedTuple):
    """Per record; a size of (0, 0) is unknown, and what federated sets say is kept for the records that say it."""

    ids: list[Any]
    files: list[str]
    sizes: npt.NDArray[np.int32]
    captions: list[str] | None
    absent: dict[int, tuple[int, ...]] | None
    incomplete: dict[int, tuple[int, ...]]


@dataclass(frozen=True)
class PackedRecords:
    """A `RecordSet` whose records are made when they are asked for; `RecordPacker` builds it."""

    name: str
    root: Path
    images: ImageColumns
    columns: BoxColumns
    label_names: tuple[str, ...]
    category_ids: tuple[int, ...]
    findings: tuple[Finding, ...]

    def __len__(self) -> int:
        """Number of records."""
        return len(self.images.files)

    @property
    def num_boxes(self) -> int:
        """Number of boxes in all records."""
        return len(self.columns.boxes)

    def size(self, index: int) -> tuple[int, int] | None:
        """(width, height) as the file says."""
        width, height = self.images.sizes[index].tolist()
        return (width, height) if width else None

    def __getitem__(self, index: int) -> Record:
        """The record at a position.

        Raises:
            IndexError: there is none.
        """
        if not -len(self) <= index < len(self):
            raise IndexError(f"record {index} of {len(self)}")
        index %= len(self)
        images, columns = self.images, self.columns
        rows = slice(*columns.first[index : index + 2].tolist())
        crowd, area = columns.crowd[rows], columns.area[rows]
        labels, absent = columns.labels, images.absent
        return Record(
            image_id=images.ids[index],
            image=self.root / images.files[index],
            boxes=torch.from_numpy(columns.boxes[rows].copy()),
            labels=None if labels is None else torch.from_numpy(labels[rows].copy()),
            crowd=torch.from_numpy(crowd.copy()) if crowd.any() else None,
            area=None if np.isnan(area).any() else torch.from_numpy(area.copy()),
            size=self.size(index),
            caption=images.captions[index] if images.captions is not None else None,
            spans=self._spans(rows) if labels is None else None,
            absent=None if absent is None else absent.get(index, ()),
            incomplete=images.incomplete.get(index, ()),
        )

    def _spans(self, rows: slice) -> tuple[Spans, ...]:
        first = self.columns.first_span[rows.start : rows.stop + 1].tolist()
        parts = [self.columns.spans[start:end].tolist() for start, end in pairwise(first)]
        return tuple(tuple((start, end) for start, end in part) for part in parts)


class ImageEntry(NamedTuple):
    """An image that is added: what a `Record` says about all of it; `absent` of None is "nothing is said"."""

    image_id: int | str
    file: str
    size: tuple[int, int] | None = None
    caption: str | None = None
    absent: tuple[int, ...] | None = None
    incomplete: tuple[int, ...] = ()


class RecordPacker:
    """Takes records one after the other and packs them."""

    def __init__(self) -> None:
        """Start with none."""
        self.images: list[ImageEntry] = []
        self.without_boxes = 0
        self._boxes: list[Tensor] = []
        self._names: list[Any] = []
        self._crowd: list[bool] = []
        self._area = array("f")
        self._first = array("q", [0])

    def __len__(self) -> int:
        """Number of records so far."""
        return len(self.images)

    @property
    def num_boxes(self) -> int:
        """Number of boxes so far."""
        return self._first[-1]

    def add(
        self, image: ImageEntry, boxes: Tensor, names: Sequence[Hashable], crowd: list[bool], area: list[float]
    ) -> None:
        """Add an image with its boxes, float32 (n, 4); `names` are positions of labels, or tuples of spans.

        NaN in `area` stands for an area that the file does not say.
        """
        self.images.append(image)
        self.without_boxes += not len(boxes)
        self._boxes.append(boxes)
        self._names += names
        self._crowd += crowd
        self._area.extend(area)
        self._first.append(self._first[-1] + len(boxes))

    def finish(
        self,
        name: str,
        root: Path,
        log: FindingLog,
        categories: Mapping[int, str],
        *,
        words: tuple[str, ...] | None = None,
        crowd: str = "around a group",
    ) -> PackedRecords:
        """The set of all that was added, and findings about the whole of it.

        Args:
            name: of the set.
            root: the folder that the images' file names start from.
            log: takes the findings, and has those of the set.
            categories: name of each label by its number; without any it is a grounding set.
            words: what the labels are called in prompts; left out, their names, cleaned.
            crowd: what boxes are that are not trained on.

        Raises:
            DataError: no record, or no valid box in any of them.
        """
        if num_crowd := sum(self._crowd):
            log.add("crowd", log.file, f"{num_crowd} of {self.num_boxes} boxes are {crowd}; kept, not trained on")
        note_without_boxes(self.without_boxes, len(self), log.file, log)
        refuse_useless(len(self), self.num_boxes, log.file, log)
        if categories:
            note_gaps(tuple(categories), log.file, log)
            counts = np.bincount(np.array(self._names, dtype=np.int64), minlength=len(categories))
            note_unused(tuple(categories.values()), counts, log.file, log)
        label_names = clean_names(tuple(categories.values())) if words is None else words
        return self._packed(name, root, log.findings, label_names, tuple(categories))

    def _packed(
        self,
        name: str,
        root: Path,
        findings: tuple[Finding, ...],
        label_names: tuple[str, ...],
        category_ids: tuple[int, ...],
    ) -> PackedRecords:
        images = self.images
        federated = any(image.absent is not None for image in images)
        spans = [] if label_names else [span for names in self._names for span in names]
        lengths = [] if label_names else [len(names) for names in self._names]
        columns = BoxColumns(
            first=np.array(self._first, dtype=np.int64),
            boxes=torch.cat([torch.zeros(0, 4), *self._boxes]).numpy(),
            labels=np.array(self._names, dtype=np.int64) if label_names else None,
            crowd=np.array(self._crowd, dtype=np.bool_),
            area=np.array(self._area, dtype=np.float32),
            spans=np.array(spans, dtype=np.int64).reshape(-1, 2),
            first_span=np.cumsum([0, *lengths], dtype=np.int64),
        )
        described = ImageColumns(
            ids=[image.image_id for image in images],
            files=[image.file for image in images],
            sizes=np.array([image.size or (0, 0) for image in images], dtype=np.int32).reshape(-1, 2),
            captions=None if label_names else [image.caption or "" for image in images],
            absent={i: p.absent for i, p in enumerate(images) if p.absent} if federated else None,
            incomplete={i: p.incomplete for i, p in enumerate(images) if p.incomplete},
        )
        return PackedRecords(name, root, described, columns, label_names, category_ids, findings)
