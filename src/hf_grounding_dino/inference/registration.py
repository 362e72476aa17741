"""Make the auto classes and `pipeline()` of transformers resolve to this package, in this process, when asked to."""

from __future__ import annotations

import sys
from typing import Any

import transformers
from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoProcessor, ZeroShotObjectDetectionPipeline
from transformers.pipelines import PIPELINE_REGISTRY

from ..models.registry import MODEL_TYPES, load

TASK = "zero-shot-object-detection"


def register() -> None:
    """Let transformers resolve the model types of `models.registry` to the classes of this package.

    Concerns `AutoConfig`, `AutoModel`, `AutoModelForZeroShotObjectDetection`, `AutoImageProcessor`, `AutoProcessor` and
    `pipeline("zero-shot-object-detection", ...)`, in this process. Other models, and the classes of transformers called
    by their names, stay as they are. May be called again.
    """
    processor_names: dict[str, str] = getattr(sys.modules[AutoProcessor.__module__], "PROCESSOR_MAPPING_NAMES", {})
    for model_type, row in MODEL_TYPES.items():
        config = load(row.config)
        AutoConfig.register(model_type, config, exist_ok=True)
        AutoModel.register(config, load(row.model), exist_ok=True)
        getattr(transformers, row.auto_class).register(config, load(row.detector), exist_ok=True)
        images = {"torchvision": load(row.image_processor)}
        AutoImageProcessor.register(config, image_processor_classes=images, exist_ok=True)
        if row.processor:
            AutoProcessor.register(config, load(row.processor), exist_ok=True)
        # The names of transformers come before what is registered, and ours is the same name.
        processor_names.pop(model_type, None)
    task = PIPELINE_REGISTRY.supported_tasks[TASK]
    PIPELINE_REGISTRY.supported_tasks[TASK] = {**task, "impl": PipelineByModel}


class PipelineByModel(ZeroShotObjectDetectionPipeline):
    """What `pipeline()` constructs after `register()`: for the models of this package the one of `models.registry`.

    For all others the pipeline of transformers. No object is ever of this class.
    """

    def __new__(cls, model: Any, **kwargs: Any) -> Any:
        """Construct the pipeline that fits the model."""
        row = MODEL_TYPES.get(model.config.model_type)
        if row and row.pipeline and isinstance(model, load(row.detector)):
            return load(row.pipeline)(model=model, **kwargs)
        return ZeroShotObjectDetectionPipeline(model=model, **kwargs)
