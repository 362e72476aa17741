"""Grounding DINO for people who run it, fine-tune it, measure it and ship it.

The public names are loaded when they are first used, so that importing the package costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .configuration_grounding_dino import GroundingDinoConfig, MMGroundingDinoConfig
    from .deformable import multi_scale_deformable_attention, multi_scale_deformable_attention_reference
    from .image_processing_grounding_dino import GroundingDinoImageProcessor
    from .kernel import kernel_status
    from .modeling_grounding_dino import (
        GroundingDinoForObjectDetection,
        GroundingDinoModel,
        MMGroundingDinoForObjectDetection,
    )
    from .pipeline import GroundingDinoPipeline
    from .processing_grounding_dino import GroundingDinoProcessor
    from .registration import register

__version__ = "0.1.0"

__all__ = [
    "GroundingDinoConfig",
    "GroundingDinoForObjectDetection",
    "GroundingDinoImageProcessor",
    "GroundingDinoModel",
    "GroundingDinoPipeline",
    "GroundingDinoProcessor",
    "MMGroundingDinoConfig",
    "MMGroundingDinoForObjectDetection",
    "kernel_status",
    "multi_scale_deformable_attention",
    "multi_scale_deformable_attention_reference",
    "register",
]

_HOMES = {
    "GroundingDinoConfig": "configuration_grounding_dino",
    "GroundingDinoForObjectDetection": "modeling_grounding_dino",
    "GroundingDinoImageProcessor": "image_processing_grounding_dino",
    "GroundingDinoModel": "modeling_grounding_dino",
    "GroundingDinoPipeline": "pipeline",
    "GroundingDinoProcessor": "processing_grounding_dino",
    "MMGroundingDinoConfig": "configuration_grounding_dino",
    "MMGroundingDinoForObjectDetection": "modeling_grounding_dino",
    "kernel_status": "kernel",
    "multi_scale_deformable_attention": "deformable",
    "multi_scale_deformable_attention_reference": "deformable",
    "register": "registration",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOMES[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
