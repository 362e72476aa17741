"""Scenes of plain shapes, drawn from a seed, with exact boxes."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from .background import Tone, add_noise, paint_background
from .drawing import RGB, Box, Look, Sprite, draw_sprite, readable_fills

Split = Literal["train", "val", "unseen"]
Pair = tuple[str, str]

SHAPES: Final = ("circle", "square", "triangle", "star", "ring", "cross", "heart", "diamond")
COLORS: Final[dict[str, RGB]] = {
    "red": (216, 32, 40),
    "green": (38, 160, 58),
    "blue": (40, 78, 220),
    "yellow": (244, 220, 36),
    "orange": (246, 130, 22),
    "purple": (146, 50, 186),
    "cyan": (48, 212, 222),
    "white": (250, 250, 250),
}
SIZES: Final[dict[str, tuple[float, float]]] = {
    "small": (0.10, 0.14),
    "medium": (0.18, 0.24),
    "large": (0.30, 0.40),
}
"""Range of the longer side of an object's box, as a fraction of the image's shorter side."""
FILLS: Final = ("filled", "outlined", "striped")

UNSEEN_PAIRS: Final[frozenset[Pair]] = frozenset(
    {
        ("red", "triangle"),
        ("green", "diamond"),
        ("blue", "star"),
        ("yellow", "cross"),
        ("orange", "ring"),
        ("purple", "square"),
        ("cyan", "circle"),
        ("white", "heart"),
    }
)
"""Pairs of color and shape that only the split "unseen" shows; each color and each shape occurs once."""

SPLIT_CODES: Final[dict[Split, int]] = {"train": 0, "val": 1, "unseen": 2}
MAX_OBJECTS: Final = 12
MIN_SIDE: Final = 64
"""Shortest side of an image in pixels; below it the small shapes cannot be told apart."""
MIN_VISIBLE: Final = 0.6
"""Every object keeps at least this fraction of its drawn pixels uncovered."""

_SIDE_RANGE: Final = (128, 256)
_MAX_ASPECT: Final = 1.5
_PLACEMENT_TRIES: Final = 8
_BRIGHTEST_TONE: Final[dict[str, float]] = {"white": 150.0, "yellow": 190.0, "cyan": 180.0}


def category_name(color: str, shape: str) -> str:
    """The class name of a pair, such as "red circle"."""
    return f"{color} {shape}"


ALL_PAIRS: Final[tuple[Pair, ...]] = tuple((color, shape) for color in COLORS for shape in SHAPES)
SEEN_PAIRS: Final[tuple[Pair, ...]] = tuple(pair for pair in ALL_PAIRS if pair not in UNSEEN_PAIRS)
CATEGORIES: Final[tuple[str, ...]] = tuple(category_name(*pair) for pair in ALL_PAIRS)
"""The 64 class names, color by color."""


@dataclass(frozen=True)
class ShapeObject:
    """One object: its four attributes, and its xyxy `box` in pixels, tight around the whole shape.

    Parts that a later object covers are inside the box; the box lies inside the image.
    """

    shape: str
    color: str
    size: str
    fill: str
    box: Box

    @property
    def name(self) -> str:
        """Its class name, such as "red circle"."""
        return category_name(self.color, self.shape)

    @property
    def center(self) -> tuple[float, float]:
        """The middle of its box (x, y) in pixels."""
        x1, y1, x2, y2 = self.box
        return (x1 + x2) / 2, (y1 + y2) / 2

    @property
    def area(self) -> float:
        """The area of its box in square pixels."""
        x1, y1, x2, y2 = self.box
        return (x2 - x1) * (y2 - y1)


@dataclass(frozen=True)
class Scene:
    """An image (RGB) and its objects; a later object is drawn over the earlier ones."""

    image: Image.Image
    objects: tuple[ShapeObject, ...]
    split: Split
    seed: int
    index: int

    @property
    def width(self) -> int:
        """Width in pixels."""
        return self.image.width

    @property
    def height(self) -> int:
        """Height in pixels."""
        return self.image.height


def generate_scene(
    seed: int,
    index: int,
    *,
    split: Split = "train",
    size: tuple[int, int] | None = None,
    most_objects: int = MAX_OBJECTS,
) -> Scene:
    """Draw the scene that belongs to its arguments; equal arguments give equal pixels.

    `size` is (width, height) in pixels; None draws sides of 128 to 256 and an aspect of 2:3 to 3:2. "train" and "val"
    show the seen pairs only; in "unseen" about half of the objects, and at least one, are of an unseen pair.

    Raises:
        ValueError: a negative seed or index, an unknown split, or a side below `MIN_SIDE`.
    """
    if seed < 0 or index < 0:
        raise ValueError(f"seed and index must be at least 0, not {seed} and {index}")
    if split not in SPLIT_CODES:
        raise ValueError(f"split must be one of {', '.join(SPLIT_CODES)}, not {split!r}")
    if size is not None and min(size) < MIN_SIDE:
        raise ValueError(f"a side of a scene has at least {MIN_SIDE} pixels, not {min(size)}")
    rng = _rng_of(seed, index, split)
    width, height = size or _draw_size(rng)
    table = _Table(width, height)
    count = min(1 + int(MAX_OBJECTS * rng.random() ** 1.25), most_objects)
    for pair in _draw_pairs(count, split, rng):
        table.place(pair, crowded=count > 4, rng=rng)
    image = paint_background((width, height), _tone(table.objects, rng), rng)
    for sprite, (x, y) in table.sprites:
        image.paste(sprite.pixels, (x, y), sprite.alpha)
    return Scene(add_noise(image, rng), tuple(table.objects), split, seed, index)


def scene_size(seed: int, index: int, *, split: Split = "train") -> tuple[int, int]:
    """(width, height) of the scene that `generate_scene` draws in a size of its own choice."""
    return _draw_size(_rng_of(seed, index, split))


def _rng_of(seed: int, index: int, split: Split) -> np.random.Generator:
    return np.random.default_rng([seed, index, SPLIT_CODES[split], 0])


def _draw_size(rng: np.random.Generator) -> tuple[int, int]:
    lowest, highest = _SIDE_RANGE
    aspect = float(rng.uniform(1, _MAX_ASPECT))
    short = int(rng.uniform(lowest, highest / aspect))
    long = int(short * aspect)
    return (short, long) if rng.random() < 0.5 else (long, short)


def _draw_pairs(count: int, split: Split, rng: np.random.Generator) -> list[Pair]:
    """The objects' colors and shapes; most scenes keep to a few, so that descriptions collide."""
    seen: Sequence[Pair] = SEEN_PAIRS
    unseen: Sequence[Pair] = sorted(UNSEEN_PAIRS)
    if rng.random() < 0.6:
        seen = _few(SEEN_PAIRS, rng)
        unseen = [unseen[i] for i in rng.permutation(len(unseen))[: int(rng.integers(1, 4))]]
    pairs: list[Pair] = []
    for position in range(count):
        # The first object always finds room, so an unseen pair there is never dropped.
        new = split == "unseen" and (position == 0 or rng.random() < 0.5)
        pool = unseen if new else seen
        pairs.append(pool[int(rng.integers(len(pool)))])
    return pairs


def _few(pairs: Sequence[Pair], rng: np.random.Generator) -> Sequence[Pair]:
    """The pairs of two to four colors and one to three shapes; all pairs where those hold none."""
    color_order, shape_order = rng.permutation(len(COLORS)), rng.permutation(len(SHAPES))
    names = list(COLORS)
    colors = {names[i] for i in color_order[: int(rng.integers(2, 5))]}
    shapes = {SHAPES[i] for i in shape_order[: int(rng.integers(1, 4))]}
    return [pair for pair in pairs if pair[0] in colors and pair[1] in shapes] or pairs


def _tone(objects: Sequence[ShapeObject], rng: np.random.Generator) -> Tone:
    """Grey levels that none of the objects' colors comes near; dark, light or anything between."""
    highest = min((_BRIGHTEST_TONE.get(item.color, 236.0) for item in objects), default=236.0)
    middle = float(rng.uniform(22, highest))
    return max(16.0, middle - 50), min(highest, middle + 50)


def _jittered(color: str, rng: np.random.Generator) -> RGB:
    red, green, blue = COLORS[color]
    offset = rng.integers(-9, 10, 3).tolist()
    jittered = [min(255, max(0, level + change)) for level, change in zip((red, green, blue), offset, strict=True)]
    return jittered[0], jittered[1], jittered[2]


def _shade(color: RGB, name: str, rng: np.random.Generator) -> RGB:
    """A clearly darker or lighter tone of the same hue; white can only go darker."""
    if name == "white" or rng.random() < 0.5:
        return int(color[0] * 0.5), int(color[1] * 0.5), int(color[2] * 0.5)
    return (color[0] + 255) // 2, (color[1] + 255) // 2, (color[2] + 255) // 2


class _Table:
    """The image's plane while objects are laid on it: which object is on top of each pixel."""

    def __init__(self, width: int, height: int) -> None:
        self.objects: list[ShapeObject] = []
        self.sprites: list[tuple[Sprite, tuple[int, int]]] = []
        self._short = min(width, height)
        self._top: NDArray[np.int64] = np.zeros((height, width), dtype=np.int64)
        self._drawn: list[int] = []
        self._visible: list[int] = []

    def place(self, pair: Pair, *, crowded: bool, rng: np.random.Generator) -> None:
        """Add one object, or nothing where no room is found within a few tries."""
        color, shape = pair
        draw = float(rng.random())
        small, medium = (0.45, 0.88) if crowded else (0.3, 0.7)
        size = "small" if draw < small else "medium" if draw < medium else "large"
        diameter = self._short * float(rng.uniform(*SIZES[size]))
        fills = readable_fills(shape, diameter)
        fill = fills[int(rng.integers(len(fills)))]
        rgb = _jittered(color, rng)
        sprite = draw_sprite(Look(shape, fill, diameter, rgb, _shade(rgb, color, rng)), rng)
        height, width = self._top.shape
        for _ in range(_PLACEMENT_TRIES):
            x = int(rng.integers(width - sprite.alpha.width + 1))
            y = int(rng.integers(height - sprite.alpha.height + 1))
            if self._lay(sprite, color, x, y):
                left, top, right, bottom = sprite.bounds
                self.objects.append(ShapeObject(shape, color, size, fill, (x + left, y + top, x + right, y + bottom)))
                self.sprites.append((sprite, (x, y)))
                return

    def _lay(self, sprite: Sprite, color: str, x: int, y: int) -> bool:
        """Cover the pixels under the sprite, unless that hides too much of an object or any of its own color."""
        height, width = sprite.footprint.shape
        window = self._top[y : y + height, x : x + width]
        covered = np.bincount(window[sprite.footprint], minlength=len(self.objects) + 1)[1:].tolist()
        drawn = int(np.count_nonzero(sprite.footprint))
        for item, hidden, before, whole in zip(self.objects, covered, self._visible, self._drawn, strict=True):
            if before - hidden < MIN_VISIBLE * whole:
                return False
            if item.color == color and hidden:
                return False
        self._visible = [before - hidden for before, hidden in zip(self._visible, covered, strict=True)]
        self._drawn.append(drawn)
        self._visible.append(drawn)
        window[sprite.footprint] = len(self._drawn)
        return True
