"""The console command `hf-grounding-dino`: it finds the sub-command, runs it, and words its errors."""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import io
import logging
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from . import PROGRAM, UserError, complain
from .problems import in_words, limit_problem

# Each name is a module beside this one.
COMMANDS = {
    "detect": "find what words name in pictures, and draw it",
    "annotate": "label pictures in bulk, as a data set of any format",
    "validate": "say what is odd in a data set, and change nothing",
    "train": "train or fine-tune a model from a recipe",
    "publish": "publish the model of a run with its card, to a folder or the Hub",
    "export": "write a model as one file for ONNX Runtime, OpenVINO or torch.export, and check it",
    "convert": "make a model folder from a checkpoint of the original repository or mmdetection, or the reverse",
    "evaluate": "measure a model by the protocols of the papers",
    "calibrate": "choose the threshold of each label that serves best",
    "app": "open a page to try a model on",
    "benchmark": "time this package beside stock transformers, on the same weights",
}

EXIT_USER_ERROR = 2
EXIT_INTERRUPTED = 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line `argv`, by default that of the process, and give its exit code.

    0: all done; 1: some pictures could not be read, the others are done; 2: an error the user can mend, on one line
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
    try:
        namespace = _parser(arguments).parse_args(arguments)
        exit_code: int = namespace.run(namespace)
    except SystemExit as request:  # argparse ends --help, --version and wrong usage so
        return request.code if isinstance(request.code, int) else 0
    return exit_code


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """Say what is wrong on one line, without the usage."""
        complain(message)
        self.exit(EXIT_USER_ERROR)


def _parser(argv: Sequence[str]) -> argparse.ArgumentParser:
    """The parser; only the sub-command that `argv` names is imported."""
    parser = _Parser(prog=PROGRAM, description="Find in pictures what words name, with Grounding DINO.")
    parser.add_argument("--version", action="version", version=f"{PROGRAM} {_version()}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for name, summary in COMMANDS.items():
        command = commands.add_parser(name, help=summary, description=f"{summary[0].upper()}{summary[1:]}.")
        if name in argv[:1]:
            module = importlib.import_module(f"{__package__}.{name}")
            module.add_arguments(command)
            command.set_defaults(run=module.run)
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
