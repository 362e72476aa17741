"""Laws of the image processor: what it reads, what it refuses by name, and where it equals the one of transformers."""

from __future__ import annotations

import base64
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from transformers import AutoImageProcessor

from hf_grounding_dino.processing.image_processing_grounding_dino import (
    GroundingDinoImageProcessor,
    original_size,
    read_images,
)
from silence import silence

SIZE = {"shortest_edge": 48, "longest_edge": 80}
RNG = np.random.default_rng(0)
INVERSE = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


def rgb(height: int, width: int) -> Image.Image:
    return Image.fromarray(RNG.integers(0, 256, (height, width, 3), dtype=np.uint8))


def annotation(*boxes: list[float]) -> dict[str, Any]:
    return {
        "image_id": 1,
        "annotations": [{"bbox": b, "area": b[2] * b[3], "category_id": 0, "iscrowd": 0} for b in boxes],
    }


@pytest.fixture(scope="module")
def ours() -> GroundingDinoImageProcessor:
    return GroundingDinoImageProcessor(size=SIZE)


@pytest.fixture(scope="module")
def stock() -> transformers.GroundingDinoImageProcessor:
    return transformers.GroundingDinoImageProcessor(size=SIZE)


# --- equal to transformers ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [{}, {"size": {"height": 30, "width": 50}}, {"do_normalize": False}, {"pad_size": {"height": 99, "width": 90}}],
)
def test_rgb_images_come_out_as_in_transformers(ours: Any, stock: Any, options: dict[str, Any]) -> None:
    images = [rgb(31, 77), rgb(60, 40), rgb(31, 77), rgb(90, 20)]
    got = ours(images, return_tensors="pt", **options)
    expected = stock(images, return_tensors="pt", **options)
    assert got.keys() == expected.keys()
    for name in expected:
        assert torch.equal(got[name], expected[name])


def test_annotations_of_one_image_come_out_as_in_transformers(ours: Any, stock: Any) -> None:
    target = annotation([3, 4, 20, 10], [0, 0, 77, 31])
    got, expected = (p(rgb(31, 77), target, return_tensors="pt")["labels"][0] for p in (ours, stock))
    assert got.keys() == expected.keys()
    for name in expected:
        assert torch.equal(got[name], expected[name])


def test_boxes_are_relative_to_the_image_and_not_to_the_canvas(ours: Any, stock: Any) -> None:
    """The left half of an image stays the left half beside an image that is twice as wide."""
    target = annotation([0, 0, 25, 50])
    expected = torch.tensor([[0.25, 0.5, 0.5, 1.0]])
    batch = [rgb(50, 50), rgb(50, 100)]
    inputs = ours(batch, [target, target], return_tensors="pt")
    assert inputs["pixel_mask"][0].float().mean() < 0.7
    torch.testing.assert_close(inputs["labels"][0]["boxes"], expected)
    assert not torch.allclose(stock(batch, [target, target], return_tensors="pt")["labels"][0]["boxes"], expected)


def test_the_form_nested_in_processor_config_is_read_too(ours: Any, tmp_path: Path) -> None:
    nested = {"image_processor": ours.to_dict(), "processor_class": "GroundingDinoProcessor"}
    nested["image_processor"]["size"] = {"shortest_edge": 20, "longest_edge": 33}
    (tmp_path / "processor_config.json").write_text(json.dumps(nested))
    with silence():
        loaded = GroundingDinoImageProcessor.from_pretrained(tmp_path)
    assert loaded(rgb(40, 40), return_tensors="pt")["pixel_values"].shape[-2:] == (20, 20)


# --- the sizes ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("height", "width", "original", "in_transformers"),
    [
        (375, 640, (781, 1332), (781, 1333)),
        (640, 375, (1332, 781), (1333, 781)),
        (480, 640, (800, 1066), (800, 1066)),
        (800, 800, (800, 800), (800, 800)),
        (800, 1000, (800, 1000), (800, 1000)),
        (50, 20, (1332, 533), (1333, 533)),
        (1, 5000, (1, 1333), (1, 1333)),
    ],
)
def test_resize_rules(height: int, width: int, original: tuple[int, int], in_transformers: tuple[int, int]) -> None:
    image = torch.zeros(3, height, width, dtype=torch.uint8)
    size = transformers.image_utils.SizeDict(shortest_edge=800, longest_edge=1333)
    assert original_size((height, width), 800, 1333) == original
    for rule, expected in (("original", original), ("transformers", in_transformers)):
        assert GroundingDinoImageProcessor(resize_rule=rule).resize(image, size).shape == (3, *expected)


def test_the_original_rule_resizes_as_pil_does() -> None:
    batch = [rgb(37, 64), rgb(37, 64)]
    processor = GroundingDinoImageProcessor(size=SIZE, do_rescale=False, do_normalize=False)
    got = processor(batch, resize_rule="original", return_tensors="pt")["pixel_values"]
    height, width = original_size((37, 64), 48, 80)
    for pixels, image in zip(got, batch, strict=True):
        expected = np.asarray(image.resize((width, height), Image.Resampling.BILINEAR))
        assert np.array_equal(pixels.permute(1, 2, 0).numpy(), expected)
    assert processor.resize_rule == "transformers"


def test_the_rule_is_kept_on_disk_and_checked(tmp_path: Path) -> None:
    GroundingDinoImageProcessor(resize_rule="original").save_pretrained(tmp_path)
    assert GroundingDinoImageProcessor.from_pretrained(tmp_path).resize_rule == "original"
    with silence():
        AutoImageProcessor.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match="resize_rule"):
        GroundingDinoImageProcessor(resize_rule="newest")
    with pytest.raises(ValueError, match="resize_rule"):
        GroundingDinoImageProcessor()(rgb(4, 4), resize_rule="newest")


@pytest.mark.parametrize("rule", ["transformers", "original"])
@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 5000), (5000, 1), (2, 3), (3, 2)])
def test_no_side_becomes_nothing(ours: Any, height: int, width: int, rule: str) -> None:
    inputs = ours(rgb(height, width), resize_rule=rule, return_tensors="pt")
    assert min(inputs["pixel_values"].shape) >= 1
    assert inputs["pixel_values"].isfinite().all()
    assert inputs["pixel_mask"].all()


# --- what is read ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "LA", "1", "CMYK", "YCbCr", "PA", "La", "RGBa"])
def test_every_mode_is_read_as_pil_shows_it(ours: Any, mode: str) -> None:
    via = {"PA": "P", "La": "LA", "RGBa": "RGBA"}.get(mode, mode)
    image = rgb(9, 14).convert(via)
    shown = image.convert("RGB")
    image = image.convert(mode)
    assert image.mode == mode
    (pixels,) = read_images(image)
    assert torch.equal(pixels, read_images(shown)[0])
    assert ours(image, return_tensors="pt")["pixel_values"].shape[1] == 3


def test_a_transparent_palette_keeps_its_colours() -> None:
    image = rgb(9, 14).quantize(8)
    expected = read_images(image.convert("RGB"))[0]
    image.info["transparency"] = bytes([0, 100, 255])
    with silence():
        assert torch.equal(read_images(image)[0], expected)


def test_sixteen_bits_are_scaled_and_not_cut(tmp_path: Path) -> None:
    wide = np.arange(0, 65536, 257, dtype=np.uint16).reshape(16, 16)
    expected = torch.arange(256, dtype=torch.uint8).reshape(16, 16).expand(3, 16, 16)
    Image.fromarray(wide).save(tmp_path / "wide.png")
    assert Image.open(tmp_path / "wide.png").mode.startswith("I")
    for image in (
        tmp_path / "wide.png",
        Image.fromarray(wide),
        Image.fromarray(wide.astype(np.int32)),
        Image.fromarray(wide.astype(np.float32)),
        Image.fromarray((wide / 65535).astype(np.float32)),
        wide,
        wide.astype(">u2"),
        np.stack([wide] * 3, -1),
        torch.from_numpy(wide.astype(np.int32)),
    ):
        assert torch.equal(read_images(image)[0], expected)
    dark = Image.fromarray(np.full((4, 4), 200, np.uint16))
    assert read_images(dark)[0].max() == 1  # the range is the type's, not the image's
    stretched = read_images(Image.fromarray(np.array([[-7, 0, 93]], np.int32)))[0]
    assert stretched[0].tolist() == [[0, 18, 255]]


def test_arrays_and_tensors_in_every_layout() -> None:
    image = rgb(6, 7)
    pixels = np.asarray(image)
    expected = read_images(image)[0]
    alpha = np.concatenate([pixels, pixels[..., :1]], -1)
    for form in (
        pixels,
        pixels.transpose(2, 0, 1),
        alpha,
        pixels[::1, ::1],
        torch.from_numpy(pixels.copy()),
        torch.from_numpy(pixels.transpose(2, 0, 1).copy()),
        torch.from_numpy(alpha.copy()),
    ):
        assert torch.equal(read_images(form)[0], expected)
    grey = pixels[..., 0]
    for form in (grey, grey[..., None], grey[None], pixels[..., :2], torch.from_numpy(grey.copy())):
        assert torch.equal(read_images(form)[0], expected[:1].expand(3, -1, -1))
    assert read_images(grey > 100)[0].unique().tolist() == [0, 255]
    batches = read_images([np.stack([pixels, pixels]), [image], torch.stack([expected] * 2)])
    assert len(batches) == 5
    assert all(torch.equal(one, expected) for one in batches)


def test_small_arrays_are_not_mistaken() -> None:
    assert read_images(np.zeros((1, 1, 3), np.uint8))[0].shape == (3, 1, 1)
    assert read_images(torch.zeros(3, 1, 1, dtype=torch.uint8))[0].shape == (3, 1, 1)
    assert read_images(torch.zeros(1, 1, 3, dtype=torch.uint8))[0].shape == (3, 1, 1)
    assert read_images(np.zeros((3, 2, 1), np.uint8))[0].shape == (3, 2, 1)
    assert read_images(np.zeros((3, 5, 3), np.uint8))[0].shape == (3, 3, 5)
    assert read_images(torch.zeros(3, 5, 3, dtype=torch.uint8))[0].shape == (3, 5, 3)
    assert read_images(np.zeros((3, 5, 3), np.uint8), "channels_first")[0].shape == (3, 5, 3)


def test_paths_and_addresses(tmp_path: Path) -> None:
    image = rgb(6, 7)
    image.save(tmp_path / "a.png")
    encoded = base64.b64encode((tmp_path / "a.png").read_bytes()).decode()
    forms = [tmp_path / "a.png", str(tmp_path / "a.png"), f"data:image/png;base64,{encoded}", encoded]
    for pixels in read_images(forms):
        assert torch.equal(pixels, read_images(image)[0])


@pytest.mark.parametrize("kind", [np.float32, np.float64, np.float16])
def test_floating_point_in_0_to_1_is_no_black_image(ours: Any, kind: Any) -> None:
    """matplotlib, scikit-image and `ToTensor` give such. With white at 255 or another factor nothing changes."""
    image = rgb(48, 48)
    bytes_ = np.asarray(image).astype(kind)
    expected = ours(image, return_tensors="pt")["pixel_values"]
    tensor = torch.from_numpy(bytes_ / 255).permute(2, 0, 1)
    for form in (bytes_ / 255, tensor, bytes_):
        got = ours(form, return_tensors="pt")["pixel_values"].float()
        torch.testing.assert_close(got, expected, atol=2e-2 if kind == np.float16 else 1e-5, rtol=0)
    plain = ours((bytes_ / 255).astype(np.float32), do_rescale=False, return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(plain, expected, atol=2e-2 if kind == np.float16 else 1e-5, rtol=0)
    third = ours(bytes_ / 255, rescale_factor=1 / 3, do_normalize=False, return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(
        third[0].permute(1, 2, 0).numpy(), (bytes_ / 255).astype(np.float32) / 3, rtol=0.01, atol=0
    )


def stored_on_its_side(path: Path, upright: Image.Image, orientation: int) -> None:
    stored = upright.transpose(INVERSE[orientation]) if orientation in INVERSE else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored.save(path, exif=exif)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_files_are_turned_upright(ours: Any, tmp_path: Path, orientation: int) -> None:
    upright, path = rgb(20, 40), tmp_path / "turned.png"
    stored_on_its_side(path, upright, orientation)
    with path.open("rb") as file:
        for form in (path, path.read_bytes(), file):
            assert torch.equal(read_images(form)[0], read_images(upright)[0])
    labels = ours(path, annotation([0, 0, 20, 10]), return_tensors="pt")["labels"][0]
    torch.testing.assert_close(labels["boxes"], torch.tensor([[0.25, 0.25, 0.5, 0.5]]))
    assert labels["orig_size"].tolist() == [20, 40]


@pytest.mark.parametrize("orientation", [1, 3, 6])
def test_an_image_in_memory_stays_as_it_lies(ours: Any, stock: Any, tmp_path: Path, orientation: int) -> None:
    """Its `size` is what scripts give as target size."""
    path = tmp_path / "turned.png"
    stored_on_its_side(path, rgb(20, 40), orientation)
    with Image.open(path) as opened:
        target = annotation([0, 0, 10, 10])
        got, expected = (processor(opened, target, return_tensors="pt") for processor in (ours, stock))
        assert tuple(got["labels"][0]["orig_size"].tolist()) == opened.size[::-1]
    assert torch.equal(got["pixel_values"], expected["pixel_values"])
    assert torch.equal(got["labels"][0]["boxes"], expected["labels"][0]["boxes"])


# --- what is refused ---------------------------------------------------------------------------------------------


def truncated(folder: Path) -> Path:
    rgb(200, 200).save(folder / "whole.jpg")
    data = (folder / "whole.jpg").read_bytes()
    (folder / "cut.jpg").write_bytes(data[: len(data) // 2])
    return folder / "cut.jpg"


def no_image(folder: Path) -> Path:
    (folder / "notes.jpg").write_text("no image")
    return folder / "notes.jpg"


def broken_png(folder: Path) -> Path:
    rgb(50, 50).save(folder / "whole.png")
    data = bytearray((folder / "whole.png").read_bytes())
    data[60:200] = bytes(140)
    (folder / "broken.png").write_bytes(bytes(data))
    return folder / "broken.png"


@pytest.mark.parametrize("make", [truncated, no_image, broken_png, lambda folder: folder / "absent.png", lambda f: f])
def test_a_bad_file_is_named(ours: Any, tmp_path: Path, make: Any) -> None:
    path = make(tmp_path)
    with pytest.raises(ValueError, match=r"Image 1 \(.*\) cannot be read") as error:
        ours([rgb(4, 4), path])
    assert path.name in str(error.value)


def test_a_bad_image_that_was_opened_before_is_named(ours: Any, tmp_path: Path) -> None:
    path = truncated(tmp_path)
    with Image.open(path) as opened, pytest.raises(ValueError, match=r"Image 0 \(.*cut\.jpg\) cannot be read"):
        ours(opened)
    shutil.rmtree(tmp_path)


@pytest.mark.parametrize(
    ("bad", "why"),
    [
        (3, "int is not an image"),
        (None, "NoneType is not an image"),
        (b"no image", "cannot identify"),
        (Image.new("RGB", (0, 5)), "no pixels"),
        (np.zeros((0, 5, 3), np.uint8), "no pixels"),
        (np.zeros(5, np.uint8), "2 or 3 dimensions"),
        (np.zeros((5, 6, 7), np.uint8), "1 to 4 channels"),
        (np.full((5, 5, 3), np.nan), "not finite"),
        (torch.full((3, 5, 5), torch.inf), "not finite"),
        (Image.fromarray(np.full((5, 5), np.nan, np.float32)), "not finite"),
        (np.zeros((5, 5, 3), dtype=object), "holds numbers"),
        ("absent.png", "no such file"),
    ],
)
def test_what_is_no_image_is_refused_with_its_place(ours: Any, bad: Any, why: str) -> None:
    with pytest.raises(ValueError, match=rf"Image 2\b.* cannot be read: .*{why}"):
        ours([rgb(4, 4), rgb(4, 4), bad])
    with pytest.raises(ValueError, match="No images"):
        ours([])
