"""Names of others steer no terminal: titles are not set, screens not cleared, lines not turned around."""

from __future__ import annotations

import json
import logging
import re
from pathlib import Path

import pytest
from PIL import Image

from hf_grounding_dino.cli.main import main
from hf_grounding_dino.training.logging import MetricLogger
from hf_grounding_dino.utils.printable import printable, printable_lines, warn_once
from training.runs import write_model

EVIL = "\x1b]0;owned\x07\x1b[2J\x9b31m\u202egnp\u2066\x7f\x08"
"""Sets the title, clears the screen, turns to red, then to the left, and takes a letter back."""
STEERING = re.compile("[\x00-\x09\x0b\x0c\x0e-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069]")
"""All but the ends of lines, and the returns of bars."""


def test_what_steers_is_escaped_as_in_json_and_nothing_else() -> None:
    assert printable(EVIL) == r"\u001b]0;owned\u0007\u001b[2J\u009b31m\u202egnp\u2066\u007f\u0008"
    assert printable("a\nb\r\tc") == r"a\u000ab\u000d\u0009c"
    assert printable_lines("a\nb\r\nc") == "a\nb\\u000d\nc"
    for plain in ("Ångström 亚京 שלום می‌خواهم", "👩‍🚒", r"C:\new\x1b"):
        assert printable(plain) == plain == printable(printable(plain))
    assert json.loads(printable(json.dumps({"a": EVIL}, ensure_ascii=False))) == {"a": EVIL}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model"))


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: Path) -> Path:
    """Good images and a bad one, of evil names, and a COCO file of evil ids and labels, with a fault."""
    monkeypatch.chdir(tmp_path)
    Path("model").symlink_to(model)
    Path("in").mkdir()
    for name in (EVIL, "a"):
        Image.new("RGB", (60, 40)).save(f"in/{name}.png")
    Path(f"in/bad{EVIL}.png").write_text("no image")
    document = {
        "images": [{"id": EVIL, "file_name": "a.png", "width": 61, "height": 40}],
        "categories": [{"id": 1, "name": f"red {EVIL} square", "supercategory": EVIL}],
        "annotations": [{"id": i, "image_id": EVIL, "category_id": 1, "bbox": [1, 2, 20, 10]} for i in range(6)],
    }
    Path(f"{EVIL}.json").write_text(json.dumps(document))
    Path(f"{EVIL}.yaml").write_text(f'model: "{EVIL}')
    return tmp_path


DATA = ["--annotations", f"{EVIL}.json", "--images", "in"]
LABELS = ["--labels", f"red {EVIL} square", "--model", "model"]
CASES = {
    "a command": ([EVIL], 2),
    "an option": (["detect", f"--{EVIL}"], 2),
    "a number": (["detect", "--top-k", EVIL], 2),
    "files": (["detect", "in", *LABELS, "--threshold", "0"], 1),
    "no file": (["detect", f"{EVIL}.jpg", *LABELS], 2),
    "no model": (["detect", "in", "--labels", "red", "--model", f"./{EVIL}"], 2),
    "a repo": (["detect", "in", "--labels", "red", "--model", f"x/{EVIL}"], 2),
    "no folder": (["detect", "in", *LABELS, "--output", f"{EVIL}.json"], 2),
    "an output": (["annotate", "--images", "in", "--labels", "red", "--model", "model", "--output", EVIL], 1),
    "labels": (["annotate", "--images", "in", "--labels", f"@{EVIL}", "--model", "model", "--output", "o"], 2),
    "findings": (["validate", *DATA, "--decode"], None),
    "as JSON": (["validate", *DATA, "--json"], None),
    "a report": (["evaluate", *DATA, "--model", "model", "--output", EVIL], None),
    "thresholds": (["calibrate", *DATA, "--model", "model", "--to", "."], None),
    "a benchmark": (["evaluate", EVIL], 2),
    "a recipe": (["train", EVIL], 2),
    "a broken recipe": (["train", f"{EVIL}.yaml"], 2),
    "a setting": (["train", "nano", "--set", f"{EVIL}=1"], 2),
    "options": (["train", "nano", "--set", f'output_dir="{EVIL.encode("unicode_escape").decode()}"', "--show"], 0),
    "a run": (["publish", EVIL, "--to", "o"], 2),
    "a checkpoint": (["convert", f"{EVIL}.pth", "o"], 2),
    "a file": (["export", f"{EVIL}.xml"], 2),
}


@pytest.mark.parametrize("case", CASES)
def test_no_line_steers_the_terminal(case: str, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Tables, reports, complaints, bars: what was named is there, escaped."""
    argv, code = CASES[case]
    assert main(argv) in ((0, 1) if code is None else (code,))
    printed = capsys.readouterr()
    assert not STEERING.search(printed.out + printed.err), (printed.out + printed.err).encode("unicode_escape")
    assert re.search(r"\\u202egnp|\\u001b\]0;owned", printed.out + printed.err)
    if case == "as JSON":
        assert json.loads(printed.out)["name"] == EVIL


def test_nor_do_the_lines_of_a_run_and_of_logs(
    capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    logger = MetricLogger.__new__(MetricLogger)
    logger.enabled = True
    logger.say(f"step 1, {EVIL}/AP 0.5\n")
    with caplog.at_level(logging.WARNING):
        warn_once(logging.getLogger(__name__), f"x/{EVIL}: cannot be reached")
    assert not STEERING.search(capsys.readouterr().out + caplog.text)
