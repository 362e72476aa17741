"""YOLO folders read into records: which image has which labels, and numbers relative to the upright image."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

from hf_grounding_dino.data.readers import open_records
from hf_grounding_dino.data.readers.names import read_names
from hf_grounding_dino.data.records import DataError, RecordSet, SourceEntry


def save_image(path: Path, size: tuple[int, int] = (200, 100), orientation: int = 1) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.new("RGB", size).save(path, exif=exif)
    return path


def save_text(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def save_yaml(file: Path, /, **document: Any) -> Path:
    return save_text(file, yaml.safe_dump(document))


def read(path: Path, **options: Any) -> RecordSet:
    return open_records(SourceEntry(format="yolo", annotations=str(path), **options))


def found(records: RecordSet) -> list[tuple[str, str]]:
    return [(finding.kind, finding.where) for finding in records.findings]


LINE = "0 0.5 0.5 0.5 0.2\n"


def one_image(root: Path, text: str, **document: Any) -> Path:
    save_image(root / "images" / "train" / "a.png")
    save_text(root / "labels" / "train" / "a.txt", text)
    return save_yaml(root / "data.yaml", **{"train": "images/train", "names": ["cat"], **document})


class TestLines:
    def test_a_box_is_relative_to_the_image(self, tmp_path: Path) -> None:
        """(0.5, 0.5, 0.5, 0.2) of 200 x 100 is x from 50 to 150 and y from 40 to 60."""
        records = read(one_image(tmp_path, LINE))
        assert records[0].boxes.tolist() == [[50, 40, 150, 60]]
        assert records[0].labels.tolist() == [0]
        assert records[0].size == records.size(0) == (200, 100)
        assert records[0].image_id == "images/train/a.png"
        assert records.findings == ()

    def test_relative_to_the_image_as_exif_turns_it(self, tmp_path: Path) -> None:
        """Stored 200 x 100 and turned by 90 degrees it is 100 x 200: x from 25 to 75, y from 80 to 120."""
        path = one_image(tmp_path, LINE)
        (tmp_path / "images" / "train" / "a.png").unlink()
        save_image(tmp_path / "images" / "train" / "a.jpg", orientation=6)
        assert read(path)[0].boxes.tolist() == [[25, 80, 75, 120]]

    def test_the_hull_of_a_polygon(self, tmp_path: Path) -> None:
        """It spans x from 0.1 to 0.6 of 200, y from 0.2 to 0.8 of 100."""
        records = read(one_image(tmp_path, "0 0.1 0.5 0.35 0.2 0.6 0.5 0.35 0.8\n"))
        assert records[0].boxes[0].tolist() == pytest.approx([20, 20, 120, 80])

    def test_keypoints_behind_a_box_are_no_polygon(self, tmp_path: Path) -> None:
        records = read(one_image(tmp_path, "0 0.5 0.5 0.5 0.2 0.1 0.1 0.9 0.9\n", kpt_shape=[2, 2]))
        assert records[0].boxes.tolist() == [[50, 40, 150, 60]]

    def test_what_cannot_be_read_is_named_with_its_line(self, tmp_path: Path) -> None:
        lines = ["0 0.5 0.5", "0 a b c d", "7 0.5 0.5 0.5 0.2", "0.5 0.5 0.5 0.5 0.2", "0 0.5 0.5 0.5 0.2 0.9"]
        records = read(one_image(tmp_path, LINE + "\n".join(lines)))
        label_file = tmp_path / "labels" / "train" / "a.txt"
        kinds = {2: "malformed entry", 3: "malformed entry", 4: "unknown category", 5: "malformed entry"}
        expected = [(kind, f"{label_file}, line {line}") for line, kind in {**kinds, 6: "malformed entry"}.items()]
        assert sorted(found(records)) == sorted(expected)
        assert len(records[0].boxes) == 1

    def test_a_box_that_leaves_the_image_is_clipped(self, tmp_path: Path) -> None:
        """From 0.8 to 1.2 of 200 is 160 to 240, clipped at 200; the second line, from 1.1 on, has nothing inside."""
        records = read(one_image(tmp_path, "0 1.0 0.5 0.4 0.2\n0 1.2 0.5 0.2 0.2\n0 0.2 0.2 nan 0.1\n"))
        assert records[0].boxes[0].tolist() == pytest.approx([160, 40, 200, 60])
        assert {kind for kind, _ in found(records)} == {"outside box", "empty box", "malformed box"}

    def test_pixels_are_refused(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match=r"1 of 1 boxes are far outside .* look like pixels"):
            read(one_image(tmp_path, "0 100 50 100 20\n"))


class TestImages:
    def test_no_label_file_and_an_empty_one_are_images_without_boxes(self, tmp_path: Path) -> None:
        path = one_image(tmp_path, LINE)
        save_image(tmp_path / "images" / "train" / "b.png")
        save_image(tmp_path / "images" / "train" / "c.png")
        save_text(tmp_path / "labels" / "train" / "c.txt", "\n")
        records = read(path)
        assert [len(records[i].boxes) for i in range(3)] == [1, 0, 0]
        assert [finding.what for finding in records.findings] == ["2 of 3 images have no box; kept"]

    def test_labels_without_an_image_and_images_that_are_none(self, tmp_path: Path) -> None:
        path = one_image(tmp_path, LINE)
        orphan = save_text(tmp_path / "labels" / "train" / "b.txt", LINE)
        broken = save_text(tmp_path / "images" / "train" / "c.png", "no image")
        records = read(path)
        assert found(records) == [("missing image", str(orphan)), ("unreadable image", str(broken))]
        assert len(records) == 1

    def test_the_last_folder_images_becomes_labels(self, tmp_path: Path) -> None:
        path = one_image(tmp_path / "images" / "set", LINE)
        assert len(read(path)[0].boxes) == 1

    def test_splits_are_folders_lists_of_folders_and_lists_of_images(self, tmp_path: Path) -> None:
        for name in ("a/images/1.png", "b/images/2.png", "b/images/3.png"):
            label_file = (tmp_path / name.replace("images", "labels")).with_suffix(".txt")
            save_text(label_file, LINE if save_image(tmp_path / name) else "")
        save_text(tmp_path / "list.txt", "./b/images/3.png\n\nb/images/none.png\n")
        path = save_yaml(tmp_path / "set.yaml", train=["a/images", "b/images"], val="list.txt", names={0: "cat"})
        train, val = read(path), read(path, split="val")
        assert [train[i].image_id for i in range(len(train))] == ["a/images/1.png", "b/images/2.png", "b/images/3.png"]
        assert [val[i].image_id for i in range(len(val))] == ["b/images/3.png"]
        assert found(val) == [("missing image", f"{tmp_path / 'list.txt'}, line 3")]
        with pytest.raises(DataError, match=r"set\.yaml: has no split 'test', only train, val"):
            read(path, split="test")

    @pytest.mark.parametrize("stated", [{"path": "."}, {"path": "/gone"}, {"train": "../images/train"}, {}])
    def test_the_root_is_found_where_a_set_was_moved(self, tmp_path: Path, stated: dict[str, Any]) -> None:
        """The folder of a data.yaml stands for it."""
        assert len(read(one_image(tmp_path / "set", LINE, **stated))) == len(read(tmp_path / "set")) == 1

    def test_a_split_that_is_not_there(self, tmp_path: Path) -> None:
        path = one_image(tmp_path, LINE, val="images/val")
        with pytest.raises(DataError, match=r"its 'val' names .*images/val, which is not there"):
            read(path, split="val")


class TestPlainFolders:
    def test_images_are_found_by_the_folder_rule(self, tmp_path: Path) -> None:
        one_image(tmp_path, LINE).unlink()
        names = save_text(tmp_path / "names.txt", "cat\ndog\n")
        records = read(tmp_path / "labels" / "train", label_map=str(names))
        assert records.label_names == ("cat", "dog") and len(records[0].boxes) == 1
        assert [finding.kind for finding in records.findings] == ["unused category"]

    def test_images_beside_the_labels_and_names_in_classes_txt(self, tmp_path: Path) -> None:
        save_image(tmp_path / "a.png")
        save_text(tmp_path / "a.txt", LINE)
        save_text(tmp_path / "classes.txt", "cat\n")
        assert read(tmp_path)[0].image_id == "a.png"

    def test_images_in_a_folder_that_is_named(self, tmp_path: Path) -> None:
        save_image(tmp_path / "images" / "x" / "a.png")
        save_text(tmp_path / "boxes" / "x" / "a.txt", LINE)
        names = save_text(tmp_path / "names.txt", "cat")
        records = read(tmp_path / "boxes", images=str(tmp_path / "images"), label_map=str(names))
        assert len(records[0].boxes) == 1

    def test_without_names(self, tmp_path: Path) -> None:
        save_image(tmp_path / "set" / "a.png")
        save_text(tmp_path / "set" / "a.txt", LINE)
        with pytest.raises(DataError, match="label_map is needed"):
            read(tmp_path / "set")


class TestNames:
    def test_gapped_numbers_keep_their_place(self, tmp_path: Path) -> None:
        """Labels 0 and 3 are positions 0 and 1."""
        records = read(one_image(tmp_path, "3 0.5 0.5 0.5 0.2\n", names={3: "hot_dog", 0: "cat"}))
        assert records.label_names == ("cat", "hot dog") and records.category_ids == (0, 3)
        assert records[0].labels.tolist() == [1]
        assert {finding.kind for finding in records.findings} == {"gapped ids", "unused category"}

    @pytest.mark.parametrize(
        ("name", "text", "message"),
        [
            ("a.yaml", "names: [cat, cat]", "labels 0 and 1 are both called 'cat'"),
            ("a.yaml", "names: [cat, no]", "the name of label 1 is False"),
            ("a.yaml", "names: {x: cat}", "'x' is no number"),
            ("a.yaml", "nc: 3", "no names of labels"),
            ("a.yaml", "names: [cat", "not YAML"),
            ("a.yaml", "cat", "a YAML mapping is needed"),
            ("a.txt", "cat\n\ndog", "the name of label 1 is ''"),
            ("a.json", "7", "no names of labels"),
        ],
    )
    def test_names_that_cannot_be_used(self, tmp_path: Path, name: str, text: str, message: str) -> None:
        with pytest.raises(DataError, match=message) as error:
            read_names(save_text(tmp_path / name, text))
        assert str(error.value).startswith(str(tmp_path / name)) and "\n" not in str(error.value)

    def test_each_kind_of_file(self, tmp_path: Path) -> None:
        texts = {"a.txt": "cat\ndog\n", "a.json": '{"1": "dog", "0": "cat"}', "a.yml": "names: [cat, dog]"}
        for name, text in texts.items():
            assert list(read_names(save_text(tmp_path / name, text)).items()) == [(0, "cat"), (1, "dog")]
