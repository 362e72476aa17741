"""Labels as people write them, on a line or in a file."""

from __future__ import annotations

import csv
from collections.abc import Iterable
from pathlib import Path


def parse_labels(texts: Iterable[str], *, skip_empty: bool = False) -> list[str]:
    """The labels in texts with commas or line ends between them, each once; in double quotes, one may hold a comma.

    Args:
        texts: as they were typed.
        skip_empty: pass over empty labels ("cat, , dog") instead of refusing them.

    Raises:
        ValueError: a text that cannot be read, an empty label, or no label.
    """
    labels: dict[str, None] = {}
    for text in texts:
        try:
            found = [label.strip() for row in csv.reader(text.splitlines(), skipinitialspace=True) for label in row]
        except csv.Error as error:
            raise ValueError(f"the labels {text!r} cannot be read: {error}") from error
        if not all(found) and not skip_empty:
            raise ValueError(f"an empty label in {text!r}")
        labels.update(dict.fromkeys(filter(None, found)))
    if not labels:
        raise ValueError("no labels: give at least one label to look for")
    return list(labels)


def read_labels(path: Path) -> list[str]:
    """The labels of a text file with a label a line, each once.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no UTF-8 text, or has no label.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 text with a label a line") from error
    if not (labels := list(dict.fromkeys(filter(None, map(str.strip, lines))))):
        raise ValueError(f"{path}: no labels")
    return labels
