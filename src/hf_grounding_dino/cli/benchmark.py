"""Time this package beside stock transformers: `hf-grounding-dino benchmark --output benchmark/`."""

from __future__ import annotations

import argparse
import io
import logging
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_grounding_dino.benchmark.settings import CASES, DTYPES, FULL, TINY, Settings, Size

from . import UserError, command_line, quiet_libraries, say, usable_device, whole_number
from .detect import load_detector
from .pictures import make_folder, write_file

if TYPE_CHECKING:
    from hf_grounding_dino.benchmark.rows import Row
    from hf_grounding_dino.benchmark.subjects import Bench

_GPU_REPEATS = 20
_count = whole_number(1)
# No option has a value unless it is given: the others come from the settings, full or tiny.
_NAMES = (
    "cases", "size", "train_size", "batches", "labels", "dtypes", "repeats", "stock_labels", "stock_chunks",
    "pipeline_labels", "vocabulary_labels", "model", "seed",
)  # fmt: skip


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `benchmark`."""

    def add(flag: str, name: str, kind: Callable[[str], Any], metavar: str, meaning: str, default: Any = None) -> None:
        shown = getattr(FULL, name) if default is None else default
        parser.add_argument(flag, dest=name, type=kind, metavar=metavar, help=f"{meaning} ({_shown(shown)})")

    add("--cases", "cases", _some_of(CASES), "CASE,...", "what to measure")
    add("--size", "size", _size, "HxW", "of the pictures")
    add("--train-size", "train_size", _size, "HxW", "of the pictures in train")
    add("--batch", "batches", _counts, "N,...", "pictures at once, in forward and train")
    add("--labels", "labels", _counts, "N,...", "labels of the prompt, in forward")
    add("--dtypes", "dtypes", _some_of(DTYPES), "TYPE,...", "what to compute in")
    add("--repeats", "repeats", _count, "N", "runs of each side", f"{FULL.repeats}, on a GPU {_GPU_REPEATS}")
    add("--pipeline-labels", "pipeline_labels", _count, "N", "labels in pipeline")
    add("--stock-labels", "stock_labels", _count, "N", "labels that stock's pipeline is timed on, then scaled")
    add("--vocabulary", "vocabulary_labels", _count, "N", "labels in vocabulary")
    add("--stock-chunks", "stock_chunks", _count, "N", "prompts that stock is timed on in vocabulary, then scaled")
    add("--seed", "seed", int, "N", "of the random weights and inputs")
    parser.add_argument("--model", help="a folder, or the name of a repo on the Hub (random weights of Swin-T)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, ... (%(default)s)")
    parser.add_argument("--no-compile", action="store_true", help="leave out torch.compile")
    parser.add_argument("--tiny", action="store_true", help="a network of random weights that runs in milliseconds")
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("benchmark"),
        metavar="FOLDER",
        help="where benchmark.json, benchmark.md and benchmark.png go (%(default)s)",
    )


def _shown(value: Any) -> str:
    if isinstance(value, tuple):
        is_size = len(value) == 2 and value in (FULL.size, FULL.train_size)
        return ("x" if is_size else ",").join(map(str, value))
    return str(value)


def _counts(text: str) -> tuple[int, ...]:
    return tuple(dict.fromkeys(_count(part.strip()) for part in text.split(",")))


def _size(text: str) -> Size:
    parts = text.lower().split("x")
    if len(parts) != 2:
        raise argparse.ArgumentTypeError(f"{text} is not a size such as 800x1200")
    return _count(parts[0]), _count(parts[1])


def _some_of(known: tuple[str, ...]) -> Callable[[str], tuple[str, ...]]:
    def read(text: str) -> tuple[str, ...]:
        chosen = [part.strip() for part in text.split(",")]
        for name in chosen:
            if name not in known:
                raise argparse.ArgumentTypeError(f"{name!r} is not one of {', '.join(known)}")
        return tuple(dict.fromkeys(chosen))

    return read


def run(arguments: argparse.Namespace) -> int:
    """Measure, write and print; 0 where something could be measured, 1 where nothing could. Rows say why not.

    Raises:
        UserError: there is no such model or device, or results cannot be written.
    """
    settings = _settings(arguments)
    make_folder(arguments.output)
    logging.disable(logging.WARNING)  # the compiler logs pages
    try:
        with quiet_libraries():
            rows = _measure(_bench(settings), arguments.output)
    finally:
        logging.disable(logging.NOTSET)
    return 0 if any(row.own_time.seconds for row in rows) else 1


def _settings(arguments: argparse.Namespace) -> Settings:
    given = {name: getattr(arguments, name) for name in _NAMES if getattr(arguments, name) is not None}
    if arguments.tiny and arguments.model is not None:
        raise UserError("give either --tiny or --model")
    device = str(usable_device(arguments.device))
    base = TINY if arguments.tiny else FULL
    repeats = _GPU_REPEATS if device.startswith("cuda") else base.repeats
    return replace(base, **{"device": device, "repeats": repeats, "compiled": not arguments.no_compile, **given})


def _bench(settings: Settings) -> Bench:
    from hf_grounding_dino.benchmark.subjects import build_bench, twin_bench

    if settings.model is None:
        return build_bench(settings)
    detector = load_detector(settings.model, device="cpu")
    return twin_bench(settings, detector.model, detector.processor)


def _measure(bench: Bench, output: Path) -> list[Row]:
    """Write after every row, so that an interrupted run leaves what it has measured."""
    from hf_grounding_dino.benchmark import report, runner
    from hf_grounding_dino.benchmark.plot import plot

    about = report.environment(bench.device, command_line())
    rows: list[Row] = []
    for row in runner.run(bench):
        say(report.summary(row), sys.stderr)
        rows.append(row)
        write_file(output / "benchmark.json", report.as_json(rows, bench.settings, about).encode())
        write_file(output / "benchmark.md", report.as_markdown(rows, about).encode())
    drawing = plot(rows)
    if drawing is not None:
        content = io.BytesIO()
        drawing.save(content, format="PNG", optimize=True)
        write_file(output / "benchmark.png", content.getvalue())
    markdown = report.as_markdown(rows, about, None if drawing is None else "benchmark.png")
    write_file(output / "benchmark.md", markdown.encode())
    say(markdown.rstrip("\n"))
    return rows
