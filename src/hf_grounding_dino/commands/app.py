"""A page to try a model on: `hf-grounding-dino app --model IDEA-Research/grounding-dino-tiny`."""

from __future__ import annotations

import argparse
import importlib.util
import sys
from pathlib import Path

from hf_grounding_dino.assets import NANO

from . import UserError, quiet_libraries, whole_number
from .detect import DTYPES, load_detector
from .problems import system_reason

_NANO_NOTE = "The model here is a small one that knows eight drawn shapes in eight colours, and nothing else."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `app`."""
    parser.add_argument(
        "--model", default=str(NANO), help="a folder, or the name of a repo on the Hub; by default the one that ships"
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, ... (%(default)s)")
    parser.add_argument("--dtype", choices=DTYPES, default=DTYPES[0], help="what to compute in (%(default)s)")
    parser.add_argument("--host", default="127.0.0.1", help="where it listens; 0.0.0.0 for all who reach this machine")
    parser.add_argument("--port", type=whole_number(1, 65535), default=7860, help="(%(default)s)")
    parser.add_argument("--share", action="store_true", help="give it a public address too, through gradio.live")
    parser.add_argument(
        "--export-space", type=Path, metavar="FOLDER", help="write the page as a Space of the Hub, and end"
    )


def run(arguments: argparse.Namespace) -> int:
    """Serve the page until it is interrupted, or write the Space.

    Raises:
        UserError: Gradio is not installed, the model cannot be loaded, the address cannot be used, or the Space
            cannot be written.
    """
    if importlib.util.find_spec("gradio") is None:
        raise UserError("the page needs Gradio: pip install gradio")
    with quiet_libraries():
        return _serve(arguments) if arguments.export_space is None else _export(arguments)


def _serve(arguments: argparse.Namespace) -> int:
    from hf_grounding_dino.page.web import make_page, start

    page = make_page(load_detector(arguments.model, arguments.device, arguments.dtype), _note(arguments.model))
    try:
        address = start(page, host=arguments.host, port=arguments.port, share=arguments.share)
    except OSError as error:
        where = f"{arguments.host}:{arguments.port}"
        raise UserError(f"{where} cannot be used: the port is taken, or the host is not this machine's") from error
    sys.stdout.write(f"{address} (Ctrl+C ends it)\n")
    sys.stdout.flush()
    page.block_thread()
    return 0


def _export(arguments: argparse.Namespace) -> int:
    from hf_grounding_dino.page.space import export_space

    if Path(arguments.model).is_dir():
        load_detector(arguments.model, "cpu", arguments.dtype)  # what is refused here would end the Space at its start
    try:
        export_space(arguments.export_space, arguments.model, arguments.dtype, _note(arguments.model))
    except ValueError as error:
        raise UserError(error) from error
    except OSError as error:
        raise UserError(f"{arguments.export_space} cannot be written: {system_reason(error)}") from error
    sys.stdout.write(f"{arguments.export_space}\n")
    return 0


def _note(model: str) -> str:
    return (
        _NANO_NOTE
        if Path(model) == NANO
        else f"Model: {Path(model).resolve().name if Path(model).is_dir() else model}."
    )
