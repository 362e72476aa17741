"""Stop and resume: the folder of a run, whose every change is all or nothing, and signals that ask a run to stop.

A folder is written under a hidden name, flushed to the disk, and renamed. A state gets a new name each time, so that
one is complete at every instant; a model keeps its name, and where a kill falls between its two renames, `mend` finds
it under its hidden name.
"""

from __future__ import annotations

import json
import pickle
import re
import shutil
import signal
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import IO, Any

import torch
from accelerate import Accelerator
from accelerate.utils import patch_environment
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.distributed import is_torchelastic_launched
from torch.distributed.checkpoint.api import CheckpointException

from ..publishing.facts import EXAMPLES_FOLDER, METRICS_FILE, STEP_FILE
from ..utils.atomic import clear_unfinished, flush_to_disk, lock, write_atomic
from .recipes import OptionError
from .sharding import is_sharded, refuse_code

PARTIAL, OLD, DELETED = "partial", "old", "deleted"
LOCK_FILE, EMA_FILE = ".lock", "average.safetensors"
STATE_NAME = re.compile(r"(\d+)-step-\d+")
STEP_NAME = re.compile(r"step-(\d+)")
# What a full disk raises: torch and safetensors report it in their own ways.
WriteErrors = (OSError, RuntimeError, SafetensorError)
LoadExtra = Callable[[Mapping[str, Any], Mapping[str, Tensor]], None]


class StateError(Exception):
    """A state or a model that could not be written or read, in one line; what was there before is there still."""

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.split()))


def step_name(step: int) -> str:
    """The name of the model of a step: "step-000500"."""
    return f"step-{step:06d}"


class RunFolder:
    """What a run leaves on the disk, which all processes share.

    path: holds `last/`, `best/` and `step-000500/` (models), `metrics.jsonl`, and `state/`, with the newest state in a
        folder like `state/000003-step-001500/`: what `Accelerator.save_state` writes, the moving average, and
        `step.json`, which says step and number of processes. No code in it runs when it is read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.states = path / "state"
        self.metrics = path / METRICS_FILE
        self._held: IO[bytes] | None = None

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(self, *_: object) -> None:
        if self._held is not None:
            self._held.close()

    def hold(self) -> None:
        """Keep other runs out until the `with` block ends, and undo what a kill left half done. For the main process.

        Raises:
            OptionError: another run is at work here.
        """
        if self._held is not None:
            return
        self.path.mkdir(parents=True, exist_ok=True)
        self._held = (self.path / LOCK_FILE).open("ab", buffering=0)
        if not lock(self._held):
            raise OptionError(f"another run is at work in {self.path}: name another output_dir")
        self.mend()

    def newest_state(self) -> Path | None:
        """The folder of the newest complete state; None where there is none."""
        complete = self._complete_states()
        return complete[-1] if complete else None

    def _complete_states(self) -> list[Path]:
        """Oldest first."""
        numbered = [
            (STATE_NAME.fullmatch(mark.parent.name), mark.parent) for mark in self.states.glob(f"*/{STEP_FILE}")
        ]
        return [folder for _, folder in sorted((int(match[1]), folder) for match, folder in numbered if match)]

    def save_state(
        self, accelerator: Accelerator, step: int, extra: Mapping[str, Any], ema: Mapping[str, Tensor]
    ) -> None:
        """Write the state after `step` optimizer steps in place of the last one. Every process calls it.

        A process killed at any instant leaves the last state or this one.

        Args:
            extra: what `load_state` gives back beside the step, as JSON holds it.
            ema: the moving average, whole; empty where there is none.

        Raises:
            StateError: it could not be written (the disk is full), in every process; the last state is kept.
        """
        partial = self.states / f".{PARTIAL}"
        main = accelerator.is_main_process
        facts = {"step": step, "world_size": accelerator.num_processes, "sharded": is_sharded(accelerator)}

        def begin() -> None:
            if main:
                self.states.mkdir(parents=True, exist_ok=True)
                # What a kill left half written or half deleted.
                for folder in [*self.states.glob(f".{PARTIAL}"), *self.states.glob(f".*.{DELETED}")]:
                    shutil.rmtree(folder)
                partial.mkdir()

        def finish() -> None:
            if main:
                save_file(dict(ema), partial / EMA_FILE)
                (partial / STEP_FILE).write_text(json.dumps({**extra, **facts}))
                _to_disk(partial)
                self._replace_states(partial, step)

        try:
            for work in (begin, lambda: _of_all_shards(accelerator.save_state, partial), finish):
                _together(accelerator, work)
        except WriteErrors as error:
            if main:
                shutil.rmtree(partial, ignore_errors=True)
            accelerator.wait_for_everyone()
            raise self._failure(f"The state of step {step}", self.states, error) from error

    def _replace_states(self, partial: Path, step: int) -> None:
        before = self._complete_states()
        number = int(before[-1].name.split("-")[0]) + 1 if before else 0
        partial.rename(self.states / f"{number:06d}-{step_name(step)}")
        flush_to_disk(self.states)
        for folder in before:
            _delete(folder)

    def load_state(
        self, accelerator: Accelerator, load_extra: LoadExtra = lambda *_: None
    ) -> tuple[int, dict[str, Any]]:
        """Load the newest complete state into what the accelerator prepared. Every process calls it.

        Processes beyond the number that wrote the state keep the random numbers they have.

        Args:
            load_extra: is given all of `step.json`, and the moving average.

        Returns:
            The step, and all of `step.json`: `step`, `world_size` (how many processes wrote it), `sharded` (whether
            each wrote a part of the weights), and the extras.

        Raises:
            FileNotFoundError: there is no state.
            StateError: it does not belong to this model, this optimizer or `load_extra`, or it holds code.
        """
        accelerator.wait_for_everyone()
        folder = self.newest_state()
        if folder is None:
            raise FileNotFoundError(f"Nothing to resume from in {self.states}.")
        content: dict[str, Any] = json.loads((folder / STEP_FILE).read_text())
        was_sharded = content.get("sharded", False)
        if was_sharded != is_sharded(accelerator):
            kinds = ("sharded", "whole") if was_sharded else ("whole", "sharded")
            raise StateError(
                f"The state in {folder} is of {kinds[0]} weights, this run's are {kinds[1]}: go on with it as it was"
                " launched, or train last/ in a new output_dir"
            )
        try:
            refuse_code(folder)
            with patch_environment(torch_force_weights_only_load="1"):  # shards are read without, else
                _of_all_shards(accelerator.load_state, folder)
            load_extra(content, load_file(folder / EMA_FILE))
        except (*WriteErrors, ValueError, LookupError, pickle.UnpicklingError) as error:
            raise StateError(f"The state in {folder} does not fit this run: {_reason(error)}") from error
        return content["step"], content

    def save_model(self, save: Callable[[Path], None], name: str) -> None:
        """Write a folder of the run, in place of the one of that name. The main process alone calls it.

        Args:
            save: writes everything into the folder it is given, which exists and is empty.
            name: "last", "best", or `step_name(step)`.

        Raises:
            StateError: it could not be written (the disk is full); the folder of that name is kept.
        """
        target = self.path / name
        partial, old = _hidden(target, PARTIAL), _hidden(target, OLD)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            _mend(target)
            partial.mkdir()
            save(partial)
            _to_disk(partial)
            if target.exists():
                target.rename(old)
            partial.rename(target)
            flush_to_disk(self.path)
        except WriteErrors as error:
            with suppress(OSError):
                _mend(target)
            raise self._failure(f"The model {name!r}", target, error) from error
        shutil.rmtree(old, ignore_errors=True)

    def mend(self) -> None:
        """Undo what a kill left half done to models and files of the run. The main process alone calls it."""
        clear_unfinished(self.path)
        clear_unfinished(self.path / EXAMPLES_FOLDER)
        for kind in (PARTIAL, OLD):
            for folder in self.path.glob(f".*.{kind}"):
                _mend(self.path / folder.name[1 : -len(kind) - 1])
        for folder in self.path.glob(f".*.{DELETED}"):
            shutil.rmtree(folder, ignore_errors=True)

    def prune(self, last: int, scores: Mapping[int, float]) -> None:
        """Delete models of steps but the newest `last` and the best one. The main process alone calls it.

        The newest is always kept; of equally good ones the earliest is the best.

        Args:
            scores: what each step reached, higher is better; steps without one, or with NaN, are no candidates.
        """
        found = [(STEP_NAME.fullmatch(folder.name), folder) for folder in self.path.glob("step-*")]
        folders = dict(sorted((int(match[1]), folder) for match, folder in found if match))
        scored = [step for step in folders if step in scores and scores[step] == scores[step]]
        best = sorted(scored, key=lambda step: (-scores[step], step))[:1]
        kept = {*list(folders)[-max(1, last) :], *best}
        for step, folder in folders.items():
            if step not in kept:
                _delete(folder)

    def trim_metrics(self, step: int, *, evaluation: bool = True) -> None:
        """Drop lines of `metrics.jsonl` after `step`, and what is no whole line. The main process alone calls it.

        Args:
            evaluation: False to drop that of `step` itself, too.
        """
        if not self.metrics.exists():
            return
        lines = self.metrics.read_text(errors="replace").splitlines(keepends=True)
        kept = [line for line in lines if line.endswith("\n") and _is_up_to(line, step, evaluation)]
        if len(kept) < len(lines):
            write_atomic(self.metrics, "".join(kept))

    def _failure(self, what: str, where: Path, error: BaseException) -> StateError:
        existing = next(folder for folder in (where, *where.parents) if folder.exists())
        free = shutil.disk_usage(existing).free / 2**20
        return StateError(f"{what} could not be written to {where} ({free:.0f} MiB free there): {_reason(error)}")


def _is_up_to(line: str, step: int, evaluation: bool) -> bool:
    try:
        content = json.loads(line)
        return bool(content["step"] < step or (content["step"] == step and (evaluation or "evaluation" not in content)))
    except (ValueError, LookupError, TypeError):
        return False


def _reason(error: BaseException) -> str:
    text = (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__
    return text.strip().splitlines()[0]


def _of_all_shards(work: Callable[[str], object], folder: Path) -> None:
    """Save or load; what fails for sharded weights is told as it would be for whole ones."""
    try:
        work(str(folder))
    except CheckpointException as error:  # which is no Exception, and whose text is a traceback
        problem, _ = next(iter(error.failures.values()))
        raise problem from None


def _together(accelerator: Accelerator, work: Callable[[], None]) -> None:
    """Do something in every process, and where it fails in one, fail in all."""
    problem: BaseException | None = None
    try:
        work()
    except WriteErrors as error:
        problem = error
    failed = torch.tensor(0 if problem is None else 1, device=accelerator.device)
    if accelerator.num_processes > 1:
        failed = accelerator.reduce(failed, reduction="sum")
    if failed.item():
        raise problem or OSError("another process could not write its part")


def _hidden(target: Path, kind: str) -> Path:
    return target.with_name(f".{target.name}.{kind}")


def _mend(target: Path) -> None:
    """Bring back a folder that was moved out of the way for one that never came, and remove what is left over."""
    old, partial = _hidden(target, OLD), _hidden(target, PARTIAL)
    if old.exists() and not target.exists():
        old.rename(target)
    for rest in (old, partial):
        if rest.is_dir():
            shutil.rmtree(rest)


def _delete(folder: Path) -> None:
    """Delete a folder that is never seen half deleted."""
    hidden = _hidden(folder, DELETED)
    folder.rename(hidden)
    shutil.rmtree(hidden, ignore_errors=True)


def _to_disk(folder: Path) -> None:
    """Have everything in a folder, and its directories, written through to the disk."""
    for path in folder.rglob("*"):
        flush_to_disk(path)
    flush_to_disk(folder)


class StopSignal:
    """Turns SIGTERM and SIGINT into a question: `with StopSignal() as stop:` and, every step, `stop.requested(...)`.

    A second SIGINT raises KeyboardInterrupt, except under torchrun, which sends each Ctrl-C a second time. Outside the
    main thread, where Python takes no handlers, signals do what they did before.
    """

    SIGNALS = (signal.SIGTERM, signal.SIGINT)

    def __init__(self) -> None:
        self._asked = False
        self._interrupted = False
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> StopSignal:
        if threading.current_thread() is threading.main_thread():
            self._previous = {number: signal.signal(number, self._receive) for number in self.SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            # A handler that was not set from Python is given as None, and cannot be set from it.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        self._previous = {}

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT:
            if self._interrupted and not is_torchelastic_launched():
                raise KeyboardInterrupt
            self._interrupted = True
        self._asked = True

    def requested(self, accelerator: Accelerator) -> bool:
        """Whether any process was asked to stop; the same answer in all, so all must ask at the same steps."""
        if accelerator.num_processes == 1:
            return self._asked
        asked = torch.tensor(int(self._asked), device=accelerator.device)
        return bool(accelerator.reduce(asked, reduction="sum").item())
