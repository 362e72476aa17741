# PYTHON_ARGCOMPLETE_OK
"""The console command `hf-grounding-dino`: finds the sub-command, runs it, and words its errors."""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import io
import logging
import os
import re
import sys
from collections.abc import Sequence
from typing import NoReturn

from . import PROGRAM, UserError, complain, did_you_mean
from .problems import in_words, limit_problem

# Each name is a module beside this one, a hyphen an underscore there.
COMMANDS = {
    "detect": "find objects named by text in images, and draw them",
    "annotate": "label many images, as a dataset of any format",
    "validate": "check a dataset for errors; changes nothing",
    "train": "train or fine-tune a model from a recipe",
    "publish": "publish a trained model with its card, to a folder or the Hub",
    "export": "export a model to ONNX, OpenVINO or torch.export, and check the file",
    "convert": "convert checkpoints of the original repository or mmdetection to transformers, or back",
    "evaluate": "evaluate a model on the papers' benchmarks or on your own data",
    "tune-thresholds": "choose the score threshold of each label on labelled images",
    "app": "serve a web demo of a model",
}
# Still answer, and are not listed.
OLD_NAMES = {"calibrate": "tune-thresholds"}

EXIT_USER_ERROR = 2
EXIT_INTERRUPTED = 130
_INVALID_CHOICE = re.compile(r"invalid choice: '?(.+?)'? \(choose from (.+)\)$")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line `argv`, by default that of the process, and give its exit code.

    0: all done; 1: some images could not be read, the others are done; 2: an error the user can mend, on one line
    of stderr; 130: interrupted.
    """
    _ready_streams()
    # Where torchao is installed, transformers imports it, and torch has something to say about its types.
    logging.getLogger("torch.utils._pytree").setLevel(logging.ERROR)
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        exit_code = _run(arguments)
        sys.stdout.flush()
    except UserError as error:
        complain(error)
        return EXIT_USER_ERROR
    except KeyboardInterrupt:
        sys.stderr.write("\n")
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        _drop_output()  # the reader of the table has gone, as in `| head`
        return 1
    except OSError as error:  # what no command expected of the disk
        _drop_output()
        complain(in_words(error))
        return EXIT_USER_ERROR
    except Exception as error:
        problem = limit_problem(error)
        if problem is None:
            raise
        complain(problem)
        return EXIT_USER_ERROR
    return exit_code


def _run(arguments: list[str]) -> int:
    if "_ARGCOMPLETE" in os.environ:  # the shell asks how the line can go on
        import argcomplete

        argcomplete.autocomplete(_parser(os.environ["COMP_LINE"].split()[1:], completing=True))
    arguments[:1] = [OLD_NAMES.get(name, name) for name in arguments[:1]]
    try:
        namespace = _parser(arguments).parse_args(arguments)
        exit_code: int = namespace.run(namespace)
    except SystemExit as request:  # argparse ends --help, --version and wrong usage so
        return request.code if isinstance(request.code, int) else 0
    return exit_code


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """Say what is wrong on one line, without the usage, with the name that was probably meant."""
        if choice := _INVALID_CHOICE.search(message):
            message += did_you_mean(choice[1], choice[2].replace("'", "").split(", "))
        complain(message)
        self.exit(EXIT_USER_ERROR)

    def refuse_unknown_options(self, words: Sequence[str]) -> None:
        """Name a misspelt option before argparse misses the one that was meant."""
        known = list(self._option_string_actions)
        for word in words[: words.index("--") if "--" in words else None]:
            name = word.partition("=")[0]
            if name.startswith("--") and " " not in word and not any(option.startswith(name) for option in known):
                self.error(f"unrecognized arguments: {word}{did_you_mean(name, known)}")


def _parser(argv: Sequence[str], *, completing: bool = False) -> _Parser:
    """The parser; only the sub-command that `argv` names is imported."""
    parser = _Parser(prog=PROGRAM, description="Open-vocabulary object detection with Grounding DINO.")
    parser.add_argument("--version", action="version", version=f"{PROGRAM} {_version()}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for name, summary in COMMANDS.items():
        command = commands.add_parser(name, help=summary, description=f"{summary[0].upper()}{summary[1:]}.")
        if name in argv[:1]:
            module = importlib.import_module(f"{__package__}.{name.replace('-', '_')}")
            module.add_arguments(command)
            command.set_defaults(run=module.run)
            if not completing:
                command.refuse_unknown_options(argv[1:])
    return parser


def _version() -> str:
    try:
        return importlib.metadata.version(PROGRAM)
    except importlib.metadata.PackageNotFoundError:
        return "(not installed)"


def _ready_streams() -> None:
    """Let names that the terminal has no letters for be printed, escaped, and to a closed stream nothing."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _drop_output() -> None:
    """Where stdout cannot be written, keep Python from trying to write the rest when it ends."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
