"""Laws of publishing: whole, readable by stock transformers, equal on the Hub, and one line when it cannot be."""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import subprocess
import sys
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from huggingface_hub import HfApi
from PIL import Image
from transformers import AutoModelForZeroShotObjectDetection, AutoProcessor, pipeline

from hf_grounding_dino import GroundingDinoForObjectDetection, GroundingDinoPipeline, GroundingDinoProcessor
from hf_grounding_dino.assets import DEMO_IMAGE, DEMO_LABELS
from hf_grounding_dino.publishing import publish as publishing
from hf_grounding_dino.publishing.publish import PublishError, publish
from publishing.hub_on_loopback import OWNER, TOKEN, hub_on_loopback
from publishing.published_run import write_run
from tiny import sound_stock

FILES = {
    "README.md", "config.json", "curves.png", "examples.png", "metrics.jsonl", "model.safetensors",
    "processor_config.json", "recipe.yaml", "tokenizer.json", "tokenizer_config.json",
}  # fmt: skip

PUSH = """
import json, sys
from pathlib import Path
from hf_grounding_dino.publishing.publish import PublishError, publish

for options in json.loads(sys.argv[1]):
    if "to" in options:
        options["to"] = Path(options["to"])
    try:
        print(json.dumps(publish(Path(options.pop("run")), which="last", **options)))
    except PublishError as error:
        print(json.dumps(f"error: {error}"))
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("run") / "first")


@pytest.fixture(scope="module")
def folder(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("published") / "my-model"
    assert publish(run, to=folder, license="apache-2.0") == str(folder)
    return folder


def test_the_folder_holds_all_of_it_and_no_more(run: Path, folder: Path, tmp_path: Path) -> None:
    """The denoising table is left out unless asked for; of two sheets of examples the newer, the blue one, is shown."""
    assert {file.name for file in folder.iterdir()} == FILES
    assert (folder / "model.safetensors").read_bytes() == (run / "best" / "model.safetensors").read_bytes()
    assert Image.open(folder / "examples.png").getpixel((0, 0)) == (0, 0, 255)
    publish(run, which="last", to=tmp_path)
    assert {file.name for file in tmp_path.iterdir()} == FILES
    publish(run, to=tmp_path / "more", with_denoising=True)
    assert {file.name for file in (tmp_path / "more").iterdir()} == FILES | {"denoising.safetensors"}


@pytest.mark.parametrize(
    "name", ["best/notes.json", "best/model.safetensors", "metrics.jsonl", "examples/z.png", "best"]
)
def test_nothing_is_copied_that_a_link_leads_to_outside(name: str, tmp_path: Path) -> None:
    """Such as a key of this user; the line names the link, and nothing is written. Links inside of the run serve."""
    run = write_run(tmp_path / "run")
    place, elsewhere = run / name, tmp_path / "elsewhere"
    if place.exists():
        place.rename(elsewhere)
    else:
        elsewhere.write_text("a secret")
    place.symlink_to(elsewhere)
    with pytest.raises(PublishError, match=re.escape(f"is a link to {elsewhere}")):
        publish(run, to=tmp_path / "published")
    assert not (tmp_path / "published").exists()
    place.unlink()
    elsewhere.rename(run / "kept")
    place.symlink_to(run / "kept")
    if name != "examples/z.png":
        assert publish(run, to=tmp_path / "published")


def test_the_code_of_the_package_comes_along_where_it_is_asked_for(run: Path, folder: Path, tmp_path: Path) -> None:
    """What is published is then loaded from its own copy of the code; the model of the run stays as it was."""
    before = {file.name: file.read_bytes() for file in (run / "best").iterdir()}
    publish(run, to=tmp_path, with_remote_code=True)
    code = {"grounding_dino_code.py", "models_grounding_dino_modeling_grounding_dino.py"}
    assert {file.name for file in tmp_path.iterdir()} >= FILES | code
    entry = json.loads((tmp_path / "config.json").read_text())["auto_map"]["AutoModelForZeroShotObjectDetection"]
    assert entry.startswith("grounding_dino_code.")
    assert "auto_map" not in json.loads((folder / "config.json").read_text())
    assert {file.name: file.read_bytes() for file in (run / "best").iterdir()} == before


@sound_stock
def test_stock_transformers_loads_it_without_a_word_and_finds_the_same(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Model, processor and pipeline of transformers, warnings as errors; detections equal ours within 1e-4."""
    transformers.utils.logging.enable_propagation()
    with caplog.at_level(logging.WARNING), warnings.catch_warnings():
        warnings.simplefilter("error")
        stock, report = AutoModelForZeroShotObjectDetection.from_pretrained(folder, output_loading_info=True)
        stock_processor = AutoProcessor.from_pretrained(folder)
        detector = pipeline("zero-shot-object-detection", model=str(folder))
    assert not caplog.records
    assert not any(report.values()), report
    assert type(stock).__module__.startswith("transformers.")
    image = Image.open(DEMO_IMAGE).convert("RGB")
    model = GroundingDinoForObjectDetection.from_pretrained(folder).eval()
    inputs = GroundingDinoProcessor.from_pretrained(folder)(images=image, text=[list(DEMO_LABELS)])
    stock_inputs = stock_processor(images=image, text=[list(DEMO_LABELS)], return_tensors="pt")
    with torch.inference_mode():
        ours, theirs = model(**inputs), stock.eval()(**stock_inputs)
    keep = theirs.logits[0].sigmoid().amax(-1) > 0.25
    assert keep.sum() >= len(DEMO_LABELS)
    assert torch.allclose(ours.logits.sigmoid(), theirs.logits.sigmoid(), atol=1e-4)
    assert torch.allclose(ours.pred_boxes[0][keep], theirs.pred_boxes[0][keep], atol=1e-4)
    # The pipeline of transformers closes no phrase by itself.
    own = pipeline("zero-shot-object-detection", model=str(folder), pipeline_class=GroundingDinoPipeline)
    found, wanted = (p(image, candidate_labels=["red square."], threshold=0.3) for p in (own, detector))
    assert [one["box"] for one in found] == [one["box"] for one in wanted] != []
    assert [one["score"] for one in found] == pytest.approx([one["score"] for one in wanted], abs=1e-4)


def test_the_code_of_the_card_runs(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    """Both pieces as they stand there, beside the folder and a photo; each prints the label of what it found."""
    monkeypatch.chdir(folder.parent)
    Image.open(DEMO_IMAGE).convert("RGB").save("photo.jpg", quality=95)
    pieces = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
    assert len(pieces) == 2
    for piece in pieces:
        capsys.readouterr()
        exec(compile(piece, "README.md", "exec"), {})
        assert "red square" in capsys.readouterr().out


def test_the_images_in_the_card_are_there(folder: Path) -> None:
    linked = re.findall(r"\]\(([^):]+)\)", (folder / "README.md").read_text())
    assert set(linked) == {"curves.png", "examples.png", "metrics.jsonl", "recipe.yaml"}
    assert all((folder / name).is_file() for name in linked)


def test_an_earlier_publication_is_replaced_and_nothing_else_is(run: Path, folder: Path, tmp_path: Path) -> None:
    """A folder with a stranger's file is refused before anything is written into it."""
    before = (folder / "README.md").read_bytes()
    (folder / "README.md").write_text("old")
    publish(run, to=folder, license="apache-2.0")
    assert (folder / "README.md").read_bytes() == before
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(PublishError, match=r"thesis\.tex"):
        publish(run, to=tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_run_without_recipe_metrics_and_images_is_published_all_the_same(run: Path, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    shutil.copytree(run / "last", bare / "last")
    publish(bare, which="last", to=tmp_path / "out")
    names = {file.name for file in (tmp_path / "out").iterdir()}
    assert names == FILES - {"curves.png", "examples.png", "metrics.jsonl", "recipe.yaml"}
    assert "curves.png" not in (tmp_path / "out" / "README.md").read_text()


def test_what_is_missing_is_named_in_one_line(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(PublishError, match="no such run"):
        publish(tmp_path / "nowhere", to=out)
    with pytest.raises(PublishError, match="no model"):
        publish(tmp_path, to=out)
    half = tmp_path / "half"
    shutil.copytree(run / "best", half / "best")
    (half / "best" / "processor_config.json").unlink()
    with pytest.raises(PublishError, match="no processor"):
        publish(half, to=out)
    (half / "best" / "processor_config.json").write_text("{}")
    (half / "recipe.yaml").write_text("a: [")
    with pytest.raises(PublishError, match=r"recipe\.yaml") as caught:
        publish(half, to=out)
    assert "\n" not in str(caught.value)
    with pytest.raises(PublishError, match="a folder, a repo or both"):
        publish(run)
    assert not out.exists()


def push(endpoint: str, *cases: dict[str, Any]) -> list[str]:
    """What each push gives, in a process of its own, which alone reads HF_ENDPOINT."""
    environment = {
        **os.environ, "HF_ENDPOINT": endpoint, "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1", "NO_PROXY": "127.0.0.1", "PYTHONPATH": os.pathsep.join(sys.path),
    }  # fmt: skip
    command = [sys.executable, "-c", PUSH, json.dumps(cases)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_every_file_arrives_on_the_hub_as_it_is(run: Path, tmp_path: Path) -> None:
    """One push to a new repo and one to the same again; then a foreign token, a repo of someone else, a busy one.

    Large files arrive by LFS and the others in the commit, all equal to the byte to what a local folder gets.
    """
    shutil.copytree(run / "last", tmp_path / "bare" / "last")
    whole, bare = {"run": str(run), "token": TOKEN}, {"run": str(tmp_path / "bare"), "token": TOKEN}
    with hub_on_loopback({'"stranger"': 403, "busy/commit": 409}) as hub:
        results = push(
            hub.endpoint,
            {**whole, "repo_id": "my-model", "private": True, "to": str(tmp_path / "out")},
            {**bare, "repo_id": f"{OWNER}/my-model", "commit_message": "Again"},
            {**bare, "repo_id": f"{OWNER}/other", "token": "hf_of_nobody"},
            {**bare, "repo_id": "stranger/model"},
            {**bare, "repo_id": f"{OWNER}/busy"},
        )
        address = f"{hub.endpoint}/{OWNER}/my-model"
        assert results[:2] == [address, address]
        assert hub.repos[address]["visibility"] == "private"
        assert hub.messages == ["Add the last model of a run", "Again"]
        assert hub.large
        assert hub.commits[0] == {file.name: file.read_bytes() for file in (tmp_path / "out").iterdir()}
        assert set(hub.commits[0]) == FILES
    for line, status, words in zip(results[2:], (401, 403, 409), ("token", "may not write", "changing"), strict=True):
        assert line.startswith("error: ") and "\n" not in line
        assert f"answered {status}" in line and words in line


def test_no_token_and_no_network_are_one_line(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing listens on port 9 of this machine."""
    monkeypatch.setattr(publishing, "get_token", lambda: None)
    with pytest.raises(PublishError, match="hf auth login"):
        publish(run, repo_id="someone/model")
    monkeypatch.setattr(publishing, "HfApi", partial(HfApi, endpoint="http://127.0.0.1:9"))
    with pytest.raises(PublishError, match=r"someone/model: http://127\.0\.0\.1:9 cannot be reached") as caught:
        publish(run, repo_id="someone/model", token=TOKEN)
    assert "\n" not in str(caught.value)
    with pytest.raises(PublishError, match="a/b/c"):
        publish(run, repo_id="a/b/c", token=TOKEN)
