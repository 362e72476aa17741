"""What people run: the sub-commands of the console command `hf-grounding-dino`.

Each module here that `main.COMMANDS` names is one sub-command: `add_arguments(parser)` and `run(arguments) -> exit
code`. It imports what takes long to import inside its functions, so that `--help` answers at once.
"""

from __future__ import annotations

import argparse
import difflib
import os
import shlex
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, TextIO

from tqdm import tqdm

from hf_grounding_dino.utils.printable import printable_lines

if TYPE_CHECKING:
    import torch

PROGRAM = "hf-grounding-dino"


class UserError(Exception):
    """What the user can mend; the command ends with this one line on stderr and exit code 2."""

    def __init__(self, message: object) -> None:
        """Keep the first line of the message."""
        lines = str(message).strip().splitlines()
        super().__init__(lines[0].strip() if lines else "unknown error")


def complain(problem: object) -> None:
    """Say on one line of stderr what went wrong, beside any progress bar."""
    say(f"{PROGRAM}: {' '.join(str(problem).split())}", sys.stderr)


def say(text: str, file: TextIO | None = None) -> None:
    """Print lines, on stdout if nothing else is said, beside any progress bar; nothing in them steers the terminal."""
    tqdm.write(printable_lines(text), file=file or sys.stdout)


def whole_number(least: int, most: int | None = None) -> Callable[[str], int]:
    """The type of an option that is a whole number from `least` on, of 18 digits at most."""

    def read(text: str) -> int:
        if text.isdecimal() and len(text) <= 18 and least <= int(text) and (most is None or int(text) <= most):
            return int(text)
        bounds = f"from {least} up" if most is None else f"from {least} to {most}"
        raise argparse.ArgumentTypeError(
            f"{text if len(text) <= 18 else text[:18] + '...'} is not a whole number {bounds}"
        )

    return read


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """The known name that is nearest to a misspelt one, as the end of a message; nothing where none is near."""
    near = difflib.get_close_matches(word, list(known), n=1)
    return f"; did you mean {near[0]}?" if near else ""


def table(rows: Iterable[Sequence[str]], align: str = "<>", indent: str = "") -> list[str]:
    """Lines of aligned columns; `align` has < or > for each column, its last for all further ones."""
    rows = list(rows)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    sides = align + align[-1:] * (len(widths) - len(align))
    return [
        indent
        + "  ".join(f"{cell:{side}{width}}" for cell, side, width in zip(row, sides, widths, strict=False)).rstrip()
        for row in rows
    ]


def complete_with(option: argparse.Action, names: Callable[[], list[str]]) -> None:
    """Have the shell complete the values of an option with these names."""
    option.completer = lambda **_: names()  # type: ignore[attr-defined]  # argcomplete's own attribute


def command_line() -> str:
    """What repeats this run of the program."""
    return shlex.join([PROGRAM, *sys.argv[1:]])


def usable_device(name: str) -> torch.device:
    """The device of that name, or for "auto" the one there is; where its kernel cannot be had, say why on one line.

    Raises:
        UserError: it cannot be used, or the kernel is not as `HF_GROUNDING_DINO_KERNEL` asks.
    """
    import torch

    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.zeros(1, device=name).item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise UserError(f"the device {name} cannot be used: {error}") from error
    device = torch.device(name)
    decide_kernel(device.type)
    return device


def decide_kernel(device_type: str) -> None:
    """Load or build the kernel of a device type before the work begins; where it cannot be had, say why on one line.

    Raises:
        UserError: it cannot be had though `HF_GROUNDING_DINO_KERNEL` requires it, or that is no mode.
    """
    from hf_grounding_dino.ops.kernel import kernel_serves

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("ignore")
        warnings.simplefilter("always", RuntimeWarning)
        try:
            kernel_serves(device_type)
        except (ValueError, RuntimeError) as error:
            raise UserError(error) from error
    if os.environ.get("LOCAL_RANK", "0") == "0":
        for warning in caught:
            complain(warning.message)


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Keep the notes of the libraries off the terminal; what goes wrong is raised."""
    import huggingface_hub.utils.logging as hub_logging
    import transformers.utils.logging as transformers_logging

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    hub_logging.set_verbosity_error()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
