"""What the answers to sentences show: which expressions are hit, by their length, and which are failed surely."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from .analysis import MISSED, Analysis, Evidence, LengthBin, Limits
from .matching import truths_of
from .overlap import overlaps
from .reliability import ScoreHistogram
from .tasks import Answer, Case
from .worst import Mark, Mistake, Worst, corners

WRONG_PLACE = "wrong place"
NOTHING_MEANT = "nothing is meant"

# The bins of D3 (Xie et al. 2023).
_LENGTHS = ((1, 3), (4, 6), (7, 9), (10, None))


class _Expression(NamedTuple):
    """One expression of a case: its words, its boxes (n, 4), and its best box where there is one."""

    text: str
    truths: NDArray[np.float64]
    best: int | None


def analyse_sentences(answers: Iterable[tuple[Case, Answer]]) -> Analysis:
    """Look through the answers to referring expressions or to the phrases of captions, once.

    An expression is hit when its best-scoring box overlaps one of its boxes by `Limits.iou` or more; one that means
    nothing in the picture, when no box reaches `Limits.score`. Phrases of a caption that have no box are passed over.

    Returns:
        The bins and points are of the best box of each expression; nothing is called by another name. Misses are
        expressions without any box, or with the best one far off at a score below `Limits.score`.
    """
    tally = _Tally()
    for case, answer in answers:
        tally.add(case, answer)
    return tally.finish()


class _Tally:
    def __init__(self) -> None:
        self.limits = Limits()
        self.cases = 0
        self.histogram = ScoreHistogram()
        self.evidence = Evidence()
        self.counts: Counter[str] = Counter()
        self.hits: Counter[str] = Counter()
        self.mistakes: Counter[str] = Counter()
        self.false_positives, self.misses = Worst(self.limits.worst), Worst(self.limits.worst)

    def add(self, case: Case, answer: Answer) -> None:
        self.cases += 1
        self.evidence.empty += not len(answer.boxes)
        for expression in _expressions(case, answer):
            self._judge(case, answer, expression)

    def finish(self) -> Analysis:
        names = [_bin_name(*bounds) for bounds in _LENGTHS]
        return Analysis(
            cases=self.cases,
            limits=self.limits,
            bins=self.histogram.bins(self.limits.lowest),
            points=self.histogram.operating_points(),
            evidence=self.evidence,
            called={},
            mistakes=self.mistakes,
            false_positives=self.false_positives.ranked(),
            misses=self.misses.ranked(),
            lengths=[LengthBin(name, self.counts[name], self.hits[name]) for name in names if self.counts[name]],
        )

    def _judge(self, case: Case, answer: Answer, expression: _Expression) -> None:
        overlap = overlaps(answer.boxes, expression.truths)
        best = expression.best
        score = -1.0 if best is None else float(answer.scores[best])
        near = 0.0 if best is None or not overlap.size else float(overlap[best].max())
        meant = bool(len(expression.truths))
        located = near >= self.limits.iou
        hit = located if meant else score < self.limits.score
        length = _length_bin(expression.text)
        self.counts[length] += 1
        self.hits[length] += hit
        self.histogram.num_truths += meant
        self.evidence.num_truths += meant
        self.evidence.located += bool((overlap >= self.limits.iou).any())
        if best is not None:
            self.histogram.add(answer.scores[[best]], np.array([located]))
        if not hit:
            self._note_failure(case, answer, expression, None if best is None or not meant else overlap[best])

    def _note_failure(
        self, case: Case, answer: Answer, expression: _Expression, overlap: NDArray[np.float64] | None
    ) -> None:
        truths, best = expression.truths, expression.best
        score = -1.0 if best is None else float(answer.scores[best])
        said = score >= self.limits.score
        near = 0.0 if overlap is None else float(overlap.max())
        kind = MISSED if not said else WRONG_PLACE if len(truths) else NOTHING_MEANT
        self.mistakes[kind] += 1

        def make() -> Mistake:
            nearest = 0 if overlap is None else int(overlap.argmax())
            truth = Mark(corners(truths[nearest]), expression.text) if len(truths) else None
            found = None if best is None else Mark(corners(answer.boxes[best]), expression.text, score)
            return Mistake(case.case_id, case.image, kind, truth, found, None if overlap is None else near, case.text)

        if said:
            self.false_positives.offer(score, make)
        else:
            self.misses.offer(float((truths[:, 2:] - truths[:, :2]).prod(1).max()), make)


def _expressions(case: Case, answer: Answer) -> Iterator[_Expression]:
    """The sentence of a case, or the phrases of its caption that have a box."""
    truths = truths_of(case.reference)
    if not case.spans:
        best = int(answer.scores.argmax()) if len(answer.boxes) else None
        yield _Expression(case.text, truths.boxes, best)
        return
    for number, spans in enumerate(case.spans):
        boxes = truths.boxes[truths.labels == number]
        if len(boxes):
            own = np.flatnonzero(answer.labels == number)
            best = int(own[answer.scores[own].argmax()]) if own.size else None
            yield _Expression(" … ".join(case.text[start:end] for start, end in spans), boxes, best)


def _length_bin(text: str) -> str:
    words = max(1, len(text.split()))
    return next(_bin_name(low, high) for low, high in _LENGTHS if high is None or words <= high)


def _bin_name(low: int, high: int | None) -> str:
    return f"{low} or more" if high is None else f"{low} to {high}"
