"""One exported graph serves any number of pictures, any sizes and any prompts, and equals the model.

Exporting takes some ten seconds for each model; what else it must hold is tested on the same files.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from exports import BY_PLACE, CASES, all_inputs, largest_differences, least_model, without_traces
from hf_grounding_dino.export.exporting import (
    DetectionGraph,
    Runner,
    compare,
    export_program,
    load_runner,
    missing_packages,
    smallest_side,
    write_onnx,
    write_openvino,
    write_program,
)
from tiny import noise_image, one, tiny_model


@pytest.fixture(scope="module")
def model() -> Any:
    return least_model("grounding-dino")


@pytest.fixture(scope="module")
def program(model: Any) -> torch.export.ExportedProgram:
    with without_traces():
        return export_program(model)


@pytest.fixture(scope="module")
def file(program: torch.export.ExportedProgram, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("exported") / "model.onnx"
    with without_traces():
        write_onnx(program, path, facts={"smallest_side": 9})
    return path


@pytest.mark.parametrize("case", CASES)
def test_onnx_runtime_equals_the_model(model: Any, file: Path, case: str) -> None:
    """Batches of 1 and 3, 7 to 256 tokens, pictures and canvases of any aspect."""
    logits, boxes = largest_differences(model, load_runner(file, "onnx"), CASES[case])
    assert logits < 1e-4 and boxes < 1e-4


def test_the_file_is_plain_and_says_what_it_takes(file: Path) -> None:
    """Standard operators alone, open sizes by name, facts in the metadata, and nothing of where it was made."""
    loaded = onnx.load(file)
    onnx.checker.check_model(loaded)
    assert {node.domain for node in loaded.graph.node} == {""} and not loaded.functions
    assert [(entry.domain, entry.version) for entry in loaded.opset_import] == [("", 18)]
    shapes = {
        value.name: [side.dim_param or side.dim_value for side in value.type.tensor_type.shape.dim]
        for value in (*loaded.graph.input, *loaded.graph.output)
    }
    words = ["batch", "length"]
    assert shapes == {
        "pixel_values": ["batch", 3, "height", "width"],
        "pixel_mask": ["batch", "height", "width"],
        "input_ids": words, "token_type_ids": words, "attention_mask": words,
        "logits": ["batch", 20, "length"],
        "pred_boxes": ["batch", 20, 4],
    }  # fmt: skip
    assert {entry.key: entry.value for entry in loaded.metadata_props}["smallest_side"] == "9"
    assert str(Path(__file__).parents[1]).encode() not in file.read_bytes()
    assert [path.name for path in file.parent.iterdir()] == ["model.onnx"]


def test_openvino_equals_the_model(model: Any, file: Path, tmp_path: Path) -> None:
    path = tmp_path / "model.xml"
    write_openvino(file, path)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["model.bin", "model.xml"]
    run = load_runner(path, "openvino")
    for singles in CASES.values():
        logits, boxes = largest_differences(model, run, singles)
        assert logits < 1e-4 and boxes < 1e-4


def test_a_program_is_saved_and_equals_the_model(
    model: Any, program: torch.export.ExportedProgram, tmp_path: Path
) -> None:
    write_program(program, tmp_path / "model.pt2")
    run = load_runner(tmp_path / "model.pt2", "torch")
    for singles in CASES.values():
        logits, boxes = largest_differences(model, run, singles)
        assert logits < 1e-4 and boxes < 1e-4
    assert not [node for node in program.graph.nodes if "hf_grounding_dino" in str(node.target)]


def test_smallest_side(model: Any) -> None:
    """Patches of 4 pixels in one stage, one level beyond: 2 cells on the last level need more than 8 pixels.

    Three halvings of stages and one of a level, as in the published models: more than 4 * 8 * 2 = 64.
    """
    assert smallest_side(model) == 9
    assert smallest_side(tiny_model()) == 65


def test_smaller_canvases_are_refused_by_the_program(program: torch.export.ExportedProgram) -> None:
    with pytest.raises(Exception, match=r"size\(\)\[2\] >= 9"):
        program.module()(**all_inputs(one(noise_image(8, 40))))


@torch.no_grad()
def test_half_precision_takes_and_gives_float32() -> None:
    """Weights in float16, boxes refined in float32: same best detections, scores within 2 %, boxes within 1 %."""
    model = least_model("grounding-dino", **BY_PLACE)
    graph = DetectionGraph(copy.deepcopy(model).to(torch.float16))

    def run(inputs: Any) -> Any:
        logits, boxes = graph(**{name: torch.from_numpy(array) for name, array in inputs.items()})
        assert logits.dtype == boxes.dtype == torch.float32
        return logits.numpy(), boxes.numpy()

    found = compare(model, run, [all_inputs(*CASES["three at once"])])
    assert 1e-6 < found.scores < 0.02 and 1e-6 < found.boxes < 0.01


def test_comparing_finds_what_is_off(model: Any) -> None:
    """The model itself differs by nothing; queries in another order neither; a box moved by 0.25 does, and NaN."""
    batch = all_inputs(*CASES["wide, 7 tokens"])

    def changed(order: int = 1, offset: float = 0.0) -> Runner:
        def run(inputs: Any) -> Any:
            with torch.no_grad():
                output = model(**{name: torch.from_numpy(array) for name, array in inputs.items()})
            logits = output.logits[..., :7].numpy()[:, ::order]
            return logits, output.pred_boxes.numpy()[:, ::order] + np.float32(offset)

        return run

    assert max(compare(model, changed(), [batch])) < 1e-6
    assert max(compare(model, changed(order=-1), [batch])) < 1e-6
    off = compare(model, changed(offset=100.0), [batch])
    assert 99 < off.boxes <= 100
    assert compare(model, changed(offset=float("nan")), [batch]).boxes == float("inf")


def test_missing_packages_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "onnxscript" else object())
    assert missing_packages("torch") == [] and missing_packages("onnx") == ["onnxscript"]
