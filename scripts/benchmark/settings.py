"""What is measured, and how often: each field is an option of the command line."""

from __future__ import annotations

from argparse import ArgumentTypeError
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

Size = tuple[int, int]

CASES = ("forward", "train", "kernel", "pipeline", "vocabulary", "labels", "sizes", "onnx")
DTYPES = ("float32", "bfloat16", "float16")
STOCK_TOKEN_LIMIT = 256


def _count(text: str) -> int:
    if not text.isdecimal() or not 0 < int(text) < 10**9:
        raise ArgumentTypeError(f"{text} is not a whole number from 1 up")
    return int(text)


def _size(text: str) -> Size:
    parts = text.lower().split("x")
    if len(parts) != 2:
        raise ArgumentTypeError(f"{text} is not a size such as 800x1200")
    return _count(parts[0]), _count(parts[1])


def _one_of(known: tuple[str, ...]) -> Callable[[str], str]:
    def read(text: str) -> str:
        if text not in known:
            raise ArgumentTypeError(f"{text!r} is not one of {', '.join(known)}")
        return text

    return read


def _several(read: Callable[[str], Any]) -> Callable[[str], tuple[Any, ...]]:
    return lambda text: tuple(dict.fromkeys(read(part.strip()) for part in text.split(",")))


def _option(default: Any, kind: Callable[[str], Any], meaning: str) -> Any:
    return field(default=default, metadata={"type": kind, "help": meaning})


@dataclass(frozen=True, kw_only=True)
class Settings:
    """One run of the benchmark. Sizes are (height, width) in pixels."""

    cases: tuple[str, ...] = _option(CASES, _several(_one_of(CASES)), "what to measure")
    dtypes: tuple[str, ...] = _option(
        DTYPES[:2], _several(_one_of(DTYPES)), "what to compute in; in train the type of autocast"
    )
    size: tuple[int, int] = _option((800, 1200), _size, "of the images of every case but train and sizes")
    train_size: tuple[int, int] = _option((480, 640), _size, "of the images in train")
    batch: tuple[int, ...] = _option((1,), _several(_count), "images at once, in forward and train")
    labels: tuple[int, ...] = _option((2, 80), _several(_count), "labels of the prompt, in forward")
    train_labels: int = _option(80, _count, "labels of the prompt, in train")
    pipeline_labels: int = _option(80, _count, "labels in pipeline")
    stock_labels: int = _option(2, _count, "labels that stock's pipeline, a forward a label, is timed on, then scaled")
    vocabulary: int = _option(1203, _count, "labels in vocabulary")
    stock_chunks: int = _option(2, _count, "prompts that stock is timed on in vocabulary, then scaled")
    sweep_labels: tuple[int, ...] = _option((1, 20, 40, 80), _several(_count), "numbers of labels in labels")
    sweep_sizes: tuple[Size, ...] = _option(
        ((320, 480), (480, 720), (640, 960), (800, 1200)), _several(_size), "sizes in sizes"
    )
    repeats: int = _option(3, _count, "runs of each side, after the warm-up")
    seed: int = _option(0, int, "of the random weights and inputs")
    model: str | None = _option(None, str, "a folder, or the name of a repo on the Hub; None: random weights of Swin-T")
    device: str = _option("auto", str, "auto, cpu, cuda, cuda:1, ...")
    compile: bool = field(default=True, metadata={"help": "time both sides under torch.compile, too"})
    tiny: bool = field(default=False, metadata={"help": "a network of random weights that runs in milliseconds"})


TINY = Settings(
    size=(64, 96),
    train_size=(64, 96),
    labels=(2, 5),
    train_labels=5,
    pipeline_labels=5,
    vocabulary=150,
    sweep_labels=(1, 3, 5),
    sweep_sizes=((64, 96), (96, 128)),
    tiny=True,
)
