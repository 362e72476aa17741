"""Which images make up a step: shares, aspects, ranks, and that nothing depends on the way to it."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hf_grounding_dino.data.records import DataError, Record, SourceEntry
from hf_grounding_dino.data.sampling import BatchSampler, Sample, micro_batches, rank_part
from listed_records import ListedRecords

WIDE, HIGH = (60, 40), (40, 60)


class Stream:
    """Records from a list, from the beginning only."""

    name, label_names, category_ids, findings = "stream", (), (), ()

    def __init__(self, length: int) -> None:
        self.records = make_source([None] * length).records

    def __iter__(self) -> Iterator[Record]:
        return iter(self.records)

    def shard(self, index: int, count: int) -> Stream:
        raise NotImplementedError


def make_source(sizes: Sequence[tuple[int, int] | None]) -> ListedRecords:
    records = [
        Record(image_id=i, image=Path("none.png"), boxes=torch.zeros(0, 4), size=size) for i, size in enumerate(sizes)
    ]
    return ListedRecords(name="listed", records=records)


def entry(**options: Any) -> SourceEntry:
    return SourceEntry(format="coco", annotations="a.json", **options)


def make_plan(*, weights: Sequence[float] = (1,), lengths: Sequence[int] = (10,), batch_size: int = 4) -> BatchSampler:
    sources = [make_source([WIDE] * length) for length in lengths]
    return BatchSampler(sources, [entry(weight=weight) for weight in weights], batch_size=batch_size, seed=5)


def counts(plan: BatchSampler, steps: range) -> Counter[tuple[int, int]]:
    return Counter((sample.source, sample.index) for step in steps for sample in plan.batch(step))


# --- shares ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("weight", "length", "batch_size", "first_steps", "times"),
    [
        (1, 10, 4, [0, 2, 5, 7, 10], (10, 4)),
        (0.5, 5, 1, [0, 2, 5, 7, 10], (5, 1)),
        (2.5, 4, 2, [0, 5, 10, 15, 20], (10, 5)),
        (1, 3, 8, [0, 0, 0, 1, 1], (3, 8)),
    ],
)
def test_each_record_comes_as_often_as_its_weight_says(
    weight: float, length: int, batch_size: int, first_steps: list[int], times: tuple[int, int]
) -> None:
    """10 records by 4: 2.5 steps an epoch, so 10 steps are 4 epochs. 5 of weight 0.5 come 2, then 3 at a time.

    4 of weight 2.5 come 10 an epoch, 5 times each in two epochs; 3 by 8 come 8 times each in three steps.
    """
    plan = make_plan(weights=[weight], lengths=[length], batch_size=batch_size)
    assert [plan.first_step(epoch) for epoch in range(5)] == first_steps
    assert all(plan.first_step(plan.epoch_of(step)) <= step for step in range(10))
    steps, number = times
    for start in (0, steps):
        assert counts(plan, range(start, start + steps)) == Counter({(0, i): number for i in range(length)})


def test_weights_are_exact_decimals() -> None:
    """0.29 * 100 is 28.999999999999996 in floating point; an epoch takes 29.

    10 records of weight 0.001 give one image in 100 epochs, beside the 200 of the other source.
    """
    assert make_plan(weights=[0.29], lengths=[100], batch_size=1).first_step(1) == 29
    plan = make_plan(weights=[1, 0.001], lengths=[2, 10], batch_size=1)
    assert plan.first_step(100) == 201
    assert sum(number for (source, _), number in counts(plan, range(201)).items() if source) == 1


def test_an_epoch_size_cycles_through_the_records() -> None:
    """3 of 7 records an epoch: the 6 of two epochs differ, and 7 epochs are 21 images, 3 of each record."""
    plan = BatchSampler([make_source([WIDE] * 7)], [entry(epoch_size=3, weight=9)], batch_size=1, seed=0)
    assert len(counts(plan, range(6))) == 6
    assert counts(plan, range(21)) == Counter({(0, i): 3 for i in range(7)})


def test_sources_are_shuffled_together() -> None:
    """12 records once and 6 twice, by 6: four steps an epoch, nearly all of both sources, in a new order each time."""
    plan = make_plan(weights=[1, 2], lengths=[12, 6], batch_size=6)
    assert plan.steps_per_epoch == 4
    assert counts(plan, range(4)) == Counter({(0, i): 1 for i in range(12)} | {(1, i): 2 for i in range(6)})
    mixed = [{sample.source for sample in plan.batch(step)} for step in range(40)]
    assert mixed.count({0, 1}) > 30
    order = [[(sample.source, sample.index) for step in range(e, e + 4) for sample in plan.batch(step)] for e in (0, 4)]
    assert order[0] != order[1]


def test_other_halves_come_in_later_permutations() -> None:
    """20 records, 10 an epoch: epochs 0 and 1 are the halves of one permutation; those of the next are others."""
    plan = make_plan(weights=[0.5], lengths=[20], batch_size=10)
    halves = [frozenset(counts(plan, range(step, step + 1))) for step in range(8)]
    assert all(not one & other for one, other in zip(halves[::2], halves[1::2], strict=True))
    assert len(set(halves)) == 8


def test_every_step_lies_in_its_epoch() -> None:
    """3 sources of 1 record and weight 0.3 give nothing in epochs 0 to 2 and 3 images in epoch 3 (4 * 0.3 = 1.2)."""
    plan = make_plan(weights=[0.3] * 3, lengths=[1] * 3, batch_size=1)
    assert [plan.epoch_of(step) for step in range(7)] == [3, 3, 3, 6, 6, 6, 9]
    assert counts(plan, range(6)) == Counter({(source, 0): 2 for source in range(3)})


# --- aspects -----------------------------------------------------------------------------------------------------


def test_batches_are_of_one_aspect_but_for_one_an_epoch() -> None:
    """13 wide, square or unknown and 7 high images by 4: batches 3 wide, 1 high and one of 1 wide and 3 high."""
    source = make_source([WIDE] * 11 + [(50, 50), None] + [HIGH] * 7)
    plan = BatchSampler([source], [entry()], batch_size=4, seed=0)
    for epoch in range(5):
        batches = [plan.batch(step) for step in range(plan.first_step(epoch), plan.first_step(epoch + 1))]
        portrait = [[sample.index >= 13 for sample in batch] for batch in batches]
        assert sorted(map(sum, portrait)) == [0, 0, 0, 3, 4]
        assert [True, True, True, False] in portrait
        assert len({sample.index for batch in batches for sample in batch}) == 20


def test_batches_are_of_similar_aspects() -> None:
    """640 images from 1:2 to 2:1 by 10, all in one pool: a batch spans 1 of 64 equal parts and a little.

    Nearly all of 128 batches of two epochs have other company.
    """
    rng = np.random.default_rng(0)
    sizes = [(int(1000 * 2**power), 1000) for power in rng.permutation(np.linspace(-1, 1, 640))]
    plan = BatchSampler([make_source(sizes)], [entry()], batch_size=10, seed=0)
    powers = [[math.log2(sizes[sample.index][0] / 1000) for sample in plan.batch(step)] for step in range(64)]
    assert max(max(batch) - min(batch) for batch in powers) < 2 * 2 / 64 + 0.02
    assert len({tuple(sample.index for sample in plan.batch(step)) for step in range(128)}) > 110


# --- purity ------------------------------------------------------------------------------------------------------


def test_a_step_depends_on_nothing_but_its_number() -> None:
    """Asked from step 37 on, backwards, or from the beginning: the same images with the same seeds."""
    through = [make_plan(weights=[0.7, 1.3], lengths=[9, 11]).batch(step) for step in range(60)]
    plan = make_plan(weights=[0.7, 1.3], lengths=[9, 11])
    running = [plan.batch(step) for step in range(60)]
    assert running == through
    assert [make_plan(weights=[0.7, 1.3], lengths=[9, 11]).batch(step) for step in range(59, 36, -1)] == (
        through[:36:-1]
    )


def test_each_drawing_has_its_own_seed() -> None:
    """30 steps of 4 from 10 records and 5: 120 drawings with 120 seeds of 63 bits; another seed, another order."""
    plan = make_plan(weights=[1, 1], lengths=[10, 5])
    seeds = [sample.seed for step in range(30) for sample in plan.batch(step)]
    source = [make_source([WIDE] * 40)]
    one, other = (BatchSampler(source, [entry()], batch_size=8, seed=seed).batch(0) for seed in (0, 1))
    assert {sample.index for sample in one} != {sample.index for sample in other}
    assert not {sample.seed for sample in one} & {sample.seed for sample in other}
    assert len(set(seeds)) == 120
    assert all(0 <= seed < 2**63 for seed in seeds)


# --- streams -----------------------------------------------------------------------------------------------------


def test_a_stream_is_drawn_in_its_own_order() -> None:
    """3 of a stream and 5 listed an epoch, by 4: over 20 steps the stream's positions are 0 to 29, ascending."""
    sources = [make_source([WIDE, HIGH] * 4), Stream(4)]
    plan = BatchSampler(sources, [entry(epoch_size=5), entry(epoch_size=3)], batch_size=4, seed=0)
    positions = [sample.index for step in range(20) for sample in plan.batch(step) if sample.source == 1]
    assert positions == list(range(30))
    again = BatchSampler(sources, [entry(epoch_size=5), entry(epoch_size=3)], batch_size=4, seed=0)
    assert [plan.batch(step) for step in range(13, 20)] == [again.batch(step) for step in range(13, 20)]


# --- parts of a step ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("world", [1, 2, 3, 4, 6, 12])
def test_the_parts_of_all_ranks_are_the_batch(world: int) -> None:
    batch = make_plan(batch_size=12).batch(3)
    parts = [rank_part(batch, rank, world) for rank in range(world)]
    assert [sample for part in parts for sample in part] == batch
    assert {len(part) for part in parts} == {12 // world}


def test_pieces_are_as_equal_as_can_be() -> None:
    """10 images, at most 4 at once: 3 pieces of 3, 3 and 4."""
    samples = [Sample(0, i, i) for i in range(10)]
    pieces = micro_batches(samples, 4)
    assert [sample for piece in pieces for sample in piece] == samples
    assert sorted(map(len, pieces)) == [3, 3, 4]
    assert micro_batches(samples, 10) == micro_batches(samples, 99) == [samples]
    assert micro_batches(samples, 1) == [[sample] for sample in samples]


# --- refusals ----------------------------------------------------------------------------------------------------


def test_what_cannot_be_divided_is_refused() -> None:
    batch = make_plan(batch_size=4).batch(0)
    with pytest.raises(ValueError, match="4 images cannot be divided among 3 processes"):
        rank_part(batch, 0, 3)
    with pytest.raises(ValueError, match="rank 2 of 2"):
        rank_part(batch, 2, 2)
    with pytest.raises(ValueError, match="micro_batch_size"):
        micro_batches(batch, 0)
    with pytest.raises(ValueError, match="steps count from 0"):
        make_plan().batch(-1)


@pytest.mark.parametrize(
    ("source", "options", "message"),
    [
        (make_source([]), {}, "listed: the data set holds no record"),
        (make_source([WIDE]), {"weight": 0.0}, "listed: weight must be positive, not 0.0"),
        (make_source([WIDE]), {"weight": float("nan")}, "weight must be positive, not nan"),
        (make_source([WIDE]), {"epoch_size": 0}, "listed: epoch_size must be at least 1, not 0"),
        (Stream(3), {}, "stream: a stream has no known length"),
    ],
)
def test_a_share_that_makes_no_sense_is_refused(source: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        BatchSampler([source], [entry(**options)], batch_size=1, seed=0)


def test_a_plan_needs_a_source_and_a_batch() -> None:
    with pytest.raises(DataError, match="nothing to train on"):
        BatchSampler([], [], batch_size=1, seed=0)
    with pytest.raises(ValueError, match="batch_size must be at least 1"):
        make_plan(batch_size=0)
