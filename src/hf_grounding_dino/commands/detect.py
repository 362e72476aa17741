"""Find what words name in pictures, and draw it: `hf-grounding-dino detect photo.jpg --labels "cat, dog"`."""

from __future__ import annotations

import argparse
import csv
import io
import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from tqdm import tqdm

from hf_grounding_dino.assets import DEMO_LABELS, DEMO_PICTURE, NANO
from hf_grounding_dino.drawing import Detection, certainty, draw_detections

from . import UserError, complain, quiet_libraries, usable_device
from .pictures import find_pictures, make_folder, name_results, own_name, read_picture, write_file
from .problems import hub_problem, limit_problem

if TYPE_CHECKING:
    from PIL import Image

    from hf_grounding_dino.modeling_grounding_dino import GroundingDinoForObjectDetection
    from hf_grounding_dino.processing_grounding_dino import GroundingDinoProcessor
    from hf_grounding_dino.prompts import PromptText
    from hf_grounding_dino.thresholds import Thresholds

DTYPES = ("float32", "bfloat16", "float16")
DEFAULT_THRESHOLD = 0.25
MOST_TOKENS = 8192
"""Of a caption: memory grows with the square of its length."""
CALIBRATED = "calibrated"
_SHOWN_LABELS = 5

# --- the detector ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Detector:
    """A model and its processor: pictures and words in, detections out."""

    model: GroundingDinoForObjectDetection
    processor: GroundingDinoProcessor

    def detect(
        self,
        image: Any,
        *,
        labels: Sequence[str] | None = None,
        caption: str | None = None,
        threshold: float | Thresholds = DEFAULT_THRESHOLD,
    ) -> list[Detection]:
        """Find what the labels, or the phrases of the caption, name in a picture.

        Args:
            image: whatever `read_picture` reads.
            labels: what to look for; each detection is called by one of these.
            caption: a sentence to look for instead; a detection is called by the words that are found in it.
            threshold: the least score, in [0, 1], exclusive; or one for each label, for labels alone.

        Returns:
            The detections, best first, with boxes in whole pixels of the upright picture.

        Raises:
            ValueError: not exactly one of labels and caption, a label is empty or unknown, or the picture cannot be
                read.
        """
        prompt = one_prompt(labels, caption)
        picture = read_picture(image)
        if not isinstance(prompt, str):
            return self._of_labels(picture, prompt, threshold)
        if not isinstance(threshold, float | int):
            raise ValueError("Calibrated thresholds are for labels, not for a caption.")
        return self._of_caption(picture, prompt, threshold)

    def _of_labels(self, picture: Image.Image, labels: Sequence[str], threshold: float | Thresholds) -> list[Detection]:
        """As the pipeline: however many there are."""
        from hf_grounding_dino.post_processing import listed
        from hf_grounding_dino.thresholds import Thresholds, above_thresholds, threshold_per_label
        from hf_grounding_dino.vocabulary import detect

        least = threshold_per_label(threshold, labels)
        (found,) = detect(
            self.model,
            self.processor,
            picture,
            labels,
            threshold=min(least),
            top_k=None,
            scoring="mean" if isinstance(threshold, Thresholds) else "max",
        )
        return cast(list[Detection], listed(above_thresholds(found, least)))

    def _of_caption(self, picture: Image.Image, caption: str, threshold: float) -> list[Detection]:
        import torch

        from hf_grounding_dino.post_processing import listed

        inputs = self.processor(images=picture, text=caption).to(self.model.device, self.model.dtype)
        with torch.inference_mode():
            outputs = self.model(**inputs)
        (found,) = self.processor.post_process_grounded_object_detection(
            outputs, inputs["input_ids"], threshold=threshold, target_sizes=[(picture.height, picture.width)]
        )
        return sorted(cast(list[Detection], listed(found)), key=certainty, reverse=True)


def one_prompt(labels: Sequence[str] | None, caption: str | None) -> PromptText:
    """The labels or the caption, whichever is given.

    Raises:
        ValueError: none or both are given.
    """
    if (labels is None) == (caption is None):
        raise ValueError("Give either labels or a caption.")
    return list(labels) if labels is not None else str(caption)


def load_detector(model: str | Path = NANO, device: str = "auto", dtype: str = "float32") -> Detector:
    """Load a model and its processor for detection.

    Args:
        model: a folder, or the name of a repo on the Hub.
        device: a device of torch, or "auto" for the first GPU if there is one.
        dtype: one of `DTYPES`.

    Raises:
        UserError: there is no such model, it is not of this family, lacks weights or cannot be reached, or there is
            no such device.
    """
    import torch

    from hf_grounding_dino.loading import LoadingError, load_whole

    place = usable_device(device)
    try:
        network, processor = load_whole(model, getattr(torch, dtype))
    except LoadingError as error:
        raise UserError(error) from error
    except Exception as error:  # transformers, the Hub's client and safetensors have no error in common
        problem = hub_problem(error) or limit_problem(error) or str(error) or type(error).__name__
        named = problem.startswith(str(model))
        raise UserError(problem if named else f"the model {model} cannot be loaded: {problem}") from error
    return Detector(cast(Any, network).to(place), processor)


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
    parser.add_argument(
        "--model", default=str(NANO), help="a folder, or the name of a repo on the Hub; by default the one that ships"
    )
    parser.add_argument(
        "--threshold",
        type=share_or_calibrated,
        default=DEFAULT_THRESHOLD,
        help='the least score, from 0 to 1 (%(default)s), or "calibrated" for what `calibrate` put beside the model',
    )
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("out"),
        metavar="FOLDER",
        help="where each picture's drawing (.png) and detections (.json) go (%(default)s)",
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, ... (%(default)s)")
    parser.add_argument("--dtype", choices=DTYPES, default=DTYPES[0], help="what to compute in (%(default)s)")


def share_or_calibrated(text: str) -> float | str:
    """A threshold on the command line: a number from 0 to 1, or "calibrated"."""
    if text == CALIBRATED:
        return text
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not a number from 0 to 1")
    return value


def run(arguments: argparse.Namespace) -> int:
    """Detect in every picture; 0 where all could be read, 1 where only some could.

    Raises:
        UserError: nothing could be done, or results cannot be written.
    """
    prompt = _requested_prompt(arguments)
    names = [*arguments.images, *([str(DEMO_PICTURE)] if arguments.demo else [])]
    if not names:
        raise UserError("no picture: give at least one IMAGE, or --demo")
    sources, problems = find_pictures(names, leave_out=arguments.output)
    if not sources:
        raise UserError("; ".join(problems))
    make_folder(arguments.output)
    with quiet_libraries():
        detector = load_detector(arguments.model, arguments.device, arguments.dtype)
        _check_prompt(prompt, detector)
        threshold = _threshold(arguments, prompt)
        for problem in problems:
            complain(problem)
        failed = _detect_in_all(sources, prompt, detector, threshold, arguments.output)
    if failed == len(sources):
        return 2
    return 1 if failed or problems else 0


def _detect_in_all(
    sources: Sequence[str], prompt: PromptText, detector: Detector, threshold: float | Thresholds, output: Path
) -> int:
    """Write and print the results of every picture; how many could not be read."""
    failed = 0
    results = name_results(sources, output)
    # Shown on a terminal only: in a log the bar would stand between the lines.
    for source in tqdm(sources, unit="picture", disable=True if len(sources) == 1 else None):
        try:
            picture = read_picture(source)
        except ValueError as error:
            complain(f"{source}: {error}")
            failed += 1
            continue
        labels, caption = (None, prompt) if isinstance(prompt, str) else (prompt, None)
        detections = detector.detect(picture, labels=labels, caption=caption, threshold=threshold)
        drawing = draw_detections(picture, detections, labels or ())
        target = output / f"{results[source]}.png"
        write_file(target, _png(drawing))
        text = json.dumps(detections, indent=2, ensure_ascii=False) + "\n"
        write_file(target.with_name(f"{results[source]}.json"), text.encode())
        note = "" if target.stem == own_name(source) else f" (the name {own_name(source)} is another picture's)"
        tqdm.write(f"{source}\n{_table(detections)}\ndrawn: {target}{note}\n", file=sys.stdout)
    return failed


def requested_labels(texts: Sequence[str]) -> list[str]:
    """The labels of `--labels`: comma-separated lists, and files, "@names.txt", with a label a line.

    Raises:
        UserError: a list or a file that cannot be read, or no label.
    """
    labels: dict[str, None] = {}
    for text in texts:
        labels.update(dict.fromkeys(_labels_in(Path(text[1:])) if text.startswith("@") else parse_labels([text])))
    return list(labels)


def _labels_in(path: Path) -> list[str]:
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text with a label a line") from error
    labels = [line.strip() for line in lines if line.strip()]
    if not labels:
        raise UserError(f"{path}: no labels")
    return labels


def parse_labels(texts: Iterable[str]) -> list[str]:
    """The labels in comma-separated lists, each once; a label in double quotes may hold a comma.

    Raises:
        UserError: a list that cannot be read, an empty label, or no label.
    """
    labels: dict[str, None] = {}
    for text in texts:
        try:
            rows = list(csv.reader(text.splitlines(), skipinitialspace=True))
        except csv.Error as error:
            raise UserError(f"the labels {text!r} cannot be read: {error}") from error
        for label in (label.strip() for row in rows for label in row):
            if not label:
                raise UserError(f"an empty label in {text!r}")
            labels[label] = None
    if not labels:
        raise UserError("no labels: give at least one label to look for")
    return list(labels)


def _threshold(arguments: argparse.Namespace, prompt: PromptText) -> float | Thresholds:
    if arguments.threshold != CALIBRATED:
        return float(arguments.threshold)
    if isinstance(prompt, str):
        raise UserError("calibrated thresholds are for --labels, not for a --caption")
    return calibrated_thresholds(arguments.model, prompt)


def calibrated_thresholds(model: str, labels: Sequence[str]) -> Thresholds:
    """What `calibrate` put beside a model; says which labels have no threshold of their own.

    Raises:
        UserError: there is nothing, or it cannot be read.
    """
    from hf_grounding_dino.hub_or_cache import hub_or_cache
    from hf_grounding_dino.thresholds import Thresholds

    try:
        with hub_or_cache(model):
            thresholds = Thresholds.from_pretrained(model)
    except (FileNotFoundError, ValueError) as error:
        raise UserError(error) from error
    if missing := thresholds.missing(labels):
        some = ", ".join(map(repr, missing[:_SHOWN_LABELS])) + (", ..." if len(missing) > _SHOWN_LABELS else "")
        complain(f"no calibrated threshold for {some}: that of all labels is taken, {thresholds.default:g}")
    return thresholds


def _requested_prompt(arguments: argparse.Namespace) -> PromptText:
    if arguments.caption is not None:
        return str(arguments.caption)
    if arguments.labels is not None:
        return requested_labels(arguments.labels)
    if arguments.demo:
        return list(DEMO_LABELS)
    raise UserError('nothing to look for: give --labels "cat, remote control" or --caption "a cat on a sofa"')


def _check_prompt(prompt: PromptText, detector: Detector) -> None:
    """Refuse what the tokenizer does not know, and what the model cannot hold, before any picture is read."""
    from hf_grounding_dino.prompts import encode_prompt, special_token_ids
    from hf_grounding_dino.vocabulary import chunk_labels

    tokenizer = detector.processor.tokenizer
    try:
        ids = encode_prompt(prompt, tokenizer).input_ids
        if not isinstance(prompt, str):
            chunk_labels(prompt, tokenizer)
    except ValueError as error:
        raise UserError(error) from error
    if isinstance(prompt, str) and len(ids) > MOST_TOKENS:
        raise UserError(f"the caption is too long: {len(ids)} tokens, and {MOST_TOKENS} is the most")
    ends = [place for place, token in enumerate(ids) if token in special_token_ids(tokenizer)]
    longest = max(end - start for start, end in pairwise(ends))
    positions = detector.model.config.get_text_config().max_position_embeddings
    if longest > positions:
        what = "sentence of the caption" if isinstance(prompt, str) else "label"
        raise UserError(f"a {what} is too long: {longest} tokens, and the model reads {positions} at most")


def _png(drawing: Image.Image) -> bytes:
    content = io.BytesIO()
    drawing.save(content, format="PNG")
    return content.getvalue()


def _table(detections: Sequence[Detection]) -> str:
    if not detections:
        return "  nothing found"
    labels = [" ".join(detection["label"].split()) for detection in detections]
    width = max(5, *map(len, labels))
    lines = [f"  score  {'label':{width}}   xmin   ymin   xmax   ymax"]
    for detection, label in zip(detections, labels, strict=True):
        box = detection["box"]
        corners = "".join(f"{side:7d}" for side in (box["xmin"], box["ymin"], box["xmax"], box["ymax"]))
        lines.append(f"  {detection['score']:5.3f}  {label:{width}}{corners}")
    return "\n".join(lines)
