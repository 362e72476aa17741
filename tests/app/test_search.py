"""What the app does: one run of the model a question, any threshold after it, and what it says of bad input."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from app.fake_predictor import SCORES, CountingPredictor, image_file
from hf_grounding_dino.app.search import (
    FLOOR,
    LARGEST_SHOWN_SIDE,
    LONGEST_WORDS,
    MOST_KEPT,
    SearchResult,
    above,
    as_json,
    drawn,
    search,
    summary,
    table_rows,
    words_of,
)
from hf_grounding_dino.assets import DEMO_IMAGE, DEMO_LABELS
from hf_grounding_dino.cli.detect import load_detector
from hf_grounding_dino.inference.drawing import draw_detections
from hf_grounding_dino.inference.prompting import LabelPrompt
from odd_server import png_head


def kept_image(result: SearchResult) -> Image.Image:
    return Image.open(io.BytesIO(result.image))


class Prolific(CountingPredictor):
    """Finds the same ten thousand times."""

    def predict(self, image: Image.Image, prompt: Any) -> Any:
        found = super().predict(image, prompt)
        found.detections *= 2500
        return found


def test_what_is_kept_of_a_visitor_is_little(tmp_path: Path) -> None:
    """Noise, which no encoder makes small, in the largest image that is shown, and 10,000 boxes: 2.5 MB."""
    noise = np.random.default_rng(0).integers(0, 256, (LARGEST_SHOWN_SIDE, LARGEST_SHOWN_SIDE, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "noise.bmp")
    result = search(Prolific(), str(tmp_path / "noise.bmp"), ("x" * LONGEST_WORDS,))
    assert len(result.detections) == MOST_KEPT
    assert memory_of(result) < 2.5e6


def memory_of(*values: Any) -> int:
    """Of all objects in these, each counted once: a label is one string, however often it is found."""
    parts: dict[int, Any] = {}
    waiting = list(values)
    while waiting:
        value = waiting.pop()
        if id(value) not in parts:
            parts[id(value)] = value
            waiting += (
                [*value, *value.values()] if isinstance(value, dict) else value if isinstance(value, tuple) else []
            )
    return sum(map(sys.getsizeof, parts.values()))


def test_a_small_image_is_kept_as_it_is(tmp_path: Path) -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 70, 3), dtype=np.uint8))
    noise.save(tmp_path / "a.png")
    result = search(CountingPredictor(), str(tmp_path / "a.png"), ("cat",))
    assert np.array_equal(np.asarray(kept_image(result)), np.asarray(noise))


def test_the_model_runs_once_for_a_image_and_words(tmp_path: Path) -> None:
    """Asked twice: 1 call. Other words: 2. The same pixels under another name: still 2. Another image: 3."""
    predictor, path = CountingPredictor(), image_file(tmp_path / "a.png")
    first = search(predictor, path, ("cat",))
    assert search(predictor, path, ("cat",), first) is first
    assert len(predictor.calls) == 1
    second = search(predictor, path, "a cat", first)
    assert predictor.calls[1:] == [((100, 80), "a cat")]
    assert search(predictor, image_file(tmp_path / "b.png"), "a cat", second) is second
    search(predictor, image_file(tmp_path / "c.png", color=(1, 2, 3)), "a cat", second)
    assert len(predictor.calls) == 3


@pytest.mark.parametrize(("threshold", "kept"), [(FLOOR, 4), (0.1, 3), (0.29, 3), (0.3, 2), (0.89, 1), (1.0, 0)])
def test_a_threshold_keeps_what_scores_above_it(tmp_path: Path, threshold: float, kept: int) -> None:
    """Of 0.9, 0.5, 0.3 and 0.1; drawing, table and JSON agree, and the model is not asked again."""
    predictor = CountingPredictor()
    result = search(predictor, image_file(tmp_path / "a.png"), ("cat", "dog"))
    assert [one["score"] for one in above(result, threshold)] == list(SCORES[:kept])
    assert json.loads(as_json(result, threshold)) == above(result, threshold)
    rows = [["cat", "0.90", "0, 5, 10, 15"], ["dog", "0.50", "20, 5, 30, 15"], ["cat", "0.30", "40, 5, 50, 15"]]
    assert table_rows(result, threshold)[:3] == rows[:kept]
    drawing = draw_detections(kept_image(result), list(result.detections[:kept]), ("cat", "dog"))
    assert drawn(result, threshold).tobytes() == drawing.tobytes()
    assert len(predictor.calls) == 1


def test_the_sentence_says_how_much_is_hidden(tmp_path: Path) -> None:
    result = search(CountingPredictor(), image_file(tmp_path / "a.png"), ("cat",))
    assert summary(result, 0.05) == "4 boxes score above 0.05."
    assert summary(result, 0.25) == "3 boxes score above 0.25. 1 more below."
    assert summary(result, 0.6) == "1 box scores above 0.60. 3 more below."
    assert summary(result, 0.95) == "Nothing scores above 0.95. The best scores 0.90: lower the threshold."
    assert summary(result._replace(detections=()), 0.25) == "Nothing found."


def test_a_large_image_is_shown_smaller_and_measured_as_it_is(tmp_path: Path) -> None:
    """3,200 x 800 is shown as 1,600 x 400, so the box from x = 20 to 30 is drawn from 10 to 15 and listed as it is."""
    result = search(predictor := CountingPredictor(), image_file(tmp_path / "wide.jpg", (3200, 800)), ("cat",))
    assert predictor.calls[0][0] == (3200, 800)
    assert kept_image(result).size == (LARGEST_SHOWN_SIDE, 400) and result.scale == 0.5
    assert json.loads(as_json(result, 0.4))[1]["box"] == {"xmin": 20, "ymin": 5, "xmax": 30, "ymax": 15}
    assert drawn(result, 0.4).width < 3200
    found = [{**result.detections[1], "box": {"xmin": 10, "ymin": 2, "xmax": 15, "ymax": 8}}]
    only = result._replace(detections=result.detections[1:2])
    assert drawn(only, 0.4).tobytes() == draw_detections(kept_image(result), found, ("cat",)).tobytes()


# --- words -------------------------------------------------------------------------------------------------------


def test_labels_between_commas_and_lines() -> None:
    assert words_of("Labels", " red square, cyan star\nRing,, cyan star,\n") == ("red square", "cyan star", "Ring")
    assert words_of("Labels", '"salt, pepper", egg') == ("salt, pepper", "egg")
    assert words_of("Sentence", " a cat, and a dog ") == "a cat, and a dog"


@pytest.mark.parametrize("text", ["", "  \n ", ", ,\n", '""'])
def test_no_labels(text: str) -> None:
    with pytest.raises(ValueError, match="No labels yet"):
        words_of("Labels", text)


def test_no_sentence() -> None:
    with pytest.raises(ValueError, match="No sentence yet"):
        words_of("Sentence", " \n")


@pytest.mark.parametrize("kind", ["Labels", "Sentence"])
def test_very_many_words(kind: str) -> None:
    with pytest.raises(ValueError, match="have 100,000 characters; 2,000 are possible"):
        words_of(kind, "x" * 100_000)
    assert words_of(kind, "x" * LONGEST_WORDS)


# --- images ----------------------------------------------------------------------------------------------------


def png_of_size(path: Path, width: int, height: int) -> str:
    path.write_bytes(png_head(width, height))
    return str(path)


def test_what_is_no_image(tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("not an image")
    (tmp_path / "empty.png").touch()
    whole = Path(image_file(tmp_path / "whole.png", (300, 300))).read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
    messages = {
        str(tmp_path / "text.png"): "not an image that can be read",
        str(tmp_path / "empty.png"): "not an image that can be read",
        str(tmp_path / "cut.png"): "is damaged",
        png_of_size(tmp_path / "large.png", 9_000, 9_000): "has 9,000 x 9,000 pixels: more than 64,000,000",
        png_of_size(tmp_path / "bomb.png", 40_000, 40_000): "far more than 64,000,000 pixels",
    }
    predictor = CountingPredictor()
    for path, message in messages.items():
        with pytest.raises(ValueError, match=message) as error:
            search(predictor, path, ("cat",))
        assert str(tmp_path) not in str(error.value)
    with pytest.raises(ValueError, match="No image yet"):
        search(predictor, None, ("cat",))
    assert not predictor.calls


def test_a_image_that_lies_on_its_side_is_turned(tmp_path: Path) -> None:
    """Orientation 6 turns 60 x 30 into 30 x 60."""
    exif = Image.Exif()
    exif[274] = 6
    Image.new("RGB", (60, 30)).save(tmp_path / "side.jpg", exif=exif)
    predictor = CountingPredictor()
    search(predictor, str(tmp_path / "side.jpg"), ("cat",))
    assert predictor.calls[0][0] == (30, 60)


def test_it_finds_what_detect_finds() -> None:
    """With the model that ships: the app above 0.25 is what `detect` gives at 0.25, all eight shapes."""
    predictor = load_detector("nano")
    result = search(predictor, str(DEMO_IMAGE), DEMO_LABELS)
    expected = predictor.predict(DEMO_IMAGE, LabelPrompt(DEMO_LABELS)).detections
    assert above(result, 0.25) == expected and len(expected) == len(DEMO_LABELS)
