"""One forward pass: by labels, types and batch size, as a sweep over labels and over sizes, and as an ONNX file."""

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

from .agreement import agree, cast
from .measure import Row, Side, Timing, interleaved, joined, not_measured, one_line
from .models import Bench
from .original import original_forward
from .settings import STOCK_TOKEN_LIMIT, Size

ORIGINAL = "original float32"
COMPILED = "compiled"
NEW_LABELS = "(labels not seen before)"
ONNX_RUNTIME = "ONNX Runtime float32"


def forward(bench: Bench) -> Iterator[Row]:
    """Every type against stock in float32, in that type and compiled, and against the original."""
    settings = bench.settings
    for batch in settings.batch:
        for count in settings.labels:
            compiled = settings.compile and count == settings.labels[-1]  # compiling takes minutes a side
            pairs = _pairs(bench, compiled)
            if "float32" in settings.dtypes:
                pairs += [(f"ours float32 {NEW_LABELS}", "stock float32"), ("ours float32", ORIGINAL)]
            yield from _measure(bench, "forward", settings.size, count, pairs, batch)


def labels_sweep(bench: Bench) -> Iterator[Row]:
    """Time over the number of labels."""
    for count in bench.settings.sweep_labels:
        yield from _measure(bench, "labels", bench.settings.size, count, _pairs(bench))


def sizes_sweep(bench: Bench) -> Iterator[Row]:
    """Time over the size of the image."""
    for size in bench.settings.sweep_sizes:
        yield from _measure(bench, "sizes", size, bench.settings.labels[0], _pairs(bench))


def in_words(size: Size, batch: int, labels: int, tokens: int) -> str:
    """The inputs of a forward pass."""
    return f"{size[0]} × {size[1]}, batch {batch}, {labels} label{'' if labels == 1 else 's'} ({tokens} tokens)"


def _pairs(bench: Bench, compiled: bool = False) -> list[tuple[str, str]]:
    """Our side and the other, by name: engine, type, and whether it is compiled."""
    pairs = []
    for dtype in bench.settings.dtypes:
        pairs += [(f"ours {dtype}", other) for other in dict.fromkeys(["stock float32", f"stock {dtype}"])]
        if compiled:
            stock = f"stock {dtype} {COMPILED}"
            pairs += [(f"ours {dtype}", stock), (f"ours {dtype} {COMPILED}", stock)]
    return pairs


def _measure(
    bench: Bench, case: str, size: Size, count: int, pairs: list[tuple[str, str]], batch: int = 1
) -> Iterator[Row]:
    labels = bench.label_names(count)
    inputs = bench.inputs(size, labels, batch)
    tokens = inputs["input_ids"].shape[1]
    not_finite: set[str] = set()
    sides: dict[str, Side] = {}
    models: dict[str, Any] = {}
    timings: dict[str, Timing] = {}
    torch.compiler.reset()
    for name in dict.fromkeys(name for pair in pairs for name in pair):
        try:
            if name == ORIGINAL:
                sides[name] = original_forward(bench, inputs["pixel_values"], labels)
            else:
                sides[name] = _side(bench, name, inputs, models, not_finite)
        except Exception as error:  # the original may be missing, or a type unknown to a layer
            timings[name] = Timing(failure=one_line(error))
    timings |= interleaved(sides, bench.settings.repeats, bench.device)
    for own, other in pairs:
        agreement, note = None, "outputs not compared" if other == ORIGINAL else ""
        if other == "stock float32" and own in models and timings[own].seconds and timings[other].seconds:
            agreement, note = agree(bench, models[own], inputs, size)
        bad = [f"boxes of {name} are not finite" for name in (own, other) if name in not_finite]
        if other.startswith("stock") and tokens > STOCK_TOKEN_LIMIT:
            bad.append(f"stock takes {STOCK_TOKEN_LIMIT} tokens at most")
        what, note = in_words(size, batch, count, tokens), joined(*bad, note)
        times = timings[own], timings[other]
        yield Row(case, what, own, other, *times, labels=count, size=size, agreement=agreement, note=note)


def _side(bench: Bench, name: str, inputs: dict[str, Tensor], models: dict[str, Any], not_finite: set[str]) -> Side:
    engine, dtype, kind = [*name.split(maxsplit=2), ""][:3]
    plain = f"{engine} {dtype}"
    if plain not in models:
        models[plain] = bench.model(engine, dtype)
    model: Any = torch.compile(models[plain]) if kind == COMPILED else models[plain]
    given = cast(inputs, models[plain].dtype)
    checked = False

    def run() -> None:
        nonlocal checked
        if kind == NEW_LABELS:
            model.model.text_feature_cache.clear()
        with torch.inference_mode():
            output = model(**given)
        if not checked:
            checked = True
            if not output.pred_boxes.isfinite().all():
                not_finite.add(name)

    return run


def onnx(bench: Bench) -> Iterator[Row]:
    """The file of our model under ONNX Runtime, beside both models, for every number of labels of `forward`."""
    if bench.device.type != "cpu":
        yield not_measured("onnx", "the file is timed on the CPU alone")
        return
    if missing := missing_packages("onnx"):
        yield not_measured("onnx", f"pip install {' '.join(missing)}")
        return
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.onnx"
        write_onnx(export_program(bench.own), file)
        run = load_runner(file, "onnx")
        for count in bench.settings.labels:
            yield from _measure_onnx(bench, run, count)


def _measure_onnx(bench: Bench, run: Runner, count: int) -> Iterator[Row]:
    size = bench.settings.size
    inputs = {name: tensor.contiguous() for name, tensor in bench.inputs(size, bench.label_names(count)).items()}

    def forward_of(model: Any) -> None:
        with torch.inference_mode():
            model(**inputs)

    sides: dict[str, Side] = {
        ONNX_RUNTIME: partial(run, {name: tensor.numpy() for name, tensor in inputs.items()}),
        "stock float32": partial(forward_of, bench.stock),
        "ours float32": partial(forward_of, bench.own),
    }
    timings = interleaved(sides, bench.settings.repeats, bench.device)
    found = compare(bench.own, run, [inputs])
    measures = {"largest difference of a score from ours": found.scores, "of a box, in parts": found.boxes}
    what = in_words(size, 1, count, inputs["input_ids"].shape[1])
    for other in ("stock float32", "ours float32"):
        times = timings[ONNX_RUNTIME], timings[other]
        yield Row("onnx", what, ONNX_RUNTIME, other, *times, labels=count, size=size, measures=measures)
