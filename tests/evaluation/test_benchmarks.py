from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from hf_grounding_dino.data.records import DataError
from hf_grounding_dino.evaluation.benchmarks import BENCHMARKS, Benchmark, find_benchmark, odinw_mean, odinw_sets

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


def test_odinw_has_a_part_for_each_set(tmp_path: Path) -> None:
    """13 of 35 sets; rabbits are called by another name than in the file; potholes in ODinW-35 only."""
    every = odinw_sets("odinw35")
    assert len(every) == 35 == len({split.name for split in every}) == len({split.annotations for split in every})
    for split in every:
        touch(tmp_path / "odinw" / split.annotations[0])
        (tmp_path / "odinw" / split.images[0]).mkdir(parents=True, exist_ok=True)
    for name, count in (("odinw13", 13), ("odinw35", 35)):
        parts = {part.name: part for part in find_benchmark(name).parts(tmp_path)}
        assert len(parts) == count
        assert parts["Aquarium"].options["prompts"] == {}
        assert [prompt.text for prompt in parts["CottontailRabbits"].options["prompts"].values()] == ["rabbit"]
        assert bool(parts["pothole"].options["prompts"]) == (name == "odinw35")


def test_the_name_within_a_prompt() -> None:
    """The words before it, with the space, are 15 characters, and the name is 5; chess pieces are renamed."""
    sets = {split.name: split for split in odinw_sets("odinw35")}
    prompt = sets["pothole"].options["prompts"][1]
    assert (prompt.text, prompt.span) == ("there are some holes on the road", (15, 20))
    names = [sets["ChessPieces"].options["prompts"][i].name for i in range(1, 14)]
    assert names[:3] == ["", "black bishop", "black king"] and names[12] == "white rook"


SETS = [split.name for split in odinw_sets("odinw13")]


def test_odinw_mean() -> None:
    """12 sets of 0.5 and one of 0.24: (6 + 0.24) / 13 = 0.48."""
    scores = dict.fromkeys(SETS, 0.5)
    assert odinw_mean(scores | {"pistols": 0.24}, SETS) == pytest.approx(0.48)
    for wrong, message in (
        ({"pistols": 53.3}, r"not pistols 53\.3"),
        ({"pistols": float("nan")}, "not pistols nan"),
        ({"dice": 0.1}, "benchmark of 13: dice"),
    ):
        with pytest.raises(ValueError, match=message):
            odinw_mean(scores | wrong, SETS)


def test_a_missing_set_is_named() -> None:
    scores = dict.fromkeys(SETS, 0.5) | {"pothole": -1.0}
    del scores["Raccoon"]
    with pytest.raises(ValueError, match="2 of 13 sets of ODinW have no score: pothole, Raccoon"):
        odinw_mean(scores, SETS)
    with pytest.warns(UserWarning, match="pothole, Raccoon"):
        assert odinw_mean(scores, SETS, partial=True) == 0.5
    with pytest.raises(ValueError, match="13 of 13"):
        odinw_mean({}, SETS, partial=True)


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
        assert str(error.value).startswith(f"{tmp_path}: {benchmark.title} needs {missing}, which does not exist")
        assert benchmark.source in str(error.value) and "\n" not in str(error.value)
        if position == 0:
            touch(tmp_path / missing)
        else:
            (tmp_path / missing).mkdir(parents=True)
    assert replace(benchmark, splits=(split,)).parts(tmp_path)


def test_a_missing_root_is_named(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"nowhere: no such folder; COCO val2017 can be downloaded from https://cocodataset"
    ):
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
