from __future__ import annotations

import pytest

from hf_grounding_dino.evaluation.benchmarks import BENCHMARKS, find_benchmark
from hf_grounding_dino.evaluation.published import Checkpoint, checkpoints, find_checkpoint, published

TINY = "IDEA-Research/grounding-dino-tiny"
BEST_TINY = "openmmlab-community/mm_grounding_dino_tiny_o365v1_goldg_grit_v3det"
METRICS = {
    "detection": {"AP"},
    "lvis": {"AP", "APr", "APc", "APf"},
    "expressions": {"P@1", "P@5", "P@10"},
    "generalized expressions": {"F1", "N-acc"},
    "phrases": {"R@1", "R@5", "R@10"},
    "descriptions": {
        f"{part}{words}" for part in ("FULL", "PRES", "ABS") for words in ("", "_1-3", "_4-6", "_7-9", "_10+")
    },
    "open vocabulary": {f"{part}{metric}" for part in ("", "base_", "novel_") for metric in ("AP", "AP50")},
}
EVERY = pytest.mark.parametrize("checkpoint", checkpoints(), ids=lambda one: one.id)


def values(model: str, benchmark: str, **wanted: object) -> dict[str, float]:
    found = [n for n in published(model, benchmark) if all(getattr(n, key) == value for key, value in wanted.items())]
    return {number.metric: number.value for number in found}


def test_the_family_is_whole() -> None:
    """Two of IDEA, eight of OpenMMLab, three of LLMDet; no name stands for two of them."""
    owners = [one.id.split("/")[0] for one in checkpoints()]
    assert {owner: owners.count(owner) for owner in owners} == {
        "IDEA-Research": 2, "openmmlab-community": 8, "iSEE-Laboratory": 3,
    }  # fmt: skip
    names = [name.lower() for one in checkpoints() for name in (one.id, *one.aliases)]
    assert len(names) == len(set(names))


@EVERY
def test_every_number_is_of_a_benchmark_and_a_metric_of_its_kind(checkpoint: Checkpoint) -> None:
    known = {name for benchmark in BENCHMARKS for name in benchmark.names}
    assert checkpoint.numbers
    for number in checkpoint.numbers:
        assert number.benchmark in known
        assert number.metric in METRICS[find_benchmark(number.benchmark).kind]
        assert 0 < number.value < 100
        assert number.doubt or number.source != "secondary"
        assert number.note or number.mark != "saw the data"


@EVERY
def test_an_average_lies_between_its_parts(checkpoint: Checkpoint) -> None:
    """A digit put wrong shows: AP between APr, APc and APf, FULL between its lengths, P@1 below P@5 below P@10."""
    rows: dict[object, dict[str, float]] = {}
    for n in checkpoint.numbers:
        rows.setdefault((n.benchmark, n.source, n.mark, n.chunk_size, n.note), {})[n.metric] = n.value
    for row in rows.values():
        for whole, parts in [
            ("AP", ("APr", "APc", "APf")),
            *((k, tuple(p for p in row if p.startswith(k + "_"))) for k in row),
        ]:
            if parts and set(parts) <= set(row):
                assert min(row[part] for part in parts) <= row[whole] <= max(row[part] for part in parts)
        for letter in "PR":
            ranked = [row[f"{letter}@{k}"] for k in (1, 5, 10) if f"{letter}@{k}" in row]
            assert ranked == sorted(ranked)


def test_the_numbers_to_be_reached() -> None:
    """Recipe, section 9: what an evaluation that follows the protocol gives, without any training."""
    assert values(TINY, "coco", source="paper", mark="zero-shot") == {"AP": 48.4}
    assert values(TINY, "lvis_minival", source="mm-eval")["AP"] == 28.8
    assert values(BEST_TINY, "coco", mark="zero-shot") == {"AP": 50.4}
    assert list(values(BEST_TINY, "lvis_minival", mark="zero-shot").values()) == [41.4, 34.2, 37.4, 46.2]
    assert values(BEST_TINY, "odinw13") == {"AP": 53.3}
    assert values(BEST_TINY, "odinw35") == {"AP": 23.2}
    assert values("iSEE-Laboratory/llmdet_tiny", "lvis_minival")["AP"] == 44.7


def test_numbers_are_found_by_part_and_by_whole() -> None:
    """RefCOCO has three splits of three numbers each, zero-shot."""
    assert len([n for n in published(BEST_TINY, "refcoco") if n.mark == "zero-shot"]) == 9
    assert values(BEST_TINY, "refcoco_testA", mark="zero-shot") == {"P@1": 59.1, "P@5": 91.0, "P@10": 95.5}
    chunked = [n.value for n in published("iSEE-Laboratory/llmdet_large", "lvis_minival") if n.chunk_size == 80]
    assert chunked[0] == 52.4


def test_a_model_goes_by_its_other_names_but_a_folder_does_not() -> None:
    """A folder that is called like a repository may hold a model that was trained further."""
    assert find_checkpoint("rziga/llmdet_tiny") == find_checkpoint("ISEE-Laboratory/LLMDet_tiny")
    assert find_checkpoint("runs/grounding-dino-tiny") is None
    assert published("runs/grounding-dino-tiny", "coco") == []
    with pytest.raises(ValueError, match="no benchmark is called 'voco'"):
        published(TINY, "voco")


def test_no_model_that_trained_on_coco_is_called_zero_shot_on_it() -> None:
    for checkpoint in checkpoints():
        trained = any(text.startswith("COCO") or "(COCO" in text for text in checkpoint.data)
        marks = {number.mark for number in checkpoint.numbers if number.benchmark == "coco"}
        assert ("zero-shot" not in marks) if trained else ("saw the data" not in marks)
