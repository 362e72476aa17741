"""What is odd in a data set: noted while it is read, counted, and told."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

from .records import DataError, Finding, FindingKind, Record, RecordSet, RecordStream

HARMLESS = ("gapped ids", "unused category", "no boxes", "crowd")
"""Findings that lose nothing: such sets train and evaluate as they are."""
LARGEST_UNKNOWN_SHARE = 0.1
_MORE = re.compile(r"and (\d+) more")
# What takes boxes or images away; of kinds that are as frequent, the earlier one is the cause.
_LOSSES: Final[tuple[FindingKind, ...]] = (
    "unknown category", "no category", "malformed box", "empty box", "span past the end", "empty phrase", "no phrase",
    "missing image", "unreadable image", "malformed entry", "no boxes",
)  # fmt: skip


class FindingLog:
    """Findings of one file: of each kind the first `limit` one by one, then one finding that says how many more."""

    def __init__(self, file: str | os.PathLike[str], limit: int = 20) -> None:
        """`file` is named where the number of further findings is told; a `limit` of 0 keeps none."""
        self.file = os.fspath(file)
        self.limit = limit
        self._kept: dict[FindingKind, list[Finding]] = {}
        self._count: Counter[FindingKind] = Counter()

    def add(self, kind: FindingKind, where: str, what: str) -> None:
        """Note one finding; `where` names the file and the line, entry or image in it."""
        self._count[kind] += 1
        if self._count[kind] <= self.limit:
            self._kept.setdefault(kind, []).append(Finding(kind, where, what))

    def count(self, kind: FindingKind) -> int:
        """How many of a kind were noted, kept or not."""
        return self._count[kind]

    @property
    def findings(self) -> tuple[Finding, ...]:
        """All that is kept, kinds in the order in which they came up."""
        kept = []
        for kind, findings in self._kept.items():
            more = self._count[kind] - len(findings)
            kept += [*findings, Finding(kind, self.file, f"and {more} more")] if more else findings
        return tuple(kept)


@dataclass
class Tally:
    """What the records of a set come to: counted one by one, told at the end."""

    records: int = 0
    without_boxes: int = 0
    boxes: int = 0
    crowd: int = 0
    labels: Counter[int] = field(default_factory=Counter)

    def add(self, record: Record) -> None:
        """Count one record."""
        self.records += 1
        self.without_boxes += not len(record.boxes)
        self.boxes += len(record.boxes)
        self.crowd += 0 if record.crowd is None else int(record.crowd.sum())
        if record.labels is not None:
            self.labels.update(record.labels.tolist())

    def conclude(self, log: FindingLog, categories: Mapping[int, str], crowd: str = "around a group") -> None:
        """Note what is odd about the whole of a set, and refuse one that nothing can be learned from.

        Args:
            log: takes the findings, and has those of the records.
            categories: name of each label by its number, in the order of the labels; without any it is a grounding set.
            crowd: what boxes are that are not trained on.

        Raises:
            DataError: no record, or no valid box in any of them; the first finding of the most frequent kind says why.
        """
        if self.crowd:
            log.add("crowd", log.file, f"{self.crowd} of {self.boxes} boxes are {crowd}; kept, not trained on")
        if self.without_boxes:
            log.add("no boxes", log.file, f"{self.without_boxes} of {self.records} images have no box; kept")
        if not self.boxes:
            findings = {finding.kind: finding for finding in reversed(log.findings)}
            kinds = [kind for kind in _LOSSES if kind in findings]
            first = findings[max(kinds, key=log.count)] if kinds else None
            reason = f"; first finding: {first.kind}, {first.where}: {first.what}" if first else ""
            raise DataError(f"{log.file}: {'no box is valid' if self.records else 'no image can be used'}{reason}")
        if missing := max(categories) - min(categories) + 1 - len(categories) if categories else 0:
            ids = f"{len(categories)} category ids from {min(categories)} to {max(categories)}"
            log.add("gapped ids", log.file, f"{ids}, {missing} left out")
        for label, name in enumerate(categories.values()):
            if not self.labels[label]:
                log.add("unused category", log.file, f"{name!r} has no box")


@dataclass
class KindOfFinding:
    """All findings of one kind: how many, and some of them as (where, what)."""

    kind: str
    count: int = 0
    examples: list[tuple[str, str]] = field(default_factory=list)

    @property
    def loses_data(self) -> bool:
        """Whether images or boxes were left out or changed."""
        return self.kind not in HARMLESS


def group(findings: Iterable[Finding], examples: int) -> list[KindOfFinding]:
    """Findings by kind, those that lose data first, each with its number; "and 7 more" of a reader counts as 7."""
    kinds: dict[str, KindOfFinding] = {}
    for finding in findings:
        kind = kinds.setdefault(finding.kind, KindOfFinding(finding.kind))
        if more := _MORE.fullmatch(finding.what):
            kind.count += int(more[1])
            continue
        kind.count += 1
        if len(kind.examples) < examples:
            kind.examples.append((finding.where, finding.what))
    return sorted(kinds.values(), key=lambda kind: not kind.loses_data)


def in_short(findings: Iterable[Finding]) -> str:
    """One line with the number of each kind of finding, and the first of them."""
    return "; ".join(
        f"{kind.kind}{f', {kind.count} times' * (kind.count > 1)} ({': '.join(kind.examples[0])})"
        for kind in group(findings, 1)
    )


def refuse_other_labels(records: RecordSet | RecordStream) -> None:
    """Refuse a set whose labels are not those of its boxes, as with the label map of another set.

    Raises:
        DataError: over a tenth of the boxes were dropped, because there is no label of their category.
    """
    boxes = getattr(records, "num_boxes", None)
    unknown = next((kind for kind in group(records.findings, 1) if kind.kind == "unknown category"), None)
    if boxes is None or unknown is None or unknown.count <= LARGEST_UNKNOWN_SHARE * (boxes + unknown.count):
        return
    raise DataError(
        f"{records.name}: {unknown.count} of {boxes + unknown.count} boxes have a category that is none of the"
        f" {len(records.label_names)} labels, the first in {': '.join(unknown.examples[0])}"
    )
