"""How much longer `annotate` takes than the model's own forward passes, on images in a folder.

python scripts/time_annotation.py                    # nano and its small images
python scripts/time_annotation.py --swin-t           # random weights of Swin-T and BERT-base, 800 x 1066

Both sides run in turn in one process: the forward passes alone, on batches that lie ready in memory, and `annotate`
from the files of the folder to the COCO file. They find the same number of boxes, or it fails.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from benchmark.models import closed_processor, random_model
from benchmark.settings import Settings
from hf_grounding_dino import GroundingDinoForObjectDetection, GroundingDinoProcessor
from hf_grounding_dino.annotation.annotator import annotate
from hf_grounding_dino.annotation.sources import FileSource
from hf_grounding_dino.assets import NANO
from hf_grounding_dino.data.shapes import CATEGORIES, generate_scene
from hf_grounding_dino.inference.predictor import Predictor
from hf_grounding_dino.processing.defaults import DEFAULTS

BATCH = 4


def main() -> int:
    """Print seconds and ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--swin-t", action="store_true", help="instead of nano")
    parser.add_argument("--images", type=int, default=32)
    parser.add_argument("--labels", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    model, processor, labels = subject(arguments.swin_t, arguments.labels)
    predictor = Predictor(model, processor, batch_size=BATCH)
    size = (640, 480) if arguments.swin_t else (200, 160)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        files = [root / f"{i:05}.jpg" for i in range(arguments.images)]
        for i, file in enumerate(files):
            generate_scene(0, i, split="val", size=size).image.save(file, quality=95)
        batches = [prepared(processor, files[i : i + BATCH], labels) for i in range(0, len(files), BATCH)]
        ratios = []
        for turn in range(arguments.rounds + 1):
            start = time.perf_counter()
            outputs = [forward(model, batch) for batch in batches]
            bare = time.perf_counter() - start
            start = time.perf_counter()
            source = FileSource.from_paths(files, root)
            summary = annotate(predictor, source, labels, root / f"out{turn}", progress=False)
            whole = time.perf_counter() - start
            boxes = sum(count_boxes(processor, output, labels) for output in outputs)
            if summary.boxes != boxes:
                raise SystemExit(f"{summary.boxes} boxes were annotated, and {boxes} are in the outputs of the model")
            if turn:  # the first round warms up
                ratios.append(whole / bare)
                sys.stdout.write(f"model {bare:.2f} s, annotate {whole:.2f} s, ratio {whole / bare:.3f}\n")
    sys.stdout.write(
        f"{len(files) / bare:.2f} images a second bare, {boxes} boxes; median ratio {statistics.median(ratios):.3f}\n"
    )
    return 0


def subject(swin_t: bool, count: int) -> tuple[Any, GroundingDinoProcessor, list[str]]:
    """The model, its processor and labels that it knows."""
    if swin_t:
        settings = Settings(labels=(count,), vocabulary=count)
        processor = closed_processor(settings)
        words = sorted(word for word in processor.tokenizer.get_vocab() if word.isalpha() and word.isascii())
        return random_model(settings).eval(), processor, words[:count]
    model = GroundingDinoForObjectDetection.from_pretrained(NANO).eval()
    return model, GroundingDinoProcessor.from_pretrained(NANO), list(CATEGORIES[:count])


def prepared(processor: GroundingDinoProcessor, files: list[Path], labels: list[str]) -> Any:
    """Inputs of the model for a batch."""
    return processor(images=[Image.open(file).convert("RGB") for file in files], text=[labels] * len(files))


def forward(model: Any, inputs: Any) -> Any:
    """One pass."""
    with torch.inference_mode():
        return model(**inputs)


def count_boxes(processor: GroundingDinoProcessor, outputs: Any, labels: list[str]) -> int:
    """How many boxes the images of a batch have."""
    results = processor.post_process_grounded_object_detection(
        outputs, threshold=DEFAULTS.threshold, text_labels=[labels] * len(outputs.logits)
    )
    return sum(len(result["scores"]) for result in results)


if __name__ == "__main__":
    sys.exit(main())
