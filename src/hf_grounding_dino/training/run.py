"""A run made ready from its recipe: everything that can be wrong is read and checked before the first step."""

from __future__ import annotations

import copy
import math
import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import GradientAccumulationPlugin, ProjectConfiguration, TorchDynamoPlugin, set_seed, str_to_bool
from torch import Tensor

from ..data.augmentation import Augmentation
from ..data.collate import GroundingCollator
from ..data.findings import refuse_other_labels
from ..data.readers import open_records
from ..data.records import DataError, RecordSet, RecordStream, SourceEntry
from ..data.sampling import BatchSampler
from ..data.training_dataset import Skipped, TrainingDataset
from ..data.training_prompts import PromptSampler
from ..publishing.facts import RECIPE_FILE
from .adapters import add_lora
from .averaging import MovingAverage
from .groups import GroupSettings, freeze, parameter_groups, train_mode
from .loop import Trainee
from .options import OptionError
from .recipe import Recipe, check_unchanged, read_recipe
from .schedules import ScheduleSettings, build_schedule
from .sharding import shard_by_layers
from .start import SavedModel, Start, load_start
from .states import RunFolder

PRECISIONS = {"float32": "no", "bfloat16": "bf16", "float16": "fp16"}


@dataclass(frozen=True)
class Data:
    """The data sets of a run, opened; those to be measured by the names that their scores have."""

    train: list[RecordSet | RecordStream]
    eval: dict[str, RecordSet]
    keep: dict[str, RecordSet]

    @classmethod
    def of(cls, recipe: Recipe) -> Data:
        """Open all data sets of a recipe.

        Raises:
            DataError: one cannot be read, its labels are not those of its boxes, or it is to be measured and a stream.
        """
        train = [open_records(entry) for entry in recipe.train]
        for records in train:
            refuse_other_labels(records)
        measured = _measurable(recipe.eval)
        return cls(train, measured, _measurable(recipe.keep, taken=measured))


def _measurable(entries: Sequence[SourceEntry], taken: Collection[str] = ()) -> dict[str, RecordSet]:
    """The sets by name; one whose name is taken gets a number."""
    opened: dict[str, RecordSet] = {}
    for entry in entries:
        records = open_records(entry)
        if not isinstance(records, RecordSet):
            raise DataError(f"{entry.annotations}: a set to be measured must not be streamed")
        name = records.name
        numbers = count(2)
        while name in opened or name in taken:
            name = f"{records.name} {next(numbers)}"
        opened[name] = records
    return opened


class Run:
    """One run, ready to train.

    Raises:
        OptionError, DataError, ValueError: whatever can be known to be wrong before the first step.
    """

    def __init__(self, recipe: Recipe, folder: RunFolder, *, resume: bool = False) -> None:
        self.recipe = recipe
        self.folder = folder
        self.resumed = resume
        self._check_folder(resume)
        self.data = Data.of(recipe)
        start = load_start(recipe.model)
        self.processor = start.processor
        self.accelerator = _accelerator(recipe)
        set_seed(recipe.seed)
        self.plan = BatchSampler(self.data.train, recipe.train, batch_size=recipe.batch_size, seed=recipe.seed)
        self.max_steps = recipe.max_steps or math.ceil((recipe.epochs or 0) * self.plan.steps_per_epoch)
        self.training_set = self._training_set()
        self.trainee, self.saved = self._trainee(start)
        if self.accelerator.process_index:  # all begin with the same weights, and each has its own dropout
            set_seed(recipe.seed, device_specific=True)
        self.collator = GroundingCollator(self.processor, resize=recipe.augmentation is None)
        self.best_step = 0
        self.step_scores: dict[int, float] = {}
        self.before: dict[str, float] = {}
        self.skipped: dict[str, Skipped] = {}
        self.note = ""
        self.first_step = 0
        if resume:
            self.first_step = self._go_on()

    def claim(self) -> None:
        """Take the folder for this run. The main process alone calls it, before it changes anything there.

        Raises:
            OptionError: another run is at work there, or was since the folder was looked at first.
        """
        self.folder.hold()
        self._check_folder(self.resumed)

    def _check_folder(self, resume: bool) -> None:
        has_state = self.folder.newest_state() is not None
        if resume and not has_state:
            raise OptionError(f"nothing to resume from in {self.folder.states}")
        if has_state and not resume:
            raise OptionError(
                f"{self.folder.path} holds a run already: go on with --resume, or name another output_dir"
            )
        if resume:
            check_unchanged(read_recipe(str(self.folder.path / RECIPE_FILE)), self.recipe)

    def _training_set(self) -> TrainingDataset:
        recipe, image_processor = self.recipe, self.processor.image_processor
        samplers = [PromptSampler(s.label_names, self.processor.tokenizer, recipe.prompts) for s in self.data.train]
        if recipe.augmentation is None:
            return TrainingDataset(self.data.train, samplers)
        edges = (image_processor.size.get("shortest_edge"), image_processor.size.get("longest_edge"))
        if None in edges:
            raise OptionError("the processor of the model does not resize by the shortest edge: set augmentation=null")
        return TrainingDataset(self.data.train, samplers, Augmentation(recipe.augmentation.scaled(*edges)))

    def _trainee(self, start: Start) -> tuple[Trainee, SavedModel]:
        recipe, accelerator = self.recipe, self.accelerator
        model: Any = start.model
        if recipe.gradient_checkpointing:
            model.gradient_checkpointing_enable()
        if recipe.denoising is None:
            model.disable_denoising()
        else:
            model.enable_denoising(recipe.denoising.queries, recipe.denoising.label_noise, recipe.denoising.box_noise)
            if recipe.denoising.table is not None:
                model.load_denoising(recipe.denoising.table)
        before = copy.deepcopy(model) if recipe.interpolation < 1 else None
        freeze(model, recipe.freeze)
        if recipe.lora is not None:
            model = add_lora(model, recipe.lora)
        saved = SavedModel(before, model, recipe)
        shard_by_layers(accelerator, model)
        rates = GroupSettings(
            learning_rate=recipe.learning_rate,
            backbone_multiplier=recipe.backbone_multiplier,
            text_multiplier=recipe.text_multiplier,
            weight_decay=recipe.weight_decay,
            decay_vectors=recipe.decay_vectors,
        )
        optimizer = torch.optim.AdamW(parameter_groups(model, rates), lr=recipe.learning_rate)
        schedule = build_schedule(optimizer, self._schedule())
        model, optimizer = accelerator.prepare(model, optimizer)
        average = None
        if recipe.average_decay is not None:
            average = MovingAverage(accelerator.unwrap_model(model), recipe.average_decay)
        trainee = Trainee(accelerator, model, optimizer, schedule, average, partial(train_mode, model))
        return trainee, saved

    def _schedule(self) -> ScheduleSettings:
        recipe = self.recipe
        return ScheduleSettings(
            kind=recipe.schedule,
            max_steps=self.max_steps,
            warmup_steps=min(recipe.warmup_steps, self.max_steps - 1),
            milestones=recipe.milestones,
            gamma=recipe.gamma,
        )

    def _take_up(self, content: Mapping[str, Any], average: Mapping[str, Tensor]) -> None:
        self.trainee.schedule.load_state_dict(content["schedule"])
        if self.trainee.average is not None:
            self.trainee.average.go_on(average, content["average_updates"])

    def _go_on(self) -> int:
        if self.accelerator.is_main_process:
            self.claim()
        step, content = self.folder.load_state(self.accelerator, self._take_up)
        self.best_step, self.before = content["best_step"], content["before"]
        self.step_scores = {int(at): score for at, score in content["step_scores"].items()}
        self.skipped = {where: Skipped(where, why) for where, why in content.get("skipped", ())}
        if content["world_size"] != self.accelerator.num_processes:
            self.note = (
                f"this run was on {content['world_size']} processes and goes on with {self.accelerator.num_processes}:"
                " each step has the pictures it would have had, dropout has other random numbers"
            )
            if self.training_set.has_streams:
                self.note += "; streams are divided anew"
        if self.accelerator.is_main_process:
            # With no step left to do, the last evaluation is made again.
            self.folder.trim_metrics(step, evaluation=step < self.max_steps)
        return step


def _accelerator(recipe: Recipe) -> Accelerator:
    """As the recipe says, whatever a launcher has put into the environment beside the processes and their devices."""
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
