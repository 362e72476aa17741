"""LVIS's numbers against the lvis package and against plain loops, and cases whose result is known."""

from __future__ import annotations

import importlib
import json
import logging
import sys
import types
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hf_grounding_dino.evaluation import LvisDetection
from hf_grounding_dino.evaluation.metrics.base import ScoredBoxes
from hf_grounding_dino.evaluation.metrics.topk import TopK

Item = dict[str, Any]
CATEGORIES = [
    {"id": 40, "name": "cat", "frequency": "f"},
    {"id": 0, "name": "dog", "frequency": "c"},
    {"id": 7, "name": "owl", "frequency": "r"},
    {"id": 3, "name": "emu", "frequency": "r"},
    {"id": 12, "name": "yak", "frequency": "c"},
]
LABELS = [int(str(category["id"])) for category in CATEGORIES]
NUMBERS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "APr", "APc", "APf")
AREAS = {"": (0, 1e10), "s": (0, 32**2), "m": (32**2, 96**2), "l": (96**2, 1e10)}


@pytest.fixture(autouse=True)
def few_detections_are_all_right() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*fewer than")
        yield


def random_set(seed: int, most: int = 12) -> tuple[list[Item], list[Item]]:
    """5 pictures in any order of their ids, with 0 to 6 boxes and up to `most` detections that hit nothing.

    Scores tie. Some categories are known to be absent, of some not all are annotated, the rest nobody looked for; the
    last category never occurs.
    """
    rng = np.random.default_rng(seed)
    predictions, references = [], []
    for image_id in (rng.permutation(5) * (1 if seed % 2 else 11)).tolist():
        n, far = int(rng.integers(0, 7)), int(rng.integers(1, most))
        low = rng.integers(0, 400, (n + far, 2)) / 4
        boxes = np.concatenate([low, low + rng.integers(16, 600, (n + far, 2)) / 4], 1)
        labels = np.concatenate([rng.choice(LABELS[:4], n), rng.choice(LABELS, far)])
        moved = boxes[:n] + rng.integers(0, 20, (n, 4)) / 4
        found, found_labels = np.concatenate([boxes, moved]), np.concatenate([labels, labels[:n]])
        absent = [int(label) for label in LABELS if label not in labels[:n] and rng.random() < 0.5]
        references.append(
            {
                "image_id": image_id,
                "boxes": boxes[:n],
                "labels": labels[:n],
                "area": (boxes[:n, 2:] - boxes[:n, :2]).prod(1) * rng.choice([1, 0.7], n),
                "neg_category_ids": absent,
                "not_exhaustive_category_ids": [int(label) for label in LABELS if rng.random() < 0.2],
            }
        )
        found = np.concatenate([found[:, :2], np.maximum(found[:, 2:], found[:, :2])], 1)
        scores = rng.integers(1, 12, len(found)) / 12
        predictions.append({"image_id": image_id, "boxes": found, "scores": scores, "labels": found_labels})
    return predictions, references


def scores_of(predictions: list[Item], references: list[Item], **options: Any) -> dict[str, float]:
    return LvisDetection(CATEGORIES, **options).compute(predictions=predictions, references=references)


@pytest.fixture
def lvis(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The lvis package, which asks for names that NumPy no longer has, and for OpenCV, which it only draws with."""
    monkeypatch.setattr(np, "float", float, raising=False)
    if "lvis" not in sys.modules:
        if importlib.util.find_spec("cv2") is None:
            monkeypatch.setitem(sys.modules, "cv2", types.ModuleType("cv2"))
        monkeypatch.setattr(logging, "basicConfig", lambda **_: None)
    return pytest.importorskip("lvis")


def xywh(box: Any) -> list[float]:
    return [float(box[0]), float(box[1]), float(box[2] - box[0]), float(box[3] - box[1])]


def by_lvis(lvis: Any, predictions: list[Item], references: list[Item], folder: Path) -> dict[str, float]:
    annotations = [
        {"image_id": r["image_id"], "category_id": int(label), "bbox": xywh(box), "area": float(area)}
        for r in references
        for box, label, area in zip(r["boxes"], r["labels"], r["area"], strict=True)
    ]
    federated = ("neg_category_ids", "not_exhaustive_category_ids")
    truth = {
        "images": [{"id": r["image_id"], **{name: r[name] for name in federated}} for r in references],
        "annotations": [{"id": i, **annotation} for i, annotation in enumerate(annotations, start=1)],
        "categories": CATEGORIES,
    }
    (folder / "truth.json").write_text(json.dumps(truth))
    results = [
        {"image_id": p["image_id"], "category_id": int(label), "bbox": xywh(box), "score": float(score)}
        for p in predictions
        for box, label, score in zip(p["boxes"], p["labels"], p["scores"], strict=True)
    ]
    evaluator = lvis.LVISEval(lvis.LVIS(str(folder / "truth.json")), results, "bbox")
    evaluator.run()
    return {name.replace("R@", "R").removesuffix("@300"): v for name, v in evaluator.get_results().items()}


@pytest.mark.parametrize("seed", range(20))
def test_standard_numbers_equal_the_lvis_package(seed: int, lvis: Any, tmp_path: Path) -> None:
    """In every tenth case a picture has more than the 300 detections that count."""
    predictions, references = random_set(seed, most=500 if seed % 10 == 0 else 12)
    expected = by_lvis(lvis, predictions, references, tmp_path)
    scores = scores_of(predictions, references, fixed=False)
    assert list(scores) == [*NUMBERS, "AR300", "ARs", "ARm", "ARl"]
    assert scores == pytest.approx(expected, abs=1e-6)


def overlap(a: Any, b: Any) -> float:
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    both = width * height
    return both / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - both)


def match(found: list[Any], truths: list[Any], threshold: float) -> list[int | None]:
    """For each detection of a picture, in the order of scores, the truth it gets; `truths` are (box, ignored)."""
    taken: set[int] = set()
    matches: list[int | None] = []
    for box in found:
        best, best_iou = None, min(threshold, 1 - 1e-10)
        for wanted in (False, True):
            for g, (truth, ignored) in enumerate(truths):
                if ignored == wanted and g not in taken and overlap(box, truth) >= best_iou:
                    best, best_iou = g, overlap(box, truth)
            if best is not None:
                break
        if best is not None:
            taken.add(best)
        matches.append(best)
    return matches


def curve(label: int, best: list[Item], references: dict[Any, Item], threshold: float, area: Any) -> Any:
    """Precision at 101 levels of recall, and the recall; None without a truth."""
    low, high = area
    verdicts: dict[int, bool | None] = {}
    count = 0
    for image_id, reference in references.items():
        own = [i for i, other in enumerate(reference["labels"]) if other == label]
        truths = [(reference["boxes"][i], not low <= reference["area"][i] <= high) for i in own]
        count += sum(not ignored for _, ignored in truths)
        if not own and label not in reference["neg_category_ids"]:
            continue
        here = [rank for rank, entry in enumerate(best) if entry["image_id"] == image_id]
        for rank, matched in zip(here, match([best[r]["box"] for r in here], truths, threshold), strict=True):
            x1, y1, x2, y2 = best[rank]["box"]
            outside = not low <= (x2 - x1) * (y2 - y1) <= high
            forgiven = outside or label in reference["not_exhaustive_category_ids"]
            hit = True if matched is not None else None if forgiven else False
            verdicts[rank] = None if matched is not None and truths[matched][1] else hit
    if not count:
        return None
    judged = [verdicts[rank] for rank in sorted(verdicts) if verdicts[rank] is not None]
    points, hits = [], 0
    for n, hit in enumerate(judged, start=1):
        hits += bool(hit)
        points.append((hits / count, hits / n))
    levels = [max((p for r, p in points if r >= level), default=0.0) for level in np.linspace(0, 1, 101)]
    return levels, hits / count


def by_loops(predictions: list[Item], references: list[Item], max_per_class: int) -> dict[str, float]:
    """Fixed AP as Dave et al. describe it: the best detections of each class first, the federated rules then."""
    by_id = {r["image_id"]: r for r in sorted(references, key=lambda r: r["image_id"])}
    precision: dict[Any, list[float]] = {}
    recall: dict[Any, list[float]] = {}
    for category in CATEGORIES:
        label = int(str(category["id"]))
        entries = [
            {"image_id": p["image_id"], "place": i, "box": p["boxes"][i], "score": p["scores"][i]}
            for p in predictions
            for i in range(len(p["scores"]))
            if p["labels"][i] == label
        ]
        entries.sort(key=lambda e: (-e["score"], e["image_id"], e["place"]))
        for name, area in AREAS.items():
            for threshold in np.linspace(0.5, 0.95, 10):
                result = curve(label, entries[:max_per_class], by_id, threshold, area)
                if result is not None:
                    precision[label, name, round(threshold, 2)] = result[0]
                    recall[label, name, round(threshold, 2)] = result[1]

    def mean(of: dict[Any, Any], **wanted: Any) -> float:
        chosen = [
            v
            for (label, area, iou), v in of.items()
            if area == wanted.get("area", "")
            and iou == wanted.get("iou", iou)
            and label in wanted.get("labels", [label])
        ]
        return float(np.mean(chosen)) if chosen else -1.0

    by_frequency = {
        f"AP{letter}": mean(precision, labels=[c["id"] for c in CATEGORIES if c["frequency"] == letter])
        for letter in "rcf"
    }
    by_iou = {"AP50": mean(precision, iou=0.5), "AP75": mean(precision, iou=0.75)}
    by_area = {f"AP{name}": mean(precision, area=name) for name in AREAS}
    return by_frequency | by_iou | by_area | {f"AR{name}": mean(recall, area=name) for name in AREAS}


@pytest.mark.parametrize("seed", range(20))
def test_fixed_numbers_equal_plain_loops(seed: int) -> None:
    """6 detections of a class count, in the whole set: some are cut in the middle of a tie."""
    predictions, references = random_set(seed)
    assert scores_of(predictions, references, max_per_class=6) == pytest.approx(
        by_loops(predictions, references, 6), abs=1e-6
    )


def box_at(x: int) -> list[int]:
    return [x, 0, x + 10, 10]


def test_only_what_was_looked_for_counts() -> None:
    """Four pictures, one of them with category 40, found at 0.5; a false alarm of it at 0.9 in each of the others.

    Where nobody looked for it, and where not all are annotated, it is no mistake; where it is known to be absent it is:
    precision is 1/2.
    """
    empty: Item = {"boxes": [], "labels": [], "neg_category_ids": [], "not_exhaustive_category_ids": []}
    references = [
        {**empty, "image_id": 1, "boxes": [box_at(0)], "labels": [40]},
        {**empty, "image_id": 2},
        {**empty, "image_id": 3, "neg_category_ids": [40], "not_exhaustive_category_ids": [40]},
        {**empty, "image_id": 4, "neg_category_ids": [40]},
    ]
    predictions = [
        {"image_id": i, "boxes": [box_at(0)], "labels": [40], "scores": [0.5 if i == 1 else 0.9]} for i in range(1, 5)
    ]
    for fixed in (True, False):
        assert scores_of(predictions[:3], references[:3], fixed=fixed)["AP"] == 1
        assert scores_of(predictions, references, fixed=fixed)["AP"] == pytest.approx(0.5)


def test_memory_is_bounded_by_the_classes_not_by_the_pictures() -> None:
    """2 classes keep 10 each, and 50 may wait: with 20 a picture never more than 70 are held after one is added.

    What is kept equals the best of all: the order of the scores over 100 pictures, ties going to the smaller id.
    """
    rng = np.random.default_rng(0)
    best = TopK([3, 8], 10, pending=50)
    entries = []
    for image_id in rng.permutation(100).tolist():
        scores, labels = rng.integers(0, 30, 20) / 30, rng.choice([3, 8], 20)
        best.add(image_id, ScoredBoxes(rng.random((20, 4)), scores, labels))
        ranked = enumerate(zip(scores, labels, strict=True))
        entries += [(-score, image_id, place, label) for place, (score, label) in ranked]
        assert len(best) <= 70
    for label in (3, 8):
        kept = best.with_label(label)
        own = {(best.ids[item], place) for item, place in zip(kept.items, kept.places, strict=True)}
        assert own == {entry[1:3] for entry in sorted(e for e in entries if e[3] == label)[:10]}


def test_too_few_detections_are_told_once() -> None:
    """Category 12 has none at all, all have fewer than 10,000."""
    predictions, references = random_set(0)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        scores_of(predictions, references)
    message = r"5 of 5 classes have fewer than 10000 detections in 5 images \(fewest: '\w+', \d+\)"
    assert len(told) == 1
    with pytest.warns(UserWarning, match=message):
        scores_of(predictions, references)


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ({"neg_category_ids": None}, "image 8: neg_category_ids is missing"),
        ({"not_exhaustive_category_ids": None}, "image 8: not_exhaustive_category_ids is missing"),
        ({"labels": [5]}, "image 8: the reference has label 5, which is no category id; they are 0, 3, 7, 12, 40"),
    ],
)
def test_a_bad_reference_is_named(reference: Item, message: str) -> None:
    good: Item = {"image_id": 8, "boxes": [box_at(0)], "labels": [7]}
    good |= {"neg_category_ids": [], "not_exhaustive_category_ids": []} | reference
    metric = LvisDetection(CATEGORIES)
    prediction: Item = {"image_id": 8, "boxes": [], "labels": [], "scores": []}
    with pytest.raises(ValueError, match=message):
        metric.add(prediction=prediction, reference={k: v for k, v in good.items() if v is not None})
    assert len(metric) == 0


def test_bad_categories_are_named() -> None:
    with pytest.raises(ValueError, match="category id 40 stands twice"):
        LvisDetection([*CATEGORIES, CATEGORIES[0]])
    with pytest.raises(ValueError, match="category 5 has frequency None; it is 'r', 'c' or 'f'"):
        LvisDetection([{"id": 5}])
