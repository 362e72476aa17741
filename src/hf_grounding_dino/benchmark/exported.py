"""The model as an ONNX file under ONNX Runtime, beside both models in torch, on the CPU."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hf_grounding_dino.export.exporting import (
    Runner,
    compare,
    export_program,
    load_runner,
    missing_packages,
    write_onnx,
)

from .rows import Row, failed
from .subjects import Bench
from .timer import Side, interleaved

ONNX_RUNTIME = "ONNX Runtime float32"


def onnx(bench: Bench) -> Iterator[Row]:
    """The file of our model, beside stock and beside our model, for every number of labels of `forward`."""
    if bench.device.type != "cpu":
        yield failed("onnx", ValueError("the file is timed on the CPU alone"))
        return
    if missing := missing_packages("onnx"):
        yield failed("onnx", ImportError(f"pip install {' '.join(missing)}"))
        return
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.onnx"
        write_onnx(export_program(bench.own), file)
        run = load_runner(file, "onnx")
        for count in bench.settings.labels:
            yield from _measure(bench, run, count)


def _measure(bench: Bench, run: Runner, count: int) -> Iterator[Row]:
    size = bench.settings.size
    inputs = bench.inputs(size, bench.label_names(count))
    inputs = {name: tensor.contiguous() for name, tensor in inputs.items()}
    sides: dict[str, Side] = {
        ONNX_RUNTIME: partial(run, {name: tensor.numpy() for name, tensor in inputs.items()}),
        "stock float32": partial(_forward, bench.stock, inputs),
        "ours float32": partial(_forward, bench.own, inputs),
    }
    timings = interleaved(sides, bench.settings.repeats, bench.device)
    found = compare(bench.own, run, [inputs])
    for other in ("stock float32", "ours float32"):
        yield Row(
            "onnx",
            f"{size[0]} × {size[1]}, batch 1, {count} labels ({inputs['input_ids'].shape[1]} tokens)",
            ONNX_RUNTIME,
            other,
            timings[ONNX_RUNTIME],
            timings[other],
            labels=count,
            size=size,
            measures={"largest difference of a score from ours": found.scores, "of a box, in parts": found.boxes},
        )


def _forward(model: Any, inputs: dict[str, Tensor]) -> None:
    with torch.inference_mode():
        model(**inputs)
