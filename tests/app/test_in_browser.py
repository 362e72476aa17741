"""The app in a real browser, with the model that ships: `pytest -m browser`, with playwright and Chromium there.

APP_SCREENSHOTS=FOLDER keeps images of each visit, for people to look at.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hf_grounding_dino.app.web import make_app, start
from hf_grounding_dino.assets import DEMO_IMAGE
from hf_grounding_dino.cli.detect import load_detector
from hf_grounding_dino.inference.predictor import Predictor

pytestmark = pytest.mark.browser
PATIENCE = 30_000
WIDTHS = {"desktop": 1280, "phone": 400}


class Counted(Predictor):
    """The model that ships, and how often it ran."""

    def __init__(self) -> None:
        nano = load_detector("nano")
        super().__init__(nano.model, nano.processor)
        self.calls = 0

    def predict(self, image: Any, prompt: Any) -> Any:
        self.calls += 1
        return super().predict(image, prompt)


@pytest.fixture(scope="module")
def predictor() -> Counted:
    return Counted()


@pytest.fixture(scope="module")
def address(predictor: Counted, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADIO_TEMP_DIR", str(tmp_path_factory.mktemp("gradio")))
        app = make_app(predictor, "A note about the model.")
        yield start(app, host="127.0.0.1")
        app.close()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        yield chromium
        chromium.close()


class Visit:
    """One visitor's window."""

    def __init__(self, browser: Any, address: str, device: str = "desktop", colors: str = "light") -> None:
        size = {"width": WIDTHS[device], "height": 860}
        self.name = f"{device}-{colors}"
        self.window = browser.new_context(viewport=size, color_scheme=colors, accept_downloads=True).new_page()
        self.window.set_default_timeout(PATIENCE)
        self.elsewhere: list[str] = []
        self.window.on("request", lambda request: self._note(request.url, address))
        self.window.goto(address)
        self.window.wait_for_selector("#find")

    def _note(self, url: str, address: str) -> None:
        if not url.startswith((address, "data:", "blob:")):
            self.elsewhere.append(url)

    def ask(self, words: str, image: Path = DEMO_IMAGE) -> None:
        self.window.set_input_files("#image input[type=file]", str(image))
        self.window.wait_for_selector("#image img")
        self.window.fill("#words textarea", words)
        self.window.click("#find")

    def sees(self, part: str, text: str) -> None:
        """Wait until a part of the app says it."""
        self.window.locator(part).filter(has_text=text).wait_for()

    def lists(self, *labels: str) -> None:
        """Wait until the table has a row for each of these labels, and see that it has no other row."""
        for label in labels:
            self.sees("#table", label)
        scores = re.findall(r"\b[01]\.\d\d\b", self.window.inner_text("#table"))
        assert len(scores) == len(labels)

    def keep(self, moment: str) -> None:
        if folder := os.environ.get("APP_SCREENSHOTS"):
            self.window.wait_for_timeout(1000)
            self.window.screenshot(path=Path(folder) / f"{self.name}-{moment}.png", full_page=True)


@pytest.mark.parametrize(
    ("device", "colors"), [("desktop", "light"), ("desktop", "dark"), ("phone", "light"), ("phone", "dark")]
)
def test_a_visit(browser: Any, address: str, predictor: Counted, device: str, colors: str) -> None:
    """Ask for three things that are there and one that is not, move the threshold, download: one run of the model."""
    visit, before = Visit(browser, address, device, colors), predictor.calls
    visit.keep("1-empty")
    visit.ask("red square, cyan star\npurple cross, green heart")
    visit.sees("#status", "4 boxes score above 0.25")
    visit.lists("cyan star", "purple cross", "red square", "cyan star")  # the star twice: a weakness of nano
    visit.keep("2-found")
    drawing = visit.window.get_attribute("#found img", "src")
    slider = visit.window.locator("#threshold input[type=range]")
    slider.focus()
    slider.press("End")
    visit.sees("#status", "Nothing scores above 1.00")
    visit.keep("3-nothing")
    number = visit.window.locator("#threshold input[type=number]")
    number.fill("0.8")
    number.press("Enter")
    visit.sees("#status", "1 box scores above 0.80")
    visit.lists("cyan star")
    assert visit.window.get_attribute("#found img", "src") != drawing
    with visit.window.expect_download() as download:
        visit.window.click("#download")
    assert download.value.suggested_filename == "shapes.json"
    found = json.loads(Path(download.value.path()).read_text())
    assert [one["label"] for one in found] == ["cyan star"] and set(found[0]) == {"score", "label", "box"}
    assert predictor.calls == before + 1
    assert visit.elsewhere == []
    assert visit.window.evaluate("document.documentElement.scrollWidth") <= WIDTHS[device]


def test_the_slider_is_dragged(browser: Any, address: str, predictor: Counted) -> None:
    """From 0.25 to near the right end, with the mouse."""
    visit = Visit(browser, address)
    visit.ask("red square")
    visit.sees("#status", "above 0.25")
    visit.lists("red square")
    # The slider moves down when the drawing above it is there.
    visit.window.wait_for_function("document.querySelector('#found img')?.naturalWidth > 0")
    slider = visit.window.locator("#threshold input[type=range]")
    slider.scroll_into_view_if_needed()
    visit.window.wait_for_timeout(1000)
    calls, box = predictor.calls, slider.bounding_box()
    middle = box["y"] + box["height"] / 2
    visit.window.mouse.move(box["x"] + box["width"] * 0.21, middle)
    visit.window.mouse.down()
    visit.window.mouse.move(box["x"] + box["width"] * 0.97, middle, steps=20)
    visit.window.mouse.up()
    visit.sees("#status", "Nothing scores above 0.9")
    assert predictor.calls == calls


def test_an_example(browser: Any, address: str) -> None:
    """A click brings the image, the sentence and what is found for it."""
    visit = Visit(browser, address)
    visit.window.get_by_text("A sentence", exact=True).click()
    visit.sees("#status", "4 boxes score above 0.25")
    visit.lists("a cyan star", "a purple cross", "a red square", "a cyan star")
    assert visit.window.input_value("#words textarea") == "a red square, a purple cross and a cyan star"
    visit.keep("example")


def test_what_is_wrong_is_said_in_place(browser: Any, address: str, tmp_path: Path) -> None:
    """No words, words that the model cannot know, nothing chosen, a file that is no image: each is one line."""
    visit = Visit(browser, address, "phone")
    visit.window.click("#find")
    visit.sees("#problem", "No labels yet")
    visit.window.fill("#words textarea", "cat")
    visit.window.click("#find")
    visit.sees("#problem", "knows no word of 'cat'")
    visit.window.fill("#words textarea", "red square")
    visit.window.click("#find")
    visit.sees("#problem", "No image yet")
    visit.keep("problem")
    (tmp_path / "bad.png").write_text("not a photo")
    visit.ask("red square", tmp_path / "bad.png")
    visit.sees("#problem", "not an image that can be read")
    visit.ask("red square")
    visit.sees("#status", "1 box scores above 0.25")
    assert visit.window.inner_text("#problem").strip() == ""
