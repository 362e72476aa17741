"""What the page does, without a web page: a picture and words in, an answer out that any threshold can be laid on.

Nothing here remembers anything: an `Answer` is all that is known of one visitor's question, and never changes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Literal, NamedTuple, Protocol

from PIL import Image, UnidentifiedImageError

from ..inference.drawing import Detection, certainty, draw_detections, scaled
from ..processing.defaults import PostProcessing
from ..processing.image_processing_grounding_dino import read_images
from ..processing.prompts import PromptText, parse_labels
from ..utils.image_files import open_image

Kind = Literal["Labels", "Sentence"]
KINDS: tuple[Kind, ...] = ("Labels", "Sentence")

FLOOR = 0.05
"""The score below which nothing is kept, and the lowest threshold of the page, unless it begins with a lower one."""

LONGEST_WORDS = 2000
MOST_PIXELS = 64_000_000
LARGEST_SHOWN_SIDE = 1600
MOST_KEPT = 1000
"""Detections of a picture, the best."""

_LOSSLESS_PIXELS = 500 * 500  # of more, PNG takes megabytes
_JPEG_QUALITY = 85

Words = str | tuple[str, ...]
"""A sentence, or labels."""


class Finder(Protocol):
    """What finds words in pictures, such as `commands.detect.Detector`."""

    @property
    def kept(self) -> PostProcessing:
        """What it keeps where a call does not say."""
        ...

    def doubts(self, prompt: PromptText) -> list[str]:
        """What is to be said of words that the model was not taught.

        Raises:
            ValueError: it was taught no word of a label.
        """
        ...

    def detect(
        self,
        image: Image.Image,
        *,
        labels: Sequence[str] | None = None,
        caption: str | None = None,
        threshold: float = FLOOR,
    ) -> list[Detection]:
        """Find what the labels or the caption name, with boxes in pixels of the picture.

        Raises:
            ValueError: it cannot look for that.
        """
        ...


def floor_of(finder: Finder) -> float:
    """The lowest threshold that an answer can be shown at."""
    return min(FLOOR, finder.kept.threshold)


class Question(NamedTuple):
    """What was asked: the digest of the picture's file, and the words."""

    picture: str
    words: Words


class Answer(NamedTuple):
    """What was found for a question, over `FLOOR`; at most 2.5 MB, as it is kept for each visitor.

    name: of the picture, without its suffix.
    picture: as it is shown, no side longer than `LARGEST_SHOWN_SIDE`; PNG or JPEG.
    scale: of the shown picture, in (0, 1] of the picture itself.
    detections: best first, with boxes in pixels of the picture itself.
    """

    question: Question
    name: str
    picture: bytes
    scale: float
    detections: tuple[Detection, ...]


def find(finder: Finder, path: str | None, words: Words, earlier: Answer | None = None) -> Answer:
    """Look for words in a picture; the model runs once, and not at all where `earlier` answers the same question.

    Args:
        finder: the model.
        path: the file of the picture.
        words: what to look for; see `words_of`.
        earlier: the visitor's answer before.

    Raises:
        ValueError: there is no picture, it cannot be read or is too large, or the words cannot be looked for.
    """
    if path is None:
        raise ValueError("No picture yet: drop one, or choose one.")
    with open(path, "rb") as file:
        question = Question(hashlib.file_digest(file, "sha256").hexdigest(), words)
    if earlier is not None and earlier.question == question:
        return earlier
    picture = read_upload(path)
    if isinstance(words, str):
        found = finder.detect(picture, caption=words, threshold=floor_of(finder))
    else:
        found = finder.detect(picture, labels=words, threshold=floor_of(finder))
    scale = min(1.0, LARGEST_SHOWN_SIDE / max(picture.size))
    if scale < 1:
        width, height = (max(1, round(side * scale)) for side in picture.size)
        picture = picture.resize((width, height), Image.Resampling.LANCZOS)
    return Answer(question, Path(path).stem or "picture", _encoded(picture), scale, tuple(found[:MOST_KEPT]))


def _encoded(picture: Image.Image) -> bytes:
    file = BytesIO()
    small = picture.width * picture.height <= _LOSSLESS_PIXELS
    picture.save(file, "PNG" if small else "JPEG", quality=_JPEG_QUALITY)
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
    """The picture in a file, upright, RGB, 8 bits; its size is known before it is unpacked.

    Raises:
        ValueError: it is not a picture, is damaged, or has more than `MOST_PIXELS`.
    """
    try:
        with open_image(path) as picture:
            width, height = picture.size
    except Image.DecompressionBombError:
        raise ValueError(f"This picture has far more than {MOST_PIXELS:,} pixels: make it smaller.") from None
    except UnidentifiedImageError:
        raise ValueError("This file is not a picture that can be read: use PNG, JPEG or WebP.") from None
    except Exception as error:  # damaged files lead decoders to errors of every kind
        raise ValueError("This picture is damaged.") from error
    if width * height > MOST_PIXELS:
        raise ValueError(f"This picture has {width:,} x {height:,} pixels: more than {MOST_PIXELS:,}, make it smaller.")
    try:
        (pixels,) = read_images([path])
    except ValueError as error:
        raise ValueError("This picture is damaged.") from error
    return Image.fromarray(pixels.permute(1, 2, 0).byte().contiguous().numpy())


# --- an answer under a threshold ---------------------------------------------------------------------------------


def above(answer: Answer, threshold: float) -> list[Detection]:
    """The detections that score above `threshold`, best first."""
    return [detection for detection in answer.detections if certainty(detection) > threshold]


def drawn(answer: Answer, threshold: float) -> Image.Image:
    """The shown picture with the boxes above `threshold`, drawn as `detect` draws them.

    A label has one colour whatever the threshold is.
    """
    words = answer.question.words
    labels = sorted({detection["label"] for detection in answer.detections}) if isinstance(words, str) else words
    with open_image(answer.picture) as picture:
        return draw_detections(picture, [scaled(one, answer.scale) for one in above(answer, threshold)], labels)


def table_rows(answer: Answer, threshold: float) -> list[list[str]]:
    """Label, score and box (left, top, right, bottom) of each detection above `threshold`, as people read them."""
    rows = []
    for detection in above(answer, threshold):
        box = detection["box"]
        corners = f"{box['xmin']}, {box['ymin']}, {box['xmax']}, {box['ymax']}"
        rows.append([" ".join(detection["label"].split()), f"{certainty(detection):.2f}", corners])
    return rows


def as_json(answer: Answer, threshold: float) -> str:
    """The detections above `threshold`, as `detect` writes them into a file."""
    return json.dumps(above(answer, threshold), indent=2, ensure_ascii=False) + "\n"


def summary(answer: Answer, threshold: float) -> str:
    """How much is above `threshold`, in a sentence."""
    shown, scores = len(above(answer, threshold)), [certainty(detection) for detection in answer.detections]
    if not scores:
        return "Nothing found."
    if not shown:
        return f"Nothing scores above {threshold:.2f}. The best scores {scores[0]:.2f}: lower the threshold."
    hidden = len(scores) - shown
    more = f" {hidden} more below." if hidden else ""
    return f"{shown} {'box scores' if shown == 1 else 'boxes score'} above {threshold:.2f}.{more}"
