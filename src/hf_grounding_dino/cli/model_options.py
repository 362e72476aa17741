"""What every command that asks a model has in common: which model, which boxes are kept, and how it runs."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import TYPE_CHECKING

from hf_grounding_dino.assets import NANO
from hf_grounding_dino.processing.defaults import DEFAULTS, TUNED, PostProcessing

from . import UserError, complain, whole_number

if TYPE_CHECKING:
    from hf_grounding_dino.inference.predictor import Predictor
    from hf_grounding_dino.processing.prompts import PromptText
    from hf_grounding_dino.processing.thresholds import Thresholds

NANO_NAME = "nano"
DTYPES = ("float32", "bfloat16", "float16")
DEVICES = ("auto", "cpu", "cuda", "hpu", "mps", "npu", "xla", "xpu")
_TOY = "it knows eight drawn shapes in eight colours and nothing of the world"
NANO_ANSWERS = f"no --model: {NANO_NAME} answers, the toy model that ships; {_TOY}"
_SHOWN_LABELS = 5
_MOST_TOKENS = 8192
"""Of a caption: memory grows with the square of its length."""


def add_model_option(parser: argparse.ArgumentParser, otherwise: str = "") -> None:
    """Add `--model`, which `named_model` reads."""
    parser.add_argument("--model", help=f"a repo on the Hub, a folder, or nano, the toy model that ships{otherwise}")


def named_model(model: str | None, *, or_nano: bool = False) -> str:
    """The model that is asked for, "nano" as its folder.

    Args:
        model: as the user wrote it, None where there is nothing.
        or_nano: whether nano answers where no model is named; say `NANO_ANSWERS` then.

    Raises:
        UserError: no model is named, and nano would be none for this.
    """
    if model is None and not or_nano:
        raise UserError(f"no model: give --model with a repo of the Hub or a folder; {NANO_NAME} ships, but {_TOY}")
    return str(NANO) if model in (None, NANO_NAME) else str(model)


def add_kept_options(parser: argparse.ArgumentParser, *, tuned: bool = False, by_protocol: bool = False) -> None:
    """Add the options that say which boxes are kept.

    Args:
        tuned: whether `--threshold` may be "tuned".
        by_protocol: whether what is not given is None, as a protocol says it.
    """
    add_threshold_options(parser, tuned=tuned, by_protocol=by_protocol)
    add_limit_options(parser, by_protocol=by_protocol)


def add_threshold_options(parser: argparse.ArgumentParser, *, tuned: bool, by_protocol: bool) -> None:
    """Add `--threshold`, `--text-threshold` and `--nms`."""
    shown = "with --nms {}, else none" if by_protocol else "{}"
    beside = ', or "tuned" for what `tune-thresholds` put beside the model' if tuned else ""
    parser.add_argument(
        "--threshold",
        type=share_or_tuned if tuned else share,
        default=None if by_protocol else DEFAULTS.threshold,
        help=f"keep boxes that score above it, from 0 to 1 ({shown.format(DEFAULTS.threshold)}){beside}",
    )
    parser.add_argument(
        "--text-threshold",
        type=share,
        default=DEFAULTS.text_threshold,
        help="of a caption: a box is called by the words that score above it (%(default)s)",
    )
    parser.add_argument(
        "--nms",
        type=share,
        default=DEFAULTS.nms,
        metavar="IOU",
        help="of two boxes of one label that overlap by more, keep the better (off)",
    )


def add_limit_options(parser: argparse.ArgumentParser, *, by_protocol: bool) -> None:
    """Add `--top-k` and `--chunk-size`."""
    shown = "as the protocol has it" if by_protocol else str(DEFAULTS.top_k)
    parser.add_argument(
        "--top-k",
        type=whole_number(1),
        default=None if by_protocol else DEFAULTS.top_k,
        metavar="K",
        help=f"the most boxes of an image ({shown})",
    )
    shown = "as the protocol has it" if by_protocol else "as many as 256 tokens hold"
    parser.add_argument("--chunk-size", type=whole_number(1), metavar="N", help=f"labels of a prompt ({shown})")


def add_running_options(parser: argparse.ArgumentParser, batch_size: int = 1) -> None:
    """Add `--batch-size`, `--device` and `--dtype`."""
    parser.add_argument(
        "--batch-size",
        type=whole_number(1),
        default=batch_size,
        metavar="N",
        help="images that run together; it changes no answer (%(default)s)",
    )
    add_device_option(parser)
    parser.add_argument("--dtype", choices=DTYPES, default=DTYPES[0], help="what to compute in (%(default)s)")


def add_device_option(parser: argparse.ArgumentParser) -> None:
    """Add `--device`, which `usable_device` reads."""
    parser.add_argument("--device", type=_device, default="auto", help="auto, cpu, cuda, cuda:1, ... (%(default)s)")


def _device(text: str) -> str:
    """The name of a device; whether it is there, only torch can tell."""
    kind, _, index = text.partition(":")
    if kind not in DEVICES or (":" in text and not index.isdecimal()):
        raise argparse.ArgumentTypeError(f"invalid choice: '{kind}' (choose from {', '.join(DEVICES)})")
    return text


def share(text: str) -> float:
    """A number from 0 to 1 on the command line."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not a number from 0 to 1")
    return value


def share_or_tuned(text: str) -> float | str:
    """A threshold on the command line: a number from 0 to 1, or "tuned"."""
    return text if text in TUNED else share(text)


def post_processing_of(
    arguments: argparse.Namespace, model: str | None = None, labels: Sequence[str] | None = None
) -> PostProcessing:
    """What the options say.

    Args:
        arguments: of the command.
        model: whose tuned thresholds are taken where the options say so.
        labels: what is looked for; None where that is no labels.

    Raises:
        UserError: tuned thresholds are asked for, and there are none, or no labels.
    """
    tuned = arguments.threshold in TUNED
    post = PostProcessing(
        threshold=DEFAULTS.threshold if tuned or arguments.threshold is None else arguments.threshold,
        text_threshold=arguments.text_threshold,
        nms=arguments.nms,
        top_k=arguments.top_k or DEFAULTS.top_k,
        chunk_size=arguments.chunk_size,
    )
    if not tuned or model is None:
        return post
    if labels is None:
        raise UserError("tuned thresholds are for --labels, not for a --caption")
    return with_thresholds(post, tuned_thresholds(model, labels), labels)


def with_thresholds(post: PostProcessing, thresholds: Thresholds, labels: Sequence[str]) -> PostProcessing:
    """The same with a tuned threshold of each label, and the scores that these are for."""
    own = dict(zip(labels, thresholds.for_labels(labels), strict=True))
    return replace(post, threshold=thresholds.default, thresholds=own, scoring="mean")


def tuned_thresholds(model: str, labels: Sequence[str]) -> Thresholds:
    """What `tune-thresholds` put beside a model; says which labels have no threshold of their own.

    Raises:
        UserError: there is nothing, or it cannot be read.
    """
    from hf_grounding_dino.processing.thresholds import Thresholds
    from hf_grounding_dino.utils.hub import offline_fallback

    try:
        with offline_fallback(model) as cached:
            thresholds = Thresholds.from_pretrained(model, local_files_only=cached)
    except (FileNotFoundError, ValueError) as error:
        raise UserError(error) from error
    if missing := thresholds.missing(labels):
        some = ", ".join(map(repr, missing[:_SHOWN_LABELS])) + (", ..." if len(missing) > _SHOWN_LABELS else "")
        complain(f"no tuned threshold for {some}: that of all labels is taken, {thresholds.default:g}")
    return thresholds


def check_prompt(prompt: PromptText, detector: Predictor) -> None:
    """Refuse what model and tokenizer do not know or cannot hold, before any image is read; name what is half known.

    Raises:
        UserError: naming it.
    """
    from hf_grounding_dino.inference.large_vocabulary import chunk_labels
    from hf_grounding_dino.processing.closed_vocabulary import doubts
    from hf_grounding_dino.processing.prompts import encode_prompt, special_token_ids

    tokenizer = detector.processor.tokenizer
    try:
        ids = encode_prompt(prompt, tokenizer).input_ids
        for doubt in doubts(detector.model, [prompt] if isinstance(prompt, str) else prompt):
            complain(doubt)
        if not isinstance(prompt, str):
            chunk_labels(prompt, tokenizer)
    except ValueError as error:
        raise UserError(error) from error
    if isinstance(prompt, str) and len(ids) > _MOST_TOKENS:
        raise UserError(f"the caption is too long: {len(ids)} tokens, and {_MOST_TOKENS} is the most")
    ends = [place for place, token in enumerate(ids) if token in special_token_ids(tokenizer)]
    longest = max(end - start for start, end in pairwise(ends))
    positions = detector.model.config.get_text_config().max_position_embeddings
    if longest > positions:
        what = "sentence of the caption" if isinstance(prompt, str) else "label"
        raise UserError(f"a {what} is too long: {longest} tokens, and the model reads {positions} at most")
