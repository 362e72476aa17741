"""Weights between a base model and a tuned one: WiSE-FT (arXiv 2109.01903), which keeps what tuning would forget."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

State = dict[str, Tensor]


def interpolate(base: nn.Module, tuned: nn.Module, alpha: float) -> State:
    """(1 - alpha) * base + alpha * tuned, for `tuned.load_state_dict`; neither model is changed.

    Floating tensors, parameters and buffers alike, are mixed in float32 or better; the others are those of `tuned`.
    Device and dtype are those of `tuned`, and what is one tensor there is one tensor in the result.

    Args:
        alpha: in [0, 1]; 0 gives the values of `base`, 1 those of `tuned`, to the bit where the dtypes agree.

    Raises:
        ValueError: alpha is out of its range, or the models differ in more than values; the first key is named.
    """
    if not 0 <= alpha <= 1:
        raise ValueError(f"`alpha` is {alpha}, out of 0 to 1.")
    ours, theirs = base.state_dict(), tuned.state_dict()
    _check_same_architecture(ours, theirs)
    copies = _copies(theirs)
    for name, source in copies.items():
        if not torch.equal(ours[name], ours[source]):
            raise ValueError(f"{name} and {source} are one tensor in the tuned model, but differ in the base model.")
    mixed = {name: _mix(ours[name], theirs[name], alpha) for name in theirs if name not in copies}
    return {name: mixed[copies.get(name, name)] for name in theirs}


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
