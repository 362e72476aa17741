"""What people, the Hub and the disk do wrong: one line from every command, exit code 2, nothing half written."""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial, reduce
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest
import transformers
from huggingface_hub import constants
from PIL import Image

from evaluation.roots import coco
from fake_hub import GATED, NOWHERE, hub_at, hub_that_refuses, refuse_to_wait
from hf_grounding_dino import GroundingDinoConfig, GroundingDinoForObjectDetection
from hf_grounding_dino.assets import NANO
from hf_grounding_dino.cli import PROGRAM
from hf_grounding_dino.cli.main import COMMANDS, main
from publishing.published_run import write_run
from training.runs import write_model, write_recipe

RECIPE = ["train", "recipe/recipe.yaml", "--set"]
TRAIN = [*RECIPE, "output_dir=out", "--set"]
DATA = ["--annotations", "set/set.json"]
DETECT = ["detect", "a.png", "--output", "out"]
LABELS = ["--labels", "red circle"]
OWN = ["--model", "model"]

# --- where it happens --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An image, a COCO dataset, a model, a recipe, a run and a checkpoint."""
    home = tmp_path_factory.mktemp("made")
    write_model(home / "model")
    write_recipe(home / "recipe")
    write_run(home / "run")
    (home / "set").mkdir()
    (home / "set" / "set.json").write_text(json.dumps(coco(home / "set")))
    noise = np.random.default_rng(0).integers(0, 256, (64, 96, 3), dtype=np.uint8)
    Image.fromarray(noise).save(home / "a.png")
    assert main(["convert", str(NANO), str(home / "nano.pth"), "--to", "mmdet"]) == 0
    return home


@pytest.fixture
def here(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of the test's own that holds all of it."""
    for name in ("a.png", "set", "model", "recipe", "run", "nano.pth"):
        (tmp_path / name).symlink_to(made / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(autouse=True)
def no_app(monkeypatch: pytest.MonkeyPatch) -> None:
    """What comes before the app is tested without Gradio, which takes seconds to import."""
    monkeypatch.setitem(sys.modules, "hf_grounding_dino.app.web", SimpleNamespace(TITLE="", make_app=None, start=None))
    monkeypatch.setitem(sys.modules, "hf_grounding_dino.app.space", None)
    del sys.modules["hf_grounding_dino.app.space"]


def complaint(capsys: pytest.CaptureFixture[str], argv: list[str]) -> str:
    """The line that the command ends with, beside its bars and what it says as it goes; the exit code is 2."""
    capsys.readouterr()
    assert main(argv) == 2
    lines = capsys.readouterr().err.replace("\r", "\n").splitlines()
    (line,) = [line for line in lines if line.strip(" \x1b[A").startswith(f"{PROGRAM}: ")]
    assert not any("Traceback" in line for line in lines)
    return line.strip(" \x1b[A").removeprefix(f"{PROGRAM}: ")


# --- the Hub -----------------------------------------------------------------------------------------------------

ASKING_THE_HUB = {
    "detect": [*DETECT, *LABELS, "--model", "x/y"],
    "annotate": ["annotate", "--images", "a.png", *LABELS, "--output", "out", "--model", "x/y"],
    "evaluate": ["evaluate", *DATA, "--output", "out", "--model", "x/y"],
    "tune-thresholds": ["tune-thresholds", *DATA, "--output", "out", "--to", ".", "--model", "x/y"],
    "export": ["export", "out/m.onnx", "--model", "x/y"],
    "app": ["app", "--model", "x/y"],
    "train": [*RECIPE, "output_dir=out", "--set", "model=x/y"],
    "convert": ["convert", "nano.pth", "out/y", "--tokenizer", "x/y"],
}
NOT_MODELS = {
    "annotate": ["annotate", "--dataset", "x/y", *LABELS, "--output", "out", *OWN],
    "validate": ["validate", "--format", "datasets", "--annotations", "x/y"],
    "train": [*RECIPE, "output_dir=out", "--set", "train=[{format: datasets, annotations: x/y}]"],
}

REFUSALS = [
    (401, "GatedRepo", "x/y is gated: accept its terms at {hub}/x/y, and log in with `hf auth login`"),
    (403, "GatedRepo", "x/y is gated: accept its terms at {hub}/x/y, and log in with `hf auth login`"),
    (404, "RepoNotFound", "x/y: there is no such folder, and no such repo on {hub}; if it is a private one, log in"),
    (401, "RepoNotFound", "x/y: there is no such folder, and no such repo on {hub}; if it is a private one, log in"),
    (401, None, "x/y: {hub} does not let this token read it (" + GATED + "); log in with `hf auth login`"),
]
DOORS = ("detect", "train", "convert")
"""Of the commands that load a model or a tokenizer: the others go by the first."""


@pytest.mark.parametrize(
    ("command", "status", "code", "said"),
    [(command, *refusal) for command in ASKING_THE_HUB for refusal in (REFUSALS if command in DOORS else REFUSALS[:1])],
)
def test_a_model_that_the_hub_does_not_give(
    command: str,
    status: int,
    code: str | None,
    said: str,
    here: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with hub_that_refuses(monkeypatch, status, code) as hub:
        assert complaint(capsys, ASKING_THE_HUB[command]).startswith(said.format(hub=hub))
    assert not [path for path in here.rglob("out/**/*") if path.is_file()]


@pytest.mark.parametrize("command", NOT_MODELS)
def test_a_dataset_that_the_hub_does_not_give(
    command: str, here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = NOT_MODELS[command]
    with hub_that_refuses(monkeypatch, 401, "GatedRepo") as hub:
        assert complaint(capsys, argv).startswith(f"datasets/x/y is gated: accept its terms at {hub}/datasets/x/y, and")
    with hub_that_refuses(monkeypatch, 404, "RepoNotFound"):
        assert complaint(capsys, argv).startswith("x/y: cannot be loaded (Dataset 'x/y' doesn't exist on the Hub")


@pytest.mark.parametrize(("command", "offline"), [*((door, False) for door in DOORS), ("detect", True)])
def test_no_network(
    command: str, offline: bool, here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Told at once: the client of the Hub would try again and again, with pauses."""
    hub_at(monkeypatch, NOWHERE)
    refuse_to_wait(monkeypatch)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)
    said = complaint(capsys, ASKING_THE_HUB[command])
    end = "couldn't find them in the cached files. (HF_HUB_OFFLINE is "
    end += "set)" if offline else "not set: set to 1, it goes without the network)"
    assert "x/y" in said and f"couldn't connect to '{NOWHERE}'" in said and said.endswith(end)
    assert not [path for path in here.rglob("out/**/*") if path.is_file()]


# --- a disk that fills -------------------------------------------------------------------------------------------


class Filling(NamedTuple):
    """A command, the size in bytes at which every file is full, what it says then, and what else may be there then.

    old: files that lie there before, which have to stay as they were.
    """

    argv: list[str]
    size: int
    said: str
    new: tuple[str, ...] = ()
    old: tuple[str, ...] = ()


FULL = "File too large"
TORN = "not all of it could be written, as on a full disk"
ANNOTATE = ["annotate", "--images", "a.png", *LABELS, "--model", "model", "--threshold", "0", "--output", "out"]
EVALUATE = ["evaluate", *DATA, "--model", "model", "--output"]
CHECKPOINT = tuple(
    f"out/.annotate/{name}" for name in ("part-1-of-1-000000.parquet", "protocol.json", "shard-1-of-1.lock")
)
STORE = ("predictions/protocol.json", "predictions/part-0000-000000.parquet")
MMDET = ["convert", "model", "out/m.pth", "--to", "mmdet"]
FILLING = {
    "detect": Filling(
        [*DETECT, *LABELS, *OWN],
        1500,
        f"out/a.png cannot be written: {FULL}",
        old=("out/a.png", "out/a.json"),
    ),
    "annotate, settings": Filling(ANNOTATE, 0, f"out/.annotate/protocol.json cannot be written: {FULL}"),
    "annotate, predictions": Filling(ANNOTATE, 1000, f"{CHECKPOINT[0]} cannot be written: {FULL}", CHECKPOINT[1:]),
    "annotate": Filling(
        [*ANNOTATE, "--format", "label-studio"],
        4000,
        f"out/tasks.json cannot be written: {FULL}",
        (*CHECKPOINT, "out/label_config.xml"),
    ),
    "evaluate, protocol": Filling([*EVALUATE, "out"], 0, f"out/predictions/protocol.json cannot be written: {FULL}"),
    "evaluate, predictions": Filling(
        [*EVALUATE, "out"],
        1500,
        f"out/predictions/part-0000-000000.parquet cannot be written: {FULL}",
        (f"out/{STORE[0]}",),
    ),
    "evaluate": Filling(
        [*EVALUATE, "out"],
        5000,
        f"out/index.html cannot be written: {FULL}",
        ("out/metrics.json", *(f"out/{name}" for name in STORE)),
        ("out/index.html",),
    ),
    "tune-thresholds": Filling(
        ["tune-thresholds", *DATA, "--model", "model", "--to", "out", "--predictions", "done"],
        40,
        f"out/thresholds.json cannot be written: {FULL}",
        old=("out/thresholds.json",),
    ),
    "export": Filling(
        ["export", "out/m.pt2", "--format", "torch", "--model", "model"],
        25_000,
        f"out/m.pt2 cannot be written: {FULL}",
        old=("out/m.pt2",),
    ),
    "convert": Filling(
        ["convert", "nano.pth", "out/m", "--tokenizer", "model"], 1500, f"out/m: cannot be written: [Errno 27] {FULL}"
    ),
    "convert, back": Filling(MMDET, 1500, f"out/m.pth: cannot be written: {TORN}"),
    "publish": Filling(["publish", "run", "--to", "out"], 1500, f"model.safetensors cannot be written: {FULL}"),
    "app": Filling(["app", "--export-space", "out", "--model", "model"], 1500, f"out cannot be written: {FULL}"),
    "train": Filling(
        [*RECIPE, "output_dir=out", "--set", "max_steps=1"],
        2500,
        "The state of step 1 could not be written to out/state",
        ("out/.lock", "out/data.json", "out/metrics.jsonl", "out/recipe.yaml"),
    ),
}  # fmt: skip


@contextmanager
def full_at(size: int) -> Iterator[None]:
    """No file takes more bytes than that; the system then says EFBIG where a full disk gives ENOSPC."""
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("case", FILLING)
def test_a_disk_that_fills(case: str, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv, size, said, new, old = FILLING[case]
    if "done" in argv:
        assert main([*EVALUATE, "done"]) == 0
    for name in old:
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).write_text("old")
    with full_at(size):
        assert said in complaint(capsys, argv)
    files = {path.as_posix(): path.read_bytes() for path in Path("out").rglob("*") if path.is_file()}
    assert sorted(files) == sorted({*new, *old})
    assert all(files[name] == b"old" for name in old)
    assert not [path for path in here.iterdir() if path.name.startswith(".")]


def test_what_no_command_expects_of_the_disk(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: Any) -> None:
        raise OSError(28, "No space left on device", "somewhere")

    for command in COMMANDS:
        monkeypatch.setattr(f"hf_grounding_dino.cli.{command.replace('-', '_')}.run", fail)
        argv = [word for word in FORMS[command] if "{bad}" not in word]
        assert complaint(capsys, argv) == "somewhere cannot be written: No space left on device"


# --- options and places that are none ----------------------------------------------------------------------------

FORMS = {
    "detect": ["detect", "a.png", "--dtype={bad}"],
    "annotate": ["annotate", "--output", "out", "--format={bad}"],
    "validate": ["validate", "--annotations", "x", "--examples={bad}"],
    "train": ["train", "shapes", "--set=batch_size={bad}"],
    "publish": ["publish", "run", "--to", "out", "--which={bad}"],
    "export": ["export", "out/m.onnx", "--format={bad}"],
    "convert": ["convert", "nano.pth", "out", "--dtype={bad}"],
    "evaluate": ["evaluate", "--batch-size={bad}"],
    "tune-thresholds": ["tune-thresholds", "--model", "model", "--dtype={bad}"],
    "app": ["app", "--port={bad}"],
}
IN_THE_WAY = {
    **{
        name: argv
        for name, (argv, *_) in FILLING.items()
        if "," not in name and name not in ("tune-thresholds", "convert")
    },
    "tune-thresholds": ["tune-thresholds", *DATA, "--model", "model", "--to", "model", "--output", "out"],
    "tune-thresholds, to": ["tune-thresholds", *DATA, "--model", "model", "--to", "out"],
    "convert": ["convert", "nano.pth", "out/m", "--tokenizer", "model"],
    "convert, back": MMDET,
    "convert, onto": ["convert", "nano.pth", "out", "--tokenizer", "model"],
    "convert, report": ["convert", "nano.pth", "m", "--tokenizer", "model", "--report", "out/report.json"],
    "evaluate, results": [*EVALUATE, "report", "--save-results", "out/results.json"],
}


@pytest.mark.parametrize("command", COMMANDS)
def test_an_option_that_is_none(command: str, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = FORMS[command]
    assert "'nonesuch'" in (said := complaint(capsys, [word.format(bad="nonesuch") for word in argv])) or (
        "nonesuch is not" in said
    )
    plain = [word for word in argv if "{bad}" not in word]
    assert complaint(capsys, [*plain, "--nonesuch"]) == "unrecognized arguments: --nonesuch"
    assert not Path("out").exists()


@pytest.mark.parametrize("case", IN_THE_WAY)
def test_a_file_in_the_place_of_the_folder(case: str, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It is said before any work is done, and the file stays."""
    Path("out").write_text("old")
    before = sorted(path.name for path in here.iterdir())
    said = complaint(capsys, IN_THE_WAY[case])
    assert said.startswith(("out", "the folder out cannot be made: "))
    assert Path("out").read_text() == "old"
    assert sorted(path.name for path in here.iterdir()) == before


# --- models and prompts --------------------------------------------------------------------------------------------

OTHERS = {"owlv2": transformers.Owlv2Config, "sam": transformers.SamConfig, "detr": transformers.DetrConfig}


def write_other(family: str) -> None:
    OTHERS[family]().save_pretrained("odd")


def write_folder(config: str | None) -> None:
    Path("odd").mkdir()
    if config is not None:
        Path("odd/config.json").write_text(config)


def cut(file: str, share: float) -> None:
    """Copy the model, with only a part of one file."""
    shutil.copytree("model", "odd")
    whole = Path("odd", file).read_bytes()
    Path("odd", file).write_bytes(whole[: int(share * len(whole))])


def configure(changes: dict[str, Any]) -> None:
    """Copy the model, with changes of its configuration by dotted names."""
    shutil.copytree("model", "odd")
    config = json.loads(Path("odd/config.json").read_text())
    for path, value in changes.items():
        *groups, name = path.split(".")
        reduce(lambda part, group: part[group], groups, config)[name] = value
    Path("odd/config.json").write_text(json.dumps(config))


def write_bomb() -> None:
    """400 million pixels in 50 kB."""
    Image.new("1", (20_000, 20_000)).save("bomb.png")


def write(content: str) -> None:
    """Both as odd.json and as odd.yaml, and as the recipe of a run."""
    for name in ("odd.json", "odd.yaml"):
        Path(name).write_text(content)
    shutil.copytree("run", "odd-run")
    Path("odd-run/recipe.yaml").write_text(content)


class Bad(NamedTuple):
    """What is prepared, the command that meets it, and what it says."""

    prepare: Callable[[], object]
    argv: list[str]
    said: str


def nothing() -> None:
    """Prepare nothing."""


ODD = ["--model", "odd"]
OF_NO_MODEL = "There is no config.json, or no `model_type` in it"
NO_KNOWN_TYPE = "This is a model of type '{}', not one of ['grounding-dino', 'mm-grounding-dino']."
MODELS = {
    **{f"a model of {name}": (partial(write_other, name), NO_KNOWN_TYPE.format(name)) for name in OTHERS},
    "an empty folder": (partial(write_folder, None), OF_NO_MODEL),
    "an empty configuration": (partial(write_folder, "{}"), OF_NO_MODEL),
    **{
        f"{share:.1%} of the weights": (
            partial(cut, "model.safetensors", share),
            "the weights of the model odd are not whole",
        )
        for share in (0.001, 0.5, 0.99)
    },
    "half a configuration": (partial(cut, "config.json", 0.1), "config.json"),
}
PROMPTS = {
    "a caption of 25,000 words": (["--caption", "red " * 25_000], "caption is too long: 25003 tokens, and 8192 is the"),
    "a label of 25,000 words": (["--labels", "red " * 25_000], "needs 25003 tokens alone, more than 256."),
    "a label that is longer than the encoder reads": (
        ["--labels", "red circle, " + "red " * 64],
        "a label is too long: 65 tokens, and the model reads 64 at most",
    ),
    "a sentence that is": (["--caption", "a circle. " + "red " * 64], "a sentence of the caption is too long"),
    "a label of 100,000 letters": (["--labels", "a" * 100_000], "'aaaa"),
    "a caption of 100,000 letters": (["--caption", "a" * 100_000], "'aaaa"),
    "half a character": (["--labels", "c\udcfft"], "that are no text"),
    "a caption with half a character": (["--caption", "c\udcfft"], "that are no text"),
}
DEEP, DEEP_YAML, LONG = "[" * 100_000, "a: " + "[" * 20_000, "9" * 400
LAUGHS = "a0: &a0 [x]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 10))
FINE = {"id": 1, "width": 96, "height": 64, "file_name": "a.png", "image_id": 1, "category_id": 1, "bbox": [1, 2, 9, 9]}
ODD_DATA = ["--annotations", "odd.json", "--images", "."]


def coco_with(**changes: Any) -> str:
    """A COCO dataset of one image, one box and one category, whose entries all have these changes."""
    one = {**FINE, "name": "cat", "iscrowd": 0, "area": 81, **changes}
    return json.dumps({"images": [one], "annotations": [one], "categories": [one]})


READERS = {
    "validate": ["validate", *ODD_DATA],
    "evaluate": ["evaluate", *ODD_DATA, "--model", "model", "--output", "out"],
    "tune-thresholds": ["tune-thresholds", *ODD_DATA, "--model", "model", "--output", "out", "--to", "."],
    "train": [*TRAIN, "train=[{format: coco, annotations: odd.json, images: .}]"],
    "thresholds": [*ANNOTATE, "--thresholds", "odd.json"],
}
CONFIGS: dict[str, tuple[dict[str, Any], str]] = {
    "a million layers": ({"encoder_layers": 10**6}, "`encoder_layers` must be at most 1000"),
    "a million layers of text": ({"text_config.num_hidden_layers": 10**6}, "num_hidden_layers` must be at most 1000"),
    "a million blocks": ({"backbone_config.depths": [10**6, 1, 1, 1]}, "depths.0` must be at most 1000"),
    "no heads": ({"text_config.num_attention_heads": 0}, "cannot be built as its config.json says: integer modulo by"),
    "no cells": ({"backbone_config.patch_size": 0}, "cannot be built as its config.json says: integer division"),
    "vocabulary below 0": ({"text_config.vocab_size": -1}, "negative dimension -1"),
    "padding past the vocabulary": ({"text_config.pad_token_id": 10**9}, "Padding_idx must be within"),
    "ids below 0": ({"phrase_boundary_token_ids": [-1, -2]}, "which are no ids of tokens"),
    "ids of text": ({"phrase_boundary_token_ids": ["[CLS]", "[SEP]"]}, "which are no ids of tokens"),
    "queries": ({"num_queries": int(LONG)}, "`num_queries` must be a number of at most 64 bits"),
    "another shape": ({"text_config.max_position_embeddings": 2}, "the weights have other shapes"),
    "no such type": ({"dtype": "float99"}, "float99"),
    "a list": ({"text_config": []}, "text_config"),
}
BAD: dict[str, Bad] = {
    **{name: Bad(prepare, [*DETECT, *LABELS, *ODD], said) for name, (prepare, said) in MODELS.items()},
    **{name: Bad(nothing, [*DETECT, *OWN, *words], said) for name, (words, said) in PROMPTS.items()},
    "a bomb": Bad(
        write_bomb,
        ["detect", "bomb.png", *LABELS, *OWN, "--output", "out"],
        "bomb.png: Image size (400000000 pixels) exceeds limit",
    ),
    "no repo": Bad(nothing, [*DETECT, *LABELS, "--model", "not a repo"], "not a repo"),
    **{
        f"{what}, {name}": Bad(partial(write, content), argv, said)
        for name, argv in READERS.items()
        for what, content, said in (
            ("deep JSON", DEEP, "nested too deeply"),
            ("400 digits", coco_with(area=int(LONG)), "a number of 400 digits"),
            ("half a character", coco_with(name="c\ud800t"), "half a character"),
        )
    },
    "a category of 64 bits": Bad(
        partial(write, coco_with(id=2**63, category_id=2**63)), READERS["evaluate"], "a whole number"
    ),
    **{
        f"{what}, {name}": Bad(partial(write, content), argv, said)
        for what, content, said in (
            ("deep YAML", DEEP_YAML, "nested too deeply"),
            ("aliases", LAUGHS + "names: *a9\n", "its aliases stand for more than 1,000,000 values"),
            ("400 digits in YAML", f"batch_size: {LONG}", "a number of 400 digits"),
            ("half a character in YAML", 'model: "\\ud800"', "half a character"),
        )
        for name, argv in (
            ("recipe", ["train", "odd.yaml"]),
            ("YOLO", ["validate", "--format", "yolo", "--annotations", "odd.yaml", "--images", "."]),
            ("publish", ["publish", "odd-run", "--to", "out"]),
        )
    },
    **{
        f"--set {text[:20]}": Bad(nothing, [*TRAIN, text], said)
        for text, said in (
            (f"train={DEEP}", "nested too deeply"),
            (f"batch_size={LONG}", "a number of 400 digits"),
            (f"learning_rate={LONG}", "a number of 400 digits"),
            (f"max_steps={LONG}", "a number of 400 digits"),
            ("num_workers=100000", "num_workers is 100000: it should be less than or equal to 1024"),
        )
    },
    "threads": Bad(nothing, [*ANNOTATE, "--threads", "100000"], "100000 is not a whole number from 1 to 1024"),
    "batch size": Bad(nothing, [*ANNOTATE, "--batch-size", LONG], "... is not a whole number from 1 up"),
    "5000 digits": Bad(nothing, [*ANNOTATE, "--top-k", "9" * 5000], "... is not a whole number from 1 up"),
    "shard": Bad(nothing, [*ANNOTATE, "--shard", f"1/{'9' * 5000}"], "I/N is needed"),
    **{
        name: Bad(partial(configure, changes), [*DETECT, *LABELS, *ODD], said)
        for name, (changes, said) in CONFIGS.items()
    },
    **{
        f"{name}, train": Bad(partial(configure, CONFIGS[name][0]), [*TRAIN, "model=odd"], CONFIGS[name][1])
        for name in ("a million layers", "no heads", "another shape")
    },
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input(case: str, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Said on one line of bearable length, soon, and nothing is written."""
    prepare, argv, said = BAD[case]
    prepare()
    line = complaint(capsys, argv)
    assert said in line and len(line) < 600
    results = [path for path in Path("out").rglob("*") if path.is_file() and path.suffix in (".png", ".safetensors")]
    assert not results


@pytest.mark.parametrize("family", OTHERS)
def test_a_model_of_another_family_is_named(family: str, here: Path) -> None:
    write_other(family)
    for own in (GroundingDinoForObjectDetection, GroundingDinoConfig):
        with pytest.raises(ValueError, match=f"type '{family}'"):
            own.from_pretrained(here / "odd")


def test_what_just_fits_is_done(here: Path) -> None:
    """63 words and the delimiter fill the 64 positions of the text encoder; beside a bomb, a good image is done."""
    assert main([*DETECT, "--labels", "red " * 63, *OWN]) == 0
    write_bomb()
    assert main(["detect", "bomb.png", "a.png", *LABELS, *OWN]) == 1
    assert isinstance(json.loads(Path("out/a.json").read_text()), list)


STREAMS = {
    "closed": ("{program} train --list >&-", 0, ""),
    "read no further": ("{program} train --list | true", 1, ""),
    "full": ("{program} train --list > /dev/full", 2, "No space left on device"),
    "little memory": ("ulimit -v 2500000; {program} {detect}", 2, "there is not enough memory for this"),
    "labelled with little memory": (
        "ulimit -v 2500000; {program} {annotate}",
        2,
        "there is not enough memory for this",
    ),
}


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="a shell, /dev/full and limits of Linux")
@pytest.mark.parametrize("case", STREAMS)
def test_what_the_shell_takes_away(case: str, here: Path) -> None:
    """A stream that is shut, full or no longer read, and memory: the code says it, never a traceback."""
    line, code, said = STREAMS[case]
    program = f"{shlex.quote(sys.executable)} -m hf_grounding_dino"
    words = {"detect": shlex.join([*DETECT, *LABELS, *OWN]), "annotate": shlex.join(ANNOTATE)}
    command = "set -o pipefail; " + line.format(program=program, **words)
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=300)
    assert done.returncode == code
    assert "Traceback" not in done.stderr and "Exception ignored" not in done.stderr
    assert said in done.stderr


def test_every_command_is_in_a_table() -> None:
    assert set(FORMS) == set(COMMANDS)
    writing = {name.partition(",")[0] for name in FILLING}
    assert writing == {name.partition(",")[0] for name in IN_THE_WAY} == set(COMMANDS) - {"validate"}
    assert {*ASKING_THE_HUB, "publish", "validate"} == set(COMMANDS)
