"""From a name to tasks: the protocol that each benchmark gets, and what the options change about it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from evaluation.roots import COUNT, NAMES, coco, truth_as_predictions, write_predictions, write_root
from hf_grounding_dino.data.records import DataError, Record, SourceEntry
from hf_grounding_dino.data.shapes import CATEGORIES, write_odvg
from hf_grounding_dino.evaluation.benchmarks import BENCHMARKS, find_benchmark
from hf_grounding_dino.evaluation.datasets import TaskOptions, benchmark_tasks, records_task, source_task
from hf_grounding_dino.evaluation.metrics.lvis import LvisDetection
from hf_grounding_dino.evaluation.prompting import CaptionPrompting, ExpressionPrompting
from hf_grounding_dino.evaluation.runner import score
from hf_grounding_dino.evaluation.tasks import Task
from hf_grounding_dino.inference.predictions import PredictionStore
from listed_records import ListedRecords

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


def tasks_of(name: str, roots: Any, **options: Any) -> list[Task]:
    return benchmark_tasks(find_benchmark(name), roots(name), TaskOptions(**options))


def perfect(task: Task, folder: Path) -> dict[str, float]:
    """The scores of what is there (law 18)."""
    store: PredictionStore = write_predictions(folder, truth_as_predictions(task))
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
    """Recipe of mmdetection: 300 boxes a image or a prompt, 30 of an expression; 40 labels a prompt for LVIS."""
    for name in ROOTED:
        benchmark = find_benchmark(name)
        for task in tasks_of(name, roots):
            protocol = task.prompting.protocol
            assert protocol["top_k"] == benchmark.top_k
            assert protocol.get("chunk_labels") == benchmark.chunk_size
            assert protocol.get("top_k_of_each_prompt", False) == name.startswith(("lvis", "d3"))
            assert type(task.new_metric()).__name__ == METRICS[benchmark.kind]


def test_the_words_of_the_prompts(roots: Any) -> None:
    """Names are cleaned for the model and left as they are for people; in LVIS "(ring)" goes, too."""
    for name in ("coco", "lvis_minival"):
        (task,) = tasks_of(name, roots)
        assert task.labels == {1: "red_circle", 3: "blue (ring)", 5: "green square"}
        assert list(task.prompting.protocol["prompts"].values()) == ["red circle", "blue", "green square"]
    sets = {task.name: task.prompting.protocol for task in tasks_of("odinw13", roots)}
    assert len(sets) == 13
    assert sets["CottontailRabbits"]["prompts"]["1"] == ["", "rabbit", ""]
    assert sets["CottontailRabbits"]["prompts"]["3"] == ["", "blue", ""], "a class without a prompt has its name"
    assert sets["Packages"]["prompts"]["1"] == ["there is a ", "package", " on the porch"]
    assert sets["pothole"]["prompts"]["1"] == "red circle"


def test_open_vocabulary_has_65_classes(roots: Any) -> None:
    """Of 66 in the file one is neither base nor novel; it is not asked for and its boxes are not there."""
    (task,) = tasks_of("ov_coco", roots)
    assert (
        len(task.labels) == 65 == len(task.prompting.protocol["prompts"]) and "hair drier" not in task.labels.values()
    )


def test_sets_of_expressions(roots: Any) -> None:
    """Of the file that three sets share, a third each."""
    assert [task.name for task in tasks_of("refcoco", roots)] == ["refcoco_val", "refcoco_testA", "refcoco_testB"]
    for name in ("refcoco", "refcoco+", "refcocog"):
        first = tasks_of(name, roots)[0]
        assert {case.reference["dataset_name"] for case in first} == {name} and len(first) == COUNT
    assert {len(case.reference["boxes"]) for case in tasks_of("grefcoco", roots)[0]} > {0, 1}


def test_lvis_images_are_found_by_their_address(roots: Any) -> None:
    (task,) = tasks_of("lvis_val", roots)
    assert {Path(str(case.image)).parent.name for case in task} == {"train2017", "val2017"}
    assert all("neg_category_ids" in case.reference for case in task)


def test_shapes_needs_no_root() -> None:
    """64 names in one prompt; of the unseen set, the pairs kept out of training are novel."""
    seen, unseen, referring = benchmark_tasks(find_benchmark("shapes"), None)
    assert [task.name for task in (seen, unseen, referring)] == ["shapes_seen", "shapes_unseen", "shapes_referring"]
    assert list(seen.prompting.protocol["prompts"].values()) == list(CATEGORIES)
    assert [len(task) for task in (seen, unseen, referring)] == [500, 500, 500]
    assert {"novel_AP", "base_AP"} <= set(perfect_numbers(unseen.first(2)))
    assert perfect_numbers(referring.first(2))["P@1"] == 1
    assert referring.prompting.protocol["top_k"] == 30


def perfect_numbers(task: Task) -> dict[str, float]:
    metric = task.new_metric()
    for (sample_id, answer), case in zip(truth_as_predictions(task).items(), task, strict=True):
        metric.add(prediction=answer.as_prediction(sample_id), reference=case.reference)
    return metric.compute()


# --- options ------------------------------------------------------------------------------------------------------


def test_options_change_the_protocol(roots: Any) -> None:
    for name in ("coco", "lvis_minival", "ov_coco"):
        (task,) = tasks_of(name, roots, chunk_size=2, top_k=7)
        assert (task.prompting.protocol["chunk_labels"], task.prompting.protocol["top_k"]) == (2, 7)
    for name in ("refcoco", "flickr30k", "d3", "grefcoco"):
        assert tasks_of(name, roots, top_k=7)[0].prompting.protocol["top_k"] == 7
    (one_by_one,) = tasks_of("d3", roots, chunk_size=1)
    assert one_by_one.prompting.protocol == tasks_of("d3_parallel", roots)[0].prompting.protocol


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
        metric = tasks_of(name, roots, mmdet_compatible=wanted)[0].new_metric()
        assert COUNTS_LIKE_MMDETECTION[name](metric) == wanted


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("refcoco", {"chunk_size": 5}, "RefCOCO has sentences instead of labels: there is no chunk size"),
        ("flickr30k", {"chunk_size": 5}, "Flickr30k Entities has sentences instead of labels"),
        ("d3", {"chunk_size": 5}, "has all sentences of an image in one prompt, or 1 in each"),
        ("odinw13", {"chunk_size": 5}, "CottontailRabbits: has labels with prompts of their own"),
        ("coco", {"reading": "expressions"}, "COCO val2017 says itself what its sentences are"),
    ],
)
def test_an_option_that_cannot_be_is_refused(name: str, options: Any, message: str, roots: Any) -> None:
    with pytest.raises(DataError, match=message):
        tasks_of(name, roots, **options)


@pytest.mark.parametrize("name", ["coco", "lvis_minival", "refcoco_testA", "flickr30k_val", "d3", "ov_coco"])
def test_missing_images_are_refused_or_left_out(name: str, tmp_path: Path) -> None:
    """One of three images is gone: 2 of 3 cases stay, of RefCOCO with three expressions a image 6 of 9."""
    write_root(find_benchmark(name).name, tmp_path)
    next(tmp_path.rglob("0001.png")).unlink()
    with pytest.raises(DataError, match=r"1 of 3 images are missing \(.*0001\.png\)"):
        benchmark_tasks(find_benchmark(name), tmp_path)
    tasks = benchmark_tasks(find_benchmark(name), tmp_path, TaskOptions(leave_out_missing=True))
    assert all(len(task) == 2 * len(task.left_out) > 0 for task in tasks)
    assert all(len(task.missing) >= 1 for task in tasks)


def test_a_part_knows_what_it_leaves_out(roots: Any) -> None:
    (task,) = tasks_of("coco", roots)
    part = task.first(2).first(1)
    assert (list(part.sample_ids), part.left_out) == ([7], {14, 21})
    assert task.first(9).left_out == frozenset()


# --- data sets of one's own --------------------------------------------------------------------------------------


def test_a_coco_file_of_ones_own(tmp_path: Path) -> None:
    """A label map gives other words to some names; a file of LVIS's fields is judged by fixed AP in chunks of 40."""
    file, words = tmp_path / "mine.json", tmp_path / "words.json"
    file.write_text(json.dumps(coco(tmp_path)))
    words.write_text(json.dumps({"blue (ring)": "azure hoop"}))
    entry = SourceEntry(format="coco", annotations=str(file), images=str(tmp_path), label_map=str(words))
    task = source_task(entry)
    assert task.name == "mine" and list(task.labels.values()) == list(NAMES)
    assert task.prompting.protocol["prompts"] == {"1": "red circle", "3": "azure hoop", "5": "green square"}
    lvis = source_task(SourceEntry(format="lvis", annotations=str(file)))
    assert isinstance(lvis.new_metric(), LvisDetection) and lvis.prompting.protocol["chunk_labels"] == 40
    with pytest.raises(DataError, match="mine: has labels instead of captions, so none is an expression"):
        source_task(entry, TaskOptions(reading="expressions"))


def test_sets_of_other_formats(tmp_path: Path) -> None:
    """Labels as they are; captions by their phrases, or each as one expression."""
    labels = source_task(
        SourceEntry(
            format="odvg",
            annotations=str(write_odvg(tmp_path / "a", count=2, seed=0, split="val", task="detection")),
            images=str(tmp_path / "a" / "images"),
            label_map=str(tmp_path / "a" / "label_map.json"),
        ),
        TaskOptions(chunk_size=9, mmdet_compatible=True),
    )
    metric: Any = labels.new_metric()
    assert labels.prompting.protocol["chunk_labels"] == 9 and 1000 in metric.limits
    assert perfect_numbers(labels)["AP"] == 1
    lines = write_odvg(tmp_path / "b", count=2, seed=0, split="val", task="referring")
    entry = SourceEntry(format="odvg", annotations=str(lines), images=str(tmp_path / "b" / "images"))
    phrases, expressions = source_task(entry, TaskOptions(reading="phrases")), source_task(entry)
    assert isinstance(phrases.prompting, CaptionPrompting) and isinstance(expressions.prompting, ExpressionPrompting)
    assert (phrases.prompting.protocol["top_k"], expressions.prompting.protocol["top_k"]) == (300, 30)
    assert perfect_numbers(phrases)["R@1"] == 1 == perfect_numbers(expressions)["P@1"]
    with pytest.raises(DataError, match="has captions instead of labels: there is no chunk size"):
        source_task(entry, TaskOptions(chunk_size=9))


def boxes_record(image_id: Any = 1, **fields: Any) -> Record:
    values = {"image": b"", "boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64), **fields}
    return Record(image_id=image_id, **values)


@pytest.mark.filterwarnings("ignore:.*fewer than 10000")
def test_labels_of_records_are_category_ids_and_federated_sets_stay_federated() -> None:
    boxes = torch.tensor([[1.0, 1, 3, 5], [0, 0, 9, 9]])
    federated = boxes_record(
        "x", boxes=boxes, labels=torch.tensor([1, 0]), crowd=torch.tensor([False, True]), absent=(1,), incomplete=(0,)
    )
    task = records_task(ListedRecords("mine", [federated, boxes_record("y", absent=())], ("cat", "dog"), (4, 9)))
    reference = task[0].reference
    assert reference["labels"].tolist() == [9, 4] and reference["iscrowd"].tolist() == [False, True]
    assert reference["area"].tolist() == [8, 81]
    assert (reference["neg_category_ids"], reference["not_exhaustive_category_ids"]) == ((9,), (4,))
    assert task.labels == {4: "cat", 9: "dog"} and list(task.sample_ids) == ["x", "y"]
    assert isinstance(task.new_metric(), LvisDetection) and perfect_numbers(task)["AP"] == 1


def test_captions_of_records() -> None:
    """Two captions of one image are two samples; boxes with equal spans are of one phrase; one phrase: expressions."""
    spans = (((0, 3),), ((4, 7), (9, 10)), ((0, 3),))
    record = Record(image_id=1, image=b"", boxes=torch.eye(4)[:3].cumsum(1), caption="cat dog x y", spans=spans)
    task = records_task(ListedRecords("mine", [record, record]))
    assert list(task.sample_ids) == [0, 1]
    assert task[1].phrases == (((0, 3),), ((4, 7), (9, 10)))
    assert task[1].reference["labels"].tolist() == [0, 1, 0] and task[1].reference["image_id"] == 1
    one = replace(record, spans=(((0, 3),),) * 3)
    nothing = replace(record, image_id=2, boxes=torch.zeros(0, 4), spans=())
    task = records_task(ListedRecords("mine", [one, nothing]))
    assert isinstance(task.prompting, ExpressionPrompting)
    assert (list(task.sample_ids), task.left_out) == ([1], {2}), "an expression that means nothing cannot be hit"


def test_useless_sets_are_refused() -> None:
    with pytest.raises(DataError, match="mine: two images have the id 1"):
        records_task(ListedRecords("mine", [boxes_record(), boxes_record()], ("cat",), (0,)))
    with pytest.raises(DataError, match="mine: there is nothing to evaluate on"):
        records_task(ListedRecords("mine", []))


def test_a_coco_file_that_is_federated_is_judged_as_lvis(tmp_path: Path) -> None:
    """An image that says nothing of other categories has been searched for none of them."""
    document = coco(tmp_path)
    document["images"][0] |= {"neg_category_ids": [1], "not_exhaustive_category_ids": []}
    file = tmp_path / "mine.json"
    file.write_text(json.dumps(document))
    task = source_task(SourceEntry(format="coco", annotations=str(file), images=str(tmp_path)))
    assert isinstance(task.new_metric(), LvisDetection)
    assert [sample.reference["neg_category_ids"] for sample in task] == [(1,), (), ()]
