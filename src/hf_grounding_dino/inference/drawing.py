"""Detections drawn on their image: a box each, and a tag with its label and score."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, TypedDict, cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

Color = tuple[int, int, int]
Edges = NDArray[np.int64]  # left, top, right, bottom in each row
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

# Okabe and Ito's colours, which stay apart for colour-blind eyes, then darker and lighter ones after Paul Tol.
PALETTE: tuple[Color, ...] = (
    (230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66), (0, 114, 178), (213, 94, 0), (204, 121, 167),
    (51, 34, 136), (136, 204, 238), (153, 153, 51), (136, 34, 85), (221, 221, 221),
)  # fmt: skip

_BLACK: Color = (0, 0, 0)
_WHITE: Color = (255, 255, 255)
_LEGIBLE_SIDE = 640
_LARGEST_ENLARGED_SIDE = 2560
_FONT_SHARE = 0.026
_SMALLEST_FONT = 12
_LINE_SHARE = 0.0045
_ELLIPSIS = "\u2026"
_LONGEST_LABEL = 200
_STEPS = 8
_HIDDEN_STEPS = 4
# Black on a lighter and white on a darker colour both have at least the contrast of 4.5 that WCAG 2 asks for.
_LUMINANCE_FOR_BLACK_TEXT = 0.179


class Box(TypedDict):
    """A box in pixels of the upright image."""

    xmin: int
    ymin: int
    xmax: int
    ymax: int


class Detection(TypedDict):
    """One thing, in the form of the pipelines of transformers; what is known to be there has no score."""

    score: float | None
    label: str
    box: Box


def scaled(detection: Detection, scale: float) -> Detection:
    """The detection on the image in another size."""
    box = detection["box"]
    left, top, right, bottom = (round(side * scale) for side in (box["xmin"], box["ymin"], box["xmax"], box["ymax"]))
    return {**detection, "box": Box(xmin=left, ymin=top, xmax=right, ymax=bottom)}


def certainty(detection: Detection) -> float:
    """Its score, 1 for what is known to be there."""
    score = detection["score"]
    return 1.0 if score is None else score


class Rectangle(NamedTuple):
    """Pixels of the drawing, `[left, right)` by `[top, bottom)`."""

    left: int
    top: int
    right: int
    bottom: int


class Tag(NamedTuple):
    """A text and where it is drawn."""

    text: str
    rectangle: Rectangle


def draw_detections(
    image: Image.Image, detections: Sequence[Detection] | dict[str, Any], labels: Iterable[str] = ()
) -> Image.Image:
    """Draw detections on a copy of their image.

    A small image is enlarged by a whole number, so that the tags can be read. A tag that cannot lie inside the
    image, one of a few pixels' width say, is left out.

    Args:
        image: the image.
        detections: what was found in it: by the pipeline, which sees images upright, so that this one is turned as
            its EXIF orientation says; or one result of a `post_process_...` of the processor, which takes images as
            they lie, with boxes in pixels or in [0, 1].
        labels: all labels that were looked for, for the same colours in every image; see `label_colors`.
    """
    from ..processing.image_processing_grounding_dino import upright  # heavy imports, for which help has no time
    from ..processing.post_processing import listed

    if isinstance(detections, dict):
        detections = cast(list[Detection], listed(detections, image.size))
    else:
        image = upright(image)
    factor = enlargement(image.size)
    drawing = image.convert("RGB")
    if factor > 1:
        drawing = drawing.resize((image.width * factor, image.height * factor), Image.Resampling.BICUBIC)
    colors = label_colors([*labels, *sorted({detection["label"] for detection in detections})])
    frames = [box_frame(detection["box"], factor, drawing.size) for detection in detections]
    pen = ImageDraw.Draw(drawing)
    line = max(2, round(min(drawing.size) * _LINE_SHARE))
    # Large boxes first: the lines of what lies in them stay whole. All boxes before all tags, for the same reason.
    for i in sorted(range(len(frames)), key=lambda i: -_area(frames[i])):
        _draw_frame(pen, frames[i], colors[detections[i]["label"]], line)
    font = _font(drawing.size)
    tags = place_tags(drawing.size, detections, frames, font)
    for detection, tag in zip(detections, tags, strict=True):
        if tag is not None:
            _draw_tag(pen, tag, colors[detection["label"]], font)
    return drawing


def label_colors(labels: Iterable[str]) -> dict[str, Color]:
    """A colour for each label, by its place in the list; more labels than colours share them."""
    return {label: PALETTE[i % len(PALETTE)] for i, label in enumerate(dict.fromkeys(labels))}


def text_color(background: Color) -> Color:
    """Black or white, whichever is read better on `background`."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (v / 255 for v in background)]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return _BLACK if luminance > _LUMINANCE_FOR_BLACK_TEXT else _WHITE


def enlargement(size: tuple[int, int]) -> int:
    """How many times larger an image of this size is drawn."""
    wanted = math.ceil(_LEGIBLE_SIDE / min(size))
    return max(1, min(wanted, _LARGEST_ENLARGED_SIDE // max(size)))


def box_frame(box: Box, factor: int, size: tuple[int, int]) -> Rectangle:
    """The pixels of the drawing inside a box, one at least."""
    left, right = _interval(box["xmin"] * factor, box["xmax"] * factor, size[0])
    top, bottom = _interval(box["ymin"] * factor, box["ymax"] * factor, size[1])
    return Rectangle(left, top, right, bottom)


def _interval(start: int, end: int, length: int) -> tuple[int, int]:
    start = min(max(start, 0), length - 1)
    return start, min(max(end, start + 1), length)


def _area(frame: Rectangle) -> int:
    return (frame.right - frame.left) * (frame.bottom - frame.top)


def _font(size: tuple[int, int]) -> Font:
    return ImageFont.load_default(max(_SMALLEST_FONT, round(min(size) * _FONT_SHARE)))


def _draw_frame(pen: ImageDraw.ImageDraw, frame: Rectangle, color: Color, line: int) -> None:
    left, top, right, bottom = frame.left, frame.top, frame.right - 1, frame.bottom - 1
    # An edge of the other brightness keeps the line visible on a ground of its own colour.
    edge = max(1, line // 4)
    pen.rectangle((left - edge, top - edge, right + edge, bottom + edge), outline=text_color(color), width=edge)
    pen.rectangle((left, top, right, bottom), outline=color, width=line)


def _draw_tag(pen: ImageDraw.ImageDraw, tag: Tag, color: Color, font: Font) -> None:
    left, top, right, bottom = tag.rectangle
    pen.rectangle((left, top, right - 1, bottom - 1), fill=color)
    pen.text(((left + right) / 2, (top + bottom) / 2), tag.text, fill=text_color(color), font=font, anchor="mm")


# --- where the tags go -------------------------------------------------------------------------------------------


def place_tags(
    size: tuple[int, int], detections: Sequence[Detection], frames: Sequence[Rectangle], font: Font
) -> list[Tag | None]:
    """A place for each tag inside a drawing of this size, the best detections first; None where there is none."""
    tags: list[Tag | None] = [None] * len(detections)
    frame_edges = np.array(frames).reshape(-1, 4)
    tag_edges = np.zeros((len(detections), 4), dtype=np.int64)  # an empty rectangle overlaps nothing
    for i in sorted(range(len(detections)), key=lambda i: -certainty(detections[i])):
        widest = min(size[0], max(size[0] // 2, frames[i].right - frames[i].left))
        text, width, height = _fitted_text(detections[i], widest, font)
        if width <= size[0] and height <= size[1]:
            place = _best_place(_places(frames[i], (width, height), size), tag_edges, frame_edges)
            tag_edges[i] = place
            tags[i] = Tag(text, place)
    return tags


def _fitted_text(detection: Detection, widest: int, font: Font) -> tuple[str, int, int]:
    """The text of a tag, its label cut to fit, and the tag's width and height."""
    label, score = " ".join(detection["label"].split()), detection["score"]
    number = "" if score is None else f" {score:.2f}"
    _, top, _, bottom = font.getbbox("Ag|j")
    height = round((bottom - top) * 1.3)
    shorter = (f"{label[:n].rstrip()}{_ELLIPSIS}{number}" for n in range(min(len(label) - 1, _LONGEST_LABEL), 0, -1))
    for text in (f"{label}{number}", *shorter, number.strip() or _ELLIPSIS):
        width = math.ceil(font.getlength(text)) + round(height * 0.5)
        if width <= widest:
            break
    return text, width, height


def _places(frame: Rectangle, tag_size: tuple[int, int], size: tuple[int, int]) -> dict[Rectangle, int]:
    """Where a tag may go, the better places first, each with how far off it is.

    0: above the box, below or inside its corners; then up and down its sides.
    """
    width, height = tag_size
    left, right = frame.left, frame.right - width
    places: dict[Rectangle, int] = {}

    def add(xs: Sequence[int], ys: Sequence[int], remoteness: int) -> None:
        for y in ys:
            for x in xs:
                x0, y0 = min(max(x, 0), size[0] - width), min(max(y, 0), size[1] - height)
                places.setdefault(Rectangle(x0, y0, x0 + width, y0 + height), remoteness)

    add((left, right), (frame.top - height, frame.bottom, frame.top, frame.bottom - height), 0)
    for step in range(1, _STEPS + 1):
        ys = (frame.top + step * height, frame.top - (step + 1) * height)
        add((left, right, frame.right, frame.left - width), ys, step)
    return places


def _best_place(places: Mapping[Rectangle, int], tags: Edges, frames: Edges) -> Rectangle:
    """The place that covers least of the tags, then the nearest, then what hides least in the boxes, then the first."""
    edges = np.array(list(places))
    over_tags = _overlaps(edges, tags).sum(1)
    # How many boxes' worth of things are hidden: a small thing under a tag is lost, a large one is not. Coarse, so
    # that tags keep to their usual places unless it matters.
    areas = (frames[:, 2] - frames[:, 0]) * (frames[:, 3] - frames[:, 1])
    hidden = np.round(_HIDDEN_STEPS * (_overlaps(edges, frames) / areas).sum(1))
    order = np.lexsort((np.arange(len(edges)), hidden, np.array(list(places.values())), over_tags))
    return list(places)[int(order[0])]


def _overlaps(some: Edges, others: Edges) -> NDArray[np.int64]:
    """The area that each pair has in common, `(len(some), len(others))`."""
    left, top, right, bottom = some.T[:, :, None]
    widths = np.minimum(right, others[:, 2]) - np.maximum(left, others[:, 0])
    heights = np.minimum(bottom, others[:, 3]) - np.maximum(top, others[:, 1])
    common: NDArray[np.int64] = widths.clip(min=0) * heights.clip(min=0)
    return common
