"""Drawings of what the model finds beside the ground truth."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ..data.images import load_image
from ..data.records import Record, RecordSet
from ..inference.drawing import Detection, draw_detections, scaled
from ..inference.large_vocabulary import detect
from ..models.grounding_dino.modeling_grounding_dino import GroundingDinoForObjectDetection
from ..processing.processing_grounding_dino import GroundingDinoProcessor

EXAMPLES_SHOWN, SCORE_SHOWN = 4, 0.3

_LARGEST_SIDE, _LARGEST_DRAWN = 640, 1280
_GAP, _TITLE_SIZE, _CAPTION_SIZE = 12, 20, 16
_PAPER, _INK, _GREY = (255, 255, 255), (38, 38, 38), (110, 110, 110)


def draw_examples(
    model: GroundingDinoForObjectDetection, processor: GroundingDinoProcessor, records: RecordSet
) -> Image.Image:
    """Predictions beside the ground truth, for the first images of a dataset that can be read."""
    return _stack(list(islice(_drawings(model, processor, records), EXAMPLES_SHOWN)))


def _drawings(
    model: GroundingDinoForObjectDetection, processor: GroundingDinoProcessor, records: RecordSet
) -> Iterator[Image.Image]:
    for i in range(len(records)):
        record = records[i]
        try:
            image = load_image(record.image)
        except ValueError:
            continue
        if record.labels is None:
            of_boxes = _phrases(record)
            labels = list(dict.fromkeys(of_boxes)) or [str(record.caption)]
        else:
            labels = list(records.label_names)
            of_boxes = [labels[i] for i in record.labels.tolist()]
        with torch.inference_mode():
            found = detect(model, processor, [image], labels, threshold=SCORE_SHOWN, one_label_per_box=True)[0]
        yield beside_ground_truth(
            image,
            as_detections(found["boxes"].cpu(), found["text_labels"], found["scores"].cpu()),
            as_detections(record.boxes, of_boxes),
            title=f"{records.name}, {record.image_id}",
        )


def _phrases(record: Record) -> list[str]:
    """The words of the caption for each box."""
    caption = str(record.caption)
    return [" ".join(caption[start:end] for start, end in spans) for spans in record.spans or ()]


def as_detections(boxes: Tensor, labels: Sequence[str], scores: Tensor | None = None) -> list[Detection]:
    """Boxes (n, 4), xyxy in pixels, with n labels and scores in the form that is drawn; ground truth has no scores."""
    values = [None] * len(labels) if scores is None else scores.tolist()
    corners = [[round(edge) for edge in box] for box in boxes.tolist()]
    return [
        {"score": score, "label": label, "box": {"xmin": box[0], "ymin": box[1], "xmax": box[2], "ymax": box[3]}}
        for box, label, score in zip(corners, labels, values, strict=True)
    ]


def beside_ground_truth(
    image: Image.Image, predictions: Sequence[Detection], ground_truth: Sequence[Detection], title: str = ""
) -> Image.Image:
    """Predictions on the left, the ground truth on the right, at one scale, a label in one color on both.

    Args:
        image: upright; a large one is drawn smaller.
        predictions: in pixels of `image`, those worth showing.
        title: one line above, such as the image's name; cut where it is too long.
    """
    scale = min(1.0, _LARGEST_DRAWN / max(image.size))
    if scale < 1:  # first, so that lines and tags keep their size
        size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
        image = image.resize(size, Image.Resampling.LANCZOS)
    labels = sorted({detection["label"] for detection in [*ground_truth, *predictions]})
    sides = []
    for caption, side in (("predictions", predictions), ("ground truth", ground_truth)):
        drawing = draw_detections(image, [scaled(detection, scale) for detection in side], labels)
        drawing.thumbnail((_LARGEST_SIDE, _LARGEST_SIDE), Image.Resampling.LANCZOS)
        sides.append((f"{caption}: {len(side)}", drawing))
    width, height = sides[0][1].size
    head = _TITLE_SIZE + _GAP if title else 0
    top = head + _CAPTION_SIZE + _GAP
    paper = Image.new("RGB", (2 * width + _GAP, top + height), _PAPER)
    _write(paper, (0, 0), title, _TITLE_SIZE, paper.width, _INK)
    for left, (caption, drawing) in zip((0, width + _GAP), sides, strict=True):
        _write(paper, (left, head), caption, _CAPTION_SIZE, width, _GREY)
        paper.paste(drawing, (left, top))
    return paper


def _stack(drawings: Sequence[Image.Image]) -> Image.Image:
    """Drawings below one another, on white."""
    width = max((drawing.width for drawing in drawings), default=0) + 2 * _GAP
    height = sum(drawing.height + 2 * _GAP for drawing in drawings) or 2 * _GAP
    sheet = Image.new("RGB", (width, height), _PAPER)
    top = _GAP
    for drawing in drawings:
        sheet.paste(drawing, (_GAP, top))
        top += drawing.height + 2 * _GAP
    return sheet


def _write(
    paper: Image.Image, place: tuple[int, int], text: str, size: int, width: int, color: tuple[int, int, int]
) -> None:
    """Write a text on one line, cut to fit the width."""
    font = ImageFont.load_default(size)
    line = shown = " ".join(text.split())
    while line and font.getlength(shown) > width:
        line = line[: min(len(line) - 1, int(len(line) * width / font.getlength(shown)) + 1)]
        shown = f"{line.rstrip()}\u2026"
    ImageDraw.Draw(paper).text(place, shown, color, font)
