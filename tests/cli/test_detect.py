"""The command `detect` as people call it, on a tiny model with random weights."""

from __future__ import annotations

import io
import json
import shutil
import socket
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image

import hf_grounding_dino
from hf_grounding_dino import GroundingDinoPipeline
from hf_grounding_dino.assets import DEMO_IMAGE, DEMO_LABELS
from hf_grounding_dino.cli import PROGRAM, model_options
from hf_grounding_dino.cli import detect as command
from hf_grounding_dino.cli.detect import load_detector
from hf_grounding_dino.cli.files import (
    encode_image_file,
    find_images,
    image_stem,
    name_results,
)
from hf_grounding_dino.cli.main import main
from hf_grounding_dino.cli.model_options import NANO_ANSWERS
from hf_grounding_dino.data.images import load_image
from hf_grounding_dino.data.shapes import VOCABULARY
from hf_grounding_dino.data.tokenizer import build_tokenizer
from hf_grounding_dino.inference.drawing import draw_detections
from hf_grounding_dino.inference.prompting import prompt_of
from hf_grounding_dino.processing.defaults import PostProcessing
from hf_grounding_dino.processing.image_processing_grounding_dino import GroundingDinoImageProcessor
from hf_grounding_dino.processing.processing_grounding_dino import GroundingDinoProcessor
from hf_grounding_dino.processing.thresholds import Thresholds
from odd_server import odd_server, png_head
from tiny import tiny_model

SOURCE = Path(hf_grounding_dino.__file__).parent


def save_model(folder: Path, family: Any = "grounding-dino") -> Path:
    tiny_model(family).save_pretrained(folder)
    size = {"shortest_edge": 80, "longest_edge": 133}
    tokenizer = build_tokenizer([*VOCABULARY, "cat", "remote", "control"])
    GroundingDinoProcessor(GroundingDinoImageProcessor(size=size), tokenizer).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("model"))


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def image_file(path: Path, size: tuple[int, int] = (60, 40), mode: str = "RGB", **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(len(path.name)).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(noise).convert(mode).save(path, **options)
    return path


def detect(model: Path, *argv: str | Path, labels: str = "cat, remote control", threshold: float = 0.0) -> int:
    prompt = ["--labels", labels] if labels else []
    return main(["detect", *map(str, argv), *prompt, "--model", str(model), "--threshold", str(threshold)])


def found(path: str) -> Any:
    return json.loads(Path("out", path).read_text(encoding="utf-8"))


def written() -> list[str]:
    return sorted(path.name for path in Path("out").iterdir())


def one_line(capsys: pytest.CaptureFixture[str]) -> str:
    """The only line of stderr, without the name of the program."""
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith(f"{PROGRAM}: ")
    return lines[0].removeprefix(f"{PROGRAM}: ")


# --- what comes out ----------------------------------------------------------------------------------------------


def test_a_file_gives_a_drawing_and_detections(model: Path, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert detect(model, image_file(here / "photo.jpg")) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    detections = found("photo.json")
    assert len(detections) == 20  # every query of the tiny model
    for row in detections:
        assert list(row) == ["score", "label", "box"]
        assert list(row["box"]) == ["xmin", "ymin", "xmax", "ymax"]
        assert row["label"] in ("cat", "remote control")
        box = row["box"]
        assert all(isinstance(side, int) for side in box.values())
        assert 0 <= box["xmin"] <= box["xmax"] <= 60
        assert 0 <= box["ymin"] <= box["ymax"] <= 40
    scores = [row["score"] for row in detections]
    assert scores == sorted(scores, reverse=True)
    with Image.open("out/photo.jpg") as drawing:
        assert drawing.format == "JPEG"
        assert drawing.size == (60 * 16, 40 * 16)  # 640 / 40
    assert f"{scores[0]:5.3f}  {detections[0]['label']}" in printed.out
    assert "drawn: out/photo.jpg" in printed.out
    assert written() == ["photo.jpg", "photo.json"]


@pytest.mark.parametrize("threshold", [0.0, Thresholds(0.2, {"cat 7": 0.0})], ids=["one", "tuned"])
def test_any_number_of_labels_as_in_the_pipeline(model: Path, here: Path, threshold: Any) -> None:
    """192 labels, which no prompt of 256 tokens holds: the same detections, to the digit."""
    labels = [f"cat {i}" for i in range(192)]
    detector = load_detector(model, device="cpu")
    path = image_file(here / "a.png")
    pipe = GroundingDinoPipeline(detector.model, detector.processor)
    expected = pipe(str(path), candidate_labels=labels, threshold=threshold)
    assert len(expected) > 15
    post = PostProcessing(threshold=0.0, top_k=None)
    if isinstance(threshold, Thresholds):
        post = model_options.with_thresholds(post, threshold, labels)
    assert detector.predict(path, prompt_of(labels, post=post)).detections == expected


def test_folder_glob_and_twice_the_same(model: Path, here: Path) -> None:
    for name in ("a.jpg", "deep/er/b.PNG", "deep/c [1].webp", ".hidden/d.png"):
        image_file(here / "in" / name)
    (here / "in" / "notes.txt").write_text("no image")
    assert detect(model, "in", "in/**/*.jpg", "in/a.jpg", "in/deep/c [1].webp") == 0
    assert written() == ["a.jpg", "a.json", "b.json", "b.png", "c [1].json", "c [1].png"]


def test_results_are_no_images_to_detect_in(model: Path, here: Path) -> None:
    image_file(here / "a.png")
    for _ in range(2):
        assert detect(model, ".") == 0
        assert detect(model, "**/*.png") == 0
    assert written() == ["a.json", "a.png"]
    assert find_images(["out/*.png"], leave_out=Path("out"))[0] == ["out/a.png"]


def test_odd_images_and_urls_cost_a_line_each(
    model: Path, here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that promises 170,000,000 pixels in 58 bytes, an EPS that is called PNG, and four bad URLs, of ten."""
    monkeypatch.setenv("no_proxy", "*")
    good = image_file(here / "in/good.png")
    (here / "in/large.png").write_bytes(png_head(170_000_000, 1))
    Image.new("RGB", (9, 9)).save(here / "in/script.png", "EPS")
    with odd_server(good.read_bytes()) as (address, _):
        urls = [
            f"{address}/{name}.png"
            for name in ("whole", "chunked", "cut", "huge_length", "no_http", "no_such", "moved")
        ]
        assert detect(model, "in", *urls) == 1
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith(PROGRAM)]
    assert len(lines) == 6
    names = ("large.png", "script.png", "cut.png", "huge_length.png", "no_http.png", "no_such.png")
    for line, name in zip(lines, names, strict=True):
        assert f"/{name}: " in line
    assert "404" in lines[-1]
    assert written() == sorted(
        f"{name}.{kind}" for name in ("good", "whole", "chunked", "moved") for kind in ("json", "png")
    )


def test_no_network(
    model: Path, here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """All that is needed is in the folder of the model; what is not there is asked for, and missed, on one line."""

    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise OSError("the network is down")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # the client of the Hub tries again and again
    file = image_file(here / "a.png")
    assert detect(model, file) == 0
    assert capsys.readouterr().err == ""
    assert detect(model, "http://example.invalid/a.png") == 2
    assert "network is down" in one_line(capsys)
    assert detect(Path("nobody/no-such-model"), file) == 2
    assert "nobody/no-such-model cannot be loaded: " in one_line(capsys)


def test_a_caption_calls_things_by_its_words(model: Path, here: Path) -> None:
    file = image_file(here / "a.png")
    assert detect(model, file, "--caption", "A red star to the left of a blue ring", labels="") == 0
    labels = {row["label"] for row in found("a.json")}
    assert labels
    words = {"A", "red", "star", "to", "the", "left", "of", "a", "blue", "ring"}
    assert all(set(label.split()) <= words for label in labels)


def test_the_text_threshold_chooses_the_words_of_a_caption(model: Path, here: Path) -> None:
    """Over 0 every word of the phrase that a box is found for, over the median score fewer; the boxes are the same."""
    file, sentence = image_file(here / "a.png"), "A red star to the left of a blue ring"

    def rows(text_threshold: float) -> Any:
        assert detect(model, file, "--caption", sentence, "--text-threshold", str(text_threshold), labels="") == 0
        return found("a.json")

    every = rows(0)
    some = rows(every[len(every) // 2]["score"])
    assert {row["label"] for row in every} == {sentence}
    assert [row["box"] for row in some] == [row["box"] for row in every]
    assert len({row["label"] for row in some}) > 1


def test_nothing_found_is_an_empty_list(model: Path, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert detect(model, image_file(here / "a.png"), threshold=1.0) == 0
    assert found("a.json") == []
    assert Path("out/a.png").is_file()
    assert "nothing found" in capsys.readouterr().out


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_other_dtypes(model: Path, here: Path, dtype: str) -> None:
    assert detect(model, image_file(here / "a.png"), "--dtype", dtype, "--device", "cpu") == 0
    assert len(found("a.json")) == 20


def test_a_rotated_photo_is_upright(model: Path, here: Path) -> None:
    """Stored lying, 40 x 60, with the note to turn it: what is seen is 60 x 40, and the same as if stored so."""
    image = Image.open(image_file(here / "upright.png", (60, 40)))
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees clockwise to see it upright
    image.transpose(Image.Transpose.ROTATE_90).save(here / "turned.png", exif=exif)
    assert detect(model, "upright.png", "turned.png") == 0
    assert found("turned.json") == found("upright.json")
    with Image.open("out/turned.png") as turned, Image.open("out/upright.png") as upright:
        assert turned.getexif().get(0x0112, 1) == 1
        assert turned.tobytes() == upright.tobytes()


def test_images_of_every_kind(model: Path, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for mode in ("1", "L", "LA", "P", "RGBA"):
        image_file(here / f"in/{mode}.png", mode=mode)
    image_file(here / "in/cmyk.jpg", mode="CMYK")
    deep = np.random.default_rng(0).integers(0, 65536, (40, 60), dtype=np.uint16)
    Image.fromarray(deep).save(here / "in/deep.png")
    for size in ((1, 1), (1, 5000), (5000, 1)):
        image_file(here / f"in/{size[0]}x{size[1]}.png", size)
    assert detect(model, "in") == 0
    assert capsys.readouterr().err == ""
    assert len(written()) == 2 * 10


def test_equal_names_do_not_overwrite(model: Path, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("a/photo.png", "b/photo.jpg", "c/photo.png"):
        image_file(here / name)
    assert detect(model, "a", "b", "c") == 0
    assert [name for name in written() if name.endswith("json")] == ["photo-2.json", "photo-3.json", "photo.json"]
    printed = capsys.readouterr().out
    assert "drawn: out/photo-2.jpg (the name photo is another image's)" in printed
    assert "drawn: out/photo.png\n" in printed


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_no_image_is_overwritten(model: Path, here: Path, suffix: str) -> None:
    before = image_file(here / f"photo{suffix}").read_bytes()
    assert detect(model, f"photo{suffix}", "--output", ".") == 0
    assert (here / f"photo{suffix}").read_bytes() == before
    assert (here / f"photo-2{suffix}").is_file()


@pytest.mark.parametrize(
    ("name", "drawn", "kind"),
    [("a.jpg", "a.jpg", "JPEG"), ("a.JPEG", "a.jpg", "JPEG"), ("a.png", "a.png", "PNG"), ("a.webp", "a.png", "PNG")],
)
def test_a_drawing_keeps_the_format_of_its_image(model: Path, here: Path, name: str, drawn: str, kind: str) -> None:
    """JPEG for JPEG: a photo of 12 megapixels as PNG has 10 MB. In good quality: as the PNG, but for a few levels."""
    file = image_file(here / name, (700, 650), quality=95)
    assert detect(model, file, threshold=0.5) == 0
    with Image.open(Path("out", drawn)) as drawing:
        assert drawing.format == kind
        shown = np.asarray(drawing.convert("RGB"), dtype=int)
    expected = np.asarray(draw_detections(load_image(file), found("a.json"), ["cat", "remote control"]), dtype=int)
    assert np.abs(shown - expected).mean() < (8 if kind == "JPEG" else 1e-9)


def test_a_drawing_that_no_jpeg_can_hold_is_shrunk() -> None:
    """A side has 65,500 pixels at most, and a PNG that is called .jpg may have more."""
    with Image.open(io.BytesIO(encode_image_file(Image.new("RGB", (131_000, 4)), ".jpg"))) as drawing:
        assert (drawing.format, drawing.size) == ("JPEG", (65_500, 2))


def test_names_of_results(here: Path) -> None:
    assert image_stem("a/b.tar.gz") == "b.tar"
    assert image_stem("https://host/x/y%2Fz.jpg?a=b") == "z"
    assert image_stem("https://host/") == "image"
    assert len(image_stem("é" * 300).encode()) <= 200
    assert name_results(["A.png", "b/a.jpg"], here / "out") == {"A.png": "A.png", "b/a.jpg": "a-2.jpg"}


def test_demo_needs_no_other_argument(
    model: Path, here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(model_options, "NANO", model)
    assert main(["detect", "--demo"]) == 0
    assert written() == ["shapes.json", "shapes.png"]
    printed = capsys.readouterr()
    assert "drawn: out/shapes.png" in printed.out
    assert printed.err == f"{PROGRAM}: {NANO_ANSWERS}\n"
    assert {row["label"] for row in found("shapes.json")} <= set(DEMO_LABELS)


def test_the_demo_image_is_small_and_its_words_are_known() -> None:
    assert DEMO_IMAGE.stat().st_size < 200_000
    assert set(" ".join(DEMO_LABELS).split()) <= set(VOCABULARY)


# --- what can go wrong -------------------------------------------------------------------------------------------


def test_bad_images_among_many(model: Path, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image_file(here / "good.png")
    image_file(here / "better.png")
    (here / "text.jpg").write_text("not an image")
    (here / "empty.png").touch()
    cut = image_file(here / "cut.png", (200, 200)).read_bytes()
    (here / "cut.png").write_bytes(cut[: len(cut) // 2])
    assert detect(model, "text.jpg", "good.png", "cut.png", "empty.png", "missing.png", "better.png") == 1
    assert written() == ["better.json", "better.png", "good.json", "good.png"]
    lines = capsys.readouterr().err.splitlines()
    assert all(line.startswith(f"{PROGRAM}: ") for line in lines)
    assert [line.split(": ")[1] for line in lines] == ["missing.png", "text.jpg", "cut.png", "empty.png"]


def test_one_bad_image_file(model: Path, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "bad.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"\0" * 50)
    assert detect(model, "bad.png") == 2
    assert one_line(capsys).startswith("bad.png: ")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["none.jpg", "--labels", "cat"], "none.jpg: no such file"),
        (["in/*.gif", "--labels", "cat"], "in/*.gif: no file matches"),
        (["empty", "--labels", "cat"], "empty: no image in this folder"),
        (["--labels", "cat"], "no image: give at least one IMAGE, or --demo"),
        (["a.png"], "nothing to look for: give --labels"),
        (["a.png", "--labels", ""], "no labels"),
        (["a.png", "--labels", "cat,,dog"], "an empty label in 'cat,,dog'"),
        (["a.png", "--labels", "cat, \u4e9a\u4eac"], "Label 1 ('\u4e9a\u4eac') has no token that the tokenizer knows."),
        (["a.png", "--caption", ""], "The caption '' has no token"),
        (["a.png", "--labels", "cat", "--caption", "a cat"], "argument --caption: not allowed with argument --labels"),
        (["a.png", "--labels", "cat", "--threshold", "1.5"], "argument --threshold: 1.5 is not a number from 0 to 1"),
        (["a.png", "--labels", "cat", "--threshold", "nan"], "argument --threshold: nan is not a number from 0 to 1"),
        (["a.png", "--labels", "cat", "--threshold", "x"], "argument --threshold: x is not a number from 0 to 1"),
        (["a.png", "--labels", "cat", "--dtype", "int8"], "argument --dtype: invalid choice"),
        (["a.png", "--labels", "cat", "--device", "toaster"], "argument --device: invalid choice"),
        (["a.png", "--labels", "cat", "--output", "a.png"], "the folder a.png cannot be made"),
        (["a.png", "--labels", "cat", "--wrong"], "unrecognized arguments: --wrong"),
    ],
)
def test_user_errors(
    model: Path, here: Path, argv: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    image_file(here / "a.png")
    (here / "empty").mkdir()
    assert main(["detect", *argv, "--model", str(model)]) == 2
    assert one_line(capsys).startswith(message)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_cuda_where_there_is_none(model: Path, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert detect(model, image_file(here / "a.png"), "--device", "cuda") == 2
    assert one_line(capsys).startswith("the device cuda cannot be used: ")


def broken_models(folder: Path, model: Path) -> dict[str, Path]:
    """Folders that hold no usable model, by what is wrong."""
    transformers.OwlViTConfig().save_pretrained(folder / "owlvit")
    transformers.BertConfig().save_pretrained(folder / "bert")
    for name in ("no weights", "no tokenizer", "cut weights", "lost weight", "no config", "a list", "a run/best"):
        shutil.copytree(model, folder / name)
    (folder / "no weights/model.safetensors").unlink()
    for file in ("tokenizer.json", "tokenizer_config.json"):
        (folder / "no tokenizer" / file).unlink(missing_ok=True)
    (folder / "no config/config.json").unlink()
    (folder / "a list/config.json").write_text("[1]")
    weights = folder / "cut weights/model.safetensors"
    weights.write_bytes(weights.read_bytes()[:10_000])
    state = tiny_model().state_dict()
    tiny_model().save_pretrained(
        folder / "lost weight", state_dict={k: v.clone() for k, v in state.items() if k != "model.level_embed"}
    )
    whole = ("owlvit", "bert", "no weights", "no tokenizer", "cut weights", "lost weight")
    return {name: folder / name for name in (*whole, "no config", "a list", "a run", "no folder")}


def test_models_that_are_none(model: Path, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = image_file(here / "a.png")
    messages = {}
    broken = broken_models(here / "models", model)
    capsys.readouterr()
    for name, folder in broken.items():
        assert detect(folder, file) == 2, name
        messages[name] = one_line(capsys)
    assert "'owlvit'" in messages["owlvit"]
    assert "'bert'" in messages["bert"]
    assert "lacks 1 of its weights, such as model.level_embed" in messages["lost weight"]
    assert messages["no folder"].startswith("no such model: ")
    assert messages["a list"].endswith("is no JSON object.")
    assert messages["a run"].endswith(f"its best model is {here / 'models/a run/best'}")
    assert all(str(here / "models") in message for message in messages.values()), messages
    assert not list(Path("out").iterdir())


def test_interrupt(
    model: Path, here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(*args: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "draw_detections", interrupt)
    assert detect(model, image_file(here / "a.png")) == 130
    assert capsys.readouterr().err.strip() == ""


# --- thresholds beside the model ---------------------------------------------------------------------------------


def test_tuned_thresholds(model: Path, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each label is kept above its own: all of one whose threshold is 0, none of one whose threshold is 1."""
    own = here / "model"
    shutil.copytree(model, own)
    image = str(image_file(here / "a.png"))
    tuned = ["--threshold", "tuned", "--model", str(own)]
    assert main(["detect", image, "--labels", "cat, remote control", *tuned]) == 2
    assert "thresholds.json" in one_line(capsys)
    Thresholds(1.0, {"cat": 0.0}).write(own)
    assert main(["detect", image, "--labels", "cat, remote control", *tuned]) == 0
    told = one_line(capsys)
    assert told == "no tuned threshold for 'remote control': that of all labels is taken, 1"
    assert {detection["label"] for detection in found("a.json")} == {"cat"}
    assert main(["detect", image, "--caption", "a cat", *tuned]) == 2
    assert one_line(capsys) == "tuned thresholds are for --labels, not for a --caption"
