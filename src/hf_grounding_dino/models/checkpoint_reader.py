"""Checkpoints of other packages: read without running what is in them, and recognised by their names."""

from __future__ import annotations

import os
import pickle
import re
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from torch.serialization import get_unsafe_globals_in_checkpoint, safe_globals

from .weight_names import Layout

CONFIG_KEY = "hf_config"
"""Where a file that this package writes holds the configuration, beside the weights."""

IMAGES_KEY = "hf_image_processor"
"""Where it holds what is done to images."""

_STORED = (CONFIG_KEY, IMAGES_KEY)
_STATE_KEYS = ("state_dict", "model", "model_state_dict", "ema_model")
_WRAPPERS = re.compile(r"(module\.|_orig_mod\.)+")
_READ_ERRORS = (pickle.UnpicklingError, RuntimeError, ValueError, EOFError, KeyError, AttributeError, TypeError)

KNOWN_TO_BE_DROPPED = re.compile(
    r".*relative_position_index|.*\.position_ids|(bert|.*body\.model)\.pooler\..*|label_enc\..*|data_preprocessor\..*"
    # The language model that LLMDet is trained with, and a module of the decoder once more.
    r"|(lmm|connector|region_connector|image_seperate|image_separate|ref_point_head)\..*"
)
"""Names of tensors that are no part of the detector: buffers that are computed anew, and helpers of training."""

_OWN: list[tuple[str, Layout | Literal["hf"]]] = [
    (r"transformer\.encoder\.fusion_layers\.", "original"),
    (r"encoder\.fusion_layers\.", "mmdet"),
    (r"model\.encoder\.layers\.\d+\.fusion_layer\.", "hf"),
]
_OTHERS = [
    (r"owl(vit|v2)\.", "OWL-ViT or OWLv2"),
    (r"rpn\.head\.|bbox_head\.head\.dyhead_tower|language_backbone\.body\.", "GLIP"),
    (r"(sam_)?mask_decoder\.", "SAM"),
    (r"backbone\.(image_model|text_model)\.", "YOLO-World"),
    (r"model\.\d+\.(conv|cv1|m)\.", "YOLO"),
    (
        r"label_enc\.|transformer\.enc_out_class_embed\.|dn_query_generator\.|bbox_head\.cls_branches\.",
        "DINO (no text)",
    ),
    (r"transformer\.decoder\.layers\.\d+\.(multihead_attn|cross_attn)\.|class_labels_classifier\.", "DETR"),
    (r"visual\.|text_model\.|vision_model\.", "CLIP"),
    (r"(bert\.)?(embeddings\.word_embeddings|encoder\.layer\.)", "a text encoder alone"),
    (r"((student|teacher|backbone)\.)*(cls_token|blocks\.\d+\.attn\.)", "a vision transformer alone, such as DINOv2"),
    (r"(backbone\.)?(layers|stages)\.\d+\.blocks\.", "a Swin backbone alone"),
]


class ForeignCheckpoint(NamedTuple):
    """The weights of a file, without the prefixes of wrappers.

    state: tensors by name; they are pages of the file until they are touched, where its format allows.
    config: the configuration of transformers that is stored beside them, where this package wrote the file.
    images: the options of the image processor that are stored beside them, likewise.
    others: what else is in the file, such as an optimizer or averaged weights.
    """

    state: dict[str, Tensor]
    config: Mapping[str, Any] | None
    images: Mapping[str, Any] | None
    others: tuple[str, ...]


class _Placeholder:
    """Stands for an object of any class in a checkpoint; nothing of the class is imported or run."""

    def __new__(cls, *arguments: Any, **options: Any) -> _Placeholder:
        return object.__new__(cls)

    def __init__(self, *arguments: Any, **options: Any) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        pass


class _MappingPlaceholder:
    """Stands for a mapping of any class: it becomes a plain one."""

    def __new__(cls, *arguments: Any, **options: Any) -> Any:
        return OrderedDict()


def read_checkpoint(path: str | os.PathLike[str]) -> ForeignCheckpoint:
    """Read a `.pth` of `torch.save`, or a .safetensors file.

    What else than tensors is in it (arguments, logs, NumPy numbers) is passed over without running any of its code.

    Raises:
        ValueError: there is no such file, or no weights in it; it is named.
    """
    file = Path(path)
    if not file.is_file():
        raise ValueError(f"{file}: there is no such file.")
    try:
        loaded = load_file(file) if file.suffix == ".safetensors" else _load(file)
    except (SafetensorError, OSError, *_READ_ERRORS) as error:
        reason = " ".join(str(error).split("\n")[0].split())
        if isinstance(error, pickle.UnpicklingError):  # torch advises to run what it holds
            reason = "it is damaged, or holds code that would have to be run"
        raise ValueError(f"{file}: not a checkpoint that can be read: {reason or type(error).__name__}") from error
    entries = loaded if isinstance(loaded, Mapping) else {}
    key = next((key for key in _STATE_KEYS if isinstance(entries.get(key), Mapping)), None)
    state = entries if key is None else entries[key]
    tensors = {_WRAPPERS.sub("", str(name), count=1): tensor for name, tensor in state.items() if _is_weight(tensor)}
    if not tensors:
        raise ValueError(f"{file}: not a checkpoint: there are no weights in it.")
    config, images = (entries[name] if isinstance(entries.get(name), Mapping) else None for name in _STORED)
    others = () if key is None else tuple(sorted(str(name) for name in entries if name not in (key, "meta", *_STORED)))
    return ForeignCheckpoint(tensors, config, images, others)


def _is_weight(value: object) -> bool:
    return isinstance(value, Tensor) and not value.is_sparse


def _load(file: Path) -> object:
    try:
        foreign = get_unsafe_globals_in_checkpoint(file)
    except ValueError:  # of before torch 1.6, in another format, or no checkpoint at all
        return torch.load(file, map_location="cpu", weights_only=True)
    stand_ins = [(_MappingPlaceholder if name.lower().endswith("dict") else _Placeholder, name) for name in foreign]
    with safe_globals(cast(Any, stand_ins)):
        return torch.load(file, map_location="cpu", weights_only=True, mmap=True)


def recognise(names: Iterable[str]) -> Layout | Literal["hf"]:
    """Whose names these are: "hf" for those of transformers.

    Raises:
        ValueError: those of another family, which is named where it is evident.
    """
    listed = list(names)
    for pattern, layout in _OWN:
        if any(re.match(pattern, name) for name in listed):
            return layout
    for pattern, family in _OTHERS:
        if any(re.match(pattern, name) for name in listed):
            raise ValueError(f"this is not a Grounding DINO: it looks like {family}.")
    tops = sorted({name.split(".")[0] for name in listed})
    raise ValueError(f"this is not a Grounding DINO: its tensors are called {', '.join(tops[:8])} ...")
