"""The options that name what a model is evaluated on: a benchmark with its data, or a data set of any format."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from . import UserError, complete_with, did_you_mean, whole_number
from .model_options import add_limit_options, add_running_options

if TYPE_CHECKING:
    from hf_grounding_dino.evaluation.benchmarks import Benchmark
    from hf_grounding_dino.evaluation.tasks import Task


class Chosen(NamedTuple):
    """What is evaluated on.

    benchmark: None where a data set was named instead.
    """

    tasks: list[Task]
    benchmark: Benchmark | None


def add_data_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that `chosen_tasks` reads."""
    count = whole_number(1)
    benchmark = parser.add_argument(
        "benchmark", nargs="?", metavar="BENCHMARK", help="coco, lvis_minival, odinw13, ... (--list)"
    )
    complete_with(benchmark, _benchmark_names)
    parser.add_argument("--list", action="store_true", help="show the benchmarks with the files that they need")
    parser.add_argument("--data", type=Path, metavar="FOLDER", help="of a benchmark: where its files lie")
    parser.add_argument(
        "--format", default="coco", help="coco, lvis, odvg, mdetr, yolo, voc, datasets or shapes (%(default)s)"
    )
    parser.add_argument("--annotations", metavar="PATH", help="instead of a benchmark: file or folder of annotations")
    parser.add_argument(
        "--images", metavar="FOLDER",
        help="where names of images start (beside the annotations; of COCO files with --predictions not looked for)",
    )  # fmt: skip
    parser.add_argument(
        "--label-map", metavar="FILE", help="how labels are called: JSON, a name a line, or a data.yaml"
    )
    parser.add_argument("--split", help="of sets that have several (train)")
    parser.add_argument(
        "--as", dest="reading", choices=("phrases", "expressions"),
        help="of captions: look for their phrases, or take each as one expression (which of them the captions tell)",
    )  # fmt: skip
    parser.add_argument("--limit", type=count, metavar="N", help="the first N samples only")
    parser.add_argument(
        "--leave-out-missing",
        action="store_true",
        help="do without images that are missing, and say so (COCO and LVIS files, benchmarks)",
    )
    parser.add_argument(
        "--mmdet-compatible", action="store_true", help="count as mmdetection does where that moves a number"
    )
    parser.add_argument("--num-workers", type=count, default=2, metavar="N", help="threads that read images")
    add_limit_options(parser, by_protocol=True)
    add_running_options(parser)
    parser.add_argument(
        "--predictions", type=Path, metavar="PATH",
        help="score these instead of asking a model: a folder of an earlier run, or a JSON list of COCO results",
    )  # fmt: skip


def named_benchmark(arguments: argparse.Namespace) -> Benchmark | None:
    """The benchmark that the options name, None where they name a data set; told without importing torch.

    Raises:
        UserError: neither or both of a benchmark and a data set are named, there is no such benchmark, or an option
            does not go with another.
    """
    from hf_grounding_dino.data.readers import FORMATS
    from hf_grounding_dino.evaluation.benchmarks import find_benchmark

    if arguments.predictions is not None and (arguments.chunk_size or arguments.top_k):
        raise UserError("--chunk-size and --top-k are for asking a model, and change nothing about --predictions")
    if arguments.benchmark is None:
        if arguments.annotations is None:
            raise UserError("name a benchmark with --data FOLDER (see --list), or a data set with --annotations PATH")
        known = ("coco", "lvis", *(name for name in FORMATS if name != "coco"))
        if arguments.format not in known:
            raise UserError(
                f"format {arguments.format!r} is not one of {', '.join(known)}{did_you_mean(arguments.format, known)}"
            )
        return None
    try:
        benchmark = find_benchmark(arguments.benchmark)
    except ValueError as error:
        raise UserError(error) from error
    if arguments.annotations is not None:
        raise UserError(f"give the benchmark {benchmark.name} or --annotations, not both")
    if arguments.data is None and benchmark.kind != "shapes":
        raise UserError(f"--data is missing: the folder of {benchmark.title}, downloadable from {benchmark.source}")
    return benchmark


def chosen_tasks(arguments: argparse.Namespace, benchmark: Benchmark | None) -> Chosen:
    """What the options name.

    Raises:
        DataError: the data cannot be used.
    """
    from hf_grounding_dino.data.records import SourceEntry
    from hf_grounding_dino.evaluation.datasets import TaskOptions, benchmark_tasks, source_task

    options = TaskOptions(
        arguments.chunk_size,
        arguments.top_k,
        arguments.mmdet_compatible,
        arguments.leave_out_missing,
        arguments.reading,
    )
    if benchmark is not None:
        tasks = benchmark_tasks(benchmark, arguments.data, options)
    else:
        images = arguments.images
        if images is None and arguments.format in ("coco", "lvis") and arguments.predictions is None:
            images = str(Path(arguments.annotations).parent)
        entry = SourceEntry(
            format=arguments.format,
            annotations=arguments.annotations,
            images=images,
            label_map=arguments.label_map,
            split=arguments.split,
        )
        tasks = [source_task(entry, options)]
    if arguments.limit is not None:
        tasks = [task.first(arguments.limit) for task in tasks]
    return Chosen(tasks, benchmark)


def _benchmark_names() -> list[str]:
    from hf_grounding_dino.evaluation.benchmarks import BENCHMARKS, SHAPES

    return [benchmark.name for benchmark in (SHAPES, *BENCHMARKS)]


def benchmark_lines() -> list[str]:
    """The benchmarks, one a line, with the first place of each file below the data root."""
    from hf_grounding_dino.evaluation.benchmarks import BENCHMARKS, SHAPES

    lines = []
    for benchmark in (SHAPES, *BENCHMARKS):
        lines.append(f"{benchmark.name:12}  {benchmark.title}; {benchmark.source}")
        for split in benchmark.splits:
            lines.append(f"{'':14}{split.name}: {split.annotations[0]}, images in {split.images[0]}")
    return lines
