"""`hf-grounding-dino train` with the weights sharded over processes on a CPU, where Accelerate itself shards nothing.

Accelerate's own preparation, clipping and states are used: it is told only that FSDP is on. Run by torchrun. With
FULL_IN_STEP=n in the environment, the disk of the second is full from then on; with NAN_IN_STEP=n, a term of its loss
is NaN in that step.
"""

from __future__ import annotations

import os
import resource
import sys
from typing import Any

import torch
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType

from hf_grounding_dino.cli.main import main
from hf_grounding_dino.training.train_state import TrainState

_init = AcceleratorState.__init__


def _with_fsdp(self: Any, *arguments: Any, fsdp_plugin: Any = None, **options: Any) -> None:
    _init(self, *arguments, fsdp_plugin=fsdp_plugin, **options)
    if fsdp_plugin is not None and self.distributed_type == DistributedType.MULTI_CPU:
        self.fsdp_plugin = fsdp_plugin
        self.distributed_type = PartialState._shared_state["distributed_type"] = DistributedType.FSDP


_accumulate, _update, _steps = TrainState.accumulate, TrainState.update, []


def _broken(*arguments: Any) -> Any:
    terms = _accumulate(*arguments)
    if len(_steps) + 1 == int(os.environ.get("NAN_IN_STEP", 0)) and os.environ["RANK"] == "1":
        terms["loss_giou_0"] = terms["loss"] = terms["loss"] * torch.nan
    return terms


def _disturbed(*arguments: Any) -> Any:
    _steps.append(None)
    if len(_steps) == int(os.environ.get("FULL_IN_STEP", 0)) and os.environ["RANK"] == "1":
        resource.setrlimit(resource.RLIMIT_FSIZE, (500, 500))
    return _update(*arguments)


TrainState.accumulate, TrainState.update = _broken, _disturbed  # type: ignore[method-assign]
AcceleratorState.__init__ = _with_fsdp  # type: ignore[method-assign]
sys.exit(main(["train", *sys.argv[1:]]))
