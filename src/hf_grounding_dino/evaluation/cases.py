"""Cases of a task, made when they are asked for."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ..data.index import RecordIndex
from ..data.readers.shapes import ShapesRecords
from ..data.records import Record, RecordSet
from .tasks import Case, CaseId
from .truth import TruthFile


class CaseList(Protocol):
    """Cases that may be made when they are asked for, and their names, which are known before."""

    @property
    def ids(self) -> Sequence[CaseId]:
        """The `case_id` of each case."""
        ...

    def __getitem__(self, index: int) -> Case:
        """The case at a position from 0."""
        ...


class ListedCases:
    """Cases that are all in memory."""

    def __init__(self, cases: Sequence[Case]) -> None:
        self._cases = cases
        self.ids = [case.case_id for case in cases]

    def __getitem__(self, index: int) -> Case:
        """The case at a position."""
        return self._cases[index]


class SomeCases:
    """The cases at some positions of another list."""

    def __init__(self, cases: CaseList, rows: Sequence[int]) -> None:
        self._cases, self._rows = cases, rows
        self.ids = [cases.ids[row] for row in rows]

    def __getitem__(self, index: int) -> Case:
        """The case at a position."""
        return self._cases[self._rows[index]]


class TruthCases:
    """Images of an annotation file, those at some positions."""

    def __init__(self, truth: TruthFile, rows: Sequence[int]) -> None:
        self._truth, self._rows = truth, rows
        self.ids = [truth.image_ids[row] for row in rows]

    def __getitem__(self, index: int) -> Case:
        """The case at a position."""
        row = self._rows[index]
        return Case(self._truth.image_ids[row], self._truth.image(row), self._truth.reference(row))


class AskedCases:
    """Cases whose reference says what each is asked for."""

    def __init__(self, cases: CaseList, asked: Mapping[CaseId, tuple[int, ...]]) -> None:
        self._cases, self._asked = cases, asked
        self.ids = cases.ids

    def __getitem__(self, index: int) -> Case:
        """The case at a position."""
        case = self._cases[index]
        return case._replace(reference={**case.reference, "asked": list(self._asked[case.case_id])})


class RecordCases:
    """Records of a data set; `make` turns one into a case of the name given."""

    def __init__(self, records: RecordSet, ids: Sequence[CaseId], make: Callable[[CaseId, Record], Case]) -> None:
        self._records, self._make = records, make
        self.ids = ids

    def __getitem__(self, index: int) -> Case:
        """The case at a position."""
        return self._make(self.ids[index], self._records[index])


def record_ids(records: RecordSet) -> Sequence[CaseId]:
    """What the pictures of a set are called; reads each record where the set does not keep it apart."""
    if isinstance(records, RecordIndex):
        return records.ids
    if isinstance(records, ShapesRecords):
        # Each would be drawn to be asked.
        return range(len(records))
    return [records[i].image_id for i in range(len(records))]


def boxes_case(case_id: CaseId, record: Record, numbers: NDArray[np.int64]) -> Case:
    """A detection record; `numbers` are the category ids of its labels."""
    assert record.labels is not None
    count = len(record.boxes)
    sides = record.boxes[:, 2:] - record.boxes[:, :2]
    reference = {
        "image_id": case_id,
        "boxes": record.boxes.double().numpy(),
        "labels": numbers[record.labels.numpy()],
        "iscrowd": np.zeros(count, np.bool_) if record.crowd is None else record.crowd.numpy(),
        "area": (sides.prod(1) if record.area is None else record.area).double().numpy(),
    }
    if record.absent is not None:
        reference["neg_category_ids"] = tuple(numbers[list(record.absent)].tolist())
        reference["not_exhaustive_category_ids"] = tuple(numbers[list(record.incomplete)].tolist())
    return Case(case_id, record.image, reference)


def phrases_case(case_id: CaseId, record: Record) -> Case:
    """A grounding record; boxes with equal spans are of one phrase."""
    phrases = {spans: number for number, spans in enumerate(dict.fromkeys(record.spans or ()))}
    labels = np.array([phrases[spans] for spans in record.spans or ()], dtype=np.int64)
    reference = {"image_id": case_id, "boxes": record.boxes.double().numpy(), "labels": labels}
    return Case(case_id, record.image, reference, str(record.caption), tuple(phrases))


def expression_case(case_id: CaseId, record: Record) -> Case:
    """A grounding record whose whole caption means all of its boxes."""
    reference = {"image_id": case_id, "boxes": record.boxes.double().numpy()}
    return Case(case_id, record.image, reference, str(record.caption))
