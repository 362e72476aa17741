"""Low-rank adapters (LoRA, arXiv 2106.09685) through `peft`, an optional dependency (`pip install peft`)."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from torch import nn
from transformers import PreTrainedModel

from .optim import named_by

if TYPE_CHECKING:
    from peft import PeftModel

ATTENTION_AND_FFN = (
    r"model\.text_backbone\..*\.(query|key|value|dense)"
    r"|model\.(encoder|decoder)\.layers\..*\.(query|key|value|out_proj|value_proj|output_proj|fc1|fc2)"
    r"|model\.encoder\.layers\..*\.(text_proj|values_text_proj|out_text_proj)"
)
"""Names of the projections of attention, and of the layers between, of text encoder, feature enhancer and decoder."""
NEVER_CALLED = r"(^|\.)fusion_layer\.attn\.(vision_proj|values_vision_proj|out_vision_proj)$"
"""Layers of the fusion that only lend their weights, folded into the text: an adapter around them would do nothing."""
TIED = r"(^|\.)(bbox_embed|class_embed)\."
"""Heads: two or more modules share one tensor, into which several adapters would be merged."""


@dataclass(frozen=True, kw_only=True)
class LoraSettings:
    """Which layers get adapters, and of which size.

    rank: of each update B A.
    alpha: the update is scaled by alpha / rank.
    dropout: of what enters an adapter in training.
    targets: a regular expression that the whole name of a layer matches, or endings of names.
    also_train: parts of the model (see `optim.freeze`) whose own weights are trained beside the adapters, such as
        "heads". They are in the merged model, and not in the files that `peft` writes of the adapters alone.
    """

    rank: int = 16
    alpha: int = 32
    dropout: float = 0.0
    targets: str | tuple[str, ...] = ATTENTION_AND_FFN
    also_train: tuple[str, ...] = ()


def add_lora(model: nn.Module, settings: LoraSettings) -> PeftModel:
    """Put adapters into the model, which computes what it did until they are trained; everything else is frozen.

    The model is changed in place; what is returned wraps it. Gradients and states are handled as for any model.

    Raises:
        ImportError: `peft` is not installed.
        ValueError: no layer matches, adapters could do nothing or could not be merged in one that matches, or
            `also_train` names no part.
    """
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError as error:
        raise ImportError("Adapters need `peft`: pip install peft.") from error
    chosen = _chosen(model, settings.targets)
    # Taken before the names change: parts that are trained whole keep their tensors, so that tied ones stay tied.
    whole = [
        parameter for part in settings.also_train for parameter in named_by(model, part) if parameter.requires_grad
    ]
    config = LoraConfig(
        r=settings.rank, lora_alpha=settings.alpha, lora_dropout=settings.dropout, target_modules=chosen, bias="none"
    )
    adapted = get_peft_model(model, config)
    if any(getattr(module, "gradient_checkpointing", False) for module in model.modules()):
        # peft wants gradients from the inputs on, which reentrant checkpointing needs, and no embedding of ours gives.
        cast(PreTrainedModel, model).disable_input_require_grads()
    for parameter in whole:
        parameter.requires_grad_(True)
    return adapted


def _chosen(model: nn.Module, targets: str | tuple[str, ...]) -> list[str]:
    """The names of the layers that `targets` names, checked."""

    def wanted(name: str) -> bool:
        if isinstance(targets, str):
            return re.fullmatch(targets, name) is not None
        return any(name == target or name.endswith(f".{target}") for target in targets)

    names = [name for name, module in model.named_modules() if isinstance(module, nn.Linear) and wanted(name)]
    if not names:
        raise ValueError(f"No linear layer is named by the targets of LoRA: {targets}.")
    _refuse(names, NEVER_CALLED, "it would do nothing there, because the fusion folds that layer's weight")
    _refuse(names, TIED, 'heads share their weights; train them whole with also_train=("heads",)')
    return names


def _refuse(names: Iterable[str], pattern: str, reason: str) -> None:
    found = next((name for name in names if re.search(pattern, name)), None)
    if found is not None:
        raise ValueError(f"No adapter can be put into {found}: {reason}.")


def merge_lora(model: PeftModel) -> nn.Module:
    """A copy of the base model with the adapters in its weights, to be saved as any other; `model` stays as it is.

    What is frozen in `model` is frozen in the copy.

    Raises:
        ValueError: an adapter holds values that are not finite.
    """
    merged: nn.Module = copy.deepcopy(model).merge_and_unload(safe_merge=True)
    return merged
