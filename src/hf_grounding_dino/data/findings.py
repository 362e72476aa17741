"""What is odd in a data set, counted."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field

from .records import DataError, Finding, RecordSet, RecordStream

HARMLESS = ("gapped ids", "unused category", "no boxes", "crowd")
"""Findings that lose nothing: such sets train and evaluate as they are."""
LARGEST_UNKNOWN_SHARE = 0.1
_MORE = re.compile(r"and (\d+) more")


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
