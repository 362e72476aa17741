"""What the metrics of average precision share."""

from __future__ import annotations

import numpy as np

from hf_grounding_dino.evaluation.average_precision import best_of_each


def test_the_best_of_each_group_are_found_where_they_are() -> None:
    """Of group 4 the 0.9 and the first of two 0.5; group 2 has one only. Places are in rising order."""
    groups, scores = np.array([4, 2, 4, 4, 4]), np.array([0.5, 0.1, 0.5, 0.9, 0.2])
    assert best_of_each(groups, scores, 2).tolist() == [0, 1, 3]
    assert best_of_each(groups[:0], scores[:0], 2).tolist() == []
