"""Data sets as tasks: what is asked, what is there, and what is refused before any model is loaded."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from hf_grounding_dino.data.records import DataError, Record
from hf_grounding_dino.evaluation.askers import LabelAsker
from hf_grounding_dino.evaluation.lvis import LvisDetection
from hf_grounding_dino.evaluation.sentence_files import read_sentences
from hf_grounding_dino.evaluation.sets import CaptionTask, DescriptionTask, DetectionTask, ExpressionTask
from hf_grounding_dino.evaluation.truth import read_truth
from listed_records import ListedRecords


def save(folder: Path, document: Any, *pictures: str) -> Path:
    for name in pictures:
        Image.new("RGB", (30, 20)).save(folder / name)
    path = folder / "file.json"
    path.write_text(json.dumps(document))
    return path


def perfect(task: Any) -> dict[str, float]:
    """The scores of the truth as prediction (law 18)."""
    metric = task.metric()
    for case in task:
        boxes = np.asarray(case.reference["boxes"])
        labels = case.reference.get("labels", np.zeros(len(boxes), np.int64))
        prediction = {"image_id": case.case_id, "boxes": boxes, "labels": labels, "scores": np.ones(len(boxes))}
        metric.add(prediction=prediction, reference=case.reference)
    return metric.compute()


# --- detection ---------------------------------------------------------------------------------------------------

COCO: dict[str, Any] = {
    "images": [{"id": 5, "file_name": "a.png"}, {"id": 2, "file_name": "b.png"}, {"id": 7, "file_name": "c.png"}],
    "annotations": [
        {"id": 1, "image_id": 5, "category_id": 10, "bbox": [1, 2, 3, 4]},
        {"id": 2, "image_id": 7, "category_id": 3, "bbox": [5, 5, 10, 5]},
    ],
    "categories": [{"id": 10, "name": "tall_cat", "frequency": "r"}, {"id": 3, "name": "dog", "frequency": "f"}],
}


def test_a_coco_file(tmp_path: Path) -> None:
    """Gapped ids in no order; the truth scores 1."""
    path = save(tmp_path, COCO, "a.png", "b.png", "c.png")
    task = DetectionTask.from_truth(read_truth(path, tmp_path), name="mine")
    assert len(task) == 3 and list(task.case_ids) == [case.case_id for case in task] == [5, 2, 7]
    assert task.labels == {10: "tall_cat", 3: "dog"}
    assert task.ask.protocol["prompts"] == {"10": "tall cat", "3": "dog"}
    assert task[1].image == tmp_path / "b.png"
    assert perfect(task)["AP"] == 1


def test_missing_pictures(tmp_path: Path) -> None:
    """Two of three: refused, or left out with a number; not looked for where only predictions are to be scored."""
    path = save(tmp_path, COCO, "b.png")
    with pytest.raises(DataError, match=r"file\.json: 2 of 3 pictures are not there \(a\.png, c\.png\)"):
        DetectionTask.from_truth(read_truth(path, tmp_path), name="mine")
    task = DetectionTask.from_truth(read_truth(path, tmp_path), name="mine", leave_out_missing=True)
    assert list(task.case_ids) == [2] and task.missing == ("a.png", "c.png")
    assert len(DetectionTask.from_truth(read_truth(path), name="mine")) == 3


@pytest.mark.filterwarnings("ignore:.*fewer than 10000")
def test_an_lvis_file(tmp_path: Path) -> None:
    document = json.loads(json.dumps(COCO))
    for image in document["images"]:
        image |= {"neg_category_ids": [3], "not_exhaustive_category_ids": []}
    document["images"][2]["neg_category_ids"] = []
    truth = read_truth(save(tmp_path, document))
    rows = [category.as_dict() for category in truth.categories]
    task = DetectionTask.from_truth(truth, name="lvis", new_metric=lambda: LvisDetection(rows))
    scores = perfect(task)
    assert (scores["AP"], scores["APr"], scores["APc"], scores["APf"]) == (1, 1, -1, 1)


def test_records_of_any_format() -> None:
    """Labels count from 0 in records, and are category ids in tasks; federated sets stay federated."""
    records = [
        Record(
            image_id="x", image=Image.new("RGB", (9, 9)), boxes=torch.tensor([[1.0, 1, 3, 5], [0, 0, 9, 9]]),
            labels=torch.tensor([1, 0]), crowd=torch.tensor([False, True]), absent=(1,), incomplete=(0,),
        ),
        Record(image_id="y", image=b"", boxes=torch.zeros(0, 4), labels=torch.zeros(0, dtype=torch.int64)),
    ]  # fmt: skip
    task = DetectionTask.from_records(ListedRecords("mine", records, ("cat", "dog"), (4, 9)))
    reference = task[0].reference
    assert reference["labels"].tolist() == [9, 4] and reference["iscrowd"].tolist() == [False, True]
    assert reference["area"].tolist() == [8, 81]
    assert (reference["neg_category_ids"], reference["not_exhaustive_category_ids"]) == ((9,), (4,))
    assert "neg_category_ids" not in task[1].reference
    assert task.labels == {4: "cat", 9: "dog"} and list(task.case_ids) == ["x", "y"]
    assert perfect(task)["AP"] == 1


def test_a_part_of_a_task(tmp_path: Path) -> None:
    task = DetectionTask.from_truth(read_truth(save(tmp_path, COCO)), name="mine")
    part = task.first(2)
    assert list(part.case_ids) == [5, 2] == [case.case_id for case in part]
    assert part.labels == task.labels and len(task.first(9)) == 3


def test_useless_sets_are_refused() -> None:
    record = Record(image_id=1, image=b"", boxes=torch.zeros(0, 4), labels=torch.zeros(0, dtype=torch.int64))
    with pytest.raises(DataError, match="mine: two pictures have the id 1"):
        DetectionTask.from_records(ListedRecords("mine", [record, record], ("cat",), (0,)))
    with pytest.raises(DataError, match="mine: has captions instead of labels"):
        DetectionTask.from_records(ListedRecords("mine", [record]))
    with pytest.raises(DataError, match="mine: has labels instead of captions"):
        CaptionTask.from_records(ListedRecords("mine", [record], ("cat",), (0,)))
    with pytest.raises(DataError, match="mine: there is nothing to evaluate on"):
        ExpressionTask.from_records(ListedRecords("mine", []))


# --- captions ----------------------------------------------------------------------------------------------------

CAPTION = "A man and two dogs run"
FLICKR: dict[str, Any] = {
    "images": [{"id": 0, "file_name": "a.png", "caption": CAPTION, "tokens_positive_eval": [[[10, 18]], [[0, 5]]]}],
    "annotations": [
        {"id": 1, "image_id": 0, "bbox": [0, 0, 4, 4], "tokens_positive": [[0, 5]], "phrase_ids": 31},
        {"id": 2, "image_id": 0, "bbox": [5, 0, 4, 4], "tokens_positive": [[10, 18]], "phrase_ids": 7},
        {"id": 3, "image_id": 0, "bbox": [9, 9, 4, 4], "tokens_positive": [[0, 5], [10, 18]], "phrase_ids": 7},
    ],
}


def test_flickr_phrases(tmp_path: Path) -> None:
    """Phrase 0 is "two dogs", phrase 1 "A man"; the third box is of both, so there are four."""
    task = CaptionTask.from_mdetr(save(tmp_path, FLICKR, "a.png"), tmp_path, name="flickr")
    (case,) = task
    assert [CAPTION[start:end] for ((start, end),) in case.spans] == ["two dogs", "A man"]
    assert case.text == CAPTION and case.image == tmp_path / "a.png"
    assert case.reference["labels"].tolist() == [1, 0, 0, 1]
    assert case.reference["boxes"][3].tolist() == [9, 9, 13, 13]
    assert perfect(task)["R@1"] == 1


def test_flickr_phrases_by_their_ids(tmp_path: Path) -> None:
    """No spans on the boxes: of the ids 7 and 31 the smaller is the first phrase."""
    document = json.loads(json.dumps(FLICKR))
    for annotation in document["annotations"]:
        del annotation["tokens_positive"]
    (case,) = CaptionTask.from_mdetr(save(tmp_path, document), None, name="flickr")
    assert case.reference["labels"].tolist() == [1, 0, 0]
    document["annotations"][2]["phrase_ids"] = 8
    with pytest.raises(DataError, match=r"image 0: a box is of no phrase.* 2 different phrase_ids for 2 phrases"):
        CaptionTask.from_mdetr(save(tmp_path, document), None, name="flickr")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"caption": " "}, "image 0: has no caption"),
        ({"tokens_positive_eval": []}, "image 0: has no tokens_positive_eval"),
        ({"tokens_positive_eval": [[[0, 23]]]}, r"span \[0, 23\] is not inside a caption of 22 characters"),
        ({"tokens_positive_eval": [[0, 5]]}, r"a span is \[start, end\], not 0"),
        ({"tokens_positive_eval": [[]]}, r"a phrase is a list of \[start, end\]"),
    ],
)
def test_bad_captions_are_refused(tmp_path: Path, values: dict[str, Any], message: str) -> None:
    document = json.loads(json.dumps(FLICKR))
    document["images"][0] |= values
    with pytest.raises(DataError, match=message):
        CaptionTask.from_mdetr(save(tmp_path, document), None, name="flickr")


def test_captions_of_records() -> None:
    """Two captions of one picture are two cases; boxes with equal spans are of one phrase."""
    spans = (((0, 3),), ((4, 7), (9, 10)), ((0, 3),))
    record = Record(image_id=1, image=b"", boxes=torch.eye(4)[:3].cumsum(1), caption="cat dog x y", spans=spans)
    task = CaptionTask.from_records(ListedRecords("mine", [record, record]))
    assert list(task.case_ids) == [0, 1]
    assert task[1].spans == (((0, 3),), ((4, 7), (9, 10)))
    assert task[1].reference["labels"].tolist() == [0, 1, 0]
    assert task[1].reference["image_id"] == 1


# --- expressions -------------------------------------------------------------------------------------------------


def expressions(*boxes: list[list[float]]) -> dict[str, Any]:
    images = [
        {"id": i, "file_name": "a.png", "caption": f"thing {i}", "dataset_name": ("refcoco", "refcoco+")[i % 2]}
        for i in range(len(boxes))
    ]
    rows = [(i, box) for i, own in enumerate(boxes) for box in own]
    annotations = [{"id": n, "image_id": i, "bbox": box} for n, (i, box) in enumerate(rows)]
    return {"images": images, "annotations": annotations}


def test_refcoco(tmp_path: Path) -> None:
    """Three expressions about one picture, of two sets; one set can be taken alone."""
    path = save(tmp_path, expressions([[0, 0, 2, 3]], [[1, 1, 2, 3]], [[2, 2, 2, 3]]), "a.png")
    task = ExpressionTask.from_mdetr(path, tmp_path, name="refcoco")
    assert [case.text for case in task] == ["thing 0", "thing 1", "thing 2"]
    assert task[1].reference["dataset_name"] == "refcoco+"
    assert task[1].reference["boxes"].tolist() == [[1, 1, 3, 4]]
    assert perfect(task) | {"P@1": 1, "refcoco_P@1": 1, "refcoco+_P@1": 1} == perfect(task)
    only = ExpressionTask.from_mdetr(path, tmp_path, name="refcoco", dataset_name="refcoco")
    assert list(only.case_ids) == [0, 2]
    with pytest.raises(DataError, match="no image whose dataset_name is 'refcocog'"):
        ExpressionTask.from_mdetr(path, tmp_path, name="refcoco", dataset_name="refcocog")
    (tmp_path / "a.png").unlink()
    with pytest.raises(DataError, match=r"1 of 1 pictures are not there \(.*a\.png\)"):
        ExpressionTask.from_mdetr(path, tmp_path, name="refcoco")


def test_grefcoco(tmp_path: Path) -> None:
    """Several boxes, none, and the placeholder of four zeros, which stands for none."""
    path = save(tmp_path, expressions([[0, 0, 2, 3], [5, 5, 2, 3]], [], [[0, 0, 0, 0]]))
    task = ExpressionTask.from_mdetr(path, None, name="grefcoco", generalized=True)
    assert [len(case.reference["boxes"]) for case in task] == [2, 0, 0]
    with pytest.raises(DataError, match="image 1: means no box"):
        ExpressionTask.from_mdetr(path, None, name="refcoco")


# --- descriptions ------------------------------------------------------------------------------------------------

D3: dict[str, Any] = {
    "images": [{"id": 0, "file_name": "a.png"}, {"id": 1, "file_name": "b.png"}],
    "annotations": [{"id": 1, "image_id": 0, "category_id": 2, "bbox": [1, 2, 3, 4]}],
    "categories": [{"id": 1, "name": "a dog"}, {"id": 2, "name": "a cat without a hat"}, {"id": 3, "name": "a cow"}],
}
TABLES: dict[str, Any] = {
    "images": {0: {"group_id": 5}, 1: {"group_id": 6}},
    "groups": {5: {"inner_sent_id": [2, 1]}, 6: {"inner_sent_id": [3]}},
    "sentences": {
        1: {"raw_sent": "a dog", "is_negative": False},
        2: {"raw_sent": "a cat without a hat", "is_negative": True},
        3: {"raw_sent": "a cow", "is_negative": False},
    },
}


def pickled(folder: Path) -> Path:
    for name, table in TABLES.items():
        (folder / f"{name}.pkl").write_bytes(pickle.dumps(table))
    return folder


def test_each_picture_is_asked_for_its_group(tmp_path: Path) -> None:
    sentences = read_sentences(pickled(tmp_path))
    truth = read_truth(save(tmp_path, D3))
    task = DescriptionTask.from_truth(truth, sentences, name="d3")
    assert task[0].reference["asked"] == [1, 2] and task[1].reference["asked"] == [3]
    assert task.labels == {1: "a dog", 2: "a cat without a hat", 3: "a cow"}
    assert isinstance(task.ask, LabelAsker) and task.ask.asked == {0: (1, 2), 1: (3,)}
    assert task.ask.protocol["chunk_labels"] is None
    parallel = DescriptionTask.from_truth(truth, sentences, name="d3", one_by_one=True)
    assert parallel.ask.protocol["chunk_labels"] == 1 and parallel.ask.protocol["top_k_of_each_prompt"]
    scores = perfect(task)
    assert (scores["FULL"], scores["ABS"], scores["PRES"]) == (1, 1, -1)


def test_tables_as_json(tmp_path: Path) -> None:
    for name, table in TABLES.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(table))
    assert read_sentences(tmp_path).asked == {0: (1, 2), 1: (3,)}


def test_bad_tables_are_refused(tmp_path: Path) -> None:
    """A pickle that would run a command is not run."""
    with pytest.raises(DataError, match=r"images\.pkl: No such file"):
        read_sentences(tmp_path)
    pickled(tmp_path)
    (tmp_path / "images.pkl").write_bytes(b"cos\nsystem\n(S'touch " + str(tmp_path / "ran").encode() + b"'\ntR.")
    with pytest.raises(DataError, match=r"images\.pkl: not a pickle of plain values \(it holds os\.system"):
        read_sentences(tmp_path)
    assert not (tmp_path / "ran").exists()
    (tmp_path / "images.pkl").write_bytes(pickle.dumps({0: {"group_id": 9}}))
    with pytest.raises(DataError, match="images, groups and sentences do not fit together"):
        read_sentences(tmp_path)
    (tmp_path / "images.pkl").write_bytes(pickle.dumps({np.int64(0): {"group_id": np.int64(5)}}))
    sentences = read_sentences(tmp_path)
    (tmp_path / "groups.pkl").write_bytes(pickle.dumps([1]))
    with pytest.raises(DataError, match=r"groups\.pkl: a mapping from numbers is needed"):
        read_sentences(tmp_path)
    with pytest.raises(DataError, match="image 1 has no group of sentences"):
        DescriptionTask.from_truth(read_truth(save(tmp_path, D3)), sentences, name="d3")
