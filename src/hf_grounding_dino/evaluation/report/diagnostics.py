"""What predictions show beside the numbers: how far scores can be trusted, and what goes wrong.

Errors are those of TIDE (Bolya et al. 2020, arXiv 2008.08115): a wrong box is one of
Cls (on an object of another label), Loc (near an object of its label), Both (near one of another label), Dupe (on an
object that a better box has found) or Bkg (on nothing); an object is a Miss where no box is right and no Cls or Loc
box is its own. "On" is an IoU from 0.5, "near" one from 0.1 to 0.5.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ...data.records import ImageSource
from ..metrics.base import GroundTruth, ItemId, ScoredBoxes, read_boxes, read_ground_truth
from ..metrics.matching import UNMATCHED, Matching, box_iou, match
from ..tasks import Sample
from .calibration import OperatingPoint, ScoreBin, ScoreHistogram

CLS, LOC, BOTH, DUPE, BKG, MISS = ERRORS = ("Cls", "Loc", "Both", "Dupe", "Bkg", "Miss")

_BACKGROUND = 0.1
_MOST_SAMPLES = 50
_MOST_SAMPLE_BOXES = 100
# The bins of D3 (Xie et al. 2023).
_LENGTHS = {"1 to 3": range(4), "4 to 6": range(4, 7), "7 to 9": range(7, 10), "10 or more": range(10, 1_000_000)}


class Limits(NamedTuple):
    """Where the analysis draws its lines.

    score: from which score on a box counts as said; it decides what is an error, and what things are called.
    lowest: from which score on calibration is looked at.
    iou: from which IoU on a box is on an object.
    worst: how many errors of each sort are kept.
    """

    score: float = 0.3
    lowest: float = 0.05
    iou: float = 0.5
    worst: int = 12


class Mark(NamedTuple):
    """A box (xyxy, pixels) with its words; `score` is None for ground truth."""

    box: tuple[float, ...]
    label: str
    score: float | None = None


class Error(NamedTuple):
    """One thing that went wrong in one image.

    kind: one of `ERRORS`.
    truth: what was missed, or what a wrong box overlaps most.
    found: a wrong box, or the best one on what was missed.
    iou: of the two, where there are two.
    text: the sentence of the sample, where it has one.
    """

    sample_id: ItemId
    image: ImageSource
    kind: str
    truth: Mark | None
    found: Mark | None
    iou: float | None = None
    text: str = ""


class Worst:
    """Keeps the few errors that weigh most, the first of equals."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._offered = 0
        self._heap: list[tuple[float, int, Error]] = []

    def offer(self, weight: float, make: Callable[[], Error]) -> None:
        """Keep an error if it is among the worst so far; it is made only then."""
        self._offered += 1
        if self._count and (len(self._heap) < self._count or weight > self._heap[0][0]):
            push = heapq.heappush if len(self._heap) < self._count else heapq.heapreplace
            push(self._heap, (weight, -self._offered, make()))

    def ranked(self) -> list[Error]:
        """What was kept, the worst first."""
        return [error for *_, error in sorted(self._heap, key=lambda row: row[:2], reverse=True)]


LIMITS = Limits()


class BoxSample(NamedTuple):
    """Ground truth (n, 4) and best boxes (k, 4) of one image, kept to find out in which scale boxes are."""

    image: ImageSource
    truths: NDArray[np.float64]
    boxes: NDArray[Any]


class LengthBin(NamedTuple):
    """Expressions of `words` words (as "1 to 3"): how many, and how many were hit."""

    words: str
    expressions: int
    hits: int


@dataclass
class Evidence:
    """What `warnings` judges by; crowds aside.

    num_truths: boxes to be found.
    located: those that some box overlaps by IoU 0.5 or more, whatever its label.
    called: for the located ones, how often an object of one label has as its best-scoring box one of another.
    empty: images without any box.
    """

    num_truths: int = 0
    located: int = 0
    called: Counter[tuple[int, int]] = field(default_factory=Counter)
    empty: int = 0
    samples: list[BoxSample] = field(default_factory=list)


@dataclass(frozen=True)
class Analysis:
    """What the predictions of a task show.

    samples: how many were looked at.
    limits: where the lines were drawn.
    bins, points: calibration, and what thresholds do; of tasks without labels, of the best box of each expression.
    called: (truth, what its best-scoring box is called) to how often, at scores from `limits.score` on; (truth, None)
        where there is no such box; (None, label) for boxes on background.
    errors: how many of each kind, at scores from `limits.score` on.
    false_positives: boxes that are wrong though their scores are the highest; at most one an image.
    misses: the largest objects that are missed; at most one an image.
    lengths: hit rate by length, of tasks without labels.
    """

    samples: int
    limits: Limits
    bins: list[ScoreBin]
    points: list[OperatingPoint]
    evidence: Evidence
    called: Mapping[tuple[int | None, int | None], int]
    errors: Mapping[str, int]
    false_positives: list[Error]
    misses: list[Error]
    lengths: list[LengthBin]


Predicted = Iterable[tuple[Sample, ScoredBoxes]]


def analyse_detection(predictions: Predicted, labels: Mapping[int, str], limits: Limits = LIMITS) -> Analysis:
    """Look through the predictions of a task with labels, once.

    Args:
        predictions: samples with what was found in them; no more than one of them is held at a time.
        labels: category id to name.
        limits: where to draw the lines.
    """
    tally = _DetectionTally(labels, limits)
    for sample, found in predictions:
        tally.add(sample, found)
    return tally.finish()


def analyse_sentences(predictions: Predicted, limits: Limits = LIMITS) -> Analysis:
    """Look through the predictions for referring expressions or for the phrases of captions, once.

    An expression is hit when its best-scoring box overlaps one of its boxes by `limits.iou` or more; one that means
    nothing in the image, when no box reaches `limits.score`. Phrases of a caption that have no box are ignored. A wrong
    best box is Loc or Bkg, whatever its neighbours; below `limits.score` its expression is a Miss.
    """
    tally = _SentenceTally({}, limits)
    for sample, found in predictions:
        tally.add(sample, found)
    return tally.finish()


class _Tally:
    def __init__(self, labels: Mapping[int, str], limits: Limits) -> None:
        self.labels, self.limits = labels, limits
        self.samples = 0
        self.histogram = ScoreHistogram()
        self.evidence = Evidence()
        self.called: Counter[tuple[int | None, int | None]] = Counter()
        self.errors: Counter[str] = Counter()
        self.false_positives, self.misses = Worst(limits.worst), Worst(limits.worst)
        self.lengths: dict[str, list[bool]] = {name: [] for name in _LENGTHS}

    def finish(self) -> Analysis:
        """What was counted."""
        return Analysis(
            samples=self.samples,
            limits=self.limits,
            bins=self.histogram.bins(self.limits.lowest),
            points=self.histogram.operating_points(),
            evidence=self.evidence,
            called=self.called,
            errors=self.errors,
            false_positives=self.false_positives.ranked(),
            misses=self.misses.ranked(),
            lengths=[LengthBin(name, len(hits), sum(hits)) for name, hits in self.lengths.items() if hits],
        )


class _DetectionTally(_Tally):
    def __init__(self, labels: Mapping[int, str], limits: Limits) -> None:
        super().__init__(labels, limits)
        self.errors.update(dict.fromkeys(ERRORS, 0))

    def add(self, sample: Sample, found: ScoredBoxes) -> None:
        truth = read_ground_truth(sample.reference)
        matching = match(found, truth, self.limits.iou)
        self.samples += 1
        self.histogram.num_truths += int((~truth.crowds).sum())
        self.histogram.add(found.scores[~matching.ignored], matching.right[~matching.ignored])
        best = self._best_boxes(found, truth, matching)
        self._note_evidence(sample, found, truth, best)
        for label, i in zip(truth.labels[~truth.crowds].tolist(), best[~truth.crowds].tolist(), strict=True):
            said = i != UNMATCHED and found.scores[i] >= self.limits.score
            self.called[label, int(found.labels[i]) if said else None] += 1
        explained = self._note_wrong(sample, found, truth, matching)
        self._note_missed(sample, found, truth, matching, best, explained)

    def _best_boxes(self, found: ScoredBoxes, truth: GroundTruth, matching: Matching) -> NDArray[np.int64]:
        """For each object its best-scoring box of any label, `(n,)`, `UNMATCHED` where none overlaps it enough."""
        if not len(found.boxes):
            return np.full(len(truth.boxes), UNMATCHED, dtype=np.int64)
        scores = np.where(matching.iou >= self.limits.iou, found.scores[:, None], -np.inf)
        best: NDArray[np.int64] = np.where(np.isfinite(scores).any(0), scores.argmax(0), UNMATCHED)
        return best

    def _note_evidence(self, sample: Sample, found: ScoredBoxes, truth: GroundTruth, best: NDArray[np.int64]) -> None:
        evidence, real = self.evidence, ~truth.crowds
        evidence.num_truths += int(real.sum())
        evidence.empty += not len(found.boxes)
        located = real & (best != UNMATCHED)
        evidence.located += int(located.sum())
        evidence.called.update(zip(truth.labels[located].tolist(), found.labels[best[located]].tolist(), strict=True))
        if real.any() and len(found.boxes) and len(evidence.samples) < _MOST_SAMPLES:
            evidence.samples.append(BoxSample(sample.image, truth.boxes[real], found.boxes[:_MOST_SAMPLE_BOXES].copy()))

    def _note_wrong(self, sample: Sample, found: ScoredBoxes, truth: GroundTruth, matching: Matching) -> set[int]:
        """Count the wrong boxes; gives the objects that a Cls or Loc error is about."""
        wrong = np.flatnonzero(matching.wrong & (found.scores >= self.limits.score))
        kinds, explained = [], set()
        for i in wrong.tolist():
            kind, about = _kind_of_error(matching.iou[i], found.labels[i], truth, matching, self.limits.iou)
            kinds.append(kind)
            explained.add(about)
            if kind == BKG:
                self.called[None, int(found.labels[i])] += 1
        self.errors.update(kinds)
        if wrong.size:
            place = int(found.scores[wrong].argmax())
            worst = int(wrong[place])
            near = int(matching.iou[worst].argmax()) if len(truth.boxes) else UNMATCHED
            touching = near != UNMATCHED and matching.iou[worst, near] >= _BACKGROUND

            def make() -> Error:
                there = self._truth(truth, near) if touching else None
                iou = float(matching.iou[worst, near]) if touching else None
                return Error(sample.sample_id, sample.image, kinds[place], there, self._found(found, worst), iou)

            self.false_positives.offer(float(found.scores[worst]), make)
        return explained

    def _note_missed(
        self,
        sample: Sample,
        found: ScoredBoxes,
        truth: GroundTruth,
        matching: Matching,
        best: NDArray[np.int64],
        explained: set[int],
    ) -> None:
        hit = matching.truth[matching.right & (found.scores >= self.limits.score)]
        missed = np.setdiff1d(np.flatnonzero(~truth.crowds), [*hit.tolist(), *explained])
        self.errors[MISS] += len(missed)
        if not missed.size:
            return
        areas = (truth.boxes[:, 2:] - truth.boxes[:, :2]).prod(1)
        largest = int(missed[areas[missed].argmax()])
        i = int(best[largest])

        def make() -> Error:
            there = self._truth(truth, largest)
            if i == UNMATCHED:
                return Error(sample.sample_id, sample.image, MISS, there, None)
            iou = float(matching.iou[i, largest])
            return Error(sample.sample_id, sample.image, MISS, there, self._found(found, i), iou)

        self.misses.offer(float(areas[largest]), make)

    def _truth(self, truth: GroundTruth, i: int) -> Mark:
        label = int(truth.labels[i])
        return Mark(tuple(truth.boxes[i].tolist()), self.labels.get(label, str(label)))

    def _found(self, found: ScoredBoxes, i: int) -> Mark:
        label = int(found.labels[i])
        return Mark(tuple(found.boxes[i].tolist()), self.labels.get(label, str(label)), float(found.scores[i]))


def _kind_of_error(
    iou: NDArray[np.float64], label: np.int64, truth: GroundTruth, matching: Matching, foreground: float
) -> tuple[str, int]:
    """The kind of a wrong box, and the object that a Cls or Loc error is about, in the order of TIDE's program."""
    real = ~truth.crowds
    own, other = (np.where(real & same, iou, -1.0) for same in (truth.labels == label, truth.labels != label))
    taken = np.isin(np.arange(len(iou)), matching.truth)
    if not len(iou):
        return BKG, UNMATCHED
    if _BACKGROUND <= own.max() < foreground:
        return LOC, int(own.argmax())
    if other.max() >= foreground:
        return CLS, int(other.argmax())
    if own[taken].max(initial=-1.0) >= foreground:
        return DUPE, UNMATCHED
    return (BOTH if max(own.max(), other.max()) >= _BACKGROUND else BKG), UNMATCHED


class _SentenceTally(_Tally):
    def add(self, sample: Sample, found: ScoredBoxes) -> None:
        self.samples += 1
        self.evidence.empty += not len(found.boxes)
        for text, truths, best in _expressions(sample, found):
            self._judge(sample, found, text, truths, best)

    def _judge(
        self, sample: Sample, found: ScoredBoxes, text: str, truths: NDArray[np.float64], best: int | None
    ) -> None:
        every = box_iou(found.boxes, truths)
        meant, score = bool(len(truths)), -1.0 if best is None else float(found.scores[best])
        nearest = int(every[best].argmax()) if meant and best is not None else None
        iou = 0.0 if nearest is None else float(every[best, nearest])
        hit = iou >= self.limits.iou if meant else score < self.limits.score
        words = max(1, len(text.split()))
        self.lengths[next(name for name, length in _LENGTHS.items() if words in length)].append(hit)
        self.histogram.num_truths += meant
        self.evidence.num_truths += meant
        self.evidence.located += bool((every >= self.limits.iou).any())
        if best is not None:
            self.histogram.add(found.scores[[best]], np.array([iou >= self.limits.iou]))
        if hit:
            return
        kind = MISS if score < self.limits.score else LOC if iou >= _BACKGROUND else BKG
        self.errors[kind] += 1

        def make() -> Error:
            truth = Mark(tuple(truths[nearest or 0].tolist()), text) if meant else None
            mark = None if best is None else Mark(tuple(found.boxes[best].tolist()), text, score)
            overlap = None if nearest is None else iou
            return Error(sample.sample_id, sample.image, kind, truth, mark, overlap, sample.text)

        if kind == MISS:
            self.misses.offer(float((truths[:, 2:] - truths[:, :2]).prod(1).max()), make)
        else:
            self.false_positives.offer(score, make)


def _expressions(sample: Sample, found: ScoredBoxes) -> Iterator[tuple[str, NDArray[np.float64], int | None]]:
    """The sentence of a sample, or the phrases of its caption that have a box: words, boxes, and the best box found."""
    truths = read_boxes(sample.reference)
    if not sample.phrases:
        yield sample.text, truths, int(found.scores.argmax()) if len(found.boxes) else None
        return
    labels = np.asarray(sample.reference["labels"])
    for number, spans in enumerate(sample.phrases):
        boxes, own = truths[labels == number], np.flatnonzero(found.labels == number)
        if len(boxes):
            text = " … ".join(sample.text[start:end] for start, end in spans)
            yield text, boxes, int(own[found.scores[own].argmax()]) if own.size else None
