"""Detect objects in images and draw them: `hf-grounding-dino detect photo.jpg --labels "cat" --model ID`."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from hf_grounding_dino.assets import DEMO_IMAGE, DEMO_LABELS
from hf_grounding_dino.inference.drawing import Detection, draw_detections
from hf_grounding_dino.utils.printable import printable
from hf_grounding_dino.utils.progress import progress_bar

from . import UserError, complain, quiet_libraries, say, usable_device
from .files import encode_image_file, find_images, image_stem, make_folder, name_results, write_file
from .model_options import (
    NANO_ANSWERS,
    add_kept_options,
    add_model_option,
    add_running_options,
    check_prompt,
    named_model,
    post_processing_of,
)
from .problems import hub_problem, limit_problem

if TYPE_CHECKING:
    from hf_grounding_dino.inference.predictor import Predictor
    from hf_grounding_dino.inference.prompting import CaptionPrompt, LabelPrompt


def load_detector(
    model: str | Path, device: str = "auto", dtype: str = "float32", batch_size: int = 1, readers: int | None = None
) -> Predictor:
    """Load a model and its processor for detection.

    Args:
        model: the name of a repo on the Hub, a folder, or "nano".
        device: a device of torch, or "auto" for the first GPU if there is one.
        dtype: one of `model_options.DTYPES`.
        batch_size: images that run together.
        readers: threads that read images ahead; by default one a core.

    Raises:
        UserError: there is no such model, it is not of this family, lacks weights or cannot be reached, or there is
            no such device.
    """
    import torch

    from hf_grounding_dino.inference.predictor import Predictor
    from hf_grounding_dino.models.loading import LoadingError, load_whole

    place, model = usable_device(device), named_model(str(model))
    try:
        network, processor = load_whole(model, getattr(torch, dtype))
    except LoadingError as error:
        raise UserError(error) from error
    except Exception as error:  # transformers, the Hub's client and safetensors have no error in common
        problem = hub_problem(error) or limit_problem(error) or str(error) or type(error).__name__
        named = problem.startswith(str(model))
        raise UserError(problem if named else f"the model {model} cannot be loaded: {problem}") from error
    return Predictor(cast(Any, network).to(place), processor, batch_size=batch_size, readers=readers)


class Result(NamedTuple):
    """What came of an image.

    drawing: the file with the boxes drawn; beside it lies a JSON file with the detections.
    problem: why the image could not be read; None where it could.
    """

    source: str
    detections: list[Detection]
    drawing: Path
    problem: str | None


def detect_files(
    predictor: Predictor, prompt: LabelPrompt | CaptionPrompt, sources: Sequence[str], output: Path
) -> Iterator[Result]:
    """Detect in image files and behind URLs, and write a drawing and a JSON file of each; results in their order.

    Args:
        predictor: the model.
        prompt: what to look for.
        sources: paths and URLs.
        output: a folder, which is there.

    Raises:
        UserError: a result cannot be written.
    """
    from hf_grounding_dino.inference.predictor import Request
    from hf_grounding_dino.inference.prompting import LabelPrompt

    labels = prompt.labels if isinstance(prompt, LabelPrompt) else ()
    names = name_results(sources, output)
    requests = (Request(source, source, prompt) for source in sources)
    for found in predictor.run(requests, in_order=True, keep_images=True):
        source, drawing, detections = found.request.id, output / names[found.request.id], found.detections
        if found.image is not None:
            write_file(drawing, encode_image_file(draw_detections(found.image, detections, labels), drawing.suffix))
            text = json.dumps(detections, indent=2, ensure_ascii=False) + "\n"
            write_file(drawing.with_suffix(".json"), text.encode())
        yield Result(source, detections, drawing, found.problem)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `detect`."""
    parser.add_argument(
        "images", nargs="*", metavar="IMAGE", help="a file, a folder, a pattern such as 'folder/**/*.jpg', or a URL"
    )
    prompt = parser.add_mutually_exclusive_group()
    prompt.add_argument(
        "--labels",
        action="append",
        metavar="LABELS",
        help='what to look for: "cat, remote control", or @FILE with a label a line; may be repeated;'
        " quote a label that holds a comma",
    )
    prompt.add_argument("--caption", help='a sentence to look for: "a red star to the left of a blue ring"')
    parser.add_argument("--demo", action="store_true", help="look for shapes in the image that ships")
    add_model_option(parser, " (with --demo alone, nano)")
    add_kept_options(parser, tuned=True)
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("out"),
        metavar="FOLDER",
        help="where each image's drawing (.jpg of a JPEG, else .png) and detections (.json) go (%(default)s)",
    )
    add_running_options(parser)


def run(arguments: argparse.Namespace) -> int:
    """Detect in every image; 0 where all could be read, 1 where only some could, 2 where none.

    Raises:
        UserError: nothing could be done, or results cannot be written.
    """
    labels = _requested_labels(arguments)
    names = [*arguments.images, *([str(DEMO_IMAGE)] if arguments.demo else [])]
    if not names:
        raise UserError("no image: give at least one IMAGE, or --demo")
    model = named_model(arguments.model, or_nano=not arguments.images)
    sources, problems = find_images(names, leave_out=arguments.output)
    if not sources:
        raise UserError("; ".join(problems))
    make_folder(arguments.output)
    with quiet_libraries():
        from hf_grounding_dino.inference.prompting import prompt_of

        predictor = load_detector(model, arguments.device, arguments.dtype, arguments.batch_size)
        if arguments.model is None:
            complain(NANO_ANSWERS)
        check_prompt(arguments.caption if labels is None else labels, predictor)
        prompt = prompt_of(labels, arguments.caption, post_processing_of(arguments, model, labels))
        for problem in problems:
            complain(problem)
        failed = 0
        # Shown on a terminal only: in a log the bar would stand between the lines.
        with progress_bar(len(sources), shown=len(sources) > 1, in_logs=False) as bar:
            for result in detect_files(predictor, prompt, sources, arguments.output):
                failed += result.problem is not None
                _print(result)
                bar.update()
    if failed == len(sources):
        return 2
    return 1 if failed or problems else 0


def requested_labels(texts: Sequence[str]) -> list[str]:
    """The labels of `--labels`: comma-separated lists, and files, "@names.txt", with a label a line.

    Raises:
        UserError: a list or a file that cannot be read, or no label.
    """
    from hf_grounding_dino.processing.labels import parse_labels, read_labels

    try:
        each = [read_labels(Path(text[1:])) if text.startswith("@") else parse_labels([text]) for text in texts]
        return list(dict.fromkeys(label for labels in each for label in labels))
    except OSError as error:
        raise UserError(f"{error.filename}: {error.strerror}") from error
    except ValueError as error:
        raise UserError(error) from error


def _requested_labels(arguments: argparse.Namespace) -> list[str] | None:
    """The labels that are asked for; None where it is a caption."""
    if arguments.caption is not None:
        return None
    if arguments.labels is not None:
        return requested_labels(arguments.labels)
    if arguments.demo:
        return list(DEMO_LABELS)
    raise UserError('nothing to look for: give --labels "cat, remote control" or --caption "a cat on a sofa"')


def _print(result: Result) -> None:
    source, detections, drawing, problem = result
    if problem is not None:
        complain(f"{source}: {problem}")
        return
    note = "" if drawing.stem == image_stem(source) else f" (the name {image_stem(source)} is another image's)"
    say(f"{printable(source)}\n{_table(detections)}\ndrawn: {drawing}{note}\n")


def _table(detections: Sequence[Detection]) -> str:
    if not detections:
        return "  nothing found"
    labels = [printable(" ".join(detection["label"].split())) for detection in detections]
    width = max(5, *map(len, labels))
    lines = [f"  score  {'label':{width}}   xmin   ymin   xmax   ymax"]
    for detection, label in zip(detections, labels, strict=True):
        box = detection["box"]
        corners = "".join(f"{side:7d}" for side in (box["xmin"], box["ymin"], box["xmax"], box["ymax"]))
        lines.append(f"  {detection['score']:5.3f}  {label:{width}}{corners}")
    return "\n".join(lines)
