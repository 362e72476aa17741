"""The command `validate`: what it prints and its exit code, on sets that are clean, odd and broken."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from hf_grounding_dino.cli import PROGRAM
from hf_grounding_dino.cli.main import main
from hf_grounding_dino.data.findings import HARMLESS, group
from hf_grounding_dino.data.records import Finding
from hf_grounding_dino.data.shapes import write_coco, write_odvg


def save_set(root: Path, boxes: list[list[float]], sizes: tuple[tuple[int, int], ...] = ((100, 80),)) -> Path:
    """A COCO set whose images are 100 x 80; all boxes are in the first, `sizes` are what the file states."""
    root.mkdir(exist_ok=True)
    for i in range(len(sizes)):
        Image.new("RGB", (100, 80)).save(root / f"{i}.png")
    document = {
        "images": [{"id": i, "file_name": f"{i}.png", "width": w, "height": h} for i, (w, h) in enumerate(sizes)],
        "annotations": [{"id": i, "image_id": 0, "category_id": 1, "bbox": box} for i, box in enumerate(boxes)],
        "categories": [{"id": 1, "name": "cat"}],
    }
    path = root / "set.json"
    path.write_text(json.dumps(document))
    return path


def validate(path: Path, *options: str, layout: str = "coco") -> int:
    return main(["validate", "--format", layout, "--annotations", str(path), *options])


def validate_json(capsys: pytest.CaptureFixture[str], path: Path, *options: str) -> tuple[int, dict[str, Any]]:
    code = validate(path, "--json", *options)
    return code, json.loads(capsys.readouterr().out)


def test_a_clean_set(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert validate(save_set(tmp_path, [[1, 2, 3, 4]])) == 0
    printed = capsys.readouterr()
    lines = [" ".join(line.split()) for line in printed.out.splitlines()]
    assert lines[-1] == "Nothing is odd." and {"images 1", "boxes 1", "labels 1", "without boxes 0"} <= set(lines)
    assert printed.err == ""


def test_harmless_findings_end_with_0(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, report = validate_json(capsys, save_set(tmp_path, [[1, 2, 3, 4]], ((100, 80), (100, 80))))
    assert code == 0 and not report["loses_data"]
    assert [(finding["kind"], finding["count"]) for finding in report["findings"]] == [("no boxes", 1)]
    assert report["images"] == 2 and report["without_boxes"] == 1


def test_what_loses_data_ends_with_1_and_stands_first(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """25 boxes leave the image to the right, each at another height; of these a reader keeps some and counts all."""
    boxes: list[list[float]] = [[90, i, 20, 10] for i in range(25)]
    code, report = validate_json(
        capsys, save_set(tmp_path, [*boxes, [200, 1, 5, 5]], ((100, 80), (100, 80))), "--examples", "2"
    )
    assert code == 1 and report["boxes"] == 25
    counts = {finding["kind"]: (finding["count"], len(finding["examples"])) for finding in report["findings"]}
    assert counts == {"outside box": (25, 2), "empty box": (1, 1), "no boxes": (1, 1)}
    assert [finding["loses_data"] for finding in report["findings"]] == [True, True, False]


def test_the_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = save_set(tmp_path, [[90, i, 20, 10] for i in range(4)])
    assert validate(path, "--examples", "1") == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"set (coco, {path})"
    widths = {len(line) for line in lines if line.startswith("  ") and line[-1].isdigit()}
    assert len(widths) == 1, "counts end in one column"
    place = lines.index("outside box")
    assert lines[place + 1].startswith("  set.json, image 0: box 1 ") and lines[place + 2] == "  ... and 3 more"


def test_captions_instead_of_labels(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_odvg(tmp_path, count=3, seed=0, split="train", task="caption")
    assert validate(path, "--images", str(tmp_path / "images"), layout="odvg") == 0
    out = capsys.readouterr().out
    assert "captions" in out and "labels" not in out


class TestDecode:
    def test_images_that_cannot_be_read_or_have_another_size(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        path = save_set(tmp_path, [[1, 2, 3, 4]], ((100, 80), (100, 80), (80, 100)))
        (tmp_path / "1.png").write_bytes((tmp_path / "1.png").read_bytes()[:60])
        assert validate(path) == 0
        capsys.readouterr()
        code, report = validate_json(capsys, path, "--decode")
        assert code == 1
        found = {finding["kind"]: finding["examples"][0] for finding in report["findings"]}
        assert found["unreadable image"]["where"] == str(tmp_path / "1.png")
        assert found["wrong size"]["where"] == str(tmp_path / "2.png")
        assert found["wrong size"]["what"].startswith("80 x 100 is stated, 100 x 80 is there")

    def test_a_set_of_true_sizes_is_clean(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        path = write_coco(tmp_path, count=3, seed=0, split="train")
        code, report = validate_json(capsys, path, "--images", str(tmp_path / "images"), "--decode")
        assert code == 0 and {finding["kind"] for finding in report["findings"]} <= set(HARMLESS)


@pytest.mark.parametrize(
    ("layout", "text", "message"),
    [("coco", "{", "not JSON"), ("tfds", "{}", "format 'tfds' is not one of"), ("yolo", "a: [", "not YAML")],
)
def test_a_set_that_cannot_be_used_is_one_line_and_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], layout: str, text: str, message: str
) -> None:
    (tmp_path / "set").write_text(text)
    assert validate(tmp_path / "set", layout=layout) == 2
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.count("\n") == 1
    assert printed.err.startswith(f"{PROGRAM}: ") and message in printed.err


def test_no_file_is_changed_or_made(tmp_path: Path) -> None:
    path = save_set(tmp_path / "set", [[90, 2, 30, 4]], ((100, 80), (50, 50)))

    def state() -> dict[str, tuple[str, int]]:
        files = [file for file in tmp_path.rglob("*") if file.is_file()]
        return {str(f): (hashlib.sha256(f.read_bytes()).hexdigest(), f.stat().st_mtime_ns) for f in files}

    before = state()
    assert validate(path, "--decode") == 1
    assert state() == before


def test_more_findings_of_a_reader_are_counted() -> None:
    """Two findings one by one and "and 1200 more" are 1202; crowd is harmless and stands last."""
    findings = [
        Finding("crowd", "a", "b"),
        Finding("empty box", "a", "b"),
        Finding("empty box", "a", "c"),
        Finding("empty box", "file", "and 1200 more"),
    ]
    kinds = group(findings, examples=1)
    assert [(kind.kind, kind.count, kind.examples) for kind in kinds] == [
        ("empty box", 1202, [("a", "b")]),
        ("crowd", 1, [("a", "b")]),
    ]
