"""From a name to tasks: the protocol that each benchmark gets, and what the options change about it."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from evaluation.roots import COUNT, NAMES, coco, true_answers, write_answers, write_root
from hf_grounding_dino.data.records import DataError, SourceEntry
from hf_grounding_dino.data.shapes import CATEGORIES, write_odvg
from hf_grounding_dino.evaluation.assembly import Wishes, benchmark_tasks, source_task
from hf_grounding_dino.evaluation.benchmarks import BENCHMARKS, find_benchmark
from hf_grounding_dino.evaluation.lvis import LvisDetection
from hf_grounding_dino.evaluation.predictions import PredictionStore
from hf_grounding_dino.evaluation.runner import score
from hf_grounding_dino.evaluation.sets import CaptionTask, CaseTask, ExpressionTask

PLAIN = Wishes()
METRICS = {
    "detection": "CocoDetection",
    "lvis": "LvisDetection",
    "expressions": "ReferringExpressions",
    "generalized expressions": "GeneralizedReferring",
    "phrases": "PhraseGrounding",
    "descriptions": "DescribedObjects",
    "open vocabulary": "OpenVocabularyCoco",
}
ROOTED = [benchmark.name for benchmark in BENCHMARKS if benchmark.name != "odinw35"]


@pytest.fixture(scope="module")
def roots(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Gives the data root of a benchmark."""
    home = tmp_path_factory.mktemp("roots")
    return cache(lambda name: write_root(name, home / name))


def tasks_of(name: str, roots: Any, **wishes: Any) -> list[CaseTask]:
    return benchmark_tasks(find_benchmark(name), roots(name), Wishes(**wishes))


def perfect(task: CaseTask, folder: Path) -> dict[str, float]:
    """The scores of what is there (law 18)."""
    store: PredictionStore = write_answers(folder, true_answers(task))
    return score(task, store).numbers


# --- benchmarks --------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:.*fewer than 10000")
@pytest.mark.parametrize("name", ROOTED)
def test_what_is_there_scores_one(name: str, roots: Any, tmp_path: Path) -> None:
    """Law 18. AR1 and AR10 allow fewer boxes than there are things; P@k and R@k with their k do not."""
    for task in tasks_of(name, roots):
        numbers = perfect(task, tmp_path / task.name)
        whole = {key: value for key, value in numbers.items() if key not in ("AR1", "AR10")}
        assert set(whole.values()) <= {1, -1} and 1 in whole.values(), (task.name, numbers)
        for headline in ("AP", "FULL", "P@1", "R@1", "F1"):
            assert numbers.get(headline, 1) == 1


def test_the_protocol_is_that_of_the_benchmark(roots: Any) -> None:
    """Recipe of mmdetection: 300 boxes a picture or a prompt, 30 of an expression; 40 labels a prompt for LVIS."""
    for name in ROOTED:
        benchmark = find_benchmark(name)
        for task in tasks_of(name, roots):
            protocol = task.ask.protocol
            assert protocol["top_k"] == benchmark.top_k
            assert protocol.get("chunk_labels") == benchmark.chunk_size
            assert protocol.get("top_k_of_each_prompt", False) == name.startswith(("lvis", "d3"))
            assert type(task.metric()).__name__ == METRICS[benchmark.kind]


def test_the_words_of_the_prompts(roots: Any) -> None:
    """Names are cleaned for the model and left as they are for people; in LVIS "(ring)" goes, too."""
    for name in ("coco", "lvis_minival"):
        (task,) = tasks_of(name, roots)
        assert task.labels == {1: "red_circle", 3: "blue (ring)", 5: "green square"}
        assert list(task.ask.protocol["prompts"].values()) == ["red circle", "blue", "green square"]
    sets = {task.name: task.ask.protocol for task in tasks_of("odinw13", roots)}
    assert len(sets) == 13
    assert sets["CottontailRabbits"]["prompts"]["1"] == ["", "rabbit", ""]
    assert sets["CottontailRabbits"]["prompts"]["3"] == ["", "blue", ""], "a class without a prompt has its name"
    assert sets["Packages"]["prompts"]["1"] == ["there is a ", "package", " on the porch"]
    assert sets["pothole"]["prompts"]["1"] == "red circle"


def test_open_vocabulary_has_65_classes(roots: Any) -> None:
    """Of 66 in the file one is neither base nor novel; it is not asked for and its boxes are not there."""
    (task,) = tasks_of("ov_coco", roots)
    assert len(task.labels) == 65 == len(task.ask.protocol["prompts"]) and "hair drier" not in task.labels.values()


def test_sets_of_expressions(roots: Any) -> None:
    """Of the file that three sets share, a third each."""
    assert [task.name for task in tasks_of("refcoco", roots)] == ["refcoco_val", "refcoco_testA", "refcoco_testB"]
    for name in ("refcoco", "refcoco+", "refcocog"):
        first = tasks_of(name, roots)[0]
        assert {case.reference["dataset_name"] for case in first} == {name} and len(first) == COUNT
    assert {len(case.reference["boxes"]) for case in tasks_of("grefcoco", roots)[0]} > {0, 1}


def test_lvis_pictures_are_found_by_their_address(roots: Any) -> None:
    (task,) = tasks_of("lvis_val", roots)
    assert {Path(str(case.image)).parent.name for case in task} == {"train2017", "val2017"}
    assert all("neg_category_ids" in case.reference for case in task)


def test_shapes_needs_no_root() -> None:
    """64 names in one prompt; of the unseen set, the pairs kept out of training are novel."""
    seen, unseen, referring = benchmark_tasks(find_benchmark("shapes"), None, PLAIN)
    assert [task.name for task in (seen, unseen, referring)] == ["shapes_seen", "shapes_unseen", "shapes_referring"]
    assert list(seen.ask.protocol["prompts"].values()) == list(CATEGORIES)
    assert [len(task) for task in (seen, unseen, referring)] == [500, 500, 500]
    assert {"novel_AP", "base_AP"} <= set(perfect_numbers(unseen.first(2)))
    assert perfect_numbers(referring.first(2))["P@1"] == 1
    assert referring.ask.protocol["top_k"] == 30


def perfect_numbers(task: CaseTask) -> dict[str, float]:
    metric = task.metric()
    for (case_id, answer), case in zip(true_answers(task).items(), task, strict=True):
        metric.add(prediction=answer.as_prediction(case_id), reference=case.reference)
    return metric.compute()


# --- wishes ------------------------------------------------------------------------------------------------------


def test_wishes_change_the_protocol(roots: Any) -> None:
    for name in ("coco", "lvis_minival", "ov_coco"):
        (task,) = tasks_of(name, roots, chunk_size=2, top_k=7)
        assert (task.ask.protocol["chunk_labels"], task.ask.protocol["top_k"]) == (2, 7)
    for name in ("refcoco", "flickr30k", "d3", "grefcoco"):
        assert tasks_of(name, roots, top_k=7)[0].ask.protocol["top_k"] == 7
    (one_by_one,) = tasks_of("d3", roots, chunk_size=1)
    assert one_by_one.ask.protocol == tasks_of("d3_parallel", roots)[0].ask.protocol


COUNTS_LIKE_MMDETECTION: dict[str, Callable[[Any], bool]] = {
    "coco": lambda metric: 1000 in metric.limits,
    "ov_coco": lambda metric: 1000 in metric.limits,
    "grefcoco": lambda metric: metric.mmdet_compatible,
    "flickr30k": lambda metric: metric.mmdet_compatible,
    "d3": lambda metric: metric.miss_unasked,
}


@pytest.mark.parametrize("name", COUNTS_LIKE_MMDETECTION)
def test_metrics_count_as_mmdetection_does(name: str, roots: Any) -> None:
    for wanted in (False, True):
        metric = tasks_of(name, roots, mmdet_compatible=wanted)[0].metric()
        assert COUNTS_LIKE_MMDETECTION[name](metric) == wanted


@pytest.mark.parametrize(
    ("name", "wishes", "message"),
    [
        ("refcoco", {"chunk_size": 5}, "RefCOCO has sentences instead of labels: there is no chunk size"),
        ("flickr30k", {"chunk_size": 5}, "Flickr30k Entities has sentences instead of labels"),
        ("d3", {"chunk_size": 5}, "has all sentences of a picture in one prompt, or 1 in each"),
        ("odinw13", {"chunk_size": 5}, "CottontailRabbits: has labels with prompts of their own"),
        ("coco", {"reading": "expressions"}, "COCO val2017 says itself what its sentences are"),
    ],
)
def test_a_wish_that_cannot_be_is_refused(name: str, wishes: Any, message: str, roots: Any) -> None:
    with pytest.raises(DataError, match=message):
        tasks_of(name, roots, **wishes)


@pytest.mark.parametrize("name", ["coco", "lvis_minival", "refcoco_testA", "flickr30k_val", "d3", "ov_coco"])
def test_missing_pictures_are_refused_or_left_out(name: str, tmp_path: Path) -> None:
    """One of three pictures is gone: 2 of 3 cases stay, of RefCOCO with three expressions a picture 6 of 9."""
    write_root(find_benchmark(name).name, tmp_path)
    next(tmp_path.rglob("0001.png")).unlink()
    with pytest.raises(DataError, match=r"1 of 3 pictures are not there \(.*0001\.png\)"):
        benchmark_tasks(find_benchmark(name), tmp_path, PLAIN)
    tasks = benchmark_tasks(find_benchmark(name), tmp_path, Wishes(leave_out_missing=True))
    assert all(len(task) == 2 * len(task.left_out) > 0 for task in tasks)
    assert all(len(task.missing) >= 1 for task in tasks)


def test_a_part_knows_what_it_leaves_out(roots: Any) -> None:
    (task,) = tasks_of("coco", roots)
    part = task.first(2).first(1)
    assert (list(part.case_ids), part.left_out) == ([7], {14, 21})
    assert task.first(9).left_out == frozenset()


# --- data sets of one's own --------------------------------------------------------------------------------------


def test_a_coco_file_of_ones_own(tmp_path: Path) -> None:
    """A label map gives other words to some names; a file of LVIS's fields is judged by fixed AP in chunks of 40."""
    file, words = tmp_path / "mine.json", tmp_path / "words.json"
    file.write_text(json.dumps(coco(tmp_path)))
    words.write_text(json.dumps({"blue (ring)": "azure hoop"}))
    entry = SourceEntry(format="coco", annotations=str(file), images=str(tmp_path), label_map=str(words))
    task = source_task(entry, PLAIN)
    assert task.name == "mine" and list(task.labels.values()) == list(NAMES)
    assert task.ask.protocol["prompts"] == {"1": "red circle", "3": "azure hoop", "5": "green square"}
    lvis = source_task(SourceEntry(format="lvis", annotations=str(file)), PLAIN)
    assert isinstance(lvis.metric(), LvisDetection) and lvis.ask.protocol["chunk_labels"] == 40
    with pytest.raises(DataError, match="mine: has labels instead of captions, so none is an expression"):
        source_task(entry, Wishes(reading="expressions"))


def test_sets_of_other_formats(tmp_path: Path) -> None:
    """Labels as they are; captions by their phrases, or each as one expression."""
    labels = source_task(
        SourceEntry(
            format="odvg",
            annotations=str(write_odvg(tmp_path / "a", count=2, seed=0, split="val", task="detection")),
            images=str(tmp_path / "a" / "images"),
            label_map=str(tmp_path / "a" / "label_map.json"),
        ),
        Wishes(chunk_size=9, mmdet_compatible=True),
    )
    metric: Any = labels.metric()
    assert labels.ask.protocol["chunk_labels"] == 9 and 1000 in metric.limits
    assert perfect_numbers(labels)["AP"] == 1
    lines = write_odvg(tmp_path / "b", count=2, seed=0, split="val", task="referring")
    entry = SourceEntry(format="odvg", annotations=str(lines), images=str(tmp_path / "b" / "images"))
    phrases, expressions = source_task(entry, PLAIN), source_task(entry, Wishes(reading="expressions"))
    assert isinstance(phrases, CaptionTask) and isinstance(expressions, ExpressionTask)
    assert (phrases.ask.protocol["top_k"], expressions.ask.protocol["top_k"]) == (300, 30)
    assert perfect_numbers(phrases)["R@1"] == 1 == perfect_numbers(expressions)["P@1"]
    with pytest.raises(DataError, match="has captions instead of labels: there is no chunk size"):
        source_task(entry, Wishes(chunk_size=9))
