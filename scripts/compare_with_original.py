"""Compare a converted model with the original package's own forward, on random weights and one picture.

The original runs with an older transformers than this package, so there are two stages, each in its own environment:

    pip install torch torchvision transformers==4.46.3 timm addict yapf
    pip install --no-deps rf-groundingdino==0.3.0
    python scripts/compare_with_original.py --write folder      # there: weights.pth, inputs and outputs
    python scripts/compare_with_original.py --check folder      # here: converts weights.pth and compares

The text encoder is a small random BERT with a vocabulary of its own; all else is the Swin-T or Swin-B architecture of
the published models. Nothing is downloaded.
"""

from __future__ import annotations

import argparse
import importlib
import sys
import types
from pathlib import Path
from typing import Any

import torch

CONFIGS = {"swin-t": "GroundingDINO_SwinT_OGC", "swin-b": "GroundingDINO_SwinB_cfg"}
CAPTION = "a cat . remote control . dog ?"
SPECIAL_TOKENS = {"[PAD]": 0, "[UNK]": 100, "[CLS]": 101, "[SEP]": 102, "[MASK]": 103, ".": 1012, "?": 1029}
WORDS = {"a": 200, "cat": 201, "remote": 202, "control": 203, "dog": 204}
VOCABULARY_SIZE = 1100
HEIGHT, WIDTH = 288, 352
TOLERANCE = 1e-4


def say(text: str) -> None:
    """Put a line on the terminal."""
    sys.stdout.write(f"{text}\n")


def write_text_encoder(folder: Path) -> None:
    """A small random BERT with a tokenizer whose special tokens have the ids that they have in bert-base-uncased."""
    from transformers import BertConfig, BertModel, BertTokenizer

    names = {number: word for word, number in (SPECIAL_TOKENS | WORDS).items()}
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = folder / "vocab.txt"
    vocabulary.write_text("".join(f"{names.get(i, f'[unused{i}]')}\n" for i in range(VOCABULARY_SIZE)))
    BertTokenizer(str(vocabulary)).save_pretrained(folder)
    config = BertConfig(
        vocab_size=VOCABULARY_SIZE, hidden_size=128, num_hidden_layers=3, num_attention_heads=2, intermediate_size=256
    )
    BertModel(config).save_pretrained(folder)


def build_original(config_name: str, text_encoder: Path) -> Any:
    """The model of the original package."""
    # It draws boxes with OpenCV and Matplotlib, which a comparison of numbers can do without.
    drawing: Any = types.ModuleType("groundingdino.util.visualizer")
    drawing.COCOVisualizer = object
    sys.modules[drawing.__name__] = drawing
    config = importlib.import_module(f"groundingdino.config.{config_name}")
    options = {name: value for name, value in vars(config).items() if not name.startswith("__")}
    options |= {"text_encoder_type": str(text_encoder), "use_checkpoint": False, "use_transformer_ckpt": False}
    options |= {"device": "cpu"}
    models = importlib.import_module("groundingdino.models")
    return models.build_model(argparse.Namespace(**options)).eval()


def randomize(model: torch.nn.Module) -> None:
    """Give every parameter a value that matters, and keep boxes away from the edges of the picture.

    There the original clips the logits of references at 1e-3, transformers and this package at 1e-5.
    """
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            scale = 0.1 if "bbox_embed" in name else 1.0
            if "norm" in name.lower() and name.endswith("weight"):
                parameter.copy_(1 + 0.2 * noise)
            elif parameter.ndim < 2:
                parameter.copy_(0.2 * scale * noise)
            else:
                parameter.copy_(scale * noise / parameter[0].numel() ** 0.5)


@torch.no_grad()
def write(folder: Path, config_name: str) -> None:
    """Run the original, and keep its weights, inputs and outputs."""
    torch.manual_seed(0)
    write_text_encoder(folder / "text_encoder")
    model = build_original(config_name, folder / "text_encoder")
    randomize(model)
    pixels = torch.randn(1, 3, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(1))
    output = model(pixels, captions=[CAPTION])
    input_ids = model.tokenizer([CAPTION], return_tensors="pt")["input_ids"]
    torch.save(
        {"model": {f"module.{name}": value for name, value in model.state_dict().items()}}, folder / "weights.pth"
    )
    outputs = {"logits": output["pred_logits"], "pred_boxes": output["pred_boxes"]}
    torch.save({"pixel_values": pixels, "input_ids": input_ids, **outputs}, folder / "forward.pth")
    say(f"{folder}: {output['pred_boxes'].shape[1]} queries, {input_ids.shape[1]} tokens")


@torch.no_grad()
def check(folder: Path) -> int:
    """Convert the weights, run the same forward, and say how far it is from the original's."""
    from hf_grounding_dino import GroundingDinoForObjectDetection
    from hf_grounding_dino.models.grounding_dino.conversion import convert_to_hf

    converted = folder / "converted"
    report = convert_to_hf(folder / "weights.pth", converted, tokenizer=str(folder / "text_encoder"))
    say(report.summary())
    forward = torch.load(folder / "forward.pth", weights_only=True)
    model = GroundingDinoForObjectDetection.from_pretrained(converted).eval()
    output = model(pixel_values=forward["pixel_values"], input_ids=forward["input_ids"])
    tokens = forward["input_ids"].shape[1]
    score = (output.logits[..., :tokens].sigmoid() - forward["logits"][..., :tokens].sigmoid()).abs().max().item()
    logit = (output.logits[..., :tokens] - forward["logits"][..., :tokens]).abs().max().item()
    box = (output.pred_boxes - forward["pred_boxes"]).abs().max().item()
    say(f"largest differences: logits {logit:.2e}, scores {score:.2e}, boxes {box:.2e}; allowed {TOLERANCE:.0e}")
    return int(max(score, logit, box) > TOLERANCE)


def main() -> int:
    """Run one of the two stages."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    stage = parser.add_mutually_exclusive_group(required=True)
    stage.add_argument("--write", metavar="FOLDER", type=Path)
    stage.add_argument("--check", metavar="FOLDER", type=Path)
    parser.add_argument("--config", choices=sorted(CONFIGS), default="swin-t", help="with --write (%(default)s)")
    arguments = parser.parse_args()
    if arguments.write is not None:
        write(arguments.write, CONFIGS[arguments.config])
        return 0
    return check(arguments.check)


if __name__ == "__main__":
    sys.exit(main())
