"""Shapes, drawn as they are asked for: `annotations: train?count=20000&task=expressions`."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, get_args
from urllib.parse import parse_qsl

import torch

from ..records import DataError, Finding, Record, SourceEntry
from ..shapes import (
    CATEGORIES,
    MAX_OBJECTS,
    UNSEEN_PAIRS,
    ShapesDataset,
    ShapesItem,
    Split,
    Task,
    category_name,
    scene_size,
)

DETECTION: Task = "detection"
_OPTIONS = {"count": 10_000, "seed": 0, "width": 0, "height": 0, "objects": MAX_OBJECTS}
_JOINT = ". "


class ShapesRecords:
    """Scenes as records: boxes with labels under the task "detection", captions with spans under all others.

    In training the pairs of colour and shape that are held out are no labels either.
    """

    def __init__(self, dataset: ShapesDataset) -> None:
        task = dataset.task if isinstance(dataset.task, str) else "mixed"
        self.dataset = dataset
        self.name = f"shapes {dataset.split} {task}"
        unseen = {category_name(*pair) for pair in UNSEEN_PAIRS}
        names = [name for name in CATEGORIES if dataset.split != "train" or name not in unseen]
        self.label_names = tuple(names) if task == DETECTION else ()
        self.category_ids = tuple(CATEGORIES.index(name) for name in self.label_names)
        self.findings: tuple[Finding, ...] = ()
        self._labels = {name: i for i, name in enumerate(names)}
        # A record and its size are asked for one after the other.
        self._item = lru_cache(maxsize=4)(dataset.__getitem__)

    def __len__(self) -> int:
        """Number of scenes."""
        return len(self.dataset)

    def __getstate__(self) -> dict[str, Any]:
        """For worker processes, which begin without remembered scenes."""
        return {"dataset": self.dataset}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Begin anew."""
        ShapesRecords.__init__(self, state["dataset"])

    def __getitem__(self, index: int) -> Record:
        """Draw one scene."""
        if not self.label_names:
            return _grounding(index, self._item(index))
        scene = self.dataset.scene(index)
        return Record(
            image_id=index,
            image=scene.image,
            boxes=torch.tensor([item.box for item in scene.objects], dtype=torch.float32).reshape(-1, 4),
            labels=torch.tensor([self._labels[item.name] for item in scene.objects], dtype=torch.int64),
            size=scene.image.size,
        )

    def size(self, index: int) -> tuple[int, int] | None:
        """Without drawing it; the scene that stands in where an expression is wanting may have another."""
        size, dataset = self.dataset.size, self.dataset
        return size if isinstance(size, tuple) else scene_size(dataset.seed, index, split=dataset.split)


def _grounding(index: int, item: ShapesItem) -> Record:
    text = item["text"]
    if isinstance(text, str):
        spans = item["spans"]
    else:
        starts = [sum(len(label) + len(_JOINT) for label in text[:i]) for i in range(len(text))]
        places = [(start, start + len(label)) for start, label in zip(starts, text, strict=True)]
        spans = [[places[i]] for i in item["class_labels"].tolist()]
        text = _JOINT.join(text)
    return Record(
        image_id=index,
        image=item["image"],
        boxes=item["boxes"],
        size=item["image"].size,
        caption=text,
        spans=tuple(tuple(box_spans) for box_spans in spans),
    )


def read(entry: SourceEntry) -> ShapesRecords:
    """Describe scenes: `split?count=...&seed=...&task=...&width=...&height=...&objects=...`, as far as wanted.

    `objects` is the most that a scene has.

    Raises:
        DataError: an unknown split, task or option.
    """
    where, (split, _, query) = f"shapes {entry.annotations}", entry.annotations.partition("?")
    if split not in get_args(Split):
        raise DataError(f"{where}: {split!r} is not one of {', '.join(get_args(Split))}")
    options: dict[str, str] = dict(parse_qsl(query, keep_blank_values=True))
    task = options.pop("task", DETECTION)
    if task not in get_args(Task):
        raise DataError(f"{where}: task {task!r} is not one of {', '.join(get_args(Task))}")
    for name, text in options.items():
        if name not in _OPTIONS or not text.isdecimal():
            raise DataError(f"{where}: {name}={text} is not one of {', '.join(_OPTIONS)} with a number")
    number = _OPTIONS | {name: int(text) for name, text in options.items()}
    size = (number["width"], number["height"]) if number["width"] and number["height"] else None
    chosen: Any = {"split": split, "task": task, "size": size}
    try:
        dataset = ShapesDataset(number["count"], seed=number["seed"], most_objects=number["objects"], **chosen)
    except ValueError as error:
        raise DataError(f"{where}: {error}") from error
    return ShapesRecords(dataset)
