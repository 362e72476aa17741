"""ODVG lines read into records: detection with a label map, captions with spans or phrases."""

import hashlib
import json
import pickle
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from hf_grounding_dino.data.readers import open_records
from hf_grounding_dino.data.readers.captions import find_phrase
from hf_grounding_dino.data.records import DataError, RecordSet, SourceEntry

IMAGE = {"filename": "a.png", "height": 80, "width": 100}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("a.png", "b.png", "c.png"):
        Image.new("RGB", (4, 4)).save(tmp_path / name)
    (tmp_path / "labels.json").write_text('{"0": "cat", "1": "hot_dog"}')
    return tmp_path


def write(folder: Path, *lines: Any) -> Path:
    path = folder / "set.jsonl"
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return path


def read(path: Path, **options: Any) -> RecordSet:
    return open_records(SourceEntry(format="odvg", annotations=str(path), **options))


def detect(*instances: Any, filename: str = "a.png", **more: Any) -> dict[str, Any]:
    return {**IMAGE, "filename": filename, "detection": {"instances": list(instances)}, **more}


def ground(caption: str, *regions: Any, **more: Any) -> dict[str, Any]:
    return {**IMAGE, "grounding": {"caption": caption, "regions": list(regions)}, **more}


def region(bbox: Any, *spans: Any, **more: Any) -> dict[str, Any]:
    return {"bbox": bbox, **({"tokens_positive": list(spans)} if spans else {}), **more}


def kinds(records: RecordSet) -> list[str]:
    return [finding.kind for finding in records.findings]


class TestDetection:
    def test_labels_as_numbers_and_as_text(self, folder: Path) -> None:
        lines = [
            detect({"bbox": [1, 2, 30, 40], "label": 1}, {"bbox": [5.5, 6, 7, 8], "label": "0", "category": "cat"}),
            "",
            {"filename": "b.png", "detection": {}},
            detect(filename="c.png"),
        ]
        records = read(write(folder, *lines), label_map=str(folder / "labels.json"))
        assert records.label_names == ("cat", "hot dog")
        assert records.category_ids == (0, 1)
        assert records[0].labels.tolist() == [1, 0]
        assert records[0].boxes.tolist() == [[1, 2, 30, 40], [5.5, 6, 7, 8]]
        assert records[0].image == folder / "a.png"
        assert [records[i].image_id for i in range(3)] == ["a.png", "b.png", "c.png"]
        assert [len(records[i].boxes) for i in range(3)] == [2, 0, 0]
        assert [records.size(i) for i in range(3)] == [(100, 80), None, (100, 80)]
        assert kinds(records) == ["no boxes"]
        assert torch.equal(pickle.loads(pickle.dumps(records))[0].boxes, records[0].boxes)

    def test_a_label_map_is_needed_and_must_be_one(self, folder: Path) -> None:
        path = write(folder, detect({"bbox": [1, 2, 30, 40], "label": 1}))
        with pytest.raises(DataError, match=r"set\.jsonl: detection lines need the option label_map"):
            read(path)
        words = folder / "words.json"
        for text in ('["cat"]', '{"cat": "0"}', '{"0": ""}', '{"0": "a", "00": "b"}', "{}"):
            words.write_text(text)
            with pytest.raises(DataError, match=r"words\.json: .*\"0\": \"person\""):
                read(path, label_map=str(words))

    def test_a_label_map_beside_the_lines_is_found(self, folder: Path) -> None:
        path = write(folder, detect({"bbox": [1, 2, 30, 40], "label": 1}))
        (folder / "label_map.json").write_text('{"0": "dog", "1": "bus"}')
        assert read(path).label_names == ("dog", "bus")
        assert read(path, label_map=str(folder / "labels.json")).label_names == ("cat", "hot dog")


class TestGrounding:
    def test_regions_with_one_and_with_several_boxes(self, folder: Path) -> None:
        """The example of the format: the cover is characters 19 to 30, the hanger, in two places, 0 to 13."""
        line = ground(
            "a wire hanger with a red cover",
            region([20, 15, 85, 65], [19, 30], phrase="a red cover"),
            region([[19, 19, 82, 71], [5, 5, 9, 9]], [0, 13], phrase="a wire hanger"),
            region([1, 1, 9, 9], 0, 6),
        )
        record = read(write(folder, line))[0]
        assert record.labels is None
        assert record.caption == "a wire hanger with a red cover"
        assert record.spans == (((19, 30),), ((0, 13),), ((0, 13),), ((0, 6),))
        assert record.boxes.tolist() == [[20, 15, 85, 65], [19, 19, 82, 71], [5, 5, 9, 9], [1, 1, 9, 9]]

    def test_stripping_the_caption_shifts_the_spans(self, folder: Path) -> None:
        """Two blanks go before "a cat": characters 2 to 7 become 0 to 5; a span over the blanks is cut to the words."""
        line = ground(
            "  a cat  ", region([1, 1, 9, 9], [2, 7]), region([2, 2, 9, 9], [4, 9]), region([3, 3, 9, 9], [0, 3])
        )
        record = read(write(folder, line))[0]
        assert record.caption == "a cat"
        assert record.spans == (((0, 5),), ((2, 5),), ((0, 1),))

    def test_phrases_are_looked_up_as_whole_words(self, folder: Path) -> None:
        line = ground(
            "cattle, a Cat and a dog",
            region([1, 1, 9, 9], phrase="cat"),
            region([2, 2, 9, 9], phrase=["a dog", "", "CATTLE"]),
            region([3, 3, 9, 9], phrase="cow"),
            region([4, 4, 9, 9], phrase=" "),
        )
        records = read(write(folder, line))
        assert records[0].spans == (((10, 13),), ((0, 6), (18, 23)))
        assert kinds(records) == ["no phrase", "empty phrase"]

    @pytest.mark.parametrize(
        ("phrase", "caption", "span"),
        [
            ("cat", "cat-like cat.", (9, 12)),
            ("cat", "bobcat cat", (7, 10)),
            ("cat", "tom-cat cat", (8, 11)),
            ("two  dogs", "see two dogs", (4, 12)),
            ("c++", "a c++ book", (2, 5)),
            ("dog", "dogs", None),
        ],
    )
    def test_find_phrase(self, phrase: str, caption: str, span: tuple[int, int] | None) -> None:
        assert find_phrase(phrase, caption) == span

    def test_an_empty_caption_is_kept_and_an_untrue_one_is_not(self, folder: Path) -> None:
        """A caption without regions says that nothing is there; one that lost all its boxes would say so wrongly."""
        lines = [
            ground("a cat", region([1, 1, 9, 9], [2, 5])),
            ground("no dog"),
            ground("a cow", region([5, 5, 5, 5], [2, 5])),
        ]
        records = read(write(folder, *lines))
        assert [records[i].caption for i in range(len(records))] == ["a cat", "no dog"]
        assert records[1].spans == ()
        assert kinds(records) == ["empty box", "malformed entry", "no boxes"]


class TestFindings:
    def test_a_messy_detection_file(self, folder: Path) -> None:
        good = {"bbox": [1, 2, 30, 40], "label": 1}
        path = write(
            folder,
            detect(
                good,
                {"bbox": [1, 2, 130, 40], "label": 1},  # outside box
                {"bbox": [5, 2, 30, 40], "label": 12},  # unknown category
                {"bbox": [5, 2, 30, 40]},  # no category
            ),
            detect(good),  # duplicate id
            detect(good, filename="missing.png"),  # missing image
            detect(filename="b.png", width="wide"),  # wrong size, no boxes
            {"detection": {}},  # malformed entry
            {"filename": "c.png"},  # malformed entry
        )
        (folder / "labels.json").write_text('{"1": "cat", "3": "dog"}')
        before = {file: hashlib.sha256(file.read_bytes()).digest() for file in folder.iterdir()}
        records = read(path, label_map=str(folder / "labels.json"))
        assert Counter(kinds(records)) == {
            "outside box": 1, "unknown category": 1, "no category": 1, "duplicate id": 1,
            "missing image": 1, "wrong size": 1, "no boxes": 1,
            "malformed entry": 2, "gapped ids": 1, "unused category": 1,
        }  # fmt: skip
        assert records.findings[1].where == f"{path}, line 1"
        assert records[0].boxes.tolist() == [[1, 2, 30, 40], [1, 2, 100, 40]]
        assert [records[i].image_id for i in range(len(records))] == ["a.png", "b.png"]
        assert before == {file: hashlib.sha256(file.read_bytes()).digest() for file in folder.iterdir()}

    def test_a_messy_grounding_file(self, folder: Path) -> None:
        path = write(
            folder,
            ground(
                "a cat . \u200b\u0301",
                region([1, 1, 9, 9], [2, 5]),
                region([1, 1, 9, 9], [2, 5]),  # duplicate box
                region([1, 1, 9, 9], [0, 5]),
                region([2, 2, 9, 9], [2, 11]),  # span past the end
                region([2, 2, 9, 9], [3, 3]),  # empty phrase
                region([2, 2, 9, 9], [1, 2]),  # empty phrase: a blank
                region([4, 4, 9, 9], [6, 7]),  # empty phrase: a delimiter
                region([5, 5, 9, 9], [8, 10]),  # empty phrase: what no tokenizer sees
                region([2, 2, 9, 9], ["a", 2]),  # malformed entry
                region([2, 2, 9, 9], phrase="dog"),  # no phrase
                region([[3, 3, 9, 9], [5, 5, 5, 9]], [2, 5]),  # empty box, the twelfth of the line
            ),
            ground(" ", region([1, 1, 9, 9], [2, 5])),  # malformed entry
        )
        records = read(path)
        assert Counter(kinds(records)) == {
            "duplicate box": 1, "span past the end": 1, "empty phrase": 4, "malformed entry": 2, "no phrase": 1,
            "empty box": 1,
        }  # fmt: skip
        assert records[0].spans == (((2, 5),), ((0, 5),), ((2, 5),))
        assert records.findings[-1].what.startswith("box 12 [5, 5, 5, 9] ")
        where = {finding.kind: finding.where for finding in records.findings}
        assert where["span past the end"] == f"{path}, line 1, region 4"


class TestRefusals:
    def test_a_line_that_is_cut_off(self, folder: Path) -> None:
        path = write(folder, ground("a cat", region([1, 1, 9, 9], [2, 5])), '{"filename": "a.p')
        with pytest.raises(DataError, match=r"set\.jsonl, line 2, column \d+: not JSON, or cut off"):
            read(path)

    def test_lines_of_both_kinds(self, folder: Path) -> None:
        path = write(folder, ground("a cat", region([1, 1, 9, 9], [2, 5])), detect())
        with pytest.raises(DataError, match=r"set\.jsonl, line 2: has 'detection' in a file of grounding lines"):
            read(path)

    def test_an_array_and_an_empty_file(self, folder: Path) -> None:
        with pytest.raises(DataError, match=r"set\.jsonl, line 1: a JSON object is needed on each line, not one array"):
            read(write(folder, [ground("a cat")]))
        with pytest.raises(DataError, match=r"set\.jsonl: no line has 'detection' or 'grounding'"):
            read(write(folder))

    def test_a_file_that_changes_while_it_is_read(self, folder: Path) -> None:
        path = write(folder, *[ground("a cat", region([1, 1, 9, 9], [2, 5]))] * 2)
        records = read(path)
        path.write_text("{}\n")
        with pytest.raises(DataError, match=r"set\.jsonl, line 2"):
            records[1]
