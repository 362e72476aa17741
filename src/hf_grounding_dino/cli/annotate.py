"""Label images in bulk: `hf-grounding-dino annotate --images photos --labels "cat" --model DIR --output labels`."""

from __future__ import annotations

import argparse
import glob
import itertools
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from hf_grounding_dino.processing.defaults import TUNED

from . import UserError, complain, quiet_libraries, say, whole_number
from .detect import load_detector, requested_labels
from .files import find_images, make_folder
from .model_options import (
    add_kept_options,
    add_model_option,
    add_running_options,
    named_model,
    post_processing_of,
    with_thresholds,
)
from .problems import user_errors

if TYPE_CHECKING:
    from hf_grounding_dino.annotation.annotator import Summary
    from hf_grounding_dino.annotation.sources import Source
    from hf_grounding_dino.inference.predictor import Shard
    from hf_grounding_dino.processing.defaults import PostProcessing

FORMATS = ("coco", "odvg", "yolo", "voc", "labelme", "label-studio")
_SHOWN_PROBLEMS = 10
_ALLOW_LOCAL = "rows of --dataset may name files outside its folder, and URLs of this machine and of local networks"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `annotate`."""
    source = parser.add_mutually_exclusive_group()
    source.add_argument(
        "--images",
        nargs="+",
        metavar="IMAGES",
        help="files, folders, patterns such as 'folder/**/*.jpg', or the tar shards of a WebDataset ('train-*.tar')",
    )
    source.add_argument("--dataset", metavar="NAME", help="a repo, folder or file that `datasets` reads")
    parser.add_argument("--split", default="train", help="of --dataset (%(default)s)")
    parser.add_argument("--allow-local", action="store_true", help=_ALLOW_LOCAL)
    parser.add_argument(
        "--column",
        metavar="NAME",
        help="where the image is: a column of --dataset, or, in tar shards, what follows the first dot (img.png)",
    )
    parser.add_argument(
        "--labels",
        action="append",
        metavar="LABELS",
        help='what to look for: "cat, remote control", or @FILE with a label a line; may be repeated',
    )
    parser.add_argument(
        "--output", type=Path, required=True, metavar="FOLDER", help="where the annotations go; a run can be resumed"
    )
    parser.add_argument("--format", default="coco", choices=FORMATS, help="of the annotations (%(default)s)")
    add_model_option(parser)
    add_kept_options(parser, tuned=True)
    parser.add_argument(
        "--thresholds",
        type=Path,
        metavar="FILE",
        help='others, by label: JSON {"cat": 0.4, ...}, or a file that `tune-thresholds` wrote',
    )
    add_running_options(parser, batch_size=4)
    parser.add_argument("--threads", type=whole_number(1, 1024), help="that read images ahead; by default one a core")
    parser.add_argument(
        "--shard", metavar="I/N", help="do part I of N, from 1/N to N/N; under `accelerate launch`, one a process"
    )
    parser.add_argument("--merge", action="store_true", help="only write the files of a run whose shards are all done")


def run(arguments: argparse.Namespace) -> int:
    """Label the images; 0 where all could be, 1 where only some could be, 2 where none.

    Raises:
        UserError: nothing could be done, or results cannot be written.
    """
    with quiet_libraries():
        from hf_grounding_dino.annotation.annotator import merge
        from hf_grounding_dino.annotation.checkpoint import AnnotationError

        with user_errors(AnnotationError, place=arguments.output):
            summary = merge(arguments.output) if arguments.merge else _annotate(arguments)
    _report(summary, arguments)
    if summary.problems:
        return 2 if len(summary.problems) == summary.images else 1
    return 0


def _annotate(arguments: argparse.Namespace) -> Summary:
    from hf_grounding_dino.annotation.annotator import annotate
    from hf_grounding_dino.models.loading import cached_revision
    from hf_grounding_dino.processing.closed_vocabulary import doubts

    if not arguments.labels:
        raise UserError('nothing to look for: give --labels "cat, remote control" or --labels @names.txt')
    model = named_model(arguments.model)
    labels = requested_labels(arguments.labels)
    with user_errors(ValueError):
        post = _post_processing(arguments, model, labels)
    shard = _shard(arguments.shard)
    source = _source(arguments)
    make_folder(arguments.output)
    predictor = load_detector(
        model, _device(arguments.device), arguments.dtype, arguments.batch_size, arguments.threads
    )
    with user_errors(ValueError):
        for doubt in doubts(predictor.model, labels):
            complain(doubt)
    return annotate(
        predictor,
        source,
        labels,
        arguments.output,
        format=arguments.format,
        post=post,
        shard=shard,
        progress=shard.index == 0 or arguments.shard is not None,
        revision=cached_revision(model),
    )


def _post_processing(arguments: argparse.Namespace, model: str, labels: Sequence[str]) -> PostProcessing:
    from hf_grounding_dino.processing.thresholds import Thresholds
    from hf_grounding_dino.utils.documents import load_json

    path = arguments.thresholds
    if path is not None and arguments.threshold in TUNED:
        raise UserError("give either --threshold tuned or --thresholds FILE")
    post = post_processing_of(arguments, model, labels)
    if path is None:
        return post
    try:
        content = load_json(path.read_bytes())
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from error
    except ValueError as error:
        raise UserError(f"{path}: not JSON ({error})") from error
    if not isinstance(content, dict):
        raise UserError(f'{path}: an object {{"label": threshold, ...}} is needed')
    return (
        with_thresholds(post, Thresholds.read(path), labels)
        if "scoring" in content
        else replace(post, thresholds=content)
    )


def _shard(text: str | None) -> Shard:
    """The shard that is asked for, or that of this process among those of `accelerate launch` or `torchrun`."""
    from hf_grounding_dino.inference.predictor import Shard

    if text is None:
        return Shard.of_process()
    index, _, count = text.partition("/")
    if not (index.isdecimal() and count.isdecimal() and len(text) <= 36 and 1 <= int(index) <= int(count)):
        raise UserError(f"--shard {text:.36}: I/N is needed, from 1/N to N/N")
    return Shard(int(index) - 1, int(count))


def _device(name: str) -> str:
    """For "auto", each process of a launch takes the GPU of its number."""
    import torch

    place = os.environ.get("LOCAL_RANK")
    return f"cuda:{place}" if name == "auto" and place is not None and torch.cuda.is_available() else name


def _source(arguments: argparse.Namespace) -> Source:
    from hf_grounding_dino.annotation.sources import FileSource, TableSource, TarSource, open_table

    if arguments.dataset:
        table = open_table(arguments.dataset, arguments.split)
        return TableSource.from_dataset(
            table, arguments.column, where=arguments.dataset, allow_local=arguments.allow_local
        )
    if not arguments.images:
        raise UserError("no images: give --images or --dataset")
    names = [os.path.abspath(name) for name in arguments.images if "://" not in name]
    if len(names) < len(arguments.images):
        raise UserError("--images are files and folders, not URLs: download them first")
    found, problems = find_images(names, leave_out=arguments.output)
    if problems:
        raise UserError("; ".join(problems))
    archives = [path for path in found if path.lower().endswith((".tar", ".tgz", ".tar.gz"))]
    if not archives:
        return FileSource.from_paths(found, Path(os.path.commonpath([_root(name) for name in names])))
    if len(archives) < len(found):
        raise UserError("--images are either images or tar shards, not both")
    return TarSource.from_archives(archives, arguments.column)


def _root(name: str) -> Path:
    """The folder that a name on the command line starts from: what is before its first pattern."""
    if os.path.isdir(name):
        return Path(name)
    if os.path.exists(name):
        return Path(name).parent
    parts = list(itertools.takewhile(lambda part: not glob.has_magic(part), Path(name).parts))
    return Path(*parts)


def _report(summary: Summary, arguments: argparse.Namespace) -> None:
    """Say what was done, and what could not be."""
    for name, reason in summary.problems[:_SHOWN_PROBLEMS]:
        complain(f"{name}: {reason}")
    if len(summary.problems) > _SHOWN_PROBLEMS:
        complain(f"and {len(summary.problems) - _SHOWN_PROBLEMS} more images with problems")
    text = f"{summary.done - len(summary.problems)} images labelled, {summary.boxes} boxes"
    if not summary.written:
        text = f"{summary.done} of {summary.images} images done; the files come with the last shard"
    say(f"{text}: {arguments.output}")
    if arguments.format == "yolo" and summary.written and not (arguments.output / "images").exists():
        complain(f"the tools of YOLO want the images, or a link to their folder, at {arguments.output / 'images'}")
