"""The code of this package beside a saved model, for `trust_remote_code=True` where the package is not installed.

The loader of transformers copies flat modules that import each other by `from .module import name`, and nothing else.
So the modules are written under flat names, and a module of their classes beside them, by which the loader enters. The
kernels are no part of it: without the package, deformable attention is plain PyTorch.
"""

from __future__ import annotations

import ast
import json
import os
import sys
from pathlib import Path
from typing import Any

from ..models.grounding_dino.configuration_grounding_dino import GroundingDinoConfig, MMGroundingDinoConfig
from ..models.grounding_dino.modeling_grounding_dino import (
    GroundingDinoForObjectDetection,
    GroundingDinoModel,
    MMGroundingDinoForObjectDetection,
    MMGroundingDinoModel,
)
from ..processing.image_processing_grounding_dino import GroundingDinoImageProcessor
from ..processing.processing_grounding_dino import GroundingDinoProcessor
from ..utils.atomic import write_atomic

_MODEL_CLASSES: dict[str, dict[str, type]] = {
    "grounding-dino": {
        "AutoConfig": GroundingDinoConfig,
        "AutoModel": GroundingDinoModel,
        "AutoModelForZeroShotObjectDetection": GroundingDinoForObjectDetection,
    },
    "mm-grounding-dino": {
        "AutoConfig": MMGroundingDinoConfig,
        "AutoModel": MMGroundingDinoModel,
        "AutoModelForZeroShotObjectDetection": MMGroundingDinoForObjectDetection,
    },
}
_IMAGE_PROCESSOR: dict[str, type] = {"AutoImageProcessor": GroundingDinoImageProcessor}
_PROCESSOR: dict[str, type] = {"AutoProcessor": GroundingDinoProcessor}
_ALL_CLASSES = [own for group in (*_MODEL_CLASSES.values(), _IMAGE_PROCESSOR, _PROCESSOR) for own in group.values()]
_PACKAGE = Path(__file__).parents[1]
_ENTRY = "grounding_dino_code"


def export_remote_code(folder: str | os.PathLike[str]) -> list[Path]:
    """Put the code of the model and its processor into a folder that `save_pretrained` wrote.

    With `trust_remote_code=True` the auto classes of transformers then give the classes of this package, installed or
    not; without it they give the stock ones as before, and ask nothing. A repo without this is the rule: whoever has
    the package needs no copy of it.

    Args:
        folder: holds the `config.json` of either model type, and the files of the processor if there is one.

    Returns:
        The files that were written or changed.

    Raises:
        ValueError: there is no configuration of this family in the folder.
    """
    root = Path(folder)
    config = root / "config.json"
    model_type = _read(config).get("model_type") if config.is_file() else None
    if model_type not in _MODEL_CLASSES:
        raise ValueError(f"{config}: no configuration of {' or '.join(_MODEL_CLASSES)} is here.")
    changed = [*(_copy(module, root) for module in _modules()), _write_entry(root)]
    processor, images = root / "processor_config.json", root / "preprocessor_config.json"
    if processor.is_file():
        values = _with_classes(_read(processor), _PROCESSOR)
        if isinstance(values.get("image_processor"), dict):
            values["image_processor"] = _with_classes(values["image_processor"], _IMAGE_PROCESSOR)
        changed.append(_write(processor, values))
    if images.is_file():
        changed.append(_write(images, _with_classes(_read(images), _IMAGE_PROCESSOR | _PROCESSOR)))
    # Last, so that it names no module that is not there.
    return [*changed, _write(config, _with_classes(_read(config), _MODEL_CLASSES[model_type]))]


def _modules() -> list[Path]:
    """The modules of the public classes and all that they import from this package, and they, and so on."""
    found = [Path(sys.modules[own.__module__].__file__ or "") for own in _ALL_CLASSES]
    found = list(dict.fromkeys(found))
    for module in found:
        for _, needed in _own_imports(module):
            found += [needed] if needed not in found else []
    return found


def _own_imports(module: Path) -> list[tuple[ast.ImportFrom, Path]]:
    """The imports from this package in a module, and the files that they name."""
    imports = []
    for node in ast.walk(ast.parse(module.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level:
            file = module.parents[node.level - 1].joinpath(*str(node.module).split(".")).with_suffix(".py")
            imports.append((node, file))
    return imports


def _flat_name(module: Path) -> str:
    """`layers/attention.py` is `layers_attention`."""
    return "_".join(module.relative_to(_PACKAGE).with_suffix("").parts)


def _copy(module: Path, folder: Path) -> Path:
    """Write a module under its flat name, its imports too."""
    lines = module.read_text(encoding="utf-8").splitlines(keepends=True)
    for node, file in _own_imports(module):
        before = f"from {'.' * node.level}{node.module} import"
        lines[node.lineno - 1] = lines[node.lineno - 1].replace(before, f"from .{_flat_name(file)} import")
    return write_atomic(folder / f"{_flat_name(module)}.py", "".join(lines))


def _write_entry(folder: Path) -> Path:
    """The one module by which the loader enters, so that all classes of a repo share one copy of the others."""
    lines = ['"""The classes of this repo, for `trust_remote_code=True`."""\n\n']
    for own in _ALL_CLASSES:
        module = Path(sys.modules[own.__module__].__file__ or "")
        lines.append(f"from .{_flat_name(module)} import {own.__name__}\n")
    return write_atomic(folder / f"{_ENTRY}.py", "".join(lines))


def _with_classes(values: dict[str, Any], classes: dict[str, type]) -> dict[str, Any]:
    entries = {auto: f"{_ENTRY}.{own.__name__}" for auto, own in classes.items()}
    return values | {"auto_map": values.get("auto_map", {}) | entries}


def _read(file: Path) -> dict[str, Any]:
    values: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return values


def _write(file: Path, values: dict[str, Any]) -> Path:
    return write_atomic(file, json.dumps(values, indent=2, ensure_ascii=False) + "\n")
