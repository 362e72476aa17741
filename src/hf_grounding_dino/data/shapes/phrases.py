"""Descriptions of objects in words, and the closed vocabulary that all prompts are made of."""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Final, TypeVar

import numpy as np

from .drawing import Box
from .scene import COLORS, FILLS, SHAPES, SIZES, Scene, ShapeObject

CharSpan = tuple[int, int]
Item = TypeVar("Item")

NUMBER_WORDS: Final = (
    *("zero", "one", "two", "three", "four", "five", "six"),
    *("seven", "eight", "nine", "ten", "eleven", "twelve"),
)
_IRREGULAR_PLURALS: Final = {"cross": "crosses"}
_VOWELS: Final = "aeiou"

_GENERATED_WORDS: Final = (
    "a an and are at below bottom above biggest closest far furthest here highest in is largest left leftmost lower "
    "lowest object of on over picture right rightmost see shows side smallest some that the there this to top topmost "
    "under upper we with"
)
_LIKELY_WORDS: Final = (
    "all any background behind beneath beside between big bigger by center color colored corner dark every find first "
    "for found from front has image inside it large last light little locate many middle near nearest next no not "
    "objects or other outside photo second shape shapes showing shown small smaller thing things third tiny two up "
    "down what where which who"
)


def plural(noun: str) -> str:
    """The plural of a shape name or of "object"."""
    return _IRREGULAR_PLURALS.get(noun, noun + "s")


VOCABULARY: Final[tuple[str, ...]] = tuple(
    sorted(
        {
            *(".", ",", "?"),
            *(*SHAPES, *COLORS, *SIZES, *FILLS, *NUMBER_WORDS),
            *(plural(shape) for shape in SHAPES),
            *(*_GENERATED_WORDS.split(), *_LIKELY_WORDS.split()),
        }
    )
)
"""Every word and mark that a prompt can hold, and common words that a user may add; sorted, lower case."""

NAMING_WORDS: Final = frozenset({
    *("object", "big"),
    *(*SHAPES, *COLORS, *SIZES, *FILLS),
    *(plural(shape) for shape in SHAPES),
})  # fmt: skip
"""The words of prompts that say what a thing is or looks like; every phrase that has a box holds one."""

OTHER_WORDS: Final = frozenset({*NUMBER_WORDS, *_GENERATED_WORDS.split()}) - NAMING_WORDS
"""The other words of prompts: articles, numbers, places."""


@dataclass(frozen=True)
class Grounding:
    """A prompt and the boxes it names in one scene.

    `boxes` are xyxy in pixels. For a label prompt `text` is a tuple of labels and `class_labels` gives each box's
    position in it; for a sentence `text` is a string and `spans` gives each box's phrases as (start, end) characters,
    end exclusive. The one of the two that does not apply is None.
    """

    text: tuple[str, ...] | str
    boxes: tuple[Box, ...]
    class_labels: tuple[int, ...] | None = None
    spans: tuple[tuple[CharSpan, ...], ...] | None = None


@dataclass(frozen=True)
class Description:
    """What is said of an object; an attribute that is None is left open."""

    shape: str | None = None
    color: str | None = None
    size: str | None = None
    fill: str | None = None

    def matches(self, item: ShapeObject) -> bool:
        """Whether all that is said is true of the object."""
        return all(said in (None, getattr(item, name)) for name, said in vars(self).items())

    def found_in(self, scene: Scene) -> tuple[int, ...]:
        """The positions of all objects in the scene that it is true of."""
        return tuple(i for i, item in enumerate(scene.objects) if self.matches(item))

    def words(self, *, many: bool = False, big: bool = False) -> str:
        """Its words without an article, such as "small striped red star"; `big` says "big" for "large"."""
        noun = self.shape or "object"
        size = "big" if big and self.size == "large" else self.size
        given = (size, self.fill, self.color, plural(noun) if many else noun)
        return " ".join(word for word in given if word)


def describe(item: ShapeObject, attributes: Collection[str]) -> Description:
    """A description of the object by the named attributes ("shape", "color", "size", "fill")."""
    return Description(**{name: getattr(item, name) for name in attributes})


def with_article(words: str) -> str:
    """The words after "a" or "an"."""
    return f"an {words}" if words[0] in _VOWELS else f"a {words}"


def pick(items: Sequence[Item], rng: np.random.Generator) -> Item:
    """One of the items, each equally likely."""
    return items[int(rng.integers(len(items)))]


def shuffled(items: Iterable[Item], rng: np.random.Generator) -> list[Item]:
    """The items in a random order."""
    ordered = list(items)
    return [ordered[i] for i in rng.permutation(len(ordered))]
