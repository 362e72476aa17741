"""What people give by mistake ends in one line that says what it is, exit code 2, and nothing half written."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import transformers
from PIL import Image

from hf_grounding_dino import GroundingDinoConfig, GroundingDinoForObjectDetection, GroundingDinoImageProcessor
from hf_grounding_dino.cli import PROGRAM
from hf_grounding_dino.cli.main import main
from hf_grounding_dino.data.tokenizer import build_tokenizer
from hf_grounding_dino.processing.processing_grounding_dino import GroundingDinoProcessor
from tiny import tiny_model

OTHERS = {"owlv2": transformers.Owlv2Config, "sam": transformers.SamConfig, "detr": transformers.DetrConfig}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    tiny_model().save_pretrained(folder)
    images = GroundingDinoImageProcessor(size={"shortest_edge": 80, "longest_edge": 133})
    GroundingDinoProcessor(images, build_tokenizer(["cat", "dog"])).save_pretrained(folder)
    return folder


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (60, 40), (9, 99, 200)).save("a.png")
    return tmp_path


def refusal(capsys: pytest.CaptureFixture[str], model: Path | str, *argv: str) -> str:
    """The one line that `detect` ends with; nothing is written."""
    assert main(["detect", *argv, "--model", str(model)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"{PROGRAM}: ") and len(line) < 400
    assert not list(Path("out").glob("*"))
    return line.removeprefix(f"{PROGRAM}: ")


@pytest.mark.parametrize("family", OTHERS)
def test_a_model_of_another_family_is_named(family: str, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    OTHERS[family]().save_pretrained(here / "other")
    said = f"This is a model of type '{family}', not one of ['grounding-dino', 'mm-grounding-dino']."
    assert refusal(capsys, here / "other", "a.png", "--labels", "cat").endswith(said)
    for own in (GroundingDinoForObjectDetection, GroundingDinoConfig):
        with pytest.raises(ValueError, match=f"type '{family}'"):
            own.from_pretrained(here / "other")


@pytest.mark.parametrize("config", [None, "{}"])
def test_a_folder_that_is_no_model(config: str | None, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "folder").mkdir()
    if config is not None:
        (here / "folder" / "config.json").write_text(config)
    message = refusal(capsys, here / "folder", "a.png", "--labels", "cat")
    assert "There is no config.json, or no `model_type` in it" in message


@pytest.mark.parametrize("share", [0.001, 0.5, 0.99])
def test_half_a_download(share: float, model: Path, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(model, here / "half")
    weights = here / "half" / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: int(share * len(whole))])
    message = refusal(capsys, here / "half", "a.png", "--labels", "cat")
    assert message.startswith(f"the weights of the model {here / 'half'} are not whole")


def test_half_a_configuration(model: Path, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(model, here / "half")
    config = here / "half" / "config.json"
    config.write_text(config.read_text()[:100])
    assert "config.json" in refusal(capsys, here / "half", "a.png", "--labels", "cat")


def test_no_such_repo(here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert "nobody/no-such-model" in refusal(capsys, "nobody/no-such-model", "a.png", "--labels", "cat")
    assert "not a repo" in refusal(capsys, "not a repo", "a.png", "--labels", "cat")


def test_a_prompt_of_100_000_characters(model: Path, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """25,000 words, as one label and as a caption: too long before any picture is read. Labels may be as many."""
    message = refusal(capsys, model, "a.png", "--caption", "cat " * 25_000)
    assert message == "the caption is too long: 25003 tokens, and 8192 is the most"
    message = refusal(capsys, model, "a.png", "--labels", "cat " * 25_000)
    assert message.endswith("needs 25003 tokens alone, more than 256.") and len(message) < 150


def test_a_label_longer_than_the_text_encoder_reads(
    model: Path, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The tiny one has 64 positions: 63 words and the delimiter fit, 64 do not."""
    assert main(["detect", "a.png", "--labels", "cat " * 63, "--model", str(model), "--output", "fits"]) == 0
    capsys.readouterr()
    message = refusal(capsys, model, "a.png", "--labels", "dog, " + "cat " * 64)
    assert message == "a label is too long: 65 tokens, and the model reads 64 at most"
    assert refusal(capsys, model, "a.png", "--caption", "a dog. " + "cat " * 64).startswith("a sentence of the caption")


def test_an_image_bomb(model: Path, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """400 million pixels in 50 kB; beside a good picture it is passed over."""
    Image.new("1", (20_000, 20_000)).save("bomb.png")
    message = refusal(capsys, model, "bomb.png", "--labels", "cat")
    assert message.startswith("bomb.png: cannot be read: Image size (400000000 pixels) exceeds limit")
    assert main(["detect", "bomb.png", "a.png", "--labels", "cat", "--model", str(model)]) == 1
    assert isinstance(json.loads(Path("out/a.json").read_text()), list)


@pytest.mark.parametrize("option", ["--labels", "--caption"])
def test_a_word_of_100_000_letters(option: str, model: Path, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The tokenizer does not know it; the line shows where it begins."""
    assert "'aaaa" in refusal(capsys, model, "a.png", option, "a" * 100_000)
