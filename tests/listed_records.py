"""A data set of records that are all in memory."""

from __future__ import annotations

from dataclasses import dataclass

from hf_grounding_dino.data.records import Finding, Record


@dataclass(frozen=True)
class ListedRecords:
    """Records that are all in memory."""

    name: str
    records: list[Record]
    label_names: tuple[str, ...] = ()
    category_ids: tuple[int, ...] = ()
    findings: tuple[Finding, ...] = ()

    def __len__(self) -> int:
        """Number of records."""
        return len(self.records)

    @property
    def num_boxes(self) -> int:
        """Number of boxes in all records."""
        return sum(len(record.boxes) for record in self.records)

    def __getitem__(self, index: int) -> Record:
        """The record at a position."""
        return self.records[index]

    def size(self, index: int) -> tuple[int, int] | None:
        """(width, height) as the file says."""
        return self.records[index].size
