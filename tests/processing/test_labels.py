"""Labels as people write them."""

from __future__ import annotations

import pytest

from hf_grounding_dino.processing.labels import parse_labels


def test_labels_as_people_write_them() -> None:
    assert parse_labels(["cat, remote control", "dog,cat"]) == ["cat", "remote control", "dog"]
    assert parse_labels(['"a, b", c']) == ["a, b", "c"]
    assert parse_labels(["cat\ndog\n"]) == parse_labels(["cat,, dog,"], skip_empty=True) == ["cat", "dog"]
    for text in ("cat,", " ", '""', "cat, ,dog"):
        with pytest.raises(ValueError, match="label"):
            parse_labels([text])
