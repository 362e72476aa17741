"""How a model gets a label embedding for denoising, and keeps it on disk: beside the model, which stays a stock one."""

from __future__ import annotations

import os
import pickle
from dataclasses import asdict
from pathlib import Path
from typing import Any, Self

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel

from ...losses.denoising import Denoising, DenoisingSettings
from ...utils.hub import remember_hub_options

LABEL_EMBEDDING_FILE = "denoising.safetensors"
LABEL_EMBEDDING_KEY = "label_embedding.weight"
"""How the table's name ends: here, and in mmdetection, `dn_query_generator.label_embedding.weight`."""
KEY_IN_MODEL = f"denoising.{LABEL_EMBEDDING_KEY}"


class DenoisingPreTrainedModel(PreTrainedModel):
    """A model that can train with denoising queries.

    Its label embedding is the submodule `denoising` and so a part of `state_dict()`. On disk it is a file of its own,
    `denoising.safetensors`, with the settings in its metadata: neither config.json nor the weights know of it.
    """

    denoising: Denoising | None
    _keys_to_ignore_on_save = [KEY_IN_MODEL]

    def enable_denoising(
        self, num_queries: int = 100, label_noise: float = 0.5, box_noise: float = 1.0, num_labels: int = 256
    ) -> None:
        """Train with contrastive denoising queries from now on, whenever labels are given (DINO, section 3.3).

        A table of as many labels that the model has already is kept; otherwise there is a new one, so make the
        optimizer afterwards.

        Args:
            num_queries: positive queries an image, about; as many negative ones come beside them.
            label_noise: in [0, 1]; half of it is the probability that a query's label is drawn anew.
            box_noise: at least 0; 1 moves corners by up to half a box for positive queries.
            num_labels: rows of the label embedding; prompts may have more phrases.

        Raises:
            ValueError: a value out of range.
        """
        settings = DenoisingSettings(num_queries=num_queries, label_noise=label_noise, box_noise=box_noise)
        if self.denoising is not None and self.denoising.label_embedding.num_embeddings == num_labels:
            self.denoising.settings = settings
            return
        self.denoising = self._build(num_labels, settings)

    def disable_denoising(self) -> None:
        """Train without denoising queries from now on, and forget the label embedding."""
        self.denoising = None

    def load_denoising(self, path: str | os.PathLike[str]) -> None:
        """Take the label embedding from a file, and the settings too where it has them; this enables denoising.

        Args:
            path: a folder with a `denoising.safetensors`, or a file, .safetensors or one of `torch.save`, with the
                table as a checkpoint of mmdetection has it.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: the file holds no label embedding, or one of another width; it is named.
        """
        file = Path(path) / LABEL_EMBEDDING_FILE if Path(path).is_dir() else Path(path)
        table, settings = _read(file)
        width = self.config.d_model
        if table.ndim != 2 or table.shape[1] != width:
            raise ValueError(f"{file}: the label embedding is {tuple(table.shape)}, the model is {width} wide.")
        if settings is None:
            settings = DenoisingSettings() if self.denoising is None else self.denoising.settings
        denoising = self._build(len(table), settings)
        with torch.no_grad():
            denoising.label_embedding.weight.copy_(table)
        self.denoising = denoising

    def _build(self, num_labels: int, settings: DenoisingSettings) -> Denoising:
        denoising = Denoising(num_labels, self.config.d_model, settings)
        return denoising.to(self.device, self.dtype).train(self.training)

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | os.PathLike[str] | None, *model_args: Any, **kwargs: Any
    ) -> Self:
        """As in transformers; a `denoising.safetensors` is read too where the model is loaded from a local folder.

        For one on the Hub, download it and give it to `load_denoising`.
        """
        options = dict(kwargs)
        loaded: Any = super().from_pretrained(pretrained_model_name_or_path, *model_args, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        remember_hub_options(model, options)
        file = Path(pretrained_model_name_or_path or "", kwargs.get("subfolder") or "", LABEL_EMBEDDING_FILE)
        if pretrained_model_name_or_path is not None and file.is_file():
            model.load_denoising(file)
        return loaded

    def save_pretrained(
        self,
        save_directory: str | os.PathLike[str],
        is_main_process: bool = True,
        state_dict: dict[Any, Any] | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> None:
        """As in transformers, and the label embedding beside; a model without one leaves no older one there.

        `push_to_hub()` uploads the table too, `push_to_hub=True` does not.
        """
        table = (state_dict or {}).get(KEY_IN_MODEL)
        super().save_pretrained(save_directory, is_main_process, state_dict, *args, **kwargs)
        if not is_main_process:
            return
        file = Path(save_directory, LABEL_EMBEDDING_FILE)
        if self.denoising is None:
            file.unlink(missing_ok=True)
            return
        table = self.denoising.label_embedding.weight if table is None else table
        _write(file, table, self.denoising.settings)


def _write(file: Path, table: Tensor, settings: DenoisingSettings) -> None:
    metadata = {name: repr(value) for name, value in asdict(settings).items()}
    save_file({LABEL_EMBEDDING_KEY: table.detach().contiguous()}, file, metadata={"format": "pt", **metadata})


def _read(file: Path) -> tuple[Tensor, DenoisingSettings | None]:
    if not file.is_file():
        raise FileNotFoundError(f"{file}: there is no such file to read a label embedding from.")
    if file.suffix == ".safetensors":
        return _read_safetensors(file)
    try:
        checkpoint = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except (pickle.UnpicklingError, RuntimeError) as error:
        reason = str(error).split("\n")[0]
        raise ValueError(f"{file}: not a file of tensors alone; save its `state_dict` again. {reason}") from error
    state = checkpoint.get("state_dict", checkpoint) if isinstance(checkpoint, dict) else {}
    return state[_table_name(file, list(state))], None


def _read_safetensors(file: Path) -> tuple[Tensor, DenoisingSettings | None]:
    try:
        with safe_open(file, "pt") as tensors:
            table = tensors.get_tensor(_table_name(file, list(tensors.keys())))
            metadata = tensors.metadata() or {}
    except SafetensorError as error:
        raise ValueError(f"{file}: not a safetensors file: {error}.") from error
    if "box_noise" not in metadata:
        return table, None
    numbers = {"label_noise": float(metadata["label_noise"]), "box_noise": float(metadata["box_noise"])}
    return table, DenoisingSettings(num_queries=int(metadata["num_queries"]), **numbers)


def _table_name(file: Path, names: list[str]) -> str:
    found = [name for name in names if name.endswith(LABEL_EMBEDDING_KEY)]
    if len(found) != 1:
        raise ValueError(
            f"{file}: holds {len(found)} label embeddings for denoising (`...{LABEL_EMBEDDING_KEY}`), not one."
        )
    return found[0]
