"""grounding-dino-nano: the small model that ships with the package, from nothing to weights, on Shapes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from torch.utils.data import DataLoader
from transformers import BertConfig, SwinConfig

from ..configuration_grounding_dino import MMGroundingDinoConfig
from ..data.collate import GroundingCollator
from ..data.shapes import VOCABULARY, ShapesDataset, Task
from ..data.tokenizer import build_tokenizer
from ..image_processing_grounding_dino import GroundingDinoImageProcessor
from ..modeling_grounding_dino import GroundingDinoForObjectDetection
from ..processing_grounding_dino import GroundingDinoProcessor
from .loop import TrainingSettings, train

SMALLEST_SIDE, LARGEST_SIDE = 128, 256
LARGEST_ASPECT = 1.5


def nano_processor() -> GroundingDinoProcessor:
    """Pictures at 160 pixels on the short side, and the words of Shapes."""
    image_processor = GroundingDinoImageProcessor(size={"shortest_edge": 160, "longest_edge": 256})
    return GroundingDinoProcessor(image_processor, build_tokenizer(VOCABULARY))


def nano_config(vocab_size: int) -> MMGroundingDinoConfig:
    """The architecture: Swin 24 wide, BERT 96 wide, 3 + 3 layers, 2.6 million parameters."""
    stages: dict[str, Any] = {"out_features": ["stage2", "stage3", "stage4"]}
    return MMGroundingDinoConfig(
        backbone_config=SwinConfig(
            image_size=160,
            embed_dim=24,
            depths=[2, 2, 2, 1],
            num_heads=[2, 4, 4, 8],
            window_size=5,
            drop_path_rate=0.05,
            **stages,
        ),
        text_config=BertConfig(
            vocab_size=vocab_size,
            hidden_size=96,
            num_hidden_layers=3,
            num_attention_heads=4,
            intermediate_size=192,
            max_position_embeddings=128,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
        ),
        d_model=96,
        num_queries=50,
        num_feature_levels=3,
        encoder_layers=3,
        decoder_layers=3,
        encoder_ffn_dim=288,
        decoder_ffn_dim=256,
        encoder_n_points=2,
        encoder_attention_heads=6,
        decoder_attention_heads=6,
        dropout=0.0,
        fusion_droppath=0.0,
        decoder_bbox_embed_share=False,
        decoder_cls_embed_share=False,
    )


def size_of_batch(seed: int, batch_size: int, index: int) -> tuple[int, int]:
    """(width, height) of item `index`: varied, but the same within a batch, so that a batch runs in one piece."""
    rng = np.random.default_rng([seed, index // batch_size])
    while True:
        width, height = (int(side) for side in rng.integers(SMALLEST_SIDE, LARGEST_SIDE + 1, 2))
        if max(width, height) <= LARGEST_ASPECT * min(width, height):
            return width, height


def task_of_batch(mixed_every: int, batch_size: int, index: int) -> Task:
    """Prompts of item `index`: mixed in each `mixed_every`-th batch, several expressions a picture in the others."""
    return "expressions" if index // batch_size % mixed_every else "mixed"


def shapes_batches(
    processor: GroundingDinoProcessor,
    batch_size: int,
    max_steps: int,
    seed: int,
    num_workers: int,
    mixed_every: int,
    first_step: int,
) -> Iterable[dict[str, Any]]:
    """Batches of Shapes from a step on; a step's batch depends on the seed and the step alone."""
    dataset = ShapesDataset(
        batch_size * max_steps,
        seed=seed,
        task=partial(task_of_batch, mixed_every, batch_size),
        size=partial(size_of_batch, seed, batch_size),
    )
    return DataLoader(
        dataset,
        batch_sampler=_Batches(batch_size, first_step, max_steps),
        collate_fn=GroundingCollator(processor),
        num_workers=num_workers,
    )


class _Batches:
    """The positions of each batch, in order."""

    def __init__(self, batch_size: int, first_step: int, max_steps: int) -> None:
        self.batch_size = batch_size
        self.drop_last = False
        self.steps = range(first_step, max_steps)

    def __len__(self) -> int:
        return len(self.steps)

    def __iter__(self) -> Iterator[list[int]]:
        for step in self.steps:
            yield list(range(step * self.batch_size, (step + 1) * self.batch_size))


def train_nano(
    output_dir: Path,
    *,
    settings: TrainingSettings,
    batch_size: int,
    num_workers: int = 1,
    mixed_every: int = 1,
    start_from: Path | None = None,
    resume: bool = False,
) -> Path:
    """Train grounding-dino-nano and save it, with its processor, to `output_dir / "last"`.

    Args:
        batch_size: pictures a step.
        num_workers: processes that draw pictures.
        mixed_every: see `task_of_batch`.
        start_from: folder of a model to begin with, instead of random weights.
        resume: go on from the state in `output_dir`.
    """
    processor = nano_processor()
    torch.manual_seed(settings.seed)
    if start_from is None:
        model = GroundingDinoForObjectDetection(nano_config(len(processor.tokenizer)))
    else:
        model = GroundingDinoForObjectDetection.from_pretrained(start_from)
    order = (batch_size, settings.max_steps, settings.seed, num_workers, mixed_every)
    batches = partial(shapes_batches, processor, *order)
    averaged = train(model, batches, settings, output_dir, resume=resume)
    assert isinstance(averaged, GroundingDinoForObjectDetection)
    folder = output_dir / "last"
    if PartialState().is_main_process:
        averaged.save_pretrained(folder)
        processor.save_pretrained(folder)
    return folder
