"""Average precision as COCO defines it, computed by faster-coco-eval."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from faster_coco_eval import COCO, COCOeval_faster
from torch import Tensor

NOTHING_TO_MEASURE = -1.0


def coco_average_precision(
    pictures: Sequence[Mapping[str, Any]],
    detections: Sequence[Mapping[str, Tensor]],
    num_classes: int,
    only: Collection[int] | None = None,
) -> dict[str, float]:
    """AP, AP50 and AP75 over IoU 0.50:0.95, at most 100 detections a picture.

    Args:
        pictures: what is there, a dict a picture with `boxes (n, 4)`, xyxy in pixels, and `class_labels (n,)`; also
            `crowd (n,)`, True on boxes around groups, and `area (n,)` in pixels, where they are known.
        detections: what was found, in the same order, with `scores (k,)`, `labels (k,)` and `boxes (k, 4)`.
        only: class labels to average over; None: every class that occurs.

    Returns:
        Numbers in [0, 1], -1 where no class to be averaged over occurs.
    """
    truth = COCO(_ground_truth(pictures, num_classes))
    rows = [row for image_id, found in enumerate(detections) for row in _result_rows(image_id, found)]
    if not rows:
        return dict.fromkeys(("AP", "AP50", "AP75"), 0.0)
    evaluator = COCOeval_faster(truth, truth.loadRes(rows), "bbox", print_function=lambda *_: None)
    evaluator.evaluate()
    evaluator.accumulate()
    # IoU thresholds x recall levels x classes, over all areas, at the largest number of detections.
    precision = evaluator.eval["precision"][:, :, :, 0, -1]
    if only is not None:
        precision = precision[:, :, sorted(only)]
    return {"AP": _mean(precision), "AP50": _mean(precision[0]), "AP75": _mean(precision[5])}


def _mean(precision: np.ndarray[Any, Any]) -> float:
    measured = precision[precision > NOTHING_TO_MEASURE]
    return float(measured.mean()) if measured.size else NOTHING_TO_MEASURE


def _ground_truth(pictures: Sequence[Mapping[str, Any]], num_classes: int) -> dict[str, Any]:
    annotations: list[dict[str, Any]] = []
    for image_id, picture in enumerate(pictures):
        boxes, labels = picture["boxes"], picture["class_labels"]
        sides = boxes[:, 2:] - boxes[:, :2]
        area, crowd = picture.get("area"), picture.get("crowd")
        area = sides.prod(1) if area is None else area
        crowd = torch.zeros(len(boxes), dtype=torch.bool) if crowd is None else crowd
        rows = zip(
            torch.cat([boxes[:, :2], sides], 1).tolist(), labels.tolist(), area.tolist(), crowd.tolist(), strict=True
        )
        for bbox, label, size, is_crowd in rows:
            place = {"id": len(annotations) + 1, "image_id": image_id, "category_id": label}
            annotations.append({**place, "bbox": bbox, "area": size, "iscrowd": int(is_crowd)})
    images = [{"id": i} for i in range(len(pictures))]
    categories = [{"id": i, "name": str(i)} for i in range(num_classes)]
    return {"images": images, "annotations": annotations, "categories": categories}


def _result_rows(image_id: int, found: Mapping[str, Tensor]) -> list[dict[str, Any]]:
    rows = zip(found["boxes"].tolist(), found["scores"].tolist(), found["labels"].tolist(), strict=True)
    return [
        {
            "image_id": image_id,
            "category_id": label,
            "score": score,
            "bbox": [box[0], box[1], box[2] - box[0], box[3] - box[1]],
        }
        for box, score, label in rows
    ]
