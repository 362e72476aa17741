"""Weights of the original repository and of mmdetection, made into repos of transformers, and back."""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedTokenizerBase
from transformers.core_model_loading import revert_weight_conversion
from transformers.utils import IMAGE_PROCESSOR_NAME, PROCESSOR_NAME

from ...processing.image_processing_grounding_dino import GroundingDinoImageProcessor
from ...processing.processing_grounding_dino import GroundingDinoProcessor
from ...utils.atomic import atomic_file, atomic_folder
from ...utils.hub import offline_fallback
from ..checkpoint_reader import (
    CONFIG_KEY,
    IMAGES_KEY,
    KNOWN_TO_BE_DROPPED,
    ForeignCheckpoint,
    read_checkpoint,
    recognise,
)
from ..configuration import own_config
from ..registry import MODEL_TYPES, load
from ..weight_names import Layout, translate_to_ours, translate_to_theirs
from .configuration_grounding_dino import AnyGroundingDinoConfig, GroundingDinoConfig
from .conversion_rules import LOGIT_EPSILONS, RULES
from .infer_config import contradictions, infer_config
from .label_embedding import LABEL_EMBEDDING_FILE, LABEL_EMBEDDING_KEY
from .modeling_grounding_dino import GroundingDinoForObjectDetection

DEFAULT_TOKENIZER = "bert-base-uncased"
LABEL_EMBEDDING_IN_MMDET = f"dn_query_generator.{LABEL_EMBEDDING_KEY}"
_COPIES = re.compile(r"model\.decoder\.(bbox|class)_embed\..*|.*\.swin\.layernorm\..*|.*\.position_ids")
_WRITE_ERRORS = (OSError, RuntimeError, SafetensorError)
_SHOWN = 3


@dataclass
class ConversionReport:
    """What became of each tensor.

    source: what was read. layout: whose names it has, or will have: "original" or "mmdet".
    model_type: "grounding-dino" or "mm-grounding-dino". converted: how many tensors were read and used.
    dropped: left out, as they should be. unexpected: left out, and nobody knows what they are.
    missing: what the network needs and the file lacks. misshaped: (name, shape in the file, shape in the network).
    label_embedding: rows of the label embedding of denoising; 0 without one. others: what else the file holds.
    """

    source: str
    layout: Layout
    model_type: str = ""
    converted: int = 0
    dropped: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    misshaped: list[tuple[str, list[int], list[int]]] = field(default_factory=list)
    label_embedding: int = 0
    others: list[str] = field(default_factory=list)

    def to_json(self) -> str:
        """All of it."""
        return json.dumps(asdict(self), indent=2) + "\n"

    def summary(self) -> str:
        """A few lines for people."""
        lines = [f"{self.source}: {self.model_type}, names of {self.layout}, {self.converted} tensors converted"]
        if self.label_embedding:
            lines.append(f"  kept: the label embedding of denoising, {self.label_embedding} rows")
        misshaped = [f"{name} {there} instead of {here}" for name, there, here in self.misshaped]
        parts = {
            "dropped as usual": self.dropped,
            "also in the file, not read": self.others,
            "UNEXPECTED, left out": self.unexpected,
            "MISSING": self.missing,
            "OF ANOTHER SHAPE": misshaped,
        }
        lines += [f"  {name}: {len(found)} ({_shortened(found)})" for name, found in parts.items() if found]
        return "\n".join(lines)


class ConversionError(ValueError):
    """Why nothing was converted, in one line; `report` has the details where there was something to compare."""

    def __init__(self, message: str, report: ConversionReport | None = None) -> None:
        """Keep the report beside the message."""
        super().__init__(" ".join(message.split()))
        self.report = report


def convert_to_hf(
    checkpoint: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    tokenizer: PreTrainedTokenizerBase | str | None = DEFAULT_TOKENIZER,
    config: AnyGroundingDinoConfig | None = None,
    dtype: torch.dtype | None = None,
    max_shard_size: str = "5GB",
) -> ConversionReport:
    """Make a folder that `from_pretrained` loads, here and in transformers, from another package's checkpoint.

    The weights are mapped from the file and written a shard at a time. The folder appears when it is complete.

    Args:
        checkpoint: `.pth` of the original repository, of Open-GroundingDino or of mmdetection (LLMDet too).
        output: a folder that is new or empty.
        tokenizer: of the text encoder, or its folder or repo; None writes all but that.
        config: instead of the one that the weights tell, where the number of attention heads is not 8; it counts in
            all, so set its `logit_epsilon` and `logit_epsilon_heads`, too.
        dtype: of the written weights; as in the file by default.
        max_shard_size: a larger model is written in several files.

    Raises:
        ConversionError: the checkpoint cannot be read or is of another family, tensors are missing or do not fit the
            configuration, the tokenizer cannot be had, or the folder cannot be written.
    """
    target = _free(Path(output))
    words = load_tokenizer(tokenizer) if isinstance(tokenizer, str) else tokenizer
    state, table, read, report = _read(Path(checkpoint))
    with _told(checkpoint, report):
        chosen = own_config(config or _stored(read.config) or _inferred(state, report.layout))
    report.model_type = chosen.model_type
    rows = chosen.get_text_config().vocab_size
    if words is not None and len(words) > rows:
        raise ConversionError(f"The tokenizer has {len(words)} words, the text encoder of {checkpoint} has {rows}.")
    _compare(state, chosen, report)
    with _told(checkpoint, report):
        model = _load(state, chosen, dtype)
    if table is not None:
        model.enable_denoising(num_labels=len(table))
        _put_table(model, table)
    with _told_unwritten(target), atomic_folder(target) as unfinished:
        model.save_pretrained(unfinished, max_shard_size=max_shard_size)
        _save_processor(unfinished, words, read.images or {})
    return report


def convert_from_hf(
    folder: str | os.PathLike[str],
    output: str | os.PathLike[str],
    layout: Layout,
    *,
    dtype: torch.dtype | None = None,
) -> ConversionReport:
    """Make a checkpoint that another package loads from a folder of transformers.

    The configuration and the image processor's options are stored beside the weights, for the way back.

    Args:
        folder: what `save_pretrained` wrote, here or in transformers.
        output: the `.pth` to write; it must not exist.
        layout: "original", for the original repository and Open-GroundingDino, or "mmdet".
        dtype: of the written weights; as in the folder by default.

    Raises:
        ConversionError: the folder holds no such model, the other package has no place for it, or the file cannot be
            written.
    """
    source, target = Path(folder), Path(output)
    if target.exists():
        raise ConversionError(f"{target}: exists already; name a new file.")
    if not (source / "config.json").is_file():
        raise ConversionError(f"{source}: not a folder with a model of transformers: there is no config.json.")
    try:
        config = GroundingDinoConfig.from_pretrained(source)
        state = dict(_tensors(source))
    except (ValueError, *_WRITE_ERRORS) as error:
        raise ConversionError(f"{source}: {error}") from error
    if layout == "original" and config.biased_class_heads:
        kind = f"a {config.model_type} model has biases"
        raise ConversionError(f"{source}: {kind} that the original repository has no place for; use mmdet.")
    report = ConversionReport(str(source), layout, config.model_type)
    table = state.pop(LABEL_EMBEDDING_KEY, None)
    rules = RULES[layout](len(config.backbone_config.out_indices), config.decoder_layers)
    theirs, unknown = translate_to_theirs(_with_every_head(state, config.decoder_layers), rules)
    report.dropped = [name for name in unknown if _COPIES.fullmatch(name)]
    report.unexpected = [name for name in unknown if not _COPIES.fullmatch(name)]
    report.converted = len(state) - len(set(unknown) & set(state))
    if table is not None and layout == "mmdet":
        theirs[LABEL_EMBEDDING_IN_MMDET], report.label_embedding = table, len(table)
    elif table is not None:
        report.dropped.append(LABEL_EMBEDDING_FILE)
    if dtype is not None:
        theirs = {name: tensor.to(dtype) for name, tensor in theirs.items()}
    entries: dict[str, Any] = {"model": theirs} if layout == "original" else {"state_dict": theirs, "meta": {}}
    entries[CONFIG_KEY] = json.loads(config.to_json_string())
    if any((source / name).is_file() for name in (PROCESSOR_NAME, IMAGE_PROCESSOR_NAME)):
        with _told(source, None):
            entries[IMAGES_KEY] = json.loads(GroundingDinoImageProcessor.from_pretrained(source).to_json_string())
    with _told_unwritten(target), atomic_file(target) as unfinished:
        torch.save(entries, unfinished)
    return report


def load_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """The tokenizer of a folder or a repo.

    Raises:
        ConversionError: it cannot be had.
    """
    try:
        with offline_fallback(name) as cached:
            loaded: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(name, local_files_only=cached)
    except (OSError, ValueError) as error:
        first = str(error).strip().split("\n")[0]
        raise ConversionError(f"The tokenizer {name} cannot be had: {first}") from error
    return loaded


# --- reading -----------------------------------------------------------------------------------------------------


def _read(
    file: Path,
) -> tuple[dict[str, Tensor], Tensor | None, ForeignCheckpoint, ConversionReport]:
    """Tensors under our names, the label embedding, what was read, the report so far."""
    try:
        checkpoint = read_checkpoint(file)
    except ValueError as error:
        raise ConversionError(str(error)) from error
    theirs = dict(checkpoint.state)
    with _told(file, None):
        layout = recognise(theirs)
        if layout == "hf":
            raise ValueError("it has the names of transformers already: nothing is to be converted.")
    report = ConversionReport(str(file), layout, others=list(checkpoint.others))
    table = theirs.pop(LABEL_EMBEDDING_IN_MMDET, None)
    report.label_embedding = 0 if table is None else len(table)
    necks = {name.split(".")[2] for name in theirs if name.startswith("neck.convs.")}
    layers = {name.split(".")[2] for name in theirs if name.startswith("decoder.layers.")}
    with _told(file, report):
        state, unknown = translate_to_ours(theirs, RULES[layout](len(necks), len(layers)))
    report.dropped = [name for name in unknown if KNOWN_TO_BE_DROPPED.fullmatch(name)]
    kept = [name for name in unknown if not KNOWN_TO_BE_DROPPED.fullmatch(name)]
    # Of the text encoder, which may hold anything, these have a rule.
    for name in [name for name in state if re.fullmatch(r"model\.text_backbone\.(pooler\..*|.*position_ids)", name)]:
        del state[name]
        report.dropped.append(name)
    report.unexpected = kept
    report.converted = len(theirs) - len(unknown)
    return state, table, checkpoint, report


def _stored(values: Mapping[str, Any] | None) -> AnyGroundingDinoConfig | None:
    row = MODEL_TYPES.get(str((values or {}).get("model_type")))
    stored: AnyGroundingDinoConfig | None = load(row.config).from_dict(dict(values or {})) if row else None
    return stored


def _inferred(state: Mapping[str, Tensor], layout: Layout) -> AnyGroundingDinoConfig:
    config = infer_config(state)
    config.logit_epsilon, config.logit_epsilon_heads = LOGIT_EPSILONS[layout]
    return config


def _tensors(folder: Path) -> Iterator[tuple[str, Tensor]]:
    files = sorted(folder.glob("*.safetensors"))
    if not [file for file in files if file.name != LABEL_EMBEDDING_FILE]:
        raise OSError("there are no weights (*.safetensors).")
    for file in files:
        with safe_open(file, "pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118
                yield name, tensors.get_tensor(name)


def _with_every_head(state: Mapping[str, Tensor], num_layers: int) -> dict[str, Tensor]:
    """Heads that are one tensor stand once on the disk."""
    heads = {name: tensor for name, tensor in state.items() if re.match(r"(bbox|class)_embed\.0\.", name)}
    every = {name.replace(".0.", f".{i}.", 1): tensor for i in range(num_layers) for name, tensor in heads.items()}
    return {**every, **state}


# --- checking ----------------------------------------------------------------------------------------------------


def _compare(state: Mapping[str, Tensor], config: AnyGroundingDinoConfig, report: ConversionReport) -> None:
    """Put into the report what does not fit the network of `config`, which is built without memory for its weights.

    Raises:
        ConversionError: tensors are missing or of another shape, with the likely cause.
    """
    with _told(report.source, report), torch.device("meta"):
        model = GroundingDinoForObjectDetection(config)
        expected = revert_weight_conversion(model, dict(model.state_dict()))
    shapes = {name: list(tensor.shape) for name, tensor in expected.items() if not _COPIES.fullmatch(name)}
    given = _with_every_head(state, config.decoder_layers)
    report.missing = sorted(shapes.keys() - given.keys())
    report.unexpected += sorted(state.keys() - shapes.keys())
    report.misshaped = [
        (name, list(given[name].shape), shape)
        for name, shape in sorted(shapes.items())
        if name in given and list(given[name].shape) != shape
    ]
    if not report.missing and not report.misshaped:
        return
    cause = "; ".join(_causes(state, config)[:_SHOWN]) or "the file is not complete"
    misfits = {"missing": report.missing, "of another shape": [name for name, _, _ in report.misshaped]}
    told = "; ".join(f"{kind}: {len(names)} ({_shortened(names)})" for kind, names in misfits.items() if names)
    raise ConversionError(f"{report.source}: {cause}. Tensors {told}.", report)


def _causes(state: Mapping[str, Tensor], config: AnyGroundingDinoConfig) -> list[str]:
    try:
        return contradictions(config, infer_config(state))
    except ValueError:  # what would tell it is missing too
        return []


def _load(
    state: dict[str, Tensor], config: AnyGroundingDinoConfig, dtype: torch.dtype | None
) -> GroundingDinoForObjectDetection:
    stored = Counter(tensor.dtype for tensor in state.values() if tensor.is_floating_point())
    return GroundingDinoForObjectDetection.from_pretrained(
        None, config=config, state_dict=state, dtype=dtype or stored.most_common(1)[0][0]
    )


@contextmanager
def _told(source: object, report: ConversionReport | None) -> Iterator[None]:
    """Say of which file an error speaks."""
    try:
        yield
    except ConversionError:
        raise
    except (ValueError, RuntimeError, KeyError) as error:
        raise ConversionError(f"{source}: {error}", report) from error


def _shortened(names: list[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")


# --- writing -----------------------------------------------------------------------------------------------------


def _free(output: Path) -> Path:
    if output.is_file() or (output.is_dir() and any(output.iterdir())):
        raise ConversionError(f"{output}: exists already; name a new folder.")
    return output


def _put_table(model: GroundingDinoForObjectDetection, table: Tensor) -> None:
    assert model.denoising is not None
    weight = model.denoising.label_embedding.weight
    if table.shape != weight.shape:
        raise ConversionError(f"The label embedding is {tuple(table.shape)}, the model {model.config.d_model} wide.")
    with torch.no_grad():
        weight.copy_(table)


def _save_processor(folder: Path, tokenizer: PreTrainedTokenizerBase | None, stored: Mapping[str, Any]) -> None:
    """Where none is stored: the sizes and the normalisation are the same in both packages, and the defaults here."""
    image_processor = GroundingDinoImageProcessor.from_dict(dict(stored))
    if tokenizer is None:
        image_processor.save_pretrained(folder)
    else:
        GroundingDinoProcessor(image_processor, tokenizer).save_pretrained(folder)


@contextmanager
def _told_unwritten(target: Path) -> Iterator[None]:
    try:
        yield
    except _WRITE_ERRORS as error:
        raise ConversionError(f"{target}: cannot be written: {error}") from error
