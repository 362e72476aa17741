"""How well a model finds what the records of a dataset name."""

from __future__ import annotations

from ..data.records import RecordSet
from ..inference.predictor import Predictor
from ..models.grounding_dino.modeling_grounding_dino import GroundingDinoForObjectDetection
from ..processing.processing_grounding_dino import GroundingDinoProcessor
from .datasets import records_task
from .runner import evaluate

BATCH_SIZE = 8
_NAMES = {"AP": "AP", "AP50": "AP50", "AP75": "AP75", "R@1": "R@1", "P@1": "R@1"}


def evaluate_records(
    model: GroundingDinoForObjectDetection,
    processor: GroundingDinoProcessor,
    records: RecordSet,
    *,
    limit: int | None = None,
) -> dict[str, float]:
    """AP, AP50 and AP75, or R@1, of the first `limit` records; each process takes a part, all get the result.

    Raises:
        DataError: an image cannot be read; it is named.
    """
    task = records_task(records)
    found = evaluate(task if limit is None else task.first(limit), Predictor(model, processor, batch_size=BATCH_SIZE))
    return {ours: found[theirs] for theirs, ours in _NAMES.items() if theirs in found}
