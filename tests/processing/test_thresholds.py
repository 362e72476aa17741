"""Thresholds per label: in the file beside a model, and in the pipeline."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from fake_hub import COMMIT, put_into_cache
from hf_grounding_dino import GroundingDinoForObjectDetection, GroundingDinoPipeline, GroundingDinoProcessor
from hf_grounding_dino.assets import DEMO_IMAGE, NANO
from hf_grounding_dino.processing import thresholds
from hf_grounding_dino.processing.thresholds import THRESHOLDS_FILE, Thresholds, threshold_per_label

LABELS = ["red circle", "blue square", "green star"]


def test_what_is_written_is_read(tmp_path: Path) -> None:
    written = Thresholds(0.3, {"Cat": 0.25, "dog ": 0.5}, "500 images")
    written.write(tmp_path)
    assert Thresholds.from_pretrained(tmp_path) == written == Thresholds.read(tmp_path / THRESHOLDS_FILE)
    assert written.for_labels(["cat", " DOG", "bird"]) == [0.25, 0.5, 0.3]
    assert [path.name for path in tmp_path.iterdir()] == [THRESHOLDS_FILE]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not a file of thresholds"),
        ("[]", "not a file of thresholds"),
        ("{}", "default"),
        ('{"default": 2}', "'default' is 2, not a number from 0 to 1"),
        ('{"default": 0.3, "labels": {"cat": "high"}}', "'cat' is 'high'"),
        ('{"default": 0.3, "labels": {"cat": NaN}}', "'cat' is nan"),
    ],
)
def test_a_file_that_is_none_is_named(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / THRESHOLDS_FILE).write_text(content)
    with pytest.raises(ValueError, match=message) as refusal:
        Thresholds.from_pretrained(tmp_path)
    assert THRESHOLDS_FILE in str(refusal.value)


def test_a_model_without_thresholds_says_so(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"thresholds\.json.*`tune-thresholds` makes one"):
        Thresholds.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("threshold", "expected"),
    [
        (0.2, [0.2, 0.2, 0.2]),
        ([0.1, 0.2, 0.3], [0.1, 0.2, 0.3]),
        (np.array([0.5, 0.25, 0.125]), [0.5, 0.25, 0.125]),
        (torch.tensor([0.5, 0.25, 0.125]), [0.5, 0.25, 0.125]),
        (np.float64(0.2), [0.2, 0.2, 0.2]),
        (dict(zip(LABELS, (0.3, 0.2, 0.1), strict=True)), [0.3, 0.2, 0.1]),
        (Thresholds(0.5, {"BLUE square": 0.4}), [0.5, 0.4, 0.5]),
        (Thresholds(0.5, {"blue  square.": 0.4}), [0.5, 0.4, 0.5]),
    ],
)
def test_all_forms_give_one_threshold_a_label(threshold: Any, expected: list[float]) -> None:
    assert threshold_per_label(threshold, LABELS) == expected


@pytest.mark.parametrize(
    ("threshold", "message"),
    [
        ([0.1, 0.2], "2 thresholds for 3 labels"),
        ({"red circle": 0.1}, "no threshold for 'blue square'"),
        ("high", "'high' is not a number"),
        (None, "None is not a number"),
        ([0.1, 0.2, float("nan")], "nan is not a number"),
    ],
)
def test_what_is_no_threshold_is_refused(threshold: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        threshold_per_label(threshold, LABELS)


def test_a_label_is_found_as_a_prompt_or_a_data_set_has_it() -> None:
    """With dots, and under the names that are cleaned for prompts; what has none is told."""
    thresholds = Thresholds(0.5, {"red square": 0.1, "cyan_ring": 0.2})
    labels = ["Red square.", "red_square", "red square (thin)", "cyan_ring", "cyan ring", "ring"]
    assert thresholds.for_labels(labels) == [0.1, 0.1, 0.1, 0.2, 0.5, 0.5]
    assert thresholds.missing(labels) == ["cyan ring", "ring"]


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model") / "nano"
    shutil.copytree(NANO, folder)
    return folder


def test_the_pipeline_keeps_each_label_above_its_own(tuned: Path) -> None:
    model = GroundingDinoForObjectDetection.from_pretrained(tuned)
    processor = GroundingDinoProcessor.from_pretrained(tuned)
    pipe = GroundingDinoPipeline(model, processor=processor)
    image = str(DEMO_IMAGE)
    labels = sorted({row["label"] for row in pipe(image, candidate_labels=["circle", "square", "star"])})
    assert len(labels) > 1
    least = [0.4 + 0.2 * i for i in range(len(labels))]
    for scoring in ("max", "mean"):
        every = pipe(image, candidate_labels=labels, threshold=0.01, scoring=scoring)
        expected = [row for row in every if row["score"] > least[labels.index(row["label"])]]
        assert 0 < len(expected) < len(every)
        assert pipe(image, candidate_labels=labels, threshold=least, scoring=scoring) == expected

    with pytest.raises(FileNotFoundError, match="thresholds"):
        pipe(image, candidate_labels=labels, threshold="tuned")
    Thresholds(0.9, dict(zip(labels, least, strict=True))).write(tuned)
    assert pipe(image, candidate_labels=labels, threshold="tuned") == expected
    content = json.loads((tuned / THRESHOLDS_FILE).read_text())
    assert content["scoring"] == "mean"


def test_the_pipeline_reads_them_once_as_the_model_was_read(
    tuned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the same token, of the same revision, from the same cache, however many images there are."""
    Thresholds(0.9).write(tuned)
    put_into_cache(tmp_path, "x/nano", tuned)
    where: Any = {"token": "secret", "cache_dir": str(tmp_path), "local_files_only": True, "revision": COMMIT}
    model = GroundingDinoForObjectDetection.from_pretrained("x/nano", **where)
    pipe = GroundingDinoPipeline(model, processor=GroundingDinoProcessor.from_pretrained(tuned))
    asked: list[dict[str, Any]] = []

    def cached_file(name: str, file: str, **options: Any) -> Any:
        asked.append(options)
        return transformers.utils.hub.cached_file(name, file, **options)

    monkeypatch.setattr(thresholds, "cached_file", cached_file)
    for _ in range(2):
        pipe([str(DEMO_IMAGE)] * 2, candidate_labels=["circle"], threshold="tuned")
    assert asked == [where]
    assert "secret" not in repr(vars(model))
