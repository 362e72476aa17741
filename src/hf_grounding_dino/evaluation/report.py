"""The report of an evaluation: `index.html` for people, `metrics.json` for programs."""

from __future__ import annotations

import json
import math
import os
import platform
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from .. import __version__
from ..utils.atomic import write_atomic
from .advice import advise
from .analysis import Analysis, analyse_detection
from .average_precision import ClassResult
from .facts import Facts, Report
from .reliability import calibration_error
from .report_page import render_page
from .report_tables import confused_pairs
from .sentences import analyse_sentences
from .tasks import Answer, Case, Task

PAGE_FILE, METRICS_FILE = "index.html", "metrics.json"
FORMAT = 1
"""Of metrics.json; a key that goes or changes its meaning makes it one more."""

_LIBRARIES = ("torch", "transformers", "faster-coco-eval", "numpy")


def make_report(
    task: Task,
    answers: Iterable[tuple[Case, Answer]],
    numbers: Mapping[str, float],
    facts: Facts,
    *,
    classes: Sequence[ClassResult] = (),
    tokenizer: PreTrainedTokenizerBase | None = None,
) -> Report:
    """Look through the answers, once, and say what is odd.

    Args:
        task: what was asked; by its labels or by sentences.
        answers: cases with their answers, all that were scored; one at a time is held.
        numbers: what the task's metric says of them.
        facts: what is known beside.
        classes: each label's own result, where the metric has it.
        tokenizer: of the model; without it no warning comes of unknown words.
    """
    labels = dict(task.labels)
    analysis = analyse_detection(answers, labels) if labels else analyse_sentences(answers)
    warnings = advise(labels, numbers, analysis, facts, tokenizer)
    return Report(
        task=task.name,
        labels=labels,
        numbers=dict(numbers),
        classes=tuple(classes),
        analysis=analysis,
        facts=facts,
        warnings=tuple(warnings),
    )


def write_report(report: Report, folder: str | os.PathLike[str]) -> None:
    """Write `index.html`, which needs no other file, and `metrics.json` into a folder, made where it is not there.

    The pictures of the worst mistakes are read; one that cannot be is said so in its place.

    Raises:
        OSError: the folder cannot be written.
    """
    root = Path(folder)
    root.mkdir(parents=True, exist_ok=True)
    text = json.dumps(metrics(report), indent=2, ensure_ascii=False, allow_nan=False)
    write_atomic(root / METRICS_FILE, text + "\n")
    write_atomic(root / PAGE_FILE, render_page(report, _versions()))


def metrics(report: Report) -> dict[str, Any]:
    """All numbers of a report as JSON has them: finite, null where there is none; -1 where COCO has it."""
    facts, analysis = report.facts, report.analysis
    content = {
        "format": FORMAT,
        "task": report.task,
        "data": facts.data,
        "model": facts.model,
        "date": facts.date,
        "metrics": dict(report.numbers),
        "published": [asdict(number) for number in facts.published],
        "warnings": list(report.warnings),
        "per_class": [_class_row(row, report.labels) for row in report.classes],
        "protocol": dict(facts.protocol),
        "counts": {
            "cases": facts.cases,
            "answered": facts.answered,
            "missing": len(facts.missing),
            "unreadable": len(facts.unreadable),
            "truths": analysis.evidence.num_truths,
            "without_boxes": analysis.evidence.empty,
        },
        "missing": list(facts.missing),
        "unreadable": list(facts.unreadable),
        "speed": {
            "seconds": facts.seconds,
            "pictures_per_second": facts.pictures_per_second,
            "device": facts.device,
        },
        **_analysis_rows(analysis, report.labels),
        "command": facts.command,
        "versions": _versions(),
    }
    return finite(content)


def finite(value: Any) -> Any:
    """A value as JSON has it: numbers that are not finite become None, keys text, numpy's numbers and arrays plain."""
    if isinstance(value, Mapping):
        return {str(key): finite(item) for key, item in value.items()}
    if isinstance(value, np.ndarray | np.generic):
        return finite(value.tolist())
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, str | int) else str(value)


def _class_row(row: ClassResult, labels: Mapping[int, str]) -> dict[str, Any]:
    return {
        "label": row.label,
        "name": labels.get(row.label, str(row.label)),
        "AP": row.ap,
        "AP50": row.ap50,
        "AP75": row.ap75,
        "recall": row.recall,
        "truths": row.num_truths,
        "found": row.num_found,
    }


def _analysis_rows(analysis: Analysis, labels: Mapping[int, str]) -> dict[str, Any]:
    best = max(analysis.points, key=lambda point: point.f1, default=None)
    return {
        "limits": analysis.limits._asdict(),
        "calibration": {
            "error": calibration_error(analysis.bins),
            "bins": [{**row._asdict(), "precision": row.precision} for row in analysis.bins],
        },
        "best_threshold": None if best is None else {**best._asdict(), "f1": best.f1},
        "mistakes": dict(analysis.mistakes),
        "confusion": [row._asdict() for row in confused_pairs(analysis.called, labels)],
        "by_length": [row._asdict() for row in analysis.lengths],
    }


def _versions() -> dict[str, str | None]:
    return {
        "hf_grounding_dino": __version__,
        "python": platform.python_version(),
        **{name: _version(name) for name in _LIBRARIES},
    }


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
