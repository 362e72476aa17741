"""Files of others: what they say within limits is read as the plain readers read it, the rest is one line at once."""

from __future__ import annotations

import json
from typing import Any

import pytest
import yaml

from hf_grounding_dino.utils.documents import MOST_DEPTH, MOST_NODES, load_json, load_yaml

LAUGHS = "a0: &a0 [x]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 10))
"""A billion words in 500 bytes."""
KEYS = "a0: &a0 {k: x}\n" + "".join(f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 10)}]}}\n" for i in range(1, 10))
CHAIN = "a0: &a0 [x]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}]\n" for i in range(1, 2 * MOST_DEPTH))


@pytest.mark.parametrize(
    "text",
    [
        "[1, -2, 3.5e400, null, true]",
        f"[{2**64 - 1}, {1 - 2**64}, 0.{'1' * 30}]",
        '"\\ud83d\\ude00 \\\\ud83d"',
        "\ufeff{}",
    ],
)
def test_json_within_the_limits(text: str) -> None:
    assert load_json(text.encode()) == json.loads(text.removeprefix("\ufeff"))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[" * 100_000, "nested too deeply"),
        ('{"a": ' * 100_000, "nested too deeply"),
        (f"[{'9' * 400}]", "a number of 400 digits"),
        (f'{{"a": -{"9" * 5000}}}', "a number of 5001 digits"),
        (f"[{2**64}]", "a number of 20 digits"),
        ('["\\ud83d"]', "half a character"),
        ('["\\ude00\\ud83d"]', "half a character"),
        (b'["\xed\xa0\x80"]', "utf-8"),
        ("[1,", "Expecting value"),
    ],
)
def test_json_past_them(text: str | bytes, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        load_json(text)


@pytest.mark.parametrize(
    "text",
    ["", "a: &a {b: 1e-4, c: 0x1F}\nd: {<<: *a, c: 1:30}\ne: [*a, *a]", "- " * (MOST_DEPTH - 1) + "a", "x: 'é 😀'"],
)
def test_yaml_within_the_limits(text: str) -> None:
    assert load_yaml(text) == load_yaml(text.encode()) == yaml.safe_load(text)


def test_yaml_that_is_json_has_whole_characters() -> None:
    """PyYAML itself makes two halves of it."""
    assert load_yaml('"\\ud83d\\ude00"') == "\U0001f600"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: " + "[" * 100_000, "nested too deeply"),
        ("\n".join(" " * i + "a:" for i in range(2000)), "nested too deeply"),
        (CHAIN, "nest too deeply"),
        (LAUGHS, f"more than {MOST_NODES:,} values"),
        (KEYS, f"more than {MOST_NODES:,} values"),
        ("a: &a [*a]", "values"),
        (f"a: {'9' * 400}", "a number of 400 digits"),
        (f"a: {'9' * 5000}", "a number of 5000 digits"),
        ('a: "\\ud83d"', "half a character"),
        ("a: !!python/object/apply:os.system [exit]", "could not determine a constructor"),
        ("a: !!bool maybe", "maybe"),
        ("a: 2001-99-99", "month"),
        (b"\xff\xfe\xff", "unacceptable character"),
        ("[a,\n\n", "expected"),
    ],
)
def test_yaml_past_them(text: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said) as caught:
        load_yaml(text)
    assert "\n" not in str(caught.value)
