"""The command `publish`: where it says that things went, what its options do, and its errors."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
from huggingface_hub import HfApi, ModelCard, constants
from PIL import Image

from hf_grounding_dino.cli import PROGRAM
from hf_grounding_dino.cli.main import main
from hf_grounding_dino.publishing import publish as publishing
from publishing.hub_on_loopback import OWNER, TOKEN, hub_on_loopback
from publishing.published_run import write_run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("run") / "first")


def one_line(capsys: pytest.CaptureFixture[str]) -> str:
    """The only line of stderr, without the name of the program; stdout is empty."""
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.count("\n") == 1, printed
    assert printed.err.startswith(f"{PROGRAM}: ")
    return printed.err.removeprefix(f"{PROGRAM}: ").rstrip()


@pytest.mark.parametrize("spelling", ["--license", "--licence"])
def test_a_folder_is_written_and_named(
    run: Path, spelling: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The best model is of step 200; its label table is left out."""
    to = tmp_path / "mine"
    assert main(["publish", str(run), "--to", str(to), spelling, "mit", "--tag", "shapes", "--tag", "toys"]) == 0
    printed = capsys.readouterr()
    assert printed.out == f"{to}\n" and printed.err == ""
    card = ModelCard.load(to / "README.md")
    assert card.data.license == "mit" and {"shapes", "toys"} <= set(card.data.tags or [])
    assert "for 200 steps" in card.text
    assert not (to / "denoising.safetensors").exists()


def test_the_last_model_and_the_label_table_on_request(run: Path, tmp_path: Path) -> None:
    assert main(["publish", str(run), "--to", str(tmp_path / "last"), "--which", "last"]) == 0
    assert "for 400 steps" in (tmp_path / "last" / "README.md").read_text()
    assert main(["publish", str(run), "--to", str(tmp_path / "best"), "--with-denoising"]) == 0
    assert (tmp_path / "best" / "denoising.safetensors").is_file()


def test_the_sheet_of_the_end_is_shown_rather_than_an_earlier_one(tmp_path: Path) -> None:
    """`examples/` holds a blue sheet as its newest, the run ended with a green one."""
    run = write_run(tmp_path / "run")
    Image.new("RGB", (30, 20), (0, 255, 0)).save(run / "examples.png")
    assert main(["publish", str(run), "--to", str(tmp_path / "out")]) == 0
    assert Image.open(tmp_path / "out" / "examples.png").getpixel((0, 0)) == (0, 255, 0)
    assert "](examples.png)" in (tmp_path / "out" / "README.md").read_text()


def test_the_hub_gets_it_and_its_address_is_printed(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(publishing, "get_token", lambda: TOKEN)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with hub_on_loopback() as hub:
        monkeypatch.setattr(publishing, "HfApi", partial(HfApi, endpoint=hub.endpoint))
        address = f"{hub.endpoint}/{OWNER}/mine"
        assert main(["publish", str(run), "--repo-id", f"{OWNER}/mine", "--private", "--message", "First"]) == 0
        assert capsys.readouterr().out == f"{address}\n"
        assert hub.repos[address]["visibility"] == "private" and hub.messages == ["First"]
        assert hub.commits[0]["model.safetensors"] == (run / "best" / "model.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["{run}"], "one of the arguments --to --repo-id is required"),
        (["{run}", "--to", "{new}", "--repo-id", "me/mine"], "not allowed with argument --to"),
        (["{run}", "--to", "{new}", "--private"], "--private and --message are for the Hub: give --repo-id"),
        (["{run}", "--to", "{new}", "--which", "first"], "argument --which: invalid choice: 'first'"),
        (["{run}", "--to", "{new}", "--which", "last", "--with-denoising"], "last: there is no denoising.safetensors"),
        (["{new}", "--to", "{new}"], "{new}: there is no such run"),
        (["{run}/best", "--to", "{new}"], "{run}/best/best: there is no model"),
        (["{run}", "--to", "{run}"], "{run}: holds "),
        (["{run}", "--repo-id", "me/mine"], "hf auth login"),
    ],
)
def test_mistakes_are_one_line_and_2(
    run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    argv: list[str],
    message: str,
) -> None:
    monkeypatch.setattr(publishing, "get_token", lambda: None)
    places = {"run": run, "new": tmp_path / "new"}
    assert main(["publish", *(part.format(**places) for part in argv)]) == 2
    assert message.format(**places) in one_line(capsys)
    assert not (tmp_path / "new").exists()
