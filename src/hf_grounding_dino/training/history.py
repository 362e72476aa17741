"""What a run has written about itself, read back from `metrics.jsonl`."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, NamedTuple

Point = tuple[int, float]
NOTHING_TO_MEASURE = -1.0
"""What stands for an AP or AR where there is no box of that kind, as in pycocotools."""


class History(NamedTuple):
    """Numbers of a run by step, in the order of the steps.

    lines: name -> value of each logged step: the loss, its terms, the learning rate and what else was measured.
    evaluations: "<set>/<metric>" -> value of each evaluation; step 0 is before training.
    """

    lines: dict[int, dict[str, float]]
    evaluations: dict[int, dict[str, float]]

    def names(self) -> list[str]:
        """What was logged, in the order of its first appearance."""
        return list(dict.fromkeys(name for line in self.lines.values() for name in line))

    def curve(self, name: str) -> list[Point]:
        """(step, value) of a logged number, where it is finite."""
        return _finite([(step, line[name]) for step, line in self.lines.items() if name in line])

    def metrics(self) -> list[str]:
        """What was evaluated, in the order of its first appearance."""
        return list(dict.fromkeys(name for scores in self.evaluations.values() for name in scores))

    def scores(self, metric: str) -> list[Point]:
        """(step, value) of a metric "<set>/<metric>", where there was something to measure."""
        points = [(step, scores[metric]) for step, scores in self.evaluations.items() if metric in scores]
        return _finite([point for point in points if point[1] != NOTHING_TO_MEASURE])


def read_history(file: Path) -> History:
    """Read `metrics.jsonl`; a line that is no whole JSON object with a step is passed over, as a kill leaves one.

    A resumed run may log steps again that it had logged before it stopped: the later line counts, and what lies beyond
    it was undone. Evaluations at one step are joined.

    Raises:
        OSError: the file cannot be read.
    """
    lines: dict[int, dict[str, float]] = {}
    evaluations: dict[int, dict[str, float]] = {}
    last = -1
    for text in file.read_text(encoding="utf-8", errors="replace").splitlines():
        line = _object(text)
        step = line.get("step")
        if not isinstance(step, int):
            continue
        if isinstance(line.get("evaluation"), dict):
            evaluations.setdefault(step, {}).update(_numbers(line["evaluation"]))
        else:
            if step <= last:
                lines = {earlier: values for earlier, values in lines.items() if earlier < step}
                evaluations = {earlier: scores for earlier, scores in evaluations.items() if earlier <= step}
            last = step
            lines[step] = _numbers(line)
    return History(lines, dict(sorted(evaluations.items())))


def _object(text: str) -> dict[str, Any]:
    try:
        line = json.loads(text)
    except ValueError:
        return {}
    return line if isinstance(line, dict) else {}


def _numbers(values: dict[str, Any]) -> dict[str, float]:
    numeric = {name: value for name, value in values.items() if isinstance(value, int | float) and name != "step"}
    return {name: float(value) for name, value in numeric.items() if not isinstance(value, bool)}


def _finite(points: list[Point]) -> list[Point]:
    return [(step, value) for step, value in points if math.isfinite(value)]
