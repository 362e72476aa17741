"""The code of this package beside a saved model, for `trust_remote_code=True` where the package is not installed.

The loader of transformers copies flat modules that import each other by `from .module import name`, and nothing else.
So the modules are written under flat names, and a module of their classes beside them, by which the loader enters. The
kernels are no part of it: without the package, deformable attention is plain PyTorch.
"""

from __future__ import annotations

import ast
import importlib.util
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ..models.registry import MODEL_TYPES, load
from ..utils.atomic import write_atomic

_PACKAGE = __name__.partition(".")[0]
_ENTRY = "grounding_dino_code"


def export_remote_code(folder: str | os.PathLike[str]) -> list[Path]:
    """Put the code of the model and its processor into a folder that `save_pretrained` wrote.

    With `trust_remote_code=True` the auto classes of transformers then give the classes of this package, installed or
    not; without it they give the stock ones as before, and ask nothing. A repo without this is the rule: whoever has
    the package needs no copy of it.

    Args:
        folder: holds the `config.json` of a model type of this package, and the files of the processor if there is one.

    Returns:
        The files that were written or changed.

    Raises:
        ValueError: there is no configuration of this family in the folder.
    """
    root = Path(folder)
    config = root / "config.json"
    model_type = _read(config).get("model_type") if config.is_file() else None
    if model_type not in MODEL_TYPES:
        raise ValueError(f"{config}: no configuration of {' or '.join(MODEL_TYPES)} is here.")
    row = MODEL_TYPES[model_type]
    model = {"AutoConfig": load(row.config), "AutoModel": load(row.model), row.auto_class: load(row.detector)}
    image_processor = {"AutoImageProcessor": load(row.image_processor)}
    processor = {"AutoProcessor": load(row.processor)} if row.processor else {}
    classes = [*model.values(), *image_processor.values(), *processor.values()]
    changed = [*(_copy(name, root) for name in _modules(classes)), _write_entry(classes, root)]
    processor_file, images_file = root / "processor_config.json", root / "preprocessor_config.json"
    if processor_file.is_file():
        values = _with_classes(_read(processor_file), processor)
        if isinstance(values.get("image_processor"), dict):
            values["image_processor"] = _with_classes(values["image_processor"], image_processor)
        changed.append(_write(processor_file, values))
    if images_file.is_file():
        changed.append(_write(images_file, _with_classes(_read(images_file), image_processor | processor)))
    # Last, so that it names no module that is not there.
    return [*changed, _write(config, _with_classes(_read(config), model))]


def _modules(classes: Iterable[type]) -> list[str]:
    """The modules of classes and all that they import from this package, and they, and so on."""
    found = list(dict.fromkeys(own.__module__ for own in classes))
    for name in found:  # which grows meanwhile
        for _, needed in _own_imports(name):
            found += [needed] if needed not in found else []
    return found


def _source(name: str) -> str:
    spec = importlib.util.find_spec(name)
    assert spec is not None and spec.origin is not None
    return Path(spec.origin).read_text(encoding="utf-8")


def _own_imports(name: str) -> list[tuple[ast.ImportFrom, str]]:
    """The imports from this package in a module, and the modules that they name."""
    imports = [node for node in ast.walk(ast.parse(_source(name))) if isinstance(node, ast.ImportFrom) and node.level]
    above = name.rpartition(".")[0]
    return [(node, importlib.util.resolve_name("." * node.level + str(node.module), above)) for node in imports]


def _flat_name(name: str) -> str:
    """`hf_grounding_dino.layers.attention` is `layers_attention`."""
    return name.removeprefix(f"{_PACKAGE}.").replace(".", "_")


def _copy(name: str, folder: Path) -> Path:
    """Write a module under its flat name, its imports too."""
    lines = _source(name).splitlines(keepends=True)
    for node, needed in _own_imports(name):
        before = f"from {'.' * node.level}{node.module} import"
        lines[node.lineno - 1] = lines[node.lineno - 1].replace(before, f"from .{_flat_name(needed)} import")
    return write_atomic(folder / f"{_flat_name(name)}.py", "".join(lines))


def _write_entry(classes: Iterable[type], folder: Path) -> Path:
    """The one module by which the loader enters, so that all classes of a repo share one copy of the others."""
    lines = ['"""The classes of this repo, for `trust_remote_code=True`."""\n\n']
    lines += [f"from .{_flat_name(own.__module__)} import {own.__name__}\n" for own in classes]
    return write_atomic(folder / f"{_ENTRY}.py", "".join(lines))


def _with_classes(values: dict[str, Any], classes: dict[str, type]) -> dict[str, Any]:
    entries = {auto: f"{_ENTRY}.{own.__name__}" for auto, own in classes.items()}
    return values | {"auto_map": values.get("auto_map", {}) | entries}


def _read(file: Path) -> dict[str, Any]:
    values: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return values


def _write(file: Path, values: dict[str, Any]) -> Path:
    return write_atomic(file, json.dumps(values, indent=2, ensure_ascii=False) + "\n")
