"""Teach nano a shape and a colour that it does not know from ten pictures: python scripts/try_finetuning.py runs/pink.

It draws the pictures, writes them as COCO JSON, and runs `hf-grounding-dino train finetune_small`; what was learned and
what was lost of Shapes is in the table at the end. Further arguments are handed on, as `--set max_steps=100`.
"""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from hf_grounding_dino.cli.main import main
from hf_grounding_dino.data.shapes import Scene, generate_scene

NAME, PINK = "pink hexagon", (255, 105, 180)
OLD = "val?count=200&seed=1"
_SMOOTH = 4


def draw_hexagons(scene: Scene, rng: np.random.Generator) -> tuple[Image.Image, list[list[float]]]:
    """Put one to three pink hexagons where they hide nothing; the picture, and their boxes as COCO has them."""
    image, taken, boxes = scene.image.copy(), [list(shape.box) for shape in scene.objects], []
    for _ in range(int(rng.integers(1, 4))):
        for _ in range(50):
            radius = float(rng.uniform(0.07, 0.16)) * min(image.size)
            x, y = (float(rng.uniform(radius + 1, side - radius - 1)) for side in image.size)
            box = [x - radius, y - radius, x + radius, y + radius]
            if all(box[2] < b[0] or b[2] < box[0] or box[3] < b[1] or b[3] < box[1] for b in taken):
                taken.append(box)
                turn = float(rng.uniform(0, math.tau / 6))
                angles = [turn + i * math.tau / 6 for i in range(6)]
                corners = [(x + radius * math.cos(angle), y + radius * math.sin(angle)) for angle in angles]
                large = image.resize((image.width * _SMOOTH, image.height * _SMOOTH))
                ImageDraw.Draw(large).polygon([(a * _SMOOTH, b * _SMOOTH) for a, b in corners], PINK)
                image = large.resize(image.size, Image.Resampling.BOX)
                xs, ys = zip(*corners, strict=True)
                boxes.append([min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys)])
                break
    return image, boxes


def write_pictures(folder: Path, count: int, seed: int) -> Path:
    """Draw `count` pictures and their COCO JSON."""
    folder.mkdir(parents=True, exist_ok=True)
    images, annotations = [], []
    for i in range(count):
        image, boxes = draw_hexagons(generate_scene(seed, i, split="val"), np.random.default_rng([seed, i]))
        image.save(folder / f"{i}.png")
        images.append({"id": i, "file_name": f"{i}.png", "width": image.width, "height": image.height})
        for box in boxes:
            place = {"id": len(annotations), "image_id": i, "category_id": 7}
            annotations.append({**place, "bbox": box, "area": box[2] * box[3], "iscrowd": 0})
    document = {"images": images, "annotations": annotations, "categories": [{"id": 7, "name": NAME}]}
    path = folder / "annotations.json"
    path.write_text(json.dumps(document))
    return path


def try_finetuning(folder: Path, options: list[str]) -> int:
    """Draw, train and measure."""
    train, test = (
        write_pictures(folder / name, count, seed) for name, count, seed in (("ten", 10, 70), ("test", 100, 71))
    )
    sets = {
        "model": "nano", "output_dir": folder / "run", "train.0.annotations": train, "eval.0.annotations": test,
        "retain": f"[{{format: shapes, annotations: '{OLD}'}}]",
    }  # fmt: skip
    given = [word for name, value in sets.items() for word in ("--set", f"{name}={value}")]
    return main(["train", "finetune_small", *given, *options])


if __name__ == "__main__":
    sys.exit(try_finetuning(Path(sys.argv[1]), sys.argv[2:]))
