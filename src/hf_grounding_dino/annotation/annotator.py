"""Labelling all pictures of a source: read ahead in threads, run in batches of like shape, kept as they come.

The pictures, in the order of their names, are cut into windows of 32. A window belongs to one shard, and its pictures
meet in the same batches however often the run is interrupted and into however many shards it is divided, so that the
numbers are the same to the last digit.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path, PurePosixPath

import torch

from ..data.images import load_image
from ..models.grounding_dino.modeling_grounding_dino import GroundingDinoForObjectDetection
from ..models.loading import model_fingerprint, model_title
from ..processing.processing_grounding_dino import GroundingDinoProcessor
from ..utils.memory import in_batches, is_out_of_memory
from .answers import AnnotationError, LabelledPicture, rounded_boxes
from .files import WORK_FOLDER, name_problem
from .finder import LARGEST_BATCH, Finder, Found, LabelFinder, Options, Prepared
from .journal import Answers, Journal, Shard
from .merging import PROBLEMS_FILE, Summary, merge, summarize
from .progress import Progress
from .settings import Settings, begin, digest_of, has_begun, relative_root
from .sources import PictureSource
from .writers import FORMATS

WINDOW = LARGEST_BATCH
"""Pictures that are read ahead together and divided into batches among themselves."""

_WHOLE = Shard()
_DEFAULTS = Options()
_MOST_THREADS = 16


def annotate(
    model: GroundingDinoForObjectDetection,
    processor: GroundingDinoProcessor,
    source: PictureSource,
    labels: Sequence[str],
    output: str | Path,
    *,
    format: str = "coco",
    options: Options = _DEFAULTS,
    shard: Shard = _WHOLE,
    progress: bool = True,
    revision: str | None = None,
) -> Summary:
    """Find labels in all pictures of a source and write them as a data set.

    What is found is kept in a journal as it comes: the same call after a kill goes on with the first picture that is
    not in it, and ends with the same files, byte for byte. Shards may run at once, on one computer or on several that
    share the output folder; the one that ends last writes the files, and `merge` does that by itself. A picture that
    cannot be read is written to problems.jsonl, and the rest is done.

    Args:
        model: the detector, where it is to run, in eval mode.
        processor: its processor.
        source: the pictures; see `sources`.
        labels: what to look for, each once.
        output: a folder; it is made.
        format: one of `writers.FORMATS`.
        options: which boxes are kept, and how many pictures run together; half as many where memory does not suffice.
        shard: which part of the pictures this call does.
        progress: show on stderr how many are done, the rate, and how long the rest takes.
        revision: the commit of the model's repo, for the `info` of COCO files; left out, a fingerprint stands there.

    Raises:
        AnnotationError: labels that cannot be looked for, a run that was begun in the folder with other labels, model,
            thresholds, format or pictures, files there that the run would replace, a file that cannot be written, or
            no memory for one picture at a time.
    """
    if format not in FORMATS:
        raise AnnotationError(f"the format {format!r} is none of {', '.join(FORMATS)}")
    finder = LabelFinder(model, processor, labels, options)
    settings = Settings(
        model=model_fingerprint(model, dict(processor.image_processor.size)),
        dtype=str(model.dtype).removeprefix("torch."),
        labels=list(labels),
        threshold=options.threshold,
        thresholds=dict(sorted(options.thresholds.items())),
        scoring=options.scoring,
        nms=options.nms,
        top_k=options.top_k,
        format=format,
        pictures=len(source.names),
        names=digest_of(source.names),
        root=relative_root(source.root, Path(output)),
        chunk_size=options.chunk_size,
        model_name=model_title(model.name_or_path or ""),
        revision=revision,
    )
    return run_annotation(finder, source, Path(output), settings, options=options, shard=shard, progress=progress)


def run_annotation(
    finder: Finder,
    source: PictureSource,
    output: Path,
    settings: Settings,
    *,
    options: Options = _DEFAULTS,
    shard: Shard = _WHOLE,
    progress: bool = True,
) -> Summary:
    """As `annotate`, with any finder; `settings` say all that its answers depend on.

    Raises:
        AnnotationError: as `annotate`.
    """
    if not 0 <= shard.index < shard.count:
        raise AnnotationError(f"there is no shard {shard}: from 1/{shard.count} to {shard.count}/{shard.count}")
    refused = _refused(source.names, settings.format)
    if not has_begun(output):
        _refuse_to_replace(output, settings.format, (n for i, n in enumerate(source.names) if i not in refused))
    begin(output, settings)
    work = output / WORK_FOLDER
    with Journal(work, shard) as journal:
        done = Answers(work, with_problems=False)  # what could not be read may be readable now
        windows = windows_of(len(source.names))[shard.index :: shard.count]
        todo = [window for window in windows if any(index not in done for index in window)]
        desk = _Desk(finder, source, refused, done, options.batch_size)
        total = sum(map(len, windows))
        left = sum(index not in done for window in todo for index in window)
        with Progress(total, total - left, shown=progress) as shown:
            for answers in desk.label(todo, options.threads or min(_MOST_THREADS, os.cpu_count() or 1)):
                journal.add(answers)
                shown.advance(len(answers))
    answers_of_all = Answers(work)
    if len(answers_of_all) < len(source.names):
        return summarize(answers_of_all, len(source.names), written=False)
    return merge(output)


def windows_of(count: int) -> list[range]:
    """The positions of `count` pictures, window by window."""
    return [range(start, min(start + WINDOW, count)) for start in range(0, count, WINDOW)]


def _refused(names: Sequence[str], format: str) -> dict[int, str]:
    """Which pictures get no answer whatever is in them, and why."""
    place = FORMATS[format].place
    refused: dict[int, str] = {}
    taken: dict[str, str] = {}
    for index, name in enumerate(names):
        problem = name_problem(name)
        if problem is None and place is not None:
            first = taken.setdefault(str(place(name)), name)
            if first != name:
                problem = f"its labels would be in the same file as those of {first}"
        if problem is not None:
            refused[index] = problem
    return refused


def _refuse_to_replace(output: Path, format: str, names: Iterable[str]) -> None:
    """Keep a new run from replacing files that it has not written."""
    _, files, place = FORMATS[format]
    places: Iterable[PurePosixPath] = [] if place is None else map(place, names)
    for name in chain(map(PurePosixPath, (*files, PROBLEMS_FILE)), places):
        if (output / name).exists():
            raise AnnotationError(f"{output / name} is there already: remove it, or choose another output folder")


@dataclass(frozen=True)
class _Row:
    """A picture on its way: what is wrong with it, or how it goes into the model."""

    index: int
    outcome: Prepared | str


@dataclass
class _Desk:
    """Where the pictures of one shard are read and answered.

    batch_size: as asked for, which decides the batches; of each, as many as there is memory for run together.
    """

    finder: Finder
    source: PictureSource
    refused: Mapping[int, str]
    done: Answers
    batch_size: int

    def __post_init__(self) -> None:
        self._at_once = self.batch_size

    def label(self, windows: Sequence[range], threads: int) -> Iterator[list[LabelledPicture]]:
        """The answers to all pictures that are not done, batch by batch."""
        with _threads(threads) as pool:
            for rows in self._read_ahead(windows, pool):
                bad = [self._bad(row) for row in rows if isinstance(row.outcome, str) and row.index not in self.done]
                if bad:
                    yield bad
                for batch in _batches(rows, self.batch_size):
                    if any(index not in self.done for index in batch):
                        yield self._answers(batch)

    def _read_ahead(self, windows: Sequence[range], pool: ThreadPoolExecutor) -> Iterator[list[_Row]]:
        """The pictures of each window, while those of the next are being read."""
        waiting: deque[list[Future[_Row]]] = deque()
        for window in windows:
            waiting.append([pool.submit(self._read, index) for index in window])
            if len(waiting) > 1:
                yield [future.result() for future in waiting.popleft()]
        while waiting:
            yield [future.result() for future in waiting.popleft()]

    def _read(self, index: int) -> _Row:
        if index in self.refused:
            return _Row(index, self.refused[index])
        try:
            return _Row(index, self.finder.prepare(load_image(self.source.picture(index))))
        except Exception as error:  # of sources and of decoders, which have none in common: it is one picture's
            return _Row(index, " ".join(str(error).split()) or type(error).__name__)

    def _bad(self, row: _Row) -> LabelledPicture:
        return LabelledPicture(row.index, self.source.names[row.index], problem=str(row.outcome))

    def _answers(self, batch: Mapping[int, Prepared]) -> list[LabelledPicture]:
        found: list[Found] = []
        try:
            self._at_once = in_batches(
                list(batch.values()), lambda some: found.extend(self.finder.find(some)), self._at_once
            )
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            raise AnnotationError("no memory for one picture at a time; what is done is kept") from error
        return [
            LabelledPicture(index, self.source.names[index], prepared.size, *rounded_boxes(*one))
            for (index, prepared), one in zip(batch.items(), found, strict=True)
            if index not in self.done
        ]


def _batches(rows: Sequence[_Row], batch_size: int) -> list[dict[int, Prepared]]:
    """The pictures of a window in batches of like shape, so that little of a batch is padding."""
    good = [(row.index, row.outcome) for row in rows if isinstance(row.outcome, Prepared)]
    good.sort(key=lambda item: (item[1].mask.shape[1] / item[1].mask.shape[0], item[1].mask.shape[0], item[0]))
    return [dict(good[first : first + batch_size]) for first in range(0, len(good), batch_size)]


def _compute_on_one_core(all_there: threading.Barrier) -> None:
    torch.get_num_threads()  # the first call in a thread takes the number of the process
    torch.set_num_threads(1)
    all_there.wait()


@contextmanager
def _threads(count: int) -> Iterator[ThreadPoolExecutor]:
    """Threads that are not waited for when the block is left in the middle.

    Each computes on one core: several that resize on all cores would keep the model from them, and halve its speed.
    """
    all_there = threading.Barrier(count + 1)
    pool = ThreadPoolExecutor(count, "read-ahead", initializer=_compute_on_one_core, initargs=(all_there,))
    try:
        before = torch.get_num_threads()
        for _ in range(count):
            pool.submit(int)
        all_there.wait()
        torch.set_num_threads(before)  # some of what the threads have set holds for the whole process
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)
