"""Opening images: upright, RGB, or one line that says why not."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import ExifTags, Image

from hf_grounding_dino.data.images import load_image
from hf_grounding_dino.processing.image_processing_grounding_dino import read_images


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def noise(mode: str, width: int = 9, height: int = 5) -> Image.Image:
    rng = np.random.default_rng(0)
    if mode == "I;16":
        return Image.fromarray(rng.integers(0, 65536, (height, width), dtype=np.uint16))
    return Image.fromarray(rng.integers(0, 256, (height, width, 4), dtype=np.uint8), "RGBA").convert(mode)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA", "P", "1", "CMYK", "I;16", "F"])
@pytest.mark.parametrize("form", ["decoded", "bytes", "file"])
def test_every_mode_is_read_as_the_image_processor_reads_it(mode: str, form: str, tmp_path: Path) -> None:
    kind = "TIFF" if mode in ("CMYK", "F") else "PNG"
    path = tmp_path / f"image.{kind.lower()}"
    path.write_bytes(encoded(noise(mode), kind))
    source = {"decoded": noise(mode), "bytes": path.read_bytes(), "file": path}[form]
    image = load_image(source)
    assert image.mode == "RGB" and image.size == (9, 5)
    assert np.array_equal(np.asarray(image), read_images([path])[0].permute(1, 2, 0).numpy())


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_an_image_that_lies_on_its_side_is_put_upright(mode: str) -> None:
    """Orientation 6, a quarter turn: 9 x 5 pixels are 5 x 9, the first of them at the top right."""
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    lying = noise(mode)
    image = load_image(encoded(lying, exif=exif))
    assert image.size == (5, 9)
    assert image.getpixel((4, 0)) == lying.convert("RGB").getpixel((0, 0))
    assert load_image(lying).size == (9, 5)


def test_a_decoded_image_is_not_handed_out_itself() -> None:
    own = noise("RGB")
    load_image(own).paste(0, (0, 0, 9, 5))
    assert np.asarray(own).any()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("keep", [1.0, 0.9, 0.5])
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "TIFF", "WEBP", "BMP"])
def test_damaged_files_are_refused_in_one_line_or_read(kind: str, keep: float) -> None:
    """Cut files and files with random bytes inside: an image or a ValueError of one line, and no other error."""
    whole = encoded(noise("RGB", 40, 30), kind)
    for seed in range(20):
        rng = np.random.default_rng(seed)
        damaged = bytearray(whole[: int(len(whole) * keep)])
        for place in rng.integers(0, len(damaged), 4):
            damaged[place] = int(rng.integers(256))
        try:
            assert load_image(bytes(damaged)).mode == "RGB"
        except ValueError as error:
            assert str(error) and "\n" not in str(error)


def test_what_cannot_be_read_is_said(tmp_path: Path) -> None:
    cut = encoded(noise("RGB", 200, 200), "JPEG")[:5000]
    for source, message in [
        (tmp_path / "no.png", "^there is no such file$"),
        (b"hello", "^it is not an image$"),
        (b"", "^it is not an image$"),
        (tmp_path, "directory"),
        (cut, "truncated"),
        (Image.new("RGB", (0, 4)), "it has no pixels: 0 x 4"),
    ]:
        with pytest.raises(ValueError, match=message):
            load_image(source)
