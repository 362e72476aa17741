"""A family is a folder of its own and a row of the table: a toy one is found by every door, nothing else touched."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import hf_grounding_dino
from hf_grounding_dino.assets import DEMO_IMAGE, NANO

ROW = """
    "toy": ModelType(
        config="models.toy.modeling_toy:ToyConfig",
        model="models.toy.modeling_toy:ToyModel",
        detector="models.toy.modeling_toy:ToyForObjectDetection",
        **_GROUNDING_DINO,
    ),
}
"""
FOLDER = """
from ..grounding_dino.configuration_grounding_dino import MMGroundingDinoConfig
from ..grounding_dino.modeling_grounding_dino import GroundingDinoForObjectDetection, GroundingDinoModel


class ToyConfig(MMGroundingDinoConfig):
    model_type = "toy"


class ToyModel(GroundingDinoModel):
    config_class = ToyConfig


class ToyForObjectDetection(GroundingDinoForObjectDetection):
    config_class = ToyConfig
"""

BY_EVERY_DOOR = """
import json, sys
from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoModelForZeroShotObjectDetection, AutoProcessor
from transformers import pipeline
from hf_grounding_dino import GroundingDinoConfig, GroundingDinoPipeline, register
from hf_grounding_dino.models.loading import load_whole
from hf_grounding_dino.publishing.remote_code import export_remote_code
repo, picture, saved = sys.argv[1:]

def best(run):
    return run(picture, candidate_labels=["red square", "blue ring"], threshold=0.3)[0]["label"]

model, processor = load_whole(repo)
assert [type(model).__name__, type(model.model).__name__] == ["ToyForObjectDetection", "ToyModel"]
assert best(GroundingDinoPipeline(model, processor)) == "red square"
model.save_pretrained(saved)
written = json.load(open(f"{saved}/config.json"))
assert (written["architectures"], written["model_type"]) == (["ToyForObjectDetection"], "toy")

try:
    GroundingDinoConfig.from_pretrained(repo)
except ValueError as error:
    assert "type 'toy', not one of ['grounding-dino', 'mm-grounding-dino']" in str(error)
else:
    raise AssertionError("of another family")

register()
doors = AutoConfig, AutoModel, AutoModelForZeroShotObjectDetection, AutoImageProcessor, AutoProcessor
found = [type(auto.from_pretrained(repo)).__name__ for auto in doors]
assert found[:3] == ["ToyConfig", "ToyModel", "ToyForObjectDetection"], found
assert found[3:] == ["GroundingDinoImageProcessor", "GroundingDinoProcessor"], found
made = pipeline("zero-shot-object-detection", model=repo, device="cpu")
assert type(made) is GroundingDinoPipeline and best(made) == "red square"

files = {path.name for path in export_remote_code(repo)}
assert {"models_toy_modeling_toy.py", "models_registry.py", "config.json"} <= files
"""

BY_REMOTE_CODE = """
import sys
from transformers import AutoModelForZeroShotObjectDetection, AutoProcessor
model = AutoModelForZeroShotObjectDetection.from_pretrained(sys.argv[1], trust_remote_code=True)
processor = AutoProcessor.from_pretrained(sys.argv[1], trust_remote_code=True)
found = [type(model).__name__, type(model).__module__.split(".")[0], type(processor).__name__]
assert found == ["ToyForObjectDetection", "transformers_modules", "GroundingDinoProcessor"], found
assert type(model.model).__name__ == "ToyModel" and "hf_grounding_dino" not in sys.modules
"""


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a copy of the package lies that has the toy family too."""
    root = tmp_path_factory.mktemp("source")
    copy = root / "hf_grounding_dino"
    shutil.copytree(Path(hf_grounding_dino.__file__).parent, copy, ignore=shutil.ignore_patterns("__pycache__"))
    (copy / "models" / "toy").mkdir()
    (copy / "models" / "toy" / "__init__.py").touch()
    (copy / "models" / "toy" / "modeling_toy.py").write_text(FOLDER)
    table = copy / "models" / "registry.py"
    table.write_text(table.read_text().replace("\n}\n\n\ndef load(", f"{ROW}\n\ndef load("))
    return root


@pytest.fixture(scope="module")
def repo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Nano's weights, said to be the toy's."""
    folder = tmp_path_factory.mktemp("repo") / "toy"
    shutil.copytree(NANO, folder)
    config = json.loads((folder / "config.json").read_text()) | {"model_type": "toy"}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def run(code: str, *arguments: object, **environment: str) -> None:
    command = [sys.executable, "-c", code, *map(str, arguments)]
    options = os.environ | {"HF_GROUNDING_DINO_KERNEL": "off"} | environment
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=options)
    assert done.returncode == 0, done.stderr[-3000:]


def test_a_family_is_a_folder_and_a_row(package: Path, repo: Path, tmp_path: Path) -> None:
    """Loading, saving, the auto classes, the pipeline, and the code that travels with a repo."""
    run(BY_EVERY_DOOR, repo, DEMO_IMAGE, tmp_path / "saved", PYTHONPATH=str(package))
    run(BY_REMOTE_CODE, repo, HF_MODULES_CACHE=str(tmp_path / "modules"))
