"""JSON and YAML that others wrote, read within limits: what nests, repeats or counts without end is one error."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import yaml

from .printable import one_line

ObjectHook = Callable[[dict[str, Any]], Any]
MOST_DEPTH = 100
"""Collections of YAML inside one another, by aliases too."""
MOST_NODES = 1_000_000
"""Values of a YAML document, each alias counted as all that it stands for."""

_LONG_NUMBER = re.compile(r"[0-9]{20}")
_HALF_CHARACTER = re.compile(r"\\u[dD][89a-fA-F]")
_ESCAPE = re.compile(r"\\(?:u[dD][89abAB]..\\u[dD][c-fC-F]..|(u[dD][89a-fA-F]..)|.)", re.DOTALL)


def load_json(text: str | bytes, object_hook: ObjectHook | None = None) -> Any:
    """As `json.loads`, of UTF-8, with or without a byte order mark.

    Raises:
        ValueError: no JSON (`json.JSONDecodeError` then), no UTF-8, nesting that Python cannot follow, a whole number
            of more than 64 bits, or half a character (a surrogate without the other).
    """
    text = text.decode("utf-8-sig") if isinstance(text, bytes) else text
    numbers: dict[str, Any] = {"parse_int": _whole_number} if _LONG_NUMBER.search(text) else {}  # which takes longer
    if _HALF_CHARACTER.search(text) and (half := next(filter(None, (e[1] for e in _ESCAPE.finditer(text))), None)):
        raise ValueError(f"half a character, \\{half}")
    try:
        return json.loads(text, object_hook=object_hook, **numbers)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def load_yaml(text: str | bytes) -> Any:
    """As `yaml.safe_load`.

    Raises:
        ValueError: no YAML, no text, more than `MOST_DEPTH` or `MOST_NODES`, a value inside itself, a whole number of
            more than 64 bits, or half a character; on one line.
    """
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        extent = _extent(node, {})
        if extent.nodes > MOST_NODES or extent.depth > MOST_DEPTH:
            raise ValueError(f"its aliases stand for more than {MOST_NODES:,} values, or nest too deeply")
        return loader.construct_document(node)
    except (yaml.YAMLError, ValueError, LookupError, TypeError, AttributeError) as error:  # such as !!bool maybe
        raise ValueError(one_line(error)) from None


class _Loader(yaml.SafeLoader):
    """Knows how deep it is, and what no number and no text can be."""

    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        """As in PyYAML."""
        self.depth += 1
        if self.depth > MOST_DEPTH:
            raise ValueError("nested too deeply")
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def whole_number(self, node: yaml.ScalarNode) -> int:
        """As in PyYAML, of at most 64 bits."""
        return _within_64_bits(node.value, lambda _: self.construct_yaml_int(node))

    def text(self, node: yaml.ScalarNode) -> str:
        """As in PyYAML, of whole characters."""
        value: str = self.construct_yaml_str(node)
        try:  # JSON, which is YAML, writes some characters as two
            return value if value.isascii() else value.encode("utf-16", "surrogatepass").decode("utf-16")
        except UnicodeDecodeError:
            raise ValueError(f"half a character in {value!r}") from None


_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.whole_number)
_Loader.add_constructor("tag:yaml.org,2002:str", _Loader.text)


class _Extent(NamedTuple):
    nodes: int
    depth: int


def _extent(node: yaml.Node, known: dict[int, _Extent]) -> _Extent:
    """How many values a node stands for, itself included, and how deep they nest."""
    if id(node) not in known:
        known[id(node)] = _Extent(MOST_NODES + 1, 1)  # what holds itself has no end
        values = node.value if isinstance(node, yaml.CollectionNode) else ()
        parts = [part for value in values for part in (value if isinstance(value, tuple) else (value,))]
        inside = [_extent(part, known) for part in parts]
        depth = 1 + max((part.depth for part in inside), default=0)
        known[id(node)] = _Extent(1 + sum(part.nodes for part in inside), depth)
    return known[id(node)]


def _whole_number(text: str) -> int:
    return _within_64_bits(text, int)


def _within_64_bits(text: str, read: Callable[[str], int]) -> int:
    number = read(text) if len(text) < 100 else 2**64
    if abs(number) >= 2**64:
        raise ValueError(f"a number of {len(text)} digits, {text[:8]}...: 64 bits are the most")
    return number
