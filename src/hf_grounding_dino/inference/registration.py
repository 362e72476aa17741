"""Make the auto classes and `pipeline()` of transformers resolve to this package, in this process, when asked to."""

from __future__ import annotations

import sys
from typing import Any

from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForZeroShotObjectDetection,
    AutoProcessor,
    ZeroShotObjectDetectionPipeline,
)
from transformers.pipelines import PIPELINE_REGISTRY

from ..models.grounding_dino.configuration_grounding_dino import GroundingDinoConfig, MMGroundingDinoConfig
from ..models.grounding_dino.modeling_grounding_dino import (
    GroundingDinoForObjectDetection,
    GroundingDinoModel,
    GroundingDinoPreTrainedModel,
    MMGroundingDinoForObjectDetection,
    MMGroundingDinoModel,
)
from ..processing.image_processing_grounding_dino import GroundingDinoImageProcessor
from ..processing.processing_grounding_dino import GroundingDinoProcessor
from .pipeline import GroundingDinoPipeline

TASK = "zero-shot-object-detection"

_FAMILY: tuple[tuple[Any, Any, Any], ...] = (
    (GroundingDinoConfig, GroundingDinoModel, GroundingDinoForObjectDetection),
    (MMGroundingDinoConfig, MMGroundingDinoModel, MMGroundingDinoForObjectDetection),
)


def register() -> None:
    """Let transformers resolve the model types of this family to the classes of this package.

    Concerns `AutoConfig`, `AutoModel`, `AutoModelForZeroShotObjectDetection`, `AutoImageProcessor`, `AutoProcessor` and
    `pipeline("zero-shot-object-detection", ...)`, in this process. Other models, and the classes of transformers called
    by their names, stay as they are. May be called again.
    """
    processor_names: dict[str, str] = getattr(sys.modules[AutoProcessor.__module__], "PROCESSOR_MAPPING_NAMES", {})
    for config, base, detector in _FAMILY:
        AutoConfig.register(config.model_type, config, exist_ok=True)
        AutoModel.register(config, base, exist_ok=True)
        AutoModelForZeroShotObjectDetection.register(config, detector, exist_ok=True)
        images = {"torchvision": GroundingDinoImageProcessor}
        AutoImageProcessor.register(config, image_processor_classes=images, exist_ok=True)  # type: ignore[arg-type]
        AutoProcessor.register(config, GroundingDinoProcessor, exist_ok=True)
        # The names of transformers come before what is registered, and ours is the same name.
        processor_names.pop(config.model_type, None)
    task = PIPELINE_REGISTRY.supported_tasks[TASK]
    PIPELINE_REGISTRY.supported_tasks[TASK] = {**task, "impl": PipelineByModel}


class PipelineByModel(ZeroShotObjectDetectionPipeline):
    """What `pipeline()` constructs after `register()`: for the models of this package `GroundingDinoPipeline`.

    For all others the pipeline of transformers. No object is ever of this class.
    """

    def __new__(cls, model: Any, **kwargs: Any) -> Any:
        """Construct the pipeline that fits the model."""
        own = isinstance(model, GroundingDinoPreTrainedModel)
        return (GroundingDinoPipeline if own else ZeroShotObjectDetectionPipeline)(model=model, **kwargs)
