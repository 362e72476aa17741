"""Grounding DINO for people who run it, fine-tune it, measure it and ship it.

The public names are loaded when they are first used, so that importing the package costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .inference.pipeline import GroundingDinoPipeline
    from .inference.registration import register
    from .models.grounding_dino.configuration_grounding_dino import GroundingDinoConfig, MMGroundingDinoConfig
    from .models.grounding_dino.modeling_grounding_dino import (
        GroundingDinoForObjectDetection,
        GroundingDinoModel,
        MMGroundingDinoForObjectDetection,
    )
    from .ops.deformable_attention import (
        multi_scale_deformable_attention,
        multi_scale_deformable_attention_reference,
    )
    from .ops.kernel import kernel_status
    from .processing.image_processing_grounding_dino import GroundingDinoImageProcessor
    from .processing.processing_grounding_dino import GroundingDinoProcessor

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
    "GroundingDinoConfig": "models.grounding_dino.configuration_grounding_dino",
    "GroundingDinoForObjectDetection": "models.grounding_dino.modeling_grounding_dino",
    "GroundingDinoImageProcessor": "processing.image_processing_grounding_dino",
    "GroundingDinoModel": "models.grounding_dino.modeling_grounding_dino",
    "GroundingDinoPipeline": "inference.pipeline",
    "GroundingDinoProcessor": "processing.processing_grounding_dino",
    "MMGroundingDinoConfig": "models.grounding_dino.configuration_grounding_dino",
    "MMGroundingDinoForObjectDetection": "models.grounding_dino.modeling_grounding_dino",
    "kernel_status": "ops.kernel",
    "multi_scale_deformable_attention": "ops.deformable_attention",
    "multi_scale_deformable_attention_reference": "ops.deformable_attention",
    "register": "inference.registration",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOMES[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
