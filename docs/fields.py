"""For the API reference: what a class says of its fields becomes a list, with types and defaults."""

from __future__ import annotations

import re
from typing import Any

from griffe import Attribute, Class, Docstring, Extension

_FIELD = re.compile(r"((?:\w+, )*\w+): ")


class Fields(Extension):
    """Lists fields in the docstring of their class: those described there, and those with a docstring of their own."""

    def on_class(self, *, cls: Class, **_: Any) -> None:
        """Rewrite the docstring of one class."""
        own = [
            member
            for member in cls.members.values()
            if isinstance(member, Attribute) and member.docstring and member.annotation and member.is_public
        ]
        if cls.docstring is None:
            return
        paragraphs = [self._marked(text, cls) for text in cls.docstring.value.split("\n\n")]
        if own:
            paragraphs.append("\n".join(map(self._listed, own)))
        cls.docstring = Docstring("\n\n".join(paragraphs), parent=cls)
        for field in own:
            field.docstring = None

    def _listed(self, field: Attribute) -> str:
        value = "" if field.value is None else f" = {field.value}"
        text = " ".join(field.docstring.value.split()) if field.docstring else ""
        return f"- `{field.name}: {field.annotation}{value}`: {text}"

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
