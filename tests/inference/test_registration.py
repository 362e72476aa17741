"""`register()`: this family resolves to this package, everything else stays as it was. Each in a process of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

TINY_OWL = """
import sys, transformers
from transformers import *
size = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
vision = {**size, "image_size": 32, "patch_size": 16}
owl = OwlViTForObjectDetection(OwlViTConfig(text_config={**size, "vocab_size": 2000}, vision_config=vision))
"""

AFTER = (
    TINY_OWL
    + """
from hf_grounding_dino import register
from hf_grounding_dino.assets import DEMO_IMAGE, NANO
register()
register()

def own(thing):
    return type(thing).__module__.startswith("hf_grounding_dino.")

for model_type in ("grounding-dino", "mm-grounding-dino"):
    config = AutoConfig.for_model(model_type)
    assert own(config) and config.model_type == model_type
assert own(AutoConfig.from_pretrained(NANO))
assert own(AutoModel.from_pretrained(NANO))
assert own(AutoModelForZeroShotObjectDetection.from_pretrained(NANO))
assert own(AutoImageProcessor.from_pretrained(NANO))
assert own(AutoProcessor.from_pretrained(NANO))
assert not own(AutoTokenizer.from_pretrained(NANO))
made = pipeline("zero-shot-object-detection", model=str(NANO), device="cpu")
assert own(made) and own(made.model) and own(made.processor)
results = made(str(DEMO_IMAGE), candidate_labels=["red square", "blue ring"], threshold=0.3)
assert results[0]["label"] == "red square"

# Classes called by their names, and other models.
assert type(transformers.MMGroundingDinoForObjectDetection.from_pretrained(NANO)).__module__.startswith("transformers.")
assert type(transformers.GroundingDinoProcessor.from_pretrained(NANO)).__module__.startswith("transformers.")
parts = {"image_processor": OwlViTImageProcessor(), "tokenizer": AutoTokenizer.from_pretrained(NANO)}
other = pipeline("zero-shot-object-detection", model=owl, device="cpu", **parts)
assert type(other) is ZeroShotObjectDetectionPipeline and other.image_processor is parts["image_processor"]
owl.save_pretrained(sys.argv[1])
parts["image_processor"].save_pretrained(sys.argv[1])
assert type(AutoModelForZeroShotObjectDetection.from_pretrained(sys.argv[1])) is OwlViTForObjectDetection
assert type(AutoImageProcessor.from_pretrained(sys.argv[1])) is OwlViTImageProcessor
other = pipeline("zero-shot-object-detection", model=sys.argv[1], tokenizer=parts["tokenizer"], device="cpu")
assert type(other) is ZeroShotObjectDetectionPipeline and type(other.model) is OwlViTForObjectDetection

# Saved from here, a repo is one of transformers.
made.save_pretrained(sys.argv[2])
import json, pathlib
written = {file.name: file.read_text() for file in pathlib.Path(sys.argv[2]).glob("*.json")}
for word in ("custom_pipelines", "auto_map", "hf_grounding_dino"):
    assert not any(word in text for text in written.values())
assert not list(pathlib.Path(sys.argv[2]).glob("*.py"))
"""
)

WITHOUT = """
import transformers, hf_grounding_dino
from hf_grounding_dino import register, GroundingDinoPipeline
from hf_grounding_dino.assets import NANO
made = transformers.pipeline("zero-shot-object-detection", model=str(NANO), device="cpu")
assert type(made) is transformers.ZeroShotObjectDetectionPipeline
assert type(made.model) is transformers.MMGroundingDinoForObjectDetection
assert type(transformers.AutoProcessor.from_pretrained(NANO)) is transformers.GroundingDinoProcessor
"""


def run(code: str, *arguments: str) -> None:
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]


def test_after_registration(tmp_path: Path) -> None:
    run(AFTER, str(tmp_path / "owl"), str(tmp_path / "saved"))


def test_without_registration() -> None:
    """Importing `register` and the pipeline is not registering."""
    run(WITHOUT)
