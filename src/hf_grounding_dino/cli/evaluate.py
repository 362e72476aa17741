"""Measure a model by the protocols of the papers: `hf-grounding-dino evaluate coco --data DIR --model DIR`."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_grounding_dino.assets import NANO
from hf_grounding_dino.utils.printable import printable

from . import PROGRAM, UserError, command_line, complain, quiet_libraries, say
from .asking import Asked, ask, detector_for, join_processes, results_path
from .data_options import Chosen, add_data_options, benchmark_lines, chosen_tasks, named_benchmark
from .model_options import NANO_ANSWERS, add_model_option, add_threshold_options, named_model, post_processing_of
from .pictures import check_folder
from .problems import user_errors

if TYPE_CHECKING:
    from hf_grounding_dino.evaluation.benchmarks import Benchmark
    from hf_grounding_dino.evaluation.facts import Published, Report
    from hf_grounding_dino.evaluation.sets import CaseTask

    from .detect import Detector


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `evaluate`."""
    add_data_options(parser)
    add_model_option(parser, " (of the benchmark shapes alone, nano)")
    add_threshold_options(parser, calibrated=False, by_protocol=True)
    parser.add_argument(
        "--output", type=Path, default=Path("report"), metavar="FOLDER",
        help="for index.html, metrics.json and the predictions (%(default)s); what is there is gone on with",
    )  # fmt: skip
    parser.add_argument("--partial", action="store_true", help="score what is answered, where some cases are not")
    parser.add_argument("--save-results", type=Path, metavar="FILE", help="write COCO results, too, for test servers")
    parser.epilog = "With --threshold or --nms, what is measured is what `detect` shows, instead of the protocol's. "
    parser.epilog += (
        f"On many processes: accelerate launch -m hf_grounding_dino evaluate ... `{PROGRAM} tune-thresholds` "
    )
    parser.epilog += "chooses a threshold for each label."


def run(arguments: argparse.Namespace) -> int:
    """Measure, write the report and print it; 0, or 1 where pictures could not be read.

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
        if arguments.limit is not None:
            _refuse_to_replace(chosen, arguments)
        if arguments.threshold is not None or arguments.nms is not None:
            chosen = chosen._replace(tasks=[_asked_as_detect_asks(task, arguments) for task in chosen.tasks])
        detector = detector_for(arguments, processes)
        if by_nano and processes.is_main_process:
            complain(NANO_ANSWERS)
        asked: Iterable[tuple[CaseTask, Asked]] = (
            (task, ask(task, detector, _folder(task, chosen, arguments), arguments)) for task in chosen.tasks
        )
        if processes.num_processes > 1:
            # While the main process scores, the others must not wait for it in the next set.
            asked = list(asked)
        if not processes.is_main_process:
            return 0
        reports = [_measured(task, answers, chosen, detector, arguments) for task, answers in asked]
        if len(reports) > 1 and chosen.benchmark is not None:
            _sum_up(reports, chosen.benchmark, arguments)
    return 1 if any(report.facts.unreadable for report in reports) else 0


def _refuse_to_replace(chosen: Chosen, arguments: argparse.Namespace) -> None:
    """Keep a limited run from replacing the report of all cases; a full one replaces what a limited one has left.

    Raises:
        UserError: such a report is there.
    """
    from hf_grounding_dino.evaluation.report import METRICS_FILE

    cut = [_folder(task, chosen, arguments) for task in chosen.tasks if task.left_out]
    for folder in dict.fromkeys([*cut, arguments.output] if cut else []):
        if _is_of_all_cases(folder / METRICS_FILE):
            raise UserError(f"{folder}: the report of all cases is there: give another --output with --limit")


def _is_of_all_cases(file: Path) -> bool:
    try:
        content = json.loads(file.read_bytes())
        if "sets" in content:
            return "limit" not in content
        counts = content["counts"]
        return "limit" not in content["protocol"] or counts["answered"] == counts["cases"]
    except (OSError, ValueError, KeyError, TypeError):
        return False  # no report of ours, or none that could be used


def _asked_as_detect_asks(task: CaseTask, arguments: argparse.Namespace) -> CaseTask:
    """A task whose labels are looked for by the rule of `detect` instead of the protocol's."""
    from hf_grounding_dino.evaluation.askers import LabelAsker

    if arguments.predictions is not None:
        raise UserError("--threshold and --nms are for asking a model, and change nothing about --predictions")
    if not isinstance(task.ask, LabelAsker):
        raise UserError(f"{task.name} has sentences instead of labels: there is no threshold and no --nms")
    return replace(task, ask=replace(task.ask, kept=post_processing_of(arguments)))


def _folder(task: CaseTask, chosen: Chosen, arguments: argparse.Namespace) -> Path:
    """Of the report and the predictions of a task."""
    output: Path = arguments.output
    return output / task.name if len(chosen.tasks) > 1 else output


def _measured(
    task: CaseTask, asked: Asked, chosen: Chosen, detector: Detector | None, arguments: argparse.Namespace
) -> Report:
    """Score and report what was answered to one task."""
    from hf_grounding_dino.evaluation.report import write_report

    folder = _folder(task, chosen, arguments)
    report = _reported(task, asked, chosen, detector, arguments)
    write_report(report, folder)
    if arguments.save_results is not None:
        _save_results(task, asked, chosen, arguments.save_results)
    say(as_text(report, folder).rstrip("\n"))
    sys.stdout.flush()
    for warning in report.warnings:
        complain(warning)
    return report


def _reported(
    task: CaseTask, asked: Asked, chosen: Chosen, detector: Detector | None, arguments: argparse.Namespace
) -> Report:
    from hf_grounding_dino.evaluation.facts import Facts
    from hf_grounding_dino.evaluation.predictions import PredictionStore
    from hf_grounding_dino.evaluation.report import make_report
    from hf_grounding_dino.evaluation.runner import answers, score

    scores = score(task, asked.predictions, partial=arguments.partial)
    stored = asked.predictions if isinstance(asked.predictions, PredictionStore) else None
    known = set(task.case_ids)
    unreadable = [] if stored is None else [one for one in stored.unreadable() if one.case_id in known]
    facts = Facts(
        model=_model_name(arguments) if detector else str(arguments.predictions),
        data=chosen.benchmark.title if chosen.benchmark and len(chosen.tasks) == 1 else task.name,
        date=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        cases=scores.cases + len(task.left_out),
        answered=scores.answered,
        protocol={**(_protocol(stored) if stored else {}), **_counting(chosen, arguments)},
        seconds=asked.run.seconds if asked.run else None,
        pictures_per_second=asked.run.per_second if asked.run else None,
        device=asked.run.device if asked.run else "",
        missing=task.missing,
        unreadable=tuple(f"{one.case_id}: {one.reason}" for one in unreadable),
        published=tuple(_published(chosen.benchmark, arguments, task.name)) if chosen.benchmark else (),
        command=command_line(),
    )
    return make_report(
        task,
        answers(task, asked.predictions, partial=arguments.partial),
        scores.numbers,
        facts,
        classes=getattr(scores.metric, "classes", ()),
        tokenizer=detector.processor.tokenizer if detector else None,
    )


def _protocol(store: Any) -> Mapping[str, Any]:
    """How the answers were made, without the task's name, which the report has."""
    return {key: value for key, value in (store.protocol or {}).items() if key != "task"}


def _counting(chosen: Chosen, arguments: argparse.Namespace) -> dict[str, Any]:
    counting: dict[str, Any] = {"score_threshold": "none", "nms": "none"}
    if arguments.threshold is not None or arguments.nms is not None:
        kept = post_processing_of(arguments)
        counting = {"score_threshold": kept.threshold, "nms": "none" if kept.nms is None else kept.nms}
    if arguments.mmdet_compatible:
        counting["counted"] = "as mmdetection does"
    if arguments.limit is not None:
        counting["limit"] = _limit(arguments)
    if chosen.benchmark is not None and chosen.benchmark.note:
        counting["note"] = chosen.benchmark.note
    return counting


def _limit(arguments: argparse.Namespace) -> str:
    return "" if arguments.limit is None else f"the first {arguments.limit} cases"


def _model_name(arguments: argparse.Namespace) -> str:
    return NANO.name if arguments.model == str(NANO) else str(arguments.model)


def _published(benchmark: Benchmark, arguments: argparse.Namespace, part: str = "") -> Iterator[Published]:
    """What is printed of this model on a benchmark, or on one part of it."""
    from hf_grounding_dino.evaluation.facts import Published
    from hf_grounding_dino.evaluation.published import find_checkpoint, published

    if arguments.predictions is not None or find_checkpoint(arguments.model) is None:
        return
    counted = benchmark.published_options and not arguments.mmdet_compatible
    for number in published(arguments.model, benchmark.name):
        if part and number.benchmark != part:
            continue
        note = (
            number.benchmark if not part and number.benchmark != benchmark.name else "",
            number.mark,
            "" if number.chunk_size is None else f"chunks of {number.chunk_size}",
            "counted as with --mmdet-compatible" if counted else "",
            number.note,
            number.doubt,
        )
        yield Published(number.source, number.metric, number.value / 100, "; ".join(filter(None, note)))


def _save_results(task: CaseTask, asked: Asked, chosen: Chosen, file: Path) -> None:
    from hf_grounding_dino.evaluation.results_json import write_results

    path = results_path(file, task.name) if len(chosen.tasks) > 1 else file
    with user_errors(place=path):
        write_results(path, asked.predictions)


def _sum_up(reports: list[Report], benchmark: Benchmark, arguments: argparse.Namespace) -> None:
    """The sets of a benchmark side by side, and of ODinW their mean."""
    from hf_grounding_dino.evaluation.odinw import ODINW_13, ODINW_35, odinw_mean
    from hf_grounding_dino.evaluation.summary import write_summary

    output: Path = arguments.output
    numbers = {report.task: report.numbers for report in reports}
    means = {}
    sets = {"odinw13": ODINW_13, "odinw35": ODINW_35}.get(benchmark.name)
    if sets is not None:
        measured = {name: scores["AP"] for name, scores in numbers.items() if scores["AP"] >= 0}
        if empty := [name for name in numbers if name not in measured]:
            complain(f"{len(empty)} of {len(numbers)} sets have nothing to measure: {', '.join(empty)}")
        means = {"AP": odinw_mean(measured, sets, partial=True)} if measured else {}
        for name, mean in means.items():
            say(f"mean {name} of {len(measured)} sets: {mean:.4f}")
    published = list(_published(benchmark, arguments))
    write_summary(output, benchmark.title, numbers, means, published, limit=_limit(arguments))
    say(f"side by side: {output / 'index.html'}")


def as_text(report: Report, folder: Path) -> str:
    """The numbers of a report, for a terminal."""
    facts = report.facts
    printed = {number.metric: number for number in reversed(facts.published)}
    width = max(map(len, report.numbers), default=0)
    lines = [f"{printable(report.task)}: {facts.answered} of {facts.cases} cases"]
    for name, value in report.numbers.items():
        beside = printed.get(name)
        note = "" if beside is None else f"   published {beside.value:.4f} ({beside.source}, {beside.note})"
        lines.append(f"  {name:{width}}  {f'{value:.4f}' if value >= 0 else 'n/a':>7}{note}")
    if facts.pictures_per_second:
        lines.append(f"  {facts.pictures_per_second:.2f} pictures a second on {facts.device}")
    return "".join(f"{line}\n" for line in [*lines, f"  report: {folder / 'index.html'}"])
