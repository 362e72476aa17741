"""How well a model finds what a data set of any format names, on any number of processes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from accelerate import PartialState
from PIL import Image
from tqdm import tqdm

from ..data.images import load_image
from ..data.records import DataError, Record, RecordSet
from ..models.grounding_dino.modeling_grounding_dino import GroundingDinoForObjectDetection
from ..processing.processing_grounding_dino import GroundingDinoProcessor
from ..utils.printable import printable
from .askers import CaptionAsker, ExpressionAsker, LabelAsker
from .assembly import LVIS_CHUNK
from .cases import boxes_case, expression_case, phrases_case
from .coco import CocoDetection
from .lvis import LvisDetection
from .metric import ItemMetric
from .phrase_grounding import PhraseGrounding
from .referring import ReferringExpressions
from .tasks import Asker, Case, CaseId

BATCH_SIZE = 8
_LOOKED_AT = 100
_AVERAGE_PRECISION = {name: name for name in ("AP", "AP50", "AP75")}


class _Protocol(NamedTuple):
    """How the benchmark of such a set asks and judges.

    make: a case of a record, whose name is its number.
    scores: what the scores are called, by what the metric calls them.
    """

    ask: Asker
    metric: ItemMetric[Any]
    make: Callable[[CaseId, Record], Case]
    scores: Mapping[str, str]


@torch.inference_mode()
def evaluate_records(
    model: GroundingDinoForObjectDetection,
    processor: GroundingDinoProcessor,
    records: RecordSet,
    *,
    limit: int | None = None,
) -> dict[str, float]:
    """Measure a model on a data set, as the benchmark of its kind does; each process takes a part, all get the result.

    Args:
        model: in eval mode, where it is to run.
        limit: of the records, the first so many.

    Raises:
        DataError: an image cannot be read; it is named.

    Returns:
        Of detection records `AP`, `AP50` and `AP75` over all labels of the set: as COCO's, 300 boxes an image; of a
        federated set as LVIS's fixed AP, where only labels count that were looked for in an image. Of grounding
        records `R@1`: the share of phrases whose best box (mean over the phrase's tokens) has IoU >= 0.5 with one of
        theirs, or where each caption names one thing, as in RefCOCO, of captions (best token of the whole). In [0, 1];
        -1 where there is nothing to measure.
    """
    state = PartialState()
    count = len(records) if limit is None else min(limit, len(records))
    protocol = _protocol_of(records, count, state)
    own = range(state.process_index, count, state.num_processes)
    starts = range(0, len(own), BATCH_SIZE)
    for start in tqdm(starts, desc=printable(records.name), leave=False, disable=not state.is_main_process):
        cases = [protocol.make(i, records[i]) for i in own[start : start + BATCH_SIZE]]
        if not records.label_names:
            cases = [case for case in cases if len(case.reference["boxes"])]
        if cases:
            answers = protocol.ask(model, processor, [_opened(case, records.name) for case in cases], cases)
            protocol.metric.add_batch(
                predictions=[answer.as_prediction(case.case_id) for answer, case in zip(answers, cases, strict=True)],
                references=[case.reference for case in cases],
            )
    found = protocol.metric.compute()
    return {name: found[theirs] for name, theirs in protocol.scores.items()}


def _protocol_of(records: RecordSet, count: int, state: PartialState) -> _Protocol:
    processes = {"num_process": state.num_processes, "process_id": state.process_index}
    if not records.label_names:
        if _are_expressions(records, count):
            return _Protocol(ExpressionAsker(), ReferringExpressions(**processes), expression_case, {"R@1": "P@1"})
        return _Protocol(CaptionAsker(), PhraseGrounding(**processes), phrases_case, {"R@1": "R@1"})
    labels = dict(zip(records.category_ids, records.label_names, strict=True))
    make = partial(boxes_case, numbers=np.array(records.category_ids, dtype=np.int64))
    if count and records[0].absent is not None:
        categories = [{"id": number, "name": name, "frequency": "f"} for number, name in labels.items()]
        ask = LabelAsker(labels=labels, chunk_size=LVIS_CHUNK, each_ranked=True)
        return _Protocol(ask, LvisDetection(categories, **processes), make, _AVERAGE_PRECISION)
    metric = CocoDetection(list(labels), **processes)
    return _Protocol(LabelAsker(labels=labels), metric, make, _AVERAGE_PRECISION)


def _are_expressions(records: RecordSet, count: int) -> bool:
    """Whether no caption names several things, as far as the first of them tell."""
    return all(len(set(records[i].spans or ())) <= 1 for i in range(min(count, _LOOKED_AT)))


def _opened(case: Case, name: str) -> Image.Image:
    try:
        return load_image(case.image)
    except ValueError as error:
        where = case.image if isinstance(case.image, Path) else f"image {case.case_id}"
        raise DataError(f"{name}: {where} cannot be read: {error}") from error
