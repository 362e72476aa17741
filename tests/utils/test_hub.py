"""Without a network a model of the Hub comes from the cache of its client, or is told to be missing, at once."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants

from fake_hub import NOWHERE, hub_at, hub_that_refuses, put_into_cache, refuse_to_wait
from hf_grounding_dino.assets import DEMO_IMAGE, NANO
from hf_grounding_dino.cli.detect import load_detector
from hf_grounding_dino.cli.main import main
from hf_grounding_dino.models.grounding_dino.conversion import load_tokenizer
from hf_grounding_dino.training.train_state import load_model
from hf_grounding_dino.utils.hub import offline_fallback

DOORS: dict[str, Callable[[str], Any]] = {
    "detect": lambda name: load_detector(name, "cpu"),
    "train": load_model,
    "convert": load_tokenizer,
}


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def silent_hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """One that takes every connection and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        hub_at(monkeypatch, f"http://127.0.0.1:{server.getsockname()[1]}")
        monkeypatch.setattr(constants, "HF_HUB_ETAG_TIMEOUT", 0.3)
        yield


@pytest.mark.parametrize("door", DOORS)
def test_what_is_in_the_cache_is_used(
    door: str, cache: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Said once for each model, however often that is loaded; afterwards the Hub is asked again."""
    put_into_cache(cache, f"{door}/nano", NANO)
    hub_at(monkeypatch, NOWHERE)
    refuse_to_wait(monkeypatch)
    for _ in range(2):
        assert DOORS[door](f"{door}/nano")
    (record,) = [record for record in caplog.records if record.name == offline_fallback.__module__]
    assert record.getMessage().startswith(f"{door}/nano: {NOWHERE} cannot be reached (")
    assert record.getMessage().endswith("): what is in the cache is used")
    assert constants.HF_HUB_OFFLINE is False


def test_a_hub_that_does_not_answer(
    silent_hub: None, cache: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    put_into_cache(cache, "silent/nano", NANO)
    refuse_to_wait(monkeypatch)
    assert load_detector("silent/nano", "cpu")
    assert "cannot be reached (" in caplog.text


def test_the_thresholds_beside_a_model(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One file more, which is not there."""
    put_into_cache(cache, "x/nano", NANO)
    hub_at(monkeypatch, NOWHERE)
    refuse_to_wait(monkeypatch)
    image = [str(DEMO_IMAGE), "--labels", "red square", "--output", str(tmp_path / "out")]
    assert main(["detect", *image, "--model", "x/nano", "--threshold", "calibrated", "--device", "cpu"]) == 2
    assert "no thresholds.json of x/nano (`tune-thresholds` makes one)" in capsys.readouterr().err


def test_what_people_see(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One line on stderr, the results on stdout; for a model that is not in the cache, one line and exit code 2."""
    put_into_cache(cache, "x/nano", NANO)
    environment = {**os.environ, "HF_ENDPOINT": NOWHERE, "HF_HUB_CACHE": str(cache), "NO_PROXY": "127.0.0.1"}
    environment |= {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "hf_grounding_dino", "detect", "--demo", "--device", "cpu", "--model", "x/nano"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and "red square" in done.stdout
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"x/nano: {NOWHERE} cannot be reached (")
    hub_at(monkeypatch, NOWHERE)
    refuse_to_wait(monkeypatch)
    assert main(["detect", "--demo", "--device", "cpu", "--model", "x/none"]) == 2
    printed = capsys.readouterr()
    (line,) = printed.err.splitlines()
    assert line.startswith("hf-grounding-dino: the model x/none cannot be loaded: We couldn't connect to")
    assert "HF_HUB_OFFLINE" in line and printed.out == ""


@pytest.mark.parametrize(("status", "code"), [(401, "GatedRepo"), (404, "EntryNotFound"), (503, None)])
def test_a_hub_that_answers_is_left_to_the_loader(
    status: int, code: str | None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with hub_that_refuses(monkeypatch, status, code), offline_fallback("x/y") as cached:
        assert cached is False
    assert not caplog.records


@pytest.mark.parametrize("name", [str(NANO), "not a repo", "/no/such/folder", "", "chosen/offline"])
def test_what_is_not_asked_for(name: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """What is no repo, and all where HF_HUB_OFFLINE is set; nothing is said."""
    hub_at(monkeypatch, NOWHERE)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", name == "chosen/offline")
    with offline_fallback(name) as cached:
        assert cached is False
    assert not caplog.records


def test_other_threads_keep_the_hub(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """Law 27: the process is not taken offline, and what fails is not said to come from the cache."""
    hub_at(monkeypatch, NOWHERE)
    with pytest.raises(KeyError), offline_fallback("failing/model") as cached:
        assert cached is True and constants.HF_HUB_OFFLINE is False
        raise KeyError
    assert not caplog.records
