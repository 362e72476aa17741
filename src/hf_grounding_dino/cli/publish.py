"""Publish the model of a training run with its card: `hf-grounding-dino publish runs/small --repo-id me/small`."""

from __future__ import annotations

import argparse
from pathlib import Path

from . import UserError, quiet_libraries, say
from .problems import user_errors


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `publish`."""
    parser.add_argument("folder", metavar="RUN", type=Path, help="output folder of a training run")
    place = parser.add_mutually_exclusive_group(required=True)
    place.add_argument("--to", metavar="FOLDER", type=Path, help="local folder, new or of an earlier publication")
    place.add_argument("--repo-id", metavar="OWNER/NAME", help="repo on the Hub, which is created where there is none")
    parser.add_argument("--which", choices=("best", "last"), default="best", help="model of the run (%(default)s)")
    parser.add_argument("--private", action="store_true", help="of a repo that is created: for its owner's eyes only")
    parser.add_argument(
        "--license", "--licence", dest="license", metavar="ID", help="as the Hub calls it, such as apache-2.0"
    )
    parser.add_argument(
        "--tag", action="append", default=[], metavar="TAG", help="for the Hub; may be given repeatedly"
    )
    parser.add_argument(
        "--with-denoising", action="store_true", help="add the label table of denoising, which only training needs"
    )
    parser.add_argument(
        "--with-remote-code",
        action="store_true",
        help="add the code of this package, for those who load with trust_remote_code=True; others notice nothing",
    )
    parser.add_argument("--message", metavar="TEXT", help="of the commit on the Hub")
    parser.epilog = "The Hub's token is that of `hf auth login`, or HF_TOKEN. With --to nothing needs a network."


def run(arguments: argparse.Namespace) -> int:
    """Publish and print where: the folder, or the address of the repo.

    Raises:
        UserError: there is no such run or no model in it, or it cannot be published there.
    """
    if arguments.to is not None and (arguments.private or arguments.message is not None):
        raise UserError("--private and --message are for the Hub: give --repo-id")
    from hf_grounding_dino.publishing.publish import PublishError, publish

    with quiet_libraries(), user_errors(PublishError, place=arguments.to):
        place = publish(
            arguments.folder,
            which=arguments.which,
            repo_id=arguments.repo_id,
            to=arguments.to,
            private=arguments.private,
            commit_message=arguments.message,
            license=arguments.license,
            tags=arguments.tag,
            with_denoising=arguments.with_denoising,
            with_remote_code=arguments.with_remote_code,
        )
    say(place)
    return 0
