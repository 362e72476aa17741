"""Flipped, cut and resized images: boxes stay on what they bound, and words on what is true."""

from __future__ import annotations

from dataclasses import fields

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from hf_grounding_dino.data.augmentation import (
    Augmentation,
    AugmentationSettings,
    Augmented,
    exchanged_sides,
    name_a_side,
    resized_size,
)

PAINT = [((255, 0, 0), (20, 30, 120, 200)), ((0, 255, 0), (300, 40, 610, 90)), ((0, 0, 255), (200, 250, 420, 470))]


def fixed(**changes: object) -> AugmentationSettings:
    """Nothing is flipped, cut or resized (of an image with a short side of 100) unless a change says so."""
    given: dict[str, object] = {"flip": 0.0, "crop": 0.0, "short_sides": (100,), "longest_side": 100_000}
    return AugmentationSettings(**(given | changes))


def augment(
    settings: AugmentationSettings,
    size: tuple[int, int] = (200, 100),
    boxes: list[list[float]] | None = None,
    seed: int = 0,
    **words: object,
) -> Augmented:
    drawn = torch.tensor(boxes or [], dtype=torch.float32).reshape(-1, 4)
    return Augmentation(settings)(Image.new("RGB", size), drawn, np.random.default_rng(seed), **words)


def painted() -> tuple[Image.Image, torch.Tensor]:
    """640 x 480, black, with a red, a green and a blue rectangle."""
    image = Image.new("RGB", (640, 480))
    for color, (x1, y1, x2, y2) in PAINT:
        ImageDraw.Draw(image).rectangle((x1, y1, x2 - 1, y2 - 1), fill=color)
    return image, torch.tensor([box for _, box in PAINT], dtype=torch.float32)


def noise(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


def gradient(width: int, height: int) -> Image.Image:
    """Red is the column, green the row."""
    pixels = np.zeros((height, width, 3), dtype=np.uint8)
    pixels[..., 0], pixels[..., 1] = np.arange(width)[None], np.arange(height)[:, None]
    return Image.fromarray(pixels)


# --- boxes stay on what they bound -------------------------------------------------------------------------------


def test_boxes_bound_the_paint_in_every_image_that_is_drawn() -> None:
    """A pixel is painted where its color is more than half; its rectangle lies within 1.5 pixels of the box.

    Equal generators give equal images, nothing global is drawn from, and what was given is not changed.
    """
    image, boxes = painted()
    before = image.tobytes(), boxes.tolist()
    augmentation = Augmentation(AugmentationSettings())
    seen = []
    for seed in range(20):
        result, again = (augmentation(image, boxes, np.random.default_rng(seed)) for _ in range(2))
        torch.manual_seed(seed)
        assert result.image.tobytes() == again.image.tobytes() and torch.equal(result.boxes, again.boxes)
        pixels = np.asarray(result.image)
        for box in range(len(PAINT)):
            rows, columns = (pixels[..., box] > 127).nonzero()
            seen.append(box in result.kept)
            if box not in result.kept:
                assert not len(rows)
                continue
            found = result.boxes[result.kept == box][0].numpy()
            if (found[2:] - found[:2]).min() > 3:
                expected = np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
                assert np.abs(found - expected).max() <= 1.5
    assert 0 < seen.count(False) < seen.count(True), "some were cut away, most were not"
    assert (image.tobytes(), boxes.tolist()) == before


def test_the_short_side_has_one_of_eleven_lengths() -> None:
    """A tenth of 480, 512, ... 800 is 48, 51, 54, 58, ... 80; 160 x 120 keeps its proportion, rounded down."""
    settings = AugmentationSettings(crop=0.0).scaled(80, 133)
    sizes = {augment(settings, (160, 120), seed=seed).image.size for seed in range(100)}
    assert sizes == {(160 * short // 120, short) for short in (48, 51, 54, 58, 61, 64, 67, 70, 74, 77, 80)}


def test_flipping_twice_changes_nothing() -> None:
    image = noise(200, 100)
    boxes = torch.tensor([[30.0, 10, 50, 40], [0, 0, 200, 100]])
    caption, spans = "the Left cat and the rightmost dog", [[(0, 12)], [(17, 34)]]
    augmentation = Augmentation(fixed(flip=1.0))
    once = augmentation(image, boxes, np.random.default_rng(0), caption, spans)
    assert once.image.tobytes() != image.tobytes()
    twice = augmentation(once.image, once.boxes, np.random.default_rng(0), once.caption, once.spans)
    assert twice.image.tobytes() == image.tobytes()
    assert torch.equal(twice.boxes, boxes)
    assert (twice.caption, [list(s) for s in twice.spans]) == (caption, spans)


def test_resizing_scales_each_side_by_what_it_really_becomes() -> None:
    """101 x 50 to a short side of 75: 151.5 is cut to 151, so x grows by 151/101 and y by 75/50."""
    result = augment(fixed(short_sides=(75,)), size=(101, 50), boxes=[[10, 10, 101, 50]])
    assert result.image.size == (151, 75)
    assert torch.allclose(result.boxes, torch.tensor([[10 * 151 / 101, 15, 151, 75]]))


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((640, 480), (1066, 800)),
        ((480, 640), (800, 1066)),
        ((2000, 500), (1333, 333)),
        ((500, 500), (800, 800)),
        ((3, 20_000), (1, 1333)),
    ],
)
def test_the_long_side_has_a_limit(size: tuple[int, int], expected: tuple[int, int]) -> None:
    """640 * 800 / 480 = 1066.7; 2000 x 500 would be 3200 wide, so it is 1333 wide and 500 * 1333 / 2000 = 333.25 high.

    An image 20,000 high and 3 wide keeps a width of 1.
    """
    assert resized_size(size, 800, 1333) == expected


def test_a_cut_moves_clips_and_drops_boxes() -> None:
    """200 x 100 is doubled, then a part of 100 x 100 is cut out at a place found by a mark, then shrunk by half.

    The box around everything becomes the whole image; each of 8 boxes of 20 x 20 is left where the part has some of
    it, and what is left of it starts at (2 x - cut) / 2. A box that is cut away goes with its spans.
    """
    given = [[0, 0, 200, 100], *([x, 40, x + 20, 60] for x in range(0, 200, 25))]
    cut = fixed(crop=1.0, crop_short_sides=(200,), crop_size=(100, 100), short_sides=(50,))
    spans = [[(i, 15)] for i in range(9)]
    places = set()
    for seed in range(20):
        boxes = torch.tensor(given, dtype=torch.float32)
        rng = np.random.default_rng(seed)
        result = Augmentation(cut)(gradient(200, 100), boxes, rng, "a cat and a dog", spans)
        assert result.image.size == (50, 50) and result.kept.dtype == torch.int64
        # The colors of the corner say where it was, to the rounding of a color.
        x0, y0 = (float(c) for c in np.asarray(result.image)[0, 0, :2])
        places.add((x0, y0))
        expected = {}
        for i, (x1, y1, x2, y2) in enumerate(given):
            box = [max(x1 - x0, 0), max(y1 - y0, 0), min(x2 - x0, 50), min(y2 - y0, 50)]
            if box[2] - box[0] > 1 and box[3] - box[1] > 1:
                expected[i] = box
        found = {int(i): box for i, box in zip(result.kept, result.boxes.tolist(), strict=True)}
        assert set(expected) <= set(found)
        assert [list(of_box) for of_box in result.spans or ()] == [spans[i] for i in result.kept]
        for i, box in found.items():
            if i in expected:
                assert np.abs(np.array(box) - expected[i]).max() <= 1
            else:
                assert min(box[2] - box[0], box[3] - box[1]) <= 1.5
        assert found[0] == [0, 0, 50, 50]
    assert len(places) > 15


def test_a_part_is_as_large_as_the_range_and_the_image_allow() -> None:
    """Of 200 x 100, sides from 60 to 120: the width is anything from 60 to 120, the height from 60 to 100.

    Colors rise by one with each column and row, so those of opposite corners tell the size of the part.
    """
    cut = fixed(crop=1.0, crop_short_sides=(100,), crop_size=(60, 120))
    sizes = []
    for seed in range(150):
        result = Augmentation(cut)(gradient(200, 100), torch.zeros(0, 4), np.random.default_rng(seed))
        pixels = np.asarray(result.image).astype(int)
        sizes.append(pixels[-1, -1, :2] - pixels[0, 0, :2] + 1)
    widths, heights = np.array(sizes).T
    assert 59 <= widths.min() <= 62
    assert 118 <= widths.max() <= 121
    assert 59 <= heights.min() <= 62
    assert 98 <= heights.max() <= 101


def test_before_a_part_is_cut_the_long_side_has_its_own_limit() -> None:
    """1000 x 100 becomes 500 x 50, of which a part of 500 x 500 is all; short sides of 100 make it 1000 x 100 again."""
    cut = fixed(crop=1.0, crop_short_sides=(100,), crop_longest_side=500, crop_size=(500, 500))
    assert augment(cut, (1000, 100)).image.size == (1000, 100)


def test_boxes_end_where_the_image_does_and_those_too_small_to_see_are_dropped() -> None:
    """0.05 pixels of 100 become 0.005 of 10, less than 0.01; 0.2 become 0.02; a box with no width goes anyway."""
    assert augment(fixed(), boxes=[[-5, 10, 50, 150], [210, 0, 220, 50]]).boxes.tolist() == [[0, 10, 50, 100]]
    boxes = [[10, 10, 10.05, 50], [10, 10, 10.2, 50], [20, 10, 20, 50]]
    assert augment(fixed(short_sides=(10,)), boxes=boxes).kept.tolist() == [1]
    assert augment(fixed(short_sides=(10,), smallest_box=0.0), boxes=boxes).kept.tolist() == [0, 1]


@given(width=st.integers(1, 40), height=st.integers(1, 40), seed=st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_an_image_of_any_size_stays_one(width: int, height: int, seed: int) -> None:
    small = AugmentationSettings().scaled(20, 33)
    result = augment(small, (width, height), [[0, 0, width, height]], seed)
    assert min(result.image.size) >= 1
    assert max(result.image.size) <= 33
    end = torch.tensor(result.image.size)
    assert torch.allclose(result.boxes, torch.tensor([[0.0, 0, *result.image.size]]))
    assert (result.boxes[0, 2:] <= end).all(), "rounding leaves no box beyond the image"


def test_half_are_flipped_and_half_are_cut() -> None:
    """A mark at the left end tells flips; of 200 images 100 are flipped, with a deviation of 7."""
    results = [augment(fixed(flip=0.5), boxes=[[0, 0, 10, 100]], seed=seed) for seed in range(200)]
    assert abs(sum(r.boxes[0, 0] > 0 for r in results) - 100) < 28
    cut = fixed(crop=0.5, crop_short_sides=(100,), crop_size=(50, 60))
    results = [augment(cut, boxes=[[0, 0, 200, 100]], seed=seed) for seed in range(200)]
    assert abs(sum(r.image.size != (200, 100) for r in results) - 100) < 28


# --- settings ----------------------------------------------------------------------------------------------------


def test_settings_follow_the_size_of_the_model() -> None:
    """For 400 instead of 800 all lengths are half, and the longest side is as given."""
    half = AugmentationSettings().scaled(400, 700)
    assert half.short_sides == tuple(range(240, 401, 16))
    assert half.longest_side == 700
    assert half.crop_short_sides == (200, 250, 300)
    assert half.crop_longest_side == 2100
    assert half.crop_size == (192, 300)
    assert (half.flip, half.crop, half.smallest_box) == (0.5, 0.5, 0.01)
    assert AugmentationSettings().scaled(800, 1333) == AugmentationSettings()


@pytest.mark.parametrize(
    "change",
    [
        {"flip": 2.0},
        {"crop": -0.1},
        {"short_sides": ()},
        {"crop_short_sides": (0,)},
        {"longest_side": 0},
        {"crop_longest_side": 0},
        {"crop_size": (600, 384)},
        {"crop_size": (600,)},
    ],
)
def test_settings_that_cannot_be_drawn_are_refused(change: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(iter(change))):
        AugmentationSettings(**change)
    assert next(iter(change)) in {field.name for field in fields(AugmentationSettings)}


# --- words -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        ("a bright cat", "a bright cat"),
        ("left guy", "right guy"),
        ("guy right", "guy left"),
        ("Left. RIGHT? Rightmost", "Right. LEFT? Leftmost"),
        ("the man on the left in red", "the man on the right in red"),
        ("on the right, behind the car", "on the left, behind the car"),
        ("the dog that is left of the cat", "the dog that is right of the cat"),
        ("to the left of the cat", "to the right of the cat"),
        ("second from left to right", "second from right to left"),
        ("top-left corner, on the right-hand side", "top-right corner, on the left-hand side"),
        ("his left hand", "his right hand"),
    ],
)
def test_sides_change_places_in_words(caption: str, expected: str) -> None:
    assert exchanged_sides(caption) == (expected, ())
    assert exchanged_sides(expected) == (caption, ())


@pytest.mark.parametrize(
    "caption",
    [
        "the food left over", "the one that is left", "a bike left on the road", "he left the room", "left to dry",
        "the cup right now", "a right angle", "it is all right", "the bus right behind the car", "right side up",
        "the leftovers", "a right-angled bracket", "a left-wing poster", "leftwards", "the right's arm", "left2",
        "on the left, right next to a dog", "the bird left up",
    ],
)  # fmt: skip
def test_what_may_not_mean_a_side_is_not_flipped(caption: str) -> None:
    """The last one would become "right up", which means something else."""
    assert exchanged_sides(caption) is None
    result = augment(fixed(flip=1.0), boxes=[[0, 0, 10, 10]], caption=caption, spans=[[(0, 3)]])
    assert (result.caption, result.spans) == (caption, (((0, 3),),))
    assert result.boxes.tolist() == [[0, 0, 10, 10]]


def test_spans_move_with_their_words() -> None:
    """A word that grows by one letter moves what comes after it by one; one that shrinks moves it back."""
    caption = "a left cat, a red dog, right bus, a pen"
    spans = (((0, 10), (12, 21)), ((23, 32),), ((23, 28), (34, 39)), ((0, 1), (0, 6)))
    flipped, moved = exchanged_sides(caption, spans)
    assert flipped == "a right cat, a red dog, left bus, a pen"
    said = [[flipped[start:end] for start, end in of_box] for of_box in moved]
    assert said == [["a right cat", "a red dog"], ["left bus"], ["left", "a pen"], ["a", "a right"]]


def test_a_span_that_ends_inside_the_word_keeps_the_image_as_it_is() -> None:
    assert exchanged_sides("the left cat", (((0, 6),),)) is None
    assert exchanged_sides("the leftmost cat", (((0, 8),),)) == ("the rightmost cat", (((0, 9),),))


def test_labels_of_a_side_forbid_flips() -> None:
    """Even when only asked for: a right shoe, flipped, would be found where the prompt says it is not."""
    assert name_a_side(("cat", "Left shoe"))
    assert name_a_side(("leftover",))
    assert not name_a_side(("cat", "bright lamp", "upright piano"))
    box = [[0.0, 0, 10, 10]]
    assert augment(fixed(flip=1.0), boxes=box, labels=["cat", "left shoe"]).boxes.tolist() == box
    assert augment(fixed(flip=1.0), boxes=box, labels=["cat"]).boxes.tolist() == [[190, 0, 200, 10]]
