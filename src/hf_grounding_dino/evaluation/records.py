"""How well a model finds what a data set of any format names, on any number of processes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from PIL import Image
from torch import Tensor
from torchvision.ops import box_convert, box_iou
from tqdm import tqdm

from ..data.pictures import open_picture
from ..data.records import DataError, Record, RecordSet
from ..modeling_grounding_dino import GroundingDinoForObjectDetection
from ..printable import printable
from ..processing_grounding_dino import GroundingDinoProcessor
from ..prompts import closed_caption, encode_prompt, span_token_mask
from ..vocabulary import detect
from .average_precision import coco_average_precision

HIT_IOU = 0.5
TOP_K = 300
BATCH_SIZE = 8


class Outcome(NamedTuple):
    """What became of one record.

    number: of the record.
    truth: of a detection record, as `coco_average_precision` reads it.
    found: its detections.
    hits: of a grounding record, for each phrase that has a box, whether the best box hits one of them.
    """

    number: int
    truth: dict[str, Any] | None
    found: dict[str, Any] | None
    hits: list[bool]


@torch.inference_mode()
def evaluate_records(
    model: GroundingDinoForObjectDetection,
    processor: GroundingDinoProcessor,
    records: RecordSet,
    *,
    limit: int | None = None,
) -> dict[str, float]:
    """Measure a model on a data set; every process takes its part, all get the result.

    Args:
        model: in eval mode, where it is to run.
        limit: of the records, the first so many.

    Raises:
        DataError: a picture cannot be read; it is named.

    Returns:
        Of detection records `AP`, `AP50` and `AP75` over all labels of the set, 300 boxes a picture. Of grounding
        records `R@1`: the share of phrases whose best box (mean over the phrase's tokens) has IoU >= 0.5 with one of
        theirs. In [0, 1]; -1 where there is nothing to measure.
    """
    state = PartialState()
    count = len(records) if limit is None else min(limit, len(records))
    own = range(state.process_index, count, state.num_processes)
    outcomes: list[Outcome] = []
    starts = range(0, len(own), BATCH_SIZE)
    for start in tqdm(starts, desc=printable(records.name), leave=False, disable=not state.is_main_process):
        indices = own[start : start + BATCH_SIZE]
        outcomes += _evaluate_batch(model, processor, records, indices)
    if state.num_processes > 1:
        outcomes = gather_object(outcomes)
    outcomes.sort(key=lambda outcome: outcome.number)
    return _scores(outcomes, len(records.label_names))


def _evaluate_batch(
    model: GroundingDinoForObjectDetection,
    processor: GroundingDinoProcessor,
    records: RecordSet,
    indices: Sequence[int],
) -> list[Outcome]:
    batch = [records[i] for i in indices]
    images = [_opened(record, records.name) for record in batch]
    if batch[0].caption is not None:
        return [
            Outcome(i, None, None, hits)
            for i, hits in zip(indices, _phrase_hits(model, processor, images, batch), strict=True)
        ]
    detections = detect(model, processor, images, list(records.label_names), top_k=TOP_K)
    kept: list[dict[str, Any]] = [
        {name: value.cpu() if isinstance(value, Tensor) else value for name, value in found.items()}
        for found in detections
    ]
    return [Outcome(i, _truth(record), found, []) for i, record, found in zip(indices, batch, kept, strict=True)]


def _opened(record: Record, name: str) -> Image.Image:
    try:
        return open_picture(record.image)
    except ValueError as error:
        where = record.image if isinstance(record.image, Path) else f"image {record.image_id}"
        raise DataError(f"{name}: {where} cannot be read: {error}") from error


def _truth(record: Record) -> dict[str, Any]:
    assert record.labels is not None
    return {"boxes": record.boxes, "class_labels": record.labels, "crowd": record.crowd, "area": record.area}


def _phrase_hits(
    model: GroundingDinoForObjectDetection,
    processor: GroundingDinoProcessor,
    images: Sequence[Any],
    batch: Sequence[Record],
) -> list[list[bool]]:
    captions = [closed_caption(str(record.caption)) for record in batch]
    inputs = processor(images=list(images), text=captions).to(model.device)
    output: Any = model(**inputs)
    results = []
    for image, record, caption, logits_QT, boxes_Q4 in zip(
        images, batch, captions, output.logits.float(), output.pred_boxes, strict=True
    ):
        prompt = encode_prompt(caption, processor.tokenizer)
        scale = torch.tensor([image.width, image.height] * 2)
        hits = []
        for spans in dict.fromkeys(record.spans or ()):
            tokens_T = span_token_mask(prompt, spans).to(logits_QT.device)
            scores_Q = logits_QT[:, : len(tokens_T)][:, tokens_T].sigmoid().mean(1)
            best = box_convert(boxes_Q4[scores_Q.argmax()].cpu(), "cxcywh", "xyxy") * scale
            wanted = record.boxes[[i for i, own in enumerate(record.spans or ()) if own == spans]]
            hits.append(bool((box_iou(best[None], wanted) >= HIT_IOU).any()))
        results.append(hits)
    return results


def _scores(outcomes: Sequence[Outcome], num_labels: int) -> dict[str, float]:
    if outcomes and outcomes[0].truth is None:
        hits = [hit for outcome in outcomes for hit in outcome.hits]
        return {"R@1": sum(hits) / len(hits) if hits else -1.0}
    truths = [outcome.truth for outcome in outcomes if outcome.truth is not None]
    found = [outcome.found for outcome in outcomes if outcome.found is not None]
    return coco_average_precision(truths, found, num_labels)
