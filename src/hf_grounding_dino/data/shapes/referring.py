"""Expressions that mean exactly one object of a scene, each checked against the scene before it is used."""

from collections.abc import Callable, Sequence
from itertools import combinations
from typing import Final, NamedTuple

import numpy as np

from .phrases import CharSpan, Description, Grounding, describe, pick, shuffled
from .scene import Scene

POSITION_MARGIN: Final = 0.06
"""By how much, as a fraction of the image's side, an object must be further out than the next one."""
AREA_RATIO: Final = 1.3
"""How many times larger (or smaller) the box of "the largest" ("the smallest") is than the next one's."""

_TRIES: Final = 10
_ATTRIBUTES: Final = ("shape", "color", "size", "fill")
_SUBSETS: Final = tuple(
    subset for count in range(1, 5) for subset in combinations(_ATTRIBUTES, count) if "shape" in subset or count > 1
)
_OBJECT_SUBSETS: Final = (("color",), ("fill",))
_GROUP_SUBSETS: Final = tuple(
    tuple(subset.split()) for subset in ("shape", "shape", "color shape", "color shape", "color", "fill shape", "fill")
)
_ANCHOR_SUBSETS: Final = tuple(
    tuple(subset.split()) for subset in ("shape", "color shape", "size color shape", "fill color shape")
)

_Found = tuple[str, int]
"""An expression and the position of the object it means."""


class _Direction(NamedTuple):
    """A side of the image: its axis (0 across, 1 down), its sense, and how it is said."""

    axis: int
    sign: int
    superlatives: tuple[str, ...]
    plain: tuple[str, ...]
    relations: tuple[str, ...]


def _across(side: str, sign: int) -> _Direction:
    superlatives = (f"the {side}most {{}}", f"the {{}} on the far {side}", f"the {{}} furthest to the {side}")
    plain = (f"the {{}} on the {side}", f"the {side} {{}}", f"the {{}} on the {side} side")
    return _Direction(0, sign, superlatives, plain, (f"to the {side} of", f"{side} of"))


_TOP: Final = _Direction(
    1, -1, ("the topmost {}", "the highest {}", "the {} closest to the top"),
    ("the {} at the top", "the top {}", "the upper {}"), ("above", "over"),
)  # fmt: skip
_BOTTOM: Final = _Direction(
    1, 1, ("the lowest {}", "the {} closest to the bottom"),
    ("the {} at the bottom", "the bottom {}", "the lower {}"), ("below", "under"),
)  # fmt: skip
_DIRECTIONS: Final = (_across("left", -1), _across("right", 1), _TOP, _BOTTOM)


def referring_prompt(scene: Scene, rng: np.random.Generator) -> Grounding | None:
    """An expression that is true of exactly one object, by a margin, with the whole of it as the span.

    It names attributes, a position, a largest or smallest one, or a place relative to an object that is itself unique.
    None where no kind of expression works after a few tries, as in a scene of two like objects side by side.
    """
    found = _expression(scene, rng)
    return None if found is None else _sentences([found], scene)


def expressions_prompt(scene: Scene, rng: np.random.Generator, *, most: int = 12) -> Grounding | None:
    """One to `most` different expressions, each as in `referring_prompt` and a sentence of its own.

    An object that several of them mean has several spans. None where no expression works.
    """
    expressions: dict[str, int] = {}
    for _ in range(1 + int(rng.integers(most))):
        found = _expression(scene, rng)
        if found is not None:
            expressions.setdefault(*found)
    return _sentences(list(expressions.items()), scene) if expressions else None


def places_prompt(scene: Scene, rng: np.random.Generator, *, axes: Sequence[int] = (0, 1)) -> Grounding | None:
    """The first and the last of a group of like objects, across (axis 0) and down (1); None where no place is clear.

    Only the place tells these expressions apart, so that nothing else can be learned from them.
    """
    description, members = _group(scene, rng)
    expressions: dict[str, int] = {}
    if len(members) > 1:
        for direction in _DIRECTIONS:
            reach = _reach(scene, members, direction)
            if direction.axis in axes and reach[0][0] - reach[1][0] >= POSITION_MARGIN:
                forms = direction.superlatives + (direction.plain if len(members) == 2 else ())
                expressions[pick(forms, rng).format(description.words())] = reach[0][1]
    return _sentences(list(expressions.items()), scene) if expressions else None


def _expression(scene: Scene, rng: np.random.Generator) -> _Found | None:
    draws = rng.exponential(1.0, len(_KINDS)) / [weight for _, weight in _KINDS]
    for kind in np.argsort(draws).tolist():
        for _ in range(_TRIES):
            found = _KINDS[kind][0](scene, rng)
            if found is not None:
                return found
    return None


def _sentences(expressions: Sequence[_Found], scene: Scene) -> Grounding:
    text = ""
    spans: dict[int, list[CharSpan]] = {}
    for words, target in expressions:
        text += " " if text else ""
        spans.setdefault(target, []).append((len(text), len(text) + len(words)))
        text += words + "."
    boxes = tuple(scene.objects[target].box for target in spans)
    return Grounding(text, boxes, spans=tuple(tuple(of_target) for of_target in spans.values()))


def _group(scene: Scene, rng: np.random.Generator) -> tuple[Description, tuple[int, ...]]:
    """A short description of a random object, and all objects it is true of."""
    description = describe(pick(scene.objects, rng), pick(_GROUP_SUBSETS, rng))
    return description, description.found_in(scene)


def _along(scene: Scene, item: int, direction: _Direction) -> float:
    """How far out an object's centre lies in a direction, as a signed fraction of the image's side."""
    side = (scene.width, scene.height)[direction.axis]
    return direction.sign * scene.objects[item].center[direction.axis] / side


def _reach(scene: Scene, members: Sequence[int], direction: _Direction) -> list[tuple[float, int]]:
    """How far out each object lies and which it is, the outermost first."""
    return sorted(((_along(scene, i, direction), i) for i in members), reverse=True)


def _by_attributes(scene: Scene, rng: np.random.Generator) -> _Found | None:
    """The fewest attributes that suffice, or any that do."""
    target = int(rng.integers(len(scene.objects)))
    subsets = shuffled((*_SUBSETS, *_OBJECT_SUBSETS), rng)
    if rng.random() < 0.5:
        subsets.sort(key=len)
    for subset in subsets:
        description = describe(scene.objects[target], subset)
        if description.found_in(scene) == (target,):
            return _say_attributes(description, rng), target
    return None


def _say_attributes(description: Description, rng: np.random.Generator) -> str:
    style = float(rng.random())
    if style < 0.15 and description.shape and description.color:
        rest = Description(shape=description.shape, size=description.size, fill=description.fill)
        return f"the {rest.words()} that is {description.color}"
    words = description.words(big=rng.random() < 0.3)
    return words if style > 0.85 else f"the {words}"


def _by_position(scene: Scene, rng: np.random.Generator) -> _Found | None:
    description, members = _group(scene, rng)
    if len(members) < 2:
        return None
    direction = pick(_DIRECTIONS, rng)
    reach = _reach(scene, members, direction)
    if reach[0][0] - reach[1][0] < POSITION_MARGIN:
        return None
    # "On the left" also fits the second of three that lie there, so it needs a pair or a half for itself.
    middle = direction.sign * 0.5
    alone = reach[0][0] > middle >= reach[1][0]
    forms = direction.superlatives + (direction.plain if alone or len(members) == 2 else ())
    return pick(forms, rng).format(description.words()), reach[0][1]


def _by_extreme_size(scene: Scene, rng: np.random.Generator) -> _Found | None:
    description, members = _group(scene, rng)
    if len(members) < 2:
        return None
    by_area = sorted((scene.objects[i].area, i) for i in members)
    forms: tuple[str, ...]
    if rng.random() < 0.5:
        (first, target), (second, _) = by_area[:2]
        forms, ratio = ("smallest",), second / first
    else:
        (second, _), (first, target) = by_area[-2:]
        forms, ratio = ("largest", "biggest"), first / second
    if ratio < AREA_RATIO:
        return None
    return f"the {pick(forms, rng)} {description.words()}", target


def _by_relation(scene: Scene, rng: np.random.Generator) -> _Found | None:
    description, members = _group(scene, rng)
    # Where the description alone would do, the relation teaches little; such ones are kept rare.
    if len(members) < 2 and rng.random() < 0.9:
        return None
    anchored = _unique_anchor(scene, rng)
    if anchored is None:
        return None
    anchor_words, anchor = anchored
    direction = pick(_DIRECTIONS, rng)
    others = [i for i in members if i != anchor]
    related = [i for i in others if _may_relate(scene, i, anchor, direction)]
    if len(related) != 1 or not _clearly_relates(scene, related[0], anchor, direction):
        return None
    return f"the {description.words()} {pick(direction.relations, rng)} the {anchor_words}", related[0]


def _unique_anchor(scene: Scene, rng: np.random.Generator) -> tuple[str, int] | None:
    """An object in the fewest words that mean no other one; its shape is always said."""
    anchor = int(rng.integers(len(scene.objects)))
    # Where the shape alone would do, the color is still said half of the time.
    for subset in _ANCHOR_SUBSETS[int(rng.integers(2)) :]:
        description = describe(scene.objects[anchor], subset)
        if description.found_in(scene) == (anchor,):
            return description.words(), anchor
    return None


def _may_relate(scene: Scene, item: int, anchor: int, direction: _Direction) -> bool:
    """Whether someone might say that the item lies on that side of the anchor."""
    return _along(scene, item, direction) > _along(scene, anchor, direction) - 0.02


def _clearly_relates(scene: Scene, item: int, anchor: int, direction: _Direction) -> bool:
    """Whether everyone would: beyond the margin, and not mainly across the direction."""
    ahead = _along(scene, item, direction) - _along(scene, anchor, direction)
    ahead_pixels = ahead * (scene.width, scene.height)[direction.axis]
    across = 1 - direction.axis
    aside_pixels = abs(scene.objects[item].center[across] - scene.objects[anchor].center[across])
    return ahead >= POSITION_MARGIN and ahead_pixels >= 0.6 * aside_pixels


_KINDS: Final[tuple[tuple[Callable[[Scene, np.random.Generator], _Found | None], float], ...]] = (
    (_by_attributes, 0.20),
    (_by_position, 0.25),
    (_by_extreme_size, 0.15),
    (_by_relation, 0.40),
)
