"""What the app does, without a web page: an image and words in, a result out that any threshold can be laid on.

Nothing here remembers anything: a `SearchResult` is all that is known of one visitor's query, and never changes.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Literal, NamedTuple

from PIL import Image, UnidentifiedImageError

from ..data.images import load_image
from ..inference.drawing import Detection, certainty, draw_detections, scaled
from ..inference.predictor import Predictor
from ..inference.prompting import CaptionPrompt, LabelPrompt
from ..processing.defaults import DEFAULTS, PostProcessing
from ..processing.labels import parse_labels
from ..utils.image_files import open_image

Kind = Literal["Labels", "Sentence"]
KINDS: tuple[Kind, ...] = ("Labels", "Sentence")

FLOOR = 0.05
"""The score below which nothing is kept, and the lowest threshold of the app, unless it begins with a lower one."""

LONGEST_WORDS = 2000
MOST_PIXELS = 64_000_000
LARGEST_SHOWN_SIDE = 1600
MOST_KEPT = 1000
"""Detections of an image, the best."""

_LOSSLESS_PIXELS = 500 * 500  # of more, PNG takes megabytes
_JPEG_QUALITY = 85

Words = str | tuple[str, ...]
"""A sentence, or labels."""


class Query(NamedTuple):
    """What was asked: the digest of the image's file, and the words."""

    image: str
    words: Words


class SearchResult(NamedTuple):
    """What was found for a query, over `FLOOR`; at most 2.5 MB, as it is kept for each visitor.

    name: of the image, without its suffix.
    image: as it is shown, no side longer than `LARGEST_SHOWN_SIDE`; PNG or JPEG.
    scale: of the shown image, in (0, 1] of the image itself.
    detections: best first, with boxes in pixels of the image itself.
    """

    query: Query
    name: str
    image: bytes
    scale: float
    detections: tuple[Detection, ...]


def search(
    predictor: Predictor,
    path: str | None,
    words: Words,
    earlier: SearchResult | None = None,
    post: PostProcessing = DEFAULTS,
) -> SearchResult:
    """Look for words in an image; the model runs once, and not at all where `earlier` answers the same query.

    Args:
        predictor: the model.
        path: the file of the image.
        words: what to look for; see `words_of`.
        earlier: the visitor's result before.
        post: which boxes are kept.

    Raises:
        ValueError: there is no image, it cannot be read or is too large, or the words cannot be looked for.
    """
    if path is None:
        raise ValueError("No image yet: drop one, or choose one.")
    with open(path, "rb") as file:
        query = Query(hashlib.file_digest(file, "sha256").hexdigest(), words)
    if earlier is not None and earlier.query == query:
        return earlier
    image = read_upload(path)
    found = predictor.predict(image, prompt(words, post)).detections
    scale = min(1.0, LARGEST_SHOWN_SIDE / max(image.size))
    if scale < 1:
        width, height = (max(1, round(side * scale)) for side in image.size)
        image = image.resize((width, height), Image.Resampling.LANCZOS)
    return SearchResult(query, Path(path).stem or "image", _encoded(image), scale, tuple(found[:MOST_KEPT]))


def prompt(words: Words, post: PostProcessing = DEFAULTS) -> LabelPrompt | CaptionPrompt:
    """The words as a prompt, of which all is kept that scores above the lowest threshold of the app."""
    post = replace(post, threshold=floor_of(post))
    return CaptionPrompt(words, post) if isinstance(words, str) else LabelPrompt(words, post)


def floor_of(post: PostProcessing) -> float:
    """The lowest threshold that a result can be shown at."""
    return min(FLOOR, post.threshold)


def _encoded(image: Image.Image) -> bytes:
    file = BytesIO()
    small = image.width * image.height <= _LOSSLESS_PIXELS
    image.save(file, "PNG" if small else "JPEG", quality=_JPEG_QUALITY)
    return file.getvalue()


def words_of(kind: Kind, text: str) -> Words:
    """What the visitor wants: the sentence, or the labels between commas and lines, each once.

    Double quotes keep a label with a comma together; empty labels are passed over.

    Raises:
        ValueError: there are no words, or too many.
    """
    text = text.strip()
    if len(text) > LONGEST_WORDS:
        raise ValueError(f"These words have {len(text):,} characters; {LONGEST_WORDS:,} are possible.")
    if kind == "Sentence":
        if not text:
            raise ValueError("No sentence yet: write what to look for, such as: a red square and a cyan star.")
        return text
    try:
        return tuple(parse_labels([text], skip_empty=True))
    except ValueError:
        raise ValueError("No labels yet: write what to look for, such as: red square, cyan star.") from None


def read_upload(path: str) -> Image.Image:
    """The image in a file, upright, RGB, 8 bits; its size is known before it is unpacked.

    Raises:
        ValueError: it is not an image, is damaged, or has more than `MOST_PIXELS`.
    """
    try:
        with open_image(path) as image:
            width, height = image.size
    except Image.DecompressionBombError:
        raise ValueError(f"This image has far more than {MOST_PIXELS:,} pixels: make it smaller.") from None
    except UnidentifiedImageError:
        raise ValueError("This file is not an image that can be read: use PNG, JPEG or WebP.") from None
    except Exception as error:  # damaged files lead decoders to errors of every kind
        raise ValueError("This image is damaged.") from error
    if width * height > MOST_PIXELS:
        raise ValueError(f"This image has {width:,} x {height:,} pixels: more than {MOST_PIXELS:,}, make it smaller.")
    try:
        return load_image(Path(path))
    except ValueError as error:
        raise ValueError("This image is damaged.") from error


# --- a result under a threshold ---------------------------------------------------------------------------------


def above(result: SearchResult, threshold: float) -> list[Detection]:
    """The detections that score above `threshold`, best first."""
    return [detection for detection in result.detections if certainty(detection) > threshold]


def drawn(result: SearchResult, threshold: float) -> Image.Image:
    """The shown image with the boxes above `threshold`, drawn as `detect` draws them.

    A label has one colour whatever the threshold is.
    """
    words = result.query.words
    labels = sorted({detection["label"] for detection in result.detections}) if isinstance(words, str) else words
    with open_image(result.image) as image:
        return draw_detections(image, [scaled(one, result.scale) for one in above(result, threshold)], labels)


def table_rows(result: SearchResult, threshold: float) -> list[list[str]]:
    """Label, score and box (left, top, right, bottom) of each detection above `threshold`, as people read them."""
    rows = []
    for detection in above(result, threshold):
        box = detection["box"]
        corners = f"{box['xmin']}, {box['ymin']}, {box['xmax']}, {box['ymax']}"
        rows.append([" ".join(detection["label"].split()), f"{certainty(detection):.2f}", corners])
    return rows


def as_json(result: SearchResult, threshold: float) -> str:
    """The detections above `threshold`, as `detect` writes them into a file."""
    return json.dumps(above(result, threshold), indent=2, ensure_ascii=False) + "\n"


def summary(result: SearchResult, threshold: float) -> str:
    """How much is above `threshold`, in a sentence."""
    shown, scores = len(above(result, threshold)), [certainty(detection) for detection in result.detections]
    if not scores:
        return "Nothing found."
    if not shown:
        return f"Nothing scores above {threshold:.2f}. The best scores {scores[0]:.2f}: lower the threshold."
    hidden = len(scores) - shown
    more = f" {hidden} more below." if hidden else ""
    return f"{shown} {'box scores' if shown == 1 else 'boxes score'} above {threshold:.2f}.{more}"
