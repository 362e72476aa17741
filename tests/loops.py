"""The terms of the loss in plain loops over plain numbers."""

from __future__ import annotations

import math

Box = list[float]


def corners(box: Box) -> Box:
    """From (cx, cy, w, h) to (x0, y0, x1, y1)."""
    cx, cy, w, h = box
    return [cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2]


def giou(first: Box, second: Box) -> float:
    """|A ∩ B| / |A ∪ B| - (|hull| - |A ∪ B|) / |hull|."""
    a, b = corners(first), corners(second)
    inner = [max(a[0], b[0]), max(a[1], b[1]), min(a[2], b[2]), min(a[3], b[3])]
    intersection = max(inner[2] - inner[0], 0.0) * max(inner[3] - inner[1], 0.0)
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - intersection
    hull = (max(a[2], b[2]) - min(a[0], b[0])) * (max(a[3], b[3]) - min(a[1], b[1]))
    return intersection / union - (hull - union) / hull


def l1(first: Box, second: Box) -> float:
    """Σ |a - b| over (cx, cy, w, h)."""
    return sum(abs(a - b) for a, b in zip(first, second, strict=True))


def focal(logit: float, is_positive: bool, alpha: float, epsilon: float) -> float:
    """-α (1 - p)² ln p for a positive, -(1 - α) p² ln(1 - p) for a negative."""
    p, q = 1 / (1 + math.exp(-logit)), 1 / (1 + math.exp(logit))
    if is_positive:
        return -alpha * q**2 * math.log(p + epsilon)
    return -(1 - alpha) * p**2 * math.log(q + epsilon)


def token_sum(logits: list[float], positives: list[int], alpha: float, epsilon: float) -> float:
    """The focal terms of one query summed over all tokens that are real."""
    real = [t for t, logit in enumerate(logits) if logit > -math.inf]
    return sum(focal(logits[t], t in positives, alpha, epsilon) for t in real)


def phrase_tokens(prompt: tuple[list[int], ...], phrase: int) -> list[int]:
    """The places of a phrase's tokens: after [CLS], and after each phrase before it and its dot."""
    start = 1 + sum(len(p) + 1 for p in prompt[:phrase])
    return list(range(start, start + len(prompt[phrase])))
