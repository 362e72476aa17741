"""A model with its processor, both whole, or one line that says what is wrong with them; what tells models apart."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import try_to_load_from_cache
from safetensors import SafetensorError
from transformers import PreTrainedModel

from ..processing.prompts import special_token_ids
from ..utils.hub import offline_fallback
from .configuration import load_config
from .registry import MODEL_TYPES, load

_CONFIG_FILE = "config.json"
_BEST_OF_RUN = "best"
_SNAPSHOT = re.compile(r"/snapshots/([0-9a-f]{40})/")
_SAMPLED_VALUES = 64
_UNBUILDABLE = (RuntimeError, TypeError, ArithmeticError, LookupError, AssertionError, AttributeError)
"""What PyTorch and transformers raise for sizes and ids that no network can have."""
_NOT_OF_THE_MODEL = ("_name_or_path", "transformers_version", "dtype", "architectures")


class LoadingError(ValueError):
    """What keeps a model from being used, in one line that names it."""


def load_whole(model: str | Path, dtype: torch.dtype = torch.float32) -> tuple[Any, Any]:
    """Load a model in eval mode, and its processor; what `from_pretrained` lets pass or leaves unclear is refused.

    Args:
        model: a folder, or the name of a repo on the Hub; without a network, of its cache.
        dtype: what the weights are kept in.

    Raises:
        LoadingError: weights that are missing, which transformers would make up, or cut off, not finite, or of other
            shapes than config.json says, or numbers there that make no network; the tokenizer of another model; or a
            folder that holds none.
        OSError, ValueError: as `from_pretrained`: no such model, no way to it, or one of another family.
    """
    _refuse_other_folders(str(model))
    try:
        with offline_fallback(str(model)) as cached:
            row = MODEL_TYPES[load_config(model, local_files_only=cached).model_type]
            network, report = load(row.detector).from_pretrained(
                model, dtype=dtype, output_loading_info=True, local_files_only=cached
            )
            processor = load(row.processor or row.image_processor).from_pretrained(model, local_files_only=cached)
    except SafetensorError as error:
        raise LoadingError(f"the weights of the model {model} are not whole, or no weights: {error}") from error
    except _UNBUILDABLE as error:
        if "alloc" in str(error):  # of memory: it is the machine that lacks it
            raise
        reason = " ".join(str(error).split("\nException raised")[0].split())
        if "ignore_mismatched_sizes" in reason:
            reason = "the weights have other shapes"
        raise LoadingError(f"the model {model} cannot be built as its config.json says: {reason}") from error
    if missing := sorted(report["missing_keys"]):
        raise LoadingError(f"the model {model} lacks {len(missing)} of its weights, such as {missing[0]}")
    boundaries = getattr(network.config, "phrase_boundary_token_ids", None)
    if boundaries and not set(special_token_ids(processor.tokenizer)) <= set(boundaries):
        raise LoadingError(f"the model {model} lacks its tokenizer, or has that of another model")
    _refuse_broken_weights(network, str(model))
    return network.eval(), processor


def _refuse_broken_weights(network: PreTrainedModel, model: str) -> None:
    for name, tensor in network.state_dict().items():
        # The extremes are NaN where any value is, and are had in a twelfth of the time of `isfinite`.
        if tensor.is_floating_point() and tensor.numel() and not torch.stack(tensor.aminmax()).isfinite().all():
            raise LoadingError(f"the model {model} is broken: {name} holds values that are not finite")


def _refuse_other_folders(model: str) -> None:
    folder = Path(model)
    if not folder.is_dir():
        if folder.is_absolute() or model.startswith((".", "~")):
            raise LoadingError(f"no such model: {model}")
    elif not (folder / _CONFIG_FILE).exists() and (folder / _BEST_OF_RUN / _CONFIG_FILE).exists():
        raise LoadingError(f"{model} is the folder of a training run: its best model is {folder / _BEST_OF_RUN}")


def model_title(model: str) -> str:
    """What a model is called for people: a repo by its id, a folder by its name, without what it lies in."""
    return Path(model).resolve().name if Path(model).is_dir() else model


def cached_revision(model: str) -> str | None:
    """The commit of a repo's main branch that was loaded, as the cache of the Hub's client has it; None of a folder."""
    file = None if Path(model).is_dir() else try_to_load_from_cache(model, _CONFIG_FILE)
    found = _SNAPSHOT.search(Path(file).as_posix()) if isinstance(file, str) else None
    return found[1] if found else None


def model_fingerprint(model: PreTrainedModel, *also: object) -> str:
    """Hexadecimal digits that tell models apart: of the configuration, some values of each tensor, and `also`."""
    config = {key: value for key, value in model.config.to_dict().items() if key not in _NOT_OF_THE_MODEL}
    digest = hashlib.sha256(json.dumps([config, *also], sort_keys=True, default=str).encode())
    for name, tensor in sorted(model.state_dict().items()):
        values = tensor.detach().flatten()
        step = max(1, len(values) // _SAMPLED_VALUES)
        digest.update(f"{name} {tuple(tensor.shape)}".encode())
        digest.update(values[::step][:_SAMPLED_VALUES].double().cpu().numpy().tobytes())
    return digest.hexdigest()[:16]
