"""Shapes as a torch data set and as files: items depend on their position alone, and files say what the scenes hold."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from hf_grounding_dino.data.images import load_image
from hf_grounding_dino.data.readers import open_records
from hf_grounding_dino.data.records import SourceEntry
from hf_grounding_dino.data.shapes import (
    CATEGORIES,
    Grounding,
    Scene,
    ShapesDataset,
    generate_scene,
    referring_prompt,
    write_coco,
    write_odvg,
)
from hf_grounding_dino.data.shapes import dataset as dataset_module


class TestDataset:
    def test_items_hold_what_their_task_needs(self) -> None:
        dataset = ShapesDataset(20, seed=1, size=lambda index: (128, 64 + index))
        forms = set()
        for index in range(20):
            item = dataset[index]
            assert item["image_id"] == index
            assert item["image"].size == (128, 64 + index)
            assert item["boxes"].dtype == torch.float32
            assert item["boxes"].shape[1:] == (4,)
            if "class_labels" in item:
                assert item["class_labels"].dtype == torch.int64 and isinstance(item["text"], list)
                assert len(item["class_labels"]) == len(item["boxes"])
            else:
                assert len(item["spans"]) == len(item["boxes"])
                assert isinstance(item["text"], str)
            forms.add("spans" in item)
        assert forms == {True, False}
        assert len(list(dataset)) == 20

    def test_items_do_not_depend_on_the_order_or_the_length(self) -> None:
        short, long = ShapesDataset(5, task="referring"), ShapesDataset(50, task="referring")
        _ = long[40]
        assert [long[i]["text"] for i in range(5)] == [short[i]["text"] for i in range(5)]
        assert short[4]["image"].tobytes() == long[4]["image"].tobytes()

    def test_shares_of_the_mixed_task(self) -> None:
        dataset = ShapesDataset(200, size=(64, 64))
        labels = sum("class_labels" in dataset[i] for i in range(200))
        single = sum(str(dataset[i]["text"]).startswith("the ") for i in range(200))
        assert 0.42 < labels / 200 < 0.6
        assert single / 200 > 0.22

    def test_several_expressions_are_one_caption(self) -> None:
        texts = [str(item["text"]) for item in map(ShapesDataset(20, task="expressions").__getitem__, range(20))]
        assert all(text.endswith(".") for text in texts)
        assert max(text.count(".") for text in texts) > 3

    def test_a_spare_scene_stands_in(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """The first scene allows no expression here, so the item shows the first spare scene."""
        refused = generate_scene(0, 0).objects

        def picky(scene: Scene, rng: np.random.Generator) -> Grounding | None:
            return None if scene.objects == refused else referring_prompt(scene, rng)

        monkeypatch.setitem(dataset_module._REFER, "referring", picky)
        dataset = ShapesDataset(1, task="referring")
        assert dataset[0]["image"].tobytes() == dataset.scene(0, spare=1).image.tobytes()

    @pytest.mark.parametrize("arguments", [{"length": -1}, {"seed": -1}, {"split": "test"}, {"task": "counting"}])
    def test_refusals(self, arguments: dict[str, object]) -> None:
        with pytest.raises(ValueError, match="must be"):
            ShapesDataset(**{"length": 1, **arguments})

    @pytest.mark.parametrize("index", [-1, 3])
    def test_positions_outside_are_refused(self, index: int) -> None:
        with pytest.raises(IndexError):
            ShapesDataset(3)[index]


class TestFiles:
    def test_coco_says_what_the_scenes_hold(self, tmp_path: Path) -> None:
        path = write_coco(tmp_path, count=4, seed=2, split="val")
        records = open_records(SourceEntry(annotations=str(path), images=str(tmp_path / "images")))
        assert (records.label_names, records.category_ids) == (CATEGORIES, tuple(range(1, 65)))
        for index in range(4):
            record, scene = records[index], generate_scene(2, index, split="val")
            assert load_image(record.image).tobytes() == scene.image.tobytes() and record.size == scene.image.size
            assert [CATEGORIES[label] for label in record.labels.tolist()] == [item.name for item in scene.objects]
            torch.testing.assert_close(record.boxes, torch.tensor([item.box for item in scene.objects]))
            torch.testing.assert_close(record.area, torch.tensor([item.area for item in scene.objects]))
        assert sorted(entry.name for entry in tmp_path.iterdir()) == ["annotations.json", "images"]

    def test_coco_of_some_categories(self, tmp_path: Path) -> None:
        path = write_coco(tmp_path, count=6, seed=2, split="val", categories=["red circle", "blue ring"])
        document = json.loads(path.read_text())
        assert [category["name"] for category in document["categories"]] == ["red circle", "blue ring"]
        assert {entry["category_id"] for entry in document["annotations"]} <= {1, 2}

    @pytest.mark.parametrize("categories", [["red bus"], ["red circle", "red circle"]])
    def test_coco_refuses_unknown_or_repeated_categories(self, tmp_path: Path, categories: list[str]) -> None:
        with pytest.raises(ValueError, match="categor"):
            write_coco(tmp_path, count=1, seed=0, split="val", categories=categories)

    @pytest.mark.parametrize("task", ["caption", "referring"])
    def test_odvg_says_what_the_captions_name(self, tmp_path: Path, task: str) -> None:
        """Detection lines are compared with COCO where all layouts are."""
        path = write_odvg(tmp_path, count=8, seed=2, split="train", task=task)
        records = open_records(SourceEntry(format="odvg", annotations=str(path), images=str(tmp_path / "images")))
        assert len(records) == 8 and records.label_names == ()
        for index, item in enumerate(map(ShapesDataset(8, seed=2, task=task).__getitem__, range(8))):
            record = records[index]
            assert record.caption == item["text"]
            assert [list(spans) for spans in record.spans] == item["spans"]
            torch.testing.assert_close(record.boxes, item["boxes"])
        for line in path.read_text().splitlines():
            grounding = json.loads(line)["grounding"]
            for region in grounding["regions"]:
                ((start, end),) = region["tokens_positive"]
                assert grounding["caption"][start:end] == region["phrase"]

    def test_odvg_refuses_a_mixture(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match="task"):
            write_odvg(tmp_path, count=1, seed=0, split="train", task="mixed")


def test_scenes_of_few_objects() -> None:
    """`most_objects` cuts the number, whatever is asked for."""
    for task in ("detection", "places", "across", "down"):
        dataset = ShapesDataset(12, seed=1, task=task, most_objects=2)
        assert all(len(item["boxes"]) <= 2 for item in (dataset[i] for i in range(12)))
    assert max(len(dataset.scene(i).objects) for i in range(12)) == 2
    assert max(len(ShapesDataset(12, seed=1).scene(i).objects) for i in range(12)) > 2
    with pytest.raises(ValueError, match="most_objects must be from 1 to 12, not 13"):
        ShapesDataset(1, most_objects=13)
