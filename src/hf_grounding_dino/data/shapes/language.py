"""Prompts for a scene: lists of labels, and captions."""

from typing import Final

import numpy as np

from .phrases import NUMBER_WORDS, CharSpan, Description, Grounding, describe, pick, shuffled, with_article
from .scene import ALL_PAIRS, COLORS, SEEN_PAIRS, SHAPES, Pair, Scene, ShapeObject, category_name

_Phrase = tuple[str, tuple[int, ...]]

_SINGULAR_OPENINGS: Final = ("there is ", "here is ")
_PLURAL_OPENINGS: Final = ("there are ", "here are ")
_OPENINGS: Final = ("", "", "", "a picture of ", "this picture shows ", "the picture shows ", "we see ", "here we see ")
_ENDINGS: Final = ("", "", "", "", " in the picture", " in this picture")
_LAST_JOINTS: Final = (" and ", " and ", ", and ", " with ", ", ")
_DISTRACTOR_RATE: Final = 0.2


def detection_prompt(scene: Scene, rng: np.random.Generator, *, max_negatives: int = 55) -> Grounding:
    """A shuffled list of labels: all that are present, and some that are not.

    Labels are pairs ("red circle", 75 %), shapes ("circle", 15 %) or colors ("red object", 10 %). Half of the time as
    many absent labels as allowed are added, else a random number up to `max_negatives`. For a scene of the split
    "train" no label names an unseen pair.
    """
    kind = float(rng.random())
    if kind < 0.75:
        names = [category_name(*pair) for pair in _sayable_pairs(scene)]
        named = [item.name for item in scene.objects]
    elif kind < 0.9:
        names, named = list(SHAPES), [item.shape for item in scene.objects]
    else:
        names, named = [f"{color} object" for color in COLORS], [f"{item.color} object" for item in scene.objects]
    present = set(named)
    absent = shuffled((name for name in names if name not in present), rng)
    most = min(max_negatives, len(absent))
    count = most if rng.random() < 0.5 else int(rng.integers(most + 1))
    labels = shuffled([*sorted(present), *absent[:count]], rng)
    position = {label: i for i, label in enumerate(labels)}
    return Grounding(
        text=tuple(labels),
        boxes=tuple(item.box for item in scene.objects),
        class_labels=tuple(position[name] for name in named),
    )


def caption_prompt(scene: Scene, rng: np.random.Generator) -> Grounding:
    """A sentence that names one to four groups of objects, each phrase linked to every object it is true of.

    One sentence in five also names something absent, in a phrase without a box. No object belongs to two phrases.
    """
    phrases = _present_phrases(scene, int(rng.integers(1, 5)), rng)
    if rng.random() < _DISTRACTOR_RATE:
        phrases.insert(int(rng.integers(len(phrases) + 1)), (_absent_phrase(scene, rng), ()))
    text = _opening(phrases[0], rng)
    last_joint = pick(_LAST_JOINTS, rng)
    boxes, spans = [], []
    for number, (words, members) in enumerate(phrases):
        if number:
            text += last_joint if number == len(phrases) - 1 else ", "
        span: CharSpan = (len(text), len(text) + len(words))
        text += words
        boxes += [scene.objects[i].box for i in members]
        spans += [(span,)] * len(members)
    # An opening that already speaks of the image would repeat it at the end.
    text += "" if "picture" in text else pick(_ENDINGS, rng)
    return Grounding(text=text + ".", boxes=tuple(boxes), spans=tuple(spans))


def _sayable_pairs(scene: Scene) -> tuple[Pair, ...]:
    return SEEN_PAIRS if scene.split == "train" else ALL_PAIRS


def _present_phrases(scene: Scene, wanted: int, rng: np.random.Generator) -> list[_Phrase]:
    phrases: list[_Phrase] = []
    taken: set[int] = set()
    for item in shuffled(scene.objects, rng):
        description = _loose_description(item, rng)
        members = description.found_in(scene)
        if taken.isdisjoint(members):
            phrases.append((_counted(description, len(members), rng), members))
            taken.update(members)
        if len(phrases) == wanted:
            break
    return phrases


def _loose_description(item: ShapeObject, rng: np.random.Generator) -> Description:
    extra = [name for name in ("size", "fill") if rng.random() < 0.3]
    return describe(item, ["shape", "color", *extra])


def _counted(description: Description, count: int, rng: np.random.Generator) -> str:
    words = description.words(many=count > 1, big=rng.random() < 0.3)
    if count > 1:
        return f"{NUMBER_WORDS[count] if rng.random() < 0.8 else 'some'} {words}"
    return f"one {words}" if rng.random() < 0.15 else with_article(words)


def _absent_phrase(scene: Scene, rng: np.random.Generator) -> str:
    """A phrase of a pair that is not in the scene; half of the time one that shares a word with an object."""
    present = {(item.color, item.shape) for item in scene.objects}
    absent = [pair for pair in _sayable_pairs(scene) if pair not in present]
    if rng.random() < 0.5:
        model = pick(scene.objects, rng)
        absent = [pair for pair in absent if model.color == pair[0] or model.shape == pair[1]] or absent
    color, shape = pick(absent, rng)
    return with_article(category_name(color, shape))


def _opening(first: _Phrase, rng: np.random.Generator) -> str:
    if rng.random() < 0.25:
        return pick(_PLURAL_OPENINGS if len(first[1]) > 1 else _SINGULAR_OPENINGS, rng)
    return pick(_OPENINGS, rng)
