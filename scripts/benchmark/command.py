"""The command line: measures, and writes what it has after every row."""

from __future__ import annotations

import argparse
import dataclasses
import gc
import logging
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from hf_grounding_dino.cli import UserError, quiet_libraries, usable_device
from hf_grounding_dino.models.loading import LoadingError

from . import forward, kernel, pipelines, report, training
from .measure import Row, not_measured
from .models import Bench, build_bench
from .settings import TINY, Settings

CASE_FUNCTIONS: dict[str, Callable[[Bench], Iterator[Row]]] = {
    "forward": forward.forward,
    "train": training.train,
    "kernel": kernel.kernel,
    "pipeline": pipelines.pipeline,
    "vocabulary": pipelines.vocabulary,
    "labels": forward.labels_sweep,
    "sizes": forward.sizes_sweep,
    "onnx": forward.onnx,
}
_GPU_REPEATS = 20


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, write and print; 0 where something could be measured, 1 where nothing could. Rows say why not."""
    parser = _parser()
    given = vars(parser.parse_args(argv))
    output = given.pop("output")
    base = TINY if given.get("tiny") else Settings()
    if given.get("tiny") and given.get("model"):
        parser.error("give either --tiny or --model")
    logging.disable(logging.WARNING)  # the compiler logs pages
    try:
        device = str(usable_device(given.pop("device", base.device)))
        repeats = _GPU_REPEATS if device.startswith("cuda") else base.repeats
        settings = dataclasses.replace(base, **{"repeats": repeats, **given}, device=device)
        output.mkdir(parents=True, exist_ok=True)
        with quiet_libraries():
            rows = _measure(build_bench(settings), output, shlex.join(["scripts/benchmark", *(argv or sys.argv[1:])]))
    except (UserError, LoadingError, OSError) as error:
        parser.error(str(error))
    finally:
        logging.disable(logging.NOTSET)
    return 0 if any(row.own_time.seconds for row in rows) else 1


def _parser() -> argparse.ArgumentParser:
    """An option for each field of the settings; one that is not given is not there."""
    parser = argparse.ArgumentParser(
        prog="scripts/benchmark",
        description="Time this package beside stock transformers, on the same weights.",
        argument_default=argparse.SUPPRESS,
    )
    for field in dataclasses.fields(Settings):
        shown = _shown(field.default) if field.name != "repeats" else f"{field.default}, on a GPU {_GPU_REPEATS}"
        options: dict[str, Any] = {"help": f"{field.metadata['help']} ({shown})"}
        if isinstance(field.default, bool):
            options["action"] = argparse.BooleanOptionalAction
        else:
            options |= {"type": field.metadata["type"], "metavar": "VALUE"}
        parser.add_argument(f"--{field.name.replace('_', '-')}", **options)
    parser.add_argument(
        "--output", type=Path, default=Path("benchmark"), help="folder of benchmark.json, .md and .png (benchmark)"
    )
    return parser


def _shown(value: Any) -> str:
    if isinstance(value, tuple):
        is_size = len(value) == 2 and all(isinstance(side, int) and side > 99 for side in value)
        return ("x" if is_size else ",").join(map(_shown, value))
    return str(value)


def _measure(bench: Bench, output: Path, command: str) -> list[Row]:
    """Write after every row, so that an interrupted run leaves what it has measured."""
    about = report.environment(bench.device, command)
    rows: list[Row] = []
    for row in _rows(bench):
        sys.stderr.write(f"{report.summary(row)}\n")
        rows.append(row)
        (output / "benchmark.json").write_text(report.as_json(rows, bench.settings, about), encoding="utf-8")
        (output / "benchmark.md").write_text(report.as_markdown(rows, about), encoding="utf-8")
    drawn = report.write_plot(rows, output / "benchmark.png")
    markdown = report.as_markdown(rows, about, "benchmark.png" if drawn else None)
    (output / "benchmark.md").write_text(markdown, encoding="utf-8")
    sys.stdout.write(markdown)
    return rows


def _rows(bench: Bench) -> Iterator[Row]:
    """The rows of the cases that the settings name, as they are measured; whatever fails is a row that says why."""
    for case in bench.settings.cases:
        try:
            yield from CASE_FUNCTIONS[case](bench)
        except Exception as error:  # a case may fail in any of three packages
            yield not_measured(case, error)
        gc.collect()
        if bench.device.type == "cuda":
            torch.cuda.empty_cache()
