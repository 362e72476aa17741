"""Laws of the snapshots: both sides at one scale and in one colour, and every title on the paper."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image, ImageChops

from hf_grounding_dino.training.snapshots import as_detections, beside_truth, snapshot_sheet

BOX = torch.tensor([[10.0, 20.0, 60.0, 50.0]])
GREY = (90, 90, 90)


def halves(paper: Image.Image, size: tuple[int, int]) -> tuple[Image.Image, Image.Image]:
    """The two drawings, which lie at the lower edge, left and right."""
    width, height = size
    top = paper.height - height
    return (
        paper.crop((0, top, width, paper.height)),
        paper.crop((paper.width - width, top, paper.width, paper.height)),
    )


def test_boxes_become_detections() -> None:
    assert as_detections(BOX + 0.4, ["cat"], torch.tensor([0.75])) == [
        {"score": 0.75, "label": "cat", "box": {"xmin": 10, "ymin": 20, "xmax": 60, "ymax": 50}}
    ]
    assert as_detections(BOX, ["cat"])[0]["score"] is None
    assert as_detections(torch.zeros(0, 4), [], torch.zeros(0)) == []


@pytest.mark.parametrize("size", [(100, 80), (80, 200), (2000, 1500), (900, 30), (1, 1)])
def test_equal_boxes_look_equal_on_both_sides(size: tuple[int, int]) -> None:
    """Found equals the truth, tags and all: the left drawing is the right one, and fits on 640 x 640."""
    same = as_detections(BOX, ["cat"])
    paper = beside_truth(Image.new("RGB", size, GREY), same, same)
    width = (paper.width - 12) // 2
    left, right = halves(paper, (width, paper.height - 28))
    assert max(left.size) <= 640
    assert ImageChops.difference(left, right).getbbox() is None


def test_a_side_shows_what_is_its_own() -> None:
    """The dog is found and not there, the cat there and not found; "cat" comes first in the common list of labels."""
    image = Image.new("RGB", (320, 320), GREY)
    paper = beside_truth(image, as_detections(BOX, ["dog"]), as_detections(BOX, ["cat"]))
    left, right = ({color for _, color in half.getcolors(1 << 24) or []} for half in halves(paper, (640, 640)))
    orange, blue = (230, 159, 0), (86, 180, 233)
    assert orange in right and orange not in left
    assert blue in left and blue not in right


def test_a_title_takes_a_line_and_a_long_one_is_cut() -> None:
    image = Image.new("RGB", (100, 80), GREY)
    plain, titled = (beside_truth(image, [], [], title=title) for title in ("", "a very\nlong title " * 100))
    assert titled.width == plain.width and titled.height > plain.height
    head = titled.crop((0, 0, titled.width, titled.height - plain.height))
    assert np.asarray(head).min() < 100
    assert np.asarray(head)[:, -2:].min() == 255


def test_a_sheet_holds_all_pictures_whole() -> None:
    """Red 40 x 30 above blue 60 x 20: both colours have all their pixels."""
    pictures = [Image.new("RGB", (40, 30), "red"), Image.new("RGB", (60, 20), "blue")]
    sheet = np.asarray(snapshot_sheet(pictures))
    assert (sheet == (255, 0, 0)).all(-1).sum() == 1200
    assert (sheet == (0, 0, 255)).all(-1).sum() == 1200
    with pytest.raises(ValueError, match="no picture"):
        snapshot_sheet([])
