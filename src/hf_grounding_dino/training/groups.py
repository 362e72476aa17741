"""What is trained and at which rate: parts of the network, frozen parts, parameter groups."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

PARTS = {
    "backbone": r"(^|\.)backbone\.",
    "text": r"(^|\.)text_backbone\.",
    "heads": r"(^|\.)(bbox_embed|class_embed|encoder_output_bbox_embed|encoder_output_class_embed)\.",
    "decoder": r"(^|\.)(decoder|query_position_embeddings)\.",
    "encoder": r"(^|\.)(encoder\.|level_embed$)",
}
"""Patterns of parameter names; a parameter is of the first part that its name has.

Of none of them: the input projections, the text projection, and the layer before the query selection.
"""
EXPRESSION = "re:"
"""What stands before a regular expression of parameter names where a part may stand."""


@dataclass(frozen=True, kw_only=True)
class GroupSettings:
    """How fast each part learns (recipe of MM-Grounding-DINO: AdamW, backbone and text encoder at a tenth).

    learning_rate: of everything that is neither backbone nor text encoder.
    backbone_multiplier, text_multiplier: of the learning rate, for these two; 0 freezes the part.
    weight_decay: on matrices and tables.
    decay_vectors: also on vectors (norms, biases, scales), as mmdetection does.

    Raises:
        ValueError: a value is negative, or the learning rate 0.
    """

    learning_rate: float
    backbone_multiplier: float = 0.1
    text_multiplier: float = 0.1
    weight_decay: float = 1e-4
    decay_vectors: bool = False

    def __post_init__(self) -> None:
        if self.learning_rate <= 0:
            raise ValueError(f"`learning_rate` must be above 0, not {self.learning_rate}.")
        for name in ("backbone_multiplier", "text_multiplier", "weight_decay"):
            if getattr(self, name) < 0:
                raise ValueError(f"`{name}` must not be negative, but is {getattr(self, name)}.")


def part_of(name: str) -> str | None:
    """The part of the network that a parameter of this name belongs to, a key of `PARTS`; None for what lies between.

    Names may carry what wrappers put in front of them ("module.", "base_model.model.").
    """
    return next((part for part, pattern in PARTS.items() if re.search(pattern, name)), None)


def named_by(model: nn.Module, part: str) -> list[nn.Parameter]:
    """The parameters of a part, or whose name holds a match of the regular expression after "re:".

    Raises:
        ValueError: there is no such part, the expression is broken, or it finds nothing.
    """
    # A tied parameter is found by each of its names.
    named = list(model.named_parameters(remove_duplicate=False))
    if part in PARTS:
        return [parameter for name, parameter in named if part_of(name) == part]
    if not part.startswith(EXPRESSION):
        raise ValueError(f"There is no part {part!r}: choose from {', '.join(PARTS)}, or give {EXPRESSION}PATTERN.")
    try:
        pattern = re.compile(part.removeprefix(EXPRESSION))
    except re.error as error:
        raise ValueError(f"{part!r} is no regular expression: {error}.") from error
    found = [parameter for name, parameter in named if pattern.search(name)]
    if not found:
        raise ValueError(f"{part!r} is in no parameter's name.")
    return found


def freeze(model: nn.Module, parts: Sequence[str]) -> None:
    """Keep parts of the model as they are; to be called before the model is wrapped for training.

    `train_mode` then leaves their dropout and stochastic depth off.

    Args:
        parts: "backbone", "text", "encoder", "decoder", "heads", or "re:" and a regular expression that is searched in
            the names of parameters. "text" is the text encoder without the projection after it.

    Raises:
        ValueError: there is no such part, an expression finds nothing, or nothing is left to train.
    """
    found = [parameter for part in parts for parameter in named_by(model, part)]
    for parameter in found:
        parameter.requires_grad_(False)
    _refuse_nothing(model)


def _refuse_nothing(model: nn.Module) -> None:
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ValueError("Nothing is left to train: every parameter is frozen.")


def train_mode(model: nn.Module) -> None:
    """`model.train()`, but modules whose every parameter is frozen are in eval mode, with all that is in them.

    A frozen text encoder is then the function it was; with a learning rate of 0 alone its dropout would go on. To be
    called wherever training begins or goes on, since `model.train()` knows nothing of frozen parts.
    """
    model.train()
    if _settle(model) is False:
        model.eval()


def _settle(module: nn.Module) -> bool | None:
    """Put what is frozen in a module into eval mode, unless all of it is; whether any of it trains, None if empty."""
    children = [(child, _settle(child)) for child in module.children()]
    trains = [parameter.requires_grad for parameter in module.parameters(recurse=False)]
    trains += [answer for _, answer in children if answer is not None]
    if any(trains):
        for child, answer in children:
            if answer is False:
                child.eval()
    return any(trains) if trains else None


def parameter_groups(model: nn.Module, settings: GroupSettings) -> list[dict[str, Any]]:
    """The trained parameters in groups for an optimizer, each parameter once, tied ones too.

    A part with multiplier 0 is frozen by this call, which must therefore come before the model is wrapped.

    Returns:
        Dicts of `name` ("backbone", "text" or "rest"), `params`, `lr` and `weight_decay`: of each name first what
        decays, then what does not; empty ones are left out. The order depends on the model and the settings alone.

    Raises:
        ValueError: nothing is left to train.
    """
    multipliers = {"backbone": settings.backbone_multiplier, "text": settings.text_multiplier, "rest": 1.0}
    freeze(model, [part for part, multiplier in multipliers.items() if not multiplier])
    groups: list[dict[str, Any]] = [
        {"name": part, "params": [], "lr": settings.learning_rate * multiplier, "weight_decay": decay}
        for part, multiplier in multipliers.items()
        for decay in (settings.weight_decay, 0.0)
    ]
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            part = part_of(name)
            undecayed = parameter.ndim < 2 and not settings.decay_vectors
            place = list(multipliers).index(part if part in ("backbone", "text") else "rest")
            groups[2 * place + undecayed]["params"].append(parameter)
    return [group for group in groups if group["params"]]
