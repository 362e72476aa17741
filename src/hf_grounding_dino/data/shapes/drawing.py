"""One shape drawn on its own small patch, with its coverage and its tight bounds."""

import math
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

Box = tuple[float, float, float, float]
RGB = tuple[int, int, int]
Points = NDArray[np.float64]

RING_HOLE: Final = (0.50, 0.60)
"""Range of a ring's inner radius, as a fraction of its outer radius."""

_LINE_WIDTH: Final = (0.11, 0.14)
_MIN_LINE_PIXELS: Final = 1.5
_FOOTPRINT_LEVEL: Final = 96


def _circle() -> Points:
    angle = np.linspace(0, 2 * np.pi, 48, endpoint=False)
    return np.stack([np.sin(angle), -np.cos(angle)], axis=1)


def _star() -> Points:
    angle = np.arange(10) * np.pi / 5
    radius = np.where(np.arange(10) % 2 == 0, 1.0, 0.44)
    return np.stack([radius * np.sin(angle), -radius * np.cos(angle)], axis=1)


def _cross() -> Points:
    arm = 0.34
    corner = np.array([[-arm, -1.0], [arm, -1.0], [arm, -arm]])
    quarter_turn = np.array([[0.0, 1.0], [-1.0, 0.0]])
    return np.concatenate([corner @ np.linalg.matrix_power(quarter_turn, turn) for turn in range(4)])


def _heart() -> Points:
    angle = np.linspace(0, 2 * np.pi, 40, endpoint=False)
    x = 16 * np.sin(angle) ** 3
    y = 13 * np.cos(angle) - 5 * np.cos(2 * angle) - 2 * np.cos(3 * angle) - np.cos(4 * angle)
    return np.stack([x, -y], axis=1)


_OUTLINES: Final[dict[str, tuple[Points, float]]] = {
    "circle": (_circle(), 0.0),
    "square": (np.array([[-1.0, -1.0], [1.0, -1.0], [1.0, 1.0], [-1.0, 1.0]]), 12.0),
    "triangle": (np.array([[0.0, -1.0], [1.08, 0.87], [-1.08, 0.87]]), 18.0),
    "star": (_star(), 18.0),
    "ring": (_circle(), 0.0),
    "cross": (_cross(), 15.0),
    "heart": (_heart(), 18.0),
    "diamond": (np.array([[0.0, -1.0], [0.7, 0.0], [0.0, 1.0], [-0.7, 0.0]]), 8.0),
}
"""Corner points and the largest rotation in degrees; the rotation keeps a square apart from a diamond."""


class Look(NamedTuple):
    """How a shape is drawn: `diameter` is the longer side of its box in pixels, `shade` the tone of the stripes."""

    shape: str
    fill: str
    diameter: float
    color: RGB
    shade: RGB


@dataclass(frozen=True)
class Sprite:
    """A drawn shape before it is placed.

    `pixels` (RGB) and `alpha` (coverage) share one size; `footprint` is True, as (height, width), where the shape
    is drawn; `bounds` is the tight xyxy box of the whole shape in patch pixels.
    """

    pixels: Image.Image
    alpha: Image.Image
    footprint: NDArray[np.bool_]
    bounds: Box


def readable_fills(shape: str, diameter: float) -> tuple[str, ...]:
    """The fills that can be told apart on a shape whose longer side is `diameter` pixels."""
    fills = ["filled"]
    if diameter >= (30 if shape == "ring" else 15):
        fills.append("outlined")
    if diameter >= (26 if shape in ("ring", "cross") else 18):
        fills.append("striped")
    return tuple(fills)


def draw_sprite(look: Look, rng: np.random.Generator) -> Sprite:
    """Draw one shape with a small random rotation."""
    shape, fill, diameter, color, shade = look
    # Corners land on the fine grid, so small shapes need the finer one for a tight box.
    factor = 4 if diameter < 30 else 3 if diameter < 60 else 2
    hole = float(rng.uniform(*RING_HOLE)) if shape == "ring" else 0.0
    corners = _corners(shape, diameter * factor, rng)
    right, bottom = corners.max(axis=0) + 1
    width, height = math.ceil(right / factor), math.ceil(bottom / factor)
    line = max(_MIN_LINE_PIXELS, float(rng.uniform(*_LINE_WIDTH)) * diameter / 2)
    canvas_size = (width * factor, height * factor)
    if fill == "outlined":
        alpha = _edge(corners, canvas_size, round(line * factor), hole).reduce(factor)
    else:
        alpha = _solid(corners, canvas_size, hole).reduce(factor)
    pixels = Image.new("RGB", (width, height), color)
    if fill == "striped":
        pixels.paste(shade, mask=_stripes((width, height), diameter, rng))
        border = _edge(corners, canvas_size, max(2, round(0.6 * line * factor)), hole).reduce(factor)
        pixels.paste(color, mask=border)
    footprint = np.asarray(alpha) > _FOOTPRINT_LEVEL
    return Sprite(pixels, alpha, footprint, (0.0, 0.0, float(right) / factor, float(bottom) / factor))


def _corners(shape: str, extent: float, rng: np.random.Generator) -> NDArray[np.int64]:
    """Integer corner points, at least 0, whose longer side spans `extent`."""
    points, largest_turn = _OUTLINES[shape]
    if largest_turn:
        turn = math.radians(float(rng.uniform(-largest_turn, largest_turn)))
        cosine, sine = math.cos(turn), math.sin(turn)
        points = points @ np.array([[cosine, sine], [-sine, cosine]])
    points = points - points.min(axis=0)
    return _rounded(points * ((extent - 1) / points.max()))


def _rounded(points: Points) -> NDArray[np.int64]:
    rounded: NDArray[np.int64] = np.rint(points).astype(np.int64)
    return rounded


def _flat(corners: NDArray[np.int64]) -> list[int]:
    flat: list[int] = corners.ravel().tolist()
    return flat


def _around_center(corners: NDArray[np.int64], scale: float) -> NDArray[np.int64]:
    center = corners.max(axis=0) / 2
    return _rounded((corners - center) * scale + center)


def _solid(corners: NDArray[np.int64], size: tuple[int, int], hole: float) -> Image.Image:
    mask = Image.new("L", size)
    draw = ImageDraw.Draw(mask)
    draw.polygon(_flat(corners), fill=255)
    if hole:
        draw.polygon(_flat(_around_center(corners, hole)), fill=0)
    return mask


def _edge(corners: NDArray[np.int64], size: tuple[int, int], width: int, hole: float) -> Image.Image:
    """The band of `width` inside the border, and the one around the hole."""
    mask = Image.new("L", size)
    draw = ImageDraw.Draw(mask)
    draw.polygon(_flat(corners), outline=255, width=width)
    if hole:
        outer = hole + 2 * width / float(corners.max())
        draw.polygon(_flat(_around_center(corners, outer)), fill=255)
        draw.polygon(_flat(_around_center(corners, hole)), fill=0)
    return mask


def _stripes(size: tuple[int, int], diameter: float, rng: np.random.Generator) -> Image.Image:
    width, height = size
    period = max(4.5, diameter * float(rng.uniform(0.18, 0.26)))
    angle = float(rng.integers(4)) * math.pi / 4
    phase = float(rng.uniform(0, 2 * math.pi))
    step = 2 * math.pi / period
    x = np.arange(width, dtype=np.float32) * np.float32(step * math.cos(angle))
    y = np.arange(height, dtype=np.float32) * np.float32(step * math.sin(angle)) + np.float32(phase)
    wave = np.sin(y[:, None] + x[None, :])
    # The slope at a crossing is one gray range per pixel, which keeps the stripes' edges smooth.
    return Image.fromarray(np.clip(wave * (255 / step) + 127.5, 0, 255).astype(np.uint8))
