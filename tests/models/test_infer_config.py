"""What the weights tell of their network, and how a configuration contradicts them."""

from __future__ import annotations

import re

import pytest
import torch
import transformers
from transformers.core_model_loading import revert_weight_conversion

import hf_grounding_dino as own
from hf_grounding_dino.models.grounding_dino.infer_config import contradictions, infer_config


@pytest.mark.parametrize(
    ("embed", "depths", "heads", "window", "out"),
    [
        (96, [2, 2, 6, 2], [3, 6, 12, 24], 7, [2, 3, 4]),
        (128, [2, 2, 18, 2], [4, 8, 16, 32], 12, [2, 3, 4]),
        (192, [2, 2, 18, 2], [6, 12, 24, 48], 12, [1, 2, 3, 4]),
    ],
)
def test_the_published_sizes_are_told_by_the_weights(
    embed: int, depths: list[int], heads: list[int], window: int, out: list[int]
) -> None:
    """T, B and L; L reads one stage more, and so has five levels."""
    swin = transformers.SwinConfig(
        image_size=32 * window, embed_dim=embed, depths=depths, num_heads=heads, window_size=window, out_indices=out
    )
    config = own.MMGroundingDinoConfig(backbone_config=swin, num_feature_levels=len(out) + 1)
    with torch.device("meta"):
        model = own.GroundingDinoForObjectDetection(config)
    state = revert_weight_conversion(model, dict(model.state_dict()))
    told = infer_config({n: t for n, t in state.items() if not re.match(r"(bbox|class)_embed\.[1-9]", n)})
    assert contradictions(told, config) == [] and told.num_feature_levels == len(out) + 1
    assert told.backbone_config.image_size == 32 * window
    assert (told.encoder_n_points, told.decoder_n_points, told.text_config.num_attention_heads) == (4, 4, 12)


def test_a_swin_b_is_called_so() -> None:
    tiny, base = (
        own.GroundingDinoConfig(
            backbone_config=transformers.SwinConfig(
                embed_dim=e, depths=d, num_heads=h, window_size=7, out_indices=[2, 3, 4]
            )
        )
        for e, d, h in ((96, [2, 2, 6, 2], [3, 6, 12, 24]), (128, [2, 2, 18, 2], [4, 8, 16, 32]))
    )
    assert contradictions(tiny, base) == ["the weights are those of a Swin-B, the configuration is of a Swin-T"]
