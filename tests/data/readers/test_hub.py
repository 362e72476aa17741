"""Sets of Hugging Face `datasets` read into records, from local files alone and with sockets blocked."""

import io
import json
import pickle
import socket
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, IterableDataset

from hf_grounding_dino.data.images import load_image
from hf_grounding_dino.data.readers import open_records
from hf_grounding_dino.data.records import DataError, Record, RecordSet, RecordStream, SourceEntry

LABELS = datasets.ClassLabel(names=["cat", "hot_dog"])


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a socket was opened")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)


def png(width: int = 100, height: int = 80, red: int = 0) -> bytes:
    content = io.BytesIO()
    Image.new("RGB", (width, height), (red, 0, 0)).save(content, "PNG")
    return content.getvalue()


def objects(*boxes: Sequence[float], categories: Sequence[Any] | None = None, **more: Any) -> dict[str, Any]:
    return {"bbox": [list(box) for box in boxes], "category": list(categories or [0] * len(boxes)), **more}


def save_parquet(path: Path, rows: list[dict[str, Any]], category: Any = LABELS) -> Path:
    """Rows without an image get one of 100 x 80 pixels whose red is their number."""
    rows = [{"image": {"bytes": png(red=i), "path": None}, **row} for i, row in enumerate(rows)]
    table = datasets.Dataset.from_list(rows)
    columns: dict[str, Any] = {**table.features, "image": datasets.Image()}
    if category is not None and "objects" in columns:
        columns["objects"] = {**columns["objects"], "category": datasets.List(category)}
    table.cast(datasets.Features(columns)).to_parquet(path)
    return path


def open_set(path: Path, **options: Any) -> RecordSet | RecordStream:
    return open_records(SourceEntry(format="datasets", annotations=str(path), **options))


def read(path: Path, **options: Any) -> RecordSet:
    records = open_set(path, **options)
    assert isinstance(records, RecordSet)
    return records


def stream(path: Path, **options: Any) -> RecordStream:
    records = open_set(path, streaming=True, **options)
    assert isinstance(records, RecordStream) and not isinstance(records, RecordSet)
    return records


def kinds(records: RecordSet | RecordStream) -> list[str]:
    return [finding.kind for finding in records.findings]


def red(record: Record) -> int:
    return int(load_image(record.image).getpixel((0, 0))[0])


class TestDetection:
    def test_boxes_names_and_embedded_images(self, tmp_path: Path) -> None:
        """A box xywh (10, 20, 30, 40) is xyxy (10, 20, 40, 60)."""
        rows = [
            {"objects": objects([10, 20, 30, 40], [0, 0, 100, 80], categories=[1, 0])},
            {"objects": objects([1, 2, 3, 4])},
        ]
        records = read(save_parquet(tmp_path / "a.parquet", rows))
        assert len(records) == 2
        assert records.label_names == ("cat", "hot dog") and records.category_ids == (0, 1)
        assert records[0].boxes.tolist() == [[10, 20, 40, 60], [0, 0, 100, 80]]
        assert records[0].labels.tolist() == [1, 0]
        assert records[1].size == records.size(1) == (100, 80)
        assert [red(records[i]) for i in range(2)] == [0, 1]
        assert isinstance(records[0].image, bytes) and records[1].image_id == 1
        assert records.findings == ()

    def test_area_crowd_and_ids(self, tmp_path: Path) -> None:
        both = objects([1, 2, 3, 4], [9, 9, 9, 9], area=[7.5, 80.0], iscrowd=[0, 1])
        records = read(save_parquet(tmp_path / "a.parquet", [{"image_id": 42, "objects": both}]))
        assert records[0].image_id == 42
        assert records[0].area.tolist() == [7.5, 80.0]
        assert records[0].crowd.tolist() == [False, True]
        assert kinds(records) == ["crowd", "unused category"]

    def test_a_list_of_mappings_is_a_mapping_of_lists(self, tmp_path: Path) -> None:
        (tmp_path / "1.png").write_bytes(png())
        line = {"file_name": "1.png", "objects": [{"bbox": [1, 2, 3, 4], "category": "dog"}, {"bbox": [5, 5, 5, 5]}]}
        path = tmp_path / "a.jsonl"
        path.write_text(json.dumps(line) + "\n")
        records = read(path)
        assert records.label_names == ("dog",) and records[0].image == tmp_path / "1.png"
        assert records[0].boxes.tolist() == [[1, 2, 4, 6]]
        assert kinds(records) == ["no category"]

    def test_numbers_need_names(self, tmp_path: Path) -> None:
        rows = [{"objects": objects([1, 2, 3, 4], [5, 5, 5, 5], categories=[7, 9])}]
        path = save_parquet(tmp_path / "a.parquet", rows, category=None)
        with pytest.raises(DataError, match="without names: give label_map"):
            read(path)
        (tmp_path / "names.json").write_text('{"7": "cat", "8": "dog"}')
        records = read(path, label_map=str(tmp_path / "names.json"))
        assert records.category_ids == (7, 8) and len(records[0].boxes) == 1
        assert kinds(records) == ["unknown category", "unused category"]

    def test_what_cannot_be_used_is_named_with_its_row(self, tmp_path: Path) -> None:
        rows = [
            {"id": 1, "objects": objects([1, 2, 3, 4])},
            {"id": 1, "objects": objects([1, 2, 3, 4])},
            {"id": 2, "objects": objects([1, 2, 3, 4], categories=[0, 1])},
            {"id": 3, "objects": objects([1, 2, 3, 4]), "image": {"bytes": b"none", "path": None}},
            {"id": 4, "objects": objects([90, 2, 30, 4])},
        ]
        path = save_parquet(tmp_path / "a.parquet", rows)
        records = read(path)
        expected = ["duplicate id", "malformed entry", "unreadable image", "outside box", "unused category"]
        assert kinds(records) == expected
        assert [f.where for f in records.findings[:4]] == [f"{path}, row {row}" for row in (1, 2, 3, 4)]
        assert [records[i].image_id for i in range(len(records))] == [1, 4]
        assert red(records[1]) == 4


class TestLayout:
    """In an image of 100 x 80 the xyxy box (60, 50, 90, 70), read as xywh, would end at (150, 120)."""

    def test_xyxy_is_recognised(self, tmp_path: Path) -> None:
        rows = [{"objects": objects([60, 50, 90, 70])}, {"objects": objects([1, 2, 3, 4])}] * 2
        rows += [{"objects": objects([70, 50, 90, 70])}]
        path = save_parquet(tmp_path / "a.parquet", rows)
        with pytest.raises(DataError, match=r"in 3 of 5 images .* look like xyxy"):
            read(path)
        with pytest.raises(DataError, match=r"in 3 of 5 images .* look like xyxy"):
            stream(path)

    def test_half_of_them_is_not_most(self, tmp_path: Path) -> None:
        rows = [{"objects": objects([60, 50, 90, 70])}, {"objects": objects([1, 2, 3, 4])}]
        assert kinds(read(save_parquet(tmp_path / "a.parquet", rows))) == ["outside box", "unused category"]

    def test_the_set_may_say_so(self, tmp_path: Path) -> None:
        rows = [{"objects": objects([60, 50, 90, 70], bbox_format="xyxy")}]
        assert read(save_parquet(tmp_path / "a.parquet", rows))[0].boxes.tolist() == [[60, 50, 90, 70]]


class TestGrounding:
    def rows(self) -> list[dict[str, Any]]:
        phrases = [
            {"phrase": "a cat", "tokens_positive": [[1, 6]], "bbox": [[1, 2, 30, 40], [5, 5, 50, 50]]},
            {"phrase": "mat", "tokens_positive": None, "bbox": [[0, 40, 100, 80]]},
            {"phrase": "dog", "tokens_positive": [[3, 99]], "bbox": [[0, 40, 100, 80]]},
            {"phrase": "dog", "tokens_positive": None, "bbox": [[0, 40, 100, 80]]},
        ]
        return [{"caption": " a cat on a mat ", "phrases": phrases}, {"caption": "nothing", "phrases": []}]

    @pytest.mark.parametrize("streaming", [False, True])
    def test_captions_with_spans(self, tmp_path: Path, streaming: bool) -> None:
        """The blank before the caption is cut off, and span 1 to 6 becomes 0 to 5; "mat" is looked up: 11 to 14."""
        records = open_set(save_parquet(tmp_path / "a.parquet", self.rows()), streaming=streaming)
        first, second = records if isinstance(records, RecordStream) else (records[0], records[1])
        assert first.caption == "a cat on a mat" and first.labels is None and records.label_names == ()
        assert first.spans == (((0, 5),), ((0, 5),), ((11, 14),))
        assert first.boxes.tolist() == [[1, 2, 30, 40], [5, 5, 50, 50], [0, 40, 100, 80]]
        assert second.caption == "nothing" and second.spans == () and len(second.boxes) == 0
        assert kinds(records)[:2] == ["span past the end", "no phrase"]


class TestSources:
    ROWS = [{"objects": objects([1, 2, 3, 4])}, {"objects": objects([5, 5, 9, 9])}]

    @pytest.mark.parametrize("streaming", [False, True])
    def test_a_folder_of_images_with_metadata(self, tmp_path: Path, streaming: bool) -> None:
        for i, split in enumerate(("train", "train", "validation")):
            folder = tmp_path / "set" / split
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"{i}.png").write_bytes(png(red=i))
            with (folder / "metadata.jsonl").open("a") as file:
                boxes = {"bbox": [[1, 2, 3, 4 + i]], "category": ["cat"]}
                file.write(json.dumps({"file_name": f"{i}.png", "objects": boxes}) + "\n")
        (tmp_path / "names.txt").write_text("cat\n")
        for split, numbers in ((None, [0, 1]), ("validation", [2])):
            options = {"label_map": str(tmp_path / "names.txt"), "split": split, "streaming": streaming}
            records = open_set(tmp_path / "set", **options)
            each = list(records) if isinstance(records, RecordStream) else [records[i] for i in range(len(records))]
            assert [red(record) for record in each] == numbers
            assert [record.boxes.tolist() for record in each] == [[[1, 2, 4, 6 + i]] for i in numbers]

    def test_a_folder_that_was_saved(self, tmp_path: Path) -> None:
        table = datasets.load_dataset("parquet", data_files=str(save_parquet(tmp_path / "a.parquet", self.ROWS)))
        table.save_to_disk(tmp_path / "all")
        table["train"].save_to_disk(tmp_path / "one")
        assert len(read(tmp_path / "all")) == len(read(tmp_path / "one")) == 2
        assert len(list(stream(tmp_path / "all"))) == len(list(stream(tmp_path / "one"))) == 2
        with pytest.raises(DataError, match="has no split 'val', only train"):
            read(tmp_path / "all", split="val")

    def test_worker_processes_get_a_copy(self, tmp_path: Path) -> None:
        records = pickle.loads(pickle.dumps(read(save_parquet(tmp_path / "a.parquet", self.ROWS))))
        assert red(records[1]) == 1

    @pytest.mark.parametrize(
        ("name", "message"),
        [("gone.parquet", "cannot be loaded"), ("a.xlsx", "ends in none of"), ("names.csv", "none is an image")],
    )
    def test_what_cannot_be_loaded(self, tmp_path: Path, name: str, message: str) -> None:
        (tmp_path / "a.xlsx").write_bytes(b"")
        (tmp_path / "names.csv").write_text("a,b\n1,2\n")
        with pytest.raises(DataError, match=message) as error:
            read(tmp_path / name)
        assert "\n" not in str(error.value) and str(tmp_path / name) in str(error.value)

    def test_columns_that_are_missing(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match=r"has columns image, caption; needed: objects, or caption and phrases"):
            read(save_parquet(tmp_path / "a.parquet", [{"caption": "a cat"}]))


class _Torch(IterableDataset[int]):
    """What a loader reads: each worker reads its part."""

    def __init__(self, records: RecordStream) -> None:
        self.records = records

    def __iter__(self) -> Iterator[int]:
        worker = torch.utils.data.get_worker_info()
        part = self.records if worker is None else self.records.shard(worker.id, worker.num_workers)
        return (red(record) for record in part)


class TestStreams:
    """Ten images, in one file or five; their reds are 0 to 9."""

    @pytest.fixture(params=[1, 5])
    def records(self, request: pytest.FixtureRequest, tmp_path: Path) -> RecordStream:
        rows = [{"objects": objects([1, 2, 3, 4])}] * 10
        save_parquet(tmp_path / "a.parquet", rows)
        table = datasets.load_dataset("parquet", data_files=str(tmp_path / "a.parquet"), split="train")
        (tmp_path / "set").mkdir()
        for i in range(request.param):
            part = table.shard(request.param, i, contiguous=True)
            part.to_parquet(tmp_path / "set" / f"train-{i:05d}-of-{request.param:05d}.parquet")
        return stream(tmp_path / "set")

    def test_all_in_order_again_and_again(self, records: RecordStream) -> None:
        assert [red(record) for record in records] == [red(record) for record in records] == list(range(10))
        assert [record.image_id for record in records] == list(range(10))

    @pytest.mark.parametrize("count", [1, 2, 5])
    def test_parts_hold_each_record_once(self, records: RecordStream, count: int) -> None:
        parts = [[red(record) for record in records.shard(i, count)] for i in range(count)]
        assert sorted(number for part in parts for number in part) == list(range(10))
        again = [records.shard(i, count).shard(worker, 2) for i in range(count) for worker in range(2)]
        assert sorted(red(record) for part in again for record in part) == list(range(10))
        assert all(part == sorted(part) for part in parts)
        ids = [record.image_id for i in range(count) for record in records.shard(i, count)]
        assert len(set(ids)) == 10

    def test_workers_of_a_loader_divide_it_once(self, records: RecordStream) -> None:
        """`datasets` divides by workers as well, where it is iterated by itself: then most records would be lost."""
        loader = DataLoader(_Torch(records.shard(0, 1)), batch_size=None, num_workers=2)
        assert sorted(loader) == list(range(10))

    def test_findings_are_there_after_reading(self, tmp_path: Path) -> None:
        path = save_parquet(tmp_path / "a.parquet", [{"objects": objects([90, 2, 30, 4])}])
        records = stream(path)
        assert kinds(records) == []
        for _ in range(2):
            assert [record.boxes.tolist() for record in records] == [[[90, 2, 100, 6]]]
            assert kinds(records) == ["outside box"]

    def test_names_in_rows_need_a_label_map(self, tmp_path: Path) -> None:
        rows = [{"objects": objects([1, 2, 3, 4], categories=["cat"])}]
        path = save_parquet(tmp_path / "a.parquet", rows, category=None)
        with pytest.raises(DataError, match="streaming needs a label_map"):
            stream(path)
