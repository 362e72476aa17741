"""The benchmarks of the papers by name: their files below a data root, and the protocol of the published numbers."""

from __future__ import annotations

import difflib
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import yaml

from ..data.records import DataError

Kind = Literal[
    "detection", "lvis", "expressions", "generalized expressions", "phrases", "descriptions", "open vocabulary",
    "shapes",
]  # fmt: skip


class ClassPrompt(NamedTuple):
    """The words that a class is prompted with, of which some are its name.

    prefix, suffix: around the name, with the spaces between.
    name: the words whose tokens give the score; empty where the benchmark does not prompt the class, so that all of
        it is missed.
    """

    prefix: str
    name: str
    suffix: str

    @property
    def text(self) -> str:
        """The whole prompt of the class."""
        return self.prefix + self.name + self.suffix

    @property
    def span(self) -> tuple[int, int]:
        """Where the name stands in `text`, as (start, end) characters."""
        return len(self.prefix), len(self.prefix) + len(self.name)


@dataclass(frozen=True, kw_only=True)
class Split:
    """The files of one annotation file, below a data root; of several places the first that exists is taken.

    name: no other split has it.
    annotations: places of the annotation file.
    images: places of the folder that its file names start from.
    also: further folders that have to exist, each under the option of the part that hands it on.
    options: of the part, see `Part`.
    """

    name: str
    annotations: tuple[str, ...]
    images: tuple[str, ...]
    also: Mapping[str, str] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Part:
    """One annotation file to evaluate on, found on disk.

    name: of the split, or of the ODinW set.
    kind: how it is read, prompted and judged.
    annotations: the file.
    images: the folder that its file names start from.
    options: "lvis": the folders of the images. "expressions": `dataset_name`, where the file holds several sets, the
        one to keep. "descriptions": `groups`, the folder that says which sentences go together. "detection" of ODinW:
        `prompts`, category id to `ClassPrompt`, where a class is not prompted by its name.
    """

    name: str
    kind: Kind
    annotations: Path
    images: Path
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """Data and protocol of a published number.

    name: as the command takes it.
    title: for people.
    kind: of all its parts.
    splits: its files; empty for ODinW (see `odinw_sets`) and Shapes.
    homes: folders below the data root that the files may lie in, "" for the root itself.
    source: where to download the data.
    chunk_size: labels a prompt; None for all in one.
    top_k: boxes a prompt that are kept, over queries and labels (recipe of mmdetection, `max_per_img`).
    published_options: what makes it count as the published numbers were counted.
    note: what to know before comparing numbers.
    """

    name: str
    title: str
    kind: Kind
    splits: tuple[Split, ...] = ()
    homes: tuple[str, ...] = ()
    source: str = ""
    chunk_size: int | None = None
    top_k: int = 300
    published_options: Mapping[str, Any] = field(default_factory=dict)
    note: str = ""

    @property
    def names(self) -> tuple[str, ...]:
        """Its own name and those of its splits: what published numbers go by."""
        return tuple(dict.fromkeys([self.name, *(split.name for split in self.splits)]))

    def parts(self, root: Path) -> list[Part]:
        """Find the files below a data root.

        Raises:
            DataError: the root or a file does not exist; the message names it and where to download it.
        """
        if not root.is_dir():
            raise DataError(f"{root}: no such folder; {self.title} can be downloaded from {self.source}")
        return [self._part(root, split) for split in self.splits or odinw_sets(self.name)]

    def _part(self, root: Path, split: Split) -> Part:
        homes = [root / home for home in self.homes]
        home = next((home for home in homes if _first(home, split.annotations)), root)
        annotations, images = self._path(home, split.annotations), self._path(home, split.images)
        also = {option: self._path(home, (place,)) for option, place in split.also.items()}
        options = {**split.options, **also}
        return Part(name=split.name, kind=self.kind, annotations=annotations, images=images, options=options)

    def _path(self, home: Path, places: tuple[str, ...]) -> Path:
        found = _first(home, places)
        if found is None:
            raise DataError(
                f"{home}: {self.title} needs {places[0]}, which does not exist; it can be downloaded from {self.source}"
            )
        return found


def _first(folder: Path, places: Iterable[str]) -> Path | None:
    return next((folder / place for place in places if (folder / place).exists()), None)


def read_table(name: str) -> dict[str, Any]:
    """A YAML file beside this module."""
    text = Path(__file__).with_name(name).read_text(encoding="utf-8")
    # libyaml is ten times as fast, and `--list` waits for it.
    table: dict[str, Any] = yaml.load(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    return table


_TABLE = read_table("benchmarks.yaml")


def _benchmark(row: dict[str, Any]) -> Benchmark:
    folders, images, also = (
        row.pop(name, default) for name, default in (("folders", ()), ("images", ()), ("also", {}))
    )
    splits = tuple(
        Split(
            name=split.pop("name"),
            annotations=tuple(f"{folder}/{file}".lstrip("/") for file in split.pop("files") for folder in folders),
            images=tuple(images),
            also=also,
            options=split,
        )
        for split in row.pop("splits", ())
    )
    return Benchmark(**{**row, "homes": tuple(row.get("homes", ()))}, splits=splits)


*BENCHMARKS, SHAPES = (_benchmark(row) for row in _TABLE["benchmarks"])
"""All benchmarks with data of their own, each once; and Shapes, which the model that ships is measured on."""


def find_benchmark(name: str) -> Benchmark:
    """The benchmark of a name, or a part of one: "refcoco" has three splits, "refcoco_testA" is one of them.

    Raises:
        ValueError: there is none of that name; the message has the nearest one, and all.
    """
    wanted = _plain_name(name)
    known = {_plain_name(benchmark.name): benchmark for benchmark in (*BENCHMARKS, SHAPES)}
    for benchmark in BENCHMARKS:
        for split in benchmark.splits:
            known.setdefault(_plain_name(split.name), replace(benchmark, name=split.name, splits=(split,)))
    if wanted in known:
        return known[wanted]
    nearest = known[difflib.get_close_matches(wanted, known, n=1, cutoff=0.0)[0]].name
    names = ", ".join(benchmark.name for benchmark in (*BENCHMARKS, SHAPES))
    raise ValueError(f"no benchmark is called {name!r}; the nearest is {nearest!r} (there are {names})")


def _plain_name(name: str) -> str:
    return name.lower().replace("-", "_").replace("/", "_").replace("_plus", "+")


def odinw_sets(name: str = "odinw35") -> tuple[Split, ...]:
    """The validation sets of "odinw13" or "odinw35", each a COCO dataset of its own."""
    sets = []
    for row in _TABLE["odinw_sets"]:
        if name == "odinw13" and not row.get("of_13"):
            continue
        prompts = {number: ClassPrompt(*words) for number, words in row.get("prompts", {}).items()}
        if name == "odinw13" and row["name"] == "pothole":
            prompts = {}
        # Four sets have their annotations beside the images.
        file, images = "val_annotations_without_background.json", row["folder"]
        if not row.get("beside"):
            file, images = "valid/annotations_without_background.json", f"{images}/valid"
        place = f"{row['folder']}/{file}"
        sets.append(Split(name=row["name"], annotations=(place,), images=(images,), options={"prompts": prompts}))
    return tuple(sets)


def odinw_mean(scores: Mapping[str, float], names: Sequence[str], *, partial: bool = False) -> float:
    """The mean AP of a benchmark from the AP of its sets, in [0, 1].

    Args:
        scores: name of a set to its AP.
        names: of all sets of the benchmark.
        partial: take the mean of the sets that have a score, with a warning that names the others.

    Raises:
        ValueError: a set without a score (or with -1, COCO's nothing to measure) unless `partial`, no score at all, a
            score outside [0, 1], or one of a set that is not among `names`; the message names the sets.
    """
    if unknown := [name for name in scores if name not in names]:
        raise ValueError(f"no sets of this benchmark of {len(names)}: {', '.join(unknown)}")
    measured = {name: scores[name] for name in names if scores.get(name, -1) != -1}
    if outside := [f"{name} {score}" for name, score in measured.items() if not 0 <= score <= 1]:
        raise ValueError(f"AP is in [0, 1], not {', '.join(outside)}")
    if missing := [name for name in names if name not in measured]:
        message = f"{len(missing)} of {len(names)} sets of ODinW have no score: {', '.join(missing)}"
        if not partial or not measured:
            raise ValueError(message)
        warnings.warn(message, stacklevel=2)
    return sum(measured.values()) / len(measured)
