"""The report as one HTML page that needs no other file."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from importlib import resources
from typing import Any, NamedTuple

import jinja2
import numpy as np

from .analysis import Analysis, Limits
from .average_precision import ClassResult
from .facts import Facts, Report
from .reliability import calibration_error
from .report_charts import Chart, Line, line_chart, reliability_chart, sparkline
from .report_pictures import mistake_picture
from .report_tables import confused_pairs, confusion_matrix, headline_rows, left_out_rows, percent

TEMPLATE = "report.html.j2"
STYLE = resources.files(__package__).joinpath("report.css").read_text("utf-8")
"""What all pages look like."""

_FEW_CLASSES = 6
_MOST_TILES = 4
_LONG_VALUE = 120
_QUARTILES = (0.25, 0.75)


class ClassRow(NamedTuple):
    """A row of the table of classes."""

    name: str
    result: ClassResult
    curve: str


def render_page(report: Report, versions: Mapping[str, str | None]) -> str:
    """The page of a report; it opens the pictures of the worst mistakes and embeds them.

    Args:
        report: what to show.
        versions: of the programs that measured.
    """
    analysis, facts = report.analysis, report.facts
    return _template().render(
        style=STYLE,
        report=report,
        facts=facts,
        analysis=analysis,
        tiles=list(_tiles(report)),
        headline=headline_rows(report.numbers, facts.published),
        compared=bool(facts.published),
        charts=list(_charts(report)),
        classes=_class_rows(report),
        mistakes=_shares(analysis.mistakes),
        pairs=confused_pairs(analysis.called, report.labels),
        left_out=left_out_rows(analysis.called, report.labels),
        matrix=confusion_matrix(analysis.called, report.labels),
        galleries=list(_galleries(analysis, bool(report.labels))),
        protocol=_plain_values(facts),
        versions=versions,
    )


@cache
def _template() -> jinja2.Template:
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    environment.lstrip_blocks = True
    environment.filters["percent"] = percent
    return environment.from_string(resources.files(__package__).joinpath(TEMPLATE).read_text("utf-8"))


def _tiles(report: Report) -> Iterator[tuple[str, str]]:
    speed = report.facts.pictures_per_second
    room = _MOST_TILES - (speed is not None)
    for name, value in list(report.numbers.items())[:room]:
        yield name, percent(value)
    if speed is not None:
        yield "pictures a second", f"{speed:,.3g}"


# --- charts ------------------------------------------------------------------------------------------------------


def _charts(report: Report) -> Iterator[Chart]:
    measured = [row for row in report.classes if row.num_truths > 0 and row.precision.max(initial=-1) >= 0]
    if measured:
        yield _precision_recall(measured, report)
    if report.analysis.bins:
        yield _reliability(report)
    if report.analysis.points:
        yield _thresholds(report.analysis, bool(report.labels))


def _precision_recall(classes: Sequence[ClassResult], report: Report) -> Chart:
    recall = np.linspace(0, 1, len(classes[0].precision))
    curves = np.stack([row.precision for row in classes]).clip(min=0)
    mean = Line("mean over labels", _points(recall, curves.mean(0)), "c0 thick")
    if len(classes) <= _FEW_CLASSES:
        own = [
            Line(report.labels.get(row.label, str(row.label)), _points(recall, curve), f"c{i + 1}")
            for i, (row, curve) in enumerate(zip(classes, curves, strict=True))
        ]
        shown, band = ([*own, mean] if len(own) > 1 else own), None
        words = "Each label at IoU 0.5."
    else:
        low, high = np.quantile(curves, _QUARTILES, axis=0)
        shown, band = [mean], (_points(recall, low), _points(recall, high))
        words = f"IoU 0.5. The band holds the middle half of {len(classes):,} labels; each has its curve in the table."
    legend = [(line.name, line.style) for line in shown] + ([("middle half of the labels", "band")] if band else [])
    return Chart("Precision and recall", line_chart(shown, ("recall", "precision"), band), legend, words)


def _points(x: Any, y: Any) -> list[tuple[float, float]]:
    return list(zip(x.tolist(), y.tolist(), strict=True))


def _reliability(report: Report) -> Chart:
    bins, limits = report.analysis.bins, report.analysis.limits
    error = calibration_error(bins)
    what = "boxes" if report.labels else "best boxes"
    words = (
        f"Of {what} with a score, how many are right (IoU {limits.iou:g}); {sum(row.boxes for row in bins):,} {what} "
        f"from {limits.lowest:g} on. On the dashed line a score would be a probability; the mean distance is "
        f"{error or 0:.3f}. Pale bars stand for fewer than ten."
    )
    legend = [("share that is right", "bar"), ("score = share", "ideal")]
    return Chart("Can scores be trusted?", reliability_chart(bins), legend, words)


def _thresholds(analysis: Analysis, by_label: bool) -> Chart:
    points = analysis.points
    best = max(points, key=lambda point: point.f1)
    lines = [
        Line("precision", [(point.threshold, point.precision) for point in points], "c1"),
        Line("recall", [(point.threshold, point.recall) for point in points], "c2"),
        Line("F1", [(point.threshold, point.f1) for point in points], "c0 thick"),
    ]
    words = (
        f"One threshold for {'all labels' if by_label else 'all expressions'} together. F1 is best at "
        f"{best.threshold:.2f}: precision {best.precision:.1%}, recall {best.recall:.1%}."
    )
    legend = [(line.name, line.style) for line in lines]
    return Chart("What a threshold does", line_chart(lines, ("threshold on the score", "share")), legend, words)


# --- tables and pictures -----------------------------------------------------------------------------------------


def _class_rows(report: Report) -> list[ClassRow]:
    rows = [
        ClassRow(report.labels.get(row.label, str(row.label)), row, sparkline(row.precision.tolist()))
        for row in report.classes
        if row.num_truths > 0 or row.num_found > 0
    ]
    return sorted(rows, key=lambda row: -row.result.ap)


def _shares(counts: Any) -> list[tuple[str, int, float]]:
    total = sum(counts.values())
    return [(kind, count, count / total) for kind, count in counts.items()] if total else []


def _galleries(analysis: Analysis, by_label: bool) -> Iterator[dict[str, Any]]:
    limits: Limits = analysis.limits
    if by_label:
        wrong = f"Wrong boxes with the highest scores, from {limits.score:g} on, at most one a picture."
        missed = f"The largest things that no box of their label and a score from {limits.score:g} on has found."
        titles = (("Worst false positives", wrong), ("Worst misses", missed))
    else:
        wrong = "Expressions whose best box is wrong, the highest scores first."
        missed = f"Expressions for which nothing scores {limits.score:g} or more, the largest boxes first."
        titles = (("Surely wrong", wrong), ("Not found", missed))
    for (title, words), mistakes in zip(titles, (analysis.false_positives, analysis.misses), strict=True):
        shown = [(mistake, mistake_picture(mistake)) for mistake in mistakes]
        yield {"title": title, "words": words, "mistakes": shown}


def _plain_values(facts: Facts) -> list[tuple[str, str, bool]]:
    """Each setting of the protocol in words, and whether it is too long to be read in passing."""
    rows = []
    for name, value in facts.protocol.items():
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
        rows.append((str(name).replace("_", " "), "none" if value is None else text, len(text) > _LONG_VALUE))
    return rows
