"""Weights that are measured and saved in place of the trained ones: their moving average, and a mix with the start."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from .sharding import full_tensor, local_shard, shard_like


class ExponentialMovingAverage:
    """An exponential moving average of the parameters that are trained, sharded where they are.

    The first update takes the weights as they are; each later one is decay * average + (1 - decay) * weights.
    `torch.optim.swa_utils` copies the whole model, which a sharded one does not allow.

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
        averages = [local_shard(average) for average in self.weights.values()]
        weights = [local_shard(parameter) for parameter in self._trained().values()]
        if self.updates:
            torch._foreach_lerp_(averages, weights, 1 - self._decay)
        else:
            torch._foreach_copy_(averages, weights)
        self.updates += 1

    def full_weights(self) -> dict[str, Tensor]:
        """The average on the CPU, whole, in every process; all must ask together."""
        return {name: full_tensor(value).cpu().contiguous() for name, value in self.weights.items()}

    def load(self, weights: Mapping[str, Tensor], updates: int) -> None:
        """Take up `full_weights` after so many updates, whatever number of processes they are of.

        Raises:
            KeyError, RuntimeError: they are of another model.
        """
        for name, average in self.weights.items():
            average.copy_(shard_like(weights[name], average))
        self.updates = updates


def interpolate(base: nn.Module, tuned: nn.Module, alpha: float) -> dict[str, Tensor]:
    """(1 - alpha) * base + alpha * tuned, for `tuned.load_state_dict`; neither model is changed.

    This is WiSE-FT (arXiv 2109.01903), which keeps what tuning would forget. Floating tensors, parameters and buffers
    alike, are mixed in float32 or better; the others are those of `tuned`. Device and dtype are those of `tuned`, and
    what is one tensor there is one tensor in the result.

    Args:
        alpha: in [0, 1]; 0 gives the values of `base`, 1 those of `tuned`, to the bit where the dtypes agree.

    Raises:
        ValueError: the models differ in more than values; the first key is named.
    """
    first, last = base.state_dict(), tuned.state_dict()
    _check_same_architecture(first, last)
    copies = _copies(last)
    for name, source in copies.items():
        if not torch.equal(first[name], first[source]):
            raise ValueError(f"{name} and {source} are one tensor in the tuned model, but differ in the base model.")
    mixed = {name: _mix(first[name], last[name], alpha) for name in last if name not in copies}
    return {name: mixed[copies.get(name, name)] for name in last}


def _mix(base: Tensor, tuned: Tensor, alpha: float) -> Tensor:
    if alpha == 1 or not tuned.is_floating_point():
        return tuned.detach().clone()
    base = base.detach().to(tuned.device)
    if alpha == 0:
        return base.to(tuned.dtype, copy=True)
    wide = torch.promote_types(torch.promote_types(base.dtype, tuned.dtype), torch.float32)
    return torch.lerp(base.to(wide), tuned.detach().to(wide), alpha).to(tuned.dtype)


def _check_same_architecture(base: Mapping[str, Tensor], tuned: Mapping[str, Tensor]) -> None:
    for name in (*tuned, *base):
        if name not in base or name not in tuned:
            where = "tuned" if name in tuned else "base"
            raise ValueError(f"The models are of different architectures: only the {where} one has {name}.")
        if base[name].shape != tuned[name].shape:
            shapes = f"{tuple(base[name].shape)} in the base model, {tuple(tuned[name].shape)} in the tuned one"
            raise ValueError(f"The models are of different architectures: {name} is {shapes}.")


def _copies(state: Mapping[str, Tensor]) -> dict[str, str]:
    """The names of tensors that an earlier name holds too, with that name."""
    first: dict[object, str] = {}
    copies = {}
    for name, tensor in state.items():
        place = (tensor.device, tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype)
        source = first.setdefault(place, name) if tensor.numel() else name
        if source != name:
            copies[name] = source
    return copies
