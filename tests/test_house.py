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

# A room imports from itself and from the ones above it alone.
ROOMS = [
    "utils",
    "assets",
    "ops",
    "layers",
    "losses",
    "processing",
    "models",
    "data",
    "inference",
    "export",
    "evaluation",
    "publishing",
    "training",
    "annotation",
    "app",
    "cli",
]


def imports(path: Path) -> list[ast.ImportFrom]:
    return [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ImportFrom)]


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0]


def test_every_room_is_listed() -> None:
    folders = {path.name for path in PACKAGE.iterdir() if path.is_dir() and path.name != "__pycache__"}
    files = {path.name for path in PACKAGE.glob("*.py")}
    assert folders == set(ROOMS) and files == {"__init__.py", "__main__.py"}


@pytest.mark.parametrize(
    "path", [path for path in MODULES if path.parent != PACKAGE], ids=lambda path: str(path.relative_to(PACKAGE))
)
def test_imports_go_one_way(path: Path) -> None:
    """A module imports from its own room and from rooms above it in the list."""
    for node in imports(path):
        if node.level:
            base = path.parents[node.level - 1].joinpath(*(node.module or "").split("."))
            if base != PACKAGE:
                assert ROOMS.index(room_of(base)) <= ROOMS.index(room_of(path)), f"imports {node.module}"


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
