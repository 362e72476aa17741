"""What an evaluation's answers show beside the numbers: how far scores can be trusted, and what goes wrong."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..data.records import ImageSource
from .matching import UNMATCHED, Matching, Truths, match, truths_of
from .reliability import OperatingPoint, ScoreBin, ScoreHistogram
from .tasks import Answer, Case
from .worst import Mark, Mistake, Worst, corners

OTHER_LABEL = "another label"
DUPLICATE = "found a second time"
MISPLACED = "badly placed"
NOTHING_THERE = "nothing there"
MISSED = "not found"
MISTAKE_KINDS = (OTHER_LABEL, DUPLICATE, MISPLACED, NOTHING_THERE)

_TOUCHING = 0.1
_MOST_SAMPLES = 50
_MOST_SAMPLE_BOXES = 100


class Limits(NamedTuple):
    """Where the analysis draws its lines.

    score: from which score on a box counts as said; it decides what is missed, and what things are called.
    lowest: from which score on calibration is looked at.
    iou: from which overlap on a box is in the right place.
    worst: how many mistakes of each sort are kept.
    """

    score: float = 0.3
    lowest: float = 0.05
    iou: float = 0.5
    worst: int = 12


class Sample(NamedTuple):
    """Truths (n, 4) and best boxes (k, 4) of one picture, kept to find out in which scale boxes are."""

    image: ImageSource
    truths: NDArray[np.float64]
    boxes: NDArray[np.float32]


@dataclass
class Evidence:
    """What `advice` judges by; crowds aside.

    num_truths: boxes to be found.
    located: those that some box overlaps by IoU 0.5 or more, whatever its label.
    called: for the located ones, how often a truth of one label has as its best-scoring box one of another.
    empty: pictures without any box.
    """

    num_truths: int = 0
    located: int = 0
    called: Counter[tuple[int, int]] = field(default_factory=Counter)
    empty: int = 0
    samples: list[Sample] = field(default_factory=list)


class LengthBin(NamedTuple):
    """Expressions of `words` words (as "1–3"): how many, and how many were hit."""

    words: str
    expressions: int
    hits: int


@dataclass(frozen=True)
class Analysis:
    """What the answers to a task show.

    cases: how many were looked at.
    limits: where the lines were drawn.
    bins, points: calibration, and what thresholds do; of tasks without labels, of the best box of each expression.
    called: (truth, what its best-scoring box is called) to how often, at scores from `limits.score` on; (truth, None)
        where there is no such box; (None, label) for boxes where nothing is.
    mistakes: how many boxes from `limits.score` on are wrong in which way.
    false_positives: boxes that are wrong though their scores are the highest; at most one a picture.
    misses: the largest truths without a box; at most one a picture.
    lengths: hit rate by length, of tasks without labels.
    """

    cases: int
    limits: Limits
    bins: list[ScoreBin]
    points: list[OperatingPoint]
    evidence: Evidence
    called: Mapping[tuple[int | None, int | None], int]
    mistakes: Mapping[str, int]
    false_positives: list[Mistake]
    misses: list[Mistake]
    lengths: list[LengthBin]


def analyse_detection(
    answers: Iterable[tuple[Case, Answer]], labels: Mapping[int, str], limits: Limits | None = None
) -> Analysis:
    """Look through the answers to a task with labels, once.

    Args:
        answers: cases with what was found in them; no more than one of them is held at a time.
        labels: category id to name.
        limits: where to draw the lines.
    """
    tally = _Tally(labels, limits or Limits())
    for case, answer in answers:
        tally.add(case, answer)
    return tally.finish()


class _Tally:
    def __init__(self, labels: Mapping[int, str], limits: Limits) -> None:
        self.labels, self.limits = labels, limits
        self.cases = 0
        self.histogram = ScoreHistogram()
        self.evidence = Evidence()
        self.called: Counter[tuple[int | None, int | None]] = Counter()
        self.mistakes: Counter[str] = Counter(dict.fromkeys(MISTAKE_KINDS, 0))
        self.false_positives, self.misses = Worst(limits.worst), Worst(limits.worst)

    def add(self, case: Case, answer: Answer) -> None:
        truths = truths_of(case.reference)
        matching = match(answer, truths, self.limits.iou)
        self.cases += 1
        self.histogram.num_truths += int((~truths.crowd).sum())
        self.histogram.add(answer.scores[~matching.ignored], matching.right[~matching.ignored])
        best = self._best_boxes(answer, truths, matching)
        self._note_evidence(case, answer, truths, best)
        self._note_names(answer, truths, best)
        self._note_wrong(case, answer, truths, matching)
        self._note_missed(case, answer, truths, matching, best)

    def finish(self) -> Analysis:
        return Analysis(
            cases=self.cases,
            limits=self.limits,
            bins=self.histogram.bins(self.limits.lowest),
            points=self.histogram.operating_points(),
            evidence=self.evidence,
            called=self.called,
            mistakes=self.mistakes,
            false_positives=self.false_positives.ranked(),
            misses=self.misses.ranked(),
            lengths=[],
        )

    def _best_boxes(self, answer: Answer, truths: Truths, matching: Matching) -> NDArray[np.int64]:
        """For each truth its best-scoring box of any label, `(n,)`, `UNMATCHED` where none overlaps it enough."""
        if not len(answer.boxes):
            return np.full(len(truths.boxes), UNMATCHED, dtype=np.int64)
        scores = np.where(matching.overlap >= self.limits.iou, answer.scores[:, None], -np.inf)
        best: NDArray[np.int64] = np.where(np.isfinite(scores).any(0), scores.argmax(0), UNMATCHED)
        return best

    def _note_evidence(self, case: Case, answer: Answer, truths: Truths, best: NDArray[np.int64]) -> None:
        real = ~truths.crowd
        self.evidence.num_truths += int(real.sum())
        self.evidence.empty += not len(answer.boxes)
        located = real & (best != UNMATCHED)
        self.evidence.located += int(located.sum())
        pairs = zip(truths.labels[located].tolist(), answer.labels[best[located]].tolist(), strict=True)
        self.evidence.called.update(pairs)
        if real.any() and len(answer.boxes) and len(self.evidence.samples) < _MOST_SAMPLES:
            boxes = answer.boxes[:_MOST_SAMPLE_BOXES].copy()
            self.evidence.samples.append(Sample(case.image, truths.boxes[real], boxes))

    def _note_names(self, answer: Answer, truths: Truths, best: NDArray[np.int64]) -> None:
        for label, i in zip(truths.labels[~truths.crowd].tolist(), best[~truths.crowd].tolist(), strict=True):
            said = i != UNMATCHED and answer.scores[i] >= self.limits.score
            self.called[label, int(answer.labels[i]) if said else None] += 1

    def _note_wrong(self, case: Case, answer: Answer, truths: Truths, matching: Matching) -> None:
        wrong = np.flatnonzero(matching.wrong & (answer.scores >= self.limits.score))
        if not wrong.size:
            return
        kinds = [self._kind(i, answer, truths, matching) for i in wrong.tolist()]
        self.mistakes.update(kinds)
        self.called.update(
            (None, int(answer.labels[i])) for i, kind in zip(wrong, kinds, strict=True) if kind == NOTHING_THERE
        )
        place = int(answer.scores[wrong].argmax())
        worst, kind = int(wrong[place]), kinds[place]

        def make() -> Mistake:
            near = int(matching.overlap[worst].argmax()) if len(truths.boxes) else UNMATCHED
            touching = near != UNMATCHED and matching.overlap[worst, near] >= _TOUCHING
            truth = self._truth(truths, near) if touching else None
            overlap = float(matching.overlap[worst, near]) if touching else None
            return Mistake(case.case_id, case.image, kind, truth, self._found(answer, worst), overlap)

        self.false_positives.offer(float(answer.scores[worst]), make)

    def _kind(self, i: int, answer: Answer, truths: Truths, matching: Matching) -> str:
        overlap, own = matching.overlap[i], truths.labels == answer.labels[i]
        if (overlap[own] >= self.limits.iou).any():
            return DUPLICATE
        if (overlap >= self.limits.iou).any():
            return OTHER_LABEL
        return MISPLACED if (overlap[own] >= _TOUCHING).any() else NOTHING_THERE

    def _note_missed(
        self, case: Case, answer: Answer, truths: Truths, matching: Matching, best: NDArray[np.int64]
    ) -> None:
        hit = matching.truth[matching.right & (answer.scores >= self.limits.score)]
        missed = np.setdiff1d(np.flatnonzero(~truths.crowd), hit)
        if not missed.size:
            return
        areas = (truths.boxes[:, 2:] - truths.boxes[:, :2]).prod(1)
        largest = int(missed[areas[missed].argmax()])
        i = int(best[largest])

        def make() -> Mistake:
            truth = self._truth(truths, largest)
            if i == UNMATCHED:
                return Mistake(case.case_id, case.image, MISSED, truth, None)
            overlap = float(matching.overlap[i, largest])
            return Mistake(case.case_id, case.image, MISSED, truth, self._found(answer, i), overlap)

        self.misses.offer(float(areas[largest]), make)

    def _truth(self, truths: Truths, i: int) -> Mark:
        return Mark(corners(truths.boxes[i]), self._name(int(truths.labels[i])))

    def _found(self, answer: Answer, i: int) -> Mark:
        return Mark(corners(answer.boxes[i]), self._name(int(answer.labels[i])), float(answer.scores[i]))

    def _name(self, label: int) -> str:
        return self.labels.get(label, str(label))
