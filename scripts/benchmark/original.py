"""The original repository's package (groundingdino-py, rf-groundingdino), where it is installed, for its time alone."""

from __future__ import annotations

import contextlib
import importlib
import io
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor

from .measure import Side
from .models import Bench

_CONFIG = Path("config", "GroundingDINO_SwinT_OGC.py")


def original_forward(bench: Bench, pixel_values: Tensor, labels: Sequence[str]) -> Side:
    """A forward pass of the original Swin-T model with random weights, on the same images and captions.

    Raises:
        ImportError: the package is not installed.
        ValueError: the model that is measured is of another architecture.
    """
    try:
        package: Any = importlib.import_module("groundingdino")
    except ImportError:
        raise ImportError("the package groundingdino is not installed") from None
    if bench.settings.tiny or bench.settings.model is not None:
        raise ValueError("only compared for Swin-T and BERT-base with random weights")
    folder = Path(next(iter(package.__path__)))
    with contextlib.redirect_stdout(io.StringIO()), tempfile.TemporaryDirectory() as text_encoder:
        options = importlib.import_module("groundingdino.util.slconfig").SLConfig.fromfile(str(folder / _CONFIG))
        transformers.BertModel(bench.own.config.get_text_config()).save_pretrained(text_encoder)
        bench.processor.tokenizer.save_pretrained(text_encoder)
        options.text_encoder_type = text_encoder
        options.device = bench.settings.device
        model = importlib.import_module("groundingdino.models").build_model(options).eval().to(bench.device)
    caption = " . ".join(labels) + " ."

    def run() -> None:
        with torch.inference_mode():
            model(pixel_values, captions=[caption] * len(pixel_values))

    return run
