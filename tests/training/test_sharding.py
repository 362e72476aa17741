"""Weights sharded by FSDP2 train, are saved and go on as whole ones do."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate.utils import DistributedType, compare_versions
from PIL import Image
from torch import nn

from hf_grounding_dino.cli import PROGRAM
from hf_grounding_dino.training import sharding
from hf_grounding_dino.training.checkpoint import RunFolder, StateError
from hf_grounding_dino.training.recipe import read_recipe
from hf_grounding_dino.training.recipes import OptionError
from hf_grounding_dino.training.sharding import LAYERS, shard_by_layers
from hf_grounding_dino.training.trainer import train
from tiny import tiny_model

from .runs import TORCHRUN, assert_close_runs, assert_same_weights, logged, weights, write_recipe

FSDP2 = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}
LAUNCHED = (*TORCHRUN, "--standalone", "--nproc_per_node", "2")

with_shards = pytest.mark.skipif(
    compare_versions("accelerate", "<", sharding.FIRST_ACCELERATE), reason="accelerate is too old for FSDP"
)


def launched(kind: str, **plugin: Any) -> Any:
    """What an accelerator says of how it was launched."""
    options = SimpleNamespace(**{"fsdp_version": 2, "activation_checkpointing": False} | plugin)
    return SimpleNamespace(distributed_type=DistributedType[kind], state=SimpleNamespace(fsdp_plugin=options))


def train_sharded(recipe: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Train on two processes."""
    script = Path(__file__).with_name("sharded_on_cpu.py")
    environment = os.environ | {"OMP_NUM_THREADS": "1"} | FSDP2 | variables
    command = [*LAUNCHED, str(script), str(recipe), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment, timeout=300)


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two micro-batches a process, checkpointing, a moving average.

    One image of eight has a size of its own: the backbone runs more often in one process than in the other.
    """
    home = tmp_path_factory.mktemp("home")
    changes = {"augmentation": None, "batch_size": 8, "micro_batch_size": 2, "gradient_checkpointing": True}
    recipe = write_recipe(home, **changes)
    for number, file in enumerate(sorted((home / "data" / "images").iterdir())):
        Image.open(file).convert("RGB").resize((64, 80 if number == 0 else 64)).save(file)
    return recipe


@pytest.fixture(scope="module")
def sharded(recipe: Path) -> Path:
    """The folder of a run on two processes that nothing disturbed."""
    done = train_sharded(recipe)
    assert done.returncode == 0, done.stderr
    return recipe.parent / "run"


@with_shards
def test_sharded_processes_equal_one(recipe: Path, sharded: Path, tmp_path: Path) -> None:
    """Law 12 over FSDP2: losses, norms of gradients, and what is saved, of the same names and shapes."""
    train(read_recipe(str(recipe), [f"output_dir={tmp_path}"]))
    assert_close_runs(tmp_path, sharded)
    one, several = weights(tmp_path), weights(sharded)
    assert {name: tensor.shape for name, tensor in several.items()} == {k: v.shape for k, v in one.items()}
    for name, tensor in one.items():
        torch.testing.assert_close(several[name], tensor, rtol=1e-2, atol=2e-3, msg=lambda m, name=name: f"{name}: {m}")


@with_shards
def test_mistakes_are_one_line_and_resuming_equals_uninterrupted(recipe: Path, sharded: Path, tmp_path: Path) -> None:
    """A disk that fills under one process stops both, and so does one broken loss, with a state to go on from.

    It is for sharded runs; from there weights, moments and the average come back to the bit.
    """
    place = ("--set", f"output_dir={tmp_path}")
    lines = complaints(train_sharded(recipe, *place, FULL_IN_STEP="3"))
    assert sorted(line.split("): ")[-1] for line in lines) == ["File too large", "File too large"]
    lines = complaints(train_sharded(recipe, *place, "--resume", NAN_IN_STEP="2"))
    assert len(lines) == 2, "both stop, though one loss alone is broken"
    assert all("loss_giou_0 of step 4 is not finite: begin anew with a lower" in line for line in lines)
    state = RunFolder(tmp_path).newest_state()
    assert state is not None and state.name.endswith("step-000002")
    with pytest.raises(StateError, match="of sharded weights, this run's are whole: go on with it as it was launched"):
        train(read_recipe(str(recipe), [f"output_dir={tmp_path}"]), resume=True)
    resumed = train_sharded(recipe, *place, "--resume")
    assert resumed.returncode == 0, resumed.stderr
    assert logged(tmp_path) == logged(sharded)
    assert_same_weights(weights(tmp_path), weights(sharded))


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
def test_a_sharded_process_on_a_gpu_equals_a_whole_one(tmp_path: Path, precision: str) -> None:
    """Without the script: Accelerate itself shards there."""
    recipe = write_recipe(tmp_path, precision=precision)
    for folder, variables in (("one", {}), ("run", FSDP2)):
        options = ["--set", f"output_dir={tmp_path / folder}"]
        command = [*LAUNCHED[:-1], "1", "-m", "hf_grounding_dino", "train", str(recipe), *options]
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | variables)
        assert done.returncode == 0, done.stderr
    assert_close_runs(tmp_path / "one", tmp_path / "run", rtol=5e-2, atol=1e-2)


def test_the_layers_to_shard_are_there() -> None:
    assert {type(module).__name__ for module in tiny_model().modules()} >= set(LAYERS)


def complaints(done: subprocess.CompletedProcess[str]) -> list[str]:
    """The lines with which processes ended, apart from where the bar of progress stands."""
    assert done.returncode != 0
    return [line[line.index(PROGRAM) :] for line in done.stderr.splitlines() if f"{PROGRAM}: " in line]


@pytest.mark.parametrize(
    ("kind", "plugin", "message"),
    [
        ("DEEPSPEED", {}, "deepspeed is not supported: shard with --use_fsdp --fsdp_version 2, or not at all"),
        ("FSDP", {"fsdp_version": 1}, "FSDP of version 1 is not supported: add --fsdp_version 2"),
        (
            "FSDP",
            {"activation_checkpointing": True},
            "FSDP's activation checkpointing is not supported: set gradient_checkpointing=true",
        ),
    ],
)
@with_shards
def test_what_is_not_supported_is_refused(kind: str, plugin: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=f"^{message}$"):
        shard_by_layers(launched(kind, **plugin), nn.Linear(1, 1))


def test_an_accelerate_that_forgets_the_optimizer_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sharding, "FIRST_ACCELERATE", "1000")
    with pytest.raises(OptionError, match="FSDP needs accelerate 1000"):
        shard_by_layers(launched("FSDP"), nn.Linear(1, 1))


def test_sharding_is_not_left_out_silently(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Accelerate does that on a CPU, and without a launcher."""
    for name, value in FSDP2.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(OptionError, match="FSDP needs GPUs, and a launcher such as `accelerate launch`"):
        train(read_recipe(str(write_recipe(tmp_path))))
