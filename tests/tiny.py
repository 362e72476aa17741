"""Tiny random models of both types, and the stock twins to compare them with."""

from __future__ import annotations

from typing import Any, Literal

import pytest
import torch
import transformers
from torch import nn

import hf_grounding_dino as own

Family = Literal["grounding-dino", "mm-grounding-dino"]
FAMILIES: tuple[Family, ...] = ("grounding-dino", "mm-grounding-dino")
CLS, SEP, DOT, QUESTION, PAD = 101, 102, 1012, 1029, 0

OWN_CONFIG = {"grounding-dino": own.GroundingDinoConfig, "mm-grounding-dino": own.MMGroundingDinoConfig}
STOCK_CONFIG = {
    "grounding-dino": transformers.GroundingDinoConfig,
    "mm-grounding-dino": transformers.MMGroundingDinoConfig,
}
STOCK_MODEL = {
    "grounding-dino": transformers.GroundingDinoForObjectDetection,
    "mm-grounding-dino": transformers.MMGroundingDinoForObjectDetection,
}


def tiny_options(stages: tuple[int, ...] = (2, 3, 4), **changes: Any) -> dict[str, Any]:
    """Options of a network that runs in milliseconds; dropout is off unless asked for."""
    options: dict[str, Any] = {
        "backbone_config": transformers.SwinConfig(
            image_size=64, embed_dim=8, depths=[1, 1, 2, 1], num_heads=[1, 2, 2, 4], window_size=4,
            out_indices=list(stages), drop_path_rate=0.0,
        ),
        "text_config": transformers.BertConfig(
            vocab_size=1100, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
            max_position_embeddings=64, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
        ),
        "d_model": 32, "encoder_layers": 2, "decoder_layers": 3, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64,
        "encoder_attention_heads": 4, "decoder_attention_heads": 4, "num_queries": 20, "num_feature_levels": 4,
        "encoder_n_points": 2, "decoder_n_points": 2, "dropout": 0.0, "fusion_droppath": 0.0,
    }  # fmt: skip
    return options | changes


def tiny_config(family: Family, **changes: Any) -> Any:
    """A configuration of this package."""
    return OWN_CONFIG[family](**tiny_options(**changes))


def randomize(model: nn.Module, seed: int = 0) -> None:
    """Give every parameter a value that matters, the ones that start at 0 or 1e-4 too."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            noise = torch.randn(parameter.shape, generator=generator)
            if "norm" in name and name.endswith("weight"):
                parameter.copy_(1 + 0.2 * noise)
            elif parameter.ndim < 2:
                parameter.copy_(0.3 * noise)
            else:
                parameter.copy_(noise / parameter[0].numel() ** 0.5)


def tiny_model(family: Family = "grounding-dino", seed: int = 0, **changes: Any) -> own.GroundingDinoForObjectDetection:
    """A model of this package with random weights, in eval mode."""
    model = own.GroundingDinoForObjectDetection(tiny_config(family, **changes))
    randomize(model, seed)
    return model.eval()


def phrases_to_ids(*phrases: list[int], length: int | None = None) -> torch.Tensor:
    """Token ids of a closed prompt, `(1, T)`, padded to `length`."""
    ids = [CLS, *(token for phrase in phrases for token in [*phrase, DOT]), SEP]
    return torch.tensor([ids + [PAD] * ((length or len(ids)) - len(ids))])


def stock_twin(model: own.GroundingDinoForObjectDetection) -> Any:
    """The stock model of the same configuration with the same weights, in eval mode."""
    options = {k: v for k, v in model.config.to_dict().items() if k in STOCK_FIELDS[model.config.model_type]}
    twin = STOCK_MODEL[model.config.model_type](STOCK_CONFIG[model.config.model_type](**options))
    twin.load_state_dict(model.state_dict(), strict=True)
    return twin.eval()


STOCK_FIELDS = {family: set(config.__dataclass_fields__) for family, config in STOCK_CONFIG.items()}

STOCK_IS_SOUND = tuple(map(int, transformers.__version__.split(".")[:2])) >= (5, 23)
sound_stock = pytest.mark.skipif(
    not STOCK_IS_SOUND,
    reason="this transformers computes wrong text positions, or ties heads that are not one (before 5.23)",
)

PHRASES = ([7, 8], [9], [10, 11, 12])
"""The token ids of three phrases of unequal length."""


def noise_image(height: int, width: int, seed: int = 0) -> torch.Tensor:
    """Normalised pixels `(3, height, width)`."""
    return torch.randn(3, height, width, generator=torch.Generator().manual_seed(1000 * seed + height))


def one(image: torch.Tensor, *phrases: list[int]) -> dict[str, torch.Tensor]:
    """Model inputs of one image with a closed prompt, nothing padded."""
    return {"pixel_values": image[None], "input_ids": phrases_to_ids(*(phrases or PHRASES))}


def together(singles: list[dict[str, torch.Tensor]], garbage: float = 0.0) -> dict[str, torch.Tensor]:
    """The padded batch of what `one` makes, with masks; `garbage` fills the padded pixels."""
    height, width = (max(s["pixel_values"].shape[i] for s in singles) for i in (2, 3))
    length = max(s["input_ids"].shape[1] for s in singles)
    batch = {
        "pixel_values": torch.full((len(singles), 3, height, width), garbage),
        "pixel_mask": torch.zeros(len(singles), height, width, dtype=torch.long),
        "input_ids": torch.full((len(singles), length), PAD),
        "attention_mask": torch.zeros(len(singles), length, dtype=torch.long),
    }
    for i, single in enumerate(singles):
        h, w = single["pixel_values"].shape[2:]
        tokens = single["input_ids"].shape[1]
        batch["pixel_values"][i, :, :h, :w] = single["pixel_values"][0]
        batch["pixel_mask"][i, :h, :w] = 1
        batch["input_ids"][i, :tokens] = single["input_ids"][0]
        batch["attention_mask"][i, :tokens] = 1
    return batch


def boxes_label(seed: int, num_boxes: int, num_phrases: int) -> dict[str, torch.Tensor]:
    """A well-formed label: boxes inside the image, classes of the prompt."""
    generator = torch.Generator().manual_seed(seed)
    centres = 0.3 + 0.4 * torch.rand(num_boxes, 2, generator=generator)
    sizes = 0.1 + 0.4 * torch.rand(num_boxes, 2, generator=generator)
    return {
        "boxes": torch.cat([centres, sizes], 1),
        "class_labels": torch.randint(num_phrases, (num_boxes,), generator=generator),
    }
