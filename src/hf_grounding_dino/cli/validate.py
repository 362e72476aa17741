"""Say what is odd in a data set and change nothing: `hf-grounding-dino validate --format coco --annotations a.json`."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from hf_grounding_dino.utils.printable import printable
from hf_grounding_dino.utils.progress import progress_bar

from . import UserError, did_you_mean, quiet_libraries, say, table, whole_number
from .problems import user_errors

if TYPE_CHECKING:
    from hf_grounding_dino.data.findings import KindOfFinding, Tally
    from hf_grounding_dino.data.records import Finding, Record, RecordSet, RecordStream, SourceEntry

_DECODED_AT_ONCE = 64


class DatasetReport(NamedTuple):
    """What a data set holds, and what is odd in it.

    labels: of a detection set, None of a grounding set, where each record is a caption.
    tally: how much of it is usable.
    """

    name: str
    labels: int | None
    tally: Tally
    findings: list[KindOfFinding]

    @property
    def loses_data(self) -> bool:
        """Whether any finding does."""
        return any(finding.loses_data for finding in self.findings)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `validate`."""
    parser.add_argument(
        "--format", default="coco", help="coco, odvg, mdetr, yolo, voc, datasets or shapes (%(default)s)"
    )
    parser.add_argument("--annotations", required=True, metavar="PATH", help="file or folder of the annotations")
    parser.add_argument("--images", metavar="FOLDER", help="where names of images start (beside the annotations)")
    parser.add_argument(
        "--label-map", metavar="FILE", help="how labels are called: JSON, a name a line, or a data.yaml"
    )
    parser.add_argument("--split", help="of sets that have several (train)")
    parser.add_argument("--streaming", action="store_true", help="of format datasets: read from the beginning")
    parser.add_argument("--decode", action="store_true", help="open every image, too")
    parser.add_argument(
        "--examples", type=whole_number(0), default=3, metavar="N", help="findings shown of each kind (%(default)s)"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(arguments: argparse.Namespace) -> int:
    """Read the set and print what was found; 0 where nothing is lost, 1 where images, boxes or their parts are.

    Raises:
        UserError: the set cannot be used at all.
    """
    from hf_grounding_dino.data.readers import FORMATS
    from hf_grounding_dino.data.records import DataError, SourceEntry

    if arguments.format not in FORMATS:
        raise UserError(
            f"format {arguments.format!r} is not one of {', '.join(FORMATS)}{did_you_mean(arguments.format, FORMATS)}"
        )
    entry = SourceEntry(
        format=arguments.format,
        annotations=arguments.annotations,
        images=arguments.images,
        label_map=arguments.label_map,
        split=arguments.split,
        streaming=arguments.streaming,
    )
    with quiet_libraries(), user_errors(DataError):
        report = inspect(entry, decode=arguments.decode, examples=arguments.examples)
    text = as_json(report) if arguments.json else as_text(report, entry)
    say(text)
    return 1 if report.loses_data else 0


def inspect(entry: SourceEntry, *, decode: bool = False, examples: int = 3) -> DatasetReport:
    """Read all records of a data set and count what is there and what is odd.

    Args:
        entry: the set.
        decode: open every image, which finds the ones that cannot be read or have another size than the file says.
        examples: how many findings of each kind are kept.

    Raises:
        DataError: the set cannot be used.
    """
    from hf_grounding_dino.data.findings import Tally, group
    from hf_grounding_dino.data.readers import open_records

    records = open_records(entry)
    tally, seen = Tally(), []
    for record, problem in _inspected(records, decode):
        seen += [problem] if problem else []
        tally.add(record)
    # Of a stream, the findings are there once it has been read.
    findings = group([*records.findings, *seen], examples)
    return DatasetReport(records.name, len(records.label_names) or None, tally, findings)


def _inspected(records: RecordSet | RecordStream, decode: bool) -> Iterator[tuple[Record, Finding | None]]:
    """Each record and what is wrong with its image, which is looked at with `decode` alone."""
    from hf_grounding_dino.data.records import RecordSet

    total = len(records) if isinstance(records, RecordSet) else None
    each = map(records.__getitem__, range(len(records))) if isinstance(records, RecordSet) else records
    if not decode:
        yield from ((record, None) for record in each)
        return
    waiting = iter(each)
    with (
        ThreadPoolExecutor(os.cpu_count()) as threads,
        progress_bar(total, name="decoding", in_logs=False) as progress,
    ):
        while batch := list(islice(waiting, _DECODED_AT_ONCE)):
            yield from zip(batch, threads.map(image_problem, batch), strict=True)
            progress.update(len(batch))


def image_problem(record: Record) -> Finding | None:
    """Decode a record's image: that it cannot be read, or has another size than is stated, or None."""
    from hf_grounding_dino.data.images import load_image
    from hf_grounding_dino.data.records import Finding

    where = str(record.image) if isinstance(record.image, Path) else f"image {record.image_id}"
    try:
        width, height = load_image(record.image).size
    except ValueError as error:
        return Finding("unreadable image", where, str(error))
    if record.size in (None, (width, height)):
        return None
    stated = "{} x {}".format(*record.size or ())
    turned = " (width and height are swapped, or EXIF turns it)" if record.size == (height, width) else ""
    return Finding("wrong size", where, f"{stated} is stated, {width} x {height} is there{turned}")


# --- printing ----------------------------------------------------------------------------------------------------


def as_json(report: DatasetReport) -> str:
    """The report as one JSON object."""
    tally = report.tally
    document: dict[str, Any] = {
        "name": report.name,
        "images": tally.records,
        "without_boxes": tally.without_boxes,
        "boxes": tally.boxes,
        "crowd_boxes": tally.crowd,
        **({"captions": tally.records} if report.labels is None else {"labels": report.labels}),
        "loses_data": report.loses_data,
        "findings": [
            {
                "kind": finding.kind,
                "count": finding.count,
                "loses_data": finding.loses_data,
                "examples": [{"where": where, "what": what} for where, what in finding.examples],
            }
            for finding in report.findings
        ],
    }
    return json.dumps(document, indent=2, ensure_ascii=False)


def as_text(report: DatasetReport, entry: SourceEntry) -> str:
    """The report as people read it; places in the set start from the folder of its annotations."""
    tally = report.tally
    rows = [("captions" if report.labels is None else "images", tally.records)]
    rows += [("  without boxes", tally.without_boxes), ("boxes", tally.boxes)]
    rows += [("  around a group (crowd)", tally.crowd)] if tally.crowd else []
    rows += [("labels", report.labels)] if report.labels is not None else []
    lines = [f"{printable(report.name)} ({entry.format}, {entry.annotations})", "", *_aligned(rows), ""]
    if not report.findings:
        return "\n".join([*lines, "Nothing is odd."])
    for title, loses in (("Loses data", True), ("Harmless", False)):
        kinds = [kind for kind in report.findings if kind.loses_data is loses]
        if kinds:
            lines += [title, *_aligned([(kind.kind, kind.count) for kind in kinds]), ""]
    folder = entry.annotations if os.path.isdir(entry.annotations) else os.path.dirname(entry.annotations)
    for kind in report.findings:
        lines += [
            kind.kind,
            *(f"  {printable(_shortened(where, folder))}: {printable(what)}" for where, what in kind.examples),
        ]
        more = kind.count - len(kind.examples)
        lines += [f"  ... and {more:,} more", ""] if more else [""]
    return "\n".join(lines).rstrip()


def _aligned(rows: Sequence[tuple[str, int]]) -> list[str]:
    return table([(f"{name:24}", f"{count:7,}") for name, count in rows], indent="  ")


def _shortened(where: str, folder: str) -> str:
    prefix = os.path.join(folder, "")
    return where[len(prefix) :] if folder and where.startswith(prefix) and len(where) > len(prefix) else where
