"""Weights between two models of one architecture."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from hf_grounding_dino.training.ema import interpolate
from tiny import FAMILIES, Family, noise_image, one, tiny_model


def equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) and a[name].dtype == b[name].dtype for name in a)


class Odd(nn.Module):
    """A float parameter, a float buffer, a counter, and values that a careless formula turns into NaN."""

    def __init__(self, value: float, count: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([value, 1e-8, 3e38 * value]))
        self.register_buffer("mean", torch.tensor([value, -torch.inf]))
        self.register_buffer("count", torch.tensor(count))


@pytest.mark.parametrize("family", FAMILIES)
def test_the_ends_are_the_models_to_the_bit(family: Family) -> None:
    """Infinite values too, of which a careless formula makes NaN."""
    for base, tuned in ((tiny_model(family, seed=1), tiny_model(family, seed=2)), (Odd(-1.0, 3), Odd(1.0, 3))):
        assert equal(interpolate(base, tuned, 0), base.state_dict())
        assert equal(interpolate(base, tuned, 1), tuned.state_dict())


def test_floats_are_mixed_and_counts_are_not() -> None:
    """A quarter of the way from 2 to 10 is 4, for parameters and buffers; the counter is the tuned one's at 0 too."""
    mixed = interpolate(Odd(2.0, 3), Odd(10.0, 5), 0.25)
    assert mixed["weight"][0] == mixed["mean"][0] == 4.0
    assert mixed["count"] == 5 and interpolate(Odd(2.0, 3), Odd(10.0, 5), 0)["count"] == 5


def test_neither_model_is_changed_nor_shares_memory_with_the_result() -> None:
    base, tuned = Odd(2.0, 3), Odd(10.0, 5)
    for alpha in (0.0, 0.5, 1.0):
        for tensor in interpolate(base, tuned, alpha).values():
            tensor.zero_()
    assert base.weight[0] == 2 and tuned.weight[0] == 10 and tuned.count == 5


def test_half_precision_is_mixed_in_float32() -> None:
    """bfloat16 has steps of 2^-7 above 1. From 1 + 1/4 of a step to 1 + 1 step, the middle is 5/8 of one: rounded, 1.

    A base that is rounded first is at 1, and the middle half way, which rounds down.
    """
    base, tuned = (nn.Linear(1, 1, bias=False) for _ in range(2))
    base.weight.data.fill_(1 + 2**-9)
    tuned.weight.data.fill_(1 + 2**-7)
    mixed = interpolate(base, tuned.bfloat16(), 0.5)["weight"]
    assert mixed.dtype == torch.bfloat16
    assert mixed.item() == 1 + 2**-7


def test_a_mixed_model_runs_and_its_heads_stay_one_tensor() -> None:
    base, tuned = tiny_model(seed=1), tiny_model(seed=2)
    mixed = interpolate(base, tuned, 0.5)
    expected = (base.bbox_embed[0].layers[0].weight + tuned.bbox_embed[0].layers[0].weight) / 2
    assert torch.allclose(mixed["model.decoder.bbox_embed.2.layers.0.weight"], expected)
    names = [name for name in mixed if name.endswith("bbox_embed.2.layers.0.weight")]
    assert len({mixed[name].data_ptr() for name in names}) == 1 and len(names) == 2
    tuned.load_state_dict(mixed)
    inputs = one(noise_image(96, 128))
    assert not torch.equal(tuned(**inputs).pred_boxes, base(**inputs).pred_boxes)


def test_a_base_with_other_ties_is_refused() -> None:
    """The tuned model shares its heads, the base has different ones: mixed, one of them would silently win."""
    base, tuned = tiny_model(decoder_bbox_embed_share=False), tiny_model()
    with pytest.raises(ValueError, match=r"bbox_embed.*are one tensor in the tuned model"):
        interpolate(base, tuned, 0.5)


@pytest.mark.parametrize(
    ("base", "tuned", "message"),
    [
        (nn.Linear(2, 2), nn.Linear(2, 2, bias=False), "only the base one has bias"),
        (nn.Linear(2, 2, bias=False), nn.Linear(2, 2), "only the tuned one has bias"),
        (nn.Linear(2, 2), nn.Linear(3, 2), r"weight is \(2, 2\) in the base model, \(2, 3\) in the tuned one"),
    ],
)
def test_other_architectures_are_refused(base: nn.Module, tuned: nn.Module, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        interpolate(base, tuned, 0.5)
