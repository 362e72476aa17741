"""The one table of model types. A family is a folder of its own and a row here; nothing else lists the families.

A class is named "module:Class", the module by its name in this package, and imported when it is asked for.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import Any


@dataclass(frozen=True, kw_only=True)
class ModelType:
    """The classes of one model type."""

    config: str
    model: str
    """The base model, without heads."""
    detector: str
    image_processor: str
    processor: str | None = None
    """None where the model takes no text."""
    auto_class: str = "AutoModelForZeroShotObjectDetection"
    """The class of transformers by which the detector is found."""
    pipeline: str | None = None
    """None where the pipeline of transformers serves."""
    stock: str | None = None
    """The class of transformers with the same weights under the same names; None where it has none."""


_GROUNDING_DINO = {
    "image_processor": "processing.image_processing_grounding_dino:GroundingDinoImageProcessor",
    "processor": "processing.processing_grounding_dino:GroundingDinoProcessor",
    "pipeline": "inference.pipeline:GroundingDinoPipeline",
}

MODEL_TYPES: dict[str, ModelType] = {
    "grounding-dino": ModelType(
        config="models.grounding_dino.configuration_grounding_dino:GroundingDinoConfig",
        model="models.grounding_dino.modeling_grounding_dino:GroundingDinoModel",
        detector="models.grounding_dino.modeling_grounding_dino:GroundingDinoForObjectDetection",
        stock="GroundingDinoForObjectDetection",
        **_GROUNDING_DINO,
    ),
    "mm-grounding-dino": ModelType(
        config="models.grounding_dino.configuration_grounding_dino:MMGroundingDinoConfig",
        model="models.grounding_dino.modeling_grounding_dino:MMGroundingDinoModel",
        detector="models.grounding_dino.modeling_grounding_dino:MMGroundingDinoForObjectDetection",
        stock="MMGroundingDinoForObjectDetection",
        **_GROUNDING_DINO,
    ),
}


def load(reference: str) -> Any:
    """The class behind "module:Class"."""
    module, _, name = reference.partition(":")
    return getattr(import_module(_full_name(module)), name)


def _full_name(module: str) -> str:
    package = __name__.removesuffix("models.registry")
    if package != __name__:
        return package + module
    # Copied as remote code, all modules lie flat beside this one: see `publishing.remote_code`.
    return __name__.removesuffix("models_registry") + module.replace(".", "_")


def find(model_type: str | None, family: str | None = None) -> ModelType:
    """The row of a model type.

    Args:
        model_type: as in config.json.
        family: the name of a module; only the types whose configuration is there count.

    Raises:
        ValueError: it is of another family, or there is none.
    """
    rows = {
        name: row for name, row in MODEL_TYPES.items() if family in (None, _full_name(row.config.partition(":")[0]))
    }
    if not model_type:
        raise ValueError(f"There is no config.json, or no `model_type` in it: one of {sorted(rows)}.")
    if model_type not in rows:
        raise ValueError(f"This is a model of type {model_type!r}, not one of {sorted(rows)}.")
    return rows[model_type]


def class_for(cls: type, model_type: str) -> type:
    """The base model or detector of a model type, where `cls` is that of another and one derives from the other.

    Otherwise `cls`, which refuses a configuration of another family by name.
    """
    own = MODEL_TYPES.get(model_type)
    for row in MODEL_TYPES.values():
        for role in ("model", "detector"):
            reference: str = getattr(row, role)
            if own and reference.endswith(f":{cls.__name__}") and load(reference) is cls:
                wanted: type = load(getattr(own, role))
                return wanted if issubclass(wanted, cls) or issubclass(cls, wanted) else cls
    return cls
