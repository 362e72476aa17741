"""Shapes: the pictures, boxes and sentences made from a seed say what is true, and never what the split withholds."""

import re
from collections.abc import Callable, Iterator
from functools import partial

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


def scenes(count: int, split: Split = "train", seed: int = 3) -> Iterator[Scene]:
    return (generate_scene(seed, index, split=split) for index in range(count))


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
    def test_equal_arguments_give_equal_scenes(self) -> None:
        first, second = generate_scene(5, 9), generate_scene(5, 9)
        assert first.objects == second.objects
        assert first.image.tobytes() == second.image.tobytes()

    @pytest.mark.parametrize(("seed", "index", "split"), [(6, 9, "train"), (5, 10, "train"), (5, 9, "val")])
    def test_another_seed_index_or_split_gives_another_scene(self, seed: int, index: int, split: Split) -> None:
        first = generate_scene(5, 9, size=(128, 128))
        second = generate_scene(seed, index, split=split, size=(128, 128))
        assert first.image.tobytes() != second.image.tobytes()
        assert first.objects != second.objects

    def test_given_and_drawn_sizes(self) -> None:
        assert generate_scene(0, 0, size=(200, 96)).image.size == (200, 96)
        for scene in scenes(100):
            assert 128 <= min(scene.image.size) <= max(scene.image.size) <= 256
            assert 0.66 <= scene.width / scene.height <= 1.51

    def test_object_counts_cover_the_range(self) -> None:
        counts = {len(scene.objects) for scene in scenes(400)}
        assert min(counts) == 1
        assert 10 <= max(counts) <= 12

    @pytest.mark.parametrize("split", ["train", "val"])
    def test_seen_splits_never_show_an_unseen_pair(self, split: Split) -> None:
        shown = {item.name for scene in scenes(300, split) for item in scene.objects}
        assert shown == set(CATEGORIES) - UNSEEN_NAMES

    def test_unseen_split_shows_one_in_every_scene_and_half_in_all(self) -> None:
        shown = [[item.name in UNSEEN_NAMES for item in scene.objects] for scene in scenes(300, "unseen")]
        assert all(any(unseen) for unseen in shown)
        everything = [unseen for scene in shown for unseen in scene]
        assert 0.4 < sum(everything) / len(everything) < 0.75

    def test_unseen_pairs_use_each_color_and_shape_once(self) -> None:
        assert {color for color, _ in UNSEEN_PAIRS} == set(COLORS)
        assert {shape for _, shape in UNSEEN_PAIRS} == set(SHAPES)
        assert len(UNSEEN_PAIRS) == 8
        assert len(SEEN_PAIRS) == 56

    def test_boxes_lie_inside_and_have_the_size_they_are_called(self) -> None:
        for scene in scenes(200):
            for item in scene.objects:
                x1, y1, x2, y2 = item.box
                assert 0 <= x1 < x2 <= scene.width
                assert 0 <= y1 < y2 <= scene.height
                low, high = (bound * min(scene.image.size) for bound in SIZES[item.size])
                assert low - 0.5 <= max(x2 - x1, y2 - y1) <= high + 0.5

    @pytest.mark.parametrize("shape", SHAPES)
    @pytest.mark.parametrize("fill", FILLS)
    def test_bounds_are_tight_around_the_drawn_pixels(self, shape: str, fill: str) -> None:
        """On each side the drawn pixels reach the box to within a pixel, and none lies outside it."""
        sprite = draw_sprite(Look(shape, fill, 60.0, (255, 0, 0), (128, 0, 0)), np.random.default_rng(2))
        drawn = np.argwhere(np.asarray(sprite.alpha) > 0)
        top, left = drawn.min(axis=0)
        bottom, right = drawn.max(axis=0) + 1
        np.testing.assert_allclose(sprite.bounds, (left, top, right, bottom), atol=1.0)
        assert sprite.bounds[2] <= right
        assert sprite.bounds[3] <= bottom

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
            nearest = int(np.argmin(np.abs(palette - patch).sum(axis=1)))
            assert list(COLORS)[nearest] == item.color

    def test_most_of_each_object_stays_visible(self) -> None:
        """At least 60 % of each object's drawn pixels are left by the later ones, and all of them by its own color."""
        rng = np.random.default_rng(4)
        for _ in range(30):
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

    @pytest.mark.parametrize("arguments", [{"seed": -1}, {"index": -1}, {"split": "test"}], ids=lambda item: str(item))
    def test_refusals(self, arguments: dict[str, object]) -> None:
        with pytest.raises(ValueError, match="must be"):
            generate_scene(**{"seed": 0, "index": 0, **arguments})  # type: ignore[arg-type]

    def test_too_small_an_image_is_refused(self) -> None:
        with pytest.raises(ValueError, match="at least 64 pixels, not 20"):
            generate_scene(0, 0, size=(20, 200))


class TestPrompts:
    @pytest.mark.parametrize("prompt", PROMPTS)
    def test_equal_generators_give_equal_prompts(self, prompt: Prompt) -> None:
        for scene in scenes(10):
            assert prompt(scene, np.random.default_rng(1)) == prompt(scene, np.random.default_rng(1))

    @pytest.mark.parametrize("prompt", PROMPTS)
    @pytest.mark.parametrize("split", ["train", "unseen"])
    def test_words_come_from_the_vocabulary(self, prompt: Prompt, split: Split) -> None:
        words = {
            word
            for _, grounding in prompts(200, split, prompt)
            for word in re.findall(r"\w+|[^\w\s]", sentence(grounding))
        }
        assert words <= set(VOCABULARY)
        assert list(VOCABULARY) == sorted(set(VOCABULARY))

    @pytest.mark.parametrize("prompt", PROMPTS)
    def test_training_prompts_never_name_an_unseen_pair(self, prompt: Prompt) -> None:
        names = [f"{color} {shape}" for color, shape in UNSEEN_PAIRS]
        for _, grounding in prompts(200, "train", prompt):
            assert not any(name in sentence(grounding) for name in names)

    def test_labels_are_unique_and_point_at_what_the_object_is(self) -> None:
        kinds = set()
        for scene, grounding in prompts(300, "val", detection_prompt):
            assert len(set(grounding.text)) == len(grounding.text)
            assert grounding.class_labels is not None
            assert grounding.boxes == tuple(item.box for item in scene.objects)
            for item, label in zip(scene.objects, grounding.class_labels, strict=True):
                assert grounding.text[label] in (item.name, item.shape, f"{item.color} object")
            kinds.add((grounding.text[0] in SHAPES, grounding.text[0].endswith("object")))
            absent = set(grounding.text) - {grounding.text[label] for label in grounding.class_labels}
            assert not any(item in said_of(name, scene) for name in absent for item in scene.objects)
        assert len(kinds) == 3

    def test_number_of_absent_labels(self) -> None:
        for scene in scenes(50):
            grounding = detection_prompt(scene, np.random.default_rng(scene.index), max_negatives=3)
            assert grounding.class_labels is not None
            assert len(grounding.text) - len(set(grounding.class_labels)) <= 3

    def test_caption_phrases_are_true_of_exactly_their_boxes(self) -> None:
        """The words of each span, after the article or the number, describe its boxes and no other object."""
        for scene, grounding in prompts(250, "train", caption_prompt):
            assert isinstance(grounding.text, str)
            assert grounding.text.endswith(".")
            assert grounding.spans is not None
            linked: dict[tuple[int, int], list[tuple[float, ...]]] = {}
            for box, (span,) in zip(grounding.boxes, grounding.spans, strict=True):
                linked.setdefault(span, []).append(box)
            for (start, end), boxes in linked.items():
                number, words = grounding.text[start:end].split(" ", 1)
                assert grounding.text[end] in " ,."
                assert number in ("some", "a", "an", "one") or NUMBERS[number] == len(boxes)
                assert (len(boxes) > 1) == (words.split()[-1] in PLURALS)
                assert sorted(boxes) == sorted(item.box for item in said_of(words, scene))

    def test_some_captions_name_something_absent(self) -> None:
        absent = 0
        for scene, grounding in prompts(300, "train", caption_prompt):
            assert grounding.spans is not None
            named = re.findall(rf"({'|'.join(COLORS)}) ({'|'.join(SHAPES)})", sentence(grounding))
            absent += any(not said_of(" ".join(pair), scene) for pair in named)
        assert 0.1 < absent / 300 < 0.3


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
        for scene, grounding in prompts(600, split, referring_prompt):
            text = sentence(grounding)
            kind, target = expected_target(text, scene)
            assert grounding.boxes == (target.box,), text
            assert grounding.spans == (((0, len(text) - 1),),)
            kinds[kind] = kinds.get(kind, 0) + 1
        assert min(kinds[kind] for kind in ("relation", "superlative", "position", "attributes")) > 40

    def test_several_expressions_each_mean_their_own_box(self) -> None:
        counts = []
        for scene, grounding in prompts(200, "train", expressions_prompt):
            text = sentence(grounding)
            assert grounding.spans is not None
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
        for scene, grounding in prompts(150, "train", partial(places_prompt, axes=axes)):
            text = sentence(grounding)
            assert grounding.spans is not None
            for box, spans in zip(grounding.boxes, grounding.spans, strict=True):
                for start, end in spans:
                    assert expected_target(text[start : end + 1], scene)[1].box == box, text
            axis_of = {axis for axis, some in words.items() if any(word in text for word in some)}
            assert axis_of <= set(axes)
            said |= axis_of
            most = max(most, text.count("."))
        assert said == set(axes)
        assert most == 2 * len(axes)

    def test_a_lone_object_has_no_place(self) -> None:
        item = ShapeObject("ring", "red", "small", "filled", (10.0, 10.0, 30.0, 30.0))
        other = ShapeObject("star", "blue", "large", "striped", (50.0, 50.0, 90.0, 90.0))
        scene = Scene(Image.new("RGB", (100, 100)), (item, other), "train", 0, 0)
        for seed in range(20):
            found = places_prompt(scene, np.random.default_rng(seed))
            assert found is None or "object" in str(found.text)

    def test_two_like_objects_at_one_place_allow_none(self) -> None:
        item = ShapeObject("ring", "red", "small", "filled", (10.0, 10.0, 30.0, 30.0))
        scene = Scene(Image.new("RGB", (100, 100)), (item, item), "train", 0, 0)
        assert referring_prompt(scene, np.random.default_rng(0)) is None
        assert expressions_prompt(scene, np.random.default_rng(0)) is None
        assert places_prompt(scene, np.random.default_rng(0)) is None
