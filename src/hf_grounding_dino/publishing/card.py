"""The model card of a run: what its own files say, in Markdown with the Hub's metadata."""

from __future__ import annotations

import html
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from .facts import CURVES_FILE, EXAMPLES_FILE, METRICS_FILE, RECIPE_FILE, CardFacts, DatasetFacts, Score

PACKAGE = "hf-grounding-dino"
TASK = "zero-shot-object-detection"

_TAGS = ("grounding-dino", "hf_grounding_dino", "vision", "object-detection", TASK)
_MOST_LABELS = 40
_SNIPPET_LABELS = 3
_PLACEHOLDER_LABELS = ("a label", "another label")
_ROLES = {"train": "training", "eval": "test", "retain": "test of what it knew before"}
# What says where things are, how many workers read and how often something is written, but nothing of the result.
_NOT_IN_THE_TABLE = {
    "model", "output_dir", "train", "eval", "retain", "num_workers", "log_every", "save_every", "evaluate_every",
    "draw_every", "keep_checkpoints", "trackers", "gradient_checkpointing", "micro_batch_size", "push_to_hub",
}  # fmt: skip
_METRIC_NAMES = {"AP": "AP, IoU 0.50:0.95", "AP50": "AP, IoU 0.50", "AP75": "AP, IoU 0.75"}
_METRIC_TYPE = "mean_average_precision"
_CURVES = f"""![Loss, its terms, evaluations and learning rate over the steps]({CURVES_FILE})

The numbers are in [{METRICS_FILE}]({METRICS_FILE})."""
_EXAMPLES = f"""![What the model found, beside the ground truth]({EXAMPLES_FILE})

Drawn during the run. Left: what it found. Right: the ground truth."""


def write_card(facts: CardFacts) -> str:
    """The model card; a section about which nothing is known is left out, but for limits and license."""
    shown = _shown(facts)
    sections = (
        ("", [f"# {shown.name}", _summary(shown)]),
        ("How to use it", _usage(facts)),
        ("Data", _data(shown.datasets)),
        ("Recipe", _recipe(shown.recipe)),
        ("Results", _results(shown)),
        ("Curves", [_CURVES] if facts.curves else []),
        ("Examples", [_EXAMPLES] if facts.examples else []),
        ("Limits", _limits(shown)),
        ("License", _license(shown)),
    )
    parts = []
    for title, paragraphs in sections:
        if paragraphs:
            parts += [f"## {title}"] if title else []
            parts += paragraphs
    card = ModelCard(f"---\n{_metadata(facts).to_yaml()}\n---\n\n" + "\n\n".join(parts) + "\n")
    return str(card)


def _shown(facts: CardFacts) -> CardFacts:
    """The facts as the body may hold them: names and labels of other people are text there, no HTML and no table."""
    return replace(
        facts,
        name=_cell(facts.name),
        model_type=_cell(facts.model_type),
        base_name=facts.base_name and _cell(facts.base_name),
        license=facts.license and _cell(facts.license),
        chosen_by=_cell(facts.chosen_by),
        datasets=tuple(
            replace(one, name=_cell(one.name), labels=tuple(map(_cell, one.labels))) for one in facts.datasets
        ),
        scores=tuple(one._replace(dataset=_cell(one.dataset), metric=_cell(one.metric)) for one in facts.scores),
    )


def _metadata(facts: CardFacts) -> ModelCardData:
    own = (facts.model_type,) if facts.model_type not in _TAGS else ()
    extra: dict[str, Any] = {"base_model_relation": "finetune"} if facts.base_model else {}
    trained_on = [one.hub_id for one in facts.datasets if one.role == "train" and one.hub_id]
    return ModelCardData(
        license=facts.license,
        library_name="transformers",
        pipeline_tag=TASK,
        base_model=facts.base_model,
        datasets=list(dict.fromkeys(trained_on)) or None,
        metrics=[_METRIC_TYPE] if any(score.metric in _METRIC_NAMES for score in facts.scores) else None,
        tags=[*_TAGS, *own, *facts.tags],
        model_name=facts.name,
        eval_results=[_eval_result(score, facts.datasets) for score in facts.scores] or None,
        **extra,
    )


def _eval_result(score: Score, sets: Sequence[DatasetFacts]) -> EvalResult:
    hub_id = next((one.hub_id for one in sets if one.name == score.dataset and one.hub_id), None)
    return EvalResult(
        task_type=TASK,
        dataset_type=hub_id or _slug(score.dataset),
        dataset_name=score.dataset or "test",
        metric_type=_METRIC_TYPE if score.metric in _METRIC_NAMES else _slug(score.metric),
        metric_name=_METRIC_NAMES.get(score.metric, score.metric),
        metric_value=round(score.value, 5),
    )


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-") or "test"


def _summary(facts: CardFacts) -> str:
    size = f" with {_rounded(facts.parameters)} parameters" if facts.parameters else ""
    start = f"[{facts.base_model}](https://huggingface.co/{facts.base_model})" if facts.base_model else facts.base_name
    trained = f", trained{f' from {start}' if start else ''}{f' for {facts.step:,} steps' if facts.step else ''}"
    return (
        f"A detector of the `{facts.model_type}` type{size}{trained if start or facts.step else ''} with {PACKAGE}. "
        "It is given an image and words, and finds a box for each thing that the words name."
    )


def _usage(facts: CardFacts) -> list[str]:
    names = list(dict.fromkeys(label for one in facts.datasets for label in one.labels))[:_SNIPPET_LABELS] or list(
        _PLACEHOLDER_LABELS
    )
    # JSON's strings are Python's, and on one line, so that none ends the block of code.
    model, labels = (json.dumps(one, ensure_ascii=False) for one in (facts.repo_id or f"./{facts.name}", names))
    stock = f"""```python
from transformers import pipeline

detector = pipeline("{TASK}", model={model})
print(detector("photo.jpg", candidate_labels={labels}, threshold=0.25))
```"""
    own = f"""```python
from PIL import Image
from hf_grounding_dino import GroundingDinoForObjectDetection, GroundingDinoProcessor

model = GroundingDinoForObjectDetection.from_pretrained({model}).eval()
processor = GroundingDinoProcessor.from_pretrained({model})
image = Image.open("photo.jpg").convert("RGB")
inputs = processor(images=image, text={labels})
found = processor.post_process_grounded_object_detection(model(**inputs), target_sizes=[(image.height, image.width)])
print(found[0]["text_labels"], found[0]["scores"], found[0]["boxes"])
```"""
    return [
        "With transformers, 5.23 or later (earlier ones compute other text positions), and nothing else:",
        stock,
        f"With {PACKAGE}, which runs all labels in one pass:",
        own,
    ]


def _data(sets: Sequence[DatasetFacts]) -> list[str]:
    if not sets:
        return []
    rows = [
        (one.name, _ROLES.get(one.role, one.role), one.format, one.images, one.boxes, len(one.labels) or None)
        for one in sets
    ]
    table = _table(("set", "use", "format", "images", "boxes", "labels"), rows)
    lists: dict[tuple[str, ...], list[str]] = {}
    for one in sets:
        if one.labels:
            lists.setdefault(one.labels, []).append(one.name)
    return [table, *(f"Labels of {_listed(names)}: {_labels(labels)}" for labels, names in lists.items())]


def _labels(labels: Sequence[str]) -> str:
    """All of them, or the first with the number of the others."""
    shown = ", ".join(labels[:_MOST_LABELS])
    rest = len(labels) - _MOST_LABELS
    return f"{shown}, and {rest:,} more." if rest > 0 else f"{shown}."


def _recipe(recipe: Mapping[str, Any]) -> list[str]:
    rows = [
        (f"`{_cell(name)}`", _cell(_plain(value)))
        for name, value in _flat(recipe)
        if name.split(".")[0] not in _NOT_IN_THE_TABLE and value is not None and value != []
    ]
    if not rows:
        return []
    return [_table(("option", "value"), rows), f"All options are in [{RECIPE_FILE}]({RECIPE_FILE})."]


def _flat(options: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    for name, value in options.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _results(facts: CardFacts) -> list[str]:
    if not facts.scores:
        return []
    paragraphs = []
    if facts.scored_at is not None:
        paragraphs.append(f"Measured at step {facts.scored_at:,}, before the end of training.")
    for dataset in dict.fromkeys(score.dataset for score in facts.scores):
        scores = [score for score in facts.scores if score.dataset == dataset]
        header = (dataset or "metric", "before training", "this model", "change")
        paragraphs.append(_table(header, map(_score_row, scores)))
        paragraphs += [sentence for score in scores if (sentence := _loss_of_score(score, facts.datasets))]
    return paragraphs


def _score_row(score: Score) -> tuple[str | None, ...]:
    name, value = _METRIC_NAMES.get(score.metric, score.metric), f"{score.value:.3f}"
    if score.before is None:
        return name, None, value, None
    return name, f"{score.before:.3f}", value, f"{score.value - score.before:+.3f}"


def _loss_of_score(score: Score, sets: Sequence[DatasetFacts]) -> str | None:
    """What training cost on a set that was to be kept, or on any set where the AP fell."""
    kept = any(one.name == score.dataset and one.role == "retain" for one in sets)
    if score.metric != "AP" or score.before is None:
        return None
    change = round(score.value - score.before, 3)
    if change < 0:
        return f"On {score.dataset}, training lost {-change:.3f} AP."
    return f"On {score.dataset}, training lost no AP." if kept else None


def _limits(facts: CardFacts) -> list[str]:
    tested = list(dict.fromkeys(score.dataset for score in facts.scores if score.dataset))
    if not facts.scores:
        return ["- It was not tested in its run; how well it does is not known."]
    lines = [f"It was tested on {_listed(tested)}, and on nothing else in its run." if tested else ""]
    tests = [one for one in facts.datasets if one.role != "train" and one.name in tested]
    for one in tests:
        if one.measured is not None:
            lines.append(f"Of {one.name}, the first {one.measured:,} of {one.images:,} images were measured.")
        if one.trained_on:
            lines.append(f"It was trained on {one.name} too: that score says little of other images.")
    if facts.chosen_by and facts.chosen_of > 1:
        chosen = f"It is the best of {facts.chosen_of} evaluations by its score on {facts.chosen_by}"
        lines.append(f"{chosen}, which flatters that score.")
    lines.append(_tested_labels(facts.datasets, tests))
    if (facts.base_model or facts.base_name) and all(score.before is None for score in facts.scores):
        lines.append("What it lost of what the model could that it began with was not measured.")
    return ["\n".join(f"- {line}" for line in lines if line)]


def _tested_labels(sets: Sequence[DatasetFacts], tests: Sequence[DatasetFacts]) -> str:
    """How many of the labels it was tested with it was not trained with, where both are known."""
    trained = [one for one in sets if one.role == "train"]
    if not trained or not tests or not all(one.labels for one in [*trained, *tests]):
        return ""
    known = {label.lower() for one in trained for label in one.labels}
    labels = {label.lower() for one in tests for label in one.labels}
    new = len(labels - known)
    if not new:
        return "It was tested with labels that it was trained with, and with no other words."
    return f"Labels that it was tested with and not trained with: {new:,} of {len(labels):,}."


def _license(facts: CardFacts) -> list[str]:
    own = f"{facts.license}." if facts.license else "None was named when this card was written."
    base = f" {facts.base_model} and the datasets have their own." if facts.base_model else ""
    return [own + base]


def _table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A Markdown table; columns in which no row has anything are left out."""
    kept = [i for i in range(len(header)) if any(row[i] is not None for row in rows)] if (rows := list(rows)) else []
    lines = [[header[i] for i in kept], ["---"] * len(kept)]
    lines += [["" if row[i] is None else _number(row[i]) for i in kept] for row in rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _number(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else str(value)


def _cell(text: str) -> str:
    """A text on one line, as Markdown shows it whatever it holds of HTML, code and tables."""
    return " ".join(html.escape(text, quote=False).replace("|", "\\|").replace("`", "&#96;").split())


def _plain(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _listed(names: Sequence[str]) -> str:
    """One, two and three."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _rounded(count: int) -> str:
    """Three digits: 2.55 million."""
    unit, word = (1e9, " billion") if count >= 1e9 else (1e6, " million") if count >= 1e6 else (1, "")
    digits = max(0, 2 - math.floor(math.log10(count / unit))) if word else 0
    return f"{count / unit:,.{digits}f}{word}"
