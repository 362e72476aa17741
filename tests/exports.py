"""The smallest models that have everything an exported graph must bring along, because a node takes milliseconds."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
import transformers
from torch import Tensor

from hf_grounding_dino.export.exporting import Runner
from tiny import Family, noise_image, one, tiny_model, together

DEPTHS = {"grounding-dino": [2], "mm-grounding-dino": [1, 1]}
"""One has a layer of shifted windows, the other merges patches; both have a level beyond the backbone's."""


@contextmanager
def without_traces() -> Iterator[None]:
    """Keep from pytest the tens of thousands of lines that torch notes for itself while it exports."""
    logging.disable(logging.DEBUG)
    yield
    logging.disable(logging.NOTSET)


def least_model(family: Family, **changes: Any) -> Any:
    """One layer of the enhancer, the decoder and the text encoder."""
    depths = DEPTHS[family]
    stages = len(depths)
    options: dict[str, Any] = dict(
        backbone_config=transformers.SwinConfig(
            image_size=64, embed_dim=8, depths=depths, num_heads=[2] * stages, window_size=4,
            out_indices=list(range(1, stages + 1)), drop_path_rate=0.0,
        ),
        text_config=transformers.BertConfig(
            vocab_size=1100, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64,
            max_position_embeddings=64, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
        ),
        num_feature_levels=stages + 1, encoder_layers=1, decoder_layers=1,
    )  # fmt: skip
    return tiny_model(family, **(options | changes))


def all_inputs(*singles: dict[str, Tensor]) -> dict[str, Tensor]:
    """The padded batch with all five inputs of the graph, and garbage where no picture is."""
    inputs = together(list(singles), garbage=7.0)
    return inputs | {"token_type_ids": torch.zeros_like(inputs["input_ids"])}


BY_PLACE = {"num_queries": 1000, "embedding_init_target": False}
"""Every cell a query, and each what its place makes it: float16 may change the order of near-equal ones alone.

In a model with random weights it would otherwise change which learned query goes to which place.
"""

LONG = [[7, 8, 9]] * 9 + [[5]]
"""Nine phrases of three tokens and a delimiter, one of one: 9 * 4 + 2 + 2 = 40 tokens."""

CASES = {
    "wide, 7 tokens": [one(noise_image(40, 75), [7, 8], [9])],
    "tall, 40 tokens": [one(noise_image(81, 44), *LONG)],
    "256 tokens": [one(noise_image(40, 41), *([[7, 8, 9]] * 63 + [[5]]))],
    "three at once": [
        one(noise_image(70, 101), [7, 8], [9]),
        one(noise_image(96, 50), *LONG),
        one(noise_image(33, 120), [5]),
    ],
}


@torch.no_grad()
def largest_differences(model: Any, run: Runner, singles: Sequence[dict[str, Tensor]]) -> tuple[float, float]:
    """How far the logits and the boxes of an exported model are from the model's, query by query."""
    inputs = all_inputs(*singles)
    expected = model(**inputs)
    logits, boxes = run({name: tensor.numpy() for name, tensor in inputs.items()})
    length = inputs["input_ids"].shape[1]
    assert logits.shape == (*expected.logits.shape[:2], length) and boxes.shape == expected.pred_boxes.shape
    assert logits.dtype == boxes.dtype == np.float32
    expected_logits = expected.logits[..., :length].numpy()
    np.testing.assert_array_equal(np.isneginf(logits), np.isneginf(expected_logits))
    real = np.isfinite(expected_logits)
    # A query that is left empty, because there are fewer cells than queries, has a box of no meaning.
    of_boxes = np.abs(boxes - expected.pred_boxes.numpy())[real.any(-1)]
    return float(np.abs(logits[real] - expected_logits[real]).max()), float(of_boxes.max())
