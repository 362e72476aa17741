"""What was published of the public checkpoints of the family: the numbers that an evaluation stands beside."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal, get_args

from .benchmarks import Benchmark, find_benchmark, read_table

Source = Literal["paper", "readme", "mm-eval", "secondary"]
Mark = Literal["zero-shot", "saw the data", "fine-tuned"]
Family = Literal["grounding-dino", "mm-grounding-dino", "llmdet"]

TABLE = Path(__file__).with_name("published.yaml")
"""The numbers themselves."""


@dataclass(frozen=True, kw_only=True)
class Number:
    """One published number.

    benchmark: of `benchmarks.py`, or one of its parts, as "refcoco_testA".
    metric: as the metrics here name their scores.
    value: in percent, 0 to 100.
    source: "paper", the authors' paper; "readme", the authors' repository; "mm-eval", the same weights as measured by
        mmdetection; "secondary", seen in neither, only where others cite it.
    mark: "zero-shot"; "saw the data", where its training part or its images were in training; "fine-tuned", by a
        model that was trained further on it, whose weights are not on the Hub.
    chunk_size: labels a prompt, where it is not the benchmark's own.
    note: what to know of it.
    doubt: why it is not to be relied on; empty where nothing speaks against it.
    """

    benchmark: str
    metric: str
    value: float
    source: Source
    mark: Mark
    chunk_size: int | None = None
    note: str = ""
    doubt: str = ""


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A public checkpoint.

    id: its repository on the Hub.
    name: as the papers call it.
    family: whose it is.
    backbone: "swin-t", "swin-b" or "swin-l".
    parameters: number of them.
    data: what it was trained on.
    license: and where that is said.
    numbers: all that was published of it.
    aliases: other names it goes by.
    notes: what to know of the numbers as a whole.
    """

    id: str
    name: str
    family: Family
    backbone: str
    parameters: int
    data: tuple[str, ...]
    license: str
    numbers: tuple[Number, ...]
    aliases: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Published:
    """A published number as a report sets it beside ours.

    source: where it is printed.
    metric: which of our numbers it is compared with, as "AP".
    value: in [0, 1], as our numbers; 0.484 for what papers write as 48.4.
    note: what to know of it, as "zero-shot".
    """

    source: str
    metric: str
    value: float
    note: str = ""

    def __post_init__(self) -> None:
        """Refuse percent.

        Raises:
            ValueError: the value is not in [0, 1].
        """
        if not 0 <= self.value <= 1:
            raise ValueError(f"{self.metric} of {self.source!r} is {self.value}; write 48.4 % as 0.484")


@cache
def checkpoints() -> tuple[Checkpoint, ...]:
    """All public checkpoints, as the table has them."""
    return tuple(_checkpoint(entry) for entry in read_table(TABLE.name)["checkpoints"])


def find_checkpoint(model_id: str) -> Checkpoint | None:
    """The checkpoint of a repository on the Hub or of another name of it; None where it is none of these.

    A folder is none of these, whatever it is called: what is in it may be trained further.
    """
    wanted = model_id.lower()
    return next((one for one in checkpoints() if wanted in {name.lower() for name in (one.id, *one.aliases)}), None)


def published(model_id: str, benchmark: str) -> list[Number]:
    """What was published of a model on a benchmark and on its parts, or on one part; empty where nothing was.

    Args:
        model_id: as `find_checkpoint`.
        benchmark: as `find_benchmark`: "refcoco" for all its splits, "refcoco_testA" for one.

    Raises:
        ValueError: no such benchmark.
    """
    names = find_benchmark(benchmark).names
    checkpoint = find_checkpoint(model_id)
    return [] if checkpoint is None else [number for number in checkpoint.numbers if number.benchmark in names]


def published_beside(
    model_id: str, benchmark: Benchmark, part: str = "", *, mmdet_compatible: bool = False
) -> tuple[Published, ...]:
    """What a report of a benchmark, or of one part of it, sets beside our numbers."""
    other_count = bool(benchmark.published_options) and not mmdet_compatible
    return tuple(
        Published(number.source, number.metric, number.value / 100, "; ".join(filter(None, note)))
        for number in published(model_id, benchmark.name)
        if not part or number.benchmark == part
        for note in [
            (
                number.benchmark if not part and number.benchmark != benchmark.name else "",
                number.mark,
                "" if number.chunk_size is None else f"chunks of {number.chunk_size}",
                "counted as with --mmdet-compatible" if other_count else "",
                number.note,
                number.doubt,
            )
        ]
    )


def _checkpoint(entry: dict[str, Any]) -> Checkpoint:
    lists = {field: tuple(entry.get(field, ())) for field in ("data", "aliases", "notes")}
    numbers = tuple(number for row in entry["numbers"] for number in _numbers(row))
    return Checkpoint(**{**entry, **lists, "numbers": numbers})


def _numbers(row: dict[str, Any]) -> list[Number]:
    for field, choices in (("source", get_args(Source)), ("mark", get_args(Mark))):
        if row[field] not in choices:
            raise ValueError(
                f"{TABLE.name}: {row['benchmark']}: {field} {row[field]!r} is none of {', '.join(choices)}"
            )
    shared = {key: value for key, value in row.items() if key != "values"}
    return [Number(metric=metric, value=float(value), **shared) for metric, value in row["values"].items()]
