from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from hf_grounding_dino.data.records import DataError
from hf_grounding_dino.evaluation.benchmarks import BENCHMARKS, Benchmark, find_benchmark
from hf_grounding_dino.evaluation.odinw import ODINW_13, ODINW_35

WITH_SPLITS = [benchmark for benchmark in BENCHMARKS if benchmark.splits]


def touch(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("{}")
    return path


def lay_out(benchmark: Benchmark, root: Path, last: bool = False) -> None:
    """The first place of every file, or the last."""
    for split in benchmark.splits:
        place = -1 if last else 0
        touch(root / split.annotations[place])
        (root / split.images[place]).mkdir(parents=True, exist_ok=True)
        for folder in split.also.values():
            (root / folder).mkdir(exist_ok=True)


@pytest.mark.parametrize("benchmark", WITH_SPLITS, ids=lambda benchmark: benchmark.name)
@pytest.mark.parametrize("last", [False, True], ids=["first places", "last places"])
def test_files_are_found_in_the_root_and_in_each_home(benchmark: Benchmark, last: bool, tmp_path: Path) -> None:
    """A root is the folder of the data set itself or the one that holds many; both give the same parts."""
    for position, home in enumerate(benchmark.homes):
        root = tmp_path / str(position)
        lay_out(benchmark, root / home, last)
        parts = benchmark.parts(root)
        assert [part.name for part in parts] == [split.name for split in benchmark.splits]
        for part in parts:
            assert part.kind == benchmark.kind
            assert part.annotations.is_file() and part.annotations.is_relative_to(root / home)
            assert part.images.is_dir() and part.images.is_relative_to(root / home)


@pytest.mark.parametrize(("name", "sets"), [("odinw13", ODINW_13), ("odinw35", ODINW_35)])
def test_odinw_has_a_part_for_each_set(name: str, sets: tuple[object, ...], tmp_path: Path) -> None:
    """Rabbits are called by another name than in the file; potholes in ODinW-35 only."""
    for one in ODINW_35:
        touch(tmp_path / "odinw" / one.folder / one.annotations)
        (tmp_path / "odinw" / one.folder / one.images).mkdir(exist_ok=True)
    parts = {part.name: part for part in find_benchmark(name).parts(tmp_path)}
    assert len(parts) == len(sets)
    assert parts["Aquarium"].options["prompts"] == {}
    assert [prompt.text for prompt in parts["CottontailRabbits"].options["prompts"].values()] == ["rabbit"]
    assert bool(parts["pothole"].options["prompts"]) == (name == "odinw35")


def test_the_validation_splits_share_a_file(tmp_path: Path) -> None:
    for name in ("refcoco", "refcoco+", "refcocog"):
        lay_out(find_benchmark(name), tmp_path)
        first, second, *_ = find_benchmark(name).parts(tmp_path)
        assert first.annotations.name == "final_refexp_val.json"
        assert first.options == {"dataset_name": name}
        assert second.options == {}


def test_parts_hand_on_what_their_reader_needs(tmp_path: Path) -> None:
    for name in ("d3", "lvis_val"):
        lay_out(find_benchmark(name), tmp_path)
    assert find_benchmark("d3").parts(tmp_path)[0].options == {"groups": tmp_path / "d3_pkl"}
    assert find_benchmark("d3_parallel").chunk_size == 1 and find_benchmark("d3").chunk_size is None
    lvis = find_benchmark("lvis_val").parts(tmp_path)[0]
    assert lvis.images == tmp_path


@pytest.mark.parametrize("benchmark", WITH_SPLITS, ids=lambda benchmark: benchmark.name)
def test_a_missing_file_is_named_with_the_root_and_its_source(benchmark: Benchmark, tmp_path: Path) -> None:
    """Nothing there: the annotations are missed; only these there: the pictures, or the folder beside them."""
    split = benchmark.splits[0]
    images = () if split.images == (".",) else split.images[:1]
    wanted = [split.annotations[0], *images, *split.also.values()]
    for position, missing in enumerate(wanted):
        with pytest.raises(DataError) as error:
            benchmark.parts(tmp_path)
        assert str(error.value).startswith(f"{tmp_path}: {benchmark.title} needs {missing}, which is not there")
        assert benchmark.source in str(error.value) and "\n" not in str(error.value)
        if position == 0:
            touch(tmp_path / missing)
        else:
            (tmp_path / missing).mkdir(parents=True)
    assert replace(benchmark, splits=(split,)).parts(tmp_path)


def test_a_missing_root_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere: no such folder; COCO val2017 is to be had at https://cocodataset"):
        find_benchmark("coco").parts(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("coco", "coco"),
        ("LVIS-minival", "lvis_minival"),
        ("refcoco_plus", "refcoco+"),
        ("refcoco_plus_testA", "refcoco+_testA"),
        ("refcocog/test", "refcocog_test"),
        ("grefcoco_val", "grefcoco_val"),
        ("flickr30k_test", "flickr30k_test"),
    ],
)
def test_names_are_found_as_people_write_them(name: str, found: str) -> None:
    assert find_benchmark(name).name == found


def test_one_split_is_a_benchmark_of_its_own() -> None:
    whole, part = find_benchmark("refcoco"), find_benchmark("refcoco_testB")
    assert whole.names == ("refcoco", "refcoco_val", "refcoco_testA", "refcoco_testB")
    assert part.names == ("refcoco_testB",)
    assert part == replace(whole, name="refcoco_testB", splits=whole.splits[2:])


def test_an_unknown_name_is_told_the_nearest() -> None:
    with pytest.raises(ValueError, match="no benchmark is called 'lvis_minval'; the nearest is 'lvis_minival'"):
        find_benchmark("lvis_minval")


def test_names_are_unique_and_the_protocol_is_that_of_the_papers() -> None:
    """Recipe of mmdetection: 300 boxes a prompt, 30 for an expression; LVIS in chunks of 40 labels."""
    names = [name for benchmark in BENCHMARKS for name in benchmark.names]
    assert len(names) == len(set(names))
    for benchmark in BENCHMARKS:
        assert benchmark.top_k == (30 if "expressions" in benchmark.kind else 300)
        assert benchmark.chunk_size == {"lvis_minival": 40, "lvis_val": 40, "d3_parallel": 1}.get(benchmark.name)
        assert "https://" in benchmark.source
