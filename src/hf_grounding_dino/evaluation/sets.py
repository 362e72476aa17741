"""Data sets as tasks: the cases that a model is asked, how it is asked, and the metric that judges it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

import numpy as np

from ..data.records import DataError, Record, RecordSet
from .askers import CaptionAsker, ExpressionAsker, LabelAsker
from .cases import (
    AskedCases,
    CaseList,
    ListedCases,
    RecordCases,
    SomeCases,
    TruthCases,
    boxes_case,
    expression_case,
    phrases_case,
    record_ids,
)
from .coco import CocoDetection
from .described_objects import DescribedObjects
from .metric import ItemMetric
from .phrase_grounding import PhraseGrounding
from .referring import ReferringExpressions
from .sentence_files import Sentences, caption_cases, expression_cases
from .tasks import Asker, Case, CaseId
from .truth import Category, TruthFile, prompt_names, refuse_missing

NewMetric = Callable[[], ItemMetric[Any]]


@dataclass(frozen=True, kw_only=True)
class CaseTask:
    """A task over a list of cases; the classes below say where those come from.

    name: for people and for file names.
    cases: what is asked.
    ask: how the model is asked.
    new_metric: makes an empty metric.
    labels: category id to name, as in the annotation file; empty where each case has a text of its own.
    categories: the same with what else the file says of them.
    missing: pictures that are named and not there, and were left out.
    left_out: cases that the data has and that are not asked; predictions of them are passed over.
    """

    name: str
    cases: CaseList
    ask: Asker
    new_metric: NewMetric
    categories: tuple[Category, ...] = ()
    missing: tuple[str, ...] = ()
    left_out: frozenset[CaseId] = frozenset()
    labels: Mapping[int, str] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        """Name the labels.

        Raises:
            DataError: two cases are called alike, or there is none.
        """
        object.__setattr__(self, "labels", {category.id: category.name for category in self.categories})
        ids = self.cases.ids
        if not ids:
            raise DataError(f"{self.name}: there is nothing to evaluate on")
        if len(set(ids)) < len(ids):
            seen: set[CaseId] = set()
            twice = next(i for i in ids if i in seen or seen.add(i))  # type: ignore[func-returns-value]
            raise DataError(f"{self.name}: two pictures have the id {twice!r}")

    @property
    def case_ids(self) -> Sequence[CaseId]:
        """The `case_id` of each case, without making it."""
        return self.cases.ids

    def metric(self) -> ItemMetric[Any]:
        """A new metric, empty."""
        return self.new_metric()

    def first(self, count: int) -> Self:
        """The task with its first `count` cases only."""
        left_out = self.left_out.union(self.cases.ids[count:])
        return replace(self, cases=SomeCases(self.cases, range(min(count, len(self)))), left_out=left_out)

    def __len__(self) -> int:
        """Number of cases."""
        return len(self.cases.ids)

    def __getitem__(self, index: int) -> Case:
        """The case at a position from 0."""
        return self.cases[index]

    def __iter__(self) -> Iterator[Case]:
        """All cases."""
        return (self.cases[i] for i in range(len(self)))


class DetectionTask(CaseTask):
    """Pictures that are all asked for the same labels."""

    @classmethod
    def from_truth(
        cls,
        truth: TruthFile,
        *,
        name: str,
        ask: Asker | None = None,
        new_metric: NewMetric | None = None,
        leave_out_missing: bool = False,
    ) -> Self:
        """All images of a COCO or LVIS file.

        Args:
            ask: by default all names, cleaned, in prompts as long as training had them, 300 boxes a picture.
            new_metric: by default that of COCO.
            leave_out_missing: do without pictures that are not there, instead of refusing.

        Raises:
            DataError: pictures are not there; nothing is checked where the file was read without a folder.
        """
        missing = tuple(truth.files[i] or f"image {truth.image_ids[i]}" for i in sorted(truth.missing))
        if not leave_out_missing:
            refuse_missing(missing, len(truth), truth.path)
        rows = [i for i in range(len(truth)) if i not in truth.missing]
        return cls(
            name=name,
            cases=TruthCases(truth, rows),
            ask=ask or LabelAsker(labels=prompt_names(truth.categories)),
            new_metric=new_metric or _coco_metric(truth.categories),
            categories=truth.categories,
            missing=tuple(missing),
            left_out=frozenset(truth.image_ids[i] for i in truth.missing),
        )

    @classmethod
    def from_records(cls, records: RecordSet, *, ask: Asker | None = None, new_metric: NewMetric | None = None) -> Self:
        """All records of a detection set of any format; its boxes are as training sees them.

        Raises:
            DataError: the set has captions instead of labels.
        """
        if not records.label_names:
            raise DataError(f"{records.name}: has captions instead of labels")
        numbered = zip(records.category_ids, records.label_names, strict=True)
        categories = tuple(Category(number, name) for number, name in numbered)
        numbers = np.array(records.category_ids, dtype=np.int64)
        return cls(
            name=records.name,
            cases=RecordCases(records, record_ids(records), lambda case_id, one: boxes_case(case_id, one, numbers)),
            ask=ask or LabelAsker(labels={category.id: category.name for category in categories}),
            new_metric=new_metric or _coco_metric(categories),
            categories=categories,
        )


class CaptionTask(CaseTask):
    """Captions whose phrases are to be found."""

    @classmethod
    def from_mdetr(
        cls, path: Path, images: Path | None, *, name: str, ask: Asker | None = None,
        new_metric: NewMetric = PhraseGrounding, leave_out_missing: bool = False,
    ) -> Self:  # fmt: skip
        """An MDETR-style file with `tokens_positive_eval` (Flickr30k Entities).

        Raises:
            DataError: as `sentence_files.caption_cases`, or pictures are not there.
        """
        cases, missing = caption_cases(path, images)
        left_out = _without_picture(cases, missing, path, leave_out_missing)
        return cls(
            name=name,
            cases=ListedCases([case for case in cases if case.case_id not in left_out]),
            ask=ask or CaptionAsker(),
            new_metric=new_metric,
            missing=tuple(missing),
            left_out=left_out,
        )

    @classmethod
    def from_records(
        cls, records: RecordSet, *, ask: Asker | None = None, new_metric: NewMetric = PhraseGrounding
    ) -> Self:
        """All records of a grounding set of any format; boxes with equal spans are of one phrase.

        Raises:
            DataError: the set has labels instead of captions.
        """
        cases = _caption_records(records, phrases_case)
        return cls(name=records.name, cases=cases, ask=ask or CaptionAsker(), new_metric=new_metric)


class ExpressionTask(CaseTask):
    """Sentences that each mean one thing, several or nothing in a picture."""

    @classmethod
    def from_mdetr(
        cls, path: Path, images: Path | None, *, name: str, dataset_name: str | None = None, generalized: bool = False,
        ask: Asker | None = None, new_metric: NewMetric = ReferringExpressions, leave_out_missing: bool = False,
    ) -> Self:  # fmt: skip
        """An MDETR-style file (RefCOCO, RefCOCO+, RefCOCOg, gRefCOCO), an expression an image entry.

        Args:
            dataset_name: of a file with several sets, the one to keep.
            generalized: whether expressions may mean nothing (gRefCOCO).

        Raises:
            DataError: as `sentence_files.expression_cases`, or pictures are not there.
        """
        cases, missing = expression_cases(path, images, dataset_name=dataset_name, generalized=generalized)
        left_out = _without_picture(cases, missing, path, leave_out_missing)
        return cls(
            name=name,
            cases=ListedCases([case for case in cases if case.case_id not in left_out]),
            ask=ask or ExpressionAsker(),
            new_metric=new_metric,
            missing=tuple(missing),
            left_out=left_out,
        )

    @classmethod
    def from_records(
        cls, records: RecordSet, *, ask: Asker | None = None, new_metric: NewMetric = ReferringExpressions
    ) -> Self:
        """All records of a grounding set of any format; the whole caption means all of its boxes.

        Raises:
            DataError: the set has labels instead of captions.
        """
        cases = _caption_records(records, expression_case)
        return cls(name=records.name, cases=cases, ask=ask or ExpressionAsker(), new_metric=new_metric)


class DescriptionTask(CaseTask):
    """Pictures that are each asked for the sentences of their own group (D3)."""

    @classmethod
    def from_truth(
        cls,
        truth: TruthFile,
        sentences: Sentences,
        *,
        name: str,
        one_by_one: bool = False,
        top_k: int = 300,
        new_metric: NewMetric | None = None,
        leave_out_missing: bool = False,
    ) -> Self:
        """A COCO file whose categories are sentences.

        Args:
            sentences: all of them, and which each picture is asked for.
            one_by_one: a prompt for each sentence ("parallel") instead of one for all of the picture ("concat").
            top_k: boxes a prompt.

        Raises:
            DataError: a picture has no group, or pictures are not there.
        """
        for image_id in truth.image_ids:
            if image_id not in sentences.asked:
                raise DataError(f"{truth.path}: image {image_id} has no group of sentences")
        asker = LabelAsker(
            labels=sentences.texts,
            chunk_size=1 if one_by_one else None,
            chunk_tokens=None,
            top_k=top_k,
            each_ranked=True,
            asked={image_id: sentences.asked[image_id] for image_id in truth.image_ids},
        )
        plain = DetectionTask.from_truth(truth, name=name, ask=asker, leave_out_missing=leave_out_missing)
        return cls(
            name=name,
            cases=AskedCases(plain.cases, sentences.asked),
            ask=asker,
            new_metric=new_metric or (lambda: DescribedObjects(sentences.texts, sentences.presence)),
            categories=tuple(Category(number, text) for number, text in sentences.texts.items()),
            missing=plain.missing,
            left_out=plain.left_out,
        )


def _caption_records(records: RecordSet, make: Callable[[CaseId, Record], Case]) -> RecordCases:
    if records.label_names:
        raise DataError(f"{records.name}: has labels instead of captions")
    ids = record_ids(records)
    # A picture with several captions comes up as often; then the position is the name of the case.
    return RecordCases(records, ids if len(set(ids)) == len(ids) else range(len(ids)), make)


def _without_picture(cases: Sequence[Case], missing: Collection[str], path: Path, leave_out: bool) -> frozenset[CaseId]:
    """The cases whose pictures are not there.

    Raises:
        DataError: there are some, and they are not to be left out.
    """
    gone = set(missing)
    if not leave_out:
        refuse_missing(sorted(gone), len({case.image for case in cases}), path)
    return frozenset(case.case_id for case in cases if str(case.image) in gone)


def _coco_metric(categories: Sequence[Category]) -> NewMetric:
    numbers = [category.id for category in categories]
    return lambda: CocoDetection(categories=numbers)
