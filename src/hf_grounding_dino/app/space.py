"""The app as a Space of the Hub: a folder that is uploaded as it is.

The code of this package lies in it, beside app.py: a Space installs its requirements before it has any other of its
files, so that they can name neither a wheel nor a folder of it, and this package is on no index.
"""

from __future__ import annotations

import re
import shutil
from importlib.metadata import PackageNotFoundError, distribution, version
from pathlib import Path

from huggingface_hub import SpaceCardData

from .. import __version__
from ..assets import NANO
from ..processing.defaults import DEFAULTS, PostProcessing
from ..utils.atomic import atomic_folder
from .web import TITLE

SHORT_DESCRIPTION = "Find objects in an image by text"
_MODEL_FILES = (".json", ".safetensors", ".txt")
_MODEL_FOLDER = "model"
_PACKAGE = Path(__file__).parents[1]
_PROJECT = "hf-grounding-dino"
_REPO = re.compile(r"\w[\w.-]*/\w[\w.-]*", re.ASCII)

_APP = '''"""The web demo of hf-grounding-dino."""
{imports}
from hf_grounding_dino.cli.detect import load_detector
from hf_grounding_dino.processing.defaults import PostProcessing
from hf_grounding_dino.app.web import make_app, start

app = make_app(load_detector({model}, dtype={dtype!r}), {note!r}, {post!r})

if __name__ == "__main__":
    start(app)
    app.block_thread()
'''
_README = """---
{card}
---

# {title}

{description}, with hf-grounding-dino {version}, whose code lies in `{package}`.
Drop an image, write labels or a sentence, move the threshold.

To publish this folder: `hf upload OWNER/NAME . . --repo-type space`
"""


def export_space(
    folder: Path, model: str = str(NANO), dtype: str = "float32", note: str = "", post: PostProcessing = DEFAULTS
) -> None:
    """Write the files of a Space.

    README.md with its settings, app.py, the code of this package, requirements.txt with what that needs, and the
    model's files if it is here. All of them are there in the end, or none.

    Args:
        folder: one that is empty, or that there is not yet.
        model: a folder, which is copied; the name of a repo on the Hub; or the one that ships, which needs no copy.
        dtype: what the Space computes in.
        note: the line about the model in the app.
        post: which boxes it keeps.

    Raises:
        ValueError: the folder holds something, there is no such model, or this package is not installed.
        OSError: it cannot be written.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder} is not an empty folder: a Space is written into a new one")
    source = _model_folder(model)
    needed, license = _requirements()
    with atomic_folder(folder) as unfinished:
        code = shutil.copytree(_PACKAGE, unfinished / _PACKAGE.name, ignore=shutil.ignore_patterns("__pycache__", ".*"))
        (code / "LICENSE").write_text(license, encoding="utf-8")
        if source is not None:
            shutil.copytree(source, unfinished / _MODEL_FOLDER, ignore=_all_but_model_files)
        (unfinished / "requirements.txt").write_text("".join(f"{line}\n" for line in needed), encoding="utf-8")
        for name, text in _files(model, source is not None, dtype, note, post).items():
            (unfinished / name).write_text(text, encoding="utf-8")


def _requirements() -> tuple[list[str], str]:
    """What this package needs for the app, as requirements.txt has it, and its license."""
    try:
        installed = distribution(_PROJECT)
    except PackageNotFoundError as error:
        raise ValueError(f"{_PROJECT} is not installed, so that what it needs is not known: install it") from error
    listed = [line.partition(";") for line in installed.requires or ()]
    needed = [name.strip() for name, _, marker in listed if not marker or re.search(r"extra == .app\W", marker)]
    return needed, installed.read_text("licenses/LICENSE") or installed.read_text("LICENSE") or ""


def _model_folder(model: str) -> Path | None:
    """The folder to copy, None for a model that the Space finds by itself."""
    path = Path(model)
    if path == NANO:
        return None
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise ValueError(f"{model} has no config.json: it is not the folder of a model")
        return path
    if not _REPO.fullmatch(model):
        raise ValueError(f"no such model: {model}")
    return None


def _all_but_model_files(folder: str, names: list[str]) -> set[str]:
    return {name for name in names if name.startswith(".") or not name.endswith(_MODEL_FILES)}


def _files(model: str, copied: bool, dtype: str, note: str, post: PostProcessing) -> dict[str, str]:
    own = Path(model) == NANO
    card = SpaceCardData(
        title=TITLE,
        emoji="\U0001f50e",
        colorFrom="indigo",
        colorTo="green",
        sdk="gradio",
        sdk_version=version("gradio"),
        python_version="3.11",
        app_file="app.py",
        license="apache-2.0",
        short_description=SHORT_DESCRIPTION,
        models=None if own or copied else [model],
        tags=["grounding-dino", "zero-shot-object-detection"],
    )
    imports, place = "", repr(model)
    if own:
        imports, place = "\nfrom hf_grounding_dino.assets import NANO", "NANO"
    elif copied:
        imports, place = "\nfrom pathlib import Path\n", f'Path(__file__).parent / "{_MODEL_FOLDER}"'
    return {
        "README.md": _README.format(
            card=card.to_yaml().strip(),
            title=TITLE,
            description=SHORT_DESCRIPTION,
            version=__version__,
            package=_PACKAGE.name,
        ),
        "app.py": _APP.format(imports=imports, model=place, dtype=dtype, note=note, post=post),
    }
