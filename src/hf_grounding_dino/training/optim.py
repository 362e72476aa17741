"""What is trained and at which rate: parts of the network, parameter groups, and the schedule of the learning rate."""

from __future__ import annotations

import math
import re
from bisect import bisect_right
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Literal

from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

PARTS = {
    "backbone": r"(^|\.)backbone\.",
    "text": r"(^|\.)text_backbone\.",
    "heads": r"(^|\.)(bbox_embed|class_embed|encoder_output_bbox_embed|encoder_output_class_embed)\.",
    "decoder": r"(^|\.)(decoder|query_position_embeddings)\.",
    "encoder": r"(^|\.)(encoder\.|level_embed$)",
}
"""Patterns of parameter names; a parameter belongs to the first part that its name matches.

To none of them belong the input projections, the text projection, and the layer before the query selection.
"""
EXPRESSION = "re:"
"""Prefix of a regular expression of parameter names where a part may stand."""

Schedule = Literal["cosine", "step", "constant"]


def part_of(name: str) -> str | None:
    """The part of the network that a parameter of this name belongs to, a key of `PARTS`; None for what lies between.

    Names may carry what wrappers put in front of them ("module.", "base_model.model.").
    """
    return next((part for part, pattern in PARTS.items() if re.search(pattern, name)), None)


def named_by(model: nn.Module, part: str) -> list[nn.Parameter]:
    """The parameters of a part, or whose name matches the regular expression after "re:".

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
    """Stop training parts of the model; call it before the model is wrapped.

    `train_mode` then leaves their dropout and stochastic depth off.

    Args:
        parts: "backbone", "text", "encoder", "decoder", "heads", or "re:" and a regular expression that is searched in
            the names of parameters. "text" is the text encoder without the projection after it.

    Raises:
        ValueError: there is no such part, an expression finds nothing, or nothing is left to train.
    """
    for parameter in [parameter for part in parts for parameter in named_by(model, part)]:
        parameter.requires_grad_(False)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ValueError("Nothing is left to train: every parameter is frozen.")


def train_mode(model: nn.Module) -> None:
    """`model.train()`, with modules whose every parameter is frozen in eval mode, and all that is in them.

    A frozen text encoder thus stays the same function: with a learning rate of 0 alone its dropout would go on. Call it
    wherever training begins or goes on, since `model.train()` knows nothing of frozen parts.
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


def parameter_groups(
    model: nn.Module,
    learning_rate: float,
    *,
    backbone_lr_mult: float = 0.1,
    text_lr_mult: float = 0.1,
    weight_decay: float = 1e-4,
    decay_vectors: bool = False,
) -> list[dict[str, Any]]:
    """The trained parameters in groups for an optimizer, each parameter once, tied ones too.

    Defaults are those of MM-Grounding-DINO. Call it before the model is wrapped.

    Args:
        learning_rate: of everything that is neither backbone nor text encoder.
        backbone_lr_mult, text_lr_mult: times the learning rate, for these two; 0 freezes the part.
        weight_decay: on matrices and tables.
        decay_vectors: also on vectors (norms, biases, scales), as mmdetection does.

    Returns:
        Dicts of `name` ("backbone", "text" or "rest"), `params`, `lr` and `weight_decay`: of each name first what
        decays, then what does not; empty ones are left out. The order depends on the model and the settings alone.

    Raises:
        ValueError: nothing is left to train.
    """
    multipliers = {"backbone": backbone_lr_mult, "text": text_lr_mult, "rest": 1.0}
    freeze(model, [part for part, multiplier in multipliers.items() if not multiplier])
    groups: dict[tuple[str, bool], dict[str, Any]] = {
        (part, decays): {
            "name": part,
            "params": [],
            "lr": learning_rate * multiplier,
            "weight_decay": weight_decay if decays else 0.0,
        }
        for part, multiplier in multipliers.items()
        for decays in (True, False)
    }
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            part = part_of(name)
            place = part if part in ("backbone", "text") else "rest"
            groups[place, parameter.ndim >= 2 or decay_vectors]["params"].append(parameter)
    return [group for group in groups.values() if group["params"]]


def learning_rate_schedule(
    optimizer: Optimizer,
    kind: Schedule,
    max_steps: int,
    *,
    warmup_steps: int = 0,
    warmup_start: float = 0.1,
    milestones: Sequence[int] = (),
    gamma: float = 0.1,
) -> LambdaLR:
    """A scheduler to step once after each step of the optimizer; all groups keep their ratios.

    It is not for `accelerator.prepare`, which would step it once a process.

    Args:
        kind: after the warm-up a half cosine to 0 at `max_steps`, a fall by `gamma` at each milestone, or nothing.
        warmup_steps: MM-Grounding-DINO pre-trains with 1000 and fine-tunes without.
        warmup_start: the share of the rate that the first step of a warm-up has.
        milestones: after how many steps each fall comes; for "step" alone.
        gamma: what is left of the rate after a milestone.

    Raises:
        ValueError: the warm-up is longer than the run, or milestones are missing, out of order or of no use.
    """
    if not 0 <= warmup_steps < max_steps:
        raise ValueError(f"`warmup_steps` is {warmup_steps}, out of 0 to {max_steps - 1}.")
    if bool(milestones) != (kind == "step"):
        raise ValueError(f"`milestones` {list(milestones)} with the {kind!r} schedule: they go with 'step'.")
    if any(a >= b for a, b in pairwise((0, *milestones, max_steps))):
        raise ValueError(f"`milestones` {list(milestones)} must rise between 0 and {max_steps}.")

    def factor(step: int) -> float:
        """The share of the learning rate with which the step after `step` done ones is made."""
        if step < warmup_steps:
            return warmup_start + (1 - warmup_start) * step / warmup_steps
        if kind == "cosine":
            progress = (step - warmup_steps) / (max_steps - warmup_steps)
            return 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
        if kind == "step":
            return float(gamma ** bisect_right(milestones, step))
        return 1.0

    return LambdaLR(optimizer, factor)
