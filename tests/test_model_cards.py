"""The cards of the public checkpoints are what their script writes, and say all that the table says."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest
import yaml

from hf_grounding_dino.evaluation.published import Checkpoint, checkpoints

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "model_cards"


def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("write_model_cards", ROOT / "scripts" / "write_model_cards.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def text_of(checkpoint: Checkpoint) -> str:
    return (FOLDER / f"{checkpoint.id.split('/')[-1]}.md").read_text(encoding="utf-8")


def test_the_cards_are_what_the_script_writes() -> None:
    """After a change of the table or of the template: python scripts/write_model_cards.py."""
    written = script().cards()
    assert set(written) | {"grounding-dino-nano.md"} == {path.name for path in FOLDER.glob("*.md")}
    for name, text in written.items():
        assert (FOLDER / name).read_text(encoding="utf-8") == text, name


@pytest.mark.parametrize("checkpoint", checkpoints(), ids=lambda one: one.id)
def test_a_card_says_every_number_and_claims_none(checkpoint: Checkpoint) -> None:
    """As many numbers in the table as there are published ones; every row ends with "no" for having been run by us."""
    text = text_of(checkpoint)
    table = text.split("## Published numbers")[1].split("## Reproduce")[0]
    rows = [row.split(" | ") for row in table.splitlines() if row.startswith("| ")][1:]
    assert {row[-1] for row in rows} == {"no |"}
    printed = sorted(float(value) for row in rows for value in re.findall(r"[ :](\d+\.\d+)\b", row[1]))
    assert printed == sorted(number.value for number in checkpoint.numbers)
    header = yaml.safe_load(text.split("---")[1])
    assert header["base_model"] == checkpoint.id
    assert "model-index" not in header


@pytest.mark.parametrize("checkpoint", checkpoints(), ids=lambda one: one.id)
def test_a_card_has_a_command_for_every_number_of_its_weights(checkpoint: Checkpoint) -> None:
    commands = re.findall(r"evaluate (\S+) --data data --model (\S+)(?: --chunk-size (\d+))? \\", text_of(checkpoint))
    assert {model for _, model, _ in commands} == {checkpoint.id}
    reached = {(name, int(chunk) if chunk else None) for name, _, chunk in commands}
    for number in checkpoint.numbers:
        if number.mark != "fine-tuned":
            assert any(number.benchmark.startswith(name) and chunk == number.chunk_size for name, chunk in reached)
