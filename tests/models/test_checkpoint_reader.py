"""Checkpoints of other packages: what is read, what is never run, and whose names they have."""

from __future__ import annotations

import argparse
import os
import pickle
import re
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from hf_grounding_dino.models.checkpoint_reader import read_checkpoint, recognise


def same(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def mmdet_linear(out: int, into: int) -> dict[str, tuple[int, ...]]:
    return {"weight": (out, into), "bias": (out,)}


class History:
    """As the log of a training loop: an object of a class that a reader may not have, with arrays and methods."""

    def __init__(self) -> None:
        self.values = np.arange(3.0)
        self.method = History.mean
        self.counts = defaultdict(int, a=1)

    def mean(self) -> float:
        return float(self.values.mean())


class Trap:
    """What a malicious file does when it is unpickled: here, it writes a file."""

    def __init__(self, place: Path) -> None:
        self.place = str(place)

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (self.place, "w")


def test_what_surrounds_the_weights_is_passed_over_and_never_run(tmp_path: Path) -> None:
    surroundings = {
        "args": argparse.Namespace(lr=np.float64(0.1), where=Path("x")),
        "best": np.float32(3),
        "message_hub": {"log": History()},
        "trap": Trap(tmp_path / "written"),
    }
    state, file = {"transformer.level_embed": torch.ones(4, 2)}, tmp_path / "x.pth"
    torch.save({"model": state, **surroundings}, file)
    assert torch.load(file, weights_only=False)["best"] == 3 and (tmp_path / "written").exists()
    (tmp_path / "written").unlink()
    checkpoint = read_checkpoint(file)
    assert checkpoint.others == ("args", "best", "message_hub", "trap")
    assert not (tmp_path / "written").exists() and same(checkpoint.state, state)


class Command:
    """Runs a command of the system when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("exit 3",)


def test_weights_that_only_code_could_give_are_refused_without_advice_to_run_it(tmp_path: Path) -> None:
    torch.save({"model": Command()}, tmp_path / "x.pth")
    with pytest.raises(ValueError, match="holds code that would have to be run") as caught:
        read_checkpoint(tmp_path / "x.pth")
    assert "weights_only" not in str(caught.value)


def test_files_of_other_formats(tmp_path: Path) -> None:
    """The format of torch before 1.6, and safetensors under the original's names."""
    state = {"transformer.level_embed": torch.ones(4, 2)}
    torch.save({"model": state}, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    save_file(state, tmp_path / "new.safetensors")
    assert same(read_checkpoint(tmp_path / "old.pth").state, state)
    assert same(read_checkpoint(tmp_path / "new.safetensors").state, state)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"no checkpoint", "not a checkpoint that can be read"),
        (b"", "not a checkpoint that can be read"),
        (pickle.dumps({"model": {}}), "not a checkpoint"),
        (None, "there is no such file"),
    ],
)
def test_files_that_are_none(tmp_path: Path, content: bytes | None, message: str) -> None:
    file = tmp_path / "x.pth"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(ValueError, match=f"{re.escape(str(file))}: {message}"):
        read_checkpoint(file)


@pytest.mark.parametrize(
    ("name", "family"),
    [
        ("owlvit.text_model.embeddings.weight", "OWL"),
        ("rpn.head.dyhead_tower.0.weight", "GLIP"),
        ("mask_decoder.transformer.weight", "SAM"),
        ("label_enc.weight", "DINO"),
        ("bbox_head.cls_branches.0.weight", "DINO"),
        ("bert.embeddings.word_embeddings.weight", "text encoder"),
        ("teacher.backbone.blocks.0.attn.qkv.weight", "vision transformer"),
        ("layers.0.blocks.0.attn.qkv.weight", "Swin"),
        ("fc.weight", "its tensors are called fc"),
    ],
)
def test_other_families_are_named(name: str, family: str) -> None:
    with pytest.raises(ValueError, match=f"not a Grounding DINO.*{family}"):
        recognise([name, "other.bias"])
