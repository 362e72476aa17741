"""Images with prompts as a model trains on them, drawn by a sampler and loaded ahead of the steps that need them."""

from __future__ import annotations

import os
import signal
import threading
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset, get_worker_info

from .augmentation import Augmentation
from .images import load_image
from .records import DataError, Record, RecordSet, RecordStream
from .sampling import BatchSampler, Sample, micro_batches, rank_part
from .stream_reader import StreamReader
from .training_prompts import PromptSampler, TrainingPrompt

_MOST_TRIES = 100
# A thinner box is no target; the recipes of the family drop these.
_THINNEST_BOX = 0.01
# What random numbers are for: the last word of their seed.
_OF_PROMPT, _OF_IMAGE = range(2)


class Skipped(NamedTuple):
    """An image that could not be read.

    where: its file, or its data set and id.
    why: in one line.
    """

    where: str
    why: str


class TrainingDataset(Dataset[dict[str, Any]]):
    """The images of all sources, each drawing with its own prompt and its own augmentation.

    An item depends on its sample alone, in any process; of a stream, also on the part of it that the process has (see
    `divide`). It is a dict with

    - image_id, image (upright RGB), text (labels or a caption), boxes (float32 (n, 4), xyxy in pixels of `image`);
    - class_labels (int64 (n,), positions in text) or spans (for each box, (start, end) characters of text);
    - noise_seed: int in [0, 2^63), for what the model samples at random for this image;
    - skipped: list of `Skipped`, images in whose place this one came.

    The prompt is drawn before the image is augmented: a label whose boxes were all cropped away stays in it as one
    that is not there.
    """

    def __init__(
        self,
        sources: Sequence[RecordSet | RecordStream],
        samplers: Sequence[PromptSampler],
        augmentation: Augmentation | None = None,
    ) -> None:
        """Join sources with a prompt sampler for each.

        Args:
            sources: the data sets, in the order of the sampler.
            samplers: one a source.
            augmentation: of images and boxes; None leaves them as they are.

        Raises:
            ValueError: not a sampler for each source.
        """
        if len(sources) != len(samplers):
            raise ValueError(f"{len(samplers)} prompt samplers for {len(sources)} data sets")
        self.sources = sources
        self.samplers = samplers
        self.divide(rank=0, world=1, num_workers=0, offset=0)
        self.augmentation = augmentation

    @property
    def has_streams(self) -> bool:
        """Whether what a process is given depends on how many there are."""
        return not all(isinstance(source, RecordSet) for source in self.sources)

    def divide(self, *, rank: int, world: int, num_workers: int, offset: int) -> None:
        """Say which part of each stream a process reads: of as many as there are workers of all ranks.

        Args:
            offset: how many workers had their turn before the first of these.
        """
        self._rank, self._world, self._workers, self._offset = rank, world, max(1, num_workers), offset
        self._readers: dict[int, StreamReader] = {}

    def _reader(self, source: int) -> StreamReader:
        if source not in self._readers:
            worker = get_worker_info()
            place = ((0 if worker is None else worker.id) + self._offset) % self._workers
            stream, count = self.sources[source], self._world * self._workers
            assert not isinstance(stream, RecordSet)
            part = stream if count == 1 else stream.shard(self._rank * self._workers + place, count)
            self._readers[source] = StreamReader(part)
        return self._readers[source]

    def __getitem__(self, sample: Sample) -> dict[str, Any]:
        """The item of a sample; for an image that cannot be read, that of one of the 99 records after it.

        Raises:
            DataError: none of these can be read.
        """
        skipped: list[Skipped] = []
        for record in self._candidates(sample):
            try:
                image = load_image(record.image)
            except ValueError as error:
                skipped.append(Skipped(self._where(sample.source, record), str(error)))
                continue
            return {"image_id": record.image_id} | self._prepare(sample, record, image) | {"skipped": skipped}
        first = skipped[0]
        raise DataError(f"{len(skipped)} images in a row cannot be read, the first is {first.where}: {first.why}")

    def _candidates(self, sample: Sample) -> Iterator[Record]:
        source = self.sources[sample.source]
        if not isinstance(source, RecordSet):
            reader = self._reader(sample.source)
            for place in range(sample.index, sample.index + _MOST_TRIES):
                yield reader.read(place, keep_from=sample.index)
        else:
            for offset in range(min(_MOST_TRIES, len(source))):
                yield source[(sample.index + offset) % len(source)]

    def _where(self, source: int, record: Record) -> str:
        if isinstance(record.image, (bytes, Image.Image)):
            return f"{self.sources[source].name}, image {record.image_id}"
        return str(record.image)

    def _prepare(self, sample: Sample, record: Record, image: Image.Image) -> dict[str, Any]:
        prompt = self.samplers[sample.source](record, np.random.default_rng([sample.seed, _OF_PROMPT]))
        prompt = _inside(prompt, image.size)
        if self.augmentation is not None:
            rng = np.random.default_rng([sample.seed, _OF_IMAGE])
            image, prompt = _augment(self.augmentation, image, prompt, rng)
        item: dict[str, Any] = {"image": image, "text": prompt.text, "boxes": prompt.boxes, "noise_seed": sample.seed}
        if prompt.class_labels is not None:
            return item | {"class_labels": prompt.class_labels}
        return item | {"spans": prompt.spans}


def _inside(prompt: TrainingPrompt, size: tuple[int, int]) -> TrainingPrompt:
    """Clip boxes to the image as it is, whatever size its file was said to have."""
    width, height = size
    boxes = prompt.boxes.minimum(torch.tensor([width, height, width, height])).clamp_min(0)
    kept = (boxes[:, 2:] - boxes[:, :2] >= _THINNEST_BOX).all(1).nonzero()[:, 0]
    labels, spans = prompt.class_labels, prompt.spans
    return TrainingPrompt(
        text=prompt.text,
        boxes=boxes[kept],
        class_labels=None if labels is None else labels[kept],
        spans=None if spans is None else [spans[i] for i in kept.tolist()],
    )


def _augment(
    augmentation: Augmentation, image: Image.Image, prompt: TrainingPrompt, rng: np.random.Generator
) -> tuple[Image.Image, TrainingPrompt]:
    if isinstance(prompt.text, str):
        changed = augmentation(image, prompt.boxes, rng, caption=prompt.text, spans=prompt.spans)
        spans = [list(of_box) for of_box in changed.spans or ()]
        return changed.image, TrainingPrompt(changed.caption or prompt.text, changed.boxes, None, spans)
    changed = augmentation(image, prompt.boxes, rng, labels=prompt.text)
    labels = None if prompt.class_labels is None else prompt.class_labels[changed.kept]
    return changed.image, TrainingPrompt(prompt.text, changed.boxes, labels, None)


class StepBatch(NamedTuple):
    """What one process trains on in one step.

    micro_batches: inputs of the model with labels, one forward and backward each; as many in every process.
    num_boxes: boxes in them together.
    skipped: images that could not be read, in whose place others came.
    """

    micro_batches: list[dict[str, Any]]
    num_boxes: int
    skipped: list[Skipped]


def training_batches(
    sampler: BatchSampler,
    dataset: TrainingDataset,
    collate: Callable[[Sequence[Any]], dict[str, Any]],
    *,
    first_step: int,
    max_steps: int,
    rank: int,
    world: int,
    micro_batch_size: int,
    num_workers: int,
) -> Iterator[StepBatch]:
    """The steps from `first_step` up to `max_steps`, exclusive, in order; workers load ahead across steps.

    Which numbers come does not depend on the global random state, which is left alone. A stream is divided among the
    workers of all ranks, so that each record is fetched once; everything else comes as it would in one process.

    Args:
        sampler: which images a step has, over all ranks.
        dataset: of the same sources.
        collate: a `GroundingCollator`.
        first_step: where to begin, from 0.
        max_steps: the number of steps of the run.
        rank: of this process.
        world: number of processes.
        micro_batch_size: the most images a forward.
        num_workers: processes that load; 0 loads in this one.

    Raises:
        ValueError: the batch cannot be divided among the processes, or `micro_batch_size` is less than 1.
        DataError: 100 images in a row cannot be read.
    """
    part = _Part(sampler, rank, world, micro_batch_size, max(1, num_workers))
    pieces = len(part.micro_batches(first_step))
    dataset.divide(rank=rank, world=world, num_workers=num_workers, offset=first_step * pieces)
    streams = {i for i, source in enumerate(dataset.sources) if not isinstance(source, RecordSet)}
    loader = DataLoader(
        dataset,
        batch_sampler=part.batches(first_step, max_steps, streams),  # gone through once
        num_workers=num_workers,
        collate_fn=partial(_collated, collate),
        pin_memory=torch.cuda.is_available(),
        generator=torch.Generator(),
        worker_init_fn=_obey_the_run_alone,
    )
    return _steps(loader, pieces)


@dataclass(frozen=True)
class _Part:
    """What one rank has of the steps, and with how many workers it loads them."""

    sampler: BatchSampler
    rank: int
    world: int
    micro_batch_size: int
    num_workers: int

    def micro_batches(self, step: int) -> list[list[Sample]]:
        return micro_batches(rank_part(self.sampler.batch(step), self.rank, self.world), self.micro_batch_size)

    def batches(self, first_step: int, max_steps: int, streams: Collection[int]) -> Iterator[list[Sample]]:
        """The samples of each micro-batch, in order; those of streams have positions in the part of their worker.

        How many were drawn from it before is counted from the first step of the run on, without reading anything.
        """
        drawn: Counter[tuple[int, int]] = Counter()
        number = 0
        for step in range(0 if streams else first_step, max_steps):
            for batch in self.micro_batches(step):
                placed = []
                for sample in batch:
                    place = (sample.source, number % self.num_workers)
                    placed.append(replace(sample, index=drawn[place]) if sample.source in streams else sample)
                    drawn[place] += 1
                number += 1
                if step >= first_step:
                    yield placed


def _collated(
    collate: Callable[[Sequence[Any]], dict[str, Any]], items: Sequence[dict[str, Any]]
) -> tuple[dict[str, Any], list[Skipped]]:
    """A batch, and apart from it what the model does not read."""
    return collate(items), [one for item in items for one in item["skipped"]]


def _obey_the_run_alone(worker: int) -> None:
    """Let no signal but the run's own SIGTERM stop a worker.

    A batch system sends its signal to all processes of a job, and the run needs its workers until it has saved a state.
    When Python exits, it sends SIGTERM to the workers that are left, and waits for them.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
        threading.Thread(target=_end_at_the_word_of, args=(os.getppid(),), daemon=True).start()
    elif hasattr(os, "setpgid"):  # macOS does not tell who sent a signal
        os.setpgid(0, 0)


def _end_at_the_word_of(run: int) -> None:
    while signal.sigwaitinfo([signal.SIGTERM]).si_pid != run:
        pass
    os._exit(0)


def _steps(loader: Iterable[tuple[dict[str, Any], list[Skipped]]], pieces: int) -> Iterator[StepBatch]:
    """Gather each step's micro-batches."""
    loaded: list[tuple[dict[str, Any], list[Skipped]]] = []
    failure = None
    try:
        for batch in loader:
            loaded.append(batch)
            if len(loaded) == pieces:
                inputs = [inputs for inputs, _ in loaded]
                num_boxes = sum(len(label["boxes"]) for batch in inputs for label in batch["labels"])
                yield StepBatch(inputs, num_boxes, [one for _, skipped in loaded for one in skipped])
                loaded = []
    except DataError as error:
        # From a worker, it comes with the worker's traceback before it.
        failure = str(error).strip().rpartition(f"{DataError.__name__}: ")[2]
        # The way it came holds the loader, and with it the workers.
        error.__traceback__ = None
    if failure is not None:
        raise DataError(failure)
