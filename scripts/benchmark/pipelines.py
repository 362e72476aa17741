"""Many labels on one image: through the pipelines, and a vocabulary that fits no prompt."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import transformers
from torch import nn

from hf_grounding_dino.inference.large_vocabulary import chunk_labels, detect
from hf_grounding_dino.inference.pipeline import GroundingDinoPipeline

from .agreement import agree
from .measure import Row, Side, interleaved, joined
from .models import Bench
from .settings import STOCK_TOKEN_LIMIT

_TASK: Any = "zero-shot-object-detection"


def pipeline(bench: Bench) -> Iterator[Row]:
    """The same call of both pipelines; stock's runs the model once a label, so few are timed and the rest is scaled."""
    settings = bench.settings
    names = bench.label_names(settings.pipeline_labels)
    measured = names[: settings.stock_labels]
    image, processor, device = bench.image(), _processor(bench), bench.device
    stock = transformers.pipeline(
        _TASK,
        model=bench.stock,
        tokenizer=bench.processor.tokenizer,
        image_processor=transformers.GroundingDinoImageProcessor(size=bench.resizing()),
        device=device,
    )
    parts = {"tokenizer": processor.tokenizer, "image_processor": processor.image_processor, "processor": processor}
    own: Any = transformers.pipeline(
        _TASK, model=bench.own, **parts, pipeline_class=GroundingDinoPipeline, device=device
    )
    sides: dict[str, Side] = {
        "ours": lambda: own(image, candidate_labels=names),
        "stock": lambda: stock(image, candidate_labels=measured),
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
            _extrapolated(len(measured), len(names), "labels"),
            "outputs not comparable: stock shows the model one label at a time",
        ),
    )


def vocabulary(bench: Bench) -> Iterator[Row]:
    """A long vocabulary: ours with its own way of cutting it, stock prompt by prompt, few of which are timed."""
    settings = bench.settings
    names = bench.label_names(settings.vocabulary)
    chunks = chunk_labels(names, bench.processor.tokenizer, STOCK_TOKEN_LIMIT)
    prompts = [bench.inputs(settings.size, names[chunk]) for chunk in chunks[: settings.stock_chunks]]
    processor, image = _processor(bench), bench.image()
    passes: list[int] = []

    def own() -> None:
        passes.clear()
        with torch.inference_mode():
            detect(bench.own, processor, [image], names)

    def stock() -> None:
        with torch.inference_mode():
            for prompt in prompts:
                bench.stock(**prompt)

    backbone: Any = bench.own.model.backbone
    first = next(module for module in backbone.modules() if isinstance(module, nn.Conv2d))
    hook = first.register_forward_hook(lambda *_: passes.append(1))
    timings = interleaved({"ours": own, "stock": stock}, settings.repeats, bench.device)
    hook.remove()
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
        measures={"backbone passes, ours": float(len(passes)), "backbone passes, stock": float(len(chunks))},
        note=joined(
            "outputs compared for the first chunk" if agreement else note,
            _extrapolated(len(prompts), len(chunks), "chunks"),
            "ours from the image to the boxes, stock the forward passes alone",
        ),
    )


def _processor(bench: Bench) -> Any:
    """The processor, resizing to the size that is measured."""
    own = bench.processor
    image_processor = type(own.image_processor)(**{**own.image_processor.to_dict(), "size": bench.resizing()})
    return type(own)(image_processor, own.tokenizer)


def _extrapolated(measured: int, total: int, unit: str) -> str:
    return f"stock extrapolated from {measured} of {total} {unit}" if measured < total else ""
