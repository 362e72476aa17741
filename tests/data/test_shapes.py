"""Shapes: the pictures, boxes and sentences made from a seed say what is true, and never what the split withholds."""

import re
from collections.abc import Callable, Iterator
from functools import cache, partial

import numpy as np
import pytest
from PIL import Image

from hf_grounding_dino.data.shapes import (
    CATEGORIES,
    COLORS,
    FILLS,
    SHAPES,
    SIZES,
    UNSEEN_PAIRS,
    VOCABULARY,
    Grounding,
    Scene,
    ShapeObject,
    Split,
    caption_prompt,
    category_name,
    detection_prompt,
    expressions_prompt,
    generate_scene,
    places_prompt,
    referring_prompt,
)
from hf_grounding_dino.data.shapes.drawing import Look, draw_sprite
from hf_grounding_dino.data.shapes.scene import SEEN_PAIRS, _Table

UNSEEN_NAMES = {category_name(*pair) for pair in UNSEEN_PAIRS}
PLURALS = {"crosses": "cross", "objects": "object", **{shape + "s": shape for shape in SHAPES if shape != "cross"}}
NUMBERS = dict(
    zip(
        ("two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"),
        range(2, 13),
        strict=True,
    )
)

Prompt = Callable[[Scene, np.random.Generator], Grounding | None]
PROMPTS: tuple[Prompt, ...] = (detection_prompt, caption_prompt, referring_prompt)


@cache
def scene_of(split: Split, index: int) -> Scene:
    return generate_scene(3, index, split=split)


def scenes(count: int, split: Split = "train") -> Iterator[Scene]:
    return (scene_of(split, index) for index in range(count))


def prompts(count: int, split: Split, prompt: Prompt) -> Iterator[tuple[Scene, Grounding]]:
    for scene in scenes(count, split):
        grounding = prompt(scene, np.random.default_rng(scene.index))
        if grounding is not None:
            yield scene, grounding


def sentence(grounding: Grounding) -> str:
    return grounding.text if isinstance(grounding.text, str) else ". ".join(grounding.text) + "."


def said_of(words: str, scene: Scene) -> list[ShapeObject]:
    """All objects that fit a plain description, read word by word; "object" leaves the shape open."""
    found = list(scene.objects)
    for word in words.replace("that is ", "").split():
        word = PLURALS.get(word, word)
        word = "large" if word == "big" else word
        if word != "object":
            assert word in (*SHAPES, *COLORS, *SIZES, *FILLS), word
            found = [item for item in found if word in (item.shape, item.color, item.size, item.fill)]
    return found


class TestScenes:
    def test_a_scene_depends_on_its_seed_index_and_split_alone(self) -> None:
        first, second = generate_scene(5, 9, size=(128, 128)), generate_scene(5, 9, size=(128, 128))
        assert first.objects == second.objects and first.image.tobytes() == second.image.tobytes()
        for seed, index, split in ((6, 9, "train"), (5, 10, "train"), (5, 9, "val")):
            other = generate_scene(seed, index, split=split, size=(128, 128))
            assert first.image.tobytes() != other.image.tobytes() and first.objects != other.objects

    def test_sizes_counts_and_boxes_keep_their_ranges(self) -> None:
        """Boxes lie inside, and their longer side is as they are called."""
        assert generate_scene(0, 0, size=(200, 96)).image.size == (200, 96)
        for scene in scenes(200):
            assert 128 <= min(scene.image.size) <= max(scene.image.size) <= 256
            assert 0.66 <= scene.width / scene.height <= 1.51
            for item in scene.objects:
                x1, y1, x2, y2 = item.box
                assert 0 <= x1 < x2 <= scene.width and 0 <= y1 < y2 <= scene.height
                low, high = (bound * min(scene.image.size) for bound in SIZES[item.size])
                assert low - 0.5 <= max(x2 - x1, y2 - y1) <= high + 0.5
        counts = {len(scene.objects) for scene in scenes(200)}
        assert min(counts) == 1 and 10 <= max(counts) <= 12

    def test_an_unseen_pair_is_shown_by_its_split_alone_and_there_in_every_scene(self) -> None:
        """Half of all objects there are of such a pair."""
        for split in ("train", "val"):
            shown = {item.name for scene in scenes(200, split) for item in scene.objects}
            assert shown == set(CATEGORIES) - UNSEEN_NAMES
        unseen = [[item.name in UNSEEN_NAMES for item in scene.objects] for scene in scenes(200, "unseen")]
        assert all(any(scene) for scene in unseen)
        everything = [one for scene in unseen for one in scene]
        assert 0.4 < sum(everything) / len(everything) < 0.75

    @pytest.mark.parametrize("shape", SHAPES)
    @pytest.mark.parametrize("fill", FILLS)
    def test_bounds_are_tight_around_the_drawn_pixels(self, shape: str, fill: str) -> None:
        """On each side the drawn pixels reach the box to within a pixel, and none lies outside it."""
        sprite = draw_sprite(Look(shape, fill, 60.0, (255, 0, 0), (128, 0, 0)), np.random.default_rng(2))
        drawn = np.argwhere(np.asarray(sprite.alpha) > 0)
        top, left = drawn.min(axis=0)
        bottom, right = drawn.max(axis=0) + 1
        np.testing.assert_allclose(sprite.bounds, (left, top, right, bottom), atol=1.0)
        assert sprite.bounds[2] <= right and sprite.bounds[3] <= bottom

    def test_the_color_of_a_filled_object_shows_in_its_box(self) -> None:
        """The pixels of the last object, which nothing covers, are nearest to its own color name.

        A ring is left out, since its middle is background.
        """
        palette = np.array(list(COLORS.values()))
        for scene in scenes(150):
            item = scene.objects[-1]
            if item.fill != "filled" or item.shape == "ring":
                continue
            x, y = (int(value) for value in item.center)
            patch = np.asarray(scene.image)[y - 2 : y + 3, x - 2 : x + 3].reshape(-1, 3).mean(axis=0)
            assert list(COLORS)[int(np.argmin(np.abs(palette - patch).sum(axis=1)))] == item.color

    def test_most_of_each_object_stays_visible(self) -> None:
        """At least 60 % of each object's drawn pixels are left by the later ones, and all of them by its own color."""
        rng = np.random.default_rng(4)
        for _ in range(15):
            table = _Table(128, 160)
            for pair in [SEEN_PAIRS[i] for i in rng.integers(len(SEEN_PAIRS), size=25)]:
                table.place(pair, crowded=False, rng=rng)
            top = np.full((160, 128), -1)
            drawn = []
            for number, (sprite, (x, y)) in enumerate(table.sprites):
                whole = np.zeros((160, 128), dtype=bool)
                height, width = sprite.footprint.shape
                whole[y : y + height, x : x + width] = sprite.footprint
                color = table.objects[number].color
                same_color = [i for i, item in enumerate(table.objects[:number]) if item.color == color]
                assert not np.isin(top[whole], same_color).any()
                top[whole] = number
                drawn.append(np.count_nonzero(whole))
            assert all(np.count_nonzero(top == number) >= 0.6 * whole for number, whole in enumerate(drawn))

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"seed": -1}, "must be"),
            ({"index": -1}, "must be"),
            ({"split": "test"}, "must be"),
            ({"size": (20, 200)}, "at least 64 pixels, not 20"),
        ],
    )
    def test_refusals(self, arguments: dict[str, object], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            generate_scene(**{"seed": 0, "index": 0, **arguments})


class TestPrompts:
    @pytest.mark.parametrize("prompt", PROMPTS)
    def test_prompts_follow_their_generator_and_keep_to_the_vocabulary(self, prompt: Prompt) -> None:
        """And in training none names an unseen pair."""
        assert list(VOCABULARY) == sorted(set(VOCABULARY))
        for split in ("train", "unseen"):
            for scene, grounding in prompts(100, split, prompt):
                text = sentence(grounding)
                assert set(re.findall(r"\w+|[^\w\s]", text)) <= set(VOCABULARY)
                assert split == "unseen" or not any(name in text for name in UNSEEN_NAMES)
                if scene.index < 10:
                    assert prompt(scene, np.random.default_rng(scene.index)) == grounding

    def test_labels_are_unique_and_point_at_what_the_object_is(self) -> None:
        kinds = set()
        for scene, grounding in prompts(200, "val", partial(detection_prompt, max_negatives=5)):
            assert len(set(grounding.text)) == len(grounding.text)
            assert grounding.boxes == tuple(item.box for item in scene.objects)
            for item, label in zip(scene.objects, grounding.class_labels, strict=True):
                assert grounding.text[label] in (item.name, item.shape, f"{item.color} object")
            kinds.add((grounding.text[0] in SHAPES, grounding.text[0].endswith("object")))
            absent = set(grounding.text) - {grounding.text[label] for label in grounding.class_labels}
            assert len(absent) <= 5
            assert not any(item in said_of(name, scene) for name in absent for item in scene.objects)
        assert len(kinds) == 3

    def test_caption_phrases_are_true_of_exactly_their_boxes(self) -> None:
        """The words of each span, after the article or the number, describe its boxes and no other object.

        One caption in five also names something that is absent.
        """
        absent = 0
        for scene, grounding in prompts(200, "train", caption_prompt):
            text = sentence(grounding)
            assert text.endswith(".") and grounding.spans is not None
            linked: dict[tuple[int, int], list[tuple[float, ...]]] = {}
            for box, (span,) in zip(grounding.boxes, grounding.spans, strict=True):
                linked.setdefault(span, []).append(box)
            for (start, end), boxes in linked.items():
                number, words = text[start:end].split(" ", 1)
                assert text[end] in " ,."
                assert number in ("some", "a", "an", "one") or NUMBERS[number] == len(boxes)
                assert (len(boxes) > 1) == (words.split()[-1] in PLURALS)
                assert sorted(boxes) == sorted(item.box for item in said_of(words, scene))
            named = re.findall(rf"({'|'.join(COLORS)}) ({'|'.join(SHAPES)})", text)
            absent += any(not said_of(" ".join(pair), scene) for pair in named)
        assert 0.1 < absent / 200 < 0.3


SIDES: dict[str, tuple[int, int]] = {
    **dict.fromkeys(("leftmost", "far left", "furthest to the left", "on the left", "left"), (0, -1)),
    **dict.fromkeys(("rightmost", "far right", "furthest to the right", "on the right", "right"), (0, 1)),
    **dict.fromkeys(("topmost", "highest", "closest to the top", "at the top", "top", "upper"), (1, -1)),
    **dict.fromkeys(("lowest", "closest to the bottom", "at the bottom", "bottom", "lower"), (1, 1)),
}
POSITION = re.compile(
    r"the (?:(leftmost|rightmost|topmost|highest|lowest|left|right|top|bottom|upper|lower) )?([\w ]+?)"
    r"(?: (?:on the )?(far left|far right|(?:furthest|closest) to the \w+|(?:on|at) the \w+)(?: side)?)?\."
)
RELATIONS: dict[str, tuple[int, int]] = {"left of": (0, -1), "right of": (0, 1)} | {
    **dict.fromkeys(("above", "over"), (1, -1)),
    **dict.fromkeys(("below", "under"), (1, 1)),
}
RELATION = re.compile(r"the ([\w ]+?) (?:to the )?(left of|right of|above|over|below|under) the ([\w ]+)\.")


def expected_target(text: str, scene: Scene) -> tuple[str, ShapeObject]:
    """Read an expression from its words alone: its kind and the one object it can mean."""
    extent = (scene.width, scene.height)
    if match := RELATION.fullmatch(text):
        axis, sign = RELATIONS[match[2]]
        (anchor,) = said_of(match[3], scene)
        candidates = [item for item in said_of(match[1], scene) if item is not anchor]
        (target,) = [item for item in candidates if sign * (item.center[axis] - anchor.center[axis]) > 0]
        assert sign * (target.center[axis] - anchor.center[axis]) >= 0.0599 * extent[axis]
        return "relation", target
    if match := re.fullmatch(r"the (largest|biggest|smallest) ([\w ]+)\.", text):
        ordered = sorted(said_of(match[2], scene), key=lambda item: item.area, reverse=match[1] != "smallest")
        ratio = ordered[0].area / ordered[1].area
        assert max(ratio, 1 / ratio) >= 1.2999
        return "superlative", ordered[0]
    match = POSITION.fullmatch(text)
    if match and (match[1] or match[3]):
        axis, sign = SIDES[match[1] or match[3]]
        ordered = sorted(said_of(match[2], scene), key=lambda item: -sign * item.center[axis])
        gap = abs(ordered[0].center[axis] - ordered[1].center[axis])
        assert gap >= 0.0599 * extent[axis]
        return "position", ordered[0]
    (target,) = said_of(text.removeprefix("the ").removesuffix("."), scene)
    return "attributes", target


class TestReferring:
    @pytest.mark.parametrize("split", ["train", "unseen"])
    def test_every_expression_means_its_box_and_no_other(self, split: Split) -> None:
        kinds: dict[str, int] = {}
        for scene, grounding in prompts(200, split, referring_prompt):
            text = sentence(grounding)
            kind, target = expected_target(text, scene)
            assert grounding.boxes == (target.box,), text
            assert grounding.spans == (((0, len(text) - 1),),)
            kinds[kind] = kinds.get(kind, 0) + 1
        assert min(kinds[kind] for kind in ("relation", "superlative", "position", "attributes")) > 13

    def test_several_expressions_each_mean_their_own_box(self) -> None:
        counts = []
        for scene, grounding in prompts(100, "train", expressions_prompt):
            text = sentence(grounding)
            found = []
            for box, spans in zip(grounding.boxes, grounding.spans, strict=True):
                for start, end in spans:
                    assert expected_target(text[start : end + 1], scene)[1].box == box, text
                    found.append(text[start : end + 1])
            assert sorted(found) == sorted(re.findall(r"[^.]+\.", text.replace(". ", "."))), "all of it, nothing twice"
            assert len(set(grounding.boxes)) == len(grounding.boxes)
            counts.append(len(found))
        assert min(counts) == 1
        assert max(counts) == 12

    @pytest.mark.parametrize("axes", [(0, 1), (0,), (1,)])
    def test_places_are_true_and_of_like_objects(self, axes: tuple[int, ...]) -> None:
        """Each is of one group, so only its place says which of them it means; both ends of an axis are asked for."""
        words = {0: ("left", "right"), 1: ("top", "bottom", "upper", "lower", "highest", "lowest")}
        said, most = set(), 0
        for scene, grounding in prompts(100, "train", partial(places_prompt, axes=axes)):
            text = sentence(grounding)
            for box, spans in zip(grounding.boxes, grounding.spans, strict=True):
                for start, end in spans:
                    assert expected_target(text[start : end + 1], scene)[1].box == box, text
            axis_of = {axis for axis, some in words.items() if any(word in text for word in some)}
            assert axis_of <= set(axes)
            said |= axis_of
            most = max(most, text.count("."))
        assert said == set(axes)
        assert most == 2 * len(axes)

    def test_where_nothing_tells_two_apart_there_is_no_expression(self) -> None:
        """A lone object has no place, and of two like ones at one place nothing is said."""
        item = ShapeObject("ring", "red", "small", "filled", (10.0, 10.0, 30.0, 30.0))
        other = ShapeObject("star", "blue", "large", "striped", (50.0, 50.0, 90.0, 90.0))
        apart, alike = (Scene(Image.new("RGB", (100, 100)), (item, two), "train", 0, 0) for two in (other, item))
        for seed in range(20):
            found = places_prompt(apart, np.random.default_rng(seed))
            assert found is None or "object" in str(found.text)
        for prompt in (referring_prompt, expressions_prompt, places_prompt):
            assert prompt(alike, np.random.default_rng(0)) is None
