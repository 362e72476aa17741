"""MDETR's files of captions and expressions, and the sentences of D3."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from hf_grounding_dino.data.records import DataError
from hf_grounding_dino.evaluation.sentence_files import caption_samples, expression_samples, read_sentences


def save(folder: Path, document: Any, *images: str) -> Path:
    for name in images:
        Image.new("RGB", (30, 20)).save(folder / name)
    path = folder / "file.json"
    path.write_text(json.dumps(document))
    return path


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
    ((sample,), missing) = caption_samples(save(tmp_path, FLICKR, "a.png"), tmp_path)
    assert [CAPTION[start:end] for ((start, end),) in sample.phrases] == ["two dogs", "A man"]
    assert (sample.text, sample.image, missing) == (CAPTION, tmp_path / "a.png", [])
    assert sample.reference["labels"].tolist() == [1, 0, 0, 1]
    assert sample.reference["boxes"][3].tolist() == [9, 9, 13, 13]


def test_flickr_phrases_by_their_ids(tmp_path: Path) -> None:
    """No spans on the boxes: of the ids 7 and 31 the smaller is the first phrase."""
    document = json.loads(json.dumps(FLICKR))
    for annotation in document["annotations"]:
        del annotation["tokens_positive"]
    ((sample,), _) = caption_samples(save(tmp_path, document), None)
    assert sample.reference["labels"].tolist() == [1, 0, 0]
    document["annotations"][2]["phrase_ids"] = 8
    with pytest.raises(DataError, match=r"image 0: a box is of no phrase.* 2 different phrase_ids for 2 phrases"):
        caption_samples(save(tmp_path, document), None)


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
        caption_samples(save(tmp_path, document), None)


def expressions(*boxes: list[list[float]]) -> dict[str, Any]:
    images = [
        {"id": i, "file_name": "a.png", "caption": f"thing {i}", "dataset_name": ("refcoco", "refcoco+")[i % 2]}
        for i in range(len(boxes))
    ]
    rows = [(i, box) for i, own in enumerate(boxes) for box in own]
    annotations = [{"id": n, "image_id": i, "bbox": box} for n, (i, box) in enumerate(rows)]
    return {"images": images, "annotations": annotations}


def test_refcoco(tmp_path: Path) -> None:
    """Three expressions about one image, of two datasets; one dataset can be taken alone."""
    path = save(tmp_path, expressions([[0, 0, 2, 3]], [[1, 1, 2, 3]], [[2, 2, 2, 3]]), "a.png")
    samples, missing = expression_samples(path, tmp_path)
    assert [sample.text for sample in samples] == ["thing 0", "thing 1", "thing 2"] and not missing
    assert samples[1].reference["dataset_name"] == "refcoco+"
    assert samples[1].reference["boxes"].tolist() == [[1, 1, 3, 4]]
    assert [one.sample_id for one in expression_samples(path, tmp_path, dataset_name="refcoco")[0]] == [0, 2]
    with pytest.raises(DataError, match="no image whose dataset_name is 'refcocog'"):
        expression_samples(path, tmp_path, dataset_name="refcocog")
    (tmp_path / "a.png").unlink()
    assert set(expression_samples(path, tmp_path)[1]) == {str(tmp_path / "a.png")}


def test_grefcoco(tmp_path: Path) -> None:
    """Several boxes, none, and the placeholder of four zeros, which stands for none."""
    path = save(tmp_path, expressions([[0, 0, 2, 3], [5, 5, 2, 3]], [], [[0, 0, 0, 0]]))
    samples, _ = expression_samples(path, None, generalized=True)
    assert [len(sample.reference["boxes"]) for sample in samples] == [2, 0, 0]
    with pytest.raises(DataError, match="image 1: means no box"):
        expression_samples(path, None)


TABLES: dict[str, Any] = {
    "images": {0: {"group_id": 5}, 1: {"group_id": 6}},
    "groups": {5: {"inner_sent_id": [2, 1]}, 6: {"inner_sent_id": [3]}},
    "sentences": {
        1: {"raw_sent": "a dog", "is_negative": False},
        2: {"raw_sent": "a cat without a hat", "is_negative": True},
        3: {"raw_sent": "a cow", "is_negative": False},
    },
}


def test_sentences_of_d3(tmp_path: Path) -> None:
    """As pickles, with numbers of NumPy, or as JSON."""
    (tmp_path / "json").mkdir()
    for name, table in TABLES.items():
        rows = {np.int64(key): value for key, value in table.items()}
        (tmp_path / f"{name}.pkl").write_bytes(pickle.dumps(rows))
        (tmp_path / "json" / f"{name}.json").write_text(json.dumps(table))
    for folder in (tmp_path, tmp_path / "json"):
        sentences = read_sentences(folder)
        assert sentences.asked == {0: (1, 2), 1: (3,)}
        assert sentences.texts[3] == "a cow" and sentences.presence == {1: True, 2: False, 3: True}


def test_bad_tables_are_refused(tmp_path: Path) -> None:
    """A pickle that would run a command is not run."""
    with pytest.raises(DataError, match=r"images\.pkl: No such file"):
        read_sentences(tmp_path)
    for name, table in TABLES.items():
        (tmp_path / f"{name}.pkl").write_bytes(pickle.dumps(table))
    (tmp_path / "images.pkl").write_bytes(b"cos\nsystem\n(S'touch " + str(tmp_path / "ran").encode() + b"'\ntR.")
    with pytest.raises(DataError, match=r"images\.pkl: not a pickle of plain values \(it holds os\.system"):
        read_sentences(tmp_path)
    assert not (tmp_path / "ran").exists()
    (tmp_path / "images.pkl").write_bytes(pickle.dumps({0: {"group_id": 9}}))
    with pytest.raises(DataError, match="images, groups and sentences do not fit together"):
        read_sentences(tmp_path)
    (tmp_path / "groups.pkl").write_bytes(pickle.dumps([1]))
    with pytest.raises(DataError, match=r"groups\.pkl: a mapping from numbers is needed"):
        read_sentences(tmp_path)
