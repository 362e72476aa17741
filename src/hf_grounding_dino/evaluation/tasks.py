"""What an evaluation is made of: samples, the prompts that a model gets, and the metric that judges its predictions."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from ..data.records import DataError, ImageSource
from .metrics.base import ItemId, ItemMetric

if TYPE_CHECKING:
    from .ground_truth import Category
    from .prompting import Prompting

Spans = tuple[tuple[int, int], ...]
NewMetric = Callable[..., ItemMetric[Any]]


class Sample(NamedTuple):
    """One image, and what a model is asked about it.

    sample_id: no other sample of the task has it.
    image: where the pixels are.
    reference: what is there, as the metric of the task takes it, `image_id` equal to `sample_id`.
    text: the caption or the expression; empty where all samples are asked for the labels of the task.
    phrases: of a caption, for each phrase where the caption names it, as (start, end) characters.
    """

    sample_id: ItemId
    image: ImageSource
    reference: Mapping[str, Any]
    text: str = ""
    phrases: tuple[Spans, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Task:
    """One dataset with its protocol.

    name: for people and for file names.
    sample_ids: the `sample_id` of each sample.
    make: gives the sample at a position; called in reader threads.
    prompting: how a model is asked.
    new_metric: makes an empty metric; takes `num_process` and `process_id`.
    categories: of the annotation file; empty where each sample has a text of its own.
    missing: images that are named and do not exist, and were left out.
    left_out: samples that the data has and that are not asked; predictions of them are ignored.
    """

    name: str
    sample_ids: Sequence[ItemId]
    make: Callable[[int], Sample]
    prompting: Prompting
    new_metric: NewMetric
    categories: tuple[Category, ...] = ()
    missing: tuple[str, ...] = ()
    left_out: frozenset[ItemId] = frozenset()

    def __post_init__(self) -> None:
        """Check the ids.

        Raises:
            DataError: two samples have one id, or there is no sample.
        """
        if not self.sample_ids:
            raise DataError(f"{self.name}: there is nothing to evaluate on")
        if len(set(self.sample_ids)) < len(self.sample_ids):
            seen: set[ItemId] = set()
            twice = next(i for i in self.sample_ids if i in seen or seen.add(i))  # type: ignore[func-returns-value]
            raise DataError(f"{self.name}: two images have the id {twice!r}")

    @property
    def labels(self) -> dict[int, str]:
        """Category id to name, as in the annotation file; empty where each sample has a text of its own."""
        return {category.id: category.name for category in self.categories}

    def first(self, count: int) -> Self:
        """The task with its first `count` samples only."""
        ids = self.sample_ids
        return replace(self, sample_ids=ids[:count], left_out=self.left_out.union(ids[count:]))

    def __len__(self) -> int:
        """Number of samples."""
        return len(self.sample_ids)

    def __getitem__(self, index: int) -> Sample:
        """The sample at a position from 0."""
        if not 0 <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        return self.make(index)

    def __iter__(self) -> Iterator[Sample]:
        """All samples."""
        return (self.make(i) for i in range(len(self)))
