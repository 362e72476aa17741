"""Pictures in folders, tar shards and tables; names that would lead out of the output folder."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import datasets
import pytest
from PIL import Image

from annotation.fake_annotation import label
from hf_grounding_dino.annotation.answers import AnnotationError
from hf_grounding_dino.annotation.files import name_problem
from hf_grounding_dino.annotation.sources import FileSource, TableSource, TarSource, open_table
from hf_grounding_dino.data.pictures import open_picture

EVIL = ["../../x.jpg", "/x.jpg", "a/../../x.jpg", "..\\x.jpg", "C:\\x.jpg", ".annotate/run.jpg", "a\nb.jpg"]


def png(red: int) -> bytes:
    content = io.BytesIO()
    Image.new("RGB", (8, 6), (red, 0, 0)).save(content, format="PNG")
    return content.getvalue()


def tar(path: Path, members: dict[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, content in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return path


def reds(source: FileSource | TarSource | TableSource) -> dict[str, int]:
    """The red of each picture, by its name."""
    pictures = (open_picture(source.picture(i)) for i in range(len(source.names)))
    return {name: one.getpixel((0, 0))[0] for name, one in zip(source.names, pictures, strict=True)}  # type: ignore[index]


def test_files(tmp_path: Path) -> None:
    for red, name in enumerate(("b/x.png", "a/x.png", "a.png")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(png(red))
    source = FileSource.of([*tmp_path.rglob("*.png"), tmp_path / "a/../a.png"], tmp_path)
    assert reds(source) == {"a.png": 2, "a/x.png": 1, "b/x.png": 0}
    assert list(source.names) == sorted(source.names)
    with pytest.raises(AnnotationError, match="is not below"):
        FileSource.of([tmp_path / "a.png"], tmp_path / "a")


def test_web_dataset(tmp_path: Path) -> None:
    """A sample is all members of one stem; its picture is what ends in a picture's extension, or in the given one."""
    members = {"./001.jpg": png(1), "001.json": b"{}", "001.seg.png": png(9), "sub/002.JPG": png(2)}
    first = tar(tmp_path / "train-000.tar", members)
    second = tar(tmp_path / "train-001.tar", {"001.jpg": png(3)})
    source = TarSource.of([second, first])
    assert reds(source) == {"train-000/001.jpg": 1, "train-000/sub/002.JPG": 2, "train-001/001.jpg": 3}
    assert reds(TarSource.of([first, second], "seg.png")) == {"train-000/001.seg.png": 9}
    with pytest.raises(AnnotationError, match=r"there is jpg, json, seg\.png"):
        TarSource.of([first], "webp")


def test_broken_shards(tmp_path: Path) -> None:
    whole = tar(tmp_path / "a.tar", {f"{i}.png": png(i) for i in range(20)})
    (tmp_path / "cut.tar").write_bytes(whole.read_bytes()[:9000])
    (tmp_path / "text.tar").write_text("no archive" * 100)
    with tarfile.open(tmp_path / "packed.tar", "w:gz") as archive:
        archive.add(whole, "1.png")
    for name in ("cut", "text", "packed"):
        with pytest.raises(AnnotationError, match=rf"{name}\.tar: not a whole, uncompressed tar file"):
            TarSource.of([whole, tmp_path / f"{name}.tar"])
    with pytest.raises(AnnotationError, match="No such file"):
        TarSource.of([tmp_path / "none.tar"])


def table(rows: list[dict[str, object]]) -> datasets.Dataset:
    features = datasets.Features({"id": datasets.Value("int64"), "image": datasets.Image()})
    return datasets.Dataset.from_list([{"id": i, "image": row} for i, row in enumerate(rows)], features=features)


def test_tables(tmp_path: Path) -> None:
    named = table([{"bytes": png(1), "path": "b.png"}, {"bytes": png(2), "path": "a.png"}])
    assert reds(TableSource.of(named)) == {"a.png": 2, "b.png": 1}
    nameless = table([{"bytes": png(1), "path": None}, {"bytes": png(2), "path": "a.png"}])
    assert reds(TableSource.of(nameless)) == {"00000000.jpg": 1, "00000001.jpg": 2}
    alike = table([{"bytes": png(i), "path": "image.png"} for i in range(3)])
    assert reds(TableSource.of(alike)) == {"00000000.jpg": 0, "00000001.jpg": 1, "00000002.jpg": 2}
    assert reds(TableSource.of(alike.select([2, 0]))) == {"00000000.jpg": 2, "00000001.jpg": 0}
    with pytest.raises(AnnotationError, match="no column picture, only id, image"):
        TableSource.of(named, "picture")
    named.save_to_disk(tmp_path / "saved")
    assert len(TableSource.of(open_table(str(tmp_path / "saved"))).names) == 2


def test_a_folder_by_datasets(tmp_path: Path) -> None:
    for red, name in enumerate(("cat/x.png", "dog/x.png")):
        (tmp_path / "in" / name).parent.mkdir(parents=True)
        (tmp_path / "in" / name).write_bytes(png(red))
    paths = [str(path) for path in sorted((tmp_path / "in").rglob("*.png"))]
    source = TableSource.of(datasets.Dataset.from_dict({"image": paths}).cast_column("image", datasets.Image()))
    assert reds(source) == {"cat/x.png": 0, "dog/x.png": 1}
    assert source.root == tmp_path / "in"
    with pytest.raises(AnnotationError, match="cannot be loaded"):
        open_table(str(tmp_path / "none"))


@pytest.mark.parametrize("name", EVIL)
def test_names_that_lead_out(name: str) -> None:
    assert name_problem(name) is not None


@pytest.mark.parametrize("name", ["a.jpg", "a/b.jpg", "..a/b...jpg", "é ü.jpg", "a..b/c.jpg", "x/.annotate.jpg"])
def test_names_that_stay(name: str) -> None:
    assert name_problem(name) is None


def test_names_that_no_file_can_have() -> None:
    assert name_problem("x" * 300 + ".jpg") is not None
    assert name_problem("\udce9.jpg") is not None
    assert name_problem("") is not None


@pytest.mark.parametrize("format", ["yolo", "voc", "labelme", "coco"])
def test_nothing_is_written_outside(tmp_path: Path, format: str) -> None:
    """7 evil names in a table, and the same in a shard: each is recorded, the good one labelled, nothing is outside."""
    rows: list[dict[str, object]] = [{"bytes": png(1), "path": name} for name in [*EVIL, "good.png"]]
    shard = tar(tmp_path / "in/s.tar", {name: png(1) for name in [*EVIL, "good.png"]})
    for kind, source in (("table", TableSource.of(table(rows))), ("shard", TarSource.of([shard], None))):
        output = tmp_path / "deep/er" / kind
        summary = label(source, output, format)
        assert summary.done - len(summary.problems) >= 1
        if kind == "table":
            assert sorted(name for name, _ in summary.problems) == sorted(EVIL)
        outside = [path for path in tmp_path.rglob("*") if path.is_file() and not path.is_relative_to(output)]
        assert [path for path in outside if path != shard and "table" not in path.parts] == []
