"""Labelling all images of a source as a data set, in any number of parts, resumed where it was cut off.

The images, in the order of their names, are cut into windows of 32. A window belongs to one shard, and its images meet
in the same batches however often the run is interrupted and into however many shards it is divided, so that the numbers
are the same to the last digit.
"""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path, PurePosixPath

from ..data.records import ImageSource
from ..inference.predictions import NOTHING_FOUND, scored_boxes
from ..inference.predictor import WINDOW, Predictor, Request, Shard
from ..inference.prompting import LabelPrompt
from ..models.loading import model_fingerprint, model_title
from ..processing.defaults import DEFAULTS, PostProcessing
from ..utils.memory import is_out_of_memory
from ..utils.progress import progress_bar
from .checkpoint import (
    AnnotationError,
    Checkpoint,
    LabelledImage,
    Run,
    digest_of,
    is_writable_text,
    name_problem,
    relative_root,
)
from .sinks import FORMATS, atomic_text
from .sources import Source

PROBLEMS_FILE = "problems.jsonl"

_WHOLE = Shard()


@dataclass(frozen=True)
class Summary:
    """How far a run has come.

    images: of the source.
    done: by any shard, those with problems among them.
    boxes: in them.
    problems: (name, reason) of those that could not be labelled, in the order of the images.
    written: whether the files are there, which needs all images to be done.
    """

    images: int
    done: int
    boxes: int
    problems: list[tuple[str, str]]
    written: bool


def annotate(
    predictor: Predictor,
    source: Source,
    labels: Sequence[str],
    output: str | Path,
    *,
    format: str = "coco",
    post: PostProcessing = DEFAULTS,
    shard: Shard = _WHOLE,
    progress: bool = True,
    revision: str | None = None,
) -> Summary:
    """Find labels in all images of a source and write them as a data set.

    What is found is kept as it comes: the same call after a kill goes on with what is missing, and ends with the same
    files, byte for byte. Shards may run at once, on one computer or on several that share the output folder; the one
    that ends last writes the files, and `merge` does that by itself. An image that cannot be read is written to
    problems.jsonl, and the rest is done.

    Args:
        predictor: the model, with batches of 1 to 32 images.
        source: the images; see `sources`.
        labels: what to look for, each once.
        output: a folder; it is made.
        format: one of `sinks.FORMATS`.
        post: which boxes are kept.
        shard: which part of the images this call does.
        progress: show on stderr how many are done, the rate, and how long the rest takes.
        revision: the commit of the model's repo, for the `info` of COCO files; left out, a fingerprint stands there.

    Raises:
        AnnotationError: labels that cannot be looked for, a run that was begun in the folder with other labels, model,
            thresholds, format or images, files there that the run would replace, a file that cannot be written, or no
            memory for one image at a time.
    """
    if format not in FORMATS:
        raise AnnotationError(f"the format {format!r} is none of {', '.join(FORMATS)}")
    if predictor.batch_size > WINDOW:
        raise AnnotationError(f"the batch size is {predictor.batch_size}: 1 to {WINDOW} is possible")
    _check_labels(labels, post)
    model, prompt = predictor.model, LabelPrompt(tuple(labels), post)
    try:
        for doubt in prompt.doubts(model):
            warnings.warn(doubt, stacklevel=2)
        prompt.texts(predictor.processor)
    except ValueError as error:
        raise AnnotationError(error) from error
    run = Run(
        model=model_fingerprint(model, dict(predictor.processor.image_processor.size)),
        dtype=str(model.dtype).removeprefix("torch."),
        labels=list(labels),
        post=post,
        format=format,
        images=len(source.names),
        names=digest_of(source.names),
        root=relative_root(source.root, Path(output)),
        model_name=model_title(model.name_or_path or ""),
        revision=revision,
    )
    return run_annotation(predictor, source, Path(output), run, shard=shard, progress=progress)


@contextmanager
def _writing() -> Iterator[None]:
    """Word what the disk refuses."""
    try:
        yield
    except BrokenPipeError:  # of the progress bar
        raise
    except OSError as error:
        # Parquet's writer puts words of its own around the system's.
        place, reason = error.filename or "a file", os.strerror(error.errno) if error.errno else error
        raise AnnotationError(
            f"{place} cannot be written: {reason}; what is done is kept, the same command goes on with it"
        ) from error


@_writing()
def run_annotation(
    predictor: Predictor,
    source: Source,
    output: Path,
    run: Run,
    *,
    shard: Shard = _WHOLE,
    progress: bool = True,
) -> Summary:
    """As `annotate`; `run` says all that the files depend on.

    Raises:
        AnnotationError: as `annotate`.
    """
    names, checkpoint = source.names, Checkpoint(output)
    refused = _refused(names, run.format)
    if not checkpoint.has_begun:
        _refuse_to_replace(output, run.format, (name for i, name in enumerate(names) if i not in refused))
    checkpoint.begin(run)
    store = checkpoint.store
    with checkpoint.at_work(shard), store.writer(f"{shard.index + 1}-of-{shard.count}") as writer:
        problems = {one.sample_id: one.reason for one in store.unreadable()}
        done = store.done() - problems.keys()  # what could not be read may be readable now
        windows = shard.windows(range(len(names)))
        todo = [window for window in windows if any(names[index] not in done for index in window)]
        total, left = sum(map(len, windows)), sum(names[index] not in done for index in chain(*todo))
        prompt = LabelPrompt(tuple(run.labels), run.post)
        requests = (
            Request(names[i], _image(source, i, refused.get(i)), prompt, wanted=names[i] not in done)
            for i in chain(*todo)
        )
        with progress_bar(total, done=total - left, shown=progress) as bar:
            try:
                for found in predictor.run(requests):
                    name = found.request.id
                    if found.problem is None or problems.get(name) != found.problem:
                        boxes = scored_boxes(found.found, None) if found.problem is None else NOTHING_FOUND
                        writer.add(name, boxes, found.problem, found.size)
                    bar.update()
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                raise AnnotationError("no memory for one image at a time; what is done is kept") from error
    if len(store.done()) < len(names):
        return _summarize(checkpoint.labelled(), len(names), written=False)
    return merge(output)


def _image(source: Source, index: int, refusal: str | None) -> Callable[[], ImageSource]:
    """What opens an image, in a reader thread."""

    def open_it() -> ImageSource:
        if refusal is not None:
            raise ValueError(refusal)
        return source.image(index)

    return open_it


@_writing()
def merge(output: Path) -> Summary:
    """Write the files of a run whose images are all done; to repeat it does no harm.

    Raises:
        AnnotationError: no run was begun in this folder, images are not done yet, the predictions are of another run,
            or a file cannot be written.
    """
    checkpoint = Checkpoint(output)
    run = checkpoint.run()
    left = run.images - len(checkpoint.store.done())
    if left > 0:
        raise AnnotationError(f"{output}: {left} of {run.images} images are not done yet: run the shards that are left")
    if run.format not in FORMATS:
        raise AnnotationError(
            f"{output}: its run is of the format {run.format!r}, which is none of {', '.join(FORMATS)}"
        )
    names = []
    for image in checkpoint.labelled():
        if any(not 0 <= label < len(run.labels) for label in image.labels):
            raise AnnotationError(f"{output}: the predictions of {image.name} have labels that are not of this run")
        names.append(image.name)
    if digest_of(names) != run.names:
        raise AnnotationError(f"{output}: the predictions are of other images than the run was begun with")
    summary = _summarize(checkpoint.labelled(), run.images, written=True)
    FORMATS[run.format].write(output, run, _Good(checkpoint))
    (output / PROBLEMS_FILE).unlink(missing_ok=True)
    if summary.problems:
        with atomic_text(output / PROBLEMS_FILE) as file:
            for name, reason in summary.problems:
                file.write(json.dumps({"image": name, "problem": reason}) + "\n")
    return summary


def _summarize(images: Iterable[LabelledImage], count: int, written: bool) -> Summary:
    done = boxes = 0
    problems = []
    for image in images:
        done += 1
        boxes += len(image.boxes)
        if image.problem is not None:
            problems.append((image.name, image.problem))
    return Summary(count, done, boxes, problems, written)


@dataclass(frozen=True)
class _Good:
    """The images that were labelled; each loop reads them anew."""

    checkpoint: Checkpoint

    def __iter__(self) -> Iterator[LabelledImage]:
        return (image for image in self.checkpoint.labelled() if image.problem is None)


def _check_labels(labels: Sequence[str], post: PostProcessing) -> None:
    if isinstance(labels, str) or not labels:
        raise AnnotationError(f"give a list of labels, not {labels!r}")
    for i, label in enumerate(labels):
        if not is_writable_text(label):
            raise AnnotationError(f"the label {label!r} holds characters that are no text")
        if label in labels[:i]:
            raise AnnotationError(f"the label {label!r} is given twice")
    for label in post.thresholds:
        if label not in labels:
            raise AnnotationError(f"there is a threshold of {label!r}, which is none of the labels")


def _refused(names: Sequence[str], format: str) -> dict[int, str]:
    """Which images get no answer whatever is in them, and why."""
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
