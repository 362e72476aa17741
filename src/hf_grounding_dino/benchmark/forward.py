"""One forward pass: by labels, types and batch size, and as a sweep over labels and over sizes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .agreement import agree, cast
from .original import original_forward
from .rows import Row, Timing, joined, one_line
from .settings import STOCK_TOKEN_LIMIT, Size
from .subjects import Bench
from .timer import Side, interleaved

ORIGINAL = "original float32"
COMPILED = "compiled"
NEW_LABELS = "(labels not seen before)"


class Inputs(NamedTuple):
    """What both sides are given."""

    size: Size
    labels: list[str]
    batch: int

    def words(self, tokens: int) -> str:
        """The inputs in words."""
        height, width = self.size
        plural = "" if len(self.labels) == 1 else "s"
        return f"{height} × {width}, batch {self.batch}, {len(self.labels)} label{plural} ({tokens} tokens)"


def forward(bench: Bench) -> Iterator[Row]:
    """Every type against stock in float32, in that type and compiled, and against the original."""
    settings = bench.settings
    for batch in settings.batches:
        for count in settings.labels:
            chosen = Inputs(settings.size, bench.label_names(count), batch)
            compiled = settings.compiled and count == settings.labels[-1]  # compiling takes minutes a side
            pairs = _pairs(bench, compiled)
            if "float32" in settings.dtypes:
                pairs += [(f"ours float32 {NEW_LABELS}", "stock float32"), ("ours float32", ORIGINAL)]
            yield from _measure(bench, "forward", chosen, pairs)


def labels_sweep(bench: Bench) -> Iterator[Row]:
    """Time over the number of labels."""
    for count in bench.settings.sweep_labels:
        chosen = Inputs(bench.settings.size, bench.label_names(count), batch=1)
        yield from _measure(bench, "labels", chosen, _pairs(bench, compiled=False))


def sizes_sweep(bench: Bench) -> Iterator[Row]:
    """Time over the size of the picture."""
    for size in bench.settings.sweep_sizes:
        chosen = Inputs(size, bench.label_names(bench.settings.labels[0]), batch=1)
        yield from _measure(bench, "sizes", chosen, _pairs(bench, compiled=False))


def _pairs(bench: Bench, compiled: bool) -> list[tuple[str, str]]:
    """Our side and the other, by name: engine, type, and whether it is compiled."""
    pairs = []
    for dtype in bench.settings.dtypes:
        others = ["stock float32", f"stock {dtype}"]
        pairs += [(f"ours {dtype}", other) for other in dict.fromkeys(others)]
        if compiled:
            stock = f"stock {dtype} {COMPILED}"
            pairs += [(f"ours {dtype}", stock), (f"ours {dtype} {COMPILED}", stock)]
    return pairs


def _measure(bench: Bench, case: str, chosen: Inputs, pairs: list[tuple[str, str]]) -> Iterator[Row]:
    inputs = bench.inputs(chosen.size, chosen.labels, chosen.batch)
    tokens = inputs["input_ids"].shape[1]
    not_finite: set[str] = set()
    names = dict.fromkeys(name for pair in pairs for name in pair)
    sides: dict[str, Side] = {}
    models: dict[str, Any] = {}
    timings: dict[str, Timing] = {}
    torch.compiler.reset()
    for name in names:
        try:
            sides[name] = _side(bench, name, inputs, chosen, models, not_finite)
        except Exception as error:  # the original may be missing, or a type unknown to a layer
            timings[name] = Timing(failure=one_line(error))
    timings |= interleaved(sides, bench.settings.repeats, bench.device)
    for own, other in pairs:
        agreement, note = None, ""
        if other == "stock float32" and own in models and timings[own].seconds and timings[other].seconds:
            agreement, note = agree(bench, models[own], inputs, chosen.size)
        elif other == ORIGINAL:
            note = "outputs not compared"
        bad = [f"boxes of {name} are not finite" for name in (own, other) if name in not_finite]
        if other.startswith("stock") and tokens > STOCK_TOKEN_LIMIT:
            bad.append(f"stock takes {STOCK_TOKEN_LIMIT} tokens at most")
        yield Row(
            case,
            chosen.words(tokens),
            own,
            other,
            timings[own],
            timings[other],
            labels=len(chosen.labels),
            size=chosen.size,
            agreement=agreement,
            note=joined(*bad, note),
        )


def _side(
    bench: Bench, name: str, inputs: dict[str, Tensor], chosen: Inputs, models: dict[str, Any], not_finite: set[str]
) -> Side:
    if name == ORIGINAL:
        return original_forward(bench, inputs["pixel_values"], chosen.labels)
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
            model.model.phrase_memory.clear()
        with torch.inference_mode():
            output = model(**given)
        if not checked:
            checked = True
            if not output.pred_boxes.isfinite().all():
                not_finite.add(name)

    return run
