"""Training measures what `evaluate` reports: the same reading of the data, the same metric, the same numbers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from hf_grounding_dino.assets import NANO
from hf_grounding_dino.data.readers import open_records
from hf_grounding_dino.data.records import RecordSet, SourceEntry
from hf_grounding_dino.data.shapes import CATEGORIES
from hf_grounding_dino.evaluation.benchmarks import find_benchmark
from hf_grounding_dino.evaluation.datasets import benchmark_tasks, measured_task
from hf_grounding_dino.evaluation.runner import evaluate, predict, score
from hf_grounding_dino.inference.predictions import PredictionStore
from hf_grounding_dino.inference.predictor import Predictor
from hf_grounding_dino.models.loading import load_whole

from .roots import write_root


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    torch.manual_seed(0)
    return Predictor(*load_whole(NANO), batch_size=2)


def rename(file: Path) -> None:
    """Categories that nano knows, so that something is found; nobody looked for what is not in an image (LVIS)."""
    document = json.loads(file.read_text())
    for number, category in enumerate(document["categories"]):
        category["name"] = CATEGORIES[number]
    for image in document["images"]:
        if "neg_category_ids" in image:
            image["neg_category_ids"] = []
    file.write_text(json.dumps(document))


@pytest.mark.parametrize("name", ["coco", "lvis_minival", "refcoco_testA", "flickr30k_val"])
@pytest.mark.filterwarnings("ignore:.*fewer than 10000 detections")
def test_training_measures_what_the_benchmark_reports(predictor: Predictor, tmp_path: Path, name: str) -> None:
    """An entry of a recipe, measured as training does, beside predictions that are stored and scored."""
    root = write_root(name, tmp_path)
    part = find_benchmark(name).parts(root)[0]
    sentences = part.kind in ("expressions", "phrases")
    if not sentences:
        rename(part.annotations)
    (task,) = benchmark_tasks(find_benchmark(name), root)
    store = PredictionStore(tmp_path / "predictions")
    predict(task, predictor, store, progress=False)
    expected: dict[str, Any] = score(task, store).numbers
    format = "mdetr" if sentences else "coco"
    entry = SourceEntry(format=format, annotations=str(part.annotations), images=str(part.images))
    records = open_records(entry)
    assert isinstance(records, RecordSet)
    measured = evaluate(measured_task(entry, records), predictor, progress=False)
    # Of records it is not known which dataset of a file they are of.
    assert measured == {key: pytest.approx(expected[key], abs=1e-6) for key in measured}
    assert all(key.startswith("refcoco") for key in set(expected) - set(measured)) and max(measured.values()) > 0
