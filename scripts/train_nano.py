"""Train grounding-dino-nano from random weights: python scripts/train_nano.py runs/nano [--set max_steps=14400]."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import torch
from transformers import BertConfig, SwinConfig

from hf_grounding_dino.cli.main import main
from hf_grounding_dino.data.shapes import VOCABULARY
from hf_grounding_dino.data.tokenizer import build_tokenizer
from hf_grounding_dino.models.grounding_dino.configuration_grounding_dino import MMGroundingDinoConfig
from hf_grounding_dino.models.grounding_dino.modeling_grounding_dino import GroundingDinoForObjectDetection
from hf_grounding_dino.processing.image_processing_grounding_dino import GroundingDinoImageProcessor
from hf_grounding_dino.processing.processing_grounding_dino import GroundingDinoProcessor

FROM_NOTHING = ("max_steps=14400", "learning_rate=6.0e-4", "warmup_steps=200")


def nano_processor() -> GroundingDinoProcessor:
    """Images at 224 pixels on the short side, and the words of Shapes."""
    image_processor = GroundingDinoImageProcessor(size={"shortest_edge": 224, "longest_edge": 358})
    return GroundingDinoProcessor(image_processor, build_tokenizer(VOCABULARY))


def nano_config(vocab_size: int) -> MMGroundingDinoConfig:
    """The architecture: Swin 24 wide, BERT 96 wide, 3 + 3 layers, 2.6 million parameters."""
    stages: dict[str, Any] = {"out_features": ["stage2", "stage3", "stage4"]}
    return MMGroundingDinoConfig(
        backbone_config=SwinConfig(
            image_size=160,
            embed_dim=24,
            depths=[2, 2, 2, 1],
            num_heads=[2, 4, 4, 8],
            window_size=5,
            drop_path_rate=0.05,
            **stages,
        ),
        text_config=BertConfig(
            vocab_size=vocab_size,
            hidden_size=96,
            num_hidden_layers=3,
            num_attention_heads=4,
            intermediate_size=192,
            max_position_embeddings=128,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
        ),
        d_model=96,
        num_queries=50,
        num_feature_levels=3,
        encoder_layers=3,
        decoder_layers=3,
        encoder_ffn_dim=288,
        decoder_ffn_dim=256,
        encoder_n_points=2,
        encoder_attention_heads=6,
        decoder_attention_heads=6,
        dropout=0.0,
        fusion_droppath=0.0,
        decoder_bbox_embed_share=False,
        decoder_cls_embed_share=False,
    )


def write_start(folder: Path, seed: int = 0) -> Path:
    """Save nano with random weights, and its processor, to begin a training from."""
    processor = nano_processor()
    torch.manual_seed(seed)
    GroundingDinoForObjectDetection(nano_config(len(processor.tokenizer))).save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def train_nano() -> int:
    """Write the start, unless it is there, and run the recipe `nano` from it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("output", type=Path)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="as in `train`")
    parser.add_argument("--resume", action="store_true", help="go on from the state in the folder")
    arguments = parser.parse_args()
    start = arguments.output / "start"
    if not start.exists():
        write_start(start)
    options = [f"model={start}", f"output_dir={arguments.output}", *FROM_NOTHING, *arguments.set]
    given = [word for option in options for word in ("--set", option)]
    return main(["train", "nano", *given, *(["--resume"] if arguments.resume else [])])


if __name__ == "__main__":
    sys.exit(train_nano())
