"""What of a state is read by libraries that let a pickle do anything, looked at before they do."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import torch

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


class _Data(pickle.Unpickler):
    """Reads what the shards of a checkpoint of torch say of themselves, and nothing beyond it."""

    def find_class(self, module: str, name: str) -> Any:
        """Let data through.

        Raises:
            UnpicklingError: it is anything else.
        """
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
                _Data(content).load()
        except Exception as error:  # a broken pickle raises what it likes
            raise ValueError(f"{file.parent.name}/{file.name} is not data alone: {error}") from error
