"""The benchmarks of the papers by name: their files below a data root, and the protocol of the published numbers."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from ..data.records import DataError

Kind = Literal[
    "detection", "lvis", "expressions", "generalized expressions", "phrases", "descriptions", "open vocabulary",
    "shapes",
]  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Split:
    """The files of one annotation file, below a data root; of several places the first that is there is taken.

    name: no other split has it.
    annotations: places of the annotation file.
    images: places of the folder that its file names start from.
    also: further folders that have to be there, each under the option of the part that hands it on.
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
    kind: how it is read, asked and judged.
    annotations: the file.
    images: the folder that its file names start from.
    options: "lvis": the folders of the pictures. "expressions": `dataset_name`, where the file holds several sets, the
        one to keep. "descriptions": `groups`, the folder that says which sentences go together. "detection" of ODinW:
        `prompts`, category id to `odinw.ClassPrompt`, where a class is not asked for by its name.
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
    splits: its files; empty for ODinW, whose sets `odinw.py` lists.
    homes: folders below the data root that the files may lie in, "" for the root itself.
    source: where the data is to be had.
    chunk_size: labels a prompt; None for all in one.
    top_k: boxes a prompt that are kept, over queries and labels (recipe of mmdetection, `max_per_img`).
    published_options: what it is told beyond them to count as the published numbers were counted.
    note: what to know before comparing numbers.
    """

    name: str
    title: str
    kind: Kind
    splits: tuple[Split, ...]
    homes: tuple[str, ...]
    source: str
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
            DataError: the root or a file is not there; the message names it and where it is to be had.
        """
        if not root.is_dir():
            raise DataError(f"{root}: no such folder; {self.title} is to be had at {self.source}")
        return [self._part(root, split) for split in self.splits or _odinw_splits(self.name)]

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
                f"{home}: {self.title} needs {places[0]}, which is not there; it is to be had at {self.source}"
            )
        return found


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


def _first(folder: Path, places: Iterable[str]) -> Path | None:
    return next((folder / place for place in places if (folder / place).exists()), None)


def _mdetr(name: str, file: str, only: str | None = None) -> Split:
    """A split whose annotations are MDETR's, on pictures of COCO train2014."""
    return Split(
        name=name,
        annotations=tuple(f"{folder}{file}" for folder in ("mdetr_annotations/", "annotations/", "")),
        images=("train2014", "images/train2014"),
        options={} if only is None else {"dataset_name": only},
    )


def _expressions(name: str, title: str, splits: tuple[str, ...]) -> Benchmark:
    """RefCOCO, RefCOCO+ or RefCOCOg; the validation splits of the three share a file."""
    tests = tuple(_mdetr(f"{name}_{split}", f"finetune_{name}_{split}.json") for split in splits)
    return Benchmark(
        name=name,
        title=title,
        kind="expressions",
        splits=(_mdetr(f"{name}_val", "final_refexp_val.json", name), *tests),
        homes=("", "coco"),
        source="https://huggingface.co/GLIPModel/GLIP (mdetr_annotations), COCO train2014: https://cocodataset.org",
        top_k=30,
        note="The score of a box is its best token; each expression has one box; a hit has IoU of 0.5 or more.",
    )


def _descriptions(name: str, title: str, chunk_size: int | None) -> Benchmark:
    """D3, with the sentences of a picture's groups in one prompt, or each in one of its own."""
    split = Split(
        name=name,
        annotations=("d3_json/d3_full_annotations.json", "d3_full_annotations.json"),
        images=("d3_images",),
        also={"groups": "d3_pkl"},
    )
    return Benchmark(
        name=name,
        title=title,
        kind="descriptions",
        splits=(split,),
        homes=("", "d3"),
        source="https://github.com/shikras/d-cube",
        chunk_size=chunk_size,
        published_options={"mmdet_compatible": True},
        note="Intra-scenario: of each picture only the sentences of its own groups are asked for. The published "
        "numbers count the boxes of the other sentences as missed, as `DescribedObjects(mmdet_compatible=True)` does; "
        "its default leaves them out.",
    )


def _lvis(name: str, title: str, files: tuple[str, ...], folders: tuple[str, ...]) -> Benchmark:
    """LVIS 1.0 by fixed AP; its pictures are those of COCO 2017, and `coco_url` says which half each is of."""
    split = Split(
        name=name,
        annotations=tuple(f"{folder}{file}" for file in files for folder in ("annotations/", "", "lvis/")),
        images=(".",),
        also={folder: folder for folder in folders},
    )
    return Benchmark(
        name=name,
        title=title,
        kind="lvis",
        splits=(split,),
        homes=("", "coco"),
        source="https://huggingface.co/GLIPModel/GLIP, COCO 2017: https://cocodataset.org",
        chunk_size=40,
        note="Fixed AP: the best 10,000 boxes of each class over the whole set, no limit a picture. The chunk size is "
        "part of the protocol: each chunk keeps its own 300 boxes.",
    )


def _coco(name: str, title: str, kind: Kind, file: str, source: str) -> Benchmark:
    """COCO val2017, under one annotation file or another."""
    split = Split(name=name, annotations=(f"annotations/{file}", file), images=("val2017", "images/val2017"))
    return Benchmark(
        name=name,
        title=title,
        kind=kind,
        splits=(split,),
        homes=("", "coco"),
        source=source,
    )


def _odinw(name: str, title: str) -> Benchmark:
    return Benchmark(
        name=name,
        title=title,
        kind="detection",
        splits=(),
        homes=("", "odinw", "odinw_35"),
        source="https://huggingface.co/GLIPModel/GLIP (odinw_35), each archive unpacked",
        note="The mean of AP over the validation splits of the sets, as in GLIP; some have prompts of their own.",
    )


_GREFCOCO = Benchmark(
    name="grefcoco",
    title="gRefCOCO",
    kind="generalized expressions",
    splits=tuple(_mdetr(f"grefcoco_{part}", f"finetune_grefcoco_{part}.json") for part in ("val", "testA", "testB")),
    homes=("", "coco"),
    source="https://github.com/henghuiding/gRefCOCO, whose mdetr/scripts/fine-tuning/grefexp_coco_format.py writes the "
    "JSON files; COCO train2014: https://cocodataset.org",
    top_k=30,
    published_options={"mmdet_compatible": True},
    note="Boxes with a score of 0.7 or more are kept. The published numbers count one box of each expression only, as "
    "`GeneralizedReferring(mmdet_compatible=True)` does; its default counts all.",
)

_FLICKR30K = Benchmark(
    name="flickr30k",
    title="Flickr30k Entities",
    kind="phrases",
    splits=tuple(
        Split(
            name=f"flickr30k_{part}",
            annotations=tuple(
                f"{folder}final_flickr_separateGT_{part}.json" for folder in ("", "mdetr_annotations/", "annotations/")
            ),
            images=("flickr30k_images", "flickr30k-images", "images"),
        )
        for part in ("val", "test")
    ),
    homes=("", "flickr30k_entities", "flickr30k"),
    source="https://huggingface.co/GLIPModel/GLIP (mdetr_annotations), pictures on request: "
    "https://shannon.cs.illinois.edu/DenotationGraph/",
    note="Any-box protocol: a phrase is found where one of its first k boxes overlaps any of its boxes by 0.5 or more.",
)

BENCHMARKS: tuple[Benchmark, ...] = (
    _coco("coco", "COCO val2017", "detection", "instances_val2017.json", "https://cocodataset.org"),
    _lvis("lvis_minival", "LVIS minival", ("lvis_v1_minival_inserted_image_name.json",), ("val2017",)),
    _lvis("lvis_val", "LVIS 1.0 val", ("lvis_od_val.json", "lvis_v1_val.json"), ("train2017", "val2017")),
    _odinw("odinw13", "ODinW-13"),
    _odinw("odinw35", "ODinW-35"),
    _expressions("refcoco", "RefCOCO", ("testA", "testB")),
    _expressions("refcoco+", "RefCOCO+", ("testA", "testB")),
    _expressions("refcocog", "RefCOCOg", ("test",)),
    _GREFCOCO,
    _FLICKR30K,
    _descriptions("d3", "D3 (described objects)", None),
    _descriptions("d3_parallel", "D3 (described objects), a prompt a sentence", 1),
    _coco(
        "ov_coco",
        "OV-COCO (48 base, 17 novel classes)",
        "open vocabulary",
        "instances_val2017_all_2.json",
        "https://cocodataset.org; mmdetection's tools/dataset_converters/coco2ovd.py writes the JSON file",
    ),
)
"""All benchmarks, each once."""


SHAPES = Benchmark(
    name="shapes",
    title="Shapes",
    kind="shapes",
    splits=(),
    homes=(),
    source="this package, which draws it",
    note="500 scenes a set. Of the unseen set the novel classes are the pairs that are kept out of training.",
)
"""What the model that ships is measured on; it needs no data."""


def _odinw_splits(name: str) -> tuple[Split, ...]:
    """The sets of ODinW as splits."""
    from . import odinw

    sets = odinw.ODINW_13 if name == "odinw13" else odinw.ODINW_35
    return tuple(
        Split(
            name=one.name,
            annotations=(f"{one.folder}/{one.annotations}",),
            images=(f"{one.folder}/{one.images}",),
            options={"prompts": dict(one.prompts)},
        )
        for one in sets
    )
