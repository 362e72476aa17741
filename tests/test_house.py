"""How the package is laid out: data flows one way, nothing private is borrowed, importing is cheap."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import hf_grounding_dino

PACKAGE = Path(hf_grounding_dino.__file__).parent
MODULES = sorted(PACKAGE.rglob("*.py"))

# A file is a stage of the data's way; it imports from the ones above it alone.
STAGES = [
    "documents",
    "whole_files",
    "printable",
    "kept",
    "hub_or_cache",
    "memory",
    "configuration_grounding_dino",
    "outputs",
    "context",
    "positions",
    "prompts",
    "image_files",
    "image_processing_grounding_dino",
    "post_processing",
    "processing_grounding_dino",
    "kernel",
    "token_wise",
    "deformable",
    "attention",
    "swin",
    "backbones",
    "text_features",
    "enhancer",
    "heads",
    "query_selection",
    "decoder",
    "targets",
    "matcher",
    "losses",
    "denoising",
    "label_table",
    "passage",
    "objective",
    "modeling_grounding_dino",
    "loading",
    "closed_vocabulary",
    "masked_pyramid",
    "exporting",
    "conversion_rules",
    "foreign_checkpoint",
    "architecture",
    "conversion",
    "thresholds",
    "vocabulary",
    "pipeline",
    "registration",
    "remote_code",
    "drawing",
    "canvas",
]
FLAT = [path for path in MODULES if path.parent == PACKAGE and not path.stem.startswith("__")]


def imports(path: Path) -> list[ast.ImportFrom]:
    return [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ImportFrom)]


def test_every_stage_is_listed() -> None:
    assert sorted(path.stem for path in FLAT) == sorted(STAGES)


@pytest.mark.parametrize("path", FLAT, ids=lambda path: path.stem)
def test_imports_only_go_up(path: Path) -> None:
    own = [node for node in imports(path) if node.level]
    assert all(node.level == 1 and node.module in STAGES for node in own), "flat modules import flat modules"
    later = [node.module for node in own if STAGES.index(str(node.module)) >= STAGES.index(path.stem)]
    assert not later


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_nothing_private_is_imported(path: Path) -> None:
    for node in imports(path):
        if not node.level and node.module != "__future__":
            names = [*str(node.module).split("."), *(alias.name for alias in node.names)]
            assert not [name for name in names if name.startswith("_")]
            assert not str(node.module).startswith("transformers.models.")


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_files_and_functions_stay_readable(path: Path) -> None:
    text = path.read_text()
    assert text.count("\n") <= 400
    functions = [n for n in ast.walk(ast.parse(text)) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]
    assert not [f.name for f in functions if (f.end_lineno or 0) - f.lineno + 1 > 60]


def test_every_public_name_can_be_imported() -> None:
    for name in hf_grounding_dino.__all__:
        assert getattr(hf_grounding_dino, name).__module__.startswith("hf_grounding_dino.")
    with pytest.raises(AttributeError, match="NoSuchName"):
        _ = hf_grounding_dino.NoSuchName


def test_importing_costs_nothing() -> None:
    code = "import sys, hf_grounding_dino; print(sorted({'torch', 'transformers', 'torchvision'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_importing_changes_nothing_in_transformers() -> None:
    """The auto classes give stock classes before and after every public name was used."""
    code = """
import transformers
from transformers import AutoConfig, AutoModelForZeroShotObjectDetection
import hf_grounding_dino
for name in hf_grounding_dino.__all__:
    getattr(hf_grounding_dino, name)
for model_type in ("grounding-dino", "mm-grounding-dino"):
    config = AutoConfig.for_model(model_type)
    assert type(config).__module__.startswith("transformers."), type(config)
    model_class = AutoModelForZeroShotObjectDetection._model_mapping[type(config)]
    assert model_class.__module__.startswith("transformers."), model_class
"""
    subprocess.run([sys.executable, "-c", code], check=True)
