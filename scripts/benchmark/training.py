"""One training step, without the optimiser: forward, loss and backward; its time and the memory it adds."""

from __future__ import annotations

import contextlib
import copy
import multiprocessing
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from .measure import Row, interleaved, joined, one_line
from .models import Bench, build_bench
from .settings import Settings

_PROCESS_STATUS = Path("/proc/self/status")
_PROCESS_PEAK_RESET = Path("/proc/self/clear_refs")
_WARM_UP_SIZE = (256, 256)
_GIBI = 2.0**30
_ENGINES = ("ours", "stock")


def train(bench: Bench) -> Iterator[Row]:
    """A step of both, under autocast for every type but float32; on a CPU in float32 alone."""
    settings, labels = bench.settings, bench.settings.train_labels
    height, width = settings.train_size
    dtypes = settings.dtypes if bench.device.type == "cuda" else ("float32",)
    models = {engine: _trained(copy.deepcopy(bench.model(engine, "float32"))) for engine in _ENGINES}
    for batch in settings.batch:
        steps = {
            f"{engine} {dtype}": training_step(bench, models[engine], dtype, batch)
            for dtype in dict.fromkeys(("float32", *dtypes))
            for engine in _ENGINES
        }
        timings = interleaved(steps, settings.repeats, bench.device)
        for model in models.values():
            model.zero_grad()
        for dtype in dtypes:
            measures, note = _memory(bench, {engine: steps[f"{engine} {dtype}"] for engine in _ENGINES}, batch)
            for other in dict.fromkeys(("float32", dtype)):
                own_side, other_side = f"ours {dtype}", f"stock {other}"
                yield Row(
                    "train",
                    f"{height} × {width}, batch {batch}, {labels} labels",
                    own_side,
                    other_side,
                    timings[own_side],
                    timings[other_side],
                    labels=labels,
                    size=settings.train_size,
                    measures=measures if other == dtype else {},
                    note=joined("losses not compared: they differ by design", note if other == dtype else ""),
                )


def _trained(model: Any) -> Any:
    """To train, every decoder layer supervised, as ours always is."""
    model.train().config.auxiliary_loss = True
    return model


def training_step(bench: Bench, model: Any, dtype: str, batch: int) -> Callable[[], None]:
    """Forward, loss and backward, leaving gradients."""
    settings = bench.settings
    inputs = bench.inputs(settings.train_size, bench.label_names(settings.train_labels), batch)
    labels = bench.targets(settings.train_labels, batch)

    def run() -> None:
        model.zero_grad(set_to_none=True)
        with torch.autocast(bench.device.type, getattr(torch, dtype), enabled=dtype != "float32"):
            loss = model(**inputs, labels=labels).loss
        loss.backward()

    return run


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
    """Ask a process that has no other model in memory."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as fresh:
        return fresh.submit(_added_here, settings, engine, batch).result()


def _added_here(settings: Settings, engine: str, batch: int) -> int:
    """Bytes that a training step adds to the memory of this process, on a CPU.

    Raises:
        OSError: the system does not tell (it is not Linux).
    """
    bench = build_bench(settings, only=engine)
    model = _trained(bench.model(engine, "float32"))
    warm_up = replace(bench, settings=replace(settings, train_size=_WARM_UP_SIZE))
    training_step(warm_up, model, "float32", 1)()
    model.zero_grad(set_to_none=True)
    with contextlib.suppress(OSError):
        _PROCESS_PEAK_RESET.write_text("5")
    before = _status_bytes("VmRSS")
    training_step(bench, model, "float32", batch)()
    return _status_bytes("VmHWM") - before


def _status_bytes(name: str) -> int:
    fields = dict(line.split(":", 1) for line in _PROCESS_STATUS.read_text().splitlines())
    return int(fields[name].split()[0]) * 1024
