"""Names of weights elsewhere and here: rules that are read both ways.

In a name `*` is a number, `@` the rest ("weight", "bias"), and `{a,b}` several names whose tensors go together.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

Layout = Literal["original", "mmdet"]
"""Whose names: those of a model's own repository, or of mmdetection."""


class Change(NamedTuple):
    """What happens to a tensor on the way to several of ours, and back."""

    to_ours: Callable[[Tensor], Sequence[Tensor]]
    to_theirs: Callable[[Sequence[Tensor]], Tensor]


class Rule(NamedTuple):
    """A name there, the names here, and what happens to the tensor between them."""

    theirs: str
    ours: str
    change: Change


SAME = Change(lambda part: [part], lambda parts: parts[0])


def translate_to_ours(state: Mapping[str, Tensor], rules: Sequence[Rule]) -> tuple[dict[str, Tensor], list[str]]:
    """Tensors under our names, and the names of those that no rule knows.

    Raises:
        ValueError: two of their names that stand for one tensor hold different values.
    """
    patterns = [(_pattern(rule.theirs), rule) for rule in rules]
    ours: dict[str, Tensor] = {}
    unknown = []
    for name, tensor in state.items():
        found = next(((match, rule) for pattern, rule in patterns if (match := pattern.fullmatch(name))), None)
        if found is None:
            unknown.append(name)
            continue
        match, rule = found
        targets = _alternatives(_filled(rule.ours, match.groups()))
        for target, part in zip(targets, rule.change.to_ours(tensor), strict=True):
            if target in ours and not torch.equal(ours[target], part):
                raise ValueError(f"{name} differs from another tensor that should be equal to it ({target}).")
            ours.setdefault(target, part)
    return ours, unknown


def translate_to_theirs(state: Mapping[str, Tensor], rules: Sequence[Rule]) -> tuple[dict[str, Tensor], list[str]]:
    """Tensors under their names, one under each name that stands for it, and the names that no rule knows."""
    theirs: dict[str, Tensor] = {}
    known: set[str] = set()
    for rule in rules:
        first, *others = _alternatives(rule.ours)
        pattern = _pattern(first)
        for name in state:
            match = pattern.fullmatch(name)
            if match is None:
                continue
            names = [name, *(_filled(other, match.groups()) for other in others)]
            if all(other in state for other in names):
                theirs[_filled(rule.theirs, match.groups())] = rule.change.to_theirs([state[n] for n in names])
                known.update(names)
    return theirs, [name for name in state if name not in known]


def _pattern(name: str) -> re.Pattern[str]:
    return re.compile(re.escape(name).replace(r"\*", r"(\d+)").replace("@", r"([\w.]+)"))


def _filled(name: str, values: Sequence[str]) -> str:
    rest = iter(values)
    return re.sub(r"[*@]", lambda _: next(rest), name)


def _alternatives(name: str) -> list[str]:
    braces = re.search(r"{(.*)}", name)
    if braces is None:
        return [name]
    return [name[: braces.start()] + choice + name[braces.end() :] for choice in braces[1].split(",")]
