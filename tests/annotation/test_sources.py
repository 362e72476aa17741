"""Images in folders, tar shards and tables; names that would lead out of the output folder."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import datasets
import pytest
from PIL import Image

from annotation.fake_annotation import label
from hf_grounding_dino.annotation.checkpoint import AnnotationError, name_problem
from hf_grounding_dino.annotation.sources import FileSource, TableSource, TarSource, open_table
from hf_grounding_dino.data.images import load_image, remote_content
from odd_server import odd_server

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
    """The red of each image, by its name."""
    images = (load_image(source.image(i)) for i in range(len(source.names)))
    return {name: one.getpixel((0, 0))[0] for name, one in zip(source.names, images, strict=True)}  # type: ignore[index]


def test_files(tmp_path: Path) -> None:
    for red, name in enumerate(("b/x.png", "a/x.png", "a.png")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(png(red))
    source = FileSource.from_paths([*tmp_path.rglob("*.png"), tmp_path / "a/../a.png"], tmp_path)
    assert reds(source) == {"a.png": 2, "a/x.png": 1, "b/x.png": 0}
    assert list(source.names) == sorted(source.names)
    with pytest.raises(AnnotationError, match="is not below"):
        FileSource.from_paths([tmp_path / "a.png"], tmp_path / "a")


def test_web_dataset(tmp_path: Path) -> None:
    """A sample is all members of one stem; its image is what ends in an image's extension, or in the given one."""
    members = {"./001.jpg": png(1), "001.json": b"{}", "001.seg.png": png(9), "sub/002.JPG": png(2)}
    first = tar(tmp_path / "train-000.tar", members)
    second = tar(tmp_path / "train-001.tar", {"001.jpg": png(3)})
    source = TarSource.from_archives([second, first])
    assert reds(source) == {"train-000/001.jpg": 1, "train-000/sub/002.JPG": 2, "train-001/001.jpg": 3}
    assert reds(TarSource.from_archives([first, second], "seg.png")) == {"train-000/001.seg.png": 9}
    with pytest.raises(AnnotationError, match=r"there is jpg, json, seg\.png"):
        TarSource.from_archives([first], "webp")


def test_broken_shards(tmp_path: Path) -> None:
    whole = tar(tmp_path / "a.tar", {f"{i}.png": png(i) for i in range(20)})
    (tmp_path / "cut.tar").write_bytes(whole.read_bytes()[:9000])
    (tmp_path / "text.tar").write_text("no archive" * 100)
    with tarfile.open(tmp_path / "packed.tar", "w:gz") as archive:
        archive.add(whole, "1.png")
    for name in ("cut", "text", "packed"):
        with pytest.raises(AnnotationError, match=rf"{name}\.tar: not a whole, uncompressed tar file"):
            TarSource.from_archives([whole, tmp_path / f"{name}.tar"])
    with pytest.raises(AnnotationError, match="No such file"):
        TarSource.from_archives([tmp_path / "none.tar"])


def table(rows: list[dict[str, object]]) -> datasets.Dataset:
    features = datasets.Features({"id": datasets.Value("int64"), "image": datasets.Image()})
    return datasets.Dataset.from_list([{"id": i, "image": row} for i, row in enumerate(rows)], features=features)


def test_tables(tmp_path: Path) -> None:
    named = table([{"bytes": png(1), "path": "b.png"}, {"bytes": png(2), "path": "a.png"}])
    assert reds(TableSource.from_dataset(named)) == {"a.png": 2, "b.png": 1}
    nameless = table([{"bytes": png(1), "path": None}, {"bytes": png(2), "path": "a.png"}])
    assert reds(TableSource.from_dataset(nameless)) == {"00000000.jpg": 1, "00000001.jpg": 2}
    alike = table([{"bytes": png(i), "path": "image.png"} for i in range(3)])
    assert reds(TableSource.from_dataset(alike)) == {"00000000.jpg": 0, "00000001.jpg": 1, "00000002.jpg": 2}
    assert reds(TableSource.from_dataset(alike.select([2, 0]))) == {"00000000.jpg": 2, "00000001.jpg": 0}
    with pytest.raises(AnnotationError, match="no column photo, only id, image"):
        TableSource.from_dataset(named, "photo")
    named.save_to_disk(tmp_path / "saved")
    assert len(TableSource.from_dataset(open_table(str(tmp_path / "saved"))).names) == 2


def test_a_folder_by_datasets(tmp_path: Path) -> None:
    for red, name in enumerate(("cat/x.png", "dog/x.png")):
        (tmp_path / "in" / name).parent.mkdir(parents=True)
        (tmp_path / "in" / name).write_bytes(png(red))
    paths = [str(path) for path in sorted((tmp_path / "in").rglob("*.png"))]
    typed = datasets.Dataset.from_dict({"image": paths}).cast_column("image", datasets.Image())
    source = TableSource.from_dataset(typed, where=tmp_path / "in")
    assert reds(source) == {"cat/x.png": 0, "dog/x.png": 1}
    assert source.root == tmp_path / "in"
    with pytest.raises(AnnotationError, match="cannot be loaded"):
        open_table(str(tmp_path / "none"))


def test_a_member_that_claims_8_tib_costs_a_line(tmp_path: Path) -> None:
    """A sparse file of 8 TiB takes no room in a tar: its header alone says how large it is."""
    shard = tar(tmp_path / "s.tar", {"a.png": png(1), "b.png": png(2), "c.png": png(3)})
    content = bytearray(shard.read_bytes())
    head = content[1024:1536]  # of b.png; that of a sparse file has another type, a map, and the size when unpacked
    assert head.startswith(b"b.png")
    head[156:157] = tarfile.GNUTYPE_SPARSE
    head[257:265] = b"ustar  \0"
    head[345:500] = bytes(155)
    head[386:410] = b"%011o\0" % 0 + b"%011o\0" % 0
    head[483:495] = b"\x80" + (2**43).to_bytes(11, "big")
    head[148:156] = b" " * 8
    head[148:156] = b"%06o\0 " % sum(head)
    content[1024:1536] = head
    shard.write_bytes(content)
    source = TarSource.from_archives([shard])
    assert list(source.names) == ["s/a.png", "s/b.png", "s/c.png"]
    summary = label(source, tmp_path / "out")
    assert summary.written and [name for name, _ in summary.problems] == ["s/b.png"]
    assert "8,796,093,022,208 bytes" in summary.problems[0][1]


# --- rows that name what lies elsewhere --------------------------------------------------------------------------


def rows_of(column: str, *values: str) -> datasets.Dataset:
    rows = datasets.Dataset.from_dict({"image": list(values)})
    return rows.cast_column("image", datasets.Image()) if column == "typed" else rows


@pytest.mark.parametrize("column", ["typed", "text"])
@pytest.mark.parametrize(
    "elsewhere", ["{here}/private.png", "{here}/in/../private.png", "private.png", "file://{here}/private.png"]
)
def test_rows_may_not_name_files_elsewhere(
    column: str, elsewhere: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One row of three does: it costs a line, and the names of the others stay as they are without it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in/sub").mkdir(parents=True)
    for red, name in enumerate(("in/a.png", "in/sub/b.png", "private.png")):
        (tmp_path / name).write_bytes(png(red))
    odd = elsewhere.format(here=tmp_path)
    table = rows_of(column, "in/a.png", odd, str(tmp_path / "in/sub/b.png"))
    source = TableSource.from_dataset(table, "image", where=tmp_path / "in")
    summary = label(source, tmp_path / "out")
    assert (summary.done, len(summary.problems)) == (3, 1)
    if "://" not in odd:
        images = json.loads((tmp_path / "out/annotations.json").read_text())["images"]
        assert [image["file_name"] for image in images] == ["a.png", "sub/b.png"]
    allowed = TableSource.from_dataset(table, "image", where=tmp_path / "in", allow_local=True)
    assert not label(allowed, tmp_path / "all").problems
    assert sorted(reds(allowed).values()) == [0, 1, 2]


@pytest.mark.parametrize("column", ["typed", "text"])
def test_rows_may_not_name_urls_of_the_local_network(column: str, tmp_path: Path) -> None:
    """Nothing is asked of the server; allowed, it is read, though it knows no ranges, and bad answers are lines."""
    (tmp_path / "a.png").write_bytes(png(7))
    with odd_server(png(7)) as (address, asked):
        names = ["cut", "no_such", "text", "whole"]
        table = rows_of(column, str(tmp_path / "a.png"), *(f"{address}/{name}.png" for name in names))
        summary = label(TableSource.from_dataset(table, "image", where=tmp_path), tmp_path / "out")
        assert (summary.written, len(summary.problems), asked) == (True, 4, [])
        assert all("local network" in reason for _, reason in summary.problems)
        summary = label(TableSource.from_dataset(table, "image", where=tmp_path, allow_local=True), tmp_path / "all")
        assert (summary.written, len(summary.problems), sorted(set(asked))) == (True, 3, names)


def test_what_lies_on_the_hub_may_be_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also in archives there; but by no chain of protocols that reads files of this machine."""
    opened: list[str] = []

    def fake(address: str, mode: str) -> io.BytesIO:
        opened.append(address)
        return io.BytesIO(png(1))

    monkeypatch.setattr("fsspec.open", fake)
    good = ["hf://datasets/a/b/x.png", "zip://x.png::hf://datasets/a/b/x.zip"]
    assert [remote_content(address) for address in good] == [png(1)] * 2
    bad = ["file:///etc/x.png", "file://x.png::hf://a", "zip://x.png::/etc/x.zip", "s3://a/x.png", "ftp://a/x.png"]
    for address in [*bad, "reference://x::hf://a/b", "zip://x.png::http://127.0.0.1/x.zip"]:
        with pytest.raises(ValueError, match="not allowed here"):
            remote_content(address)
    assert opened == good


def test_names_that_could_lead_out_of_a_folder() -> None:
    for name in [*EVIL, "x" * 300 + ".jpg", "\udce9.jpg", ""]:
        assert name_problem(name) is not None, name
    for name in ("a.jpg", "a/b.jpg", "..a/b...jpg", "é ü.jpg", "a..b/c.jpg", "x/.annotate.jpg"):
        assert name_problem(name) is None, name


@pytest.mark.parametrize("format", ["yolo", "voc", "labelme", "coco"])
def test_nothing_is_written_outside(tmp_path: Path, format: str) -> None:
    """7 evil names in a table, and the same in a shard: each is recorded, the good one labelled, nothing is outside."""
    rows: list[dict[str, object]] = [{"bytes": png(1), "path": name} for name in [*EVIL, "good.png"]]
    shard = tar(tmp_path / "in/s.tar", {name: png(1) for name in [*EVIL, "good.png"]})
    for kind, source in (
        ("table", TableSource.from_dataset(table(rows))),
        ("shard", TarSource.from_archives([shard], None)),
    ):
        output = tmp_path / "deep/er" / kind
        summary = label(source, output, format)
        assert summary.done - len(summary.problems) >= 1
        if kind == "table":
            assert sorted(name for name, _ in summary.problems) == sorted(EVIL)
        outside = [path for path in tmp_path.rglob("*") if path.is_file() and not path.is_relative_to(output)]
        assert [path for path in outside if path != shard and "table" not in path.parts] == []
