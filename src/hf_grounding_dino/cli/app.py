"""A web demo to try a model in: `hf-grounding-dino app --model IDEA-Research/grounding-dino-tiny`."""

from __future__ import annotations

import argparse
import importlib.util
import sys
from pathlib import Path

from hf_grounding_dino.assets import NANO

from . import UserError, complain, quiet_libraries, say, whole_number
from .detect import load_detector
from .model_options import (
    NANO_ANSWERS,
    add_kept_options,
    add_model_option,
    add_running_options,
    named_model,
    post_processing_of,
)
from .problems import system_reason

_NANO_NOTE = "The model here is a small one that knows eight drawn shapes in eight colours, and nothing else."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `app`."""
    add_model_option(parser, " (nano)")
    add_kept_options(parser)
    add_running_options(parser)
    parser.add_argument("--host", default="127.0.0.1", help="where it listens; 0.0.0.0 for all who reach this machine")
    parser.add_argument("--port", type=whole_number(1, 65535), default=7860, help="(%(default)s)")
    parser.add_argument("--share", action="store_true", help="give it a public address too, through gradio.live")
    parser.add_argument(
        "--export-space", type=Path, metavar="FOLDER", help="write the app as a Space of the Hub, and end"
    )


def run(arguments: argparse.Namespace) -> int:
    """Serve the app until it is interrupted, or write the Space.

    Raises:
        UserError: Gradio is not installed, the model cannot be loaded, the address cannot be used, or the Space
            cannot be written.
    """
    if importlib.util.find_spec("gradio") is None:
        raise UserError("the app needs Gradio: pip install gradio")
    model = named_model(arguments.model, or_nano=True)
    with quiet_libraries():
        return _serve(arguments, model) if arguments.export_space is None else _export(arguments, model)


def _serve(arguments: argparse.Namespace, model: str) -> int:
    from hf_grounding_dino.app.web import make_app, start

    detector = load_detector(model, arguments.device, arguments.dtype)
    app = make_app(detector, _note(model), post_processing_of(arguments))
    try:
        address = start(app, host=arguments.host, port=arguments.port, share=arguments.share)
    except OSError as error:
        where = f"{arguments.host}:{arguments.port}"
        raise UserError(f"{where} cannot be used: the port is taken, or the host is not this machine's") from error
    if arguments.model is None:
        complain(NANO_ANSWERS)
    say(f"{address} (Ctrl+C ends it)")
    sys.stdout.flush()
    app.block_thread()
    return 0


def _export(arguments: argparse.Namespace, model: str) -> int:
    from hf_grounding_dino.app.space import export_space

    if Path(model).is_dir():
        load_detector(model, "cpu", arguments.dtype)  # what is refused here would end the Space at its start
    try:
        note, post = _note(model), post_processing_of(arguments)
        export_space(arguments.export_space, model, arguments.dtype, note, post)
    except ValueError as error:
        raise UserError(error) from error
    except OSError as error:
        raise UserError(f"{arguments.export_space} cannot be written: {system_reason(error)}") from error
    if arguments.model is None:
        complain(NANO_ANSWERS)
    say(str(arguments.export_space))
    return 0


def _note(model: str) -> str:
    from hf_grounding_dino.models.loading import model_title

    return _NANO_NOTE if Path(model) == NANO else f"Model: {model_title(model)}."
