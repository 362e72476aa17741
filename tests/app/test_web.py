"""The app as its visitors' browsers speak to it, through Gradio's own client."""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest
from gradio_client import Client, handle_file
from huggingface_hub import constants
from PIL import Image

from app.fake_predictor import CountingPredictor, image_file
from hf_grounding_dino.app import web
from hf_grounding_dino.app.search import words_of
from hf_grounding_dino.app.web import EXAMPLES, make_app, search_image, start
from hf_grounding_dino.cli.detect import load_detector
from hf_grounding_dino.processing.defaults import DEFAULTS

LOOPBACK = ("127.0.0.1", "::1", "localhost", None)


def allow_loopback_alone(patch: pytest.MonkeyPatch) -> list[Any]:
    """Refuse every socket and look-up that leaves this machine; the list tells of them."""
    refused: list[Any] = []
    connect, look_up = socket.socket.connect, socket.getaddrinfo

    def connect_here(self: socket.socket, address: Any) -> None:
        if isinstance(address, tuple) and address[0] not in LOOPBACK:
            refused.append(address)
            raise OSError(f"refused: {address}")
        connect(self, address)

    def look_up_here(host: Any, *args: Any, **kwargs: Any) -> Any:
        if host not in LOOPBACK:
            refused.append(host)
            raise OSError(f"refused: {host}")
        return look_up(host, *args, **kwargs)

    patch.setattr(socket.socket, "connect", connect_here)
    patch.setattr(socket, "getaddrinfo", look_up_here)
    return refused


class Served:
    """An app that is being served, and its model."""

    def __init__(self, address: str, predictor: CountingPredictor, page: Any) -> None:
        self.address, self.predictor, self.app = address, predictor, page

    def visitor(self) -> Client:
        return Client(self.address, verbose=False, analytics_enabled=False)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADIO_TEMP_DIR", str(tmp_path_factory.mktemp("gradio")))
        for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"):
            patch.delenv(name, raising=False)
        # The client that stands in for a browser has a telemetry of its own.
        patch.setattr(constants, "HF_HUB_DISABLE_TELEMETRY", True)
        allow_loopback_alone(patch)
        predictor = CountingPredictor()
        app = make_app(predictor, "a <b>note</b>")
        yield Served(start(app, host="127.0.0.1"), predictor, app)
        app.close()


def ask(visitor: Client, path: str | None, words: str, kind: str = "Labels") -> str:
    """What the app complains of."""
    return str(visitor.predict(path and handle_file(path), kind, words, api_name="/find"))


def look(visitor: Client, threshold: float) -> tuple[str, str, list[list[Any]], str, str]:
    """The drawing's file, the sentence, the rows, the file name and the JSON at a threshold."""
    drawing, status, table, name, text = visitor.predict(threshold, api_name="/threshold")
    return drawing, status, table["value"]["data"] if table["visible"] else [], name, text


def test_a_visit(served: Served, tmp_path: Path) -> None:
    """Upload, ask, move the threshold four times and ask the same again: the model ran once."""
    visitor, before = served.visitor(), len(served.predictor.calls)
    path = image_file(tmp_path / "my photo.png")
    assert ask(visitor, path, "red square, cyan star") == ""
    for threshold, kept in ((0.25, 3), (0.6, 1), (0.05, 4), (0.95, 0)):
        drawing, status, rows, name, text = look(visitor, threshold)
        with Image.open(drawing) as image:
            assert min(image.size) == 640  # enlarged as `detect` draws a small image
        assert f"above {threshold:.2f}" in status
        assert len(rows) == len(json.loads(text)) == kept
        assert name == "my photo.json"
    assert ask(visitor, path, "red square,cyan star") == ""
    assert served.predictor.calls[before:] == [((100, 80), ("red square", "cyan star"))]


def test_what_is_wrong_is_said_and_clears_the_answer(served: Served, tmp_path: Path) -> None:
    visitor = served.visitor()
    path = image_file(tmp_path / "a.png")
    (tmp_path / "bad.png").write_text("no image")
    complaints = {
        (None, "cat"): "No image yet",
        (path, " "): "No labels yet",
        (str(tmp_path / "bad.png"), "cat"): "not an image that can be read",
        (path, "x" * 100_000): "100,000 characters",
        (path, "unknown"): "&lt;b&gt;unknown&lt;/b&gt;",
    }
    for (file, words), complaint in complaints.items():
        assert ask(visitor, path, "cat") == "" and look(visitor, 0.25)[1]
        assert complaint in ask(visitor, file, words), complaint
        assert look(visitor, 0.25)[::4] == (None, "")


def ask_bare(address: str, *values: Any) -> str:
    """Ask over plain HTTP, without Gradio's client; what the server streams back."""
    call = f"{address}gradio_api/call/find"
    body = json.dumps({"data": values}).encode()
    with urlopen(Request(call, body, {"Content-Type": "application/json"})) as response:
        event = json.load(response)["event_id"]
    with urlopen(f"{call}/{event}", timeout=30) as response:
        return str(response.read().decode())


def test_a_file_of_the_server_cannot_be_asked_for(served: Served, tmp_path: Path) -> None:
    """A path that was never uploaded is refused by Gradio before the model sees it."""
    before = len(served.predictor.calls)
    secret = {"path": image_file(tmp_path / "secret.png"), "meta": {"_type": "gradio.FileData"}}
    answer = ask_bare(served.address, secret, "Labels", "cat")
    assert "event: error" in answer and str(tmp_path) not in answer
    assert len(served.predictor.calls) == before


def test_visitors_do_not_see_one_another(served: Served, tmp_path: Path) -> None:
    """Four at once, each with an image and words of its own, twice over; each sees its own alone."""

    def visit(i: int) -> None:
        visitor = served.visitor()
        path = image_file(tmp_path / f"{i}.png", (100 + i, 80), (i, i, i))
        for words in (f"thing {i}", f"other {i}"):
            assert ask(visitor, path, words) == ""
            _, _, rows, name, text = look(visitor, 0.25)
            assert name == f"{i}.json"
            assert {row[0] for row in rows} == {one["label"] for one in json.loads(text)} == {words}

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(visit, range(4)))


def test_few_visitors_are_kept_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With room for three, six come: the last three see their answers, and the first asks again."""
    monkeypatch.setattr(web, "_VISITORS_KEPT", 3)
    predictor = CountingPredictor()
    app = make_app(predictor)
    served, path = Served(start(app, host="127.0.0.1"), predictor, app), image_file(tmp_path / "a.png")
    visitors = [served.visitor() for _ in range(6)]
    for visitor in visitors:
        assert ask(visitor, path, "cat") == ""
        assert len(app.state_holder.session_data) <= 3
    for visitor in visitors[3:]:
        assert look(visitor, 0.25)[1]
    assert not look(visitors[0], 0.25)[1]
    assert ask(visitors[0], path, "cat") == "" and look(visitors[0], 0.25)[1]
    assert len(app.state_holder.session_data) <= 3
    app.close()


def test_a_large_upload_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the server, whatever the visitor's browser thinks of it."""
    monkeypatch.setattr(web, "_LARGEST_UPLOAD", "10kb")
    app = make_app(CountingPredictor())
    address = start(app, host="127.0.0.1")

    def upload(size: int) -> Any:
        head = b'--x\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n\r\n'
        body = Request(f"{address}gradio_api/upload", head + bytes(size) + b"\r\n--x--\r\n")
        body.add_header("Content-Type", "multipart/form-data; boundary=x")
        return json.load(urlopen(body, timeout=30))

    assert len(upload(5_000)) == 1
    with pytest.raises(HTTPError, match="413"):
        upload(50_000)
    app.close()


def test_no_more_waits_or_draws_at_once_than_there_is_room_for() -> None:
    limits = {fn.concurrency_id: fn.concurrency_limit for fn in make_app(CountingPredictor()).fns.values() if fn.queue}
    assert limits["model"] == 1 and all(isinstance(limit, int) for limit in limits.values()), limits


def test_nothing_is_asked_of_the_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither by the server, from making the app on, nor by the browser: no font or script is elsewhere."""
    refused = allow_loopback_alone(monkeypatch)
    app = make_app(CountingPredictor())
    address = start(app, host="127.0.0.1")
    with urlopen(address) as response:
        html = response.read().decode()
    assert "No image yet" in ask_bare(address, None, "Labels", "cat")
    app.close()
    assert refused == []
    assert app.analytics_enabled is False and app.share_url is None
    loaded = re.findall(r"<(?:script|link|img|iframe)[^>]*(?:src|href)=.(https?://[^\"' >]+)", html)
    assert [url for url in loaded if not url.startswith(address)] == []


def test_the_note_is_plain_text(served: Served) -> None:
    values = [str(component["props"].get("value")) for component in served.app.config["components"]]
    assert any("a &lt;b&gt;note&lt;/b&gt;" in value for value in values)


load_nano = cache(lambda: load_detector("nano"))


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.title)
def test_the_small_model_finds_the_examples(example: Any) -> None:
    answer, problem = search_image(load_nano(), DEFAULTS, example.image, example.kind, example.words, None)
    assert answer is not None and problem == ""
    found = {one["label"] for one in answer.detections if (one["score"] or 0) > 0.25}
    words = words_of(example.kind, example.words)
    assert len(found) == example.finds
    assert all(label in words for label in found)
