"""Reading data sets of every format into records."""

from __future__ import annotations

import importlib

from ..records import DataError, RecordSet, RecordStream, SourceEntry

FORMATS = ("coco", "odvg", "mdetr", "yolo", "voc", "datasets", "shapes")


def open_records(entry: SourceEntry) -> RecordSet | RecordStream:
    """Read the annotations of a data set; its images are opened when they are asked for.

    Raises:
        DataError: an unknown format, or files that cannot be read as one.
    """
    if entry.format not in FORMATS:
        raise DataError(f"format {entry.format!r} is not one of {', '.join(FORMATS)}")
    module = "hub" if entry.format == "datasets" else entry.format
    records: RecordSet | RecordStream = importlib.import_module(f"{__package__}.{module}").read(entry)
    return records
