"""Annotation files as the official evaluators read them, and what they refuse."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from hf_grounding_dino.data.records import DataError
from hf_grounding_dino.evaluation.ground_truth import prompt_names, read_annotations, refuse_missing

DOCUMENT: dict[str, Any] = {
    "images": [
        {"id": 20, "file_name": "b.png", "width": 30, "height": 20},
        {"id": 3, "file_name": "a.png", "width": 30, "height": 20},
        {"id": 9, "file_name": "c.png", "width": 30, "height": 20},
    ],
    "annotations": [
        {"id": 1, "image_id": 3, "category_id": 7, "bbox": [25, 1, 10.5, 2], "area": 4.5, "iscrowd": 1},
        {"id": 2, "image_id": 20, "category_id": 2, "bbox": [0, 0, 0, 0], "segmentation": [[1, 2, 3]]},
        {"id": 3, "image_id": 3, "category_id": 2, "bbox": [25, 1, 10.5, 2], "segmentation": {"counts": "x"}},
        {"id": 4, "image_id": 3, "category_id": 2, "bbox": [25, 1, 10.5, 2]},
    ],
    "categories": [{"id": 7, "name": "traffic_light"}, {"id": 2, "name": "bow_(weapon)"}],
}


def written(folder: Path, document: Any) -> Path:
    path = folder / "truth.json"
    path.write_text(document if isinstance(document, str) else json.dumps(document))
    return path


def changed(part: str, entry: int, **values: Any) -> dict[str, Any]:
    document = json.loads(json.dumps(DOCUMENT))
    document[part][entry] |= values
    return document


def test_nothing_is_clipped_or_dropped(tmp_path: Path) -> None:
    """A box that leaves its picture, one without area, and one given twice stay; the area is the file's, or w x h."""
    truth = read_annotations(written(tmp_path, DOCUMENT))
    assert truth.image_ids == (20, 3, 9)
    assert [category.id for category in truth.categories] == [7, 2]
    first, second, third = (truth.reference(i) for i in range(3))
    assert first["boxes"].tolist() == [[0, 0, 0, 0]]
    assert second["boxes"].tolist() == [[25, 1, 35.5, 3]] * 3
    assert second["labels"].tolist() == [7, 2, 2]
    assert second["iscrowd"].tolist() == [True, False, False]
    assert second["area"].tolist() == [4.5, 21, 21]
    assert third["boxes"].shape == (0, 4) and third["image_id"] == 9
    assert second["boxes"].dtype == np.float64
    assert "neg_category_ids" not in second


def test_lvis_says_what_was_looked_for(tmp_path: Path) -> None:
    document = changed("images", 1, neg_category_ids=[7], not_exhaustive_category_ids=[2])
    document["categories"][0]["frequency"] = "r"
    truth = read_annotations(written(tmp_path, document))
    assert truth.reference(1)["neg_category_ids"] == (7,)
    assert truth.reference(1)["not_exhaustive_category_ids"] == (2,)
    assert truth.categories[0].as_dict() == {"id": 7, "name": "traffic_light", "frequency": "r"}
    assert truth.categories[1].as_dict() == {"id": 2, "name": "bow_(weapon)"}


def test_pictures_are_found_by_name_or_by_url(tmp_path: Path) -> None:
    """By file name; below val2017 as in the URL; by the last part of the URL; not at all."""
    (tmp_path / "val2017").mkdir()
    for name in ("a.png", "val2017/b.png", "c.png"):
        Image.new("RGB", (2, 2)).save(tmp_path / name)
    document = json.loads(json.dumps(DOCUMENT))
    document["images"] = [
        {"id": 3, "file_name": "a.png"},
        {"id": 20, "coco_url": "http://images.cocodataset.org/val2017/b.png"},
        {"id": 9, "file_name": "gone.png", "coco_url": "http://images.cocodataset.org/train2017/c.png"},
        {"id": 10, "file_name": "gone.png"},
    ]
    truth = read_annotations(written(tmp_path, document), tmp_path)
    assert truth.files == ("a.png", "val2017/b.png", "c.png", "gone.png")
    assert truth.missing == {3}
    assert read_annotations(written(tmp_path, document)).missing == set()
    assert truth.image(1) == tmp_path / "val2017" / "b.png"


def test_names_are_cleaned_as_the_papers_or_as_training_has_it(tmp_path: Path) -> None:
    document = json.loads(json.dumps(DOCUMENT))
    document["categories"].append({"id": 4, "name": "bow_(decorative_ribbons)"})
    categories = read_annotations(written(tmp_path, document)).categories
    assert prompt_names(categories, distinct=False) == {7: "traffic light", 2: "bow", 4: "bow"}
    assert prompt_names(categories) == {7: "traffic light", 2: "bow_(weapon)", 4: "bow_(decorative_ribbons)"}


def test_some_categories_with_their_boxes(tmp_path: Path) -> None:
    truth = read_annotations(written(tmp_path, DOCUMENT), only=["bow_(weapon)"])
    assert [category.id for category in truth.categories] == [2]
    assert truth.reference(1)["labels"].tolist() == [2, 2]
    with pytest.raises(DataError, match="has no category 'cat'"):
        read_annotations(written(tmp_path, DOCUMENT), only=["cat"])


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ({**DOCUMENT, "images": []}, r"truth\.json: has no images"),
        ({**DOCUMENT, "categories": []}, r"truth\.json: has no categories"),
        ({"images": []}, "has no list 'annotations'"),
        (json.dumps(DOCUMENT)[:-40], r"truth\.json, line 1, column \d+: not JSON, or cut off"),
        (changed("images", 2, id=20), "image entry 3: id 20 is that of image entry 1 too"),
        (changed("images", 2, id=None), "image entry 3: an image needs an id"),
        (changed("annotations", 3, id=1), "annotation entry 4: id 1 is used twice"),
        (changed("annotations", 0, image_id=4), "annotation entry 1: image 4 is not among the images"),
        (changed("annotations", 0, category_id=1), "annotation entry 1: there is no category 1"),
        (changed("annotations", 1, bbox=[1, 2, 3]), r"annotation entry 2: bbox is \[x, y, width, height\]"),
        (changed("annotations", 1, bbox=[1, 2, float("nan"), 3]), "annotation entry 2: bbox is"),
        (changed("annotations", 1, bbox=[1, 2, -3, 3]), "annotation entry 2: bbox .* negative width"),
        (changed("annotations", 1, area="large"), "annotation entry 2: area is a number of pixels, not 'large'"),
        (changed("categories", 1, id=7), "category entry 2: id 7 is that of 'traffic_light' too"),
        (changed("images", 0, neg_category_ids=[1]), "image 20: neg_category_ids has 1, which is no category"),
    ],
)
def test_bad_files_are_refused(tmp_path: Path, document: Any, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        read_annotations(written(tmp_path, document))
    assert "\n" not in str(caught.value)


def test_the_first_missing_pictures_are_named() -> None:
    refuse_missing([], 9, Path("a.json"))
    with pytest.raises(DataError, match=r"a\.json: 6 of 9 images are missing \(0, 1, 2, 3, 4, \.\.\.\)"):
        refuse_missing([str(i) for i in range(6)], 9, Path("a.json"))
