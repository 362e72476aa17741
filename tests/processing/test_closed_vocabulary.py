"""What a model of few words says of others: it refuses those it cannot know, and only as long as it has not learned."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from hf_grounding_dino import GroundingDinoForObjectDetection, GroundingDinoPipeline
from hf_grounding_dino.assets import DEMO_IMAGE, NANO
from hf_grounding_dino.data.shapes import caption_prompt, detection_prompt, expressions_prompt, generate_scene
from hf_grounding_dino.data.shapes.phrases import NAMING_WORDS, OTHER_WORDS
from hf_grounding_dino.models.loading import load_whole
from hf_grounding_dino.processing.closed_vocabulary import WORDS_FILE, doubts


@pytest.fixture(scope="module")
def model() -> GroundingDinoForObjectDetection:
    return GroundingDinoForObjectDetection.from_pretrained(NANO).eval()


def test_the_words_beside_the_model_are_those_of_its_training() -> None:
    """Every word of its prompts is there; whatever it was asked for had one that says what the thing is."""
    content = json.loads((NANO / WORDS_FILE).read_text())
    assert (set(content["names"]), set(content["others"])) == (NAMING_WORDS, OTHER_WORDS)
    said: set[str] = set()
    for index in range(100):
        scene, rng = generate_scene(7, index, split="train"), np.random.default_rng(index)
        for prompt in (detection_prompt(scene, rng), caption_prompt(scene, rng), expressions_prompt(scene, rng)):
            for phrase in () if prompt is None else [prompt.text] if isinstance(prompt.text, str) else prompt.text:
                words = {word.strip(".,?") for word in phrase.split()}
                assert words & NAMING_WORDS
                said |= words
    assert said - {""} <= NAMING_WORDS | OTHER_WORDS
    assert said >= NAMING_WORDS, "it was taught each of them"


@pytest.mark.parametrize("label", ["Red Square", "the leftmost ring.", "big stars", "circle?"])
def test_what_it_was_taught(model: GroundingDinoForObjectDetection, label: str) -> None:
    assert doubts(model, [label]) == []


@pytest.mark.parametrize(
    "label", ["cat", "a cat", "CAT", "remote control", "the photo", "three", "亚京", "hearth", "redsquare"]
)
def test_what_it_cannot_know(model: GroundingDinoForObjectDetection, label: str) -> None:
    with pytest.raises(ValueError, match=f"grounding-dino-nano knows no word of '{label}': it was taught eight"):
        doubts(model, ["red square", label])


def test_what_it_knows_in_part(model: GroundingDinoForObjectDetection) -> None:
    (doubt,) = doubts(model, ["star", "red cat of the dog"])
    assert doubt.startswith(
        "grounding-dino-nano does not know 'cat', 'dog' of 'red cat of the dog': it was taught eight"
    )


def test_a_model_that_learned_more_is_not_held_to_it(tmp_path: Path) -> None:
    """In memory by its weights, on disk because no copy that is saved has the file; a plain copy is the same model."""
    shutil.copytree(NANO, tmp_path / "copy")
    copy = GroundingDinoForObjectDetection.from_pretrained(tmp_path / "copy")
    with pytest.raises(ValueError, match="copy knows no word of 'cat'"):
        doubts(copy, ["cat"])
    copy.save_pretrained(tmp_path / "saved")
    assert doubts(GroundingDinoForObjectDetection.from_pretrained(tmp_path / "saved"), ["cat"]) == []
    model = GroundingDinoForObjectDetection.from_pretrained(NANO)
    with pytest.raises(ValueError, match="knows no word"):
        doubts(model.to(torch.bfloat16), ["cat"])
    with torch.no_grad():
        model.model.level_embed.mul_(2)
    assert doubts(model, ["cat"]) == []


def test_the_pipeline_says_so() -> None:
    model, processor = load_whole(NANO)
    pipe = GroundingDinoPipeline(model, processor=processor)
    with pytest.raises(ValueError, match="knows no word of 'cat'"):
        pipe(str(DEMO_IMAGE), candidate_labels=["star", "cat"])
    with pytest.warns(UserWarning, match="does not know 'cat' of 'red cat'"):
        assert pipe(str(DEMO_IMAGE), candidate_labels=["star", "red cat"])
