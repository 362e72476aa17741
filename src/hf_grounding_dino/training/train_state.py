"""Everything that changes while a model is trained, built from a recipe, and one step of the optimizer."""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from accelerate import Accelerator
from accelerate.utils import (
    GradientAccumulationPlugin,
    ProjectConfiguration,
    TorchDynamoPlugin,
    send_to_device,
    str_to_bool,
)
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler

from ..assets import NANO
from ..data.training_dataset import StepBatch
from ..models.grounding_dino.modeling_grounding_dino import GroundingDinoForObjectDetection
from ..models.loading import LoadingError, load_whole
from ..processing.processing_grounding_dino import GroundingDinoProcessor
from .adapters import add_lora, merge_lora
from .ema import ExponentialMovingAverage, interpolate
from .logging import Stopwatch
from .optim import freeze, learning_rate_schedule, parameter_groups, train_mode
from .recipe import Recipe
from .recipes import OptionError
from .sharding import full_tensor, local_shard, shard_by_layers

if TYPE_CHECKING:
    from peft import PeftModel

PRECISIONS = {"float32": "no", "bfloat16": "bf16", "float16": "fp16"}


def build_accelerator(recipe: Recipe) -> Accelerator:
    """As the recipe says, whatever a launcher has put into the environment beside the processes and their devices.

    Raises:
        OptionError: the precision, a tracker or the launcher's parallelism is not supported here.
    """
    if str_to_bool(os.environ.get("ACCELERATE_USE_PARALLELISM_CONFIG", "false")):
        raise OptionError("a parallelism_config is not supported: launch without it, or shard with --use_fsdp")
    accelerator = Accelerator(
        cpu=not torch.accelerator.is_available(),
        mixed_precision=PRECISIONS[recipe.precision],
        gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),
        dynamo_plugin=TorchDynamoPlugin(backend="no"),
        log_with=list(recipe.trackers) or None,
        project_config=ProjectConfiguration(recipe.output_dir, logging_dir=str(Path(recipe.output_dir) / "trackers")),
    )
    if accelerator.device.type == "cpu" and recipe.precision == "float16":
        raise OptionError("precision is float16, which needs a GPU: choose bfloat16 or float32")
    usable = {str(getattr(tracker, "value", tracker)) for tracker in accelerator.log_with}
    for name in recipe.trackers:
        if name not in usable:
            raise OptionError(f"the tracker {name} is not installed")
    return accelerator


def load_model(model: str) -> tuple[GroundingDinoForObjectDetection, GroundingDinoProcessor]:
    """The model and processor of a folder, a repo, or "nano".

    Raises:
        OptionError: there is no such model, it is of another architecture, or not whole.
    """
    try:
        return load_whole(str(NANO) if model == "nano" else model)
    except LoadingError as error:
        raise OptionError(str(error)) from error
    except (OSError, ValueError) as error:
        raise OptionError(f"model {model}: {' '.join(str(error).split())}") from error


class SavedModel:
    """The model as it is measured and saved: averaged, its adapters merged, interpolated with the start.

    Args:
        start: the model before training, without adapters; None where nothing is interpolated.
        trained: the model that is trained, before Accelerate prepares it; with adapters where there are any.
    """

    def __init__(self, start: nn.Module | None, trained: nn.Module, recipe: Recipe) -> None:
        self._has_adapters = recipe.lora is not None
        self._share = recipe.interpolation
        self._start = start
        self._blank = copy.deepcopy(trained)

    def build(self, state: TrainState) -> GroundingDinoForObjectDetection:
        """The model of this moment, in eval mode on the device; all processes must ask together."""
        trained = state.accelerator.unwrap_model(state.model)
        weights = {**dict(trained.named_parameters()), **dict(trained.named_buffers())}
        weights |= {} if state.ema is None else state.ema.weights
        for name, copied in (*self._blank.named_parameters(), *self._blank.named_buffers()):
            copied.data.copy_(full_tensor(weights[name]).view_as(copied))
        model: Any = merge_lora(cast("PeftModel", self._blank)) if self._has_adapters else self._blank
        if self._start is not None:
            model.load_state_dict(interpolate(self._start, model, self._share))
        built: GroundingDinoForObjectDetection = model.eval().to(state.accelerator.device)
        return built


def build_train_state(
    recipe: Recipe, accelerator: Accelerator, model: Any, max_steps: int
) -> tuple[TrainState, SavedModel]:
    """Freeze, adapt and wrap a model, with optimizer, schedule and moving average.

    Raises:
        OptionError, ValueError: options that do not go together with this model or launcher.
    """
    if recipe.gradient_checkpointing:
        model.gradient_checkpointing_enable()
    if recipe.denoising is None:
        model.disable_denoising()
    else:
        model.enable_denoising(recipe.denoising.queries, recipe.denoising.label_noise, recipe.denoising.box_noise)
        if recipe.denoising.table is not None:
            model.load_denoising(recipe.denoising.table)
    start = copy.deepcopy(model) if recipe.interpolation < 1 else None
    freeze(model, recipe.freeze)
    if recipe.lora is not None:
        model = add_lora(model, recipe.lora)
    saved = SavedModel(start, model, recipe)
    shard_by_layers(accelerator, model)
    groups = parameter_groups(
        model,
        recipe.learning_rate,
        backbone_lr_mult=recipe.backbone_lr_mult,
        text_lr_mult=recipe.text_lr_mult,
        weight_decay=recipe.weight_decay,
        decay_vectors=recipe.decay_vectors,
    )
    optimizer = torch.optim.AdamW(groups, lr=recipe.learning_rate)
    schedule = learning_rate_schedule(
        optimizer,
        recipe.schedule,
        max_steps,
        warmup_steps=min(recipe.warmup_steps, max_steps - 1),
        milestones=recipe.milestones,
        gamma=recipe.gamma,
    )
    model, optimizer = accelerator.prepare(model, optimizer)
    ema = None
    if recipe.ema_decay is not None:
        ema = ExponentialMovingAverage(accelerator.unwrap_model(model), recipe.ema_decay)
    return TrainState(accelerator, model, optimizer, schedule, ema), saved


@dataclass
class TrainState:
    """Everything that changes while a model is trained.

    model: prepared by Accelerate.
    ema: the moving average of the weights, None where there is none.
    """

    accelerator: Accelerator
    model: nn.Module
    optimizer: torch.optim.Optimizer
    schedule: LRScheduler
    ema: ExponentialMovingAverage | None

    def train_mode(self) -> None:
        """Put the model into training mode, frozen parts aside."""
        train_mode(self.model)

    def accumulate(self, batch: StepBatch, watch: Stopwatch) -> dict[str, Tensor]:
        """Add up the gradients of a step, so that it does not matter how its images are divided.

        The loss of every image is divided by the number of boxes in the whole step. DDP averages gradients over the
        processes where a sum is meant, so that the divisor is smaller by their number.

        Returns:
            The loss and its terms, each the mean over processes of which is that of the step.
        """
        accelerator = self.accelerator
        own_boxes = torch.tensor(float(batch.num_boxes), device=accelerator.device)
        num_boxes = accelerator.reduce(own_boxes, "sum").clamp(min=1.0) / accelerator.num_processes
        sums: dict[str, Tensor] = {}
        last = len(batch.micro_batches) - 1
        for i, inputs in enumerate(batch.micro_batches):
            with accelerator.no_sync(self.model) if i < last else nullcontext():
                # Accelerate puts autocast around a model that it wraps, but not around one that it shards.
                with watch.measure("forward"), accelerator.autocast():
                    output: Any = self.model(**send_to_device(inputs, accelerator.device), num_boxes=num_boxes)
                with watch.measure("backward"):
                    accelerator.backward(output.loss)
            for name, value in {"loss": output.loss, **output.loss_dict}.items():
                sums[name] = sums.get(name, torch.zeros_like(value)) + value.detach()
        return sums

    def clip(self, max_grad_norm: float) -> Tensor:
        """Scale the gradients down to a norm, where it is not 0, and return the norm they had."""
        parameters = [p for p in self.model.parameters() if p.requires_grad]
        norm = self.accelerator.clip_grad_norm_(parameters, max_grad_norm or torch.inf)
        return torch.as_tensor(full_tensor(norm), device=self.accelerator.device)

    def check_finite(self, terms: Mapping[str, Tensor], step: int) -> None:
        """Stop before the weights take in what is not finite.

        Raises:
            FloatingPointError: a term is not finite in one process, in every process; it and the step are named.
        """
        # What a term is made of is named before the whole. A scaler skips a step of broken gradients itself.
        names = sorted(terms, key=lambda name: (name == "grad_norm", name == "loss", name))
        names = [name for name in names if self.accelerator.scaler is None or name != "grad_norm"]
        broken = torch.stack([terms[name].float().isfinite().logical_not() for name in names]).float()
        for name, count in zip(names, self.accelerator.reduce(broken, "sum").tolist(), strict=True):
            if count:
                raise _not_finite(f"{name} of step {step} is")

    def check_weights(self, step: int) -> None:
        """Keep the state from before weights that are not finite.

        Raises:
            FloatingPointError: a weight is not finite in one process, in every process.
        """
        parameters = self.model.parameters()
        finite = torch.stack([local_shard(parameter.detach()).isfinite().all() for parameter in parameters]).all()
        if self.accelerator.reduce(finite.float(), "sum").item() < self.accelerator.num_processes:
            raise _not_finite(f"weights of step {step} are")

    def update(self) -> None:
        """Change the weights by the gradients; a step that float16 skips moves neither schedule nor average."""
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.accelerator.optimizer_step_was_skipped:
            return
        self.schedule.step()
        if self.ema is not None:
            self.ema.update()


def _not_finite(what: str) -> FloatingPointError:
    return FloatingPointError(
        f"{what} not finite: begin anew with a lower learning_rate or max_grad_norm; the last state is kept"
    )
