"""MDETR-style JSON read into records: captions with spans, referring expressions, expressions that mean nothing."""

import hashlib
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from hf_grounding_dino.data.readers import open_records
from hf_grounding_dino.data.records import RecordSet, SourceEntry


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("a.png", "b.png"):
        Image.new("RGB", (4, 4)).save(tmp_path / name)
    return tmp_path


def entry(number: int, caption: Any, file_name: str = "a.png", **more: Any) -> dict[str, Any]:
    return {"id": number, "caption": caption, "file_name": file_name, "width": 100, "height": 80, **more}


def target(image_id: int, bbox: Any, spans: Any = None, **more: Any) -> dict[str, Any]:
    named = {} if spans is None else {"tokens_positive": spans}
    return {"image_id": image_id, "category_id": 1, "bbox": bbox, **named, **more}


def read(folder: Path, images: list[Any], annotations: list[Any]) -> RecordSet:
    path = folder / "set.json"
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": []}))
    return open_records(SourceEntry(format="mdetr", annotations=str(path)))


def test_captions_of_one_image_with_spans(folder: Path) -> None:
    """A box xywh (10, 20, 30, 40) is xyxy (10, 20, 40, 60); the leading blank moves " a man" and its span by one."""
    images = [
        entry(7, " a man with a hat", original_img_id=3, tokens_positive_eval=[[[1, 6]], [[12, 17]]]),
        entry(8, "two dogs", dataset_name="flickr"),
    ]
    annotations = [
        target(8, [0, 0, 10, 10], [[0, 8]]),
        target(7, [10, 20, 30, 40], [[1, 6], [12, 17]], area=50),
        target(8, [20, 0, 10, 10], [[0, 8]]),
    ]
    records = read(folder, images, annotations)
    assert len(records) == 2
    assert records.label_names == ()
    assert records.category_ids == ()
    first, second = records[0], records[1]
    assert (first.image_id, second.image_id) == (7, 8)
    assert first.image == second.image == folder / "a.png"
    assert first.caption == "a man with a hat"
    assert first.labels is None
    assert first.boxes.tolist() == [[10, 20, 40, 60]]
    assert first.spans == (((0, 5), (11, 16)),)
    assert second.spans == (((0, 8),), ((0, 8),))
    assert second.boxes.tolist() == [[0, 0, 10, 10], [20, 0, 30, 10]]
    assert records.size(0) == (100, 80)
    assert records.findings == ()


def test_a_referring_expression_is_the_whole_caption(folder: Path) -> None:
    records = read(folder, [entry(1, "the left cup ")], [target(1, [1, 1, 9, 9], []), target(1, [20, 1, 9, 9])])
    assert records[0].caption == "the left cup"
    assert records[0].spans == (((0, 12),), ((0, 12),))


def test_expressions_that_mean_nothing_are_kept(folder: Path) -> None:
    """In gRefCOCO stands a placeholder, of category -1 or all zeros; an entry without annotations means the same."""
    images = [entry(1, "the cup"), entry(2, "the blue horse"), entry(3, "a king"), entry(4, "a queen")]
    placeholder = {"image_id": 2, "category_id": -1, "bbox": [0, 0, 1, 1]}
    records = read(folder, images, [target(1, [1, 1, 9, 9]), placeholder, target(4, [0.0, 0.0, 0.0, 0.0])])
    assert [len(records[i].boxes) for i in range(4)] == [1, 0, 0, 0]
    assert records[1].boxes.shape == (0, 4)
    assert [records[i].spans for i in range(1, 4)] == [(), (), ()]
    assert records[1].caption == "the blue horse"
    assert [(finding.kind, finding.what[:6]) for finding in records.findings] == [("no boxes", "3 of 4")]


def test_a_messy_file_gives_exactly_its_findings(folder: Path) -> None:
    images = [
        entry(1, "a cat and a dog"),
        entry(1, "again"),  # duplicate id
        entry(2, "a cow"),  # malformed entry: its only box is empty
        entry(3, None),  # malformed entry
        entry(4, "a sheep", "c.png"),  # missing image
        entry(5, "a crowd", "b.png"),
    ]
    annotations = [
        target(1, [1, 1, 9, 9], [[2, 5]]),
        target(1, [1, 1, 9, 9], [[12, 16]]),  # span past the end
        target(1, [1, 1, 9, 9]),  # empty phrase: others have spans
        target(1, [95, 1, 9, 9], [[12, 15]]),  # outside box
        target(2, [200, 1, 9, 9], [[2, 5]]),  # empty box
        target(4, [1, 1, 9, 9], [[2, 5]]),
        target(5, [1, 1, 90, 70], [[0, 7]], iscrowd=1),  # crowd
    ]
    records = read(folder, images, annotations)
    before = hashlib.sha256((folder / "set.json").read_bytes()).digest()
    assert Counter(finding.kind for finding in records.findings) == {
        "duplicate id": 1, "malformed entry": 2, "missing image": 1, "span past the end": 1, "empty phrase": 1,
        "outside box": 1, "empty box": 1, "crowd": 1,
    }  # fmt: skip
    what = {finding.kind: finding.what for finding in records.findings}
    assert what["outside box"].startswith("box 4 [95, ")
    assert [records[i].image_id for i in range(len(records))] == [1, 5]
    assert records[0].boxes.tolist() == [[1, 1, 10, 10], [95, 1, 100, 10]]
    assert records[1].crowd.tolist() == [True]
    assert before == hashlib.sha256((folder / "set.json").read_bytes()).digest()
