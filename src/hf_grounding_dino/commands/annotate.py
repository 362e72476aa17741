"""Label pictures in bulk: `hf-grounding-dino annotate --images photos --labels "cat, dog" --output labels`."""

from __future__ import annotations

import argparse
import glob
import itertools
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from hf_grounding_dino.assets import NANO

from . import UserError, complain, quiet_libraries, whole_number
from .detect import CALIBRATED, DTYPES, calibrated_thresholds, load_detector, requested_labels, share_or_calibrated
from .pictures import find_pictures, make_folder
from .problems import user_errors

if TYPE_CHECKING:
    from hf_grounding_dino.annotation.finder import Options
    from hf_grounding_dino.annotation.journal import Shard
    from hf_grounding_dino.annotation.merging import Summary
    from hf_grounding_dino.annotation.sources import PictureSource
    from hf_grounding_dino.thresholds import Thresholds
    from hf_grounding_dino.vocabulary import Scoring

FORMATS = ("coco", "odvg", "yolo", "voc", "labelme", "label-studio")
_SHOWN_PROBLEMS = 10


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
    parser.add_argument(
        "--model", default=str(NANO), help="a folder, or the name of a repo on the Hub; by default the one that ships"
    )
    parser.add_argument(
        "--threshold",
        type=share_or_calibrated,
        default=0.3,
        help='the least score, from 0 to 1 (%(default)s), or "calibrated" for what `calibrate` put beside the model',
    )
    parser.add_argument(
        "--thresholds",
        type=Path,
        metavar="FILE",
        help='others, by label: JSON {"cat": 0.4, ...}, or a file that `calibrate` wrote',
    )
    parser.add_argument(
        "--nms",
        type=float,
        default=0.7,
        help="of two boxes of one label that overlap by more (IoU), keep the better; 1 keeps all (%(default)s)",
    )
    parser.add_argument("--top-k", type=whole_number(1), metavar="K", help="the most boxes of a picture")
    parser.add_argument(
        "--batch-size", type=whole_number(1), default=4, help="pictures that run together (%(default)s)"
    )
    parser.add_argument("--threads", type=whole_number(1, 1024), help="that read pictures ahead; by default one a core")
    parser.add_argument(
        "--shard", metavar="I/N", help="do part I of N, from 1/N to N/N; under `accelerate launch`, one a process"
    )
    parser.add_argument("--merge", action="store_true", help="only write the files of a run whose shards are all done")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, ... (%(default)s)")
    parser.add_argument("--dtype", choices=DTYPES, default=DTYPES[0], help="what to compute in (%(default)s)")


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

    if not arguments.labels:
        raise UserError('nothing to look for: give --labels "cat, remote control" or --labels @names.txt')
    labels = requested_labels(arguments.labels)
    options = _options(arguments, labels)
    shard = _shard(arguments.shard)
    source = _source(arguments)
    make_folder(arguments.output)
    detector = load_detector(arguments.model, _device(arguments.device), arguments.dtype)
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
        batch_size=arguments.batch_size,
        threads=arguments.threads,
    )


def _least_scores(arguments: argparse.Namespace, labels: Sequence[str]) -> tuple[float, dict[str, Any], Scoring]:
    """The threshold, those of some labels, and the kind of score they are for."""
    from hf_grounding_dino.thresholds import Thresholds

    given = None if arguments.thresholds is None else _thresholds(arguments.thresholds)
    if arguments.threshold == CALIBRATED:
        if given is not None:
            raise UserError("give either --threshold calibrated or --thresholds FILE")
        given = calibrated_thresholds(arguments.model, labels)
    if isinstance(given, Thresholds):
        return given.default, dict(zip(labels, given.of(labels), strict=True)), "mean"
    return arguments.threshold, given or {}, "max"


def _thresholds(path: Path) -> dict[str, Any] | Thresholds:
    from hf_grounding_dino.documents import load_json
    from hf_grounding_dino.thresholds import Thresholds

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
        return TableSource.of(open_table(arguments.dataset, arguments.split), arguments.column)
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
    tqdm.write(f"{text}: {arguments.output}", file=sys.stdout)
    if arguments.format == "yolo" and summary.written and not (arguments.output / "images").exists():
        complain(f"the tools of YOLO want the pictures, or a link to their folder, at {arguments.output / 'images'}")
