"""What a run begins with, and the model as it is saved."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from torch import nn

from ..assets import NANO
from ..models.grounding_dino.modeling_grounding_dino import GroundingDinoForObjectDetection
from ..models.loading import LoadingError, load_whole
from ..processing.processing_grounding_dino import GroundingDinoProcessor
from .adapters import merge_lora
from .interpolation import interpolate
from .loop import Trainee
from .options import OptionError
from .recipe import Recipe
from .sharding import whole

if TYPE_CHECKING:
    from peft import PeftModel


class Start(NamedTuple):
    """What a run begins with."""

    model: GroundingDinoForObjectDetection
    processor: GroundingDinoProcessor


def load_start(model: str) -> Start:
    """The model and processor of a folder, a repo, or "nano".

    Raises:
        OptionError: there is no such model, it is of another architecture, or not whole.
    """
    name = str(NANO) if model == "nano" else model
    try:
        return Start(*load_whole(name))
    except LoadingError as error:
        raise OptionError(str(error)) from error
    except (OSError, ValueError) as error:
        raise OptionError(f"model {model}: {' '.join(str(error).split())}") from error


class SavedModel:
    """The model as it is measured and saved: averaged, its adapters merged, interpolated with the start.

    Args:
        start: the model before training, without adapters; None where nothing is interpolated.
        trained: the model that is trained, before Accelerate prepares it; with adapters where there are any.
    """

    def __init__(self, start: nn.Module | None, trained: nn.Module, recipe: Recipe) -> None:
        self._has_adapters = recipe.lora is not None
        self._share = recipe.interpolation
        self._start = start
        self._blank = copy.deepcopy(trained)

    def build(self, trainee: Trainee) -> GroundingDinoForObjectDetection:
        """The model of this moment, in eval mode on the device; all processes must ask together."""
        accelerator, average = trainee.accelerator, trainee.average
        trained = accelerator.unwrap_model(trainee.model)
        weights = {**dict(trained.named_parameters()), **dict(trained.named_buffers())}
        weights |= {} if average is None else average.weights
        for name, copied in (*self._blank.named_parameters(), *self._blank.named_buffers()):
            copied.data.copy_(whole(weights[name]).view_as(copied))
        model: Any = merge_lora(cast("PeftModel", self._blank)) if self._has_adapters else self._blank
        if self._start is not None:
            model.load_state_dict(interpolate(self._start, model, self._share))
        built: GroundingDinoForObjectDetection = model.eval().to(accelerator.device)
        return built
