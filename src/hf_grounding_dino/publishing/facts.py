"""What a model card can say about a run: facts from the run's own files, and nothing else."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

from safetensors import safe_open

from ..data.records import RecordSet, RecordStream, SourceEntry
from ..utils.atomic import write_atomic
from ..utils.documents import load_yaml
from .history import NOTHING_TO_MEASURE, History, main_metrics, read_history

Which = Literal["best", "last"]

RECIPE_FILE, DATA_FILE, METRICS_FILE, STEP_FILE = "recipe.yaml", "data.json", "metrics.jsonl", "step.json"
CURVES_FILE, EXAMPLES_FILE, EXAMPLES_FOLDER = "curves.png", "examples.png", "examples"
"""What a run leaves in its folder; `step.json` lies in that of a model."""

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_SECRET = re.compile(r"(^|_)(token|password|secret|key)$")


@dataclass(frozen=True, kw_only=True)
class DatasetFacts:
    """A dataset: how much is in it, as far as that is known.

    name: for people.
    role: "train"; "eval", what it was tested on; "retain", what it should not unlearn.
    format: as the recipe says, such as "coco".
    hub_id: of a dataset on the Hub.
    images, boxes: how many; None where nobody has counted.
    labels: names of what is boxed; empty where captions say it, or where it is not known.
    measured: how many of the images its scores are of, where that is not all.
    trained_on: whether a set to be tested on was trained on, too.
    """

    name: str
    role: str = "train"
    format: str | None = None
    hub_id: str | None = None
    images: int | None = None
    boxes: int | None = None
    labels: tuple[str, ...] = ()
    measured: int | None = None
    trained_on: bool = False


class Score(NamedTuple):
    """One metric of one evaluation set: of this model, and of the one that training began with where measured."""

    dataset: str
    metric: str
    value: float
    before: float | None


@dataclass(frozen=True, kw_only=True)
class CardFacts:
    """All that a model card says.

    name: of the model.
    repo_id: on the Hub, None for a model in a folder.
    model_type: "grounding-dino" or "mm-grounding-dino".
    parameters: numbers in the weight files; a tensor that several places share counts once.
    step: optimiser steps that this model has seen.
    base_model: repo on the Hub that the weights began as.
    base_name: what the weights began as, when it is no such repo.
    license: identifier of the Hub, such as "apache-2.0"; None when nobody said it.
    datasets: what it was trained and tested on.
    scores: of this model.
    scored_at: the step at which they were measured, when that is not `step`.
    chosen_by: the set whose score chose this model among the evaluations of the run; empty for the last model.
    chosen_of: how many evaluations there were to choose from.
    recipe: all options of the run.
    curves, examples: whether the images curves.png and examples.png lie beside the card.
    tags: for the Hub, beside those that every model of the package has.
    """

    name: str
    model_type: str
    repo_id: str | None = None
    parameters: int | None = None
    step: int | None = None
    base_model: str | None = None
    base_name: str | None = None
    license: str | None = None
    datasets: tuple[DatasetFacts, ...] = ()
    scores: tuple[Score, ...] = ()
    scored_at: int | None = None
    chosen_by: str = ""
    chosen_of: int = 0
    recipe: Mapping[str, Any] = field(default_factory=dict)
    curves: bool = False
    examples: bool = False
    tags: tuple[str, ...] = ()


def facts_of_run(
    run: Path,
    *,
    which: Which = "best",
    name: str | None = None,
    repo_id: str | None = None,
    license: str | None = None,
    tags: Iterable[str] = (),
) -> CardFacts:
    """Collect what the files of a run say; of what is not there, nothing is said.

    Read are the model's config.json and the heads of its weight files, `recipe.yaml`, `metrics.jsonl`, `data.json`
    (see `write_datasets`) and `step.json` in the model's folder, {"step": n}.

    Raises:
        OSError: no config.json of a model.
        ValueError: a config.json or recipe.yaml that cannot be read.
    """
    folder = run / which
    config = json.loads((folder / "config.json").read_text())
    history = read_history(run / METRICS_FILE) if (run / METRICS_FILE).is_file() else History({}, {})
    recipe = read_options(run / RECIPE_FILE)
    step = json.loads((folder / STEP_FILE).read_text())["step"] if (folder / STEP_FILE).is_file() else None
    scores, scored_at = _scores(history, step)
    start = str(recipe.get("model") or "")
    base_model = start if _is_hub_id(start) else None
    chosen_by, chosen_of = _choice(history) if which == "best" else ("", 0)
    return CardFacts(
        name=name or (repo_id or run.resolve().name).split("/")[-1],
        model_type=str(config.get("model_type")),
        repo_id=repo_id,
        parameters=_parameters(folder),
        step=step,
        base_model=base_model,
        base_name=None if base_model or not start else Path(start).name,
        license=license,
        datasets=_read_datasets(run),
        scores=scores,
        scored_at=None if scored_at == step else scored_at,
        chosen_by=chosen_by,
        chosen_of=chosen_of,
        recipe=recipe,
        tags=tuple(tags),
    )


def dataset_facts(records: RecordSet | RecordStream, role: str, entry: SourceEntry) -> DatasetFacts:
    """Describe a dataset; its boxes are counted where they are in memory (`num_boxes`), a stream not at all.

    Args:
        role: see `DatasetFacts`.
        entry: how the recipe names the set.
    """
    place = entry.annotations
    return DatasetFacts(
        name=records.name,
        role=role,
        format=entry.format,
        hub_id=place if entry.format == "datasets" and _is_hub_id(place) else None,
        images=len(records) if isinstance(records, RecordSet) else None,
        boxes=getattr(records, "num_boxes", None),
        labels=tuple(records.label_names),
    )


def write_datasets(run: Path, datasets: Iterable[DatasetFacts]) -> None:
    """Write `data.json` into the folder of a run, for its model card."""
    write_atomic(run / DATA_FILE, json.dumps([asdict(one) for one in datasets], indent=1, ensure_ascii=False))


def _read_datasets(run: Path) -> tuple[DatasetFacts, ...]:
    rows = json.loads((run / DATA_FILE).read_bytes()) if (run / DATA_FILE).is_file() else []
    for row in rows:
        row["labels"] = tuple(row["labels"])
        if "pictures" in row:  # as earlier versions called images
            row["images"] = row.pop("pictures")
    return tuple(DatasetFacts(**row) for row in rows)


def _is_hub_id(text: str) -> bool:
    """Whether it names a repo on the Hub; a folder that exists here does not."""
    return bool(_HUB_ID.fullmatch(text)) and not Path(text).exists()


def read_options(file: Path) -> dict[str, Any]:
    """The options of a run without what is nobody's business: secrets, and the folders that absolute paths lie in.

    A file that does not exist has none.

    Raises:
        ValueError: it is no YAML of names and values.
    """
    if not file.is_file():
        return {}
    try:
        options = load_yaml(file.read_bytes())
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error
    if not isinstance(options, dict):
        raise ValueError(f"{file}: holds no names and values")
    public: dict[str, Any] = _public(options)
    return public


def _public(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _public(item) for key, item in value.items() if not _SECRET.search(str(key))}
    if isinstance(value, list):
        return [_public(item) for item in value]
    return Path(value).name if isinstance(value, str) and Path(value).is_absolute() else value


def _parameters(folder: Path) -> int | None:
    count = 0
    for file in folder.glob("model*.safetensors"):
        with safe_open(file, "pt") as weights:
            for name in weights.keys():  # noqa: SIM118 - not a dict
                count += math.prod(weights.get_slice(name).get_shape())
    return count or None


def _choice(history: History) -> tuple[str, int]:
    """The dataset whose score chooses the best model, the first, and of how many evaluations; 0 where of none."""
    metrics = main_metrics(history.metrics())
    evaluations = sum(step > 0 for step, _ in history.scores(metrics[0])) if metrics else 0
    return (metrics[0].rpartition("/")[0], evaluations) if evaluations else ("", 0)


def _scores(history: History, step: int | None) -> tuple[tuple[Score, ...], int | None]:
    """The scores of the model of a step, measured then or, of a last model, at the last evaluation before it."""
    measured = [at for at in history.evaluations if step is not None and 0 < at <= step]
    if not measured:
        return (), None
    at = max(measured)
    before = history.evaluations.get(0, {})
    scores = []
    for key, value in history.evaluations[at].items():
        dataset, _, metric = key.rpartition("/")
        if math.isfinite(value) and value != NOTHING_TO_MEASURE:
            earlier = before.get(key)
            scores.append(Score(dataset, metric, value, None if earlier == NOTHING_TO_MEASURE else earlier))
    return tuple(scores), at
