"""Laws of the drawings: every tag inside the picture and readable, the same colours for the same labels."""

from __future__ import annotations

import itertools
import time

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image, ImageFont

from hf_grounding_dino.inference.drawing import (
    PALETTE,
    Detection,
    Rectangle,
    Tag,
    box_frame,
    draw_detections,
    enlargement,
    label_colors,
    place_tags,
    text_color,
)

GREY = (90, 90, 90)


def detection(xmin: int, ymin: int, xmax: int, ymax: int, label: str = "cat", score: float = 0.5) -> Detection:
    return {"score": score, "label": label, "box": {"xmin": xmin, "ymin": ymin, "xmax": xmax, "ymax": ymax}}


def crowd(count: int, size: tuple[int, int], seed: int = 0) -> list[Detection]:
    rng = np.random.default_rng(seed)
    corners = np.sort(rng.integers(0, size, (count, 2, 2)), axis=1).reshape(count, 4)
    return [
        detection(*map(int, box), label=f"thing {i % 7}", score=float(rng.random())) for i, box in enumerate(corners)
    ]


def placed(size: tuple[int, int], detections: list[Detection]) -> list[Tag]:
    frames = [box_frame(d["box"], 1, size) for d in detections]
    return [tag for tag in place_tags(size, detections, frames, ImageFont.load_default(16)) if tag is not None]


def overlap(a: Rectangle, b: Rectangle) -> bool:
    return a.left < b.right and b.left < a.right and a.top < b.bottom and b.top < a.bottom


def test_a_photograph_on_its_side_is_drawn_upright() -> None:
    """The boxes of the pipeline are those of the upright picture."""
    turned = Image.new("RGB", (1200, 900))
    turned.getexif()[ExifTags.Base.Orientation] = 6
    assert draw_detections(turned, [detection(100, 1000, 300, 1100)]).size == (900, 1200)


def test_what_the_processor_found_is_drawn_as_well() -> None:
    """As the pipeline's, with boxes in pixels and in [0, 1]; a photograph on its side stays there, as the boxes lie."""
    picture = Image.new("RGB", (800, 600))
    expected = draw_detections(picture, [detection(200, 300, 400, 450, label="cat", score=0.5)]).tobytes()
    found = {"scores": torch.tensor([0.5]), "text_labels": ["cat"], "labels": torch.tensor([0])}
    for box in ([200.0, 300.0, 400.0, 450.0], [0.25, 0.5, 0.5, 0.75]):
        assert draw_detections(picture, {**found, "boxes": torch.tensor([box])}).tobytes() == expected
    picture.getexif()[ExifTags.Base.Orientation] = 6
    assert draw_detections(picture, {**found, "boxes": torch.tensor([box])}).tobytes() == expected
    nothing = {"scores": torch.zeros(0), "boxes": torch.zeros(0, 4)}
    assert draw_detections(picture, nothing).size == (1600, 1200)


@pytest.mark.parametrize("size", [(640, 480), (200, 900), (130, 60)])
def test_tags_are_inside_the_picture(size: tuple[int, int]) -> None:
    detections = [
        *crowd(40, size),
        detection(0, 0, *size, label="a very long label " * 30),
        detection(size[0] - 1, size[1] - 1, *size),
        detection(0, 0, 0, 0),
    ]
    tags = placed(size, detections)
    assert len(tags) == len(detections)
    for _, (left, top, right, bottom) in tags:
        assert 0 <= left < right <= size[0]
        assert 0 <= top < bottom <= size[1]


def test_tags_of_a_simple_crowd_do_not_overlap() -> None:
    """Twelve equal boxes on one spot, and twelve side by side, closer than their tags are wide."""
    heap = [detection(300, 300, 400, 380, score=1 - i / 50) for i in range(12)]
    row = [detection(20 + 50 * i, 100, 60 + 50 * i, 200) for i in range(12)]
    tags = placed((800, 600), heap + row)
    assert not any(overlap(a.rectangle, b.rectangle) for a, b in itertools.combinations(tags, 2))


def test_a_single_tag_stands_above_its_box_or_inside_where_there_is_no_room() -> None:
    (above,) = placed((640, 480), [detection(100, 100, 300, 300)])
    assert (above.rectangle.left, above.rectangle.bottom) == (100, 100)
    (inside,) = placed((640, 480), [detection(0, 0, 640, 480)])
    assert inside.rectangle[:2] == (0, 0)


def test_a_tag_avoids_hiding_a_small_thing() -> None:
    """Above the large box lies a small one, which the tag would cover whole; it goes to the other corner or below."""
    small = Rectangle(100, 80, 130, 98)
    tags = placed((640, 480), [detection(100, 100, 400, 300, score=0.9), detection(*small, score=0.1)])
    assert not overlap(tags[0].rectangle, small)


def test_a_long_label_is_cut_and_keeps_its_score() -> None:
    (tag,) = placed((640, 480), [detection(10, 50, 60, 90, label="one two three " * 40, score=0.876)])
    assert tag.text.startswith("one two three one")
    assert tag.text.endswith("\u2026 0.88")
    assert tag.rectangle.right - tag.rectangle.left <= 320


def test_a_label_of_several_lines_is_one_line() -> None:
    (tag,) = placed((640, 480), [detection(10, 50, 60, 90, label="red\n\tstar")])
    assert tag.text == "red star 0.50"


@pytest.mark.parametrize(
    ("size", "factor"),
    [((640, 640), 1), ((320, 256), 3), ((1, 1), 640), ((1, 5000), 1), ((20, 400), 6), ((4000, 3), 1)],
)
def test_enlargement(size: tuple[int, int], factor: int) -> None:
    """640 / 256 = 2.5, rounded up; at most 2560 / 400 = 6.4, rounded down."""
    assert enlargement(size) == factor
    drawing = draw_detections(Image.new("RGB", size, GREY), [detection(0, 0, *size)])
    assert drawing.size == (size[0] * factor, size[1] * factor)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK"])
def test_any_mode_is_drawn_and_left_as_it_was(mode: str) -> None:
    image = Image.new(mode, (64, 48))
    before = image.tobytes()
    assert draw_detections(image, [detection(5, 5, 40, 40)]).mode == "RGB"
    assert image.tobytes() == before


def test_nothing_found_is_the_picture_itself() -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (700, 800, 3), dtype=np.uint8))
    assert draw_detections(image, []).tobytes() == image.tobytes()


def test_the_line_lies_on_the_box() -> None:
    """A box from 100 to 300 in a picture that is not enlarged: the line is inside, the edge one pixel outside."""
    drawing = draw_detections(Image.new("RGB", (700, 700), GREY), [detection(100, 200, 300, 400)])
    color = label_colors(["cat"])["cat"]
    assert [drawing.getpixel(xy) for xy in ((100, 300), (299, 300), (200, 399))] == [color] * 3
    assert [drawing.getpixel(xy) for xy in ((97, 300), (302, 300), (200, 300), (200, 403))] == [GREY] * 4


def test_drawings_are_deterministic() -> None:
    image, detections = Image.new("RGB", (300, 200), GREY), crowd(20, (300, 200))
    assert draw_detections(image, detections).tobytes() == draw_detections(image, detections).tobytes()


def test_a_label_has_its_colour_by_its_place_in_the_prompt() -> None:
    colors = label_colors(["dog", "cat", "dog"])
    assert colors == {"dog": PALETTE[0], "cat": PALETTE[1]}
    drawing = draw_detections(Image.new("RGB", (700, 700), GREY), [detection(100, 200, 300, 400)], ["dog", "cat"])
    assert drawing.getpixel((100, 300)) == PALETTE[1]


def test_more_labels_than_colours_share_them() -> None:
    colors = label_colors([f"label {i}" for i in range(500)])
    assert len(colors) == 500
    assert set(colors.values()) == set(PALETTE)


def test_text_has_the_better_contrast_of_black_and_white() -> None:
    def luminance(color: tuple[int, int, int]) -> float:
        r, g, b = ((c / 255 / 12.92) if c <= 10 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in color)
        return 0.2126 * r + 0.7152 * g + 0.0722 * b

    for color in PALETTE:
        light, dark = sorted((luminance(color), luminance(text_color(color))), reverse=True)
        assert (light + 0.05) / (dark + 0.05) >= 4.5
    assert len(set(PALETTE)) == len(PALETTE)


def test_nine_hundred_boxes_take_seconds() -> None:
    start = time.process_time()
    draw_detections(Image.new("RGB", (800, 600), GREY), crowd(900, (800, 600)))
    assert time.process_time() - start < 10
