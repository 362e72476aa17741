"""The command `export`: one file and what belongs to it, checked, and run where torch cannot be imported."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import hf_grounding_dino
from exports import BY_PLACE, CASES, largest_differences, least_model, without_traces
from hf_grounding_dino import GroundingDinoImageProcessor, GroundingDinoProcessor
from hf_grounding_dino.assets import DEMO_IMAGE, DEMO_LABELS
from hf_grounding_dino.cli import PROGRAM
from hf_grounding_dino.cli import export as exporting_command
from hf_grounding_dino.cli.main import main
from hf_grounding_dino.data.tokenizer import build_tokenizer
from hf_grounding_dino.export.exporting import Agreement, load_runner

pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")

ROOT = Path(hf_grounding_dino.__file__).parents[2]
BESIDE = ["processor_config.json", "tokenizer.json", "tokenizer_config.json"]
WITHOUT_TORCH = """
import runpy, sys
sys.modules.update(dict.fromkeys(["torch", "transformers", "torchvision", "hf_grounding_dino"]))
runpy.run_path(sys.argv.pop(1), run_name="__main__")
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model with a processor for images of about 96 pixels, whose queries are those of `BY_PLACE`."""
    place = tmp_path_factory.mktemp("model")
    least_model("mm-grounding-dino", **BY_PLACE).save_pretrained(place)
    size = {"shortest_edge": 96, "longest_edge": 140}
    GroundingDinoProcessor(GroundingDinoImageProcessor(size=size), build_tokenizer(DEMO_LABELS)).save_pretrained(place)
    return place


@pytest.fixture(scope="module")
def exported(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("exported") / "new" / "model.onnx"
    with without_traces():
        assert main(["export", str(path), "--model", str(folder)]) == 0
    return path


def one_line(capsys: pytest.CaptureFixture[str]) -> str:
    """The only line of stderr, without the name of the program; stdout is empty."""
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.count("\n") == 1, printed
    return printed.err.removeprefix(f"{PROGRAM}: ").rstrip()


def test_the_file_and_what_belongs_to_it(exported: Path) -> None:
    assert sorted(path.name for path in exported.parent.iterdir()) == sorted(["model.onnx", *BESIDE])


@pytest.mark.parametrize("case", CASES)
def test_onnx_runtime_equals_the_model(folder: Path, exported: Path, case: str) -> None:
    model = hf_grounding_dino.GroundingDinoForObjectDetection.from_pretrained(folder).eval()
    logits, boxes = largest_differences(model, load_runner(exported, "onnx"), CASES[case])
    assert logits < 1e-4 and boxes < 1e-4


def test_it_runs_where_torch_cannot_be_imported(folder: Path, exported: Path, tmp_path: Path) -> None:
    """The program of docs/export.md finds what the processor and the model find: scores to 1e-3, boxes to a pixel."""
    page = (ROOT / "docs" / "export.md").read_text()
    (code,) = re.findall(r"```python title=\"detect_onnx.py\"\n(.*?)```", page, re.DOTALL)
    (tmp_path / "detect_onnx.py").write_text(code)
    image = Image.open(DEMO_IMAGE).convert("RGB")
    photo, labels = tmp_path / "photo.png", ["Red square", "cyan ring", "ring"]
    for size in (image.size, (180, 300), (300, 96)):
        image.resize(size).save(photo)
        argv = [sys.executable, "-c", WITHOUT_TORCH, str(tmp_path / "detect_onnx.py")]
        done = subprocess.run([*argv, str(exported), str(photo), *labels], capture_output=True, text=True, check=True)
        rows = [line.split("  ") for line in done.stdout.splitlines()]
        assert len(rows) == 10
        found = [(float(score), label, [float(side) for side in box.split()]) for score, label, box in rows]
        assert_same_detections(found, expected_detections(folder, photo, labels))
    done = subprocess.run(
        [*argv, str(exported), str(photo), "ring", "日本"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1 and done.stderr == "the tokenizer knows no word of '日本'\n"


@torch.no_grad()
def expected_detections(folder: Path, photo: Path, labels: list[str]) -> dict[str, Any]:
    model = hf_grounding_dino.GroundingDinoForObjectDetection.from_pretrained(folder).eval()
    processor = GroundingDinoProcessor.from_pretrained(folder)
    image = Image.open(photo)
    outputs = model(**processor(images=image, text=[labels]))
    (found,) = processor.post_process_object_detection(
        outputs, [labels], threshold=0.0, target_sizes=[(image.height, image.width)], top_k=None
    )
    return dict(found)


def assert_same_detections(found: list[tuple[float, str, list[float]]], expected: dict[str, Any]) -> None:
    """Each is among the model's with that label, and the scores are the model's best, in order."""
    np.testing.assert_allclose([row[0] for row in found], expected["scores"][:10], atol=1e-3)
    for score, label, box in found:
        same_label = np.array([name == label for name in expected["text_labels"]])
        by_score = np.abs(expected["scores"].numpy() - score) < 1e-3
        distance = np.abs(expected["boxes"].numpy() - box).max(1)
        assert distance[same_label & by_score].min() < 1


def test_what_is_printed(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A float16 program: its differences are printed; where they are too large that is said, with exit code 1."""
    path = tmp_path / "model.pt2"
    argv = ["export", str(path), "--model", str(folder), "--format", "torch", "--dtype", "float16"]
    with without_traces():
        assert main(argv) == 0
    printed = capsys.readouterr()
    pattern = (
        rf"written: {path} \((\d\.\d) MB\), with {', '.join(BESIDE)} beside it\nlargest difference of float16 from"
    )
    assert re.match(pattern, printed.out) and printed.err == ""
    scores, boxes = map(float, re.findall(r"(?:scores|boxes) (\d\.\de-\d\d)", printed.out))
    assert 1e-5 < scores < 5e-2 and 1e-6 < boxes < 5e-2
    assert torch.float32 not in {weight.dtype for weight in torch.export.load(path).state_dict.values()}
    assert str(ROOT).encode() not in zipfile_content(path)

    monkeypatch.setattr("hf_grounding_dino.export.exporting.compare", lambda *_: Agreement(0.2, 0.0))
    monkeypatch.setattr(exporting_command, "_write", lambda *_: None)
    assert main(argv) == 1
    assert f"{path} differs from the model by more than 0.05" in capsys.readouterr().err


def zipfile_content(path: Path) -> bytes:
    with zipfile.ZipFile(path) as archive:
        return b"".join(map(archive.read, archive.namelist()))


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["model.pt2"], "model.pt2: a file of the format onnx ends in .onnx"),
        (["model.onnx", "--format", "openvino"], "model.onnx: a file of the format openvino ends in .xml"),
        (["model.onnx", "--opset", "17"], "argument --opset: 17 is not a whole number from 18 up"),
        (["model.onnx", "--dtype", "bfloat16"], "argument --dtype: invalid choice: 'bfloat16'"),
        (["model.onnx", "--model", "./nowhere"], "no such model: ./nowhere"),
    ],
)
def test_mistakes_are_one_line_and_2(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    argv: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["export", *argv]) == 2
    assert message in one_line(capsys)
    assert not list(tmp_path.iterdir())


def test_a_missing_package_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("hf_grounding_dino.export.exporting.missing_packages", lambda _: ["onnxscript", "onnxruntime"])
    assert main(["export", str(tmp_path / "model.onnx")]) == 2
    assert one_line(capsys) == "--format onnx needs packages that are missing: pip install onnxscript onnxruntime"


def test_the_files_of_another_model_are_left_alone(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "tokenizer.json").write_text(json.dumps({"of": "another"}))
    assert main(["export", str(tmp_path / "model.onnx"), "--model", str(folder)]) == 2
    assert one_line(capsys) == f"{tmp_path}/tokenizer.json is of another model: export into a folder of its own"
    assert (tmp_path / "tokenizer.json").read_text() == '{"of": "another"}'
    assert [path.name for path in tmp_path.iterdir()] == ["tokenizer.json"]
