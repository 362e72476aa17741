"""Several sets side by side: the table, the mean, and what others measured."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path

from hf_grounding_dino.evaluation.published import Published
from hf_grounding_dino.evaluation.report import write_summary

EVIL = "<script>alert('set')</script>/a & b"
NUMBERS = {
    EVIL: {"AP": 0.25, "APs": 0.125, "AR100": 0.5, "AP50": float("nan")},
    "second": {"AP": 0.75, "base_AP": -1.0, "mean_precision": 0.5},
}


class Cells(HTMLParser):
    """The text of each cell, row by row, and where links lead."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.links: list[str] = []
        self.inside = False

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        if tag == "tr":
            self.rows.append([])
        self.inside = tag in ("td", "th") or (self.inside and tag == "a")
        if tag in ("td", "th"):
            self.rows[-1].append("")
        self.links += [str(value) for name, value in attributes if name == "href"]

    def handle_endtag(self, tag: str) -> None:
        self.inside = self.inside and tag not in ("td", "th")

    def handle_data(self, data: str) -> None:
        if self.inside:
            self.rows[-1][-1] += data


def read(page: Path) -> Cells:
    cells = Cells()
    cells.feed(page.read_text())
    return cells


def test_a_part_is_called_a_part(tmp_path: Path) -> None:
    for limit in ("", "the first 3 samples"):
        write_summary(tmp_path, "Two", NUMBERS, {}, limit=limit)
        assert ("Of each dataset the first 3 samples." in (tmp_path / "index.html").read_text()) == bool(limit)
        assert json.loads((tmp_path / "metrics.json").read_text()).get("limit", "") == limit


def test_each_set_has_a_row_and_headline_columns(tmp_path: Path) -> None:
    """0.25 is 25.0, -1 and what is no number are a dash, what a set lacks is empty; size and recall are left out."""
    write_summary(tmp_path, "Two & more", NUMBERS, {"AP": 0.5}, [Published("a paper", "AP", 0.484, "zero-shot")])
    cells = read(tmp_path / "index.html")
    assert cells.rows == [
        ["dataset", "AP", "AP50", "base_AP"],
        [EVIL, "25.0", "–", ""],
        ["second", "75.0", "", "–"],
        ["mean", "50.0", "", ""],
        ["published: a paper, zero-shot", "48.4", "", ""],
    ]
    assert cells.links == ["%3Cscript%3Ealert%28%27set%27%29%3C/script%3E/a%20%26%20b/index.html", "second/index.html"]
    text = (tmp_path / "index.html").read_text()
    assert "<script" not in text and "Two &amp; more" in text
    assert not re.search(r"https?:|@import|url\(", text), "it needs no other file"


def test_programs_get_every_number(tmp_path: Path) -> None:
    """What is no number is null."""
    write_summary(tmp_path, "Two", NUMBERS, {})
    content = json.loads((tmp_path / "metrics.json").read_text(), parse_constant=lambda name: 1 / 0)
    assert content["sets"] == {EVIL: {**NUMBERS[EVIL], "AP50": None}, "second": NUMBERS["second"]}
    assert (content["benchmark"], content["mean"], content["published"]) == ("Two", {}, [])
    assert [row[0] for row in read(tmp_path / "index.html").rows] == ["dataset", EVIL, "second"]
