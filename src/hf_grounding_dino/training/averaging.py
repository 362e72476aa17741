"""The moving average of the weights."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from .sharding import divided_like, own_part, whole


class MovingAverage:
    """An exponential moving average of the parameters that are trained, sharded where they are.

    The first update takes the weights as they are; each later one is decay * average + (1 - decay) * weights. The
    average of torch copies the whole model, which a sharded one does not allow.

    Args:
        model: prepared by Accelerate, and unwrapped.
        decay: in [0, 1).

    Attributes:
        weights: by the names of the parameters.
        updates: how many there were.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self._model = model
        self._decay = decay
        self.updates = 0
        self.weights = {name: parameter.detach().clone() for name, parameter in self._trained().items()}

    def _trained(self) -> dict[str, nn.Parameter]:
        return {name: parameter for name, parameter in self._model.named_parameters() if parameter.requires_grad}

    @torch.no_grad()
    def update(self) -> None:
        """Take in the weights of this moment."""
        averages = [own_part(average) for average in self.weights.values()]
        weights = [own_part(parameter) for parameter in self._trained().values()]
        if self.updates:
            torch._foreach_lerp_(averages, weights, 1 - self._decay)
        else:
            torch._foreach_copy_(averages, weights)
        self.updates += 1

    def whole_weights(self) -> dict[str, Tensor]:
        """The average on the CPU, whole, in every process; all must ask together."""
        return {name: whole(value).cpu().contiguous() for name, value in self.weights.items()}

    def go_on(self, weights: Mapping[str, Tensor], updates: int) -> None:
        """Take up `whole_weights` after so many updates, whatever number of processes they are of.

        Raises:
            KeyError, RuntimeError: they are of another model.
        """
        for name, average in self.weights.items():
            average.copy_(divided_like(weights[name], average))
        self.updates = updates
