"""The code in a page of documentation: found, and run as a reader would, one piece after the other."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import io
import re
import shlex
import socket
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from hf_grounding_dino.cli import PROGRAM
from hf_grounding_dino.cli.main import main
from hf_grounding_dino.ops.kernel import forget_decisions

OUTPUT = "output"
_FENCE = re.compile(
    r"(?:<!-- (?P<note>[^>]*?) -->\n)?^```(?P<language>\w*)(?: title=\"(?P<title>[^\"]*)\")?\n(?P<code>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
_NUMBER = re.compile(r"-?\d+\.\d+|\d+")


class Snippet(NamedTuple):
    """A fenced piece of a page.

    note: what a comment right before it says: "not run: REASON", "needs: PACKAGE", "run with: OPTIONS", or nothing.
    title: of a file to be written under that name, or "output", what the piece before it prints.
    """

    page: Path
    line: int
    language: str
    title: str
    note: str
    code: str

    def noted(self, kind: str) -> str | None:
        """What the note says of a kind; None where it is of another."""
        name, colon, text = self.note.partition(":")
        return text.strip() if colon and name == kind else None

    @property
    def where(self) -> str:
        """For messages."""
        return f"{self.page.name}:{self.line}"


def snippets_of(page: Path) -> list[Snippet]:
    """All fenced pieces of a page, in order."""
    text = page.read_text(encoding="utf-8")
    return [
        Snippet(
            page,
            text.count("\n", 0, found.start("language")) + 1,
            found["language"],
            found["title"] or "",
            found["note"] or "",
            found["code"],
        )
        for found in _FENCE.finditer(text)
    ]


def commands_of(snippet: Snippet) -> list[tuple[dict[str, str], list[str]]]:
    """The variables and the words of each line of a shell snippet."""
    lines = snippet.code.replace("\\\n", " ").splitlines()
    commands = []
    for words in filter(None, (shlex.split(line, comments=True) for line in lines)):
        variables = dict(word.split("=", 1) for word in words if re.match(r"[A-Z_]+=", word))
        commands.append((variables, words[len(variables) :]))
    return commands


def own_command(words: list[str]) -> list[str] | None:
    """What of a command line is for this package's command; None if nothing is."""
    if words[0] == PROGRAM:
        return words[1:]
    return words[words.index("hf_grounding_dino") + 1 :] if "hf_grounding_dino" in words else None


class Reader:
    """Somebody who runs a page's pieces in the current folder; names stay from piece to piece."""

    def __init__(self) -> None:
        self.names: dict[str, Any] = {}
        self.printed = ""

    def follow(self, snippet: Snippet) -> None:
        """Do what a piece says, or check what the one before it printed."""
        if snippet.noted("not run") is not None:
            return
        package = snippet.noted("needs")
        if package is not None and importlib.util.find_spec(package) is None:
            return
        if snippet.title == OUTPUT:
            assert_alike(self.printed, snippet.code)
        elif snippet.title:
            Path(snippet.title).parent.mkdir(parents=True, exist_ok=True)
            Path(snippet.title).write_text(snippet.code, encoding="utf-8")
        elif snippet.language == "python":
            with contextlib.redirect_stdout(io.StringIO()) as printed:
                exec(compile(snippet.code, snippet.where, "exec"), self.names)
            self.printed = printed.getvalue()
        elif snippet.language == "shell":
            self._run(snippet)

    def _run(self, snippet: Snippet) -> None:
        for variables, words in commands_of(snippet):
            own = own_command(words)
            assert own is not None and words[0] == PROGRAM, f"{' '.join(words)}: say why it is not run"
            extra = shlex.split(snippet.noted("run with") or "")
            with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()) as printed:
                for name, value in variables.items():
                    patch.setenv(name, value)
                if variables:
                    forget_decisions()
                assert main([*own, *extra]) == 0, " ".join(words)
            if variables:
                forget_decisions()
            self.printed = printed.getvalue()


def assert_alike(printed: str, expected: str) -> None:
    """The same text, in which numbers may differ by what another processor rounds: 0.02, or 1 of whole ones."""
    assert _NUMBER.split(printed.strip()) == _NUMBER.split(expected.strip()), printed
    for one, other in zip(_NUMBER.findall(printed), _NUMBER.findall(expected), strict=True):
        assert abs(float(one) - float(other)) <= (0.02 if "." in other else 1), printed


def check_unrun(snippet: Snippet, patch: pytest.MonkeyPatch) -> None:
    """What can be known without running: Python compiles, its names are there, commands have their options."""
    if snippet.language == "python":
        compile(snippet.code, snippet.where, "exec")
        for module, names in re.findall(r"^from (hf_grounding_dino[\w.]*) import (.+)$", snippet.code, re.MULTILINE):
            for name in names.split("  #")[0].split(", "):
                assert hasattr(importlib.import_module(module), name.strip()), name
    for _, words in commands_of(snippet) if snippet.language == "shell" else ():
        own = own_command(words)
        if own is not None:
            patch.setattr(
                importlib.import_module(f"hf_grounding_dino.cli.{own[0].replace('-', '_')}"), "run", lambda _: 0
            )
            assert main(own) == 0, " ".join(words)


def block_network(patch: pytest.MonkeyPatch) -> None:
    """Let every connection and every look-up of a name fail."""

    def refuse(*arguments: Any, **options: Any) -> Any:
        raise OSError(f"no network in this test: {arguments[1:] or arguments}")

    patch.setattr(socket.socket, "connect", refuse)
    patch.setattr(socket, "getaddrinfo", refuse)
