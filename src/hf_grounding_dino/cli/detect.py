"""Find what words name in pictures, and draw it: `hf-grounding-dino detect photo.jpg --labels "cat" --model ID`."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from tqdm import tqdm

from hf_grounding_dino.assets import DEMO_IMAGE, DEMO_LABELS
from hf_grounding_dino.inference.drawing import Detection, certainty, draw_detections
from hf_grounding_dino.processing.defaults import DEFAULTS, PostProcessing
from hf_grounding_dino.utils.printable import printable

from . import UserError, complain, quiet_libraries, say, usable_device
from .model_options import (
    CALIBRATED,
    NANO_ANSWERS,
    add_kept_options,
    add_model_option,
    add_running_options,
    calibrated_thresholds,
    check_prompt,
    named_model,
    post_processing_of,
)
from .pictures import encoded, find_pictures, make_folder, name_results, own_name, read_picture, write_file
from .problems import hub_problem, limit_problem

if TYPE_CHECKING:
    from PIL import Image

    from hf_grounding_dino.models.grounding_dino.modeling_grounding_dino import GroundingDinoForObjectDetection
    from hf_grounding_dino.processing.post_processing import Detections
    from hf_grounding_dino.processing.processing_grounding_dino import GroundingDinoProcessor
    from hf_grounding_dino.processing.prompts import PromptText
    from hf_grounding_dino.processing.thresholds import Thresholds


# --- the detector ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Detector:
    """A model and its processor: images and words in, detections out.

    kept: which detections are kept, but for the threshold, which each call may set.
    """

    model: GroundingDinoForObjectDetection
    processor: GroundingDinoProcessor
    kept: PostProcessing = DEFAULTS

    def detect(
        self,
        image: Any,
        *,
        labels: Sequence[str] | None = None,
        caption: str | None = None,
        threshold: float | Thresholds | None = None,
    ) -> list[Detection]:
        """Find what the labels, or the phrases of the caption, name in an image.

        Args:
            image: whatever `read_picture` reads.
            labels: what to look for; each detection is called by one of these.
            caption: a sentence to look for instead; a detection is called by the words that are found in it.
            threshold: the least score, in [0, 1], exclusive; or one for each label, for labels alone; None for that of
                `kept`.

        Returns:
            The detections, best first, with boxes in whole pixels of the upright image.

        Raises:
            ValueError: not exactly one of labels and caption, a label is empty, unknown or none that the model was
                taught, or the image cannot be read.
        """
        prompt = one_prompt(labels, caption)
        self.doubts(prompt)
        (found,) = self.detect_each(
            [read_picture(image)], prompt, self.kept.threshold if threshold is None else threshold
        )
        return found

    def doubts(self, prompt: PromptText) -> list[str]:
        """What is to be said of words that the model was not taught; see `closed_vocabulary.doubts`.

        Raises:
            ValueError: it was taught no word of a label.
        """
        from hf_grounding_dino.processing.closed_vocabulary import doubts

        return doubts(self.model, [prompt] if isinstance(prompt, str) else prompt)

    def detect_each(
        self, pictures: Sequence[Image.Image], prompt: PromptText, threshold: float | Thresholds
    ) -> list[list[Detection]]:
        """As `detect`, in several upright images at a time."""
        from hf_grounding_dino.processing.post_processing import listed

        if not isinstance(prompt, str):
            each = self._of_labels(pictures, prompt, threshold)
        elif isinstance(threshold, float | int):
            each = self._of_caption(pictures, prompt, threshold)
        else:
            raise ValueError("Calibrated thresholds are for labels, not for a caption.")
        lists = [cast(list[Detection], listed(found)) for found in each]
        return [sorted(found, key=certainty, reverse=True)[: self.kept.top_k] for found in lists]

    def _of_labels(
        self, pictures: Sequence[Image.Image], labels: Sequence[str], threshold: float | Thresholds
    ) -> list[Detections]:
        """As the pipeline: however many there are."""
        from hf_grounding_dino.inference.large_vocabulary import Chunking, detect
        from hf_grounding_dino.processing.thresholds import Thresholds, above_thresholds, threshold_per_label

        least = threshold_per_label(threshold, labels)
        each = detect(
            self.model,
            self.processor,
            pictures,
            labels,
            threshold=min(least),
            top_k=None,
            scoring="mean" if isinstance(threshold, Thresholds) else "max",
            chunking=Chunking(labels=self.kept.chunk_size),
            nms_threshold=self.kept.nms,
        )
        return [above_thresholds(found, least) for found in each]

    def _of_caption(self, pictures: Sequence[Image.Image], caption: str, threshold: float) -> list[Detections]:
        import torch

        from hf_grounding_dino.processing.post_processing import without_overlaps

        inputs = self.processor(images=pictures, text=caption).to(self.model.device, self.model.dtype)
        with torch.inference_mode():
            outputs = self.model(**inputs)
        each = self.processor.post_process_grounded_object_detection(
            outputs,
            inputs["input_ids"],
            threshold=threshold,
            text_threshold=self.kept.text_threshold,
            target_sizes=[(picture.height, picture.width) for picture in pictures],
        )
        nms = self.kept.nms
        return list(each) if nms is None else [without_overlaps(found, nms) for found in each]


def one_prompt(labels: Sequence[str] | None, caption: str | None) -> PromptText:
    """The labels or the caption, whichever is given.

    Raises:
        ValueError: none or both are given.
    """
    if (labels is None) == (caption is None):
        raise ValueError("Give either labels or a caption.")
    return list(labels) if labels is not None else str(caption)


def load_detector(
    model: str | Path, device: str = "auto", dtype: str = "float32", kept: PostProcessing = DEFAULTS
) -> Detector:
    """Load a model and its processor for detection.

    Args:
        model: the name of a repo on the Hub, a folder, or "nano".
        device: a device of torch, or "auto" for the first GPU if there is one.
        dtype: one of `model_options.DTYPES`.
        kept: which detections are kept.

    Raises:
        UserError: there is no such model, it is not of this family, lacks weights or cannot be reached, or there is
            no such device.
    """
    import torch

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
    return Detector(cast(Any, network).to(place), processor, kept)


# --- the command -------------------------------------------------------------------------------------------------


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
    parser.add_argument("--demo", action="store_true", help="look for shapes in a picture that ships")
    add_model_option(parser, " (with --demo alone, nano)")
    add_kept_options(parser, calibrated=True)
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("out"),
        metavar="FOLDER",
        help="where each image's drawing (.jpg of a JPEG, else .png) and detections (.json) go (%(default)s)",
    )
    add_running_options(parser)


def run(arguments: argparse.Namespace) -> int:
    """Detect in every picture; 0 where all could be read, 1 where only some could.

    Raises:
        UserError: nothing could be done, or results cannot be written.
    """
    prompt = _requested_prompt(arguments)
    names = [*arguments.images, *([str(DEMO_IMAGE)] if arguments.demo else [])]
    if not names:
        raise UserError("no picture: give at least one IMAGE, or --demo")
    model = named_model(arguments.model, or_nano=not arguments.images)
    sources, problems = find_pictures(names, leave_out=arguments.output)
    if not sources:
        raise UserError("; ".join(problems))
    make_folder(arguments.output)
    with quiet_libraries():
        detector = load_detector(model, arguments.device, arguments.dtype, post_processing_of(arguments))
        if arguments.model is None:
            complain(NANO_ANSWERS)
        check_prompt(prompt, detector)
        threshold = _threshold(arguments, model, prompt)
        for problem in problems:
            complain(problem)
        failed = _Desk(detector, prompt, threshold, name_results(sources, arguments.output), arguments.output).work(
            arguments.batch_size
        )
    if failed == len(sources):
        return 2
    return 1 if failed or problems else 0


@dataclass(frozen=True)
class _Desk:
    """Where images are read, answered and drawn.

    names: of the results of each source.
    """

    detector: Detector
    prompt: PromptText
    threshold: float | Thresholds
    names: Mapping[str, str]
    output: Path

    def work(self, batch_size: int) -> int:
        """Write and print the results of every image; how many could not be read."""
        failed = 0
        batch: dict[str, Image.Image] = {}
        # Shown on a terminal only: in a log the bar would stand between the lines.
        bar = tqdm(self.names, unit="image", disable=True if len(self.names) == 1 else None)
        for number, source in enumerate(bar, start=1):
            try:
                batch[source] = read_picture(source)
            except ValueError as error:
                complain(f"{source}: {error}")
                failed += 1
            if batch and (len(batch) == batch_size or number == len(self.names)):
                self._answer(batch)
                batch = {}
        return failed

    def _answer(self, batch: Mapping[str, Image.Image]) -> None:
        each = self.detector.detect_each(list(batch.values()), self.prompt, self.threshold)
        for (source, picture), detections in zip(batch.items(), each, strict=True):
            drawing = draw_detections(picture, detections, () if isinstance(self.prompt, str) else self.prompt)
            target = self.output / self.names[source]
            write_file(target, encoded(drawing, target.suffix))
            text = json.dumps(detections, indent=2, ensure_ascii=False) + "\n"
            write_file(target.with_suffix(".json"), text.encode())
            note = "" if target.stem == own_name(source) else f" (the name {own_name(source)} is another image's)"
            say(f"{printable(source)}\n{_table(detections)}\ndrawn: {target}{note}\n")


def requested_labels(texts: Sequence[str]) -> list[str]:
    """The labels of `--labels`: comma-separated lists, and files, "@names.txt", with a label a line.

    Raises:
        UserError: a list or a file that cannot be read, or no label.
    """
    from hf_grounding_dino.processing.prompts import parse_labels, read_labels

    try:
        each = [read_labels(Path(text[1:])) if text.startswith("@") else parse_labels([text]) for text in texts]
        return list(dict.fromkeys(label for labels in each for label in labels))
    except OSError as error:
        raise UserError(f"{error.filename}: {error.strerror}") from error
    except ValueError as error:
        raise UserError(error) from error


def _threshold(arguments: argparse.Namespace, model: str, prompt: PromptText) -> float | Thresholds:
    if arguments.threshold != CALIBRATED:
        return float(arguments.threshold)
    if isinstance(prompt, str):
        raise UserError("calibrated thresholds are for --labels, not for a --caption")
    return calibrated_thresholds(model, prompt)


def _requested_prompt(arguments: argparse.Namespace) -> PromptText:
    if arguments.caption is not None:
        return str(arguments.caption)
    if arguments.labels is not None:
        return requested_labels(arguments.labels)
    if arguments.demo:
        return list(DEMO_LABELS)
    raise UserError('nothing to look for: give --labels "cat, remote control" or --caption "a cat on a sofa"')


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
