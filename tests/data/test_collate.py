"""Batches for training: boxes relative to each image, words at the right tokens."""

from __future__ import annotations

import pytest
import torch
from PIL import ExifTags, Image

from hf_grounding_dino.data.collate import GroundingCollator
from hf_grounding_dino.data.shapes import VOCABULARY, ShapesDataset
from hf_grounding_dino.data.tokenizer import build_tokenizer
from hf_grounding_dino.losses.targets import prepare_targets
from hf_grounding_dino.processing.image_processing_grounding_dino import GroundingDinoImageProcessor
from hf_grounding_dino.processing.processing_grounding_dino import GroundingDinoProcessor
from hf_grounding_dino.processing.prompts import phrase_numbers, special_token_ids


def make_processor() -> GroundingDinoProcessor:
    size = {"shortest_edge": 64, "longest_edge": 128}
    return GroundingDinoProcessor(GroundingDinoImageProcessor(size=size), build_tokenizer(VOCABULARY))


def test_boxes_are_relative_to_each_image_whatever_its_neighbour() -> None:
    """A box over the left half of a 100 x 50 image is (0.25, 0.5, 0.5, 1), next to an image twice as high too."""
    wide = {
        "image": Image.new("RGB", (100, 50)),
        "text": ["red circle"],
        "boxes": torch.tensor([[0.0, 0.0, 50.0, 50.0]]),
        "class_labels": torch.tensor([0]),
        "image_id": 1,
    }
    high = wide | {"image": Image.new("RGB", (50, 100)), "boxes": torch.zeros(0, 4), "class_labels": torch.zeros(0)}
    batch = GroundingCollator(make_processor())([wide, high])
    assert torch.equal(batch["labels"][0]["boxes"], torch.tensor([[0.25, 0.5, 0.5, 1.0]]))
    assert batch["labels"][1]["boxes"].shape == (0, 4)


def test_plain_lists_and_a_photograph_on_its_side() -> None:
    """As people write items: lists, no number. The image is taken as it lies, and so is its box, the left half."""
    turned = Image.new("RGB", (100, 50))
    turned.getexif()[ExifTags.Base.Orientation] = 6
    item = {"image": turned, "text": ["red circle"], "boxes": [[0, 0, 50, 50]], "class_labels": [0]}
    batch = GroundingCollator(make_processor())([item, item])
    assert batch["pixel_mask"][0].sum(0).max() < batch["pixel_mask"][0].sum(1).max()
    for number, label in enumerate(batch["labels"]):
        assert torch.equal(label["boxes"], torch.tensor([[0.25, 0.5, 0.5, 1.0]]))
        assert label["class_labels"].tolist() == [0] and label["image_id"] == number


def test_every_label_points_at_its_own_words() -> None:
    """Decoding the tokens that a box is called by gives back the label, or the characters of its spans."""
    processor = make_processor()
    items = [ShapesDataset(60, seed=3)[i] for i in range(60)]
    collate = GroundingCollator(processor)
    specials = special_token_ids(processor.tokenizer)
    for item in items:
        batch = collate([item, items[0]])
        ids, label = batch["input_ids"][0], batch["labels"][0]
        for box in range(len(item["boxes"])):
            if "class_labels" in label:
                numbers = phrase_numbers(batch["input_ids"], specials)[0]
                tokens = ids[numbers == label["class_labels"][box]]
                expected = item["text"][int(item["class_labels"][box])]
            else:
                tokens = ids[label["token_mask"][box]]
                expected = " ".join(item["text"][start:end] for start, end in item["spans"][box])
            assert processor.tokenizer.decode(tokens) == expected


@pytest.mark.parametrize("caption", ["a red no. 5 circle", "the red circle on the left.", "what? a circle. red ."])
def test_a_phrase_may_hold_delimiters(caption: str) -> None:
    """The whole sentence names a box, as in referring expressions: all its words do, none of its dots."""
    processor = make_processor()
    spans = [[(0, len(caption))]]
    item = {"image": Image.new("RGB", (100, 50)), "text": caption, "boxes": [[0, 0, 50, 50]], "spans": spans}
    batch = GroundingCollator(processor)([item])
    numbers = phrase_numbers(batch["input_ids"], special_token_ids(processor.tokenizer))
    assert torch.equal(batch["labels"][0]["token_mask"], numbers >= 0)
    (target,) = prepare_targets(batch["labels"], numbers)
    assert torch.equal(target.tokens_GT, numbers >= 0)


def test_images_that_have_their_size_keep_it() -> None:
    """A 100 x 70 image becomes 91 x 64 with a short side of 64, and stays as it is where `resize` is off."""
    item = ShapesDataset(1, seed=3, size=(100, 70))[0]
    resized, kept = (GroundingCollator(make_processor(), resize=resize)([item]) for resize in (True, False))
    assert resized["pixel_values"].shape == (1, 3, 64, 91)
    assert kept["pixel_values"].shape == (1, 3, 70, 100)
    assert torch.equal(resized["labels"][0]["boxes"], kept["labels"][0]["boxes"])


def test_the_seed_of_the_noise_reaches_the_label() -> None:
    item = ShapesDataset(1, seed=3)[0]
    first, second = GroundingCollator(make_processor())([item | {"noise_seed": 2**62}, item])["labels"]
    assert first["noise_seed"] == 2**62
    assert "noise_seed" not in second
