"""What tells models apart."""

from __future__ import annotations

from copy import deepcopy

import torch

import tiny
from hf_grounding_dino.loading import model_fingerprint


def test_fingerprints_tell_models_apart() -> None:
    """A copy is the same model; another weight, another option and another picture size make another one."""
    model = tiny.tiny_model()
    assert model_fingerprint(deepcopy(model)) == model_fingerprint(model)
    weight, option = deepcopy(model), deepcopy(model)
    with torch.no_grad():
        weight.model.decoder.layer_norm.bias[0] += 1e-3
    option.config.num_queries += 1
    found = [model_fingerprint(one) for one in (model, weight, option)]
    assert len({*found, model_fingerprint(model, {"height": 1})}) == 4
