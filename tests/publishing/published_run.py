"""A small run folder as training leaves it, with the model that ships as its model."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import yaml
from PIL import Image

from hf_grounding_dino.assets import DEMO_LABELS, NANO
from hf_grounding_dino.processing.closed_vocabulary import WORDS_FILE
from hf_grounding_dino.publishing.facts import DatasetFacts, write_datasets

RECIPE = {
    "model": "nano",
    "output_dir": "/home/someone/secret project/run",
    "train": [{"format": "coco", "annotations": "/home/someone/data/ten.json", "name": "ten images"}],
    "eval": [{"format": "coco", "annotations": "/home/someone/data/val.json", "name": "new shape"}],
    "retain": [{"format": "coco", "annotations": "/home/someone/data/old.json", "name": "old shapes"}],
    "max_steps": 400,
    "batch_size": 4,
    "learning_rate": 1e-4,
    "freeze": ["backbone", "text"],
    "lora": None,
    "denoising": {"queries": 100, "label_noise": 0.5},
    "log_every": 20,
    "hub_token": "hf_never_to_be_seen",
}
EVALUATIONS = {
    0: {"new shape/AP": 0.10, "new shape/AP50": 0.15, "old shapes/AP": 0.80},
    200: {"new shape/AP": 0.85, "new shape/AP50": 0.95, "new shape/APs": -1.0, "old shapes/AP": 0.79},
    400: {"new shape/AP": 0.83, "new shape/AP50": 0.94, "old shapes/AP": 0.78},
}


def write_run(run: Path) -> Path:
    """`best/` and `last/`, the recipe, metrics of 400 steps and a sheet of examples."""
    for which, step in (("best", 200), ("last", 400)):
        shutil.copytree(NANO, run / which, ignore=shutil.ignore_patterns(WORDS_FILE))  # training writes none
        (run / which / "step.json").write_text(json.dumps({"step": step}))
    (run / "best" / "denoising.safetensors").write_bytes(b"only for training")
    (run / "recipe.yaml").write_text(yaml.safe_dump(RECIPE))
    lines = [{"step": 0, "evaluation": EVALUATIONS[0]}]
    for step in range(20, 401, 20):
        loss = 3 + 500 / step
        lines.append({"step": step, "loss": loss, "learning_rate": 1e-4, "loss_ce": loss / 3, "loss_ce_dn": loss / 9})
        if step in EVALUATIONS:
            lines.append({"step": step, "evaluation": EVALUATIONS[step]})
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    labels = DEMO_LABELS
    write_datasets(
        run,
        [
            DatasetFacts(name="ten images", role="train", format="coco", images=10, boxes=1234, labels=labels),
            DatasetFacts(name="new shape", role="eval", format="coco", images=50, boxes=60, labels=labels[:2]),
            DatasetFacts(
                name="old shapes", role="retain", format="coco", images=50, boxes=90, labels=("RED square", "dog")
            ),
        ],
    )
    (run / "examples").mkdir()
    for step, color in ((200, "red"), (400, "blue")):
        Image.new("RGB", (30, 20), color).save(run / "examples" / f"step-{step:06d}.png")
    return run
