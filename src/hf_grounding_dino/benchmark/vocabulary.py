"""Many labels on one picture: through the pipelines, and a vocabulary that fits no prompt."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from hf_grounding_dino.inference.large_vocabulary import chunk_labels, detect
from hf_grounding_dino.inference.pipeline import GroundingDinoPipeline

from .agreement import agree
from .rows import Row, joined
from .settings import STOCK_TOKEN_LIMIT
from .subjects import Bench
from .timer import Side, interleaved

_TASK: Any = "zero-shot-object-detection"


def pipeline(bench: Bench) -> Iterator[Row]:
    """The same call of both pipelines; stock's runs the model once a label, so few are timed and the rest is scaled."""
    settings = bench.settings
    names = bench.label_names(settings.pipeline_labels)
    measured = names[: settings.stock_labels]
    picture = bench.picture()
    stock = _stock_pipeline(bench)
    own = _own_pipeline(bench)
    sides: dict[str, Side] = {
        "ours": lambda: own(picture, candidate_labels=names),
        "stock": lambda: stock(picture, candidate_labels=measured),
    }
    timings = interleaved(sides, settings.repeats, bench.device)
    height, width = settings.size
    yield Row(
        "pipeline",
        f"{height} × {width}, {len(names)} labels",
        "ours float32",
        "stock float32",
        timings["ours"],
        timings["stock"].scaled(len(names) / len(measured)),
        labels=len(names),
        size=settings.size,
        note=joined(
            _extrapolated("stock", len(measured), len(names), "labels"),
            "outputs not comparable: stock shows the model one label at a time",
        ),
    )


def _stock_pipeline(bench: Bench) -> Any:
    image_processor = transformers.GroundingDinoImageProcessor(size=bench.resizing())
    return transformers.pipeline(
        _TASK,
        model=bench.stock,
        tokenizer=bench.processor.tokenizer,
        image_processor=image_processor,
        device=bench.device,
    )


def _own_pipeline(bench: Bench) -> Any:
    processor = _processor(bench)
    return transformers.pipeline(
        _TASK,
        model=bench.own,
        tokenizer=processor.tokenizer,
        image_processor=processor.image_processor,
        processor=processor,
        pipeline_class=GroundingDinoPipeline,
        device=bench.device,
    )


def vocabulary(bench: Bench) -> Iterator[Row]:
    """A long vocabulary: ours with its own way of cutting it, stock prompt by prompt, few of which are timed."""
    settings = bench.settings
    names = bench.label_names(settings.vocabulary_labels)
    chunks = chunk_labels(names, bench.processor.tokenizer, STOCK_TOKEN_LIMIT)
    prompts = [bench.inputs(settings.size, names[chunk]) for chunk in chunks[: settings.stock_chunks]]
    processor = _processor(bench)
    picture = bench.picture()
    passes = BackbonePasses(bench.own)

    def own() -> None:
        with torch.inference_mode(), passes:
            detect(bench.own, processor, [picture], names)

    def stock() -> None:
        with torch.inference_mode():
            for prompt in prompts:
                bench.stock(**prompt)

    timings = interleaved({"ours": own, "stock": stock}, settings.repeats, bench.device)
    measures = {"backbone passes, stock": float(len(chunks))}
    if passes.last:
        measures = {"backbone passes, ours": float(passes.last), **measures}
    agreement, note = agree(bench, bench.own, prompts[0], settings.size)
    height, width = settings.size
    yield Row(
        "vocabulary",
        f"{height} × {width}, {len(names):,} labels",
        "ours float32",
        "stock float32, chunk by chunk",
        timings["ours"],
        timings["stock"].scaled(len(chunks) / len(prompts)),
        labels=len(names),
        size=settings.size,
        agreement=agreement,
        measures=measures,
        note=joined(
            "outputs compared for the first chunk" if agreement else note,
            _extrapolated("stock", len(prompts), len(chunks), "chunks"),
            "ours from the picture to the boxes, stock the forward passes alone",
        ),
    )


class BackbonePasses:
    """Counts how often the image backbone begins while it is entered; `last` has the count of the last time."""

    def __init__(self, model: Any) -> None:
        backbone: nn.Module = model.model.backbone.conv_encoder
        self.first = next(module for module in backbone.modules() if isinstance(module, nn.Conv2d))
        self.last = 0

    def __enter__(self) -> None:
        self.last = 0
        self.handle = self.first.register_forward_hook(self._count)

    def __exit__(self, *error: object) -> None:
        self.handle.remove()

    def _count(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        self.last += 1


def _processor(bench: Bench) -> Any:
    """The processor, resizing to the size that is measured."""
    own = bench.processor
    image_processor = type(own.image_processor)(**{**own.image_processor.to_dict(), "size": bench.resizing()})
    return type(own)(image_processor, own.tokenizer)


def _extrapolated(side: str, measured: int, total: int, unit: str) -> str:
    return f"{side} extrapolated from {measured} of {total} {unit}" if measured < total else ""
