"""COCO JSON read into records: boxes, names and ids as the file says, what is wrong named and never repaired in it."""

import hashlib
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from hf_grounding_dino.data.findings import FindingLog
from hf_grounding_dino.data.readers import open_records
from hf_grounding_dino.data.readers.boxes import RawBoxes, checked_boxes
from hf_grounding_dino.data.readers.names import clean_names
from hf_grounding_dino.data.records import DataError, RecordSet, SourceEntry
from hf_grounding_dino.processing.prompts import clean_name


def save_images(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4)).save(folder / name)


def image(number: int | str, **more: Any) -> dict[str, Any]:
    return {"id": number, "file_name": f"{number}.png", "width": 100, "height": 80, **more}


def box(image_id: int | str, category: Any, *numbers: float, **more: Any) -> dict[str, Any]:
    return {"image_id": image_id, "category_id": category, "bbox": list(numbers), **more}


def category(number: int, name: str) -> dict[str, Any]:
    return {"id": number, "name": name}


def write(folder: Path, images: list[Any], annotations: list[Any], categories: list[Any]) -> Path:
    path = folder / "set.json"
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    return path


def read(path: Path, **options: Any) -> RecordSet:
    return open_records(SourceEntry(format="coco", annotations=str(path), **options))


class TestRecords:
    def test_boxes_and_shuffled_gapped_ids_come_from_the_file_alone(self, tmp_path: Path) -> None:
        """A box xywh (10, 20, 30, 40) is xyxy (10, 20, 40, 60); ids 90, 0, 7 are positions 0, 1, 2."""
        save_images(tmp_path, "5.png", "3.png")
        path = write(
            tmp_path,
            [image(5), image(3)],
            [box(3, 7, 10, 20, 30, 40, area=900.5), box(5, 0, 1, 2, 3, 4), box(3, 90, 0, 0, 100, 80, area=8000)],
            [category(90, "cat"), category(0, "dog"), category(7, "hot_dog (food)")],
        )
        records = read(path)
        assert records.label_names == ("cat", "dog", "hot dog")
        assert records.category_ids == (90, 0, 7)
        assert [record.image_id for record in map(records.__getitem__, range(2))] == [5, 3]
        record = records[1]
        assert record.image == tmp_path / "3.png"
        assert record.boxes.dtype == torch.float32
        assert record.boxes.tolist() == [[10, 20, 40, 60], [0, 0, 100, 80]]
        assert record.labels.tolist() == [2, 0]
        assert record.area.tolist() == [900.5, 8000]
        assert records[0].area is None
        assert record.crowd is None
        assert record.absent is None
        assert records.size(1) == record.size == (100, 80)
        assert records[-1].image_id == 3
        with pytest.raises(IndexError):
            records[2]
        assert records.name == "set"
        assert read(path, name="mine").name == "mine"

    def test_crowd_boxes_are_kept_and_marked(self, tmp_path: Path) -> None:
        save_images(tmp_path, "1.png", "2.png")
        targets = [box(1, 1, 0, 0, 9, 9, iscrowd=1), box(1, 1, 0, 0, 9, 9, iscrowd=0), box(2, 1, 5, 5, 9, 9)]
        records = read(write(tmp_path, [image(1), image(2)], targets, [category(1, "cat")]))
        assert records[0].crowd.tolist() == [True, False]
        assert records[1].crowd is None
        assert [(f.kind, f.what[:6]) for f in records.findings] == [("crowd", "1 of 3")]

    def test_lvis_fields(self, tmp_path: Path) -> None:
        """Of ids 1, 2, 3: 3 is surely absent from image 1 and 1 not boxed everywhere; image 2 says neither."""
        save_images(tmp_path / "train2017", "000000000001.png")
        save_images(tmp_path, "2.png")
        url = "http://images.cocodataset.org/train2017/000000000001.png"
        first = {"id": 1, "coco_url": url, "neg_category_ids": [3], "not_exhaustive_category_ids": [1]}
        targets = [box(1, n, 0, 0, 9, 9) for n in (1, 2)] + [box(2, 3, 0, 0, 9, 9)]
        categories = [category(1, "bow_(weapon)"), category(2, "bow_(decorative_ribbons)"), category(3, "sea_horse")]
        records = read(write(tmp_path, [first, image(2)], targets, categories))
        assert (records[0].absent, records[0].incomplete) == ((2,), (0,))
        assert (records[1].absent, records[1].incomplete) == ((), ())
        assert records[0].image == tmp_path / "train2017" / "000000000001.png"
        assert records[0].size is None
        assert records.label_names == ("bow_(weapon)", "bow_(decorative_ribbons)", "sea horse")
        inside = read(tmp_path / "set.json", images=str(tmp_path / "train2017"))
        assert inside[0].image == tmp_path / "train2017" / "000000000001.png"

    def test_a_label_map_renames(self, tmp_path: Path) -> None:
        save_images(tmp_path, "1.png")
        targets = [box(1, 1, 0, 0, 9, 9), box(1, 2, 0, 0, 9, 9)]
        path = write(tmp_path, [image(1)], targets, [category(1, "zb_01"), category(2, "sea_horse")])
        words = tmp_path / "words.json"
        words.write_text('{"zb_01": "zebra crossing"}')
        assert read(path, label_map=str(words)).label_names == ("zebra crossing", "sea horse")
        words.write_text('{"sea_hoarse": "fish"}')
        with pytest.raises(DataError, match=r"words\.json: 'sea_hoarse' is no category .*set\.json.*'sea_horse'"):
            read(path, label_map=str(words))
        words.write_text('{"zb_01": "fish", "sea_horse": "fish"}')
        with pytest.raises(DataError, match=r"two categories of .* are called 'fish'"):
            read(path, label_map=str(words))


def messy(folder: Path) -> Path:
    """Each kind of thing that can be wrong, once, but for 23 boxes of category 77."""
    save_images(folder, "1.png", "2.png", "3.png")
    targets = [
        box(1, 1, 10, 10, 20, 20),
        box(1, 1, 10, 10, 20, 20),  # duplicate box
        box(1, 2, 10, 10, 20, 20),
        box(1, 1, 90, 70, 20.5, 5),  # outside box: to 110.5 of 100
        box(1, 1, 5, 5, 0.5, 9),  # empty box: half a pixel
        box(1, 1, 100, 5, 10, 9),  # empty box: beside the image
        box(1, 1, 1, 2, 3),  # malformed box: three numbers
        box(1, 1, 1, float("nan"), 3, 4),  # malformed box
        {"image_id": 1, "category_id": 1},  # malformed box: none
        {"image_id": 1, "bbox": [0, 0, 9, 9]},  # no category
        *[box(1, 77, i, 0, 9, 9) for i in range(23)],  # unknown category
        box(2, 1, 0, 0, 9, 9, iscrowd=1),  # crowd
        box(3, 1, 0, 0, 9, 9),
        box(4, 1, 0, 0, 9, 9),  # of an image that is not there
        box(99, 1, 0, 0, 9, 9),  # missing image: not listed
        "text",  # malformed entry
    ]
    images = [
        image(1),
        image(2),
        image(2, file_name="other.png"),  # duplicate id
        image(3, width=-5),  # wrong size
        image(4),  # missing image
        {"id": 5},  # malformed entry
        image(6, file_name="1.png"),  # no boxes
    ]
    return write(folder, images, targets, [category(1, "cat"), category(2, "dog"), category(9, "cow")])


class TestFindings:
    def test_a_messy_file_gives_exactly_its_findings_and_stays_as_it_is(self, tmp_path: Path) -> None:
        path = messy(tmp_path)
        before = {file: hashlib.sha256(file.read_bytes()).digest() for file in tmp_path.iterdir()}
        records = read(path)
        findings = records.findings
        assert Counter(finding.kind for finding in findings) == {
            "gapped ids": 1, "duplicate id": 1, "duplicate box": 1, "outside box": 1, "empty box": 2,
            "malformed box": 3, "no category": 1, "unknown category": 21, "crowd": 1, "missing image": 2,
            "malformed entry": 2, "wrong size": 1, "no boxes": 1, "unused category": 1,
        }  # fmt: skip
        by_kind = {finding.kind: finding for finding in findings}
        assert by_kind["unknown category"].what == "and 3 more"
        assert by_kind["unused category"].what.startswith("'cow'")
        assert by_kind["outside box"].where == f"{path}, image 1"
        assert by_kind["outside box"].what == "box 4 [90, 70, 20.5, 5] leaves the image; clipped"
        assert by_kind["gapped ids"].what == "3 category ids from 1 to 9, 6 left out"
        assert all("\n" not in finding.what for finding in findings)
        assert len(records) == 4
        assert records[0].boxes.tolist() == [[10, 10, 30, 30], [10, 10, 30, 30], [90, 70, 100, 75]]
        assert records[0].labels.tolist() == [0, 1, 0]
        assert before == {file: hashlib.sha256(file.read_bytes()).digest() for file in tmp_path.iterdir()}

    def test_twenty_of_a_kind_are_kept(self) -> None:
        log = FindingLog("a.json", limit=20)
        for number in range(25):
            log.add("empty box", f"image {number}", "x")
        assert len(log.findings) == 21
        assert log.count("empty box") == 25
        assert log.findings[-1] == ("empty box", "a.json", "and 5 more")

    def test_a_full_box_and_rounding_are_no_findings(self) -> None:
        """A box that ends 0.05 px past the edge is clipped in silence: files round."""
        log = FindingLog("a.json")
        boxes = [[0, 0, 100, 80], [-0.05, 0, 100.05, 40]]
        checked, _ = checked_boxes(RawBoxes(boxes=boxes, names=[0, 0]), (100, 80), "here", log)
        assert checked.tolist() == [[0, 0, 100, 80], [0, 0, 100, 40]]
        assert not log.findings

    @pytest.mark.parametrize("raw", [None, "12345", [1, 2, 3, "x"], [1, 2, 3, 1e400], {"x": 1}, [[1], 2, 3, 4]])
    def test_malformed_boxes_beside_a_good_one(self, raw: object) -> None:
        log = FindingLog("a.json")
        checked, kept = checked_boxes(RawBoxes(boxes=[raw, [1, 2, 30, 40]], names=[0, 0]), None, "here", log)
        assert kept == [1]
        assert checked.tolist() == [[1, 2, 30, 40]]
        assert [finding.kind for finding in log.findings] == ["malformed box"]


class TestRefusals:
    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ('{"images": [],\n "annotations": [', r"set\.json, line 2, column \d+: not JSON, or cut off"),
            ("", r"set\.json, line 1, column 1: not JSON"),
            ("[1, 2]", r"set\.json: one JSON object with images, annotations, categories is needed, not a list"),
            ('{"images": []}', r"set\.json: has no list 'annotations'"),
            ('{"images": [], "annotations": [], "categories": []}', r"set\.json: has no categories"),
            (
                '{"images": [], "annotations": [], "categories": [{"id": "x", "name": "cat"}]}',
                r"set\.json, category entry 1: a category needs a whole number as id",
            ),
            (
                '{"images": [], "annotations": [], "categories": [{"id": 1, "name": "cat"}]}',
                r"set\.json: no image can be used",
            ),
        ],
    )
    def test_files_that_are_no_coco_json(self, tmp_path: Path, text: str, message: str) -> None:
        path = tmp_path / "set.json"
        path.write_text(text)
        with pytest.raises(DataError, match=message) as caught:
            read(path)
        assert "\n" not in str(caught.value)

    def test_text_that_is_not_utf8(self, tmp_path: Path) -> None:
        (tmp_path / "set.json").write_bytes(b'{\n"a": "\xff"}')
        with pytest.raises(DataError, match=r"set\.json, line 2: not UTF-8"):
            read(tmp_path / "set.json")

    def test_no_file_and_no_folder(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match=r"none\.json: No such file"):
            read(tmp_path / "none.json")
        path = write(tmp_path, [image(1)], [], [category(1, "cat")])
        with pytest.raises(DataError, match=r"set\.json: its images should be in .*nowhere, which is not a folder"):
            read(path, images=str(tmp_path / "nowhere"))

    def test_the_reason_given_is_what_took_the_boxes(self, tmp_path: Path) -> None:
        """Gapped ids come up first and harm nothing; the unknown category is why."""
        save_images(tmp_path, "1.png")
        path = write(tmp_path, [image(1)], [box(1, 2, 5, 5, 9, 9)], [category(1, "cat"), category(4, "dog")])
        with pytest.raises(
            DataError, match=r"no box is valid; first finding: unknown category, .*image 1: box 1: .* 2"
        ):
            read(path)


class TestNames:
    @pytest.mark.parametrize(
        ("written", "clean"),
        [
            ("bow_(decorative_ribbons)", "bow"),
            ("hot_dog", "hot dog"),
            ("a  (b) c (d)", "a"),
            ("Cabinet/shelf", "Cabinet/shelf"),
            (" fire__hydrant ", "fire hydrant"),
        ],
    )
    def test_clean_name(self, written: str, clean: str) -> None:
        """Parentheses go from the first that opens to the last that closes, as in the recipe."""
        assert clean_name(written) == clean

    def test_names_stay_different_and_non_empty(self) -> None:
        assert clean_names(["a_b", "a b", "(x)", "c_d"]) == ("a_b", "a b", "(x)", "c d")
