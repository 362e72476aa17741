"""What tells models apart, and which are refused."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path

import pytest
import torch

import tiny
from hf_grounding_dino.models.loading import LoadingError, load_whole, model_fingerprint
from training.runs import write_model


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


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_that_are_not_finite_are_refused_by_name(tmp_path: Path, dtype: torch.dtype) -> None:
    """One value of one tensor, whatever it is loaded as."""
    model, _ = load_whole(write_model(tmp_path))
    for value in (torch.nan, torch.inf, -torch.inf):
        with torch.no_grad():
            model.model.decoder.layers[1].fc1.weight[0, 3] = value
        model.save_pretrained(tmp_path)
        with pytest.raises(LoadingError, match=r"is broken: model\.decoder\.layers\.1\.fc1\.weight holds values that"):
            load_whole(tmp_path, dtype)
