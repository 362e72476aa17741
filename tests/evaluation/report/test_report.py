"""The report: whole in one file, true to its numbers, and safe whatever labels and pictures hold."""

from __future__ import annotations

import base64
import io
import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from hf_grounding_dino.evaluation.metrics.base import ScoredBoxes
from hf_grounding_dino.evaluation.metrics.coco import ClassResult
from hf_grounding_dino.evaluation.published import Published
from hf_grounding_dino.evaluation.report import Facts, finite, make_report, metrics, write_report
from hf_grounding_dino.evaluation.report.diagnostics import Error, Mark
from hf_grounding_dino.evaluation.report.images import FOUND_COLOR, TRUTH_COLOR, error_image, view_of
from hf_grounding_dino.evaluation.report.page import confusion_matrix, headline_rows
from hf_grounding_dino.evaluation.tasks import Sample

EVIL = "<script>alert('label')</script>"
LABELS = {1: EVIL, 2: 'a "b" & c', 3: "ring"}
KEYS = [
    *("format", "task", "data", "model", "date", "metrics", "published", "warnings", "per_class", "protocol"),
    *("counts", "missing", "unreadable", "speed", "limits", "calibration", "best_threshold", "errors"),
    *("confusion", "by_length", "command", "versions"),
]


class Boxes:
    """A task with labels, as far as a report asks it."""

    name = "boxes <b>of</b> the test"
    labels = LABELS


class Sentences:
    """A task with sentences."""

    name = "sentences"
    labels: dict[int, str] = {}


def made_pairs(count: int = 20, text: str = "") -> list[tuple[Sample, ScoredBoxes]]:
    """Images with one truth each, in turn found, called by the next label, and missed."""
    pairs = []
    for i in range(count):
        image = Image.fromarray(np.random.default_rng(i).integers(0, 255, (90, 120, 3), dtype=np.uint8))
        label = 1 + i % 3 if not text else 0
        reference = {"image_id": i, "boxes": [[10, 10, 50, 60]], "labels": [label]}
        box = [[12, 9, 52, 58]] if i % 3 != 2 or text else [[80, 60, 110, 80]]
        said = label if i % 3 != 1 or text else label % 3 + 1
        answer = ScoredBoxes(np.array(box, np.float32), np.array([0.5 + i / 100], np.float32), np.array([said]))
        pairs.append((Sample(i, image, reference, text), answer))
    return pairs


def class_results() -> list[ClassResult]:
    curve = np.linspace(1, 0.2, 101)
    there = [ClassResult(label, 0.5, 0.7, 0.6, 0.8, 7, 9, curve) for label in (1, 2)]
    return [*there, ClassResult(3, -1.0, -1.0, -1.0, -1.0, 0, 2, np.full(101, -1.0))]


def facts(**fields: Any) -> Facts:
    known: dict[str, Any] = {
        "model": "org/model",
        "data": EVIL,
        "date": "2026-01-31",
        "samples": 20,
        "scored": 20,
        "protocol": {"top_k": 300, "nms": None, "prompt": EVIL, "labels": [EVIL] * 40},
        "published": (Published("a paper", "AP", 0.484, "zero-shot"), Published("a list", "AP", 0.5)),
        "missing": (f"{EVIL}.jpg",),
    }
    return Facts(**{**known, **fields})


def written(folder: Path, pairs: list[tuple[Sample, ScoredBoxes]], numbers: dict[str, float], **options: Any) -> str:
    task: Any = options.pop("task", Boxes())
    report = make_report(task, iter(pairs), numbers, options.pop("facts", facts()), **options)
    write_report(report, folder)
    return (folder / "index.html").read_text("utf-8")


class Page(HTMLParser):
    """Tags, their attributes, and the text of a page outside its style and script."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self._inside = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._inside = tag
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside not in ("style", "script"):
            self.text += f"{data} "


def test_what_labels_hold_is_text_and_never_markup(tmp_path: Path) -> None:
    """One script, the page's own; the label's stands in the text as it is."""
    page = Page(written(tmp_path, made_pairs(), {"AP": 0.45}, classes=class_results()))
    assert [tag for tag, _ in page.tags].count("script") == 1
    assert "b" not in {tag for tag, attrs in page.tags if attrs.get("class") == "soft"}
    assert page.text.count(EVIL) >= 6
    assert 'a "b" & c' in page.text
    assert "boxes <b>of</b> the test" in page.text


def test_the_page_needs_nothing_else(tmp_path: Path) -> None:
    """No address in it but data: and the page's own; images are JPEGs of at most 320 pixels."""
    text = written(tmp_path, made_pairs(), {"AP": 0.45}, classes=class_results())
    page = Page(text)
    sources = [value for _, attrs in page.tags for name, value in attrs.items() if name in ("src", "href", "srcset")]
    assert sources
    for source in sources:
        assert source is not None
        head, content = source.split(",")
        assert head == "data:image/jpeg;base64"
        assert max(Image.open(io.BytesIO(base64.b64decode(content))).size) <= 320
    assert not re.search(r"url\(|@import|https?://", text)
    assert len(text) < 5_000_000


def test_ours_stands_beside_the_published(tmp_path: Path) -> None:
    """45.0 beside 48.4 and 50.0: 3.4 and 5.0 points less; a number nobody published stands alone, -1 is a dash."""
    rows = headline_rows({"AP": 0.45, "APl": -1.0}, facts().published)
    assert [(row.metric, row.difference) for row in rows] == [("AP", "−3.4"), ("AP", "−5.0"), ("APl", "–")]
    page = Page(written(tmp_path, made_pairs(), {"AP": 0.45, "APl": -1.0}))
    assert {"45.0", "48.4", "−3.4"} <= set(page.text.split())
    with pytest.raises(ValueError, match=r"AP of 'a paper' is 48\.4; write 48\.4 % as 0\.484"):
        Published("a paper", "AP", 48.4)


def test_metrics_are_finite_json_with_the_same_keys_always(tmp_path: Path) -> None:
    """NaN and infinite numbers become null, ids in keys text; whatever the task, the keys are the same."""
    odd = facts(protocol={1: math.nan, "size": np.int64(3), "all": np.array([0.5, math.inf]), "path": tmp_path})
    written(tmp_path / "a", made_pairs(), {"AP": math.nan, "AP50": 0.5}, classes=class_results(), facts=odd)
    read = json.loads((tmp_path / "a" / "metrics.json").read_text("utf-8"), parse_constant=pytest.fail)
    assert list(read) == KEYS
    assert read["metrics"] == {"AP": None, "AP50": 0.5}
    assert read["protocol"] == {"1": None, "size": 3, "all": [0.5, None], "path": str(tmp_path)}
    assert [row["AP"] for row in read["per_class"]] == [0.5, 0.5, -1.0]
    written(tmp_path / "b", made_pairs(text="the ring"), {"P@1": 1.0}, task=Sentences())
    assert list(json.loads((tmp_path / "b" / "metrics.json").read_text("utf-8"))) == KEYS
    assert finite((np.float32("nan"), True, None)) == [None, True, None]


def test_counts_of_the_report_are_those_of_the_answers() -> None:
    """20 images: 7 found (0, 3, ...), 7 called by the next label (1, 4, ...), 6 with a box elsewhere (2, 5, ...)."""
    content = metrics(make_report(Boxes(), made_pairs(), {"AP": 0.3}, facts()))  # type: ignore[arg-type]
    assert content["errors"] == {"Cls": 7, "Loc": 0, "Both": 0, "Dupe": 0, "Bkg": 6, "Miss": 6}
    assert content["counts"] == {
        **{"samples": 20, "scored": 20, "missing": 1, "unreadable": 0},
        **{"truths": 20, "without_boxes": 0},
    }
    assert [(row["truth"], row["called"], row["times"]) for row in content["confusion"]] == [('a "b" & c', "ring", 7)]
    assert sum(row["right"] for row in content["calibration"]["bins"]) == 7


@pytest.mark.parametrize("task", [Boxes(), Sentences()])
def test_an_evaluation_without_answers_has_a_report(tmp_path: Path, task: Any) -> None:
    page = Page(written(tmp_path, [], {"AP": -1.0}, task=task, facts=facts(scored=0)))
    assert "Only 0 of 20 samples" in page.text


def test_images_that_are_gone_are_said_to_be(tmp_path: Path) -> None:
    """One called by another label and one far off: two boxes that are wrong, and one object missed."""
    pairs = [(sample._replace(image=Path("nowhere.png")), answer) for sample, answer in made_pairs(3)]
    page = Page(written(tmp_path, pairs, {"AP": 0.3}))
    assert page.text.count("the image cannot be read") == 3


def test_both_frames_are_seen_where_they_are_the_same() -> None:
    """On a grey image, one box for both: pixels of either colour, as far as JPEG keeps them."""
    box = (30.0, 20.0, 70.0, 60.0)
    error = Error(1, Image.new("RGB", (120, 90), (120, 120, 120)), "", Mark(box, "a"), Mark(box, "b", 0.5), 1.0)
    address = error_image(error)
    assert address is not None
    pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(address.split(",")[1]))), dtype=np.int64)
    for color in (TRUTH_COLOR, FOUND_COLOR):
        assert (np.abs(pixels - np.array(color)).max(-1) < 60).sum() > 100


def test_the_view_holds_the_boxes_and_stays_inside() -> None:
    """A box of 10 x 10 in a corner of 640 x 480: 96 pixels of it are shown, from the corner; a large one, all."""
    assert view_of([(0, 0, 10, 10)], (640, 480))[:4] == (0, 0, 96, 96)
    assert view_of([(100, 100, 500, 400)], (640, 480))[:4] == (0, 0, 640, 480)
    assert view_of([(600, 440, 640, 480)], (640, 480))[:4] == (544, 384, 640, 480)


def test_many_labels_have_no_matrix() -> None:
    called = {(1, 1): 3, (1, 2): 1, (None, 2): 4}
    matrix = confusion_matrix(called, {1: "a", 2: "b"})
    assert [(name, [count for count, _ in cells]) for name, cells in matrix] == [
        ("a", [3, 1, 0]),
        ("b", [0, 0, 0]),
        ("background", [0, 4, 0]),
    ]
    assert confusion_matrix(called, {i: str(i) for i in range(31)}) == []
