"""Evaluate a model by the protocols of the papers: `hf-grounding-dino evaluate coco --data DIR --model DIR`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_grounding_dino.assets import NANO
from hf_grounding_dino.utils.printable import printable

from . import PROGRAM, UserError, command_line, complain, quiet_libraries, say, table
from .data_options import Chosen, add_data_options, benchmark_lines, chosen_tasks, named_benchmark
from .files import check_folder
from .model_options import NANO_ANSWERS, add_model_option, add_threshold_options, named_model, post_processing_of
from .predicting import Predicted, join_processes, predict_task, predictor_for, results_path
from .problems import user_errors

if TYPE_CHECKING:
    from hf_grounding_dino.evaluation.published import Published
    from hf_grounding_dino.evaluation.report import EvaluationReport, Facts
    from hf_grounding_dino.evaluation.tasks import Task
    from hf_grounding_dino.inference.predictor import Predictor


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `evaluate`."""
    add_data_options(parser)
    add_model_option(parser, " (of the benchmark shapes alone, nano)")
    add_threshold_options(parser, tuned=False, by_protocol=True)
    parser.add_argument(
        "--output", type=Path, default=Path("report"), metavar="FOLDER",
        help="for index.html, metrics.json and the predictions (%(default)s); resumes existing predictions",
    )  # fmt: skip
    parser.add_argument("--partial", action="store_true", help="score what is predicted, where some samples are not")
    parser.add_argument("--save-results", type=Path, metavar="FILE", help="write COCO results, too, for test servers")
    parser.epilog = (
        "With --threshold or --nms, what `detect` shows is measured instead of the protocol's boxes. Many processes: "
        f"accelerate launch -m hf_grounding_dino evaluate ... `{PROGRAM} tune-thresholds` chooses a threshold for each "
        "label."
    )


def run(arguments: argparse.Namespace) -> int:
    """Measure, write the report and print it; 0, or 1 where images could not be read.

    Raises:
        UserError: whatever is wrong with the options, the data, the model or the predictions.
    """
    if arguments.list:
        say("\n".join(benchmark_lines()))
        return 0
    benchmark = named_benchmark(arguments)
    by_nano = arguments.model is None and arguments.predictions is None
    if arguments.predictions is None:
        arguments.model = named_model(arguments.model, or_nano=benchmark is not None and benchmark.kind == "shapes")
    check_folder(arguments.output)
    if arguments.save_results is not None:
        check_folder(arguments.save_results.parent)
    with quiet_libraries(), user_errors(ValueError, place=arguments.output):
        processes = join_processes(arguments)
        chosen = chosen_tasks(arguments, benchmark)
        _keep_full_reports(chosen, arguments)
        if arguments.threshold is not None or arguments.nms is not None:
            chosen = chosen._replace(tasks=[_as_detect_shows(task, arguments) for task in chosen.tasks])
        predictor = predictor_for(arguments, processes)
        if by_nano and processes.is_main_process:
            complain(NANO_ANSWERS)
        predicted: Iterable[tuple[Task, Predicted]] = (
            (task, predict_task(task, predictor, _folder(task, chosen, arguments), arguments)) for task in chosen.tasks
        )
        if processes.num_processes > 1:
            # While the main process scores, the others must not wait for it in the next dataset.
            predicted = list(predicted)
        if not processes.is_main_process:
            return 0
        reports = [_report(task, made, chosen, predictor, arguments) for task, made in predicted]
        if len(reports) > 1:
            _write_summary(reports, chosen, arguments)
    return 1 if any(report.facts.unreadable for report in reports) else 0


def _folder(task: Task, chosen: Chosen, arguments: argparse.Namespace) -> Path:
    """Of the report and the predictions of a task."""
    output: Path = arguments.output
    return output / task.name if len(chosen.tasks) > 1 else output


def _keep_full_reports(chosen: Chosen, arguments: argparse.Namespace) -> None:
    """Keep a limited run from replacing the report of all samples; a full one replaces that of a limited one.

    Raises:
        UserError: such a report exists.
    """
    from hf_grounding_dino.evaluation.report import covers_all

    if arguments.limit is None:
        return
    cut = [_folder(task, chosen, arguments) for task in chosen.tasks if task.left_out]
    for folder in dict.fromkeys([*cut, arguments.output] if cut else []):
        if covers_all(folder):
            raise UserError(f"{folder}: the report of all samples is there: give another --output with --limit")


def _as_detect_shows(task: Task, arguments: argparse.Namespace) -> Task:
    """A task whose labels are looked for by the rule of `detect` instead of the protocol's."""
    from hf_grounding_dino.evaluation.prompting import LabelPrompting

    if arguments.predictions is not None:
        raise UserError("--threshold and --nms are for asking a model, and change nothing about --predictions")
    if not isinstance(task.prompting, LabelPrompting):
        raise UserError(f"{task.name} has sentences instead of labels: there is no threshold and no --nms")
    return replace(task, prompting=replace(task.prompting, post=post_processing_of(arguments)))


def _report(
    task: Task, predicted: Predicted, chosen: Chosen, predictor: Predictor | None, arguments: argparse.Namespace
) -> EvaluationReport:
    """Score the predictions for one task, write the report and print it."""
    from hf_grounding_dino.evaluation.predictions import write_results
    from hf_grounding_dino.evaluation.report import make_report, write_report
    from hf_grounding_dino.evaluation.runner import samples_with_predictions, score

    folder, predictions = _folder(task, chosen, arguments), predicted.predictions
    scores = score(task, predictions, partial=arguments.partial)
    report = make_report(
        task,
        samples_with_predictions(task, predictions, partial=arguments.partial),
        scores.numbers,
        _facts(task, predicted, chosen, scores.scored, arguments),
        classes=getattr(scores.metric, "classes", ()),
        tokenizer=predictor.processor.tokenizer if predictor else None,
    )
    write_report(report, folder)
    if arguments.save_results is not None:
        several = len(chosen.tasks) > 1
        path = results_path(arguments.save_results, task.name) if several else arguments.save_results
        with user_errors(place=path):
            write_results(path, predictions)
    say(as_text(report, folder).rstrip("\n"))
    sys.stdout.flush()
    for warning in report.warnings:
        complain(warning)
    return report


def _facts(task: Task, predicted: Predicted, chosen: Chosen, scored: int, arguments: argparse.Namespace) -> Facts:
    from hf_grounding_dino.evaluation.published import published_beside
    from hf_grounding_dino.evaluation.report import Facts
    from hf_grounding_dino.inference.predictions import PredictionStore

    benchmark, run = chosen.benchmark, predicted.run
    stored = predicted.predictions if isinstance(predicted.predictions, PredictionStore) else None
    known = set(task.sample_ids)
    protocol = {} if stored is None else {key: v for key, v in (stored.protocol or {}).items() if key != "task"}
    published: tuple[Published, ...] = ()
    if benchmark is not None and arguments.predictions is None:
        compatible = arguments.mmdet_compatible
        published = published_beside(arguments.model, benchmark, task.name, mmdet_compatible=compatible)
    return Facts(
        model=str(arguments.predictions or _model_name(arguments)),
        data=benchmark.title if benchmark and len(chosen.tasks) == 1 else task.name,
        date=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        samples=len(task) + len(task.left_out),
        scored=scored,
        protocol={**protocol, **_counting(chosen, arguments)},
        seconds=run.seconds if run else None,
        images_per_second=run.per_second if run else None,
        device=run.device if run else "",
        missing=task.missing,
        unreadable=tuple(
            f"{one.sample_id}: {one.reason}"
            for one in (stored.unreadable() if stored else [])
            if one.sample_id in known
        ),
        published=published,
        command=command_line(),
    )


def _counting(chosen: Chosen, arguments: argparse.Namespace) -> dict[str, Any]:
    counting: dict[str, Any] = {"score_threshold": "none", "nms": "none"}
    if arguments.threshold is not None or arguments.nms is not None:
        post = post_processing_of(arguments)
        counting = {"score_threshold": post.threshold, "nms": "none" if post.nms is None else post.nms}
    if arguments.mmdet_compatible:
        counting["counted"] = "as mmdetection does"
    if arguments.limit is not None:
        counting["limit"] = _limit(arguments)
    if chosen.benchmark is not None and chosen.benchmark.note:
        counting["note"] = chosen.benchmark.note
    return counting


def _limit(arguments: argparse.Namespace) -> str:
    return "" if arguments.limit is None else f"the first {arguments.limit} samples"


def _model_name(arguments: argparse.Namespace) -> str:
    return NANO.name if arguments.model == str(NANO) else str(arguments.model)


def _write_summary(reports: list[EvaluationReport], chosen: Chosen, arguments: argparse.Namespace) -> None:
    """The datasets of a benchmark side by side, and of ODinW their mean."""
    from hf_grounding_dino.evaluation.benchmarks import odinw_mean, odinw_sets
    from hf_grounding_dino.evaluation.published import published_beside
    from hf_grounding_dino.evaluation.report import write_summary

    benchmark, output = chosen.benchmark, arguments.output
    assert benchmark is not None
    numbers = {report.task: report.numbers for report in reports}
    means = {}
    if benchmark.name.startswith("odinw"):
        measured = {name: scores["AP"] for name, scores in numbers.items() if scores["AP"] >= 0}
        if empty := [name for name in numbers if name not in measured]:
            complain(f"{len(empty)} of {len(numbers)} sets have nothing to measure: {', '.join(empty)}")
        names = [split.name for split in odinw_sets(benchmark.name)]
        means = {"AP": odinw_mean(measured, names, partial=True)} if measured else {}
        for name, mean in means.items():
            say(f"mean {name} of {len(measured)} sets: {mean:.4f}")
    published: tuple[Published, ...] = ()
    if arguments.predictions is None:
        published = published_beside(arguments.model, benchmark, mmdet_compatible=arguments.mmdet_compatible)
    write_summary(output, benchmark.title, numbers, means, published, limit=_limit(arguments))
    say(f"side by side: {output / 'index.html'}")


def as_text(report: EvaluationReport, folder: Path) -> str:
    """The numbers of a report, for a terminal."""
    facts = report.facts
    printed = {number.metric: number for number in reversed(facts.published)}
    rows = []
    for name, value in report.numbers.items():
        beside = printed.get(name)
        note = "" if beside is None else f"published {beside.value:.4f} ({beside.source}, {beside.note})"
        rows.append((name, f"{value:.4f}" if value >= 0 else "n/a", note))
    lines = [f"{printable(report.task)}: {facts.scored} of {facts.samples} samples", *table(rows, "<><", "  ")]
    if facts.images_per_second:
        lines.append(f"  {facts.images_per_second:.2f} images per second on {facts.device}")
    return "".join(f"{line}\n" for line in [*lines, f"  report: {folder / 'index.html'}"])
