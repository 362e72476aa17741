"""Opening images: formats that may be, files that no decoder can finish, and URLs that answer as none should."""

from __future__ import annotations

import ast
import io
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

import hf_grounding_dino
from hf_grounding_dino.app.search import read_upload
from hf_grounding_dino.data.images import load_image
from hf_grounding_dino.data.readers.files import upright_size
from hf_grounding_dino.processing.image_processing_grounding_dino import read_images
from hf_grounding_dino.utils import image_files
from hf_grounding_dino.utils.image_files import IMAGE_FORMATS, fetch, is_public
from odd_server import ANSWERS, odd_server, png_head

DOORS: dict[str, Callable[[Path], Any]] = {
    "processor": lambda path: read_images([path]),
    "bytes": lambda path: read_images([path.read_bytes()]),
    "data sets": load_image,
    "heads": upright_size,
    "app": lambda path: read_upload(str(path)),
}
FINE = {"whole", "chunked", "moved"}
SECONDS = 0.5


def encoded(kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (32, 48, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(file, kind, **options)
    return file.getvalue()


def test_images_are_opened_in_one_place() -> None:
    """By Pillow itself, or by a library that calls it with all its formats."""
    package = Path(hf_grounding_dino.__file__).parent
    others = {"load_image", "load_images", "decode_example", "imread", "read_image", "decode_image"}
    found = set()
    for path in package.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and (ast.unparse(node) == "Image.open" or node.attr in others):
                found.add(path.relative_to(package).as_posix())
    assert found == {"utils/image_files.py"}


# --- formats -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "JPEG2000", "MPO"])
def test_what_images_are_kept_in_is_read(door: str, kind: str, tmp_path: Path) -> None:
    path = tmp_path / "photo.png"
    path.write_bytes(encoded(kind))
    DOORS[door](path)


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("kind", ["EPS", "PCX", "SGI", "TGA", "ICO", "IM", "MSP", "DDS", "SPIDER", "XBM", "ICNS"])
def test_other_formats_are_no_images_whatever_they_are_called(
    door: str, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of all that Pillow reads; EPS would start Ghostscript."""
    path, made = tmp_path / "photo.png", tmp_path / f"made.{kind.lower()}"
    mode = {"MSP": "1", "XBM": "1", "SPIDER": "F"}.get(kind, "RGB")
    Image.new(mode, (32, 32)).save(made, kind)  # SPIDER would claim the suffix for all that is saved later
    made.rename(path)
    monkeypatch.setattr("PIL.EpsImagePlugin.Ghostscript", lambda *_, **__: pytest.fail("Ghostscript was started"))
    with pytest.raises(ValueError, match=r"(?i)(not|no) (an? )?(picture|image)|cannot identify"):
        DOORS[door](path)


def test_the_list_is_of_formats_that_pillow_has() -> None:
    """HEIF comes with a package of its own, and AVIF with newer versions."""
    Image.init()
    assert set(IMAGE_FORMATS) - {"HEIF", "AVIF"} <= {*Image.OPEN, *Image.registered_extensions().values()}
    assert not {"EPS", "PSD", "PDF", "WMF", "FITS", "HDF5", "GRIB", "BUFR", "MPEG"} & set(IMAGE_FORMATS)


# --- files -------------------------------------------------------------------------------------------------------


class StrangeError(Exception):
    """Of a decoder."""


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("door", [door for door in DOORS if door != "heads"])
@pytest.mark.parametrize(("width", "height"), [(170_000_000, 1), (2**31 - 1, 2**31 - 1)])
def test_a_head_that_promises_too_much_is_one_line(door: str, width: int, height: int, tmp_path: Path) -> None:
    """Pillow has no rows of more than 2 GiB of bits: MemoryError, however much memory there is."""
    path = tmp_path / "photo.png"
    path.write_bytes(png_head(width, height))
    with pytest.raises(ValueError, match=r"^[^\n]+$"):
        DOORS[door](path)


DECODER_ERRORS = [MemoryError(), RuntimeError("no"), StrangeError("odd"), AssertionError(), EOFError()]
FAILING = [(door, "load", error) for door in DOORS if door != "heads" for error in DECODER_ERRORS]
FAILING += [(door, "_open", MemoryError()) for door in DOORS]


@pytest.mark.parametrize(("door", "step", "error"), FAILING)
def test_whatever_a_decoder_raises_is_one_line(
    door: str, step: str, error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of its pixels, where a door reads them, and of its head."""
    path = tmp_path / "photo.png"
    path.write_bytes(encoded("PNG"))

    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(PngImagePlugin.PngImageFile, step, fail)
    with pytest.raises(ValueError, match=r"^[^\n]+$"):
        DOORS[door](path)


# --- URLs --------------------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "*")


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with odd_server(encoded("PNG")) as (address, _):
        yield address


@pytest.mark.parametrize("name", sorted(FINE))
def test_a_url_is_read(server: str, name: str) -> None:
    assert read_images([f"{server}/{name}"])[0].shape == (3, 32, 48)


@pytest.mark.parametrize("name", sorted(set(ANSWERS) - FINE - {"to_neighbour"}))
def test_what_a_url_may_answer_is_one_line_within_its_time(
    server: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At most `MOST_BYTES`, and half a second, here; the limit of the test itself is that of a busy machine."""
    monkeypatch.setattr(image_files, "MOST_BYTES", 10**6)
    start = time.monotonic()
    with pytest.raises(ValueError, match=r"^Image 0 .*cannot be read: [^\n]+$") as error:
        read_images([f"{server}/{name}"], timeout=SECONDS)
    assert time.monotonic() - start < 60 * SECONDS
    assert len(str(error.value)) < 400


@pytest.mark.parametrize(
    "url",
    ["http://", "http://[::1", "http://127.0.0.1:99999/", "http://127.0.0.1:1/", "http://a b/", "http://\u00e9\ud800/",
     "http://127.0.0.1:x/", "https://127.0.0.1:1/", "http://" + "a" * 300 + "/", "data:image/png;base64,%%%"],
)  # fmt: skip
def test_a_malformed_url_is_one_line(url: str) -> None:
    with pytest.raises(ValueError, match=r"^Image 0 [^\n]*cannot be read: [^\n]+$"):
        read_images([url], timeout=SECONDS)


def test_what_is_wrong_with_a_url_is_said(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_files, "MOST_BYTES", 10**6)
    for name, message in {
        "cut": "cut off after",
        "huge_length": "8,796,093,022,208 bytes, more than 1,000,000",
        "endless": "more than 1,000,000 bytes",
        "dripping": "longer than 0.5 seconds",
        "dripping_head": "longer than 0.5 seconds",
        "loop": "redirected more than",
        "no_such": "404",
    }.items():
        with pytest.raises(ValueError, match=message):
            fetch(f"{server}/{name}", SECONDS)


# --- addresses ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "address",
    ["127.0.0.1", "127.9.9.9", "0.0.0.0", "10.0.0.1", "172.16.5.4", "192.168.1.1", "169.254.169.254", "100.64.0.1",
     "224.0.0.1", "255.255.255.255", "::1", "::", "fe80::1", "fe80::1%eth0", "fc00::1", "ff02::1", "::ffff:127.0.0.1",
     "::ffff:10.0.0.1", "2002:7f00:1::"],
)  # fmt: skip
def test_addresses_of_local_networks(address: str) -> None:
    assert not is_public(address)


@pytest.mark.parametrize("address", ["8.8.8.8", "93.184.216.34", "2606:4700:4700::1111", "::ffff:8.8.8.8"])
def test_addresses_of_the_internet(address: str) -> None:
    assert is_public(address)


def test_nothing_local_is_asked_where_only_public_addresses_may_be(monkeypatch: pytest.MonkeyPatch) -> None:
    """By number, by a name that leads here, by a name that leads to both, and by a proxy; no connection is made."""
    names = {"inside.example": ["127.0.0.1"], "both.example": ["93.184.216.34", "127.0.0.1"]}
    monkeypatch.setattr(
        "socket.getaddrinfo", lambda host, port, **_: [(2, 1, 6, "", (a, port)) for a in names.get(host, [host])]
    )
    with odd_server(encoded("PNG")) as (address, asked):
        port = address.rpartition(":")[2]
        monkeypatch.setenv("http_proxy", address)
        monkeypatch.setenv("no_proxy", "")
        for host in ("127.0.0.1", *names):
            with pytest.raises(ValueError, match="local network"):
                fetch(f"http://{host}:{port}/whole", 5, public=True)
        assert asked == []


def test_a_redirect_into_the_local_network_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """127.0.0.1 plays the internet and 127.0.0.2 the network behind the router."""
    with odd_server(encoded("PNG")) as (address, asked):
        monkeypatch.setattr(image_files, "is_public", lambda ip: ip == "127.0.0.1")
        assert fetch(f"{address}/whole", 5, public=True) == encoded("PNG")
        with pytest.raises(ValueError, match="local network"):
            fetch(f"{address}/to_neighbour", 5, public=True)
        assert asked == ["whole", "to_neighbour"]
