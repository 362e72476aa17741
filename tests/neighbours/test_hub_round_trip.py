"""One repo, two engines: what is saved here stock transformers loads, and the reverse, with the same detections."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from torch import Tensor
from transformers import AutoModelForZeroShotObjectDetection, AutoProcessor, pipeline

import hf_grounding_dino as own
from hf_grounding_dino.assets import DEMO_IMAGE, DEMO_LABELS, NANO
from hf_grounding_dino.data.tokenizer import build_tokenizer
from hf_grounding_dino.publishing.remote_code import export_remote_code
from silence import silence
from tiny import FAMILIES, STOCK_CONFIG, STOCK_MODEL, Family, randomize, sound_stock, tiny_model, tiny_options

pytestmark = sound_stock
families = pytest.mark.parametrize("family", FAMILIES)
TASK = "zero-shot-object-detection"
CAPTION = "a cat. a remote control."
SIZE = {"shortest_edge": 80, "longest_edge": 133}


@pytest.fixture(scope="module")
def picture() -> Image.Image:
    noise = np.random.default_rng(0).integers(0, 256, (70, 110, 3), dtype=np.uint8)
    return Image.fromarray(noise)


def save_ours(family: Family, folder: Path) -> Path:
    tiny_model(family).save_pretrained(folder)
    images = own.GroundingDinoImageProcessor(size=SIZE)
    own.GroundingDinoProcessor(images, build_tokenizer(["cat", "remote", "control"])).save_pretrained(folder)
    return folder


def save_stock(family: Family, folder: Path) -> Path:
    model = STOCK_MODEL[family](STOCK_CONFIG[family](**tiny_options()))
    randomize(model)
    model.save_pretrained(folder)
    images = transformers.GroundingDinoImageProcessor(size=SIZE)
    tokenizer = build_tokenizer(["cat", "remote", "control"])
    transformers.GroundingDinoProcessor(images, tokenizer).save_pretrained(folder)
    return folder


def outputs_of(model: Any, processor: Any, picture: Image.Image) -> Any:
    inputs = processor(images=picture, text=CAPTION, return_tensors="pt")
    with torch.no_grad():
        return model.eval()(**inputs)


def detections(processor: Any, outputs: Any, picture: Image.Image, threshold: float) -> dict[str, Any]:
    (found,) = processor.post_process_grounded_object_detection(
        outputs, outputs.input_ids, threshold=threshold, target_sizes=[(picture.height, picture.width)]
    )
    return found


def in_a_gap(scores: Tensor) -> float:
    """A threshold far from every score, so that no last bit decides: the widest gap of the middle half."""
    middle = scores.sort().values[len(scores) // 4 : -len(scores) // 4]
    widest = middle.diff().argmax()
    return float(middle[widest : widest + 2].mean())


def assert_same(ours: dict[str, Any], theirs: dict[str, Any], picture: Image.Image) -> None:
    """Equal scores and boxes, once all are clipped to the picture as ours are."""
    assert len(ours["scores"]) > 3
    torch.testing.assert_close(ours["scores"], theirs["scores"], atol=1e-4, rtol=0)
    limits = torch.tensor([picture.width, picture.height] * 2)
    a, b = (found["boxes"].clamp(min=0).minimum(limits) for found in (ours, theirs))
    torch.testing.assert_close(a, b, atol=2e-2, rtol=0)


@families
@pytest.mark.parametrize("save", [save_ours, save_stock])
def test_both_load_it_and_find_the_same(family: Family, save: Any, tmp_path: Path, picture: Image.Image) -> None:
    """Either engine reads what either wrote, in silence, and finds the same: four ways, one run.

    Random weights answer to [CLS] and "." as to words, which the stock post-processing counts and ours does not:
    each post-processing is therefore given the outputs of both models.
    """
    folder = str(save(family, tmp_path))
    with silence():
        stock_model = AutoModelForZeroShotObjectDetection.from_pretrained(folder)
        stock_processor = AutoProcessor.from_pretrained(folder)
        stock_pipe = pipeline(TASK, model=folder, device="cpu")
        model = own.GroundingDinoForObjectDetection.from_pretrained(folder)
        processor = own.GroundingDinoProcessor.from_pretrained(folder)
    assert type(stock_model) is STOCK_MODEL[family]
    assert type(stock_processor) is transformers.GroundingDinoProcessor
    assert type(stock_pipe.model) is STOCK_MODEL[family]
    ours, theirs = outputs_of(model, processor, picture), outputs_of(stock_model, stock_processor, picture)
    assert torch.equal(ours.input_ids, theirs.input_ids)
    for one in (processor, stock_processor):
        threshold = in_a_gap(detections(one, ours, picture, 0.0)["scores"])
        assert_same(detections(one, ours, picture, threshold), detections(one, theirs, picture, threshold), picture)


def stock_pipeline(folder: Path) -> Any:
    return pipeline(TASK, model=str(folder), device="cpu")


def our_pipeline(folder: Path) -> Any:
    model = own.GroundingDinoForObjectDetection.from_pretrained(folder)
    return own.GroundingDinoPipeline(model, own.GroundingDinoProcessor.from_pretrained(folder), device="cpu")


@families
@pytest.mark.parametrize("load", [stock_pipeline, our_pipeline])
def test_a_pipeline_finds_the_same_in_either_repo(
    family: Family, load: Any, tmp_path: Path, picture: Image.Image
) -> None:
    """The same weights, saved here and by stock, each with the processor of its side."""
    folders = [save_ours(family, tmp_path / "ours"), save_stock(family, tmp_path / "stock")]
    STOCK_MODEL[family].from_pretrained(folders[0]).save_pretrained(folders[1])
    with silence():
        pipes = [load(folder) for folder in folders]
    found = [pipe(picture, candidate_labels=["cat", "remote control"], threshold=0.0) for pipe in pipes]
    assert len(found[0]) > 3
    assert found[0] == found[1]


def test_a_trained_model_finds_the_same_everywhere() -> None:
    """The model that ships: model, processor and post-processing of either side, and of the pipelines."""
    folder, image = str(NANO), Image.open(DEMO_IMAGE).convert("RGB")
    with silence():
        parts = [
            (AutoModelForZeroShotObjectDetection.from_pretrained(folder), AutoProcessor.from_pretrained(folder)),
            (
                own.GroundingDinoForObjectDetection.from_pretrained(folder),
                own.GroundingDinoProcessor.from_pretrained(folder),
            ),
        ]
    found = []
    for model, processor in parts:
        inputs = processor(images=image, text=". ".join(DEMO_LABELS) + ".", return_tensors="pt")
        with torch.no_grad():
            outputs = model.eval()(**inputs)
        (result,) = processor.post_process_grounded_object_detection(
            outputs, inputs["input_ids"], threshold=0.4, text_threshold=0.3, target_sizes=[(image.height, image.width)]
        )
        found.append(result)
    stock, ours = found
    assert len(ours["scores"]) >= 2
    torch.testing.assert_close(ours["scores"], stock["scores"], atol=1e-4, rtol=0)
    torch.testing.assert_close(ours["boxes"], stock["boxes"], atol=0.1, rtol=0)
    assert ours["text_labels"] == stock["text_labels"]


@families
def test_there_and_back_nothing_is_lost(family: Family, tmp_path: Path) -> None:
    """Ours, saved by stock, loaded here: the same tensors bit by bit, and the same options."""
    first = own.GroundingDinoForObjectDetection.from_pretrained(save_ours(family, tmp_path / "a"))
    STOCK_MODEL[family].from_pretrained(tmp_path / "a").save_pretrained(tmp_path / "b")
    second = own.GroundingDinoForObjectDetection.from_pretrained(tmp_path / "b")
    assert type(first) is type(second)
    states = first.state_dict(), second.state_dict()
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert first.config.loss_preset == second.config.loss_preset
    assert first.config.phrase_boundary_token_ids == second.config.phrase_boundary_token_ids


# --- remote code -------------------------------------------------------------------------------------------------

NOT_INSTALLED = """
import builtins, logging, sys, warnings

class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "hf_grounding_dino":
            raise ImportError("the package is not installed here")

sys.meta_path.insert(0, Block())
import torch
from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoModelForZeroShotObjectDetection, AutoProcessor
from transformers import ZeroShotObjectDetectionPipeline, pipeline
results, *repos = sys.argv[1:]

def ask(*arguments):
    raise AssertionError("a question")

builtins.input = ask
records = []

class Keep(logging.Handler):
    def emit(self, record):
        records.append(record.getMessage())

keep, names = Keep(logging.WARNING), (None, "transformers", "huggingface_hub")
for name in names:
    logging.getLogger(name).addHandler(keep)
with warnings.catch_warnings():
    warnings.simplefilter("error")
    for folder in repos:
        for trust in ({}, {"trust_remote_code": False}):
            for auto in (AutoConfig, AutoModelForZeroShotObjectDetection, AutoImageProcessor, AutoProcessor):
                assert type(auto.from_pretrained(folder, **trust)).__module__.startswith("transformers.models."), auto
        made = pipeline("zero-shot-object-detection", model=folder, device="cpu")
        assert type(made) is ZeroShotObjectDetectionPipeline
        assert type(made.model).__module__.startswith("transformers.models.")
assert not records, records
assert not any(name.startswith("transformers_modules.") for name in sys.modules)

import numpy as np
from PIL import Image
picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (70, 110, 3), dtype=np.uint8))
trust = {"trust_remote_code": True}

def ours(thing):
    return type(thing).__module__.startswith("transformers_modules.")

found = {}
for folder in repos:
    config = AutoConfig.from_pretrained(folder, **trust)
    model = AutoModelForZeroShotObjectDetection.from_pretrained(folder, **trust).eval()
    processor = AutoProcessor.from_pretrained(folder, **trust)
    assert all(map(ours, (config, model, processor, processor.image_processor)))
    assert ours(AutoModel.from_pretrained(folder, **trust))
    assert isinstance(model.config, type(config)), "one copy of the code serves all classes of a repo"
    # Pictures of unequal sizes with prompts of any length, which the stock model cannot take.
    inputs = processor(images=[picture, picture.crop((0, 0, 50, 60))], text=[["Cat", "a.b"], ["remote control"] * 70])
    with torch.no_grad():
        outputs = model(**inputs)
    (result, _) = processor.post_process_grounded_object_detection(outputs, target_sizes=[(70, 110), (60, 50)])
    assert set(result["text_labels"]) <= {"Cat", "a.b"}
    found[folder] = (outputs.logits, outputs.pred_boxes)
    model.save_pretrained(folder + "/again")
    processor.save_pretrained(folder + "/again")
    again = AutoModelForZeroShotObjectDetection.from_pretrained(folder + "/again", **trust)
    assert ours(again) and ours(AutoProcessor.from_pretrained(folder + "/again", **trust))
assert ours(pipeline("zero-shot-object-detection", model=repos[0], device="cpu", **trust).model)
labels = [{"boxes": torch.tensor([[0.5, 0.5, 0.2, 0.2]]), "class_labels": torch.tensor([0])}] * 2
model.train()(**inputs, labels=labels).loss.backward()
torch.save(found, results)
assert "hf_grounding_dino" not in sys.modules
"""

BESIDE_THE_PACKAGE = """
import sys, torch
from transformers import AutoModelForZeroShotObjectDetection
first, second = sys.argv[1:]
models = [AutoModelForZeroShotObjectDetection.from_pretrained(first, trust_remote_code=True)]
names = ("deformable_attention", "deformable_attention_backward", "window_rows")
defined = [getattr(torch.ops.hf_grounding_dino, name) for name in names]
from hf_grounding_dino import GroundingDinoForObjectDetection
models.append(GroundingDinoForObjectDetection.from_pretrained(first))
models.append(AutoModelForZeroShotObjectDetection.from_pretrained(second, trust_remote_code=True))
assert len({type(model) for model in models}) == 3
assert all(getattr(torch.ops.hf_grounding_dino, name) is one for name, one in zip(names, defined, strict=True))
inputs = {"pixel_values": torch.randn(1, 3, 91, 74), "input_ids": torch.tensor([[101, 7, 1012, 102]])}
with torch.no_grad():
    boxes = [model.eval()(**inputs).pred_boxes for model in models]
torch.testing.assert_close(boxes[0], boxes[1], atol=1e-4, rtol=0)
compiled = torch.compile(models[0], fullgraph=True, dynamic=False, backend="aot_eager")
with torch.no_grad():
    torch.testing.assert_close(compiled(**inputs).pred_boxes, boxes[0], atol=1e-4, rtol=0)
"""


def run(code: str, modules: Path, *arguments: Path, path: str = "") -> None:
    environment = {"HF_MODULES_CACHE": str(modules), "HF_HUB_OFFLINE": "1", "PATH": os.environ["PATH"]}
    environment |= {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True, check=False, env=environment
    )
    assert done.returncode == 0, done.stderr[-3000:]


def test_remote_code(tmp_path: Path, picture: Image.Image) -> None:
    """In a process that cannot import the package: stock, silent and unasked; ours where the code is trusted."""
    repos = [save_ours(family, tmp_path / family) for family in FAMILIES]
    for repo in repos:
        before = {file.name for file in repo.iterdir()}
        written = export_remote_code(repo)
        assert {file.name for file in repo.iterdir()} == before | {file.name for file in written}
    run(NOT_INSTALLED, tmp_path / "modules", tmp_path / "found.pt", *repos)
    found = torch.load(tmp_path / "found.pt")
    images = [picture, picture.crop((0, 0, 50, 60))]
    for repo in repos:
        model = own.GroundingDinoForObjectDetection.from_pretrained(repo).eval()
        processor = own.GroundingDinoProcessor.from_pretrained(repo)
        with torch.no_grad():
            outputs = model(**processor(images=images, text=[["Cat", "a.b"], ["remote control"] * 70]))
        torch.testing.assert_close(outputs.logits, found[str(repo)][0], atol=1e-4, rtol=0)
        torch.testing.assert_close(outputs.pred_boxes, found[str(repo)][1], atol=1e-4, rtol=0)


def test_the_package_and_its_copies_in_one_process(tmp_path: Path) -> None:
    """The operators are defined once, whoever comes first: a copy, then the package, then another copy."""
    repos = [save_ours(family, tmp_path / family) for family in FAMILIES]
    for repo in repos:
        export_remote_code(repo)
    run(BESIDE_THE_PACKAGE, tmp_path / "modules", *repos, path=str(Path(own.__file__).parents[1]))


def test_what_is_no_model_gets_no_code(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no configuration of grounding-dino or mm-grounding-dino"):
        export_remote_code(tmp_path)
    transformers.OwlViTConfig().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="no configuration of grounding-dino or mm-grounding-dino"):
        export_remote_code(tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["config.json"]
