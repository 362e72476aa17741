"""The loop learns, divides a step as it must, and goes on where it stopped."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from accelerate.utils import load

from hf_grounding_dino.training import loop
from hf_grounding_dino.training.averaging import MovingAverage
from hf_grounding_dino.training.conduct import run_recipe
from hf_grounding_dino.training.options import OptionError
from hf_grounding_dino.training.recipe import read_recipe
from hf_grounding_dino.training.states import RunFolder

from .runs import logged, weights, write_recipe


def run(folder: Path, *assignments: str, resume: bool = False, **changes: Any) -> Any:
    return run_recipe(read_recipe(str(write_recipe(folder, **changes)), assignments), resume=resume)


def train_command(recipe: Path, *launcher: str) -> None:
    command = [sys.executable, *launcher, "-m", "hf_grounding_dino", "train", str(recipe)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, timeout=200)
    assert done.returncode == 0, done.stderr


def assert_same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> None:
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_stopped_and_resumed_equals_uninterrupted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Losses and the averaged weights are equal to the bit, where a kill after step 3 leaves the state of step 2."""
    run(tmp_path, f"output_dir={tmp_path}/whole")

    class KilledError(Exception):
        pass

    update, steps = loop.update, []

    def killed_in_the_fourth(*arguments: Any) -> torch.Tensor:
        steps.append(None)
        if len(steps) == 4:
            raise KilledError
        return update(*arguments)

    with monkeypatch.context() as patch, pytest.raises(KilledError):
        patch.setattr(loop, "update", killed_in_the_fourth)
        run(tmp_path)
    assert len(logged(tmp_path / "run")) == 3
    run(tmp_path, resume=True)
    assert logged(tmp_path / "run") == logged(tmp_path / "whole")
    assert_same(weights(tmp_path / "run"), weights(tmp_path / "whole"))


def test_kill_9_and_resume_equals_never_killed(tmp_path: Path) -> None:
    """As above, with a process that gets no chance to do anything."""
    run(tmp_path, f"output_dir={tmp_path}/whole")
    code = f"""
import os, signal
from hf_grounding_dino.cli.main import main
from hf_grounding_dino.training import loop
update, steps = loop.update, []
def killed(*arguments):
    steps.append(None)
    if len(steps) == 4:
        os.kill(os.getpid(), signal.SIGKILL)
    return update(*arguments)
loop.update = killed
main(["train", {str(tmp_path / "recipe.yaml")!r}])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert done.returncode == -signal.SIGKILL
    run(tmp_path, resume=True)
    assert logged(tmp_path / "run") == logged(tmp_path / "whole")
    assert_same(weights(tmp_path / "run"), weights(tmp_path / "whole"))


def test_a_signal_stops_after_the_step_with_a_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    update = loop.update

    def signalled(*arguments: Any) -> torch.Tensor:
        os.kill(os.getpid(), signal.SIGTERM)
        return update(*arguments)

    monkeypatch.setattr(loop, "update", signalled)
    report = run(tmp_path)
    assert (report.steps, report.max_steps) == (1, 4)
    state = RunFolder(tmp_path / "run").newest_state()
    assert state is not None and state.name.endswith("step-000001")
    monkeypatch.undo()
    assert run(tmp_path, resume=True).steps == 4
    assert len(logged(tmp_path / "run")) == 4


@pytest.mark.skipif(os.name == "nt", reason="there are no process groups")
@pytest.mark.parametrize("launcher", [(), ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")])
def test_a_signal_to_all_processes_leaves_the_readers_to_the_run(tmp_path: Path, launcher: tuple[str, ...]) -> None:
    """As a batch system sends it: to the processes that read pictures, too."""
    recipe = write_recipe(tmp_path, max_steps=10_000, num_workers=2, save_every=10_000)
    command = [sys.executable, *launcher, "-m", "hf_grounding_dino", "train", str(recipe)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment, start_new_session=True
    )
    metrics = tmp_path / "run" / "metrics.jsonl"
    for _ in range(900):
        if process.poll() is not None or (metrics.exists() and len(metrics.read_text().splitlines()) > 2):
            break
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGTERM)
    said, _ = process.communicate(timeout=100)
    assert RunFolder(tmp_path / "run").newest_state() is not None, said


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        ("resource.setrlimit(resource.RLIMIT_FSIZE, (500, 500))", 2, "state of step 4 could not be written to"),
        ("torch.empty(2**60)", 2, "no memory for 4 images at once: choose a smaller pictures_at_once"),
        ("os.kill(multiprocessing.active_children()[0].pid, 9); time.sleep(60)", 2, "a process that reads images was"),
        ("1 / 0", 1, "ZeroDivisionError: division by zero"),
    ],
    ids=["full disk", "no memory", "killed worker", "bug"],
)
def test_no_error_waits_for_the_processes_that_read(tmp_path: Path, error: str, code: int, said: str) -> None:
    """It ends with its line and its exit code; that it took less than 30 s says that it did not hang."""
    recipe = write_recipe(tmp_path, max_steps=1000, save_every=4, log_every=1000, num_workers=2)
    script = f"""
import multiprocessing, os, resource, sys, time, torch
from hf_grounding_dino.cli.main import main
from hf_grounding_dino.training import loop
update, steps = loop.update, []
def disturbed(*arguments):
    steps.append(None)
    if len(steps) == 3:
        assert len(multiprocessing.active_children()) == 2
        print("now", flush=True)
        {error}
    return update(*arguments)
loop.update = disturbed
sys.exit(main(["train", {str(recipe)!r}]))
"""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        try:
            assert process.stdout is not None
            while process.stdout.readline() not in ("now\n", ""):
                pass
            _, complaint = process.communicate(timeout=30)
        finally:
            process.kill()
    assert process.returncode == code
    lines = [line.rpartition("\r")[2] for line in complaint.splitlines()]
    assert [line for line in lines if said in line], complaint
    assert ("Traceback" in complaint) == (code == 1)


@pytest.mark.parametrize("pictures_at_once", [1, 2])
def test_it_does_not_matter_how_a_step_is_divided(tmp_path: Path, pictures_at_once: int) -> None:
    """Law 12: 1 x 4 pictures = 2 x 2 = 4 x 1, losses and gradients, with unequal numbers of boxes, and denoising.

    The norm of the gradients is logged; AdamW would hide their scale from the weights.
    """
    run(tmp_path, f"output_dir={tmp_path}/one")
    run(tmp_path, f"pictures_at_once={pictures_at_once}")
    for name in ("loss", "grad_norm", "loss_ce", "loss_giou_dn"):
        one, several = (torch.tensor(logged(tmp_path / part, name)) for part in ("one", "run"))
        torch.testing.assert_close(one[:1], several[:1], rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(one, several, rtol=2e-3, atol=1e-3)  # AdamW blows rounding up over the steps


def test_what_a_launcher_has_in_its_environment_changes_no_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Law 29: a step is what the recipe says, though `accelerate config` was once asked for something else."""
    run(tmp_path, f"output_dir={tmp_path}/plain")
    settings = {"GRADIENT_ACCUMULATION_STEPS": "8", "MIXED_PRECISION": "bf16", "DYNAMO_BACKEND": "EAGER"}
    for name, value in settings.items():
        monkeypatch.setenv(f"ACCELERATE_{name}", value)
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    compiled: list[Any] = []
    monkeypatch.setattr(torch, "compile", lambda model, **_: compiled.append(model) or model)
    run(tmp_path)
    assert not compiled
    for name in ("loss", "grad_norm"):
        assert logged(tmp_path / "run", name) == logged(tmp_path / "plain", name)
    monkeypatch.setenv("ACCELERATE_USE_PARALLELISM_CONFIG", "true")
    with pytest.raises(OptionError, match="parallelism_config is not supported"):
        run(tmp_path, f"output_dir={tmp_path}/other")


def test_a_step_that_is_skipped_moves_nothing() -> None:
    """Law 29: gradients that overflow float16 are no step, whose scaler a CPU has, too."""
    accelerator = Accelerator(cpu=True)
    accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
    model: Any = torch.nn.Linear(1, 1, bias=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5**step)
    model, optimizer = accelerator.prepare(model, optimizer)
    average = MovingAverage(model, 0.5)
    trainee = loop.Trainee(accelerator, model, optimizer, schedule, average, model.train)
    seen = []
    for scale in (1.0, torch.inf, 1.0):
        accelerator.backward(model(torch.ones(1, 1)).sum() * scale)
        loop.update(trainee)
        seen.append((model.weight.item(), average.weights["weight"].item(), schedule.get_last_lr()[0]))
    assert seen[0] == seen[1] != seen[2]
    assert [rate for *_, rate in seen] == [0.5, 0.5, 0.25]
    assert seen[2][0] == seen[0][0] - 0.5


def test_two_processes_equal_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Law 12 over DDP, without `find_unused_parameters`; each process has one micro-batch of two pictures.

    One process can go on where two stopped. What is measured at the start, on five images, is the same (law 19).
    """
    held_out = [{"format": "shapes", "annotations": "val?count=5&width=96&height=64"}]
    recipe = write_recipe(tmp_path, eval=held_out)
    run(tmp_path, f"output_dir={tmp_path}/one", eval=held_out)
    train_command(recipe, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")
    for name in ("loss", "grad_norm", "loss_ce", "loss_giou_dn"):
        one, two = (torch.tensor(logged(tmp_path / part, name)) for part in ("one", "run"))
        torch.testing.assert_close(one[:1], two[:1], rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(one, two, rtol=2e-3, atol=1e-3)
    (one, *_), (two, *_) = (logged(tmp_path / part, "evaluation") for part in ("one", "run"))
    assert one == two
    state = RunFolder(tmp_path / "run").newest_state()
    assert state is not None
    generators = [load(state / f"random_states_{rank}.pkl")["torch_manual_seed"] for rank in range(2)]
    assert not torch.equal(*generators), "dropout is not the same in both"
    assert run(tmp_path, "max_steps=5", resume=True).steps == 5
    assert "was on 2 processes and goes on with 1" in capsys.readouterr().out
    assert len(logged(tmp_path / "run")) == 5


def test_two_processes_know_together_what_cannot_be_read(tmp_path: Path) -> None:
    """One of 8 pictures is more than 1 %: both stop with the list, also the one that has not met it."""
    recipe = write_recipe(tmp_path, batch_size=8)
    (tmp_path / "data" / "images" / "000003.png").write_bytes(b"no picture")
    launcher = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")
    command = [*launcher, "-m", "hf_grounding_dino", "train", str(recipe)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=200)
    assert done.returncode != 0
    assert done.stderr.count("1 of 8 pictures cannot be read, more than 1 %") == 2, done.stderr


def test_two_machines_equal_one_process(tmp_path: Path) -> None:
    """Two launchers that meet over the network, with one process each; one of them alone writes."""
    recipe = write_recipe(tmp_path)
    run(tmp_path, f"output_dir={tmp_path}/one")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    meeting = ("--nnodes", "2", "--nproc_per_node", "1", "--master_addr", "127.0.0.1", "--master_port", port)
    with ThreadPoolExecutor(2) as machines:
        launched = [
            machines.submit(train_command, recipe, "-m", "torch.distributed.run", *meeting, "--node_rank", str(machine))
            for machine in range(2)
        ]
        for machine in launched:
            machine.result()
    for name in ("loss", "grad_norm"):
        one, two = (torch.tensor(logged(tmp_path / part, name)) for part in ("one", "run"))
        torch.testing.assert_close(one[:1], two[:1], rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(one, two, rtol=2e-3, atol=1e-3)


def test_a_model_learns_eight_pictures(tmp_path: Path) -> None:
    """Seen again and again, unaugmented, the loss falls below a half."""
    options = ("max_steps=30", "augmentation=null", "learning_rate=3e-3", "denoising=null", "save_every=1000")
    run(tmp_path, *options, "batch_size=8", "backbone_multiplier=1", "text_multiplier=1", "prompts.all_labels=true")
    seen = logged(tmp_path / "run")
    assert sum(seen[-5:]) / 5 < seen[0] / 2


def test_the_average_is_what_is_saved(tmp_path: Path) -> None:
    """With a decay of 0 it is the last weights, which is what is saved without an average."""
    run(tmp_path, f"output_dir={tmp_path}/slow", "average_decay=0.999")
    run(tmp_path, f"output_dir={tmp_path}/none", "average_decay=null")
    run(tmp_path, "average_decay=0.0")
    assert_same(weights(tmp_path / "run"), weights(tmp_path / "none"))
    name = "model.decoder.layers.0.fc1.weight"
    assert not torch.equal(weights(tmp_path / "run")[name], weights(tmp_path / "slow")[name])


def test_interpolation_ends_at_both_ends(tmp_path: Path) -> None:
    """0 saves the start, whatever was trained."""
    run(tmp_path, "interpolation=0.0")
    start = weights(tmp_path, "model")
    assert_same({k: v for k, v in weights(tmp_path / "run").items() if k in start}, start)


def test_frozen_parts_stay_to_the_bit(tmp_path: Path) -> None:
    run(tmp_path, "freeze=[backbone, text]")
    before, after = weights(tmp_path, "model"), weights(tmp_path / "run")
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed
    assert not [name for name in changed if "backbone" in name]


def test_gradient_checkpointing_changes_nothing(tmp_path: Path) -> None:
    run(tmp_path, f"output_dir={tmp_path}/plain", "max_steps=1")
    run(tmp_path, "gradient_checkpointing=true", "max_steps=1")
    torch.testing.assert_close(logged(tmp_path / "run", "grad_norm"), logged(tmp_path / "plain", "grad_norm"))


def test_bfloat16_trains(tmp_path: Path) -> None:
    """Close to float32 in the first step, and all finite; what is saved is float32.

    In a process of its own, because Accelerate has one precision in each.
    """
    run(tmp_path, f"output_dir={tmp_path}/float32", "max_steps=2")
    train_command(write_recipe(tmp_path, precision="bfloat16", max_steps=2))
    low, full = logged(tmp_path / "run"), logged(tmp_path / "float32")
    assert low[0] == pytest.approx(full[0], rel=0.1)
    assert low != full
    assert all(value.dtype == torch.float32 for value in weights(tmp_path / "run").values())
