"""How much boxes overlap."""

from __future__ import annotations

from typing import Any

import numpy as np
from faster_coco_eval.core import mask
from numpy.typing import NDArray


def overlaps(found: NDArray[Any], truths: NDArray[Any], crowd: NDArray[np.bool_] | None = None) -> NDArray[np.float64]:
    """IoU of each box with each truth, `(k, n)`; both (., 4), xyxy. 0 between two boxes without area.

    Args:
        crowd: `(n,)`, True on boxes around groups, of which the share of the box that lies in them counts instead.
    """
    if not len(found) or not len(truths):
        return np.zeros((len(found), len(truths)))
    flags = np.zeros(len(truths), dtype=np.uint8) if crowd is None else crowd.astype(np.uint8)
    common = np.asarray(mask.iou(_corner_and_sides(found), _corner_and_sides(truths), flags.tolist()))
    return np.nan_to_num(common, nan=0.0)


def _corner_and_sides(boxes: NDArray[Any]) -> NDArray[np.float64]:
    wide = boxes.astype(np.float64)
    return np.concatenate([wide[:, :2], wide[:, 2:] - wide[:, :2]], 1)
