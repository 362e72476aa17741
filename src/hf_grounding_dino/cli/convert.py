"""Checkpoints of other packages to repos of transformers, and back: `hf-grounding-dino convert FILE.pth my-model`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import UserError, complain, quiet_libraries, say
from .files import check_folder, make_folder, write_file
from .model_options import DTYPES
from .problems import in_words, user_errors

if TYPE_CHECKING:
    from hf_grounding_dino.models.grounding_dino.conversion import ConversionReport

EXIT_NO_TOKENIZER = 1


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `convert`."""
    parser.add_argument("source", metavar="SOURCE", type=Path, help="checkpoint (.pth), or a model folder")
    parser.add_argument("output", metavar="OUTPUT", type=Path, help="new folder; for a model folder, new file (.pth)")
    parser.add_argument(
        "--to",
        choices=("hf", "original", "mmdet"),
        help="whose names the result has: transformers' (a checkpoint's default), the original repository's, or"
        " mmdetection's",
    )
    parser.add_argument(
        "--tokenizer", metavar="FOLDER_OR_ID", help="of the text encoder (default: bert-base-uncased of the Hub)"
    )
    parser.add_argument(
        "--config",
        metavar="FOLDER",
        type=Path,
        help="folder with a config.json to use, instead of what the weights tell",
    )
    parser.add_argument("--dtype", choices=DTYPES, help="of the written weights (default: as they are)")
    parser.add_argument("--report", metavar="FILE.json", type=Path, help="write what became of each tensor here")
    parser.epilog = (
        "Known: checkpoints of Grounding DINO, Open-GroundingDino, MM-Grounding-DINO, and LLMDet without its language"
        " model. Nothing that a checkpoint holds beside its tensors is run."
    )


def run(arguments: argparse.Namespace) -> int:
    """Convert, and print a summary; 1 where all is written but a tokenizer, which could not be had.

    Raises:
        UserError: it cannot be converted; nothing is written then but the report.
    """
    source, to = arguments.source, arguments.to
    if not source.exists():
        raise UserError(f"{source}: there is no such file or folder")
    if source.is_dir() and to in (None, "hf"):
        raise UserError(f"{source}: is a model folder: say with --to original or --to mmdet what to make of it")
    if source.is_file() and to not in (None, "hf"):
        raise UserError(f"{source}: is a file: convert it to a folder first, and that --to {to}")
    if source.is_dir() and (arguments.tokenizer is not None or arguments.config is not None):
        raise UserError("--tokenizer and --config are for checkpoints, not for model folders")
    for file in filter(None, (arguments.output, arguments.report)):
        check_folder(file.parent)
    import torch

    from hf_grounding_dino.models.grounding_dino.conversion import ConversionError, convert_from_hf

    dtype = None if arguments.dtype is None else getattr(torch, arguments.dtype)
    excuse = None
    try:
        with quiet_libraries(), user_errors(place=arguments.output):
            if source.is_dir():
                report = convert_from_hf(source, arguments.output, to, dtype=dtype)
            else:
                report, excuse = _from_file(arguments, dtype)
    except ConversionError as error:
        if error.report is not None:
            _write_report(arguments.report, error.report)
        raise UserError(in_words(error, arguments.output)) from error
    _write_report(arguments.report, report)
    say(f"{report.summary()}\n{arguments.output}")
    if excuse is None:
        return 0
    complain(
        f"{excuse} The folder is complete but for it: when you have it, save it there, or convert again with"
        " --tokenizer FOLDER"
    )
    return EXIT_NO_TOKENIZER


def _from_file(arguments: argparse.Namespace, dtype: Any) -> tuple[ConversionReport, str | None]:
    """Convert a checkpoint; also says why there is no tokenizer, where none was named and none could be had."""
    from hf_grounding_dino import GroundingDinoConfig
    from hf_grounding_dino.models.grounding_dino import conversion

    tokenizer, config, excuse = None, None, None
    try:
        tokenizer = conversion.load_tokenizer(arguments.tokenizer or conversion.DEFAULT_TOKENIZER)
    except conversion.ConversionError as error:
        if arguments.tokenizer is not None:
            raise
        excuse = f"{in_words(error).rstrip('.')}."
    if arguments.config is not None:
        try:
            config = GroundingDinoConfig.from_pretrained(arguments.config)
        except (OSError, ValueError) as error:
            raise UserError(f"{arguments.config}: {error}") from error
    options: Any = {"tokenizer": tokenizer, "config": config, "dtype": dtype}
    return conversion.convert_to_hf(arguments.source, arguments.output, **options), excuse


def _write_report(file: Path | None, report: ConversionReport) -> None:
    if file is not None:
        make_folder(file.parent)
        write_file(file, report.to_json().encode())
