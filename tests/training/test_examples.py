"""Drawings of predictions beside the ground truth: both sides at one scale and in one color, titles on the paper."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image, ImageChops

from hf_grounding_dino.training.examples import as_detections, beside_ground_truth

BOX = torch.tensor([[10.0, 20.0, 60.0, 50.0]])
GREY = (90, 90, 90)


def halves(paper: Image.Image, size: tuple[int, int]) -> tuple[Image.Image, Image.Image]:
    """The two drawings, which lie at the lower edge, left and right."""
    (width, height), (right, bottom) = size, paper.size
    top = bottom - height
    return paper.crop((0, top, width, bottom)), paper.crop((right - width, top, right, bottom))


@pytest.mark.parametrize("size", [(100, 80), (80, 200), (2000, 1500), (900, 30), (1, 1)])
def test_equal_boxes_look_equal_on_both_sides(size: tuple[int, int]) -> None:
    """Predictions equal the ground truth: the left drawing is the right one, tags and all, within 640 x 640."""
    same = as_detections(BOX, ["cat"])
    paper = beside_ground_truth(Image.new("RGB", size, GREY), same, same)
    left, right = halves(paper, ((paper.width - 12) // 2, paper.height - 28))
    assert max(left.size) <= 640
    assert ImageChops.difference(left, right).getbbox() is None


def test_a_side_shows_what_is_its_own() -> None:
    """The dog is found and not there, the cat there and not found; "cat" comes first in the common list of labels."""
    image = Image.new("RGB", (320, 320), GREY)
    paper = beside_ground_truth(image, as_detections(BOX, ["dog"], torch.tensor([0.75])), as_detections(BOX, ["cat"]))
    left, right = ({color for _, color in half.getcolors(1 << 24) or []} for half in halves(paper, (640, 640)))
    orange, blue = (230, 159, 0), (86, 180, 233)
    assert orange in right and orange not in left
    assert blue in left and blue not in right


def test_a_title_takes_a_line_and_a_long_one_is_cut() -> None:
    image = Image.new("RGB", (100, 80), GREY)
    plain, titled = (beside_ground_truth(image, [], [], title=title) for title in ("", "a very\nlong title " * 100))
    assert titled.width == plain.width and titled.height > plain.height
    head = titled.crop((0, 0, titled.width, titled.height - plain.height))
    assert np.asarray(head).min() < 100
    assert np.asarray(head)[:, -2:].min() == 255
