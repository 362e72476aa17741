"""A tiny run: images of Shapes on disk, a model that trains in milliseconds, a recipe that leads there."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import load_file

from hf_grounding_dino.data.shapes import CATEGORIES, VOCABULARY, write_coco
from hf_grounding_dino.data.tokenizer import build_tokenizer
from hf_grounding_dino.processing.image_processing_grounding_dino import GroundingDinoImageProcessor
from hf_grounding_dino.processing.processing_grounding_dino import GroundingDinoProcessor
from tiny import tiny_model

LABELS = CATEGORIES[::2]
TORCHRUN = (sys.executable, "-m", "torch.distributed.run")


def write_model(folder: Path) -> Path:
    """A tiny random model with heads of its own for every layer, and its processor."""
    heads = {"decoder_bbox_embed_share": False, "decoder_cls_embed_share": False}
    # A fourth level of one cell would be too small for groups of one channel.
    model = tiny_model("mm-grounding-dino", num_feature_levels=3, **heads)
    model.save_pretrained(folder)
    image_processor = GroundingDinoImageProcessor(size={"shortest_edge": 64, "longest_edge": 96})
    GroundingDinoProcessor(image_processor, build_tokenizer(VOCABULARY)).save_pretrained(folder)
    return folder


def write_recipe(folder: Path, **changes: Any) -> Path:
    """A recipe of four steps of four images, beside its data and its model."""
    annotations = folder / "data" / "annotations.json"
    if not annotations.exists():
        write_coco(folder / "data", count=8, seed=0, split="train", categories=LABELS)
        write_model(folder / "model")
    images = str(annotations.parent / "images")
    source = {"format": "coco", "annotations": str(annotations), "images": images}
    recipe = {
        "model": str(folder / "model"), "output_dir": str(folder / "run"), "train": [source],
        "max_steps": 4, "batch_size": 4, "learning_rate": 1e-3, "log_every": 1, "save_every": 2, "num_workers": 0,
        "denoising": {"queries": 12}, "ema_decay": 0.5, "max_grad_norm": 1.0,
    }  # fmt: skip
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe | changes))
    return path


def logged(run: Path, name: str = "loss") -> list[Any]:
    """A number of every logged step."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line[name] for line in lines if name in line]


def weights(run: Path, name: str = "last") -> dict[str, torch.Tensor]:
    """What was saved."""
    return load_file(run / name / "model.safetensors")


def assert_same_weights(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> None:
    """To the bit."""
    assert first.keys() == second.keys()
    assert [name for name in first if not torch.equal(first[name], second[name])] == []


def assert_close_runs(one: Path, other: Path, rtol: float = 2e-3, atol: float = 1e-3) -> None:
    """The first step equal but for rounding, which AdamW blows up over the steps.

    The norm of the gradients is logged; AdamW would hide their scale from the weights.
    """
    for name in ("loss", "grad_norm", "loss_ce", "loss_giou_dn"):
        first, second = (torch.tensor(logged(run, name)) for run in (one, other))
        torch.testing.assert_close(first[:1], second[:1], rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(first, second, rtol=rtol, atol=atol)


def wait_for_a_line(file: Path, process: subprocess.Popen[str]) -> None:
    """Until a run has logged something."""
    while not (file.exists() and file.read_text().endswith("\n")):
        try:
            process.wait(0.05)
        except subprocess.TimeoutExpired:
            continue
        raise AssertionError(process.communicate())


class Bomb:
    """What leaves a file when it is unpickled as what it says it is."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return Path.touch, (self.mark,)
