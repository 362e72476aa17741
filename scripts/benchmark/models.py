"""The models that are compared, and what they are given."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import transformers
from PIL import Image
from torch import Tensor

from hf_grounding_dino import (
    GroundingDinoConfig,
    GroundingDinoForObjectDetection,
    GroundingDinoImageProcessor,
    GroundingDinoProcessor,
)
from hf_grounding_dino.data.tokenizer import build_tokenizer
from hf_grounding_dino.models.loading import load_whole

from .settings import Settings, Size

_STOCK: dict[str, tuple[Any, Any]] = {
    "grounding-dino": (transformers.GroundingDinoConfig, transformers.GroundingDinoForObjectDetection),
    "mm-grounding-dino": (transformers.MMGroundingDinoConfig, transformers.MMGroundingDinoForObjectDetection),
}
OUTPUTS_COMPARABLE = tuple(map(int, transformers.__version__.split(".")[:2])) >= (5, 23)
"""Before, transformers counted text positions otherwise than the paper, and the dot not to its phrase."""
_WORDS_EACH = 5  # as in COCO, every fifth label or so has two words
_SHORTEST_WORD = 3
_BOXES_PER_IMAGE = 5


@dataclass(frozen=True)
class Bench:
    """The settings, and the models they are measured on: float32, on the device, with equal weights."""

    settings: Settings
    own: GroundingDinoForObjectDetection
    stock: Any
    processor: GroundingDinoProcessor

    @property
    def device(self) -> torch.device:
        """Where everything runs."""
        return torch.device(self.settings.device)

    def model(self, engine: str, dtype: str) -> Any:
        """A model as it is, or a copy in another type."""
        model = self.own if engine == "ours" else self.stock
        return model if dtype == "float32" else copy.deepcopy(model).to(getattr(torch, dtype))

    def label_names(self, count: int) -> list[str]:
        """`count` different labels of one or two words that the tokenizer holds whole."""
        vocabulary = self.processor.tokenizer.get_vocab()
        return label_names(count, sorted(vocabulary, key=lambda word: vocabulary[word]))

    def inputs(self, size: Size, labels: Sequence[str], batch: int = 1) -> dict[str, Tensor]:
        """Model inputs: different noise in every image, one prompt for all."""
        words = self.processor(text=[list(labels)])
        generator = torch.Generator().manual_seed(self.settings.seed)
        inputs = {name: tensor.expand(batch, -1) for name, tensor in words.items()}
        inputs["pixel_values"] = torch.randn(batch, 3, *size, generator=generator)
        inputs["pixel_mask"] = torch.ones(batch, *size, dtype=torch.long)
        return {name: tensor.to(self.device) for name, tensor in inputs.items()}

    def targets(self, num_labels: int, batch: int) -> list[dict[str, Tensor]]:
        """What to train on: five boxes an image, inside it."""
        generator = torch.Generator().manual_seed(self.settings.seed)
        targets = []
        for _ in range(batch):
            centres = 0.3 + 0.4 * torch.rand(_BOXES_PER_IMAGE, 2, generator=generator)
            sizes = 0.1 + 0.4 * torch.rand(_BOXES_PER_IMAGE, 2, generator=generator)
            classes = torch.randint(num_labels, (_BOXES_PER_IMAGE,), generator=generator)
            targets.append({"boxes": torch.cat([centres, sizes], 1), "class_labels": classes})
        return [{name: tensor.to(self.device) for name, tensor in target.items()} for target in targets]

    def image(self) -> Image.Image:
        """Noise that no processor has to resize."""
        noise = np.random.default_rng(self.settings.seed).integers(0, 256, (*self.settings.size, 3), dtype=np.uint8)
        return Image.fromarray(noise)

    def resizing(self) -> dict[str, int]:
        """The size that the image processors of both sides resize to."""
        return {"shortest_edge": min(self.settings.size), "longest_edge": max(self.settings.size)}


def build_bench(settings: Settings, *, only: str | None = None) -> Bench:
    """Load or make up the model that `settings` names, and its stock twin with the same weights.

    Args:
        settings: of the run.
        only: "ours" or "stock": where the memory of one is measured, the other is not built.
    """
    if settings.model is None:
        own, processor = random_model(settings), closed_processor(settings)
    else:
        own, processor = load_whole(settings.model)
    stock = None
    if only != "ours":
        stock = stock_model(own.config)
        stock.load_state_dict(own.state_dict(), strict=True)
        stock.eval().to(settings.device)
    if only == "stock":
        own: Any = None
    return Bench(settings, own and own.eval().to(settings.device), stock, processor)


def stock_model(config: Any) -> Any:
    """The model of transformers for a configuration of this package, with random weights."""
    config_class, model_class = _STOCK[config.model_type]
    fields = config_class.__dataclass_fields__
    return model_class(config_class(**{name: value for name, value in config.to_dict().items() if name in fields}))


def random_model(settings: Settings) -> GroundingDinoForObjectDetection:
    """A model with seeded weights in which nothing is left at a constant, where it would hide a difference."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        model = GroundingDinoForObjectDetection(tiny_config() if settings.tiny else swin_tiny_config())
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.numel() > 1 and parameter.min() == parameter.max():
                    parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def swin_tiny_config() -> GroundingDinoConfig:
    """The architecture of grounding-dino-tiny: Swin-T and BERT-base."""
    options: dict[str, Any] = {"embed_dim": 96, "depths": [2, 2, 6, 2], "num_heads": [3, 6, 12, 24], "window_size": 7}
    return GroundingDinoConfig(backbone_config=transformers.SwinConfig(**options, out_indices=[2, 3, 4]))


def tiny_config() -> GroundingDinoConfig:
    """An architecture that runs in milliseconds: as few layers as stock can have, and a backbone of one stage."""
    swin: dict[str, Any] = {"image_size": 64, "embed_dim": 8, "depths": [2], "num_heads": [2], "window_size": 4}
    bert: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    sizes = {"d_model": 32, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "num_queries": 20, "num_feature_levels": 2}
    layers = {"encoder_layers": 1, "decoder_layers": 2, "encoder_attention_heads": 4, "decoder_attention_heads": 4}
    return GroundingDinoConfig(
        backbone_config=transformers.SwinConfig(**swin, out_indices=[1]),
        text_config=transformers.BertConfig(**bert, vocab_size=4000, intermediate_size=64),
        **sizes,
        **layers,
    )


def closed_processor(settings: Settings) -> GroundingDinoProcessor:
    """A processor that knows as many made-up words of two or three syllables as the settings need."""
    most = max(
        *settings.labels, *settings.sweep_labels, settings.vocabulary, settings.pipeline_labels, settings.train_labels
    )
    syllables = [consonant + vowel for consonant in "bdfgklmnprstvz" for vowel in "aeiou"]
    words = itertools.chain.from_iterable(itertools.product(syllables, repeat=length) for length in (2, 3))
    tokenizer = build_tokenizer("".join(word) for word in itertools.islice(words, 2 * most))
    return GroundingDinoProcessor(GroundingDinoImageProcessor(), tokenizer)


def label_names(count: int, vocabulary: Iterable[str]) -> list[str]:
    """`count` different labels of one or two words of `vocabulary`, every fifth of two while the words last.

    Raises:
        ValueError: the vocabulary has too few words.
    """
    words = [word for word in vocabulary if len(word) >= _SHORTEST_WORD and word.isascii() and word.isalpha()]
    singles = (f"{word} {words[i - 1]}" if i % _WORDS_EACH == _WORDS_EACH - 1 else word for i, word in enumerate(words))
    pairs = (" ".join(pair) for pair in itertools.permutations(words, 2))
    names = list(itertools.islice(dict.fromkeys(itertools.chain(singles, pairs)), count))
    if len(names) < count:
        raise ValueError(f"The vocabulary has words for {len(names)} labels, not for {count}.")
    return names
