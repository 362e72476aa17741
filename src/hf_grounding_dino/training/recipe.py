"""What a training run is: the options of a recipe, read from YAML, and the recipes that come with the package."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import yaml

from ..data.augmentation import AugmentationSettings
from ..data.records import SourceEntry
from ..data.training_prompts import PromptSettings
from ..utils.documents import load_yaml
from .adapters import LoraSettings
from .options import OptionError, build, set_options
from .recipes import recipe_text

MOST_WORKERS = 1024


@dataclass(frozen=True, kw_only=True)
class DenoisingSettings:
    """Contrastive denoising queries; see `GroundingDinoForObjectDetection.enable_denoising`.

    queries: about how many a picture gets.
    label_noise, box_noise: how much is changed; 0 nothing.
    table: file that the label table is taken from (an mmdet checkpoint, or `denoising.safetensors`); new without it.
    """

    queries: int = 100
    label_noise: float = 0.5
    box_noise: float = 1.0
    table: str | None = None


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A training run.

    model: folder or repo to start from; "nano" is the model that ships with the package.
    output_dir: where everything goes: `last/`, `best/`, `metrics.jsonl`, `state/`, `report.json`, pictures.
    train, eval: data sets; each of `eval` is measured every `evaluate_every` steps, the first one chooses `best/`.
    keep: data sets of what the model must not unlearn, measured before and after: the report says what was lost.
    max_steps, epochs: how long, one of them; a step is one of the optimiser.
    batch_size: pictures of one step, over all processes.
    pictures_at_once: of one forward in one process; fewer mean less memory, and gradients add up to the same step.
    learning_rate: peak; `backbone_multiplier` and `text_multiplier` times that for these parts, 0 freezes them.
    weight_decay: on matrices, with `decay_vectors` on norms, biases and scales too.
    schedule: after a linear warm-up from a tenth over `warmup_steps` (fewer where the run is shorter): a cosine to 0,
        steps (times `gamma` at each of `milestones`, in optimiser steps), or constant.
    max_grad_norm: gradients are scaled down to this L2 norm; 0 leaves them.
    precision: of the arithmetic; weights stay float32.
    average_decay: of the moving average of the weights, which is then what is measured and saved; None for none.
    interpolation: saved weights = start + this share of what training changed (WiSE-FT, arXiv 2109.01903); 1: all.
    freeze: parts that are not trained: backbone, text, encoder, decoder, heads, or "re:" and a regular expression.
    lora: train low-rank adapters and nothing else; they are merged into what is saved.
    seed: of everything random.
    num_workers: processes that read pictures, for each training process.
    log_every, save_every, evaluate_every, pictures_every: in steps; None leaves it out, but for the end.
    keep_checkpoints: how many `step-...` folders of weights stay beside `last/` and `best/`.
    evaluate_pictures: at most so many of each evaluation set, the first ones; None: all.
    trackers: of Accelerate, such as tensorboard or trackio.
    push_to_hub: repo, "owner/name", that `best/` is published to when all steps are done; it is created where there is
        none, as its owner's account says public or private. The token is that of `hf auth login`, or HF_TOKEN.
    """

    model: str
    output_dir: str
    train: tuple[SourceEntry, ...]
    eval: tuple[SourceEntry, ...] = ()
    keep: tuple[SourceEntry, ...] = ()
    max_steps: int | None = None
    epochs: float | None = None
    batch_size: int = 4
    pictures_at_once: int | None = None
    learning_rate: float = 1e-4
    backbone_multiplier: float = 0.1
    text_multiplier: float = 0.1
    weight_decay: float = 1e-4
    decay_vectors: bool = False
    schedule: Literal["cosine", "step", "constant"] = "cosine"
    warmup_steps: int = 0
    milestones: tuple[int, ...] = ()
    gamma: float = 0.1
    max_grad_norm: float = 0.1
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    gradient_checkpointing: bool = False
    average_decay: float | None = None
    interpolation: float = 1.0
    freeze: tuple[str, ...] = ()
    lora: LoraSettings | None = None
    denoising: DenoisingSettings | None = None
    prompts: PromptSettings = dataclasses.field(default_factory=PromptSettings)
    augmentation: AugmentationSettings | None = dataclasses.field(default_factory=AugmentationSettings)
    seed: int = 0
    num_workers: int = 2
    log_every: int = 20
    save_every: int = 500
    evaluate_every: int | None = None
    pictures_every: int | None = None
    keep_checkpoints: int = 0
    evaluate_pictures: int | None = None
    trackers: tuple[str, ...] = ()
    push_to_hub: str | None = None

    def __post_init__(self) -> None:
        """Refuse what could not be trained.

        Raises:
            OptionError: naming the option.
        """
        if not self.train:
            raise OptionError("train is empty: name at least one data set")
        if (self.max_steps is None) == (self.epochs is None):
            raise OptionError("give max_steps or epochs, one of them")
        for name in ("batch_size", "max_steps", "epochs", "pictures_at_once", "log_every", "save_every",
                     "evaluate_every", "pictures_every", "evaluate_pictures", "learning_rate"):  # fmt: skip
            value = getattr(self, name)
            if value is not None and not value > 0:  # as NaN is not
                raise OptionError(f"{name} is {value}: it must be more than 0")
        for name in ("backbone_multiplier", "text_multiplier", "weight_decay", "warmup_steps", "max_grad_norm",
                     "num_workers", "keep_checkpoints"):  # fmt: skip
            if not getattr(self, name) >= 0:
                raise OptionError(f"{name} is {getattr(self, name)}: it must not be negative")
        _refuse_too_many(self.num_workers)
        if not 0 <= self.interpolation <= 1:
            raise OptionError(f"interpolation is {self.interpolation}: it must be from 0 to 1")
        if self.average_decay is not None and not 0 <= self.average_decay < 1:
            raise OptionError(f"average_decay is {self.average_decay}: it must be from 0 to below 1")
        if self.schedule == "step" and not self.milestones:
            raise OptionError("schedule is step: give milestones")


def _refuse_too_many(workers: int) -> None:
    if workers > MOST_WORKERS:
        raise OptionError(f"num_workers is {workers}: {MOST_WORKERS} processes are the most")


MAY_CHANGE = frozenset({
    "output_dir", "train", "eval", "keep", "max_steps", "epochs", "pictures_at_once", "gradient_checkpointing",
    "num_workers", "log_every", "save_every", "evaluate_every", "pictures_every", "keep_checkpoints",
    "evaluate_pictures", "trackers", "push_to_hub",
})  # fmt: skip
"""What a run that goes on may do otherwise. Of its data sets only where they lie, and what is measured."""


def check_unchanged(before: Recipe, now: Recipe) -> None:
    """Refuse to go on with what the state would override, or what would make another run of it.

    Raises:
        OptionError: naming the options.
    """
    changed = [
        field.name
        for field in dataclasses.fields(Recipe)
        if field.name not in MAY_CHANGE and getattr(before, field.name) != getattr(now, field.name)
    ]
    moved = [[dataclasses.replace(entry, annotations="", images=None) for entry in r.train] for r in (before, now)]
    changed += ["train"] if moved[0] != moved[1] else []
    if changed:
        names = ", ".join(changed)
        raise OptionError(f"a run goes on as it began, and {names} changed: name a new output_dir for that")


def read_recipe(name: str, assignments: Iterable[str] = ()) -> Recipe:
    """Read a recipe and change options.

    Args:
        name: a YAML file, or the name of a recipe of the package.
        assignments: `key=value`, as `train.0.annotations=x.json`.

    Raises:
        OptionError: there is no such recipe, it is no YAML, or an option is wrong.
    """
    values = _load(name)
    try:
        return build(Recipe, set_options(values, assignments))
    except OptionError as error:
        raise OptionError(f"{name}: {error}") from error
    except (TypeError, ValueError) as error:
        raise OptionError(f"{name}: {error}") from error


def _load(name: str) -> dict[str, Any]:
    try:
        values = load_yaml(recipe_text(name))
    except ValueError as error:
        raise OptionError(f"{name}: {error}") from error
    if not isinstance(values, dict):
        raise OptionError(f"{name}: a recipe holds names and values")
    return values


def as_yaml(recipe: Recipe) -> str:
    """All options of a run, to be read again by `read_recipe`."""
    plain: Any = _plain(dataclasses.asdict(recipe))
    text: str = yaml.safe_dump(plain, sort_keys=False, allow_unicode=True)
    return text


def flat_options(recipe: Recipe) -> dict[str, str | int | float | bool]:
    """All options in the form that trackers take; what is nested or left out as JSON."""
    plain = _plain(dataclasses.asdict(recipe))
    return {k: v if isinstance(v, str | int | float | bool) else json.dumps(v) for k, v in plain.items()}


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, tuple | list) else value
