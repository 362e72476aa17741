"""Average precision as COCO defines it, computed by faster-coco-eval."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
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
        pictures: what is there, a dict a picture with `boxes (n, 4)`, xyxy in pixels, and `class_labels (n,)`.
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
        for box, label in zip(picture["boxes"].tolist(), picture["class_labels"].tolist(), strict=True):
            width, height = box[2] - box[0], box[3] - box[1]
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": label,
                    "bbox": [box[0], box[1], width, height],
                    "area": width * height,
                    "iscrowd": 0,
                }
            )
    images = [{"id": i, "width": p["image"].width, "height": p["image"].height} for i, p in enumerate(pictures)]
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
