"""What the model finds beside what is true, drawn every so often in training."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterable, Sequence

from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ..inference.drawing import Detection, draw_detections, scaled

PREDICTED, TRUE = "found", "ground truth"

_LARGEST_SIDE = 640  # of a drawn picture on the paper
_LARGEST_DRAWN = 1280
_GAP = 12
_TITLE_SIZE, _CAPTION_SIZE = 20, 16
_PAPER, _INK, _GREY = (255, 255, 255), (38, 38, 38), (110, 110, 110)
_ELLIPSIS = "\u2026"


def as_detections(boxes: Tensor, labels: Sequence[str], scores: Tensor | None = None) -> list[Detection]:
    """Boxes, labels and scores in the form that is drawn.

    Args:
        boxes: (n, 4), xyxy in pixels.
        labels: n of them.
        scores: (n,) in [0, 1]; None for the truth.
    """
    values = [None] * len(labels) if scores is None else scores.tolist()
    corners = [tuple(round(edge) for edge in box) for box in boxes.tolist()]
    return [
        {"score": score, "label": label, "box": {"xmin": box[0], "ymin": box[1], "xmax": box[2], "ymax": box[3]}}
        for box, label, score in zip(corners, labels, values, strict=True)
    ]


def beside_truth(
    image: Image.Image, found: Sequence[Detection], truth: Sequence[Detection], *, title: str = ""
) -> Image.Image:
    """What was found on the left, the ground truth on the right, at one scale, a label in one colour on both.

    Args:
        image: the upright picture; a large one is drawn smaller.
        found: detections in pixels of `image`, those worth showing.
        truth: the boxes that are there.
        title: one line above, such as the picture's name; cut where it is too long.
    """
    scale = min(1.0, _LARGEST_DRAWN / max(image.size))
    labels = sorted({detection["label"] for detection in [*truth, *found]})
    panels = [_panel(image, detections, labels, scale) for detections in (found, truth)]
    width, height = panels[0].size
    head = _TITLE_SIZE + _GAP if title else 0
    top = head + _CAPTION_SIZE + _GAP
    paper = Image.new("RGB", (2 * width + _GAP, top + height), _PAPER)
    pen = ImageDraw.Draw(paper)
    pen.text((0, 0), _fitted(title, paper.width, _font(_TITLE_SIZE)), _INK, _font(_TITLE_SIZE))
    captions = (f"{PREDICTED}: {len(found)}", f"{TRUE}: {len(truth)}")
    for left, panel, caption in zip((0, width + _GAP), panels, captions, strict=True):
        pen.text((left, head), _fitted(caption, width, _font(_CAPTION_SIZE)), _GREY, _font(_CAPTION_SIZE))
        paper.paste(panel, (left, top))
    return paper


def snapshot_sheet(pairs: Iterable[Image.Image]) -> Image.Image:
    """Drawings of `beside_truth` below one another, on white.

    Raises:
        ValueError: none of them.
    """
    drawings = list(pairs)
    if not drawings:
        raise ValueError("there is no picture for the sheet")
    width = max(drawing.width for drawing in drawings) + 2 * _GAP
    height = sum(drawing.height + 2 * _GAP for drawing in drawings)
    sheet = Image.new("RGB", (width, height), _PAPER)
    top = _GAP
    for drawing in drawings:
        sheet.paste(drawing, (_GAP, top))
        top += drawing.height + 2 * _GAP
    return sheet


def _panel(image: Image.Image, detections: Sequence[Detection], labels: Sequence[str], scale: float) -> Image.Image:
    """The drawing of one side; the picture is reduced first, so that lines and tags keep their size."""
    if scale < 1:
        size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
        image = image.resize(size, Image.Resampling.LANCZOS)
        detections = [scaled(detection, scale) for detection in detections]
    drawing = draw_detections(image, detections, labels)
    drawing.thumbnail((_LARGEST_SIDE, _LARGEST_SIDE), Image.Resampling.LANCZOS)
    return drawing


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def _fitted(text: str, width: int, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> str:
    """The text on one line, cut to fit."""
    line = " ".join(text.split())
    if font.getlength(line) <= width:
        return line
    lengths = range(len(line))
    room = bisect_right(lengths, width, key=lambda count: math.ceil(font.getlength(line[:count] + _ELLIPSIS)))
    return line[: max(0, room - 1)].rstrip() + _ELLIPSIS
