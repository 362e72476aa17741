"""Whether two sides give the same outputs.

Two exact implementations swap a few ranks among the image tokens that become queries, where scores nearly tie, and a
rank decides what a query begins with. Tensors are therefore compared with one side's choice replayed in the other.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torchvision.ops import box_convert

from .measure import one_line
from .models import OUTPUTS_COMPARABLE, Bench
from .settings import Size

_LEAST_SCORE = 0.1
_HALF_A_PIXEL = 0.5
_SAME_SCORE = 0.01


@dataclass(frozen=True)
class Agreement:
    """How far the outputs of two sides lie apart, on the same weights and inputs.

    Attributes:
        logits: largest difference of a token's logit, both sides decoding the same chosen image tokens.
        pixels: largest difference of a box's edge, likewise.
        detections: boxes of the other side that score above 0.1.
        within_half_pixel: how many of them ours has within half a pixel, likewise.
        found_freely: how many of them are among ours within half a pixel, where each side chose for itself.
        replayed: the two sides did decode the same chosen tokens.
        strict: the two sides compute in the same precision, float32, so that they have to agree.
    """

    logits: float
    pixels: float
    detections: int
    within_half_pixel: int
    found_freely: int
    replayed: bool
    strict: bool

    @property
    def agrees(self) -> bool:
        """Every detection was found again within half a pixel."""
        return self.within_half_pixel == self.detections


class Selection(TorchFunctionMode):
    """Records the `topk` that chooses the queries, or, given a record, replays it."""

    def __init__(self, num_queries: int, recorded: Tensor | None = None) -> None:
        super().__init__()
        self.num_queries = num_queries
        self.recorded = recorded
        self.chosen: Tensor | None = None

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func not in (torch.topk, Tensor.topk) or result.indices.shape[-1:] != (self.num_queries,):
            return result
        self.chosen = result.indices
        if self.recorded is None or self.recorded.shape != result.indices.shape:
            return result
        self.chosen = self.recorded
        return torch.return_types.topk((args[0].gather(-1, self.recorded), self.recorded))

    def __enter__(self) -> Self:
        super().__enter__()
        return self


def agree(bench: Bench, own: Any, inputs: dict[str, Tensor], size: Size) -> tuple[Agreement | None, str]:
    """Compare our model, in any type, with stock in float32; or say in one line why that cannot be done."""
    if not OUTPUTS_COMPARABLE:
        return None, "outputs not comparable: this transformers computes wrong text positions"
    try:
        return compare(own, bench.stock, inputs, size), ""
    except Exception as error:  # a network that runs may still not run under the record
        return None, f"outputs not compared: {one_line(error)}"


def cast(inputs: dict[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    """Model inputs with the images in another type."""
    return inputs | {"pixel_values": inputs["pixel_values"].to(dtype)}


@torch.inference_mode()
def compare(own: Any, stock: Any, inputs: dict[str, Tensor], size: Size) -> Agreement:
    """Run our model, in any type, and stock in float32 on images of one size, and compare what comes out."""
    with Selection(own.config.num_queries) as record:
        theirs = stock(**inputs)
    own_inputs = cast(inputs, own.dtype)
    with Selection(own.config.num_queries, record.chosen) as replay:
        ours = own(**own_inputs)
    free = own(**own_inputs)
    width = min(ours.logits.shape[-1], theirs.logits.shape[-1])
    a, b = ours.logits[..., :width].float(), theirs.logits[..., :width]
    real = b.isfinite()
    edges = (_edges(ours.pred_boxes, size) - _edges(theirs.pred_boxes, size)).abs().amax(-1)
    found = _scores(theirs) > _LEAST_SCORE
    return Agreement(
        logits=(a - b)[real].abs().max().item(),
        pixels=edges.max().item(),
        detections=int(found.sum()),
        within_half_pixel=int((edges[found] <= _HALF_A_PIXEL).sum()),
        found_freely=_found_again(free, theirs, size),
        replayed=record.chosen is not None and replay.chosen is record.chosen,
        strict=own.dtype == torch.float32,
    )


def _found_again(ours: Any, theirs: Any, size: Size) -> int:
    """How many detections of theirs are among ours, whatever their rank."""
    count = 0
    for i, scores_Q in enumerate(_scores(theirs)):
        kept = scores_Q > _LEAST_SCORE
        mine, other = _edges(ours.pred_boxes[i], size), _edges(theirs.pred_boxes[i], size)[kept]
        near = (other[:, None] - mine[None]).abs().amax(-1) <= _HALF_A_PIXEL
        alike = (scores_Q[kept][:, None] - _scores(ours)[i][None]).abs() <= _SAME_SCORE
        count += int((near & alike).any(-1).sum())
    return count


def _scores(output: Any) -> Tensor:
    return output.logits.float().sigmoid().amax(-1)


def _edges(boxes: Tensor, size: Size) -> Tensor:
    height, width = size
    scale = torch.tensor([width, height, width, height], device=boxes.device)
    return box_convert(boxes.float(), "cxcywh", "xyxy") * scale
