"""The command `convert`: what it writes and says, and its errors."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import hf_grounding_dino
from hf_grounding_dino.assets import NANO
from hf_grounding_dino.cli import PROGRAM
from hf_grounding_dino.cli.main import main
from hf_grounding_dino.models.grounding_dino import conversion


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Nano under the names of mmdetection."""
    file = tmp_path_factory.mktemp("made") / "nano.pth"
    assert main(["convert", str(NANO), str(file), "--to", "mmdet"]) == 0
    return file


def test_a_checkpoint_becomes_a_folder(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, report = tmp_path / "out", tmp_path / "report.json"
    argv = [str(checkpoint), str(out), "--tokenizer", str(NANO), "--report", str(report), "--dtype", "float16"]
    assert main(["convert", *argv]) == 0
    printed = capsys.readouterr()
    assert printed.err == "" and printed.out.endswith(f"\n{out}\n")
    assert "mm-grounding-dino, names of mmdet" in printed.out
    document = json.loads(report.read_text())
    assert document["missing"] == document["unexpected"] == document["misshaped"] == []
    before, after = load_file(NANO / "model.safetensors"), load_file(out / "model.safetensors")
    assert {tensor.dtype for tensor in after.values()} == {torch.float16}
    name = "model.text_projection.weight"
    assert torch.equal(before[name].half(), after[name])
    hf_grounding_dino.GroundingDinoProcessor.from_pretrained(out)


def test_without_a_tokenizer_all_else_is_written(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As without a network: exit code 1, and one line that says what is to be given."""

    def refuse(name: str) -> None:
        raise conversion.ConversionError(f"The tokenizer {name} cannot be had: no network.")

    monkeypatch.setattr(conversion, "load_tokenizer", refuse)
    assert main(["convert", str(checkpoint), str(tmp_path / "out")]) == 1
    printed = capsys.readouterr()
    assert printed.err.count("\n") == 1
    assert printed.err.startswith(f"{PROGRAM}: The tokenizer bert-base-uncased cannot be had: no network.")
    assert "--tokenizer FOLDER" in printed.err
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"config.json", "model.safetensors", "preprocessor_config.json"}


def test_a_refusal_leaves_its_report(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    loaded = torch.load(checkpoint, weights_only=True)
    del loaded["state_dict"]["text_feat_map.bias"]
    torch.save(loaded, tmp_path / "half.pth")
    argv = [str(tmp_path / "half.pth"), str(tmp_path / "out"), "--tokenizer", str(NANO)]
    assert main(["convert", *argv, "--report", str(tmp_path / "report.json")]) == 2
    printed = capsys.readouterr()
    assert (
        "not complete. Tensors missing: 1 (model.text_projection.bias)." in printed.err and printed.err.count("\n") == 1
    )
    assert json.loads((tmp_path / "report.json").read_text())["missing"] == ["model.text_projection.bias"]
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["{new}", "{out}"], "{new}: there is no such file or folder"),
        (["{text}", "{out}", "--tokenizer", "{nano}"], "{text}: not a checkpoint that can be read"),
        (["{sam}", "{out}", "--tokenizer", "{nano}"], "{sam}: this is not a Grounding DINO: it looks like SAM."),
        (["{sam}", "{out}", "--to", "mmdet"], "{sam}: is a file: convert it to a folder first"),
        (["{sam}", "{out}", "--tokenizer", "{new}"], "The tokenizer {new} cannot be had"),
        (["{sam}", "{out}", "--tokenizer", "{nano}", "--config", "{new}"], "{new}"),
        (["{sam}", "{there}", "--tokenizer", "{nano}"], "{there}: exists already"),
        (["{nano}", "{out}"], "{nano}: is a model folder: say with --to original or --to mmdet"),
        (["{nano}", "{out}", "--to", "original"], "no place for; use mmdet"),
        (["{nano}", "{out}", "--to", "mmdet", "--tokenizer", "{nano}"], "--tokenizer and --config are for checkpoints"),
        (["{there}", "{out}", "--to", "mmdet"], "{there}: not a folder with a model of transformers"),
        (["{nano}", "{text}", "--to", "mmdet"], "{text}: exists already"),
        (["{nano}", "{out}", "--to", "glip"], "argument --to: invalid choice: 'glip'"),
    ],
)
def test_mistakes_are_one_line_and_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], argv: list[str], message: str
) -> None:
    places = {name: tmp_path / name for name in ("new", "out", "there")}
    places |= {"text": tmp_path / "text.pth", "sam": tmp_path / "sam.pth", "nano": NANO}
    places["there"].mkdir()
    (places["there"] / "file").touch()
    places["text"].write_text("not a checkpoint")
    torch.save({"mask_decoder.weight": torch.ones(1)}, places["sam"])
    assert main(["convert", *(part.format(**places) for part in argv)]) == 2
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.count("\n") == 1
    assert message.format(**places) in printed.err
    assert not places["out"].exists()
