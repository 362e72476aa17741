"""The training loop."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from accelerate.utils import send_to_device
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler

from ..data.training_dataset import Skipped, StepBatch
from .averaging import MovingAverage
from .progress import Progress
from .recipe import Recipe
from .sharding import whole
from .states import StopSignal


class Actions(NamedTuple):
    """What a run does between steps, by all processes; each is called with the number of steps done."""

    save: Callable[[int], None]
    evaluate: Callable[[int], None]
    show_pictures: Callable[[int], None]
    leave_out: Callable[[Sequence[Skipped]], None]


@dataclass
class Trainee:
    """Everything that changes while a model is trained.

    model: prepared by Accelerate.
    average: the moving average of the weights, None where there is none.
    start_training: puts the model into training mode, frozen parts aside.
    """

    accelerator: Accelerator
    model: nn.Module
    optimizer: torch.optim.Optimizer
    schedule: LRScheduler
    average: MovingAverage | None
    start_training: Callable[[], None]


def train(
    trainee: Trainee,
    batches: Iterable[StepBatch],
    recipe: Recipe,
    progress: Progress,
    actions: Actions,
    first_step: int,
    max_steps: int,
) -> int:
    """Train from `first_step` to `max_steps`, or until a signal asks to stop, and return how many steps are done.

    Args:
        batches: this process's part of each step, from the first one that is still to be done.
    """
    accelerator, step = trainee.accelerator, first_step
    trainee.start_training()
    source = iter(batches)
    with StopSignal() as stop:
        for step in range(first_step + 1, max_steps + 1):
            with progress.watch.measure("data"):
                batch = next(source)
            terms = accumulate(trainee, batch, progress)
            with progress.watch.measure("step"):
                terms["grad_norm"] = clip(trainee, recipe.max_grad_norm)
                refuse_broken(accelerator, terms, step)
                update(trainee)
            progress.add(terms)
            actions.leave_out(batch.skipped)
            if _is_due(step, recipe.log_every, max_steps):
                progress.log(step, float(trainee.schedule.get_last_lr()[-1]))
            stopped = stop.requested(accelerator)
            if not stopped and _look(step, recipe, actions, max_steps):
                trainee.start_training()
            if stopped or _is_due(step, recipe.save_every, max_steps):
                with progress.watch.measure("save"):
                    actions.save(step)
            if stopped:
                break
    return step


def _look(step: int, recipe: Recipe, actions: Actions, max_steps: int) -> bool:
    """Evaluate and draw where it is time; whether it was."""
    plans = ((recipe.evaluate_every, actions.evaluate), (recipe.pictures_every, actions.show_pictures))
    due = [action for every, action in plans if every is not None and step % every == 0 and step < max_steps]
    for action in due:
        action(step)
    return bool(due)


def _is_due(step: int, every: int, max_steps: int) -> bool:
    return step % every == 0 or step == max_steps


def accumulate(trainee: Trainee, batch: StepBatch, progress: Progress) -> dict[str, Tensor]:
    """Add up the gradients of a step, so that it does not matter how its pictures are divided.

    The loss of every picture is divided by the number of boxes in the whole step. DDP averages gradients over the
    processes where a sum is meant, so that the divisor is smaller by their number.

    Returns:
        The loss and its terms, each the mean over processes of which is that of the step.
    """
    accelerator, model = trainee.accelerator, trainee.model
    own_boxes = torch.tensor(float(batch.num_boxes), device=accelerator.device)
    num_boxes = accelerator.reduce(own_boxes, "sum").clamp(min=1.0) / accelerator.num_processes
    sums: dict[str, Tensor] = {}
    last = len(batch.micro_batches) - 1
    for i, inputs in enumerate(batch.micro_batches):
        with accelerator.no_sync(model) if i < last else nullcontext():
            # Accelerate puts autocast around a model that it wraps, but not around one that it shards.
            with progress.watch.measure("forward"), accelerator.autocast():
                output: Any = model(**send_to_device(inputs, accelerator.device), num_boxes=num_boxes)
            with progress.watch.measure("backward"):
                accelerator.backward(output.loss)
        for name, value in {"loss": output.loss, **output.loss_dict}.items():
            sums[name] = sums.get(name, torch.zeros_like(value)) + value.detach()
    return sums


def clip(trainee: Trainee, max_grad_norm: float) -> Tensor:
    """Scale the gradients down to a norm, where it is not 0, and return the norm they had."""
    parameters = [p for p in trainee.model.parameters() if p.requires_grad]
    norm = trainee.accelerator.clip_grad_norm_(parameters, max_grad_norm or torch.inf)
    return torch.as_tensor(whole(norm), device=trainee.accelerator.device)


def refuse_broken(accelerator: Accelerator, terms: Mapping[str, Tensor], step: int) -> None:
    """Stop before the weights take in what is not finite.

    Raises:
        FloatingPointError: a term is not finite in one process, in every process; it and the step are named.
    """
    # What a term is made of is named before the whole. A scaler skips a step of broken gradients, with a smaller scale.
    names = sorted(terms, key=lambda name: (name == "grad_norm", name == "loss", name))
    names = [name for name in names if accelerator.scaler is None or name != "grad_norm"]
    broken = torch.stack([terms[name].float().isfinite().logical_not() for name in names]).float()
    for name, count in zip(names, accelerator.reduce(broken, "sum").tolist(), strict=True):
        if count:
            raise FloatingPointError(
                f"{name} of step {step} is not finite: begin anew with a lower learning_rate or max_grad_norm; the last"
                " state is kept"
            )


def update(trainee: Trainee) -> None:
    """Change the weights by the gradients; a step that float16 skips moves neither schedule nor average."""
    trainee.optimizer.step()
    trainee.optimizer.zero_grad()
    if trainee.accelerator.optimizer_step_was_skipped:
        return
    trainee.schedule.step()
    if trainee.average is not None:
        trainee.average.update()
