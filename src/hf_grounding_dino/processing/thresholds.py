"""Thresholds that were chosen for each label on a labelled set, kept beside the model in `thresholds.json`."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np
from torch import Tensor
from transformers.utils.hub import cached_file

from ..utils.atomic import write_atomic
from ..utils.documents import load_json
from .post_processing import Detections
from .prompts import PHRASE_DELIMITERS, clean_name

THRESHOLDS_FILE = "thresholds.json"


@dataclass(frozen=True)
class Thresholds:
    """The score above which a label is taken to be there.

    Labels are found whatever their case, blanks and delimiters, as in a prompt, and by their clean name
    (`prompts.clean_name`), which is what a model is trained on and asked for where a data set has "cat_(animal)".

    The scores are the benchmarks': the mean over the tokens of a label (`scoring="mean"` of `vocabulary.detect`).

    Args:
        default: for labels that are not listed.
        labels: by label.
        source: what they were chosen on, for people.
    """

    default: float
    labels: Mapping[str, float] = field(default_factory=dict)
    source: str = ""

    def __post_init__(self) -> None:
        """Refuse what is no threshold.

        Raises:
            ValueError: a threshold is not a number from 0 to 1.
        """
        for name, value in (("default", self.default), *self.labels.items()):
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
                raise ValueError(f"threshold of {name!r} is {value!r}, not a number from 0 to 1")
        object.__setattr__(self, "labels", {_key(name): float(value) for name, value in self.labels.items()})

    def for_labels(self, labels: Sequence[str]) -> list[float]:
        """The threshold of each label."""
        return [self.default if (own := self._own(label)) is None else own for label in labels]

    def missing(self, labels: Sequence[str]) -> list[str]:
        """The labels that have none of their own."""
        return [label for label in labels if self._own(label) is None]

    def _own(self, label: str) -> float | None:
        own = self.labels.get(_key(label))
        return self.labels.get(_key(clean_name(label))) if own is None else own

    @classmethod
    def read(cls, file: str | os.PathLike[str]) -> Self:
        """Read a file that `write` has written.

        Raises:
            FileNotFoundError: there is none.
            ValueError: it is not such a file.
        """
        path = Path(file)
        if not path.is_file():
            raise FileNotFoundError(f"{path}: there is no such file of thresholds (`tune-thresholds` makes one)")
        try:
            content = load_json(path.read_bytes())
            return cls(content["default"], dict(content.get("labels", {})), str(content.get("source", "")))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ValueError(f"{path}: not a file of thresholds: {error}") from error

    @classmethod
    def from_pretrained(cls, model: str | os.PathLike[str], **hub_options: Any) -> Self:
        """Read the thresholds that lie beside a model, in its folder or its repo on the Hub.

        Args:
            model: a folder, or the name of a repo.
            **hub_options: `revision`, `token`, `cache_dir`, `subfolder`, ... as in transformers.

        Raises:
            FileNotFoundError: the model has none.
            ValueError: the file holds no thresholds.
        """
        if not str(model):
            raise FileNotFoundError(
                f"the model was loaded from no folder and no repo that could hold {THRESHOLDS_FILE}"
            )
        if Path(model).is_dir():
            return cls.read(Path(model, hub_options.get("subfolder") or "", THRESHOLDS_FILE))
        try:
            file = cached_file(str(model), THRESHOLDS_FILE, **hub_options)
        except OSError as error:
            reason = str(error).strip().split("\n")[0]
            raise FileNotFoundError(
                f"no {THRESHOLDS_FILE} of {model} (`tune-thresholds` makes one): {reason}"
            ) from error
        return cls.read(str(file))

    def write(self, folder: str | os.PathLike[str]) -> Path:
        """Write `thresholds.json` into the folder of a model, at once, and return its path."""
        content = {"scoring": "mean", "default": self.default, "labels": dict(self.labels), "source": self.source}
        return write_atomic(Path(folder, THRESHOLDS_FILE), json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def threshold_per_label(threshold: Any, labels: Sequence[str]) -> list[float]:
    """The threshold of each label.

    Args:
        threshold: one for all; one for each label, in their order, as a list or an array; a mapping that names every
            label; or `Thresholds`.

    Raises:
        ValueError: not as many as labels, a label without one, or something that is no number.
    """
    if isinstance(threshold, Thresholds):
        return threshold.for_labels(labels)
    if isinstance(threshold, Mapping):
        if missing := [label for label in labels if label not in threshold]:
            raise ValueError(f"There is no threshold for {missing[0]!r}.")
        threshold = [threshold[label] for label in labels]
    if isinstance(threshold, (np.ndarray, Tensor)):
        threshold = threshold.tolist()
    if not isinstance(threshold, str) and isinstance(threshold, Sequence):
        if len(threshold) != len(labels):
            raise ValueError(f"{len(threshold)} thresholds for {len(labels)} labels.")
        return [_number(one) for one in threshold]
    return [_number(threshold)] * len(labels)


def above_thresholds(found: Detections, least: Sequence[float]) -> Detections:
    """The detections that score above the threshold of their label, `least[label]`."""
    kept = found["scores"] > found["scores"].new_tensor(least)[found["labels"]]
    names = [name for name, keep in zip(found["text_labels"], kept.tolist(), strict=True) if keep]
    return {**{key: found[key][kept] for key in ("scores", "boxes", "labels")}, "text_labels": names}


def _number(value: Any) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if math.isnan(number):
        raise ValueError(f"threshold={value!r} is not a number.")
    return number


def _key(label: str) -> str:
    for delimiter in PHRASE_DELIMITERS:
        label = label.replace(delimiter, " ")
    return " ".join(label.lower().split())
