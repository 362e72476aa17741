"""Shapes as a data set that is drawn when it is asked for."""

from __future__ import annotations

import pickle

import pytest
import torch

from hf_grounding_dino.data.readers import open_records
from hf_grounding_dino.data.records import DataError, RecordSet, SourceEntry
from hf_grounding_dino.data.shapes import CATEGORIES, UNSEEN_PAIRS, ShapesDataset, category_name


def shapes(annotations: str) -> RecordSet:
    return open_records(SourceEntry(format="shapes", annotations=annotations))


def test_scenes_are_records_with_labels_and_sizes() -> None:
    """The same after a journey to a worker process."""
    records = shapes("val?count=6&seed=3")
    scenes = ShapesDataset(6, seed=3, split="val", task="detection")
    for number in range(6):
        record, scene = pickle.loads(pickle.dumps(records))[number], scenes.scene(number)
        assert record.size == records.size(number) == scene.image.size
        assert [records.label_names[i] for i in record.labels.tolist()] == [shape.name for shape in scene.objects]
        assert torch.equal(record.boxes, torch.tensor([shape.box for shape in scene.objects], dtype=torch.float32))
    assert records.label_names == CATEGORIES


def test_pairs_that_are_held_out_are_no_labels_in_training() -> None:
    unseen = {category_name(*pair) for pair in UNSEEN_PAIRS}
    assert set(shapes("train").label_names) == set(CATEGORIES) - unseen


@pytest.mark.parametrize("task", ["caption", "referring", "expressions", "places", "mixed"])
def test_words_stand_where_the_spans_say(task: str) -> None:
    """A list of labels or expressions becomes a caption of all of them."""
    records = shapes(f"train?count=8&task={task}&width=160&height=128")
    items = ShapesDataset(8, task=task, size=(160, 128))
    for number in range(8):
        record, item = records[number], items[number]
        assert record.caption is not None and record.spans is not None and record.labels is None
        words = [[record.caption[start:end] for start, end in spans] for spans in record.spans]
        if isinstance(item["text"], str):
            assert record.caption == item["text"]
            assert words == [[item["text"][start:end] for start, end in spans] for spans in item["spans"]]
        else:
            assert words == [[item["text"][label]] for label in item["class_labels"].tolist()]
        assert torch.equal(record.boxes, item["boxes"])


@pytest.mark.parametrize("annotations", ["test", "val?task=guess", "val?size=3", "val?count=many", "val?objects=0"])
def test_what_cannot_be_drawn_is_refused(annotations: str) -> None:
    with pytest.raises(DataError, match="shapes"):
        shapes(annotations)
