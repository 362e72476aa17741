"""A run made public: one folder with the model, how it was made and a card, on disk or on the Hub."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import yaml
from huggingface_hub import HfApi, get_token
from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

from ..models.grounding_dino.label_embedding import LABEL_EMBEDDING_FILE
from ..utils.atomic import write_atomic
from ..utils.image_files import open_image
from .card import write_card
from .facts import (
    CURVES_FILE,
    DATA_FILE,
    EXAMPLES_FILE,
    EXAMPLES_FOLDER,
    METRICS_FILE,
    RECIPE_FILE,
    STEP_FILE,
    CardFacts,
    Which,
    facts_of_run,
    read_options,
)
from .history import write_curves
from .remote_code import export_remote_code

CARD_FILE = "README.md"

_MODEL_FILES = ("*.safetensors", "*.json", "*.jinja", "vocab.txt")
_PROCESSOR_FILES = ("processor_config.json", "preprocessor_config.json")
_STATUS = {
    401: "the token is not accepted, or there is no such repo",
    403: "the token may not write there",
    404: "there is no such repo or user, or it is not yours to see",
    409: "the Hub says that something else is changing or holding it",
    413: "a file is too large",
    429: "too many requests, try again later",
}


class PublishError(ValueError):
    """Why a run cannot be published, in one line."""


def publish(  # noqa: PLR0913
    run: Path,
    *,
    which: Which = "best",
    repo_id: str | None = None,
    to: Path | None = None,
    private: bool = False,
    token: str | None = None,
    commit_message: str | None = None,
    license: str | None = None,
    tags: Iterable[str] = (),
    with_denoising: bool = False,
    with_remote_code: bool = False,
) -> str:
    """Publish the model of a run to a local folder, to the Hub, or both; return the repo's address, or the folder.

    What is published: weights, configuration and processor as they were saved, loadable by stock transformers;
    `recipe.yaml`, the training arguments without secrets, absolute paths cut to their last part; `metrics.jsonl`;
    `curves.png`; `examples.png`, as the run drew it at its end, or before that the newest of its `examples/*.png`; and
    the model card, `README.md`.

    Args:
        run: the output folder of a training run.
        which: of its models.
        repo_id: on the Hub, "name" or "owner/name"; it is created where it does not exist.
        to: local folder, new or empty or holding an earlier publication, which is overwritten. No network is needed.
        private: of a repo that is created.
        token: of the Hub; left out, the one of this machine.
        license: identifier of the Hub, such as "apache-2.0".
        tags: for the Hub, beside those that every model of the package has.
        with_denoising: add `denoising.safetensors`, which only training needs.
        with_remote_code: add the code of this package, for `trust_remote_code=True`; see `export_remote_code`.

    Raises:
        PublishError: no such run, no model in it, a file that a link brings from outside of it, no label table where it
            was asked for, no place to publish to; no token, no network, or a repo that may not be written to.
    """
    if repo_id is None and to is None:
        raise PublishError("give a folder, a repo or both to publish to")
    folder = _model_folder(run, which)
    _refuse_links_outside(run, folder)
    if with_denoising and not (folder / LABEL_EMBEDDING_FILE).is_file():
        raise PublishError(f"{folder}: there is no {LABEL_EMBEDDING_FILE}, as the run trained without denoising")
    own_token = check_access(repo_id, token) if repo_id else None
    with tempfile.TemporaryDirectory() as temporary:
        assembled = Path(temporary)
        try:
            _copy_model(folder, assembled, with_denoising, with_remote_code)
            _copy_history(run, assembled)
            name = to.resolve().name if to is not None and repo_id is None else None
            facts = facts_of_run(run, which=which, name=name, repo_id=repo_id, license=license, tags=tags)
            _write_card(facts, assembled)
            if to is not None:
                _place(assembled, to)
        except (OSError, ValueError) as error:
            raise PublishError(_one_line(error)) from error
        if repo_id is None:
            return str(to)
        return _push(assembled, repo_id, private, own_token, commit_message or f"Add the {which} model of a run")


def _model_folder(run: Path, which: Which) -> Path:
    if not run.is_dir():
        raise PublishError(f"{run}: there is no such run")
    folder = run / which
    if not (folder / "config.json").is_file() or not any(folder.glob("model*.safetensors")):
        raise PublishError(f"{folder}: there is no model (config.json and model.safetensors)")
    if not any((folder / name).is_file() for name in _PROCESSOR_FILES):
        raise PublishError(f"{folder}: there is no processor beside the model ({_PROCESSOR_FILES[0]})")
    return folder


def _refuse_links_outside(run: Path, folder: Path) -> None:
    """Keep what a link in a run leads to elsewhere, such as a key of this user, from being made public.

    Raises:
        PublishError: a file that would be read is not in the run's own folder.
    """
    root = run.resolve()
    of_run = [run / name for name in (RECIPE_FILE, METRICS_FILE, DATA_FILE, EXAMPLES_FILE)]
    for file in [*folder.iterdir(), *of_run, *(run / EXAMPLES_FOLDER).glob("*.png")]:
        if not file.resolve().is_relative_to(root):
            raise PublishError(f"{file}: is a link to {file.resolve()}, outside of the run: put the file itself there")


def _copy_model(folder: Path, to: Path, with_denoising: bool, with_remote_code: bool) -> None:
    left_out = () if with_denoising else (LABEL_EMBEDDING_FILE,)
    for pattern in _MODEL_FILES:
        for file in folder.glob(pattern):
            if file.name not in (STEP_FILE, *left_out):
                shutil.copyfile(file, to / file.name)
    if with_remote_code:
        export_remote_code(to)


def _copy_history(run: Path, to: Path) -> None:
    """The recipe, the metrics and the images, as far as the run has them."""
    options = read_options(run / RECIPE_FILE)
    if options:
        (to / RECIPE_FILE).write_text(yaml.safe_dump(options, sort_keys=False, allow_unicode=True), encoding="utf-8")
    if (run / METRICS_FILE).is_file():
        shutil.copyfile(run / METRICS_FILE, to / METRICS_FILE)
        write_curves(run / METRICS_FILE, to / CURVES_FILE)
    sheets = [*sorted((run / EXAMPLES_FOLDER).glob("*.png")), *run.glob(EXAMPLES_FILE)]
    if sheets:
        with open_image(sheets[-1]) as sheet:
            sheet.convert("RGB").save(to / EXAMPLES_FILE)


def _write_card(facts: CardFacts, to: Path) -> None:
    facts = replace(facts, curves=(to / CURVES_FILE).exists(), examples=(to / EXAMPLES_FILE).exists())
    (to / CARD_FILE).write_text(write_card(facts), encoding="utf-8")


def _place(assembled: Path, to: Path) -> None:
    new = {file.name for file in assembled.iterdir()}
    if to.exists() and not to.is_dir():
        raise PublishError(f"{to}: is no folder")
    strangers = sorted(file.name for file in to.iterdir() if file.name not in new) if to.is_dir() else []
    if strangers:
        raise PublishError(f"{to}: holds {strangers[0]}, which this publication would not replace; name a new folder")
    to.mkdir(parents=True, exist_ok=True)
    for file in sorted(assembled.iterdir()):
        write_atomic(to / file.name, file.read_bytes())


def check_access(repo_id: str, token: str | None = None) -> str:
    """The token that a repo would be written with, `token` or that of this machine; no network is needed.

    Raises:
        PublishError: the repo's name cannot be one, or there is no token.
    """
    try:
        validate_repo_id(repo_id)
    except ValueError as error:
        raise PublishError(f"{repo_id}: {_one_line(error)}") from error
    own = token or get_token()
    if not own:
        raise PublishError("there is no token for the Hub: log in with `hf auth login`, or set HF_TOKEN")
    return own


def _push(folder: Path, repo_id: str, private: bool, token: str | None, message: str) -> str:
    api = HfApi(token=token)
    with _hub_errors(repo_id, api.endpoint):
        # None leaves the visibility to the owner's default where it was not asked for.
        address = api.create_repo(repo_id, private=private or None, exist_ok=True)
        api.upload_folder(repo_id=address.repo_id, folder_path=folder, commit_message=message)
    return str(address)


@contextmanager
def _hub_errors(repo_id: str, endpoint: str) -> Iterator[None]:
    """Turn what the client of the Hub raises into one line; the cause stays attached."""
    try:
        yield
    except OfflineModeIsEnabled as error:
        raise PublishError(f"{repo_id}: HF_HUB_OFFLINE is set, so that nothing can be pushed") from error
    except HfHubHTTPError as error:
        status = error.response.status_code
        reason = _STATUS.get(status) or error.server_message or _one_line(error)
        raise PublishError(f"{repo_id}: {endpoint} answered {status}: {reason}") from error
    except Exception as error:  # the client's transport has its own classes, under a name that changes with versions
        cause = error.__cause__ if isinstance(error, RuntimeError) and error.__cause__ else error
        raise PublishError(f"{repo_id}: {endpoint} cannot be reached or used: {_one_line(cause)}") from error


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
