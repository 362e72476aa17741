"""Weights sharded over the processes by FSDP2 (`accelerate launch --use_fsdp --fsdp_version 2`).

Parameters, gradients, the optimizer's moments and the moving average are then divided among the processes, and a layer
is whole only while it computes. What is measured and saved is whole.
"""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, compare_versions, str_to_bool
from torch import Tensor, nn
from torch.distributed.fsdp.wrap import transformer_auto_wrap_policy
from torch.distributed.tensor import DTensor, distribute_tensor

from .recipes import OptionError

LAYERS = ("BertLayer", "EnhancerLayer", "DecoderLayer")
"""What is gathered at a time, all together where all processes do so; all else is gathered for the whole of a step. The
backbone runs once for each size of image, of which one process may have more than another."""
FIRST_ACCELERATE = "1.13"
"""Before, `load_state` brings back nothing of a sharded optimizer."""
_UNSUPPORTED = (DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM)


def is_sharded(accelerator: Accelerator) -> bool:
    """Whether the weights are sharded by what the accelerator prepares."""
    return bool(accelerator.distributed_type == DistributedType.FSDP)


def shard_by_layers(accelerator: Accelerator, model: nn.Module) -> None:
    """Make ready what is to be sharded, before there is an optimizer; nothing to do where nothing is.

    Every process has loaded the whole model. Layers are sharded one by one. What is computed in half precision is said
    by autocast, as without sharding, so that weights and sums of gradients stay in float32. Scalars, which FSDP2 does
    not take, become vectors of one.

    Raises:
        OptionError: weights would be divided in a way that is not supported, or not at all where it was asked for.
    """
    if accelerator.distributed_type in _UNSUPPORTED:
        name = accelerator.distributed_type.value.lower()
        raise OptionError(f"{name} is not supported: shard with --use_fsdp --fsdp_version 2, or not at all")
    if not is_sharded(accelerator):
        if str_to_bool(os.environ.get("ACCELERATE_USE_FSDP", "false")):
            raise OptionError("FSDP needs GPUs, and a launcher such as `accelerate launch`")
        return
    plugin = accelerator.state.fsdp_plugin
    if plugin.fsdp_version != 2:
        raise OptionError(f"FSDP of version {plugin.fsdp_version} is not supported: add --fsdp_version 2")
    if compare_versions("accelerate", "<", FIRST_ACCELERATE):
        raise OptionError(f"FSDP needs accelerate {FIRST_ACCELERATE}: earlier ones lose the optimizer's state")
    if plugin.activation_checkpointing:
        raise OptionError("FSDP's activation checkpointing is not supported: set gradient_checkpointing=true")
    plugin.auto_wrap_policy = transformer_auto_wrap_policy
    there = {type(module).__name__ for module in model.modules()}
    plugin.transformer_cls_names_to_wrap = [name for name in LAYERS if name in there]
    plugin.cpu_ram_efficient_loading = False
    plugin.mixed_precision_policy = None
    _scalars_as_vectors(model)


def _scalars_as_vectors(model: nn.Module) -> None:
    vectors: dict[nn.Parameter, nn.Parameter] = {}  # a tied one stays tied
    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            if parameter.ndim == 0:
                vector = nn.Parameter(parameter.detach().view(1), parameter.requires_grad)
                setattr(module, name, vectors.setdefault(parameter, vector))


def full_tensor(tensor: Tensor) -> Tensor:
    """A tensor of which each process may have a part only; all processes must ask together."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def local_shard(tensor: Tensor) -> Tensor:
    """The part of this process, which shares its memory."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def shard_like(tensor: Tensor, like: Tensor) -> Tensor:
    """A tensor that every process has whole, divided as another is."""
    if not isinstance(like, DTensor):
        return tensor
    return distribute_tensor(tensor.to(like.device), like.device_mesh, like.placements, src_data_rank=None)


_DATA = {
    "pathlib": {"PosixPath", "WindowsPath"},
    "torch": {"Size", *(name for name, value in vars(torch).items() if isinstance(value, torch.dtype))},
    "torch.serialization": {"_get_layout"},
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo"},
    "torch.distributed.checkpoint.metadata": {
        "BytesStorageMetadata", "ChunkStorageMetadata", "Metadata", "MetadataIndex", "StorageMeta", "TensorProperties",
        "TensorStorageMetadata", "_MEM_FORMAT_ENCODING",
    },
}  # fmt: skip
"""What such a description is made of, by module; a name with a dot in it would lead elsewhere."""


class _DataUnpickler(pickle.Unpickler):
    """Reads what the shards of a checkpoint of torch say of themselves, and nothing beyond it."""

    def find_class(self, module: str, name: str) -> Any:
        """Let data through, or raise UnpicklingError."""
        if name not in _DATA.get(module, ()):
            raise pickle.UnpicklingError(f"{module}.{name} is asked for")
        return super().find_class(module, name)


def refuse_code(folder: Path) -> None:
    """Refuse a state that could run something when it is read.

    Beside this, tensors are read by `torch.load` with `weights_only`, by safetensors and as JSON.

    Raises:
        ValueError: a file that only states of earlier versions have, or the description of shards is not data alone.
    """
    if any(folder.glob("custom_checkpoint_*")):
        raise ValueError("it is of an earlier version, which read it as code: train last/ in a new output_dir")
    for file in folder.rglob(".metadata"):
        try:
            with file.open("rb") as content:
                _DataUnpickler(content).load()
        except Exception as error:  # a broken pickle raises what it likes
            raise ValueError(f"{file.parent.name}/{file.name} is not data alone: {error}") from error
