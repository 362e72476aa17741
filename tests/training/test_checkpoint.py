"""Stop at any instant and go on: states, models of a run, metrics, signals."""

from __future__ import annotations

import errno
import json
import os
import pickle
import resource
import shutil
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator, debug_launcher
from accelerate.state import AcceleratorState
from torch import nn

from hf_grounding_dino.training.checkpoint import RunFolder, StateError, StopSignal, step_name

from .runs import Bomb

PROCESS_KILLED = 9
MOST_INSTANTS = 200


class Run:
    """A run of one weight; its state after a step is that weight, the momentum of SGD, and the random numbers."""

    def __init__(self, path: Path) -> None:
        self.accelerator = Accelerator(cpu=True)
        self.folder = RunFolder(path)
        model = nn.Linear(1, 1, bias=False)
        model.weight.data.zero_()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        self.model, self.optimizer = self.accelerator.prepare(model, optimizer)

    @property
    def weight(self) -> float:
        return self.accelerator.unwrap_model(self.model).weight.item()

    def set(self, value: float) -> None:
        self.accelerator.unwrap_model(self.model).weight.data.fill_(value)

    def save(self, step: int) -> None:
        """The state in which the weight is the number of the step."""
        self.set(step)
        self.folder.save_state(self.accelerator, step, {"batch_size": 4}, {"weight": torch.tensor([float(step)])})

    def load(self) -> int:
        """The step that was loaded, after a look at whether the weight is of that step."""
        self.set(-1.0)
        taken: list[Any] = []
        step, content = self.folder.load_state(self.accelerator, lambda *what: taken.append(what))
        assert self.weight == step == content["step"]
        assert taken == [(content, {"weight": torch.tensor([float(step)])})]
        assert content == {"step": step, "world_size": 1, "sharded": False, "batch_size": 4}
        return step


def write(value: str) -> Callable[[Path], None]:
    def save(folder: Path) -> None:
        (folder / "a.txt").write_text(value)
        (folder / "inner").mkdir()
        (folder / "inner" / "b.txt").write_text(value)

    return save


def read(folder: Path) -> str:
    a, b = (folder / "a.txt").read_text(), (folder / "inner" / "b.txt").read_text()
    assert a == b, "half of one and half of the other"
    return a


def in_child(work: Callable[[], None], last_call: int | None = None) -> int:
    """Do something in a forked process and return its exit code: 0, or 9 when it was killed.

    Args:
        last_call: kill it, as `kill -9` does, when it is about to change the file system or to open a file for the
            n-th time, counted from 0, or to bring one to the disk.
    """
    pid = os.fork()
    if pid:
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    calls = iter(range(10**6))

    def count(event: str, arguments: object = None) -> None:
        watched = ("open", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.fsync", "shutil.rmtree")
        if event in watched and next(calls) == last_call:
            os._exit(PROCESS_KILLED)

    sync = os.fsync
    os.fsync = lambda descriptor: (count("os.fsync"), sync(descriptor))[1]  # type: ignore[assignment]
    if last_call is not None:
        sys.addaudithook(count)
    try:
        work()
    except BaseException:
        os._exit(1)
    os._exit(0)


def kill_at_every_instant(
    start: Path, copy: Path, work: Callable[[], None], check: Callable[[], None], stride: int = 1
) -> int:
    """Repeat `work` on fresh copies of a folder, killed at instant 0, 1, 2, ... until it ends by itself.

    With a stride, at every so many instants.

    Returns:
        How often it was killed.
    """
    for instant in range(0, MOST_INSTANTS, stride):
        shutil.rmtree(copy, ignore_errors=True)
        if start.exists():
            shutil.copytree(start, copy)
        code = in_child(work, instant)
        assert code in (0, PROCESS_KILLED)
        check()
        if code == 0:
            return instant
    raise AssertionError("it never ended")


def test_what_was_saved_comes_back(tmp_path: Path) -> None:
    """Weight, momentum and random numbers."""
    run = Run(tmp_path)
    run.model(torch.ones(1, 1)).sum().backward()
    run.optimizer.step()
    run.save(500)
    expected = torch.rand(3)
    run.optimizer.state_dict()["state"][0]["momentum_buffer"].fill_(7.0)
    assert run.load() == 500
    assert torch.equal(torch.rand(3), expected)
    assert run.optimizer.state_dict()["state"][0]["momentum_buffer"].item() == 1.0


def test_a_state_saved_later_is_newer_whatever_its_step(tmp_path: Path) -> None:
    """A run that began anew in the folder of a longer one, and one that saves a step twice; one is kept."""
    run = Run(tmp_path)
    (tmp_path / "state" / "000000-step-000500").mkdir(parents=True)  # no step.json: never complete
    with pytest.raises(FileNotFoundError, match=r"Nothing to resume from in .*state"):
        run.load()
    assert run.folder.newest_state() is None
    (tmp_path / "state" / "000000-step-000500").rmdir()
    for number, step in enumerate((9000, 500, 500)):
        run.save(step)
        assert run.load() == step
        assert [path.name for path in (tmp_path / "state").iterdir()] == [f"{number:06d}-{step_name(step)}"]


@pytest.mark.parametrize("step_before", [None, 500])
def test_killed_at_any_instant_a_state_is_left(tmp_path: Path, step_before: int | None) -> None:
    """The old one or the new one, and the run that goes on can save again; before the first, nothing or the new one."""
    start, copy = Run(tmp_path / "start"), Run(tmp_path / "copy")
    if step_before is not None:
        start.save(step_before)
    seen: set[int | None] = set()

    def check() -> None:
        try:
            step = copy.load()
        except FileNotFoundError:
            step = None
        seen.add(step)
        copy.save(2000)
        assert copy.load() == 2000
        assert len(list(copy.folder.states.iterdir())) == 1, "nothing is left over"

    stride = 3 if step_before is None else 1
    instants = kill_at_every_instant(start.folder.path, copy.folder.path, lambda: copy.save(1000), check, stride)
    assert seen == {step_before, 1000}
    assert instants > 10


def test_everything_is_on_the_disk_before_it_is_renamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: set[int] = set()
    sync, rename = os.fsync, Path.rename

    def record_sync(descriptor: int) -> None:
        synced.add(os.fstat(descriptor).st_ino)
        sync(descriptor)

    def check_rename(folder: Path, target: Path) -> Path:
        if folder.name.endswith("partial"):
            inside = {path.stat().st_ino for path in [folder, *folder.rglob("*")]}
            assert len(inside) > 2 and inside <= synced
            synced.clear()
        return rename(folder, target)

    monkeypatch.setattr(os, "fsync", record_sync)
    monkeypatch.setattr(Path, "rename", check_rename)
    run = Run(tmp_path)
    run.save(1)
    assert synced == {(tmp_path / "state").stat().st_ino}
    run.folder.save_model(write("x"), "last")
    assert tmp_path.stat().st_ino in synced


def full_disk(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("place", ["save_state", "fsync", "mkdir", "rename"])
def test_a_full_disk_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    run = Run(tmp_path)
    run.save(500)
    with monkeypatch.context() as patch:
        patch.setattr({"save_state": Accelerator, "fsync": os}.get(place, Path), place, full_disk)
        with pytest.raises(
            StateError, match=r"The state of step 1000 could not be written to .*No space left"
        ) as error:
            run.save(1000)
    assert "\n" not in str(error.value)
    assert [path.name for path in (tmp_path / "state").iterdir()] == ["000000-step-000500"]
    assert run.load() == 500
    run.save(1000)
    assert run.load() == 1000


@pytest.mark.parametrize("what", ["state", "model"])
def test_a_writer_that_runs_out_of_room_is_told_in_one_line(tmp_path: Path, what: str) -> None:
    """No file may be over 500 bytes: torch and safetensors then fail as they do on a full disk, in their own words."""
    run = Run(tmp_path)
    big = Accelerator(cpu=True).prepare(nn.Linear(1000, 1))

    def work() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (500, 500))
        with pytest.raises(StateError, match=r"^The .* could not be written to .*MiB free there\): .+$"):
            if what == "state":
                run.save(1)
            else:
                run.folder.save_model(lambda folder: torch.save(big.state_dict(), folder / "x.bin"), "last")
        assert not [path for path in tmp_path.rglob("*") if path.is_file()]

    assert in_child(work) == 0


def test_a_state_of_another_model_is_refused(tmp_path: Path) -> None:
    Run(tmp_path).save(500)
    AcceleratorState._reset_state()
    accelerator = Accelerator(cpu=True)
    accelerator.prepare(nn.Linear(2, 2))
    with pytest.raises(StateError, match="does not fit this run") as error:
        RunFolder(tmp_path).load_state(accelerator)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("file", "refused"),
    [
        ("custom_checkpoint_0.pkl", "it is of an earlier version"),
        ("optimizer.bin", "Weights only load failed"),
        ("random_states_0.pkl", None),
        ("optimizer_0/.metadata", "optimizer_0/.metadata is not data alone"),
    ],
)
@pytest.mark.parametrize("as_torch", [True, False])
def test_nothing_in_a_state_runs(tmp_path: Path, file: str, refused: str | None, as_torch: bool) -> None:
    """Whoever can write to the folder of a run has a pickle in it for one that resumes."""
    run = Run(tmp_path / "run")
    run.save(500)
    state, mark = run.folder.newest_state(), tmp_path / "mark"
    assert state is not None
    (state / file).parent.mkdir(exist_ok=True)
    with (state / file).open("wb") as content:
        torch.save(Bomb(mark), content) if as_torch else pickle.dump(Bomb(mark), content, protocol=2)
    if refused is None:
        assert run.load() == 500
    else:
        with pytest.raises(StateError, match="does not fit this run: ") as caught:
            run.load()
        assert as_torch or refused in str(caught.value)
    assert not mark.exists()
    pickle.loads(pickle.dumps(Bomb(mark)))
    assert mark.exists(), "as a test of the test"


def test_what_torch_reads_without_a_care_is_read_with_care(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The values of a sharded optimizer that are no tensors are read as pickles that may do anything."""
    run = Run(tmp_path / "run")
    run.save(500)
    torch.save(Bomb(tmp_path / "mark"), tmp_path / "bomb")
    monkeypatch.setattr(Accelerator, "load_state", lambda *_: torch.load(tmp_path / "bomb", weights_only=False))
    with pytest.raises(StateError, match="Weights only load failed"):
        run.load()
    assert not (tmp_path / "mark").exists()


def two_processes(path: Path) -> None:
    """Save, fail in one process alone, stop by a signal to one process alone."""
    AcceleratorState._reset_state(reset_partial_state=True)
    run = Run(path)
    rank = run.accelerator.process_index
    assert run.accelerator.num_processes == 2
    run.save(500)
    original = Accelerator.save_state
    if rank == 1:
        Accelerator.save_state = full_disk  # type: ignore[assignment]
    try:
        run.save(1000)
    except StateError as error:
        assert ("No space left" if rank else "another process") in str(error)
    else:
        raise AssertionError("only one of two processes noticed")
    Accelerator.save_state = original  # type: ignore[method-assign]
    content = {"step": 500, "world_size": 2, "sharded": False, "batch_size": 4}
    assert run.folder.load_state(run.accelerator) == (500, content)
    with StopSignal() as stop:
        assert not stop.requested(run.accelerator)
        if rank == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        assert stop.requested(run.accelerator)


def test_two_processes_agree_and_one_can_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The single process finds random numbers for itself and leaves the other's; two from one find one missing."""
    for name in ("KMP_INIT_AT_FORK", "OMP_NUM_THREADS"):
        monkeypatch.setenv(name, "1")
    debug_launcher(two_processes, (tmp_path,), num_processes=2)
    run = Run(tmp_path)
    step, content = run.folder.load_state(run.accelerator)
    assert (step, content["world_size"]) == (500, 2)
    state = run.folder.newest_state()
    assert state is not None and (state / "random_states_1.pkl").exists()
    (state / "random_states_0.pkl").unlink()
    assert run.folder.load_state(run.accelerator)[0] == 500


@pytest.mark.parametrize("existing", [False, True])
def test_killed_at_any_instant_a_model_is_whole(tmp_path: Path, existing: bool) -> None:
    start, copy = RunFolder(tmp_path / "start"), RunFolder(tmp_path / "copy")
    start.path.mkdir()
    if existing:
        start.save_model(write("old"), "last")
    seen = set()

    def check() -> None:
        copy.mend()
        last = copy.path / "last"
        seen.add(read(last) if last.exists() else None)
        assert {path.name for path in copy.path.iterdir()} <= {"last"}, "nothing is left over"

    kill_at_every_instant(
        start.path, copy.path, lambda: copy.save_model(write("new"), "last"), check, 1 if existing else 3
    )
    assert seen == {"old" if existing else None, "new"}


@pytest.mark.parametrize("place", ["fsync", "rename", "second rename", "save"])
def test_a_full_disk_keeps_the_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    folder = RunFolder(tmp_path)
    folder.save_model(write("old"), "last")
    rename, calls = Path.rename, iter(range(10))

    def second_fails(source: Path, target: Path) -> Path:
        if next(calls) == 1:
            full_disk()
        return rename(source, target)

    with monkeypatch.context() as patch:
        if place == "fsync":
            patch.setattr(os, "fsync", full_disk)
        elif place != "save":
            patch.setattr(Path, "rename", full_disk if place == "rename" else second_fails)
        with pytest.raises(StateError, match=r"The model 'last' could not be written .*No space left"):
            folder.save_model(full_disk if place == "save" else write("new"), "last")
    assert read(tmp_path / "last") == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["last"]


@pytest.mark.parametrize(
    ("last", "scores", "kept"),
    [
        (2, {100: 0.3, 200: 0.5, 300: 0.4, 400: 0.1, 1000: 0.2}, [200, 400, 1000]),
        (0, {100: 0.5, 200: 0.5, 300: 0.4}, [100, 1000]),
        (1, {200: float("nan"), 300: 0.1, 555: 0.9}, [300, 1000]),
        (3, {}, [300, 400, 1000]),
        (9, {}, [100, 200, 300, 400, 1000]),
    ],
    ids=[
        "last 2",
        "never none, the earlier of equals",
        "nan is no score",
        "no scores",
        "more than there are",
    ],
)
def test_old_steps_are_pruned(tmp_path: Path, last: int, scores: dict[int, float], kept: list[int]) -> None:
    folder = RunFolder(tmp_path)
    for step in (100, 200, 300, 400, 1000):
        folder.save_model(write(str(step)), step_name(step))
    folder.save_model(write("best"), "best")
    folder.prune(last, scores)
    assert {path.name for path in tmp_path.iterdir()} == {"best", *map(step_name, kept)}


def test_a_step_is_never_seen_half_deleted(tmp_path: Path) -> None:
    start, copy = RunFolder(tmp_path / "start"), RunFolder(tmp_path / "copy")
    for step in (1, 2):
        start.save_model(write(str(step)), step_name(step))

    def check() -> None:
        copy.mend()
        assert {path.name for path in copy.path.iterdir()} in ({"step-000001", "step-000002"}, {"step-000002"})
        assert all(read(path) == str(int(path.name[5:])) for path in copy.path.iterdir())

    assert kill_at_every_instant(start.path, copy.path, lambda: copy.prune(1, {2: 1.0}), check) > 2


def test_metrics_after_the_step_are_dropped(tmp_path: Path) -> None:
    """Lines of steps 50 to 200, and a kill in the middle of the next; going on from step 100 two whole ones stay.

    A last line without its end can be read, but the next one would be appended to it.
    """
    folder = RunFolder(tmp_path)
    folder.trim_metrics(100)
    lines = [json.dumps({"step": step, "loss": 1.0}) + "\n" for step in (50, 100, 150, 200)]
    for text in ("".join(lines) + '{"step": 2', "".join(lines[:2]), "".join(lines[:2]) + '{"step": 60}'):
        folder.metrics.write_text(text)
        folder.trim_metrics(100)
        assert folder.metrics.read_text() == "".join(lines[:2])


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_asks_to_stop(number: signal.Signals) -> None:
    accelerator = Accelerator(cpu=True)
    before = [signal.getsignal(n) for n in StopSignal.SIGNALS]
    with StopSignal() as stop:
        assert not stop.requested(accelerator)
        os.kill(os.getpid(), number)
        assert stop.requested(accelerator) and stop.requested(accelerator)
    assert [signal.getsignal(n) for n in StopSignal.SIGNALS] == before


def test_a_second_interrupt_interrupts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Under torchrun it does not: one Ctrl-C reaches its processes twice, from the terminal and from torchrun."""
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), StopSignal():
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) == before
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "1")
    with StopSignal() as stop:
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGINT)
        assert stop.requested(Accelerator(cpu=True))


def test_another_thread_takes_no_handlers() -> None:
    seen: list[Any] = []

    def work() -> None:
        before = signal.getsignal(signal.SIGTERM)
        with StopSignal():
            seen.append(signal.getsignal(signal.SIGTERM) == before)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [True]
