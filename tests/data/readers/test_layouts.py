"""One set in five layouts gives the same records."""

import json
from pathlib import Path

import datasets
import pytest
import torch

from hf_grounding_dino.data.readers import open_records
from hf_grounding_dino.data.records import Record, RecordSet, SourceEntry
from hf_grounding_dino.data.shapes import write_coco, write_odvg

COUNT = 4


def images_of(document: dict) -> list[tuple[dict, list[tuple[str, list[float]]]]]:
    names = {category["id"]: category["name"] for category in document["categories"]}
    result = []
    for image in document["images"]:
        own = [item for item in document["annotations"] if item["image_id"] == image["id"]]
        result.append((image, [(names[item["category_id"]], item["bbox"]) for item in own]))
    return result


def write_yolo(root: Path, document: dict, names: list[str]) -> Path:
    (root / "labels").mkdir()
    for image, boxes in images_of(document):
        width, height = image["width"], image["height"]
        rows = [
            f"{names.index(name)} {(x + w / 2) / width:.6f} {(y + h / 2) / height:.6f} {w / width:.6f} {h / height:.6f}"
            for name, (x, y, w, h) in boxes
        ]
        (root / "labels" / image["file_name"]).with_suffix(".txt").write_text("\n".join(rows))
    (root / "data.yaml").write_text(json.dumps({"train": "images", "names": names}))
    return root / "data.yaml"


def write_voc(root: Path, document: dict) -> Path:
    (root / "Annotations").mkdir()
    for image, boxes in images_of(document):
        parts = [
            f"<object><name>{name}</name><bndbox><xmin>{x + 1}</xmin><ymin>{y + 1}</ymin><xmax>{x + w}</xmax>"
            f"<ymax>{y + h}</ymax></bndbox></object>"
            for name, (x, y, w, h) in boxes
        ]
        size = f"<size><width>{image['width']}</width><height>{image['height']}</height></size>"
        text = f"<annotation><filename>{image['file_name']}</filename>{size}{''.join(parts)}</annotation>"
        (root / "Annotations" / image["file_name"]).with_suffix(".xml").write_text(text)
    return root


def write_imagefolder(root: Path, document: dict) -> Path:
    lines = [
        {"file_name": image["file_name"], "objects": {"bbox": [b for _, b in boxes], "category": [n for n, _ in boxes]}}
        for image, boxes in images_of(document)
    ]
    (root / "images" / "metadata.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return root / "images"


def described(records: RecordSet) -> list[list[tuple[str, list[float]]]]:
    def boxes(record: Record) -> list[tuple[str, list[float]]]:
        names = [records.label_names[label] for label in record.labels.tolist()]
        return list(zip(names, record.boxes.tolist(), strict=True))

    return [boxes(records[i]) for i in range(len(records))]


def test_the_same_images_in_five_layouts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """YOLO has six decimals of the width and the height: 1e-6 of 640 pixels, and once more for half a side."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    root = tmp_path / "set"
    coco = write_coco(root, count=COUNT, seed=3, split="train")
    document = json.loads(coco.read_text())
    names = [category["name"] for category in document["categories"]]
    sources = {
        "coco": (coco, str(root / "images")),
        "odvg": (write_odvg(root, count=COUNT, seed=3, split="train", task="detection"), str(root / "images")),
        "yolo": (write_yolo(root, document, names), None),
        "voc": (write_voc(root, document), str(root / "images")),
        "datasets": (write_imagefolder(root, document), None),
    }
    sets = {}
    for layout, (path, images) in sources.items():
        sets[layout] = open_records(SourceEntry(format=layout, annotations=str(path), images=images))
    expected = described(sets.pop("coco"))
    assert len(expected) == COUNT and sum(map(len, expected)) > COUNT
    for layout, records in sets.items():
        assert isinstance(records, RecordSet)
        found = described(records)
        assert [[name for name, _ in boxes] for boxes in found] == [[name for name, _ in boxes] for boxes in expected]
        for boxes, wanted in zip(found, expected, strict=True):
            actual = torch.tensor([box for _, box in boxes])
            torch.testing.assert_close(actual, torch.tensor([box for _, box in wanted]), rtol=0, atol=2e-3)
        losing = {finding.kind for finding in records.findings} - {"unused category", "no boxes"}
        assert not losing, f"{layout}: {losing}"
