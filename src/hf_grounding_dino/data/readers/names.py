"""Files that say how the labels of a data set are called."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ...processing.prompts import clean_name
from ...utils.documents import load_yaml
from ..records import DataError
from .files import as_integer, read_bytes, read_json, read_lines


def read_names(path: Path) -> dict[int, str]:
    """The name of each label, in the order of their numbers.

    Args:
        path: JSON (an object {"0": "person", ...} or a list), YAML with `names` (a list or {0: person, ...}), or text
            with a name a line, the first for 0.

    Raises:
        DataError: no such file, another content, a number that is none, an empty name, a name given twice.
    """
    if path.suffix.lower() in (".yaml", ".yml"):
        return names_of(read_yaml(path).get("names"), path)
    if path.suffix.lower() == ".json":
        return names_of(read_json(path), path)
    lines = [line.strip() for line in read_lines(path)]
    while lines and not lines[-1]:
        lines.pop()
    return names_of(lines, path)


def read_yaml(path: Path) -> dict[str, Any]:
    """The content of a YAML file that is a mapping.

    Raises:
        DataError: no such file, no YAML, or no mapping.
    """
    try:
        document = load_yaml(read_bytes(path))
    except DataError:
        raise
    except ValueError as error:
        raise DataError(f"{path}: not YAML that can be read ({error})") from None
    if not isinstance(document, dict):
        raise DataError(f"{path}: a YAML mapping is needed, not a {type(document).__name__}")
    return document


def names_of(value: object, path: Path) -> dict[int, str]:
    """The names in a list or in a mapping from numbers, sorted by number; `path` is named where something is wrong.

    Raises:
        DataError: anything else, a number that is none, an empty name, a name given twice.
    """
    pairs = value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list) else ()
    names: dict[int, str] = {}
    for key, name in pairs:
        number = as_integer(key)
        if number is None or number < 0:
            raise DataError(f"{path}: {key!r} is no number of a label")
        # YAML reads names such as 7 and no as a number and a truth value; only text is certain.
        if not isinstance(name, str) or not name.strip():
            raise DataError(f"{path}: the name of label {number} is {name!r}; non-empty text is needed (in quotes)")
        names[number] = name.strip()
    if not names:
        raise DataError(f"{path}: no names of labels: a list or a mapping from numbers is needed")
    by_name: dict[str, int] = {}
    for number, name in sorted(names.items()):
        if by_name.setdefault(name, number) != number:
            raise DataError(f"{path}: labels {by_name[name]} and {number} are both called {name!r}")
    return dict(sorted(names.items()))


def clean_names(names: Sequence[str]) -> tuple[str, ...]:
    """Each name cleaned, or as written where its clean form is empty or another name's clean form as well."""
    cleaned = [clean_name(name) for name in names]
    uses = Counter(name.casefold() for name in cleaned)
    pairs = zip(names, cleaned, strict=True)
    return tuple(clean if clean and uses[clean.casefold()] == 1 else name for name, clean in pairs)
