"""From the name of a benchmark, or a dataset of any format, to tasks."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from ..data.index import RecordIndex
from ..data.readers import open_records
from ..data.readers.shapes import ShapesRecords
from ..data.records import DataError, Record, RecordSet, SourceEntry, set_name
from ..data.shapes import CATEGORIES, UNSEEN_PAIRS, category_name
from .benchmarks import Benchmark, ClassPrompt, Part
from .ground_truth import AnnotationFile, Category, prompt_names, read_annotations, refuse_missing
from .metrics.base import ItemId
from .metrics.coco import BASE_NAMES, NOVEL_NAMES, CocoDetection, OpenVocabularyCoco, open_vocabulary_split
from .metrics.described_objects import DescribedObjects
from .metrics.lvis import LvisDetection
from .metrics.referring import GeneralizedReferring, PhraseGrounding, ReferringExpressions
from .prompting import CaptionPrompting, ExpressionPrompting, LabelInPhrasePrompting, LabelPrompting, Prompting
from .sentence_files import caption_samples, expression_samples, read_sentences
from .tasks import NewMetric, Sample, Task

LVIS_CHUNK = 40
Reading = Literal["phrases", "expressions"]
_WITH_CHUNKS = ("detection", "lvis", "open vocabulary", "descriptions", "shapes")
_LOOKED_AT = 100


class TaskOptions(NamedTuple):
    """What the user wants otherwise than the protocol has it.

    chunk_size: labels a prompt; None as the protocol has it.
    top_k: boxes an image, or a prompt where the protocol counts so; None as the protocol has it.
    mmdet_compatible: count as mmdetection does where that differs.
    leave_out_missing: do without images that do not exist.
    reading: of captions, whether their phrases are looked for, or each is one expression; None: expressions where no
        caption names several things, as in RefCOCO.
    """

    chunk_size: int | None = None
    top_k: int | None = None
    mmdet_compatible: bool = False
    leave_out_missing: bool = False
    reading: Reading | None = None

    def limit(self, default: int) -> dict[str, Any]:
        """`top_k` as an option."""
        return {"top_k": self.top_k or default}

    def labels(self, chunk_size: int | None = None) -> dict[str, Any]:
        """Options of `LabelPrompting` beside the labels."""
        return {"chunk_size": self.chunk_size or chunk_size, **self.limit(300)}

    def refuse_reading(self, name: str) -> None:
        """Refuse to read labels as expressions.

        Raises:
            DataError: that is wanted.
        """
        if self.reading == "expressions":
            raise DataError(f"{name}: has labels instead of captions, so none is an expression")


PLAIN = TaskOptions()


def benchmark_tasks(benchmark: Benchmark, root: Path | None, options: TaskOptions = PLAIN) -> list[Task]:
    """A task for each part of a benchmark; Shapes alone needs no root.

    Raises:
        DataError: files are missing or wrong, or the protocol has no room for an option.
    """
    if options.reading is not None:
        raise DataError(f"{benchmark.title} says itself what its sentences are: no reading is to be chosen")
    if options.chunk_size and benchmark.kind not in _WITH_CHUNKS:
        raise DataError(f"{benchmark.title} has sentences instead of labels: there is no chunk size")
    if benchmark.kind == "shapes":
        return _shapes_tasks(options)
    if root is None:
        raise DataError(f"where is {benchmark.title}? It can be downloaded from {benchmark.source}")
    return [_task_of_part(part, benchmark, options) for part in benchmark.parts(root)]


def source_task(entry: SourceEntry, options: TaskOptions = PLAIN) -> Task:
    """A task for a dataset; training measures by it too.

    COCO files are read as the official evaluation reads them, others with the readers of training. A COCO file with
    LVIS's fields, or of format "lvis", is judged by fixed AP.

    Args:
        entry: the dataset; without a folder of images a COCO file is one whose predictions are only scored.
        options: what is wanted otherwise.

    Raises:
        DataError: the dataset cannot be used, or has no room for an option.
    """
    if entry.format not in ("coco", "lvis"):
        return records_task(_records(entry), options)
    path = Path(entry.annotations)
    name = set_name(entry, path)
    options.refuse_reading(name)
    file = read_annotations(path, None if entry.images is None else Path(entry.images))
    if entry.format == "lvis" or file.federated:
        task = _lvis_task(file, name, options)
    else:
        task = _coco_task(file, name, options)
    if entry.label_map is None or not isinstance(task.prompting, LabelPrompting):
        return task
    # Words for its names are those that training would have.
    records = _records(replace(entry, format="coco"))
    named = dict(zip(records.category_ids, records.label_names, strict=True))
    words = {number: named[number] for number in task.prompting.labels}
    return replace(task, prompting=replace(task.prompting, labels=words))


def records_task(records: RecordSet, options: TaskOptions = PLAIN) -> Task:
    """A task for the records of any format; boxes are as training sees them.

    Raises:
        DataError: no room for an option.
    """
    ids = _record_ids(records)
    if records.label_names:
        return _labels_task(records, ids, options)
    if options.chunk_size:
        raise DataError(f"{records.name}: has captions instead of labels: there is no chunk size")
    # An image with several captions comes as often; then the position is the name of the sample.
    ids = ids if len(set(ids)) == len(ids) else range(len(ids))
    prompting: Prompting
    if (options.reading or _reading(records)) == "phrases":
        make, prompting, metric = _phrases_sample, CaptionPrompting(**options.limit(300)), PhraseGrounding
        rows: Sequence[int] = range(len(ids))
    else:
        make, prompting, metric = _expression_sample, ExpressionPrompting(**options.limit(30)), ReferringExpressions
        # An expression that means nothing cannot be hit; drawn ones mean something, and would be drawn to be asked.
        drawn = isinstance(records, ShapesRecords)
        rows = [i for i in range(len(ids)) if drawn or len(records[i].boxes)]
    return Task(
        name=records.name,
        sample_ids=[ids[row] for row in rows],
        make=lambda i: make(ids[rows[i]], records[rows[i]]),
        prompting=prompting,
        new_metric=metric,
        left_out=frozenset(ids) - {ids[row] for row in rows},
    )


def measured_task(entry: SourceEntry, records: RecordSet) -> Task:
    """A task for a dataset that training measures, by the same reading as `evaluate`; missing images are left out.

    Args:
        entry: the dataset, as the recipe has it.
        records: the same, opened.

    Raises:
        DataError: a COCO file is not as the official evaluation needs it.
    """
    if entry.format != "coco":
        return records_task(records)
    images = entry.images or str(Path(entry.annotations).parent)
    return source_task(replace(entry, images=images), TaskOptions(leave_out_missing=True))


def annotations_task(
    file: AnnotationFile, name: str, prompting: Prompting, new_metric: NewMetric, options: TaskOptions = PLAIN
) -> Task:
    """All images of a COCO or LVIS file.

    Raises:
        DataError: images do not exist; nothing is checked where the file was read without a folder.
    """
    missing = [file.files[i] or f"image {file.image_ids[i]}" for i in sorted(file.missing)]
    if not options.leave_out_missing:
        refuse_missing(missing, len(file), file.path)
    rows = [i for i in range(len(file)) if i not in file.missing]
    return Task(
        name=name,
        sample_ids=[file.image_ids[row] for row in rows],
        make=lambda i: Sample(file.image_ids[rows[i]], file.image(rows[i]), file.reference(rows[i])),
        prompting=prompting,
        new_metric=new_metric,
        categories=file.categories,
        missing=tuple(missing),
        left_out=frozenset(file.image_ids[i] for i in file.missing),
    )


def sentences_task(
    read: tuple[Sequence[Sample], Collection[str]],
    path: Path,
    name: str,
    prompting: Prompting,
    new_metric: NewMetric,
    options: TaskOptions = PLAIN,
) -> Task:
    """The captions or expressions of an MDETR-style file, and the images that do not exist, as `sentence_files` reads.

    Raises:
        DataError: images do not exist.
    """
    samples, missing = read[0], set(read[1])
    if not options.leave_out_missing:
        refuse_missing(sorted(missing), len({sample.image for sample in samples}), path)
    kept = [sample for sample in samples if str(sample.image) not in missing]
    return Task(
        name=name,
        sample_ids=[sample.sample_id for sample in kept],
        make=kept.__getitem__,
        prompting=prompting,
        new_metric=new_metric,
        missing=tuple(sorted(missing)),
        left_out=frozenset(sample.sample_id for sample in samples) - {sample.sample_id for sample in kept},
    )


# --- benchmarks --------------------------------------------------------------------------------------------------


def _task_of_part(part: Part, benchmark: Benchmark, options: TaskOptions) -> Task:
    compatible, top_k = options.mmdet_compatible, options.limit(benchmark.top_k)
    if part.kind in ("expressions", "generalized expressions"):
        generalized = part.kind == "generalized expressions"
        metric = partial(GeneralizedReferring, mmdet_compatible=compatible) if generalized else ReferringExpressions
        read = expression_samples(
            part.annotations, part.images, dataset_name=part.options.get("dataset_name"), generalized=generalized
        )
        return sentences_task(read, part.annotations, part.name, ExpressionPrompting(**top_k), metric, options)
    if part.kind == "phrases":
        read = caption_samples(part.annotations, part.images)
        metric = partial(PhraseGrounding, mmdet_compatible=compatible)
        return sentences_task(read, part.annotations, part.name, CaptionPrompting(**top_k), metric, options)
    only = frozenset({*BASE_NAMES, *NOVEL_NAMES}) if part.kind == "open vocabulary" else None
    file = read_annotations(part.annotations, part.images, only=only)
    if part.kind == "descriptions":
        return _descriptions_task(file, part, benchmark, options)
    if part.kind == "lvis":
        return _lvis_task(file, part.name, options, benchmark.chunk_size)
    task = _coco_task(file, part.name, options, part.options.get("prompts"))
    if part.kind == "open vocabulary":
        base, novel = open_vocabulary_split(task.labels)
        return replace(task, new_metric=partial(OpenVocabularyCoco, base, novel, mmdet_compatible=compatible))
    return task


def _coco_task(
    file: AnnotationFile, name: str, options: TaskOptions, prompts: Mapping[int, ClassPrompt] | None = None
) -> Task:
    words = prompt_names(file.categories)
    prompting: Prompting = LabelPrompting(labels=words, **options.labels())
    if prompts:
        if options.chunk_size:
            raise DataError(f"{name}: has labels with prompts of their own, all in one: there is no chunk size")
        every = {number: prompts.get(number) or ClassPrompt("", text, "") for number, text in words.items()}
        prompting = LabelInPhrasePrompting(prompts=every, **options.limit(300))
    metric = partial(CocoDetection, list(words), mmdet_compatible=options.mmdet_compatible)
    return annotations_task(file, name, prompting, metric, options)


def _lvis_task(file: AnnotationFile, name: str, options: TaskOptions, chunk_size: int | None = LVIS_CHUNK) -> Task:
    words = prompt_names(file.categories, distinct=False)
    prompting = LabelPrompting(labels=words, each_ranked=True, **options.labels(chunk_size))
    categories = [{"frequency": "f", **category.as_dict()} for category in file.categories]
    return annotations_task(file, name, prompting, partial(LvisDetection, categories), options)


def _descriptions_task(file: AnnotationFile, part: Part, benchmark: Benchmark, options: TaskOptions) -> Task:
    """D3: each image is asked for the sentences of its own group, in one prompt or each in one of its own."""
    sentences = read_sentences(Path(part.options["groups"]))
    chunk_size = options.chunk_size or benchmark.chunk_size
    if chunk_size not in (1, None):
        raise DataError(f"{benchmark.title} has all sentences of an image in one prompt, or 1 in each")
    if without := [image_id for image_id in file.image_ids if image_id not in sentences.asked]:
        raise DataError(f"{file.path}: image {without[0]} has no group of sentences")
    prompting = LabelPrompting(
        labels=sentences.texts,
        chunk_size=chunk_size,
        chunk_tokens=None,
        each_ranked=True,
        asked={image_id: sentences.asked[image_id] for image_id in file.image_ids},
        **options.limit(benchmark.top_k),
    )
    metric = partial(DescribedObjects, sentences.texts, sentences.presence, mmdet_compatible=options.mmdet_compatible)
    plain = annotations_task(file, part.name, prompting, metric, options)

    def make(index: int) -> Sample:
        sample = plain.make(index)
        return sample._replace(reference={**sample.reference, "asked": list(sentences.asked[sample.sample_id])})

    categories = tuple(Category(number, text) for number, text in sentences.texts.items())
    return replace(plain, make=make, categories=categories)


def _shapes_tasks(options: TaskOptions) -> list[Task]:
    def drawn(name: str, scenes: str, options: TaskOptions = options) -> Task:
        return replace(source_task(SourceEntry(format="shapes", annotations=scenes), options), name=name)

    novel = [CATEGORIES.index(category_name(*pair)) for pair in sorted(UNSEEN_PAIRS)]
    base = [number for number in range(len(CATEGORIES)) if number not in novel]
    unseen = drawn("shapes_unseen", "unseen?count=500&seed=1")
    sentences = options._replace(reading="expressions", chunk_size=None)
    return [
        drawn("shapes_seen", "val?count=500&seed=1"),
        replace(unseen, new_metric=partial(OpenVocabularyCoco, base, novel)),
        drawn("shapes_referring", "val?count=500&seed=1&task=referring", sentences),
    ]


# --- records -----------------------------------------------------------------------------------------------------


def _records(entry: SourceEntry) -> RecordSet:
    records = open_records(entry)
    if not isinstance(records, RecordSet):
        raise DataError(f"{entry.annotations}: a stream cannot be evaluated on; leave streaming out")
    return records


def _record_ids(records: RecordSet) -> Sequence[ItemId]:
    """What the images of a dataset are called; reads each record where the dataset does not keep it apart."""
    if isinstance(records, RecordIndex):
        return records.ids
    if isinstance(records, ShapesRecords):
        # Each would be drawn to be asked.
        return range(len(records))
    return [records[i].image_id for i in range(len(records))]


def _reading(records: RecordSet) -> Reading:
    """Whether no caption names several things, as far as the first of them tell."""
    looked_at = range(min(len(records), _LOOKED_AT))
    return "expressions" if all(len(set(records[i].spans or ())) <= 1 for i in looked_at) else "phrases"


def _labels_task(records: RecordSet, ids: Sequence[ItemId], options: TaskOptions) -> Task:
    options.refuse_reading(records.name)
    labels = dict(zip(records.category_ids, records.label_names, strict=True))
    prompting = LabelPrompting(labels=labels, **options.labels())
    new_metric: NewMetric = partial(CocoDetection, list(labels), mmdet_compatible=options.mmdet_compatible)
    if len(records) and not isinstance(records, ShapesRecords) and records[0].absent is not None:
        categories = [{"id": number, "name": name, "frequency": "f"} for number, name in labels.items()]
        prompting = LabelPrompting(labels=labels, each_ranked=True, **options.labels(LVIS_CHUNK))
        new_metric = partial(LvisDetection, categories)
    numbers = np.array(records.category_ids, dtype=np.int64)
    return Task(
        name=records.name,
        sample_ids=ids,
        make=lambda i: _boxes_sample(ids[i], records[i], numbers),
        prompting=prompting,
        new_metric=new_metric,
        categories=tuple(Category(*pair) for pair in labels.items()),
    )


def _boxes_sample(sample_id: ItemId, record: Record, numbers: Any) -> Sample:
    """A detection record; `numbers` are the category ids of its labels."""
    assert record.labels is not None
    sides = record.boxes[:, 2:] - record.boxes[:, :2]
    reference = {
        "image_id": sample_id,
        "boxes": record.boxes.double().numpy(),
        "labels": numbers[record.labels.numpy()],
        "iscrowd": np.zeros(len(record.boxes), np.bool_) if record.crowd is None else record.crowd.numpy(),
        "area": (sides.prod(1) if record.area is None else record.area).double().numpy(),
    }
    if record.absent is not None:
        reference["neg_category_ids"] = tuple(numbers[list(record.absent)].tolist())
        reference["not_exhaustive_category_ids"] = tuple(numbers[list(record.incomplete)].tolist())
    return Sample(sample_id, record.image, reference)


def _phrases_sample(sample_id: ItemId, record: Record) -> Sample:
    """A grounding record; boxes with equal spans are of one phrase."""
    phrases = {spans: number for number, spans in enumerate(dict.fromkeys(record.spans or ()))}
    labels = np.array([phrases[spans] for spans in record.spans or ()], dtype=np.int64)
    reference = {"image_id": sample_id, "boxes": record.boxes.double().numpy(), "labels": labels}
    return Sample(sample_id, record.image, reference, str(record.caption), tuple(phrases))


def _expression_sample(sample_id: ItemId, record: Record) -> Sample:
    """A grounding record whose whole caption means all of its boxes."""
    reference = {"image_id": sample_id, "boxes": record.boxes.double().numpy()}
    return Sample(sample_id, record.image, reference, str(record.caption))
