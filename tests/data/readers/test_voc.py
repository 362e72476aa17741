"""Pascal VOC folders read into records: pixels counted from 1, splits as lists of names, images found."""

from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from hf_grounding_dino.data.readers import open_records
from hf_grounding_dino.data.records import DataError, RecordSet, SourceEntry


def part(name: str, corners: tuple[Any, ...], difficult: int = 0) -> str:
    sides = "".join(f"<{side}>{n}</{side}>" for side, n in zip(("xmin", "ymin", "xmax", "ymax"), corners, strict=True))
    return f"<object><name>{name}</name><difficult>{difficult}</difficult><bndbox>{sides}</bndbox></object>"


def save(root: Path, stem: str, *parts: str, size: tuple[int, int] = (100, 80), filename: str | None = None) -> Path:
    for folder in ("Annotations", "JPEGImages"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (100, 80)).save(root / "JPEGImages" / f"{stem}.jpg")
    path = root / "Annotations" / f"{stem}.xml"
    head = f"<filename>{filename or f'{stem}.jpg'}</filename>"
    head += f"<size><width>{size[0]}</width><height>{size[1]}</height><depth>3</depth></size>"
    path.write_text(f'<?xml version="1.0"?>\n<annotation>{head}{"".join(parts)}</annotation>')
    return path


def save_split(root: Path, split: str, *lines: str) -> None:
    (root / "ImageSets" / "Main").mkdir(parents=True, exist_ok=True)
    (root / "ImageSets" / "Main" / f"{split}.txt").write_text("\n".join(lines) + "\n")


def read(path: Path, **options: Any) -> RecordSet:
    return open_records(SourceEntry(format="voc", annotations=str(path), **options))


def ids(records: RecordSet) -> list[int | str]:
    return [records[i].image_id for i in range(len(records))]


CAT = part("cat", (1, 1, 10, 20))


def test_pixels_are_counted_from_1_and_ends_are_inclusive(tmp_path: Path) -> None:
    """Columns 1 to 10 are x from 0 to 10; the whole image is 1 to 100 and 1 to 80."""
    save(tmp_path, "a", part("dog", (1, 1, 10, 20)), part("cat", (1, 1, 100, 80)))
    save(tmp_path, "b")
    records = read(tmp_path)
    assert ids(records) == ["a", "b"] and len(records[1].boxes) == 0
    assert records[0].boxes.tolist() == [[0, 0, 10, 20], [0, 0, 100, 80]]
    assert records.label_names == ("cat", "dog") and records.category_ids == (0, 1)
    assert records[0].labels.tolist() == [1, 0]
    assert records[0].size == records.size(0) == (100, 80)
    assert records[0].image == tmp_path / "JPEGImages" / "a.jpg"
    assert records[0].crowd is None and [finding.kind for finding in records.findings] == ["no boxes"]


def test_difficult_objects_are_crowd(tmp_path: Path) -> None:
    save(tmp_path, "a", CAT, part("cat", (30, 30, 40, 40), difficult=1))
    records = read(tmp_path)
    assert records[0].crowd.tolist() == [False, True]
    assert [(f.kind, f.what) for f in records.findings] == [
        ("crowd", "1 of 2 boxes are difficult; kept, not trained on")
    ]


def test_a_part_of_an_object_is_not_its_box(tmp_path: Path) -> None:
    hand = "<part><name>hand</name><bndbox><xmin>5</xmin><ymin>5</ymin><xmax>6</xmax><ymax>6</ymax></bndbox></part>"
    save(tmp_path, "a", CAT.replace("<bndbox>", hand + "<bndbox>"))
    records = read(tmp_path)
    assert records.label_names == ("cat",) and records[0].boxes.tolist() == [[0, 0, 10, 20]]


class TestSplits:
    def test_train_where_there_is_one_and_labels_of_all_splits(self, tmp_path: Path) -> None:
        save(tmp_path, "a", CAT)
        save(tmp_path, "b", part("dog", (1, 1, 5, 5)))
        save_split(tmp_path, "train", "a", "a", "gone")
        save_split(tmp_path, "val", "b")
        train, val = read(tmp_path), read(tmp_path, split="val")
        assert ids(train) == ["a"] and ids(val) == ["b"]
        assert train.label_names == val.label_names == ("cat", "dog")
        assert [finding.kind for finding in train.findings] == ["duplicate id", "malformed entry", "unused category"]
        with pytest.raises(DataError, match="has no split 'test'"):
            read(tmp_path, split="test")

    def test_a_folder_for_each_split_with_images_beside_the_files(self, tmp_path: Path) -> None:
        path = save(tmp_path, "a", CAT)
        (tmp_path / "valid").mkdir()
        path.rename(tmp_path / "valid" / "a.xml")
        (tmp_path / "JPEGImages" / "a.jpg").rename(tmp_path / "valid" / "a.jpg")
        (tmp_path / "JPEGImages").rmdir()
        path.parent.rmdir()
        records = read(tmp_path, split="valid")
        assert ids(records) == ["a"] and records[0].image == tmp_path / "valid" / "a.jpg"


class TestImages:
    def test_a_renamed_image_is_found_by_the_name_of_the_xml(self, tmp_path: Path) -> None:
        save(tmp_path, "a", CAT, filename="C:\\old\\b.png")
        assert read(tmp_path)[0].image == tmp_path / "JPEGImages" / "a.jpg"

    def test_missing_images_are_left_out(self, tmp_path: Path) -> None:
        save(tmp_path, "a", CAT)
        path = save(tmp_path, "b", CAT)
        (tmp_path / "JPEGImages" / "b.jpg").unlink()
        records = read(tmp_path)
        assert ids(records) == ["a"]
        assert [(finding.kind, finding.where) for finding in records.findings] == [("missing image", str(path))]

    def test_a_size_of_zero_is_unknown(self, tmp_path: Path) -> None:
        save(tmp_path, "a", CAT, size=(0, 0))
        records = read(tmp_path)
        assert records.size(0) is None and records.findings == ()


class TestRefusals:
    def test_entities_are_refused(self, tmp_path: Path) -> None:
        path = save(tmp_path, "a", CAT)
        path.write_text('<!DOCTYPE a [<!ENTITY b "bbbb"><!ENTITY c "&b;&b;">]><annotation>&c;</annotation>')
        with pytest.raises(DataError, match=r"a\.xml: XML that declares entities is not read"):
            read(tmp_path)

    def test_a_file_that_is_cut_off_and_objects_without_names_or_numbers(self, tmp_path: Path) -> None:
        save(tmp_path, "a", CAT, part("", (1, 1, 9, 9)), part("cat", ("x", 1, 9, 9)))
        cut = save(tmp_path, "b", CAT)
        cut.write_text(cut.read_text()[:-10])
        records = read(tmp_path)
        assert ids(records) == ["a"] and len(records[0].boxes) == 1
        assert [f.kind for f in records.findings] == ["malformed entry", "no category", "malformed box"]

    def test_a_label_map_gives_order_and_leaves_out_others(self, tmp_path: Path) -> None:
        save(tmp_path, "a", CAT, part("dog", (1, 1, 9, 9)))
        (tmp_path / "names.txt").write_text("cow\ncat\n")
        records = read(tmp_path, label_map=str(tmp_path / "names.txt"))
        assert records.label_names == ("cow", "cat")
        assert records[0].labels.tolist() == [1]
        assert [finding.kind for finding in records.findings] == ["unknown category", "unused category"]

    @pytest.mark.parametrize(("name", "message"), [("gone", "no such folder"), (".", "no XML files")])
    def test_nothing_there(self, tmp_path: Path, name: str, message: str) -> None:
        with pytest.raises(DataError, match=message):
            read(tmp_path / name)


def test_folders_below_annotations(tmp_path: Path) -> None:
    """Annotations/a/1.xml goes with JPEGImages/a/1.jpg and not with b/1.jpg, whose name is the same."""
    for folder, width in (("a", 40), ("b", 60)):
        image = tmp_path / "JPEGImages" / folder / "1.jpg"
        image.parent.mkdir(parents=True)
        Image.new("RGB", (width, 30)).save(image)
        xml = tmp_path / "Annotations" / folder / "1.xml"
        xml.parent.mkdir(parents=True)
        box = "<bndbox><xmin>2</xmin><ymin>3</ymin><xmax>20</xmax><ymax>25</ymax></bndbox>"
        size = f"<size><width>{width}</width><height>30</height></size>"
        xml.write_text(
            f"<annotation><filename>1.jpg</filename>{size}<object><name>cat</name>{box}</object></annotation>"
        )
    records = read(tmp_path)
    assert ids(records) == ["a/1", "b/1"]
    assert [records[i].image for i in range(2)] == [tmp_path / "JPEGImages" / name / "1.jpg" for name in "ab"]
    assert not [finding for finding in records.findings if finding.kind == "wrong size"]
