"""Frozen dataclasses from nested mappings, as YAML and `--set key=value` give them, with every mistake named."""

from __future__ import annotations

import dataclasses
import difflib
import math
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

import yaml

from ..utils.documents import load_yaml

Options = TypeVar("Options")


class OptionError(ValueError):
    """An option that does not exist or has a value it cannot have, in one line that names it."""


def build(kind: type[Options], values: Mapping[str, Any], where: str = "") -> Options:
    """Make a dataclass, and those inside it, of plain values.

    Args:
        kind: a dataclass whose fields are annotated with str, int, float, bool, None, literals, tuples of one of these,
            or other such dataclasses.
        values: by name; a field that is not here keeps its default.
        where: what stands before the names in errors, as "train.0.".

    Raises:
        OptionError: an unknown name (the nearest one is given), a value of another kind, or a name left out that has
            no default.
    """
    hints = typing.get_type_hints(kind)
    for name in values:
        if name not in hints:
            raise OptionError(f"unknown option {where}{name}{_nearest(str(name), hints)}")
    for field in dataclasses.fields(kind):  # type: ignore[arg-type]
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if required and field.name not in values:
            raise OptionError(f"the option {where}{field.name} is missing")
    return kind(**{name: _value(hints[name], value, f"{where}{name}") for name, value in values.items()})


def _nearest(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"; did you mean {close[0]}?" if close else ""


def _value(hint: Any, value: Any, where: str) -> Any:
    origin, choices = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return _one_of(choices, value, where)
    if origin is typing.Literal:
        if value not in choices:
            raise OptionError(f"{where} is {value!r}, not one of {', '.join(map(str, choices))}")
        return value
    if origin is tuple:
        return _several(choices, value, where)
    if dataclasses.is_dataclass(hint):
        if not isinstance(value, Mapping):
            raise OptionError(f"{where} is {value!r}, where names and values belong")
        return build(typing.cast("type[Any]", hint), value, f"{where}.")
    if hint is float and isinstance(value, int | float | str) and not isinstance(value, bool):
        value = _number(value, where)  # YAML 1.1 reads 1e-4 as a string
    if hint is type(None):
        hint = types.NoneType
    if not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool):
        raise OptionError(f"{where} is {value!r}, where {hint.__name__} belongs")
    return value


def _number(value: float | str, where: str) -> float | str:
    try:
        number = float(value)
    except ValueError:
        return str(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise OptionError(f"{where} is {number}, where a finite number belongs")
    return number


def _one_of(choices: Sequence[Any], value: Any, where: str) -> Any:
    if value is None and types.NoneType in choices:
        return None
    others = [choice for choice in choices if choice is not types.NoneType]
    for exact in others:
        if isinstance(exact, type) and type(value) is exact:
            return _value(exact, value, where)
    return _value(others[-1], value, where)


def _several(choices: Sequence[Any], value: Any, where: str) -> tuple[Any, ...]:
    if isinstance(value, str | Mapping) or not isinstance(value, Sequence):
        raise OptionError(f"{where} is {value!r}, where a list belongs")
    if choices[-1] is Ellipsis:
        return tuple(_value(choices[0], item, f"{where}.{i}") for i, item in enumerate(value))
    if len(value) != len(choices):
        raise OptionError(f"{where} has {len(value)} values, not {len(choices)}")
    return tuple(_value(kind, item, f"{where}.{i}") for i, (kind, item) in enumerate(zip(choices, value, strict=True)))


def set_options(values: dict[str, Any], assignments: Iterable[str]) -> dict[str, Any]:
    """Change nested values as `train.0.annotations=x.json` says; the right side is read as YAML.

    Raises:
        OptionError: no "=" in an assignment, or a way that leads to nothing.
    """
    changed: dict[str, Any] = yaml.safe_load(yaml.safe_dump(values)) or {}
    for assignment in assignments:
        path, equals, text = assignment.partition("=")
        if not equals or not path:
            raise OptionError(f"--set {assignment}: write it as key=value")
        try:
            value = load_yaml(text)
        except ValueError as error:
            raise OptionError(f"--set {path}: the value is no YAML ({error})") from error
        _set(changed, path.split("."), value, assignment)
    return changed


def _set(target: Any, path: list[str], value: Any, assignment: str) -> None:
    name, rest = path[0], path[1:]
    key: Any = name
    if isinstance(target, list):
        if not name.isdecimal() or int(name) > len(target):
            raise OptionError(f"--set {assignment}: there is no number {name} in a list of {len(target)}")
        key = int(name)
        if key == len(target):
            target.append({})
    elif not isinstance(target, dict):
        raise OptionError(f"--set {assignment}: {name} would stand inside {target!r}")
    if not rest:
        target[key] = value
        return
    if isinstance(target, dict) and target.get(key) is None:
        target[key] = [] if rest[0].isdecimal() else {}
    _set(target[key], rest, value, assignment)
