"""Data roots of the benchmarks in the formats that the public files have, each with a handful of pictures of Shapes."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hf_grounding_dino.data.shapes import ShapeObject, generate_scene
from hf_grounding_dino.evaluation.benchmarks import Benchmark, Split, find_benchmark, odinw_sets
from hf_grounding_dino.evaluation.metrics.base import ScoredBoxes
from hf_grounding_dino.evaluation.metrics.coco import BASE_NAMES, NOVEL_NAMES
from hf_grounding_dino.evaluation.tasks import Task
from hf_grounding_dino.inference.predictions import PredictionStore

COUNT = 3
NAMES = ("red_circle", "blue (ring)", "green square")
Json = dict[str, Any]


def write_root(name: str, root: Path) -> Path:
    """Lay out the files of a benchmark."""
    benchmark = find_benchmark(name)
    if name == "odinw13":
        for one in odinw_sets(name):
            _save(root / one.annotations[0], coco(root / one.images[0], 1))
    for split in benchmark.splits:
        _save(root / split.annotations[0], _document(benchmark, split, root))
    return root


def coco(folder: Path, count: int = COUNT, names: Sequence[str] = NAMES) -> Json:
    """Pictures in a folder, and their boxes as COCO has them: gapped ids, the last picture without a box."""
    document: Json = {"images": [], "annotations": [], "categories": []}
    # ODinW's prompts go by the number of the class, from 1.
    document["categories"] = [
        {"id": 1 + 2 * i, "name": name, "frequency": "rcf"[i % 3]} for i, name in enumerate(names)
    ]
    for image_id, file, boxes in _pictures(folder, count):
        document["images"].append({"id": image_id, "file_name": file})
        for i, box in enumerate(boxes if image_id != 7 * COUNT else []):
            category = 1 + 2 * ((image_id + i) % len(names))
            row = {"id": len(document["annotations"]) + 1, "image_id": image_id, "category_id": category, "bbox": box}
            document["annotations"].append({**row, "area": box[2] * box[3], "iscrowd": 0})
    return document


def truth_as_predictions(task: Task) -> dict[Any, ScoredBoxes]:
    """What is there, as predictions."""
    answers = {}
    for case in task:
        boxes = np.asarray(case.reference["boxes"], np.float32).reshape(-1, 4)
        labels = np.asarray(case.reference.get("labels", np.zeros(len(boxes))), np.int64)
        answers[case.sample_id] = ScoredBoxes(boxes, np.ones(len(boxes), np.float32), labels)
    return answers


def write_predictions(folder: Path, answers: Mapping[Any, ScoredBoxes]) -> PredictionStore:
    """Predictions as a run leaves them."""
    store = PredictionStore(folder)
    store.begin({"made": "by hand"})
    with store.writer() as writer:
        for sample_id, answer in answers.items():
            writer.add(sample_id, answer)
    return store


def _document(benchmark: Benchmark, split: Split, root: Path) -> Json:
    images = root / split.images[0]
    if benchmark.kind == "lvis":
        return _lvis(images, sorted(split.also))
    if benchmark.kind == "descriptions":
        return _described(images, root / split.also["groups"])
    if benchmark.kind == "open vocabulary":
        return coco(images, names=(*BASE_NAMES, "hair drier", *NOVEL_NAMES))
    if benchmark.kind == "phrases":
        return _captions(images)
    if "expressions" in benchmark.kind:
        return _expressions(images, generalized=benchmark.kind != "expressions")
    return coco(images)


def _lvis(root: Path, halves: Sequence[str]) -> Json:
    """Pictures by `coco_url` alone; of each it is known that the first class is not there."""
    document = coco(root / halves[-1])
    for entry in document["images"]:
        half = halves[entry["id"] % len(halves)]
        coco(root / half, COUNT)
        name = entry.pop("file_name")
        entry |= {"coco_url": f"http://images.cocodataset.org/{half}/{name}", "not_exhaustive_category_ids": []}
        there = {row["category_id"] for row in document["annotations"] if row["image_id"] == entry["id"]}
        entry["neg_category_ids"] = [row["id"] for row in document["categories"] if row["id"] not in there]
    return document


def _expressions(folder: Path, *, generalized: bool) -> Json:
    """An expression an image entry, two about each picture; those of gRefCOCO mean one thing, all, or nothing."""
    document: Json = {"images": [], "annotations": []}
    for image_id, file, boxes in _pictures(folder, COUNT):
        for turn in range(3):
            entry = 10 * image_id + turn
            name = ("refcoco", "refcoco+", "refcocog")[turn]
            text = {"caption": f"the thing {turn}", "dataset_name": name}
            document["images"].append({"id": entry, "file_name": file, **text})
            meant = boxes[:1] if not generalized else (boxes[:1], boxes, [])[turn]
            document["annotations"] += [{"image_id": entry, "bbox": box} for box in meant]
    for number, row in enumerate(document["annotations"]):
        row["id"] = number
    return document


def _captions(folder: Path) -> Json:
    """Two phrases a caption: the first box, and all others."""
    document: Json = {"images": [], "annotations": []}
    for image_id, file, boxes in _pictures(folder, COUNT):
        spans = [[[0, 5]], [[11, 20]]]
        caption = {"caption": "A red thing and more", "tokens_positive_eval": spans}
        document["images"].append({"id": image_id, "file_name": file, **caption})
        for i, box in enumerate(boxes):
            row = {"id": 100 * image_id + i, "image_id": image_id, "bbox": box}
            document["annotations"].append({**row, "tokens_positive": spans[min(i, 1)]})
    return document


def _described(folder: Path, tables: Path) -> Json:
    """D3: the first picture is asked for two sentences, the others for the third."""
    document = coco(folder, names=("a red circle", "a ring that is not red", "a green square"))
    groups = {image["id"]: 5 if i == 0 else 6 for i, image in enumerate(document["images"])}
    asked = {5: [1, 3], 6: [5]}
    document["annotations"] = [
        {**row, "category_id": asked[groups[row["image_id"]]][0]} for row in document["annotations"]
    ]
    sentences = {
        row["id"]: {"raw_sent": row["name"], "is_negative": "not" in row["name"]} for row in document["categories"]
    }
    _save(tables / "images.json", {image: {"group_id": group} for image, group in groups.items()})
    _save(tables / "groups.json", {group: {"inner_sent_id": own} for group, own in asked.items()})
    _save(tables / "sentences.json", sentences)
    return document


def _pictures(folder: Path, count: int) -> Iterator[tuple[int, str, list[list[float]]]]:
    """The id, the file and the boxes [x, y, width, height] of some pictures, which are drawn where they are not."""
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        scene = generate_scene(5, i, split="val", size=(96, 72), most_objects=4)
        file = folder / f"{i:04d}.png"
        if not file.exists():
            scene.image.save(file)
        yield 7 * (i + 1), file.name, [_box(shape) for shape in scene.objects]


def _box(shape: ShapeObject) -> list[float]:
    x1, y1, x2, y2 = map(float, shape.box)
    return [x1, y1, x2 - x1, y2 - y1]


def _save(file: Path, document: Json) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(document))
