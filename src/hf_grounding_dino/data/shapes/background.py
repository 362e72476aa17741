"""What lies behind the shapes: dull surfaces, strokes that are no shape, and pixel noise."""

import math
from collections.abc import Callable
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

Tone = tuple[float, float]
"""The lowest and the highest gray level a background may take, within 0 to 255."""

_Color = NDArray[np.float64]
_Painter = Callable[[tuple[int, int], Tone, np.random.Generator], Image.Image]
_TINT: Final = 14.0


def paint_background(size: tuple[int, int], tone: Tone, rng: np.random.Generator) -> Image.Image:
    """Paint a surface of low saturation and contrast, of `size` (width, height), its gray levels within `tone`."""
    image = _PAINTERS[int(rng.integers(len(_PAINTERS)))](size, tone, rng)
    if rng.random() < 0.6:
        _scatter_strokes(image, tone, rng)
    return image


def add_noise(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Return the image under pixel noise of a random strength; three in ten images stay clean."""
    if rng.random() < 0.3:
        return image
    strength = int(rng.integers(3, 26))
    pixels = np.asarray(image)
    noise = np.frombuffer(rng.bytes(pixels.size), dtype=np.int8).reshape(pixels.shape)
    shifted = pixels + (noise.astype(np.int16) * strength >> 7)
    return Image.fromarray(np.clip(shifted, 0, 255).astype(np.uint8))


def _muted(tone: Tone, rng: np.random.Generator) -> _Color:
    color: _Color = rng.uniform(*tone) + rng.uniform(-_TINT, _TINT, 3)
    return color


def _near(color: _Color, tone: Tone, rng: np.random.Generator) -> _Color:
    """A second color, a little lighter or darker, whichever stays within the tone."""
    contrast = float(rng.uniform(7, 26))
    darker = float(color.mean()) + contrast > tone[1]
    return color - contrast if darker else color + contrast


def _as_bytes(values: NDArray[np.float64]) -> NDArray[np.uint8]:
    return np.clip(values, 0, 255).astype(np.uint8)


def _plain(size: tuple[int, int], tone: Tone, rng: np.random.Generator) -> Image.Image:
    red, green, blue = _as_bytes(_muted(tone, rng)).tolist()
    return Image.new("RGB", size, (red, green, blue))


def _gradient(size: tuple[int, int], tone: Tone, rng: np.random.Generator) -> Image.Image:
    middle = float(rng.uniform(*tone))
    low, high = max(tone[0], middle - 45), min(tone[1], middle + 45)
    corners = np.stack([_muted((low, high), rng) for _ in range(4)]).reshape(2, 2, 3)
    return Image.fromarray(_as_bytes(corners)).resize(size, Image.Resampling.BICUBIC)


def _two_tone(parity: NDArray[np.intp], tone: Tone, rng: np.random.Generator) -> Image.Image:
    first = _muted(tone, rng)
    palette = _as_bytes(np.stack([first, _near(first, tone, rng)]))
    return Image.fromarray(palette[parity])


def _checkerboard(size: tuple[int, int], tone: Tone, rng: np.random.Generator) -> Image.Image:
    cell = int(rng.integers(8, 41))
    x, y = np.arange(size[0]) // cell, np.arange(size[1]) // cell
    return _two_tone((y[:, None] + x[None, :]) & 1, tone, rng)


def _stripes(size: tuple[int, int], tone: Tone, rng: np.random.Generator) -> Image.Image:
    period, angle = float(rng.uniform(5, 30)), float(rng.uniform(0, math.pi))
    x = np.arange(size[0]) * (math.cos(angle) / period)
    y = np.arange(size[1]) * (math.sin(angle) / period)
    return _two_tone(np.floor(y[:, None] + x[None, :]).astype(np.intp) & 1, tone, rng)


def _blotches(size: tuple[int, int], tone: Tone, rng: np.random.Generator) -> Image.Image:
    columns, rows = int(rng.integers(3, 16)), int(rng.integers(3, 16))
    spread = float(rng.uniform(6, 22))
    level = rng.uniform(*tone) + spread * rng.standard_normal((rows, columns, 1))
    color = np.clip(level, *tone) + rng.uniform(-_TINT, _TINT, 3) + 3 * rng.standard_normal((rows, columns, 3))
    return Image.fromarray(_as_bytes(color)).resize(size, Image.Resampling.BICUBIC)


_PAINTERS: Final[tuple[_Painter, ...]] = (_plain, _gradient, _checkerboard, _stripes, _blotches)


def _scatter_strokes(image: Image.Image, tone: Tone, rng: np.random.Generator) -> None:
    """Draw thin lines and dots, too thin to pass for a shape, in muted colors."""
    draw = ImageDraw.Draw(image)
    width, height = image.size
    count = int(rng.integers(2, 18))
    starts = rng.uniform(0, 1, (count, 2)) * (width, height)
    lengths = np.where(rng.random(count) < 0.7, rng.uniform(1, 8, count), rng.uniform(8, 0.5 * width, count))
    angles = rng.uniform(0, 2 * np.pi, count)
    ends = starts + lengths[:, None] * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    levels = rng.uniform(tone[0], tone[1], (count, 1)) + rng.uniform(-25, 25, (count, 3))
    lines = np.concatenate([starts, ends], axis=1).tolist()
    for line, (red, green, blue) in zip(lines, _as_bytes(levels).tolist(), strict=True):
        draw.line(line, fill=(red, green, blue), width=1)
