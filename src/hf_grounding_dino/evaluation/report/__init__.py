"""The report of an evaluation: `index.html` for people, `metrics.json` for programs."""

from __future__ import annotations

import json
import math
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from ... import __version__
from ...utils.atomic import write_atomic
from ..metrics.coco import ClassResult
from ..published import Published
from ..tasks import Task
from .calibration import calibration_error
from .diagnostics import Analysis, Predicted, analyse_detection, analyse_sentences
from .page import confused_pairs, render_page, render_summary
from .warnings import advise

PAGE_FILE, METRICS_FILE = "index.html", "metrics.json"
FORMAT = 2
"""Of metrics.json; a key that goes or changes its meaning makes it one more."""

_LIBRARIES = ("torch", "transformers", "faster-coco-eval", "numpy")


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What is known of an evaluation beside its predictions.

    model: its name or folder, as the user gave it.
    data: name of the dataset.
    date: when it was measured, as "2026-01-31" or longer.
    samples: how many the task has; of them `scored` have a prediction.
    protocol: all that decides the predictions beside model and images; values as JSON has them.
    seconds: that the model took, None where the predictions were read from a file; of `images_per_second`, too.
    device: what it ran on, and in which precision.
    missing: images that are named and do not exist.
    unreadable: images that cannot be read, each with the reason.
    published: what others measured, of the same protocol or with a note.
    command: what repeats it.
    """

    model: str
    data: str
    date: str
    samples: int
    scored: int
    protocol: Mapping[str, Any] = field(default_factory=dict)
    seconds: float | None = None
    images_per_second: float | None = None
    device: str = ""
    missing: tuple[str, ...] = ()
    unreadable: tuple[str, ...] = ()
    published: tuple[Published, ...] = ()
    command: str = ""


@dataclass(frozen=True, kw_only=True)
class EvaluationReport:
    """All that a report says.

    task: what was evaluated, for people.
    labels: category id to name; empty for tasks with sentences.
    numbers: what the metric says, in [0, 1], -1 where there is nothing to measure.
    classes: by label, where the metric has it.
    warnings: see `advise`.
    """

    task: str
    labels: Mapping[int, str]
    numbers: Mapping[str, float]
    classes: tuple[ClassResult, ...]
    analysis: Analysis
    facts: Facts
    warnings: tuple[str, ...]


def make_report(
    task: Task,
    predictions: Predicted,
    numbers: Mapping[str, float],
    facts: Facts,
    *,
    classes: Sequence[ClassResult] = (),
    tokenizer: PreTrainedTokenizerBase | None = None,
) -> EvaluationReport:
    """Look through the predictions, once, and say what is odd.

    Args:
        task: what was asked; by its labels or by sentences.
        predictions: samples with what was found in them, all that were scored; one at a time is held.
        numbers: what the task's metric says of them.
        facts: what is known beside.
        classes: each label's own result, where the metric has it.
        tokenizer: of the model; without it no warning comes of unknown words.
    """
    labels = dict(task.labels)
    analysis = analyse_detection(predictions, labels) if labels else analyse_sentences(predictions)
    return EvaluationReport(
        task=task.name,
        labels=labels,
        numbers=dict(numbers),
        classes=tuple(classes),
        analysis=analysis,
        facts=facts,
        warnings=tuple(advise(labels, numbers, analysis, facts, tokenizer)),
    )


def write_report(report: EvaluationReport, folder: str | os.PathLike[str]) -> None:
    """Write `index.html`, which needs no other file, and `metrics.json` into a folder, made if needed.

    The images of the worst errors are read; one that cannot be is said so in its place.

    Raises:
        OSError: the folder cannot be written.
    """
    root = Path(folder)
    root.mkdir(parents=True, exist_ok=True)
    text = json.dumps(metrics(report), indent=2, ensure_ascii=False, allow_nan=False)
    write_atomic(root / METRICS_FILE, text + "\n")
    write_atomic(root / PAGE_FILE, render_page(report, _versions()))


def write_summary(
    folder: Path,
    title: str,
    numbers: Mapping[str, Mapping[str, float]],
    means: Mapping[str, float],
    published: Sequence[Published] = (),
    *,
    limit: str = "",
) -> None:
    """Write `index.html` and `metrics.json` of several datasets of a benchmark above their reports.

    metrics.json has every number; the page leaves those by size and of recall to the reports.

    Args:
        folder: that holds a folder with the report of each dataset.
        title: of the benchmark, for people.
        numbers: of each dataset, what its metric says.
        means: over the datasets, of the metrics that have one.
        published: what others measured of the whole.
        limit: which samples of each were asked, where not all were.

    Raises:
        OSError: the folder cannot be written.
    """
    content = finite({"benchmark": title, "sets": numbers, "mean": means, "published": [asdict(p) for p in published]})
    content |= {"limit": limit} if limit else {}
    write_atomic(folder / PAGE_FILE, render_summary(title, numbers, means, published, limit))
    write_atomic(folder / METRICS_FILE, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def covers_all(folder: Path) -> bool:
    """Whether a report or a summary of all samples is in a folder, not one of the first few."""
    try:
        content = json.loads((folder / METRICS_FILE).read_bytes())
        if "sets" in content:
            return "limit" not in content
        counts = content["counts"]
        names = ("answered", "cases") if content["format"] == 1 else ("scored", "samples")
        return "limit" not in content["protocol"] or counts[names[0]] == counts[names[1]]
    except (OSError, ValueError, KeyError, TypeError):
        return False  # no report of ours, or none that could be used


def metrics(report: EvaluationReport) -> dict[str, Any]:
    """All numbers of a report as JSON has them: finite, null where there is none; -1 where COCO has it."""
    facts, analysis = report.facts, report.analysis
    best = max(analysis.points, key=lambda point: point.f1, default=None)
    content = {
        "format": FORMAT,
        "task": report.task,
        "data": facts.data,
        "model": facts.model,
        "date": facts.date,
        "metrics": report.numbers,
        "published": [asdict(number) for number in facts.published],
        "warnings": report.warnings,
        "per_class": [_class_row(row, report) for row in report.classes],
        "protocol": facts.protocol,
        "counts": {
            "samples": facts.samples,
            "scored": facts.scored,
            "missing": len(facts.missing),
            "unreadable": len(facts.unreadable),
            "truths": analysis.evidence.num_truths,
            "without_boxes": analysis.evidence.empty,
        },
        "missing": facts.missing,
        "unreadable": facts.unreadable,
        "speed": {
            "seconds": facts.seconds, "images_per_second": facts.images_per_second, "device": facts.device,
        },
        "limits": analysis.limits._asdict(),
        "calibration": {
            "error": calibration_error(analysis.bins),
            "bins": [{**row._asdict(), "precision": row.precision} for row in analysis.bins],
        },
        "best_threshold": None if best is None else {**best._asdict(), "f1": best.f1},
        "errors": analysis.errors,
        "confusion": [row._asdict() for row in confused_pairs(analysis.called, report.labels)],
        "by_length": [row._asdict() for row in analysis.lengths],
        "command": facts.command,
        "versions": _versions(),
    }  # fmt: skip
    plain: dict[str, Any] = finite(content)
    return plain


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


def _class_row(row: ClassResult, report: EvaluationReport) -> dict[str, Any]:
    return {
        "label": row.label,
        "name": report.labels.get(row.label, str(row.label)),
        "AP": row.ap,
        "AP50": row.ap50,
        "AP75": row.ap75,
        "recall": row.recall,
        "truths": row.num_truths,
        "found": row.num_found,
    }


def _versions() -> dict[str, str | None]:
    versions: dict[str, str | None] = {"hf_grounding_dino": __version__, "python": platform.python_version()}
    for name in _LIBRARIES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = None
    return versions
