"""One training step, without the optimiser: forward, loss and backward; its time and the memory it adds."""

from __future__ import annotations

import contextlib
import copy
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from .rows import Row, Timing, joined, one_line
from .settings import FULL, TINY, Settings
from .subjects import Bench, build_bench, closed_processor, random_model, stock_model
from .timer import interleaved

_PROCESS_STATUS = Path("/proc/self/status")
_PROCESS_PEAK_RESET = Path("/proc/self/clear_refs")
_WARM_UP_SIZE = (256, 256)
_GIBI = 2.0**30
_ENGINES = ("ours", "stock")


def train(bench: Bench) -> Iterator[Row]:
    """A step of both, under autocast for every type but float32; on a CPU in float32 alone."""
    settings = bench.settings
    dtypes = settings.dtypes if bench.device.type == "cuda" else ("float32",)
    steps = {engine: _trained(bench.model(engine, "float32")) for engine in _ENGINES}
    for batch in settings.batches:
        sides = {
            f"{engine} {dtype}": training_step(bench, steps[engine], dtype, batch)
            for dtype in dict.fromkeys(("float32", *dtypes))
            for engine in _ENGINES
        }
        timings = interleaved(sides, settings.repeats, bench.device)
        for model in steps.values():
            model.zero_grad()
        for dtype in dtypes:
            measures, note = _memory(bench, {engine: sides[f"{engine} {dtype}"] for engine in _ENGINES}, batch)
            for other in dict.fromkeys(("float32", dtype)):
                yield _row(bench, batch, dtype, other, timings, measures if other == dtype else {}, note)


def _row(
    bench: Bench, batch: int, dtype: str, other: str, timings: dict[str, Timing], measures: dict[str, float], note: str
) -> Row:
    height, width = bench.settings.train_size
    labels = bench.settings.train_labels
    own_side, other_side = f"ours {dtype}", f"stock {other}"
    return Row(
        "train",
        f"{height} × {width}, batch {batch}, {labels} labels",
        own_side,
        other_side,
        timings[own_side],
        timings[other_side],
        labels=labels,
        size=bench.settings.train_size,
        measures=measures,
        note=joined("losses not compared: they differ by design", note if other == dtype else ""),
    )


def _trained(model: Any) -> Any:
    """A copy to train, every decoder layer supervised, as ours always is."""
    model = copy.deepcopy(model).train()
    model.config.auxiliary_loss = True
    return model


def training_step(bench: Bench, model: Any, dtype: str, batch: int) -> Callable[[], None]:
    """Forward, loss and backward, leaving gradients."""
    settings = bench.settings
    inputs = bench.inputs(settings.train_size, bench.label_names(settings.train_labels), batch)
    labels = bench.targets(settings.train_labels, batch)

    def run() -> None:
        model.zero_grad(set_to_none=True)
        low = dtype != "float32"
        with torch.autocast(bench.device.type, getattr(torch, dtype)) if low else contextlib.nullcontext():
            loss = model(**inputs, labels=labels).loss
        loss.backward()

    return run


# --- memory ------------------------------------------------------------------------------------------------------


def _memory(bench: Bench, steps: dict[str, Callable[[], None]], batch: int) -> tuple[dict[str, float], str]:
    """What a step adds to the memory that the weights take, in GiB, of both sides, and the ratio ours / stock."""
    try:
        if bench.device.type == "cuda":
            added = {engine: _added_on_gpu(step, bench.device) for engine, step in steps.items()}
        else:
            added = {engine: _added_in_fresh_process(bench.settings, engine, batch) for engine in steps}
    except Exception as error:
        return {}, f"memory not measured: {one_line(error)}"
    measures = {f"added memory, {engine} (GiB)": bytes_ / _GIBI for engine, bytes_ in added.items()}
    return {"added memory, ours / stock": added["ours"] / max(added["stock"], 1), **measures}, ""


def _added_on_gpu(step: Callable[[], None], device: torch.device) -> int:
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    step()
    return torch.cuda.max_memory_allocated(device) - before


def _added_in_fresh_process(settings: Settings, engine: str, batch: int) -> int:
    """Ask `python -m` of this module, which has no other model in memory."""
    request = {
        "engine": engine,
        "batch": batch,
        "model": settings.model,
        "tiny": settings.tiny,
        "size": settings.train_size,
        "labels": settings.train_labels,
    }
    command = [sys.executable, "-m", __name__, json.dumps(request)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError((done.stderr.strip().splitlines() or ["the process was killed"])[-1])
    return int(done.stdout.split()[-1])


def added_here(request: dict[str, Any]) -> int:
    """Bytes that a training step adds to the memory of this process, on a CPU.

    Raises:
        OSError: the system does not tell (it is not Linux).
    """
    size = (request["size"][0], request["size"][1])
    base = TINY if request["tiny"] else FULL
    settings = replace(base, model=request["model"], train_size=size, train_labels=request["labels"])
    bench = _one_sided(settings, request["engine"])
    model = _trained_in_place(bench.own if request["engine"] == "ours" else bench.stock)
    warm_up = replace(bench, settings=replace(settings, train_size=_WARM_UP_SIZE))
    training_step(warm_up, model, "float32", 1)()
    model.zero_grad(set_to_none=True)
    with contextlib.suppress(OSError):
        _PROCESS_PEAK_RESET.write_text("5")
    before = _status_bytes("VmRSS")
    training_step(bench, model, "float32", request["batch"])()
    return _status_bytes("VmHWM") - before


def _one_sided(settings: Settings, engine: str) -> Bench:
    """One model alone; with random weights, which take as much memory as any."""
    if settings.model is not None:
        return build_bench(settings)
    own: Any = random_model(settings)
    stock = stock_model(own.config) if engine == "stock" else None
    return Bench(settings, own if engine == "ours" else None, stock, closed_processor(settings))  # type: ignore[arg-type]


def _trained_in_place(model: Any) -> Any:
    model.train().config.auxiliary_loss = True
    return model


def _status_bytes(name: str) -> int:
    fields = dict(line.split(":", 1) for line in _PROCESS_STATUS.read_text().splitlines())
    return int(fields[name].split()[0]) * 1024


if __name__ == "__main__":
    sys.stdout.write(f"{added_here(json.loads(sys.argv[1]))}\n")
