"""What is measured, and how often."""

from __future__ import annotations

from dataclasses import dataclass

Size = tuple[int, int]

CASES = ("forward", "train", "kernel", "pipeline", "vocabulary", "labels", "sizes", "onnx")
DTYPES = ("float32", "bfloat16", "float16")
STOCK_TOKEN_LIMIT = 256


@dataclass(frozen=True, kw_only=True)
class Settings:
    """One run of the benchmark. Sizes are (height, width) in pixels.

    Attributes:
        cases: some of `CASES`.
        device: a device of torch.
        size: of the pictures of every case but `train` and `sizes`.
        train_size: of the pictures of `train`.
        batches: how many pictures at once, in `forward` and `train`.
        labels: how many labels a prompt of `forward` has.
        dtypes: some of `DTYPES`, for the weights (in `train` for autocast).
        repeats: runs of each side, after the warm-up.
        compiled: time both sides under `torch.compile` too, in `forward`, for the last number of labels.
        train_labels: labels of the prompt in `train`.
        pipeline_labels: labels of the call in `pipeline`.
        stock_labels: for how many of them stock's pipeline, a forward a label, is timed; the rest is extrapolated.
        vocabulary_labels: labels looked for in `vocabulary`.
        stock_chunks: how many of the prompts that stock needs for them are timed; the rest is extrapolated.
        sweep_labels: the numbers of labels in `labels`.
        sweep_sizes: the sizes in `sizes`.
        tiny: a network of random weights that runs in milliseconds, to try the benchmark.
        model: folder or repo of the weights; None for random ones of Swin-T and BERT-base.
        seed: of the weights and the inputs.
    """

    cases: tuple[str, ...] = CASES
    device: str = "cpu"
    size: Size = (800, 1200)
    train_size: Size = (480, 640)
    batches: tuple[int, ...] = (1,)
    labels: tuple[int, ...] = (2, 80)
    dtypes: tuple[str, ...] = ("float32", "bfloat16")
    repeats: int = 3
    compiled: bool = True
    train_labels: int = 80
    pipeline_labels: int = 80
    stock_labels: int = 2
    vocabulary_labels: int = 1203
    stock_chunks: int = 2
    sweep_labels: tuple[int, ...] = (1, 20, 40, 80)
    sweep_sizes: tuple[Size, ...] = ((320, 480), (480, 720), (640, 960), (800, 1200))
    tiny: bool = False
    model: str | None = None
    seed: int = 0


FULL = Settings()
TINY = Settings(
    size=(64, 96),
    train_size=(64, 96),
    labels=(2, 5),
    train_labels=5,
    pipeline_labels=5,
    vocabulary_labels=150,
    sweep_labels=(1, 3, 5),
    sweep_sizes=((64, 96), (96, 128)),
    tiny=True,
)
