"""What a training run is: the options of a recipe, read from YAML and changed by `--set`."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import fields, is_dataclass, replace
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from ..data.augmentation import AugmentationSettings
from ..data.records import SourceEntry
from ..data.training_prompts import PromptSettings
from ..utils.documents import load_yaml
from .adapters import LoraSettings
from .optim import Schedule
from .recipes import OptionError, recipe_text

Precision = Literal["float32", "bfloat16", "float16"]
Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=0)]
Positive = Annotated[int, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]

OLD_NAMES = {
    "pictures_at_once": "micro_batch_size",
    "average_decay": "ema_decay",
    "backbone_multiplier": "backbone_lr_mult",
    "text_multiplier": "text_lr_mult",
    "keep": "retain",
    "pictures_every": "draw_every",
    "evaluate_pictures": "evaluate_images",
}
"""Names that options had; they still work."""


class _Settings(BaseModel):
    """Frozen settings without options of any other name."""

    model_config = ConfigDict(
        frozen=True, strict=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True
    )


class DenoisingSettings(_Settings):
    """Contrastive denoising queries; see `GroundingDinoForObjectDetection.enable_denoising`."""

    queries: Positive = 100
    """About how many queries an image gets."""
    label_noise: Share = 0.5
    """How often a label is replaced."""
    box_noise: NotNegative = 1.0
    """How far a box is moved and scaled; 0 not at all."""
    table: str | None = None
    """File of the label embeddings (an mmdet checkpoint, or `denoising.safetensors`); new ones without it."""


class Recipe(_Settings):
    """A training run. Steps are those of the optimizer."""

    model: str
    """Folder or repo to start from; "nano" is the model that ships with the package."""
    output_dir: str
    """Folder of the results: `last/`, `best/`, `metrics.jsonl`, `state/`, `report.json`, images."""
    train: tuple[SourceEntry, ...]
    """Datasets to train on."""
    eval: tuple[SourceEntry, ...] = ()
    """Datasets that are measured every `evaluate_every` steps; the score on the first one chooses `best/`."""
    retain: tuple[SourceEntry, ...] = ()
    """Datasets of what the model must not unlearn, measured before and after: the report says what was lost."""
    max_steps: Positive | None = None
    """Length of the run; or give `epochs`."""
    epochs: Annotated[float, Field(gt=0)] | None = None
    """Length of the run; or give `max_steps`."""
    batch_size: Positive = 4
    """Images of one step, over all processes."""
    micro_batch_size: Positive | None = None
    """Images of one forward in one process; fewer need less memory, and gradients add up to the same step."""
    learning_rate: Annotated[float, Field(gt=0)] = 1e-4
    """Peak of the learning rate."""
    backbone_lr_mult: NotNegative = 0.1
    """Times the learning rate, for the backbone; 0 freezes it."""
    text_lr_mult: NotNegative = 0.1
    """Times the learning rate, for the text encoder; 0 freezes it."""
    weight_decay: NotNegative = 1e-4
    """On matrices."""
    decay_vectors: bool = False
    """Weight decay on norms, biases and scales too."""
    schedule: Schedule = "cosine"
    """After the warm-up: a cosine to 0, steps (times `gamma` at each of `milestones`), or constant."""
    warmup_steps: Count = 0
    """Linear warm-up from a tenth of the learning rate; shortened where the run is shorter."""
    milestones: tuple[int, ...] = ()
    """Steps after which the learning rate falls, with the schedule "step"."""
    gamma: Share = 0.1
    """What is left of the learning rate after a milestone."""
    max_grad_norm: NotNegative = 0.1
    """Gradients are scaled down to this L2 norm; 0 leaves them."""
    precision: Precision = "float32"
    """Of the arithmetic; weights stay float32."""
    gradient_checkpointing: bool = False
    """Compute activations again in the backward pass, which needs less memory."""
    ema_decay: Annotated[float, Field(ge=0, lt=1)] | None = None
    """Of the moving average of the weights, which is then what is measured and saved; None for none."""
    interpolation: Share = 1.0
    """Saved weights = start + this share of what training changed (WiSE-FT, arXiv 2109.01903); 1: all."""
    freeze: tuple[str, ...] = ()
    """Parts that are not trained: backbone, text, encoder, decoder, heads, or "re:" and a regular expression."""
    lora: LoraSettings | None = None
    """Train low-rank adapters and nothing else; they are merged into what is saved."""
    denoising: DenoisingSettings | None = None
    """Train with denoising queries."""
    prompts: PromptSettings = PromptSettings()
    """How prompts are drawn from labels."""
    augmentation: AugmentationSettings | None = AugmentationSettings()
    """Flips, sizes and crops; None leaves images as the processor resizes them."""
    seed: Count = 0
    """Of everything random."""
    num_workers: Annotated[int, Field(ge=0, le=1024)] = 2
    """Processes that read images, for each training process."""
    log_every: Positive = 20
    """Steps between lines of `metrics.jsonl`."""
    save_every: Positive = 500
    """Steps between states to resume from; there is one at the end too."""
    evaluate_every: Positive | None = None
    """Steps between evaluations; None: before and after training alone."""
    draw_every: Positive | None = None
    """Steps between drawings of predictions in `examples/`; None: at the end alone."""
    keep_checkpoints: Count = 0
    """How many `step-...` folders of weights stay beside `last/` and `best/`."""
    evaluate_images: Positive | None = None
    """At most so many images of each evaluation dataset, the first ones; None: all."""
    trackers: tuple[str, ...] = ()
    """Of Accelerate, such as tensorboard or trackio."""
    push_to_hub: str | None = None
    """Repo, "owner/name", that `best/` is published to when all steps are done; it is created where there is none, as
    its owner's account says public or private. The token is that of `hf auth login`, or HF_TOKEN."""

    @model_validator(mode="after")
    def _check(self) -> Recipe:
        if not self.train:
            raise ValueError("train is empty: name at least one dataset")
        if (self.max_steps is None) == (self.epochs is None):
            raise ValueError("give max_steps or epochs, one of them")
        if self.schedule == "step" and not self.milestones:
            raise ValueError("schedule is step: give milestones")
        return self


MAY_CHANGE = frozenset({
    "output_dir", "train", "eval", "retain", "max_steps", "epochs", "micro_batch_size", "gradient_checkpointing",
    "num_workers", "log_every", "save_every", "evaluate_every", "draw_every", "keep_checkpoints", "evaluate_images",
    "trackers", "push_to_hub",
})  # fmt: skip
"""Options that a resumed run may change. Of its datasets only where they lie, and what is measured."""


def check_unchanged(before: Recipe, now: Recipe) -> None:
    """Refuse to resume with what the state would override, or what would make another run of it.

    Raises:
        OptionError: naming the options.
    """
    changed = [
        name for name in Recipe.model_fields if name not in MAY_CHANGE and getattr(before, name) != getattr(now, name)
    ]
    moved = [[replace(entry, annotations="", images=None) for entry in recipe.train] for recipe in (before, now)]
    changed += ["train"] if moved[0] != moved[1] else []
    if changed:
        names = ", ".join(changed)
        raise OptionError(f"a run goes on as it began, and {names} changed: name a new output_dir for that")


def read_recipe(name: str, assignments: Iterable[str] = ()) -> Recipe:
    """Read a recipe and change options.

    Args:
        name: a YAML file, or the name of a recipe of the package.
        assignments: `key=value`, as `train.0.annotations=x.json`; the value is read as YAML.

    Raises:
        OptionError: there is no such recipe, it is no YAML, or an option is wrong; one line that names it.
    """
    text = recipe_text(name)
    try:
        values = load_yaml(text)
        if not isinstance(values, dict):
            raise OptionError("a recipe holds names and values")
        values = _with_new_names(values)
        for assignment in assignments:
            _assign(values, assignment)
        return Recipe.model_validate_json(json.dumps(_with_floats(values), default=str))
    except ValidationError as error:
        raise OptionError(f"{name}: {_first_mistake(error)}") from error
    except ValueError as error:
        raise OptionError(f"{name}: {error}") from error


def as_yaml(recipe: Recipe) -> str:
    """All options of a run, to be read again by `read_recipe`."""
    text: str = yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
    return text


def flat_options(recipe: Recipe) -> dict[str, str | int | float | bool]:
    """All options in the form that trackers take; what is nested or left out as JSON."""
    plain = recipe.model_dump(mode="json")
    return {k: v if isinstance(v, str | int | float | bool) else json.dumps(v) for k, v in plain.items()}


def _with_new_names(values: Mapping[str, Any]) -> dict[str, Any]:
    for old, new in OLD_NAMES.items():
        if old in values and new in values:
            raise OptionError(f"{old} is the old name of {new}: give one of them")
    return {OLD_NAMES.get(name, name): value for name, value in values.items()}


_FLOAT = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+")


def _with_floats(value: Any) -> Any:
    """Read 1e-4 as a number, which YAML 1.1 takes for text."""
    if isinstance(value, dict):
        return {name: _with_floats(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_with_floats(item) for item in value]
    return float(value) if isinstance(value, str) and _FLOAT.fullmatch(value) else value


def _assign(values: dict[str, Any], assignment: str) -> None:
    """Change nested values in place as `train.0.annotations=x.json` says."""
    path, equals, text = assignment.partition("=")
    if not equals or not path:
        raise OptionError(f"--set {assignment}: write it as key=value")
    try:
        value = load_yaml(text)
    except ValueError as error:
        raise OptionError(f"--set {path}: the value is no YAML ({error})") from error
    first, *rest = path.split(".")
    names = [OLD_NAMES.get(first, first), *rest]
    target: Any = values
    for name, following in zip(names, [*rest, None], strict=True):
        key: Any = name
        if isinstance(target, list):
            if not name.isdecimal() or int(name) > len(target):
                raise OptionError(f"--set {assignment}: there is no number {name} in a list of {len(target)}")
            key = int(name)
            if key == len(target):
                target.append({})
        elif not isinstance(target, dict):
            raise OptionError(f"--set {assignment}: {name} would stand inside {target!r}")
        if following is None:
            target[key] = value
            return
        if isinstance(target, dict) and target.get(key) is None:
            target[key] = [] if following.isdecimal() else {}
        target = target[key]


_UNKNOWN = ("extra_forbidden", "unexpected_keyword_argument")


def _first_mistake(error: ValidationError) -> str:
    """One of pydantic's complaints in one line that names the option; a misspelt name before what it left out."""
    mistake = min(error.errors(), key=lambda mistake: mistake["type"] not in _UNKNOWN)
    where, kind, value = ".".join(map(str, mistake["loc"])), mistake["type"], mistake["input"]
    if kind in _UNKNOWN:
        known = _options_inside(mistake["loc"][:-1])
        close = difflib.get_close_matches(str(mistake["loc"][-1]), known, n=1, cutoff=0.5)
        return f"unknown option {where}{f'; did you mean {close[0]}?' if close else ''}"
    if "missing" in kind:
        return f"the option {where} is missing"
    if kind == "value_error":
        reason = str(mistake["ctx"]["error"])
        return f"{where}: {reason}" if where else reason
    expected = mistake["msg"].replace("Input should", "it should")
    expected = expected.replace("valid array", "valid list").replace("an object", "a mapping")
    return f"{where} is {value!r}: {expected}"


def _options_inside(path: Iterable[int | str]) -> list[str]:
    """The names of the options that stand under a name, of the recipe itself under none."""
    names = [name for name in path if name in Recipe.model_fields]
    kinds: list[Any] = [Recipe.model_fields[names[0]].annotation] if names else [Recipe]
    for kind in kinds:
        if is_dataclass(kind):
            return [field.name for field in fields(kind)]
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            return list(kind.model_fields)
        kinds += get_args(kind)
    return []
