"""The one engine that runs a detector over many images.

    predictor = Predictor(model, processor, batch_size=8)
    prompt = LabelPrompt(("cat", "remote control"))
    for prediction in predictor.run(Request(path, path, prompt) for path in paths):
        if prediction.problem is None:
            print(prediction.request.id, prediction.found["boxes"])

Images are read and resized in threads ahead of the model, and batched with others of like shape; where memory does not
suffice, half as many run together from there on. Results come as they are made, an image that cannot be read among
them. Every process of a launch takes its `Shard`.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Self, TypeVar, cast

import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import pad

from ..data.images import load_image
from ..layers.encoded_image import EncodedImage
from ..models.grounding_dino.modeling_grounding_dino import GroundingDinoForObjectDetection
from ..processing.post_processing import Detections, listed
from ..processing.processing_grounding_dino import GroundingDinoProcessor
from ..utils.memory import in_batches
from ..utils.printable import one_line
from .drawing import Detection
from .prompting import Prompt, grouped

Item = TypeVar("Item")

WINDOW = 32
"""Requests among which those of like shape are batched, unless a batch is larger."""

_MOST_READERS = 16


class Request(NamedTuple):
    """An image and what is asked about it.

    id: whatever the caller knows it by.
    image: what `load_image` takes; or a function without arguments that gives it, called in a reader thread. What
        either raises is told as the problem of this image. Requests in a row that name the same file read and encode
        it once.
    prompt: what is asked.
    wanted: whether an answer is missing. Others only take their place in the batches, so that an interrupted run meets
        the same batches, and gives the same numbers to the last digit, when it is resumed.
    """

    id: Any
    image: Any
    prompt: Prompt
    wanted: bool = True


class Prediction(NamedTuple):
    """The answer to a request.

    found: what `prompting` gives, on the CPU; empty where there is a problem.
    size: (width, height) of the upright image; (0, 0) where it could not be read.
    problem: why it could not be read, on one line; None where it could.
    image: the upright image, where `keep_images`.
    """

    request: Request
    found: Detections
    size: tuple[int, int] = (0, 0)
    problem: str | None = None
    image: Image.Image | None = None

    @property
    def detections(self) -> list[Detection]:
        """As the pipelines of transformers give them, with boxes in whole pixels."""
        return cast(list[Detection], listed(self.found)) if self.found else []


@dataclass(frozen=True)
class Shard:
    """Part `index` of `count`, from 0."""

    index: int = 0
    count: int = 1

    def __post_init__(self) -> None:
        """Check the range.

        Raises:
            ValueError: there is no such part.
        """
        if not 0 <= self.index < self.count:
            raise ValueError(f"there is no shard {self}: from 1/{self.count} to {self.count}/{self.count}")

    def __str__(self) -> str:
        """As people write it, from 1."""
        return f"{self.index + 1}/{self.count}"

    @classmethod
    def of_process(cls) -> Self:
        """The part of this process among those of `accelerate launch` or `torchrun`."""
        return cls(int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1")))

    def windows(self, items: Sequence[Item], window: int = WINDOW) -> list[Sequence[Item]]:
        """The windows of this part: every `count`-th of the windows that the items are cut into."""
        starts = range(self.index * window, len(items), self.count * window)
        return [items[start : start + window] for start in starts]


class _Prepared(NamedTuple):
    """An image as the model takes it: pixels (3, H, W), mask (H, W), and (width, height) before the resizing."""

    pixels: Tensor
    mask: Tensor
    size: tuple[int, int]
    image: Image.Image | None


class _Row(NamedTuple):
    """A request whose image has been read, or why not."""

    request: Request
    prepared: _Prepared | str


class Predictor:
    """A model and its processor, ready for any number of requests.

    Attributes:
        model: the detector, where it is to run; it runs in eval mode.
        processor: its processor.
        batch_size: requests that run together.
    """

    def __init__(
        self,
        model: GroundingDinoForObjectDetection,
        processor: GroundingDinoProcessor,
        *,
        batch_size: int = 1,
        readers: int | None = None,
        window: int | None = None,
    ) -> None:
        """Join a model with its processor.

        Args:
            model: on its device, in its dtype.
            processor: its processor.
            batch_size: requests that run together; it changes no answer. Where memory does not suffice it is halved.
            readers: threads that read ahead; by default one a core, 16 at most.
            window: requests among which those of like shape are batched; at least a batch. One where `batch_size` is
                1, for results to come in the order of the requests; `WINDOW` otherwise.

        Raises:
            ValueError: a number is less than 1.
        """
        readers = min(_MOST_READERS, os.cpu_count() or 1) if readers is None else readers
        window = (1 if batch_size == 1 else max(WINDOW, batch_size)) if window is None else window
        if min(batch_size, readers, window) < 1:
            raise ValueError(f"batch_size={batch_size}, readers={readers}, window={window}: give 1 or more")
        self.model, self.processor = model, processor
        self.batch_size, self._readers, self._window = batch_size, readers, window
        self._at_once = batch_size  # of each batch, as many as there is memory for run together
        self._encoded: tuple[Sequence[_Prepared], EncodedImage] | None = None

    def predict(self, image: Any, prompt: Prompt) -> Prediction:
        """The answer about one image, without threads.

        Raises:
            ValueError: the image cannot be read, or the prompt is none for this model.
        """
        prepared = self._prepare(load_image(image), keep_image=True)
        with self._at_work():
            (prediction,) = self._predict([_Row(Request(None, image, prompt), prepared)])
        return prediction

    def run(
        self,
        requests: Iterable[Request | Callable[[], Request]],
        *,
        in_order: bool = False,
        keep_images: bool = False,
    ) -> Iterator[Prediction]:
        """The answers to requests, as they come; those of a window are in the order of their batches.

        Args:
            requests: any number, asked for as they are needed; or functions that make them, called in reader threads.
            in_order: give the answers in the order of the requests.
            keep_images: give the images with the answers.

        Raises:
            ValueError: a prompt is none for this model.
            Exception: out of memory for a single request, whatever torch raises then; or what making a request raises.
        """
        with _reader_threads(self._readers) as pool, self._at_work():
            for rows in self._windows(requests, pool, keep_images):
                answers = self._answers(rows)
                if not in_order:
                    yield from (prediction for _, prediction in answers)
                    continue
                ready: dict[int, Prediction | None] = {i: None for i, row in enumerate(rows) if not row.request.wanted}
                due = 0
                for position, prediction in answers:
                    ready[position] = prediction
                    while due in ready:
                        if (one := ready.pop(due)) is not None:
                            yield one
                        due += 1

    def _windows(
        self, requests: Iterable[Request | Callable[[], Request]], pool: ThreadPoolExecutor, keep_images: bool
    ) -> Iterator[list[_Row]]:
        """Windows of read images, while those of the next are being read."""
        waiting: deque[tuple[Request | None, Future[_Row]]] = deque()
        ahead = self._window + max(self._window, 2 * self._readers)
        file: Path | str | None = None
        reading: Future[_Row] = Future()
        for request in requests:
            made = None if callable(request) else request
            before, file = file, made.image if made is not None and isinstance(made.image, Path | str) else None
            if file is None or file != before:
                reading = pool.submit(self._read, request, keep_images)
            waiting.append((made, reading))
            if len(waiting) == ahead:
                yield self._read_rows(waiting)
        while waiting:
            yield self._read_rows(waiting)

    def _read_rows(self, waiting: deque[tuple[Request | None, Future[_Row]]]) -> list[_Row]:
        rows = []
        for request, future in [waiting.popleft() for _ in range(min(self._window, len(waiting)))]:
            row = future.result()
            rows.append(row if request is None else row._replace(request=request))
        return rows

    def _read(self, request: Request | Callable[[], Request], keep_image: bool) -> _Row:
        request = request() if callable(request) else request
        try:
            image = request.image() if callable(request.image) else request.image
            return _Row(request, self._prepare(load_image(image), keep_image))
        except Exception as error:  # of sources and of decoders, which have none in common: it is one image's
            return _Row(request, one_line(error))

    def _prepare(self, image: Image.Image, keep_image: bool) -> _Prepared:
        features = self.processor.image_processor([image])
        pixels, mask = features["pixel_values"][0], features["pixel_mask"][0]
        return _Prepared(pixels, mask, image.size, image if keep_image else None)

    def _answers(self, rows: Sequence[_Row]) -> Iterator[tuple[int, Prediction]]:
        """The predictions of a window with the positions of their rows, batch by batch."""
        good = []
        for position, (request, prepared) in enumerate(rows):
            if isinstance(prepared, str):
                if request.wanted:
                    yield position, Prediction(request, {}, problem=prepared)
            else:
                height, width = prepared.mask.shape
                good.append((width / height, height, position))
        if self._window > 1:
            good.sort()
        positions = [position for *_, position in good]
        for first in range(0, len(positions), self.batch_size):
            batch = positions[first : first + self.batch_size]
            if any(rows[position].request.wanted for position in batch):
                for position, prediction in zip(batch, self._predict([rows[i] for i in batch]), strict=True):
                    if prediction.request.wanted:
                        yield position, prediction

    def _predict(self, batch: Sequence[_Row]) -> list[Prediction]:
        found: list[Detections] = []
        self._at_once = in_batches(batch, lambda some: found.extend(self._find(some)), self._at_once)
        return [
            Prediction(row.request, one, row.prepared.size, image=row.prepared.image)
            for row, one in zip(batch, found, strict=True)
            if isinstance(row.prepared, _Prepared)
        ]

    @torch.inference_mode()
    def _find(self, batch: Sequence[_Row]) -> list[Detections]:
        """What is found for each request; each image is encoded once, each kind of prompt runs together."""
        images = [row.prepared for row in batch if isinstance(row.prepared, _Prepared)]
        distinct = grouped(map(id, images))
        encoded = self._encode([images[rows[0]] for _, rows in distinct])
        of_row = {row: number for number, (_, rows) in enumerate(distinct) for row in rows}
        found: list[Detections] = [{}] * len(batch)
        for kind, rows in grouped(type(row.request.prompt) for row in batch):
            order = [of_row[row] for row in rows]
            own = encoded if order == list(range(len(distinct))) else encoded.select(order)
            sizes = [images[row].size[::-1] for row in rows]
            results = kind.find(self.model, self.processor, own, sizes, [batch[row].request.prompt for row in rows])
            for row, result in zip(rows, results, strict=True):
                found[row] = {n: value.cpu() if isinstance(value, Tensor) else value for n, value in result.items()}
        return found

    def _encode(self, images: Sequence[_Prepared]) -> EncodedImage:
        """The images of a batch; those of the batch before are kept, for the other prompts about a single image."""
        if self._encoded is None or list(map(id, self._encoded[0])) != list(map(id, images)):
            self._encoded = None  # before there is another
            height, width = (max(image.mask.shape[side] for image in images) for side in (0, 1))
            margins = [(0, width - image.mask.shape[1], 0, height - image.mask.shape[0]) for image in images]
            pixels, mask = (
                torch.stack([pad(values, margin) for values, margin in zip(some, margins, strict=True)])
                for some in ([image.pixels for image in images], [image.mask for image in images])
            )
            device = self.model.device
            self._encoded = images, self.model.encode_image(pixels.to(device), mask.to(device))
        return self._encoded[1]

    @contextmanager
    def _at_work(self) -> Iterator[None]:
        """The model in eval mode; nothing of the images is kept afterwards."""
        was_training = self.model.training
        self.model.eval()
        try:
            yield
        finally:
            self.model.train(was_training)
            self._encoded = None


@contextmanager
def _reader_threads(count: int) -> Iterator[ThreadPoolExecutor]:
    """Threads that read ahead; what has not begun when the block is left in the middle is dropped.

    Each computes on one core: several that resize on all cores would keep the model from them, and halve its speed.
    """
    all_there = threading.Barrier(count + 1)
    pool = ThreadPoolExecutor(count, "reader", initializer=_compute_on_one_core, initargs=(all_there,))
    try:
        before = torch.get_num_threads()
        for _ in range(count):
            pool.submit(int)
        all_there.wait()
        torch.set_num_threads(before)  # some of what the threads have set holds for the whole process
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def _compute_on_one_core(all_there: threading.Barrier) -> None:
    torch.get_num_threads()  # the first call in a thread takes the number of the process
    torch.set_num_threads(1)
    all_there.wait()
