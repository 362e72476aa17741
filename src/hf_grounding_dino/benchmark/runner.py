"""All cases, one after another; one that fails costs its own rows alone."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator

import torch

from . import exported, forward, kernel, training, vocabulary
from .rows import Row, failed
from .subjects import Bench

CASE_FUNCTIONS: dict[str, Callable[[Bench], Iterator[Row]]] = {
    "forward": forward.forward,
    "train": training.train,
    "kernel": kernel.kernel,
    "pipeline": vocabulary.pipeline,
    "vocabulary": vocabulary.vocabulary,
    "labels": forward.labels_sweep,
    "sizes": forward.sizes_sweep,
    "onnx": exported.onnx,
}


def run(bench: Bench) -> Iterator[Row]:
    """The rows of the cases that the settings name, as they are measured; whatever fails is a row that says why."""
    for case in bench.settings.cases:
        try:
            yield from CASE_FUNCTIONS[case](bench)
        except Exception as error:  # a case may fail in any of three packages
            yield failed(case, error)
        gc.collect()
        if bench.device.type == "cuda":
            torch.cuda.empty_cache()
