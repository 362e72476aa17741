"""For the reference: what a class says of its fields, a line each, becomes a list."""

from __future__ import annotations

import re
from typing import Any

from griffe import Class, Extension

_FIELD = re.compile(r"((?:\w+, )*\w+): ")


class Fields(Extension):
    """Makes a list of the paragraph in which a class says "name: meaning" of its fields."""

    def on_class(self, *, cls: Class, **_: Any) -> None:
        """Rewrite the docstring of one class."""
        if cls.docstring is None:
            return
        paragraphs = [self._marked(text, cls) for text in cls.docstring.value.split("\n\n")]
        cls.docstring.value = "\n\n".join(paragraphs)

    def _marked(self, paragraph: str, cls: Class) -> str:
        lines = paragraph.split("\n")
        starts = [_FIELD.match(line) for line in lines]
        if starts[0] is None or not any(name in cls.members for name in starts[0][1].split(", ")):
            return paragraph
        items = []
        for line, start in zip(lines, starts, strict=True):
            names = start[1].split(", ") if start else []
            known = any(name in cls.members for name in names)
            text = line if not known else f"- {', '.join(f'`{name}`' for name in names)}: {line[len(start[0]) :]}"
            items.append(text if known else f"    {line.strip()}")
        return "\n".join(items)
