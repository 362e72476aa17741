"""Which boxes are kept where nothing else is said: the same question has the same answer from every door."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Kept:
    """Which of the boxes that a model answers with are kept.

    threshold: the least score, in [0, 1], exclusive.
    text_threshold: of a caption, the least score of the words that a box is called by, in [0, 1], exclusive.
    nms: of two boxes of one label that overlap by more (IoU, in [0, 1]), the better is kept; None keeps both.
    top_k: the most boxes of an image; None keeps all.
    chunk_size: the most labels of a prompt; None for as many as 256 tokens hold.
    """

    threshold: float = 0.25
    text_threshold: float = 0.25
    nms: float | None = None
    top_k: int | None = 300
    chunk_size: int | None = None


KEPT = Kept()
"""What is kept where nothing else is said."""
