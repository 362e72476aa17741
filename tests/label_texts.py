"""Texts that may be labels."""

from __future__ import annotations

from typing import Any

from hf_grounding_dino.processing.prompts import encode_labels


def is_label(tokenizer: Any, text: str) -> bool:
    """Whether the text is a label at all: the refusals have tests of their own."""
    try:
        encode_labels([text], tokenizer)
    except ValueError:
        return False
    return True
