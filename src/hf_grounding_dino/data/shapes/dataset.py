"""Shapes as a torch data set, and as COCO or ODVG files on disk."""

import json
import os
from collections.abc import Callable, Sequence
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any, Final, Literal, NotRequired, TypedDict, get_args

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from ...utils.atomic import write_atomic
from .language import caption_prompt, detection_prompt
from .phrases import Grounding
from .referring import expressions_prompt, places_prompt, referring_prompt
from .scene import CATEGORIES, MAX_OBJECTS, SPLIT_CODES, Scene, Split, generate_scene

Task = Literal["mixed", "detection", "caption", "referring", "expressions", "places", "across", "down"]
FileTask = Literal["detection", "caption", "referring"]
SizeOf = Callable[[int], tuple[int, int]]
TaskOf = Callable[[int], Task]

IMAGE_FOLDER: Final = "images"
ANNOTATION_FILE: Final = "annotations.json"
ODVG_FILE: Final = "annotations.jsonl"
LABEL_MAP_FILE: Final = "label_map.json"

_TASKS: Final = get_args(Task)
_REFER: Final[dict[str, Callable[..., Grounding | None]]] = {
    "referring": referring_prompt,
    "mixed": referring_prompt,
    "expressions": expressions_prompt,
    "places": places_prompt,
    "across": partial(places_prompt, axes=(0,)),
    "down": partial(places_prompt, axes=(1,)),
}
_DETECTION_SHARE: Final = 0.50
_CAPTION_SHARE: Final = 0.15
_SPARE_SCENES: Final = 50
# Spare scenes are counted far beyond any length, so that they never repeat another item's scene.
_SPARE_STRIDE: Final = 1 << 40


class ShapesItem(TypedDict):
    """One image and its prompt.

    `boxes` is float32 (n, 4), xyxy in pixels. A label prompt comes with `class_labels`, int64 (n,), positions in
    `text`; a sentence comes with `spans`, each box's phrases as (start, end) characters of `text`.
    """

    image_id: int
    image: Image.Image
    text: list[str] | str
    boxes: Tensor
    class_labels: NotRequired[Tensor]
    spans: NotRequired[list[list[tuple[int, int]]]]


class ShapesDataset(Dataset[ShapesItem]):
    """`length` scenes with prompts; an item depends only on its position, the seed, the split, the task and the size.

    The task "mixed" holds one half of label prompts, 15 % of captions and 35 % of referring expressions; a scene that
    allows no such expression gets a label prompt there, and gives way to a spare scene under the tasks "referring", one
    expression an item, "expressions", up to a dozen, and "places", the ends of a group of like objects.
    """

    def __init__(
        self,
        length: int,
        *,
        seed: int = 0,
        split: Split = "train",
        task: Task | TaskOf = "mixed",
        size: tuple[int, int] | SizeOf | None = None,
        most_objects: int = MAX_OBJECTS,
    ) -> None:
        """Describe the data set; scenes are drawn when they are asked for.

        Args:
            length: Number of items, at least 0.
            seed: Start of the random numbers, at least 0.
            split: "train", "val" or "unseen"; no two of them share a scene.
            task: Kind of prompt, or a function from the item's position to it.
            size: (width, height) of all images in pixels, or a function from the item's position to it (one that
                can be pickled, where worker processes load the data), or None for varied sizes.
            most_objects: in a scene, from 1 to 12.

        Raises:
            ValueError: a negative length or seed, an unknown split or task, or a number of objects out of range.
        """
        if length < 0 or seed < 0:
            raise ValueError(f"length and seed must be at least 0, not {length} and {seed}")
        if split not in SPLIT_CODES:
            raise ValueError(f"split must be one of {', '.join(SPLIT_CODES)}, not {split!r}")
        if not callable(task) and task not in _TASKS:
            raise ValueError(f"task must be one of {', '.join(_TASKS)}, not {task!r}")
        if not 1 <= most_objects <= MAX_OBJECTS:
            raise ValueError(f"most_objects must be from 1 to {MAX_OBJECTS}, not {most_objects}")
        self.length = length
        self.seed = seed
        self.split: Split = split
        self.task = task
        self.size = size
        self.most_objects = most_objects

    def __len__(self) -> int:
        """Number of items."""
        return self.length

    def __getitem__(self, index: int) -> ShapesItem:
        """The item at a position from 0 to the length.

        Raises:
            IndexError: a position outside that range.
        """
        if not 0 <= index < self.length:
            raise IndexError(f"item {index} of a data set of {self.length}")
        rng = np.random.default_rng([self.seed, index, SPLIT_CODES[self.split], 1])
        scene, grounding = self._grounded(index, rng)
        return _item(index, scene, grounding)

    def scene(self, index: int, spare: int = 0) -> Scene:
        """The scene of a position; `spare` above 0 gives the ones that stand in where it allows no expression."""
        size = self.size(index) if callable(self.size) else self.size
        number = index + spare * _SPARE_STRIDE
        return generate_scene(self.seed, number, split=self.split, size=size, most_objects=self.most_objects)

    def _grounded(self, index: int, rng: np.random.Generator) -> tuple[Scene, Grounding]:
        scene = self.scene(index)
        share = float(rng.random())
        task = self.task(index) if callable(self.task) else self.task
        if task == "detection" or (task == "mixed" and share < _DETECTION_SHARE):
            return scene, detection_prompt(scene, rng)
        if task == "caption" or (task == "mixed" and share < _DETECTION_SHARE + _CAPTION_SHARE):
            return scene, caption_prompt(scene, rng)
        refer = _REFER[task]
        grounding = refer(scene, rng)
        if task == "mixed":
            return scene, grounding or detection_prompt(scene, rng)
        for spare in range(1, _SPARE_SCENES):
            if grounding is not None:
                return scene, grounding
            scene = self.scene(index, spare)
            grounding = refer(scene, rng)
        raise RuntimeError(f"no scene near item {index} allows a referring expression")


def _item(index: int, scene: Scene, grounding: Grounding) -> ShapesItem:
    item: ShapesItem = {
        "image_id": index,
        "image": scene.image,
        "text": grounding.text if isinstance(grounding.text, str) else list(grounding.text),
        "boxes": torch.tensor(grounding.boxes, dtype=torch.float32).reshape(-1, 4),
    }
    if grounding.class_labels is not None:
        item["class_labels"] = torch.tensor(grounding.class_labels, dtype=torch.int64)
    if grounding.spans is not None:
        item["spans"] = [list(spans) for spans in grounding.spans]
    return item


def write_coco(
    folder: str | os.PathLike[str],
    *,
    count: int,
    seed: int,
    split: Split,
    categories: Sequence[str] = CATEGORIES,
) -> Path:
    """Write `count` scenes as PNG files in `folder`/images and their boxes as COCO JSON; return the JSON's path.

    Category ids count from 1 in the order of `categories`; objects of other categories are left out. The JSON appears
    at once, after all images.

    Raises:
        ValueError: a category that is not in `CATEGORIES`, or one given twice.
    """
    if unknown := sorted(set(categories) - set(CATEGORIES)):
        raise ValueError(f"unknown categories: {', '.join(unknown)}")
    if len(set(categories)) < len(categories):
        raise ValueError("a category is given twice")
    ids = {name: i for i, name in enumerate(categories, start=1)}
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for index in range(count):
        scene = generate_scene(seed, index, split=split)
        name = _save_image(Path(folder), index, scene.image)
        images.append({"id": index + 1, "file_name": name, "width": scene.width, "height": scene.height, "license": 1})
        for item in (item for item in scene.objects if item.name in ids):
            x1, y1, x2, y2 = item.box
            box = [x1, y1, x2 - x1, y2 - y1]
            target = {"id": len(annotations) + 1, "image_id": index + 1, "category_id": ids[item.name]}
            annotations.append({**target, "bbox": box, "area": item.area, "iscrowd": 0})
    document = {
        "info": {"description": f"Shapes, split {split}, seed {seed}", "version": "1"},
        "licenses": [{"id": 1, "name": "none needed: drawn from a seed", "url": ""}],
        "images": images,
        "annotations": annotations,
        "categories": [{"id": i, "name": name, "supercategory": name.split()[1]} for name, i in ids.items()],
    }
    return write_atomic(Path(folder) / ANNOTATION_FILE, json.dumps(document))


def write_odvg(folder: str | os.PathLike[str], *, count: int, seed: int, split: Split, task: FileTask) -> Path:
    """Write `count` scenes as PNG files in `folder`/images and one ODVG JSON line each; return the lines' path.

    The task "detection" gives detection lines and `label_map.json` (the 64 categories from 0); "caption" and
    "referring" give grounding lines, one region for each phrase that has a box.

    Raises:
        ValueError: another task; one file holds one kind of line.
    """
    if task not in _TASKS[1:]:
        raise ValueError(f"task must be one of {', '.join(_TASKS[1:])}, not {task!r}")
    root = Path(folder)
    dataset = ShapesDataset(count, seed=seed, split=split, task=task)
    lines = []
    for index in range(count):
        item = dataset[index]
        image = item["image"]
        head = {"filename": _save_image(root, index, image), "height": image.height, "width": image.width}
        if task == "detection":
            objects = dataset.scene(index).objects
            found = [{"bbox": list(o.box), "label": CATEGORIES.index(o.name), "category": o.name} for o in objects]
        body = {"detection": {"instances": found}} if task == "detection" else {"grounding": _regions(item)}
        lines.append(json.dumps({**head, **body}) + "\n")
    if task == "detection":
        label_map = {str(label): name for label, name in enumerate(CATEGORIES)}
        write_atomic(root / LABEL_MAP_FILE, json.dumps(label_map))
    return write_atomic(root / ODVG_FILE, "".join(lines))


def _regions(item: ShapesItem) -> dict[str, Any]:
    caption = str(item["text"])
    linked = zip(item["spans"], item["boxes"].tolist(), strict=True)
    regions = []
    # The boxes of one phrase follow each other in a caption.
    for spans, group in groupby(linked, key=lambda pair: pair[0]):
        boxes = [box for _, box in group]
        phrase = " ".join(caption[start:end] for start, end in spans)
        bbox = boxes[0] if len(boxes) == 1 else boxes
        regions.append({"bbox": bbox, "phrase": phrase, "tokens_positive": [list(span) for span in spans]})
    return {"caption": caption, "regions": regions}


def _save_image(folder: Path, index: int, image: Image.Image) -> str:
    """Save one image and return its file name."""
    (folder / IMAGE_FOLDER).mkdir(parents=True, exist_ok=True)
    name = f"{index:06d}.png"
    image.save(folder / IMAGE_FOLDER / name)
    return name
