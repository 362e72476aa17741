"""The training loop: AdamW, warm-up and cosine, clipping, a moving average, and states to go on from."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DataLoaderConfiguration, set_seed
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from transformers import get_cosine_schedule_with_warmup

Batches = Callable[[int], Iterable[dict[str, Any]]]
STATE_FOLDER = "state"


@dataclass(frozen=True, kw_only=True)
class TrainingSettings:
    """How to train.

    max_steps: optimiser steps in all.
    learning_rate: peak, reached after `warmup_steps`, then a cosine to 0.
    weight_decay: on matrices; vectors (norms, biases, scales) have none.
    max_grad_norm: gradients are scaled down to this L2 norm.
    average_decay: of the moving average of the weights, which is what comes out.
    log_every, save_every: in steps.
    seed: of everything random.
    """

    max_steps: int
    learning_rate: float
    warmup_steps: int = 200
    weight_decay: float = 1e-4
    max_grad_norm: float = 1.0
    average_decay: float = 0.999
    log_every: int = 50
    save_every: int = 500
    seed: int = 0


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """The trained parameters in two groups: matrices, which decay, and vectors, which do not."""
    trained = [p for p in model.parameters() if p.requires_grad]
    return [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]


def train(
    model: nn.Module, batches_from: Batches, settings: TrainingSettings, output_dir: Path, *, resume: bool = False
) -> nn.Module:
    """Train `model` and return the moving average of its weights.

    Writes `metrics.jsonl` (an object each logged step) and, every `save_every` steps, the state to resume from.

    Args:
        batches_from: gives the batches from a step on, always the same ones.
        resume: go on from the state in `output_dir`.

    Raises:
        FileNotFoundError: `resume` without a state.
    """
    set_seed(settings.seed)
    # A batch is split over the processes, so that a step sees the same pictures on any number of them.
    accelerator = Accelerator(
        cpu=not torch.accelerator.is_available(), dataloader_config=DataLoaderConfiguration(split_batches=True)
    )
    optimizer = torch.optim.AdamW(parameter_groups(model, settings.weight_decay), lr=settings.learning_rate)
    schedule = get_cosine_schedule_with_warmup(optimizer, settings.warmup_steps, settings.max_steps)
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(settings.average_decay))
    average.to(accelerator.device)
    model, optimizer = accelerator.prepare(model, optimizer)
    accelerator.register_for_checkpointing(schedule, average)
    first_step = _restore(accelerator, output_dir) if resume else 0
    output_dir.mkdir(parents=True, exist_ok=True)
    log = MetricsLog(output_dir / "metrics.jsonl", accelerator.is_main_process)
    model.train()
    for step, batch in enumerate(accelerator.prepare(batches_from(first_step)), start=first_step + 1):
        output = model(**batch)
        accelerator.backward(output.loss)
        norm = accelerator.clip_grad_norm_(model.parameters(), settings.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        average.update_parameters(accelerator.unwrap_model(model))
        log.add(output.loss, output.loss_dict, norm)
        if step % settings.log_every == 0 or step == settings.max_steps:
            log.write(step, schedule.get_last_lr()[0])
        if step % settings.save_every == 0 or step == settings.max_steps:
            _save(accelerator, output_dir, step)
    averaged: nn.Module = average.module
    return averaged


class MetricsLog:
    """Means of what was added since the last line, one JSON object a line."""

    def __init__(self, path: Path, enabled: bool) -> None:
        """Append to `path` when `enabled`."""
        self.path = path
        self.enabled = enabled
        self._sums: dict[str, Tensor] = {}
        self._count = 0
        self._since = time.monotonic()

    def add(self, loss: Tensor, loss_dict: dict[str, Tensor], grad_norm: Tensor | None) -> None:
        """Count one step in; nothing is read from the device."""
        values = {"loss": loss, **loss_dict, "grad_norm": grad_norm}
        for name, value in values.items():
            if value is not None:
                self._sums[name] = self._sums.get(name, torch.zeros_like(value)) + value.detach()
        self._count += 1

    def write(self, step: int, learning_rate: float) -> None:
        """Write the means and begin anew."""
        now = time.monotonic()
        line: dict[str, float] = {"step": step, "learning_rate": learning_rate}
        line |= {name: float(value) / self._count for name, value in self._sums.items()}
        line["seconds_per_step"] = (now - self._since) / self._count
        if self.enabled:
            with self.path.open("a") as file:
                file.write(json.dumps(line) + "\n")
        self._sums, self._count, self._since = {}, 0, now


def _save(accelerator: Accelerator, output_dir: Path, step: int) -> None:
    """Write the state beside the last one, then put it in its place."""
    folder, temporary = output_dir / STATE_FOLDER, output_dir / f"{STATE_FOLDER}.next"
    accelerator.save_state(str(temporary))
    if accelerator.is_main_process:
        (temporary / "step.json").write_text(json.dumps({"step": step}))
        old = output_dir / f"{STATE_FOLDER}.old"
        if folder.exists():
            folder.rename(old)
        temporary.rename(folder)
        if old.exists():
            for file in old.iterdir():
                file.unlink()
            old.rmdir()
    accelerator.wait_for_everyone()


def _restore(accelerator: Accelerator, output_dir: Path) -> int:
    folder = output_dir / STATE_FOLDER
    if not (folder / "step.json").exists():
        raise FileNotFoundError(f"Nothing to resume from in {folder}.")
    accelerator.load_state(str(folder))
    step: int = json.loads((folder / "step.json").read_text())["step"]
    return step
