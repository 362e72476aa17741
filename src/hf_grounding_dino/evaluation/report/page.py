"""The report as one HTML page that needs no other file, and the page above the reports of several datasets."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from importlib import resources
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import quote

import jinja2
import numpy as np

from ..metrics.coco import ClassResult
from ..published import Published
from .calibration import calibration_error
from .charts import Chart, Line, line_chart, reliability_chart, sparkline
from .diagnostics import Analysis
from .images import error_image

if TYPE_CHECKING:
    from . import EvaluationReport

MOST_IN_MATRIX = 30
"""Labels that a whole confusion matrix is drawn for; of more, only the pairs that are confused most."""

ERROR_WORDS = {
    "Cls": "right place, wrong label",
    "Loc": "right label, IoU 0.1 to 0.5",
    "Both": "wrong label, IoU 0.1 to 0.5",
    "Dupe": "a better box has found it",
    "Bkg": "on background",
    "Miss": "not found",
}
_SAID_OF_ALL = re.compile("AP[sml]|AR.*|mean_precision")  # left to the reports by a summary
_FEW_CLASSES, _MOST_TILES, _LONG_VALUE = 6, 4, 120
_MOST_PAIRS, _MOST_LEFT_OUT = 15, 10
_QUARTILES = (0.25, 0.75)

Called = Mapping[tuple[int | None, int | None], int]


def render_page(report: EvaluationReport, versions: Mapping[str, str | None]) -> str:
    """The page of a report; it opens the images of the worst errors and embeds them.

    Args:
        report: what to show.
        versions: of the programs that measured.
    """
    analysis, facts = report.analysis, report.facts
    total = sum(analysis.errors.values())
    measured = [row for row in report.classes if row.num_truths > 0 or row.num_found > 0]
    return _template("report.html.j2").render(
        style=_read("report.css"),
        report=report,
        facts=facts,
        analysis=analysis,
        tiles=list(_tiles(report)),
        headline=headline_rows(report.numbers, facts.published),
        compared=bool(facts.published),
        charts=list(_charts(report)),
        classes=[
            (_name(report.labels, row.label), row, sparkline(row.precision.tolist()))
            for row in sorted(measured, key=lambda row: -row.ap)
        ],
        errors=[(kind, ERROR_WORDS[kind], n, n / total) for kind, n in analysis.errors.items()] if total else [],
        pairs=confused_pairs(analysis.called, report.labels),
        missed=most_missed(analysis.called, report.labels),
        invented=most_invented(analysis.called, report.labels),
        matrix=confusion_matrix(analysis.called, report.labels),
        galleries=list(_galleries(analysis, bool(report.labels))),
        protocol=list(_protocol_rows(facts.protocol)),
        versions=versions,
    )


def render_summary(
    title: str,
    numbers: Mapping[str, Mapping[str, float]],
    means: Mapping[str, float],
    published: Sequence[Published],
    limit: str,
) -> str:
    """The page above the reports of several datasets; see `write_summary`."""
    every = dict.fromkeys(name for scores in numbers.values() for name in scores)
    return _template("summary.html.j2").render(
        title=title,
        style=_read("report.css"),
        columns=[name for name in every if not _SAID_OF_ALL.fullmatch(name)],
        numbers=numbers,
        means=means,
        published=published,
        page="index.html",
        limit=limit,
    )


@cache
def _template(name: str) -> jinja2.Template:
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    environment.lstrip_blocks = True
    environment.filters |= {"percent": percent, "address": quote}
    return environment.from_string(_read(name))


def _read(name: str) -> str:
    return resources.files(__package__).joinpath(name).read_text("utf-8")


def _tiles(report: EvaluationReport) -> Iterator[tuple[str, str]]:
    speed = report.facts.images_per_second
    room = _MOST_TILES - (speed is not None)
    for name, value in list(report.numbers.items())[:room]:
        yield name, percent(value)
    if speed is not None:
        yield "images per second", f"{speed:,.3g}"


def percent(value: float | None) -> str:
    """A number of [0, 1] as papers print it: 48.4; a dash where there is nothing to measure."""
    return "–" if value is None or not value >= 0 else f"{100 * value:.1f}"


# --- charts ------------------------------------------------------------------------------------------------------


def _charts(report: EvaluationReport) -> Iterator[Chart]:
    measured = [row for row in report.classes if row.num_truths > 0 and row.precision.max(initial=-1) >= 0]
    if measured:
        yield _precision_recall(measured, report)
    if report.analysis.bins:
        yield _reliability(report)
    if report.analysis.points:
        yield _thresholds(report.analysis, bool(report.labels))


def _precision_recall(classes: Sequence[ClassResult], report: EvaluationReport) -> Chart:
    recall = np.linspace(0, 1, len(classes[0].precision))
    curves = np.stack([row.precision for row in classes]).clip(min=0)
    mean = Line("mean over labels", _points(recall, curves.mean(0)), "c0 thick")
    if len(classes) <= _FEW_CLASSES:
        own = [
            Line(_name(report.labels, row.label), _points(recall, curve), f"c{i + 1}")
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


def _reliability(report: EvaluationReport) -> Chart:
    bins, limits = report.analysis.bins, report.analysis.limits
    what = "boxes" if report.labels else "best boxes"
    words = (
        f"Share of {what} that are right (IoU {limits.iou:g}) by score; {sum(row.boxes for row in bins):,} {what} "
        f"with a score from {limits.lowest:g}. Expected calibration error: {calibration_error(bins) or 0:.3f}, the "
        "mean distance from the dashed line. Pale bars: fewer than ten boxes."
    )
    legend = [("share that is right", "bar"), ("score = share", "ideal")]
    return Chart("Calibration of scores", reliability_chart(bins), legend, words)


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
    return Chart(
        "Precision, recall and F1 by threshold", line_chart(lines, ("score threshold", "share")), legend, words
    )


# --- tables ------------------------------------------------------------------------------------------------------


class HeadlineRow(NamedTuple):
    """A number of ours and one of others; None where one of them does not exist."""

    metric: str
    ours: float | None
    published: Published | None

    @property
    def difference(self) -> str:
        """Ours less theirs, in points of percent with its sign."""
        if self.ours is None or self.published is None or self.ours < 0:
            return "–"
        points = round(100 * (self.ours - self.published.value), 1)
        return f"{points:+.1f}".replace("-", "−") if points else "0.0"


class PairRow(NamedTuple):
    """What is there, what it is called, how often, and what share of all that is there."""

    truth: str
    called: str
    times: int
    share: float


def headline_rows(numbers: Mapping[str, float], published: Sequence[Published]) -> list[HeadlineRow]:
    """All of our numbers in their order, each with what others published of it, then what only others have."""
    rows = []
    for metric, value in numbers.items():
        others = [number for number in published if number.metric == metric]
        rows += [HeadlineRow(metric, value, other) for other in others] or [HeadlineRow(metric, value, None)]
    return rows + [HeadlineRow(other.metric, None, other) for other in published if other.metric not in numbers]


def confused_pairs(called: Called, labels: Mapping[int, str]) -> list[PairRow]:
    """The labels that are called by another name most often."""
    totals = _totals(called)
    wrong = Counter({pair: count for pair, count in called.items() if None not in pair and pair[0] != pair[1]})
    return [
        PairRow(_name(labels, truth), _name(labels, said), count, count / totals[truth])
        for (truth, said), count in wrong.most_common(_MOST_PAIRS)
        if truth is not None and said is not None
    ]


def most_missed(called: Called, labels: Mapping[int, str]) -> list[tuple[str, int, float]]:
    """The labels that are missed most often: name, count, and the share of all that is there."""
    totals = _totals(called)
    missed = Counter({truth: n for (truth, said), n in called.items() if said is None and truth is not None})
    return [(_name(labels, label), n, n / totals[label]) for label, n in missed.most_common(_MOST_LEFT_OUT)]


def most_invented(called: Called, labels: Mapping[int, str]) -> list[tuple[str, int]]:
    """The labels that are found on background most often."""
    invented = Counter({said: n for (truth, said), n in called.items() if truth is None and said is not None})
    return [(_name(labels, label), n) for label, n in invented.most_common(_MOST_LEFT_OUT)]


def confusion_matrix(called: Called, labels: Mapping[int, str]) -> list[tuple[str, list[tuple[int, float]]]]:
    """A row for each label that is there, "background" at last: its name, and (count, share) for what it is called.

    Columns are the labels in the same order, "not found" at last. Empty for more than `MOST_IN_MATRIX` labels, or where
    nothing is called anything.
    """
    if len(labels) > MOST_IN_MATRIX or not called:
        return []
    ends: list[int | None] = [*labels, None]
    rows = []
    for truth in ends:
        counts = [called.get((truth, said), 0) for said in ends]
        cells = [(count, count / max(1, sum(counts))) for count in counts]
        rows.append(("background" if truth is None else _name(labels, truth), cells))
    return rows


def _totals(called: Called) -> Counter[int | None]:
    totals: Counter[int | None] = Counter()
    for (truth, _), count in called.items():
        totals[truth] += count
    return totals


def _name(labels: Mapping[int, str], label: int) -> str:
    return labels.get(label, str(label))


def _galleries(analysis: Analysis, by_label: bool) -> Iterator[dict[str, Any]]:
    score = analysis.limits.score
    if by_label:
        wrong = f"Wrong boxes with the highest scores, from {score:g} on, at most one an image."
        missed = f"The largest objects that no box with a score from {score:g} on has found, at most one an image."
        titles = (("Worst false positives", wrong), ("Worst misses", missed))
    else:
        wrong = "Expressions whose best box is wrong, the highest scores first."
        missed = f"Expressions for which nothing scores {score:g} or more, the largest boxes first."
        titles = (("Worst false positives", wrong), ("Not found", missed))
    for (title, words), errors in zip(titles, (analysis.false_positives, analysis.misses), strict=True):
        yield {"title": title, "words": words, "errors": [(error, error_image(error)) for error in errors]}


def _protocol_rows(protocol: Mapping[str, Any]) -> Iterator[tuple[str, str, bool]]:
    """Each setting in words, and whether it is too long to be read in passing."""
    for name, value in protocol.items():
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
        yield str(name).replace("_", " "), "none" if value is None else text, len(text) > _LONG_VALUE
