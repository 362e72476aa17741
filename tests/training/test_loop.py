"""The loop learns, writes what it says, and goes on where it stopped."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn

from hf_grounding_dino.data.shapes import VOCABULARY
from hf_grounding_dino.data.tokenizer import build_tokenizer
from hf_grounding_dino.image_processing_grounding_dino import GroundingDinoImageProcessor
from hf_grounding_dino.processing_grounding_dino import GroundingDinoProcessor
from hf_grounding_dino.training.loop import TrainingSettings, parameter_groups, train
from hf_grounding_dino.training.nano import shapes_batches, size_of_batch
from tiny import tiny_model

SETTINGS = TrainingSettings(max_steps=4, learning_rate=1e-3, warmup_steps=1, log_every=1, save_every=2)


def make_batches() -> object:
    size = {"shortest_edge": 64, "longest_edge": 96}
    processor = GroundingDinoProcessor(GroundingDinoImageProcessor(size=size), build_tokenizer(VOCABULARY))
    return partial(shapes_batches, processor, 2, SETTINGS.max_steps, 0, 0, 1)


def run(folder: Path, settings: TrainingSettings, resume: bool = False) -> nn.Module:
    model = tiny_model("mm-grounding-dino", decoder_bbox_embed_share=False, decoder_cls_embed_share=False)
    return train(model, make_batches(), settings, folder, resume=resume)  # type: ignore[arg-type]


def losses(folder: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_stopped_and_resumed_equals_uninterrupted(tmp_path: Path) -> None:
    """Losses, and the averaged weights at the end, are equal to the bit."""
    whole = run(tmp_path / "whole", SETTINGS)

    class StopError(Exception):
        pass

    stopping = tmp_path / "stopped"
    batches = make_batches()

    def two_batches(first_step: int) -> object:
        for i, batch in enumerate(batches(first_step)):  # type: ignore[operator]
            if i == 2:
                raise StopError
            yield batch

    with pytest.raises(StopError):
        model = tiny_model("mm-grounding-dino", decoder_bbox_embed_share=False, decoder_cls_embed_share=False)
        train(model, two_batches, SETTINGS, stopping)  # type: ignore[arg-type]
    resumed = run(stopping, SETTINGS, resume=True)
    assert losses(stopping) == losses(tmp_path / "whole")
    pairs = zip(whole.state_dict().values(), resumed.state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_resume_without_a_state_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="Nothing to resume"):
        run(tmp_path, SETTINGS, resume=True)


def test_the_average_follows_the_weights(tmp_path: Path) -> None:
    """With decay 0 the average is the last weights, with decay 1 the first step's."""
    last = run(tmp_path / "a", replace(SETTINGS, average_decay=0.0))
    first = run(tmp_path / "b", replace(SETTINGS, average_decay=1.0))
    start = tiny_model("mm-grounding-dino", decoder_bbox_embed_share=False, decoder_cls_embed_share=False)
    name = "model.decoder.layers.0.fc1.weight"
    assert not torch.equal(last.get_parameter(name), first.get_parameter(name))
    assert not torch.equal(last.get_parameter(name), start.get_parameter(name))


def test_a_model_learns_four_pictures(tmp_path: Path) -> None:
    """On one batch again and again the loss falls below a third."""
    batch = next(iter(make_batches()(0)))  # type: ignore[operator]
    settings = replace(SETTINGS, max_steps=60, learning_rate=3e-3, warmup_steps=5, save_every=1000)
    train(tiny_model(), lambda first: [batch] * 60, settings, tmp_path)
    seen = losses(tmp_path)
    assert seen[-1] < seen[0] / 3


def test_vectors_do_not_decay() -> None:
    decaying, kept = parameter_groups(tiny_model(), 0.1)
    assert decaying["weight_decay"] == 0.1 and all(p.ndim >= 2 for p in decaying["params"])
    assert kept["weight_decay"] == 0.0 and all(p.ndim < 2 for p in kept["params"])


def test_a_batch_has_one_size_and_sizes_vary() -> None:
    sizes = [size_of_batch(0, 4, i) for i in range(40)]
    assert all(len(set(sizes[i : i + 4])) == 1 for i in range(0, 40, 4))
    assert len(set(sizes)) > 5
    assert all(min(s) >= 128 and max(s) <= 256 and max(s) <= 1.5 * min(s) for s in sizes)
