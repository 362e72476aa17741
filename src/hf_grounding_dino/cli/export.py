"""Write a model as one file for another runtime, and check it: `hf-grounding-dino export out/model.onnx`."""

from __future__ import annotations

import argparse
import copy
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_grounding_dino.assets import DEMO_IMAGE, DEMO_LABELS

from . import UserError, complain, quiet_libraries, say, whole_number
from .detect import load_detector
from .files import make_folder, write_file
from .model_options import add_model_option, named_model
from .problems import user_errors

if TYPE_CHECKING:
    import torch

SUFFIXES = {"onnx": ".onnx", "torch": ".pt2", "openvino": ".xml"}
DTYPES = ("float32", "float16")
LARGEST_DIFFERENCE = {"float32": 1e-3, "float16": 5e-2}
"""Of a score, and of a coordinate in parts of the image; beyond it the file is called unlike the model."""
_OLDEST_OPSET = 18


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `export`."""
    parser.add_argument(
        "file", type=Path, metavar="OUT_FILE", help=f"ending in {', '.join(SUFFIXES.values())}; its folder is made"
    )
    add_model_option(parser)
    parser.add_argument("--format", choices=tuple(SUFFIXES), default="onnx", help="(%(default)s)")
    parser.add_argument(
        "--dtype",
        choices=DTYPES,
        default=DTYPES[0],
        help="of the weights; boxes and sampling locations stay in float32 (%(default)s)",
    )
    parser.add_argument(
        "--opset", type=whole_number(_OLDEST_OPSET), default=_OLDEST_OPSET, help="of ONNX, at least 18 (%(default)s)"
    )
    parser.epilog = (
        "The file takes any number of images, sizes and prompt lengths. What prepares its inputs is written beside"
        " it: processor_config.json and the tokenizer's files."
    )


def run(arguments: argparse.Namespace) -> int:
    """Write the file and what belongs to it, run it, and print how far it is from the model; 1 where that is too far.

    Raises:
        UserError: a package is missing, there is no such model, it cannot be exported, or the file cannot be written.
    """
    from hf_grounding_dino.export.exporting import compare, load_runner, missing_packages

    path, dtype = arguments.file, arguments.dtype
    if path.suffix != SUFFIXES[arguments.format]:
        raise UserError(f"{path}: a file of the format {arguments.format} ends in {SUFFIXES[arguments.format]}")
    missing = missing_packages(arguments.format)
    if missing:
        raise UserError(f"--format {arguments.format} needs packages that are missing: pip install {' '.join(missing)}")
    model = named_model(arguments.model)
    make_folder(path.parent)
    with quiet_libraries():
        detector = load_detector(model, "cpu")
        with user_errors(place=path):
            beside = _processor_files(detector.processor, path.parent)
            try:
                _write(detector.model, arguments)
            except ValueError as error:
                raise UserError(f"the model cannot be exported: {error}") from error
            for name, content in beside.items():
                write_file(path.parent / name, content)
        found = compare(detector.model, load_runner(path, arguments.format), list(_examples(detector.processor)))
    parts = [path, path.with_name(f"{path.name}.data"), path.with_suffix(".bin")]
    size = sum(part.stat().st_size for part in parts if part.exists()) / 1e6
    say(f"written: {path} ({size:.1f} MB), with {', '.join(beside)} beside it")
    say(
        f"largest difference of {dtype} from the model, best 10 boxes of 3 images: scores {found.scores:.1e},"
        f" boxes {found.boxes:.1e} of the image"
    )
    if max(found) > LARGEST_DIFFERENCE[dtype]:
        complain(f"{path} differs from the model by more than {LARGEST_DIFFERENCE[dtype]:g}")
        return 1
    return 0


def _write(model: Any, arguments: argparse.Namespace) -> None:
    import torch

    from hf_grounding_dino.export import exporting

    path, half = arguments.file, arguments.dtype == "float16"
    facts = {
        "phrase_boundary_token_ids": list(model.config.phrase_boundary_token_ids),
        "smallest_side": exporting.smallest_side(model),
    }
    if half and arguments.format != "openvino":
        model = copy.deepcopy(model).to(torch.float16)
    program = exporting.export_program(model)
    if arguments.format == "torch":
        exporting.write_program(program, path)
    elif arguments.format == "onnx":
        exporting.write_onnx(program, path, arguments.opset, facts)
    else:
        with tempfile.TemporaryDirectory() as folder:
            graph = Path(folder) / "model.onnx"
            exporting.write_onnx(program, graph, arguments.opset, facts)
            exporting.write_openvino(graph, path, half)


def _processor_files(processor: Any, folder: Path) -> dict[str, bytes]:
    """The files that prepare the inputs, by name.

    Raises:
        UserError: such files of another model lie in the folder.
    """
    with tempfile.TemporaryDirectory() as temporary:
        processor.save_pretrained(temporary)
        files = {file.name: file.read_bytes() for file in sorted(Path(temporary).iterdir())}
    for name, content in files.items():
        place = folder / name
        if place.exists() and place.read_bytes() != content:
            raise UserError(f"{place} is of another model: export into a folder of its own")
    return files


def _examples(processor: Any) -> Iterator[Mapping[str, torch.Tensor]]:
    """The demo image, then two parts of it with prompts of unequal lengths: none of them what the graph was made of."""
    from hf_grounding_dino.utils.image_files import open_image

    with open_image(DEMO_IMAGE) as opened:
        image = opened.convert("RGB")
    yield processor(images=image, text=[list(DEMO_LABELS)])
    parts = [image.crop((0, 0, 200, 256)), image.crop((60, 40, 320, 200))]
    yield processor(images=parts, text=[list(DEMO_LABELS[:2]), list(DEMO_LABELS[3:])])
