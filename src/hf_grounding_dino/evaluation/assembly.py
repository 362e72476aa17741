"""From the name of a benchmark, or a data set of any format, to tasks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

from ..data.readers import open_records
from ..data.records import DataError, RecordSet, SourceEntry, set_name
from ..data.shapes import CATEGORIES, UNSEEN_PAIRS, category_name
from .askers import CaptionAsker, ExpressionAsker, LabelAsker, PhraseLabelAsker
from .benchmarks import Benchmark, Part
from .coco import CocoDetection
from .described_objects import DescribedObjects
from .generalized_referring import GeneralizedReferring
from .lvis import LvisDetection
from .odinw import ClassPrompt
from .open_vocabulary import BASE_NAMES, NOVEL_NAMES, OpenVocabularyCoco, open_vocabulary_split
from .phrase_grounding import PhraseGrounding
from .referring import ReferringExpressions
from .sentence_files import read_sentences
from .sets import CaptionTask, CaseTask, DescriptionTask, DetectionTask, ExpressionTask
from .tasks import Asker
from .truth import TruthFile, prompt_names, read_truth

LVIS_CHUNK = 40
Reading = Literal["phrases", "expressions"]
_WITH_CHUNKS = ("detection", "lvis", "open vocabulary", "descriptions", "shapes")


class Wishes(NamedTuple):
    """What the user wants otherwise than the protocol has it.

    chunk_size: labels a prompt; None as the protocol has it.
    top_k: boxes a picture, or a prompt where the protocol counts so; None as the protocol has it.
    mmdet_compatible: count as mmdetection does where that differs.
    leave_out_missing: do without pictures that are not there.
    reading: of captions, whether their phrases are looked for, or each is one expression.
    """

    chunk_size: int | None = None
    top_k: int | None = None
    mmdet_compatible: bool = False
    leave_out_missing: bool = False
    reading: Reading = "phrases"

    def limit(self, default: int) -> dict[str, int]:
        """`top_k` as an option."""
        return {"top_k": default if self.top_k is None else self.top_k}

    def labels(self, chunk_size: int | None) -> dict[str, Any]:
        """Options of `LabelAsker` beside the labels."""
        return {"chunk_size": self.chunk_size or chunk_size, **self.limit(300)}


def benchmark_tasks(benchmark: Benchmark, root: Path | None, wishes: Wishes) -> list[CaseTask]:
    """A task for each part of a benchmark; Shapes alone needs no root.

    Raises:
        DataError: files are missing or wrong, or the protocol has no room for a wish.
    """
    if wishes.reading == "expressions":
        raise DataError(f"{benchmark.title} says itself what its sentences are: no reading is to be chosen")
    if wishes.chunk_size and benchmark.kind not in _WITH_CHUNKS:
        raise DataError(f"{benchmark.title} has sentences instead of labels: there is no chunk size")
    if benchmark.kind == "shapes":
        return _shapes_tasks(wishes)
    if root is None:
        raise DataError(f"where is {benchmark.title}? It is to be had at {benchmark.source}")
    return [_task_of_part(part, benchmark, wishes) for part in benchmark.parts(root)]


def source_task(entry: SourceEntry, wishes: Wishes) -> CaseTask:
    """A task for a data set.

    COCO files are read as the official evaluation reads them, others with the readers that training has. "lvis" is a
    COCO file with LVIS's fields, judged by fixed AP.

    Args:
        entry: the set; without a folder of pictures a COCO file is one whose predictions are only scored.
        wishes: what is wanted otherwise.

    Raises:
        DataError: the set cannot be used, or has no room for a wish.
    """
    if entry.format in ("coco", "lvis"):
        return _file_task(entry, wishes)
    records = _records(entry)
    if records.label_names:
        _refuse_reading(wishes, records.name)
        labels = dict(zip(records.category_ids, records.label_names, strict=True))
        metric = partial(CocoDetection, list(labels), mmdet_compatible=wishes.mmdet_compatible)
        return DetectionTask.from_records(
            records, ask=LabelAsker(labels=labels, **wishes.labels(None)), new_metric=metric
        )
    if wishes.chunk_size:
        raise DataError(f"{records.name}: has captions instead of labels: there is no chunk size")
    if wishes.reading == "expressions":
        return ExpressionTask.from_records(records, ask=ExpressionAsker(**wishes.limit(30)))
    return CaptionTask.from_records(records, ask=CaptionAsker(**wishes.limit(300)))


def _file_task(entry: SourceEntry, wishes: Wishes) -> CaseTask:
    """A COCO or LVIS file; words for its names are those that training would have."""
    path = Path(entry.annotations)
    name = set_name(entry, path)
    _refuse_reading(wishes, name)
    truth = read_truth(path, None if entry.images is None else Path(entry.images))
    task = (_lvis if entry.format == "lvis" else _coco)(truth, name, wishes)
    if entry.label_map is None or not isinstance(task.ask, LabelAsker):
        return task
    records = _records(replace(entry, format="coco"))
    named = dict(zip(records.category_ids, records.label_names, strict=True))
    return replace(task, ask=replace(task.ask, labels={number: named[number] for number in task.ask.labels}))


def _records(entry: SourceEntry) -> RecordSet:
    records = open_records(entry)
    if not isinstance(records, RecordSet):
        raise DataError(f"{entry.annotations}: a stream cannot be evaluated on; leave streaming out")
    return records


def _refuse_reading(wishes: Wishes, name: str) -> None:
    if wishes.reading == "expressions":
        raise DataError(f"{name}: has labels instead of captions, so none is an expression")


def _shapes_tasks(wishes: Wishes) -> list[CaseTask]:
    def drawn(scenes: str, reading: Reading = "phrases") -> CaseTask:
        fitting = wishes if reading == "phrases" else wishes._replace(reading=reading, chunk_size=None)
        return source_task(SourceEntry(format="shapes", annotations=scenes), fitting)

    novel = [CATEGORIES.index(category_name(*pair)) for pair in sorted(UNSEEN_PAIRS)]
    base = [number for number in range(len(CATEGORIES)) if number not in novel]
    unseen = replace(
        drawn("unseen?count=500&seed=1"), name="shapes_unseen", new_metric=partial(OpenVocabularyCoco, base, novel)
    )
    return [
        replace(drawn("val?count=500&seed=1"), name="shapes_seen"),
        unseen,
        replace(drawn("val?count=500&seed=1&task=referring", "expressions"), name="shapes_referring"),
    ]


def _task_of_part(part: Part, benchmark: Benchmark, wishes: Wishes) -> CaseTask:
    top_k = wishes.limit(benchmark.top_k)
    common: dict[str, Any] = {"name": part.name, "leave_out_missing": wishes.leave_out_missing}
    options = part.options
    if part.kind in ("expressions", "generalized expressions"):
        generalized = part.kind == "generalized expressions"
        metric: Any = ReferringExpressions
        if generalized:
            metric = partial(GeneralizedReferring, mmdet_compatible=wishes.mmdet_compatible)
        return ExpressionTask.from_mdetr(
            part.annotations,
            part.images,
            dataset_name=options.get("dataset_name"),
            generalized=generalized,
            ask=ExpressionAsker(**top_k),
            new_metric=metric,
            **common,
        )
    if part.kind == "phrases":
        metric = partial(PhraseGrounding, mmdet_compatible=wishes.mmdet_compatible)
        return CaptionTask.from_mdetr(
            part.annotations, part.images, ask=CaptionAsker(**top_k), new_metric=metric, **common
        )
    truth = read_truth(part.annotations, part.images, only=_only(part))
    if part.kind == "descriptions":
        sentences = read_sentences(Path(options["groups"]))
        metric = partial(
            DescribedObjects, sentences.texts, sentences.presence, mmdet_compatible=wishes.mmdet_compatible
        )
        chunk_size = wishes.chunk_size or benchmark.chunk_size
        if chunk_size not in (1, None):
            raise DataError(f"{benchmark.title} has all sentences of a picture in one prompt, or 1 in each")
        return DescriptionTask.from_truth(
            truth, sentences, one_by_one=chunk_size == 1, new_metric=metric, top_k=top_k["top_k"], **common
        )
    if part.kind == "lvis":
        return _lvis(truth, part.name, wishes, benchmark.chunk_size)
    return _coco(truth, part.name, wishes, options.get("prompts"), open_vocabulary=part.kind == "open vocabulary")


def _only(part: Part) -> frozenset[str] | None:
    return frozenset({*BASE_NAMES, *NOVEL_NAMES}) if part.kind == "open vocabulary" else None


def _coco(
    truth: TruthFile,
    name: str,
    wishes: Wishes,
    prompts: Mapping[int, ClassPrompt] | None = None,
    *,
    open_vocabulary: bool = False,
) -> CaseTask:
    numbers = [category.id for category in truth.categories]
    ask: Asker = LabelAsker(labels=prompt_names(truth.categories), **wishes.labels(None))
    if prompts:
        if wishes.chunk_size:
            raise DataError(f"{name}: has labels with prompts of their own, all in one: there is no chunk size")
        ask = PhraseLabelAsker(prompts=_all_prompts(truth, prompts), **wishes.limit(300))
    metric: Any = partial(CocoDetection, numbers, mmdet_compatible=wishes.mmdet_compatible)
    if open_vocabulary:
        base, novel = open_vocabulary_split({category.id: category.name for category in truth.categories})
        metric = partial(OpenVocabularyCoco, base, novel, mmdet_compatible=wishes.mmdet_compatible)
    return DetectionTask.from_truth(
        truth, name=name, ask=ask, new_metric=metric, leave_out_missing=wishes.leave_out_missing
    )


def _lvis(truth: TruthFile, name: str, wishes: Wishes, chunk_size: int | None = LVIS_CHUNK) -> CaseTask:
    labels = prompt_names(truth.categories, distinct=False)
    categories = [category.as_dict() for category in truth.categories]
    return DetectionTask.from_truth(
        truth,
        name=name,
        ask=LabelAsker(labels=labels, each_ranked=True, **wishes.labels(chunk_size)),
        new_metric=partial(LvisDetection, categories),
        leave_out_missing=wishes.leave_out_missing,
    )


def _all_prompts(truth: TruthFile, prompts: Mapping[int, ClassPrompt]) -> dict[int, ClassPrompt]:
    plain = prompt_names(truth.categories)
    return {number: prompts.get(number) or ClassPrompt("", words, "") for number, words in plain.items()}
