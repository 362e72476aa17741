"""Label images in bulk: `hf-grounding-dino annotate --images photos --labels "cat" --model DIR --output labels`."""

from __future__ import annotations

import argparse
import glob
import itertools
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import UserError, complain, quiet_libraries, say, whole_number
from .detect import load_detector, requested_labels
from .model_options import (
    CALIBRATED,
    add_kept_options,
    add_model_option,
    add_running_options,
    calibrated_thresholds,
    named_model,
)
from .pictures import find_pictures, make_folder
from .problems import user_errors

if TYPE_CHECKING:
    from hf_grounding_dino.annotation.finder import Options
    from hf_grounding_dino.annotation.journal import Shard
    from hf_grounding_dino.annotation.merging import Summary
    from hf_grounding_dino.annotation.sources import PictureSource
    from hf_grounding_dino.processing.defaults import Scoring
    from hf_grounding_dino.processing.thresholds import Thresholds

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
        help="where the picture is: a column of --dataset, or, in tar shards, what follows the first dot (img.png)",
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
    add_kept_options(parser, calibrated=True)
    parser.add_argument(
        "--thresholds",
        type=Path,
        metavar="FILE",
        help='others, by label: JSON {"cat": 0.4, ...}, or a file that `calibrate` wrote',
    )
    add_running_options(parser, batch_size=4)
    parser.add_argument("--threads", type=whole_number(1, 1024), help="that read pictures ahead; by default one a core")
    parser.add_argument(
        "--shard", metavar="I/N", help="do part I of N, from 1/N to N/N; under `accelerate launch`, one a process"
    )
    parser.add_argument("--merge", action="store_true", help="only write the files of a run whose shards are all done")


def run(arguments: argparse.Namespace) -> int:
    """Label the pictures; 0 where all could be, 1 where only some could be, 2 where none.

    Raises:
        UserError: nothing could be done, or results cannot be written.
    """
    with quiet_libraries():
        from hf_grounding_dino.annotation.answers import AnnotationError
        from hf_grounding_dino.annotation.merging import merge

        with user_errors(AnnotationError, place=arguments.output):
            summary = merge(arguments.output) if arguments.merge else _annotate(arguments)
    _report(summary, arguments)
    if summary.problems:
        return 2 if len(summary.problems) == summary.pictures else 1
    return 0


def _annotate(arguments: argparse.Namespace) -> Summary:
    from hf_grounding_dino.annotation.annotator import annotate
    from hf_grounding_dino.models.loading import cached_revision

    if not arguments.labels:
        raise UserError('nothing to look for: give --labels "cat, remote control" or --labels @names.txt')
    labels = requested_labels(arguments.labels)
    arguments.model = named_model(arguments.model)
    options = _options(arguments, labels)
    shard = _shard(arguments.shard)
    source = _source(arguments)
    make_folder(arguments.output)
    detector = load_detector(arguments.model, _device(arguments.device), arguments.dtype)
    with user_errors(ValueError):
        for doubt in detector.doubts(labels):
            complain(doubt)
    return annotate(
        detector.model,
        detector.processor,
        source,
        labels,
        arguments.output,
        format=arguments.format,
        options=options,
        shard=shard,
        progress=shard.index == 0 or arguments.shard is not None,
        revision=cached_revision(arguments.model),
    )


def _options(arguments: argparse.Namespace, labels: Sequence[str]) -> Options:
    from hf_grounding_dino.annotation.finder import Options

    threshold, thresholds, scoring = _least_scores(arguments, labels)
    return Options(
        threshold=threshold,
        thresholds=thresholds,
        scoring=scoring,
        nms=arguments.nms,
        top_k=arguments.top_k,
        chunk_size=arguments.chunk_size,
        batch_size=arguments.batch_size,
        threads=arguments.threads,
    )


def _least_scores(arguments: argparse.Namespace, labels: Sequence[str]) -> tuple[float, dict[str, Any], Scoring]:
    """The threshold, those of some labels, and the kind of score they are for."""
    from hf_grounding_dino.processing.thresholds import Thresholds

    given = None if arguments.thresholds is None else _thresholds(arguments.thresholds)
    if arguments.threshold == CALIBRATED:
        if given is not None:
            raise UserError("give either --threshold calibrated or --thresholds FILE")
        given = calibrated_thresholds(arguments.model, labels)
    if isinstance(given, Thresholds):
        return given.default, dict(zip(labels, given.of(labels), strict=True)), "mean"
    return arguments.threshold, given or {}, "max"


def _thresholds(path: Path) -> dict[str, Any] | Thresholds:
    from hf_grounding_dino.processing.thresholds import Thresholds
    from hf_grounding_dino.utils.documents import load_json

    try:
        content = load_json(path.read_bytes())
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from error
    except ValueError as error:
        raise UserError(f"{path}: not JSON ({error})") from error
    if not isinstance(content, dict):
        raise UserError(f'{path}: an object {{"label": threshold, ...}} is needed')
    if "scoring" not in content:
        return content
    try:
        return Thresholds.read(path)
    except ValueError as error:
        raise UserError(error) from error


def _shard(text: str | None) -> Shard:
    """The shard that is asked for, or that of this process among those of `accelerate launch` or `torchrun`."""
    from hf_grounding_dino.annotation.journal import Shard

    if text is None:
        return Shard(int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1")))
    index, _, count = text.partition("/")
    if not (index.isdecimal() and count.isdecimal() and len(text) <= 36 and 1 <= int(index) <= int(count)):
        raise UserError(f"--shard {text:.36}: I/N is needed, from 1/N to N/N")
    return Shard(int(index) - 1, int(count))


def _device(name: str) -> str:
    """For "auto", each process of a launch takes the GPU of its number."""
    import torch

    place = os.environ.get("LOCAL_RANK")
    return f"cuda:{place}" if name == "auto" and place is not None and torch.cuda.is_available() else name


def _source(arguments: argparse.Namespace) -> PictureSource:
    from hf_grounding_dino.annotation.sources import FileSource, TableSource, TarSource, open_table

    if arguments.dataset:
        table = open_table(arguments.dataset, arguments.split)
        return TableSource.of(table, arguments.column, where=arguments.dataset, allow_local=arguments.allow_local)
    if not arguments.images:
        raise UserError("no pictures: give --images or --dataset")
    names = [os.path.abspath(name) for name in arguments.images if "://" not in name]
    if len(names) < len(arguments.images):
        raise UserError("--images are files and folders, not URLs: download them first")
    found, problems = find_pictures(names, leave_out=arguments.output)
    if problems:
        raise UserError("; ".join(problems))
    archives = [path for path in found if path.lower().endswith((".tar", ".tgz", ".tar.gz"))]
    if not archives:
        return FileSource.of(found, Path(os.path.commonpath([_root(name) for name in names])))
    if len(archives) < len(found):
        raise UserError("--images are either pictures or tar shards, not both")
    return TarSource.of(archives, arguments.column)


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
        complain(f"and {len(summary.problems) - _SHOWN_PROBLEMS} more pictures with problems")
    text = f"{summary.done - len(summary.problems)} pictures labelled, {summary.boxes} boxes"
    if not summary.written:
        text = f"{summary.done} of {summary.pictures} pictures done; the files come with the last shard"
    say(f"{text}: {arguments.output}")
    if arguments.format == "yolo" and summary.written and not (arguments.output / "images").exists():
        complain(f"the tools of YOLO want the pictures, or a link to their folder, at {arguments.output / 'images'}")
