"""A detector that costs nothing: what it finds depends on the picture and, a little, on its batch, as really."""

from __future__ import annotations

import argparse
import os
import random
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from hf_grounding_dino.annotation.annotator import run_annotation
from hf_grounding_dino.annotation.files import WORK_FOLDER
from hf_grounding_dino.annotation.finder import Found, Options, Prepared
from hf_grounding_dino.annotation.journal import Shard
from hf_grounding_dino.annotation.merging import Summary
from hf_grounding_dino.annotation.settings import Settings, digest_of, relative_root
from hf_grounding_dino.annotation.sources import FileSource, PictureSource

LABELS = ("red circle", "blue ring")


class FakeFinder:
    """As many boxes as the first pixel says, 0 to 3; sizes follow the mean colour, and the batch it came in."""

    def __init__(self, seconds: float = 0.0) -> None:
        self.seconds = seconds
        self.found: list[int] = []

    def prepare(self, picture: Image.Image) -> Prepared:
        pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1).float()
        return Prepared(pixels, torch.ones(picture.height, picture.width, dtype=torch.long), picture.size)

    def find(self, pictures: Sequence[Prepared]) -> list[Found]:
        time.sleep(self.seconds)
        self.found.append(len(pictures))
        jitter = float(sum(one.pixels.mean() for one in pictures)) / 1000
        return [self._one(one, jitter) for one in pictures]

    def _one(self, picture: Prepared, jitter: float) -> Found:
        count = int(picture.pixels[0, 0, 0]) % 4
        width, height = picture.size
        share = (float(picture.pixels.mean()) + jitter) / 256
        boxes = [[i + 0.123, 1.0, i + share * (width - i), share * height] for i in range(count)]
        return Found(boxes, [i % len(LABELS) for i in range(count)], [0.9 - i / 10 for i in range(count)])


def settings_of(source: PictureSource, output: Path, format: str = "coco", **changes: object) -> Settings:
    """Those of a run with the fake detector."""
    options: dict[str, object] = {
        "model": "fake", "dtype": "float32", "labels": list(LABELS), "threshold": 0.3, "thresholds": {}, "nms": 0.7,
        "top_k": None, "format": format, "pictures": len(source.names), "names": digest_of(source.names),
        "root": relative_root(source.root, output),
    }  # fmt: skip
    return Settings(**(options | changes))  # type: ignore[arg-type]


def label(
    source: PictureSource,
    output: Path,
    format: str = "coco",
    shard: Shard | None = None,
    finder: FakeFinder | None = None,
    **changes: object,
) -> Summary:
    """A run with the fake detector."""
    settings = settings_of(source, output, format, **changes)
    return run_annotation(
        finder or FakeFinder(), source, output, settings, shard=shard or Shard(), progress=False,
        options=Options(batch_size=4, threads=2),
    )  # fmt: skip


def killed_runs(source: PictureSource, output: Path, kills: int, longest: float) -> int:
    """Run in processes that are killed at random, `kills` times or until one is done; how many were killed.

    Each may live until `longest` seconds after it first wrote an answer.
    """
    randomly = random.Random(0)
    journal = output / WORK_FOLDER / "shard-1-of-1.jsonl"
    for killed in range(kills):
        before = journal.stat().st_size if journal.exists() else 0
        process = os.fork()
        if not process:
            label(source, output, finder=FakeFinder(0.01))
            os._exit(0)
        ended = (0, 0)
        while ended[0] == 0 and (not journal.exists() or journal.stat().st_size == before):
            time.sleep(0.002)
            ended = os.waitpid(process, os.WNOHANG)
        if ended[0] == 0:
            time.sleep(randomly.random() * longest)
            os.kill(process, signal.SIGKILL)
            ended = os.waitpid(process, 0)
        if os.waitstatus_to_exitcode(ended[1]) == 0:
            return killed
    return kills


def main() -> None:
    """Label a folder, killed again and again, then once to the end; print how often it was killed."""
    parser = argparse.ArgumentParser()
    parser.add_argument("pictures", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--kills", type=int)
    parser.add_argument("--longest", type=float, default=0.04)
    arguments = parser.parse_args()
    source = FileSource.of(arguments.pictures.rglob("*.*"), arguments.pictures)
    killed = killed_runs(source, arguments.output, arguments.kills, arguments.longest)
    label(source, arguments.output)
    sys.stdout.write(f"{killed}\n")


if __name__ == "__main__":
    main()
