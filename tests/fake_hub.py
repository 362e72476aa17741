"""A Hub that refuses, one that is not there, and its client's cache."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants, hf_api

NOWHERE = "http://127.0.0.1:9"
COMMIT = "0123456789" * 4
GATED = "Access to model x/y is restricted."


class _Refusing(BaseHTTPRequestHandler):
    """Answers everything as the Hub answers for a repo that may not be read."""

    def __init__(self, *request: Any, status: int, code: str | None) -> None:
        self.status, self.code = status, code
        super().__init__(*request)

    def do_GET(self) -> None:
        self.send_response(self.status)
        for name, value in (("X-Error-Code", self.code), ("X-Error-Message", GATED), ("Content-Length", "0")):
            if value is not None:
                self.send_header(name, value)
        self.end_headers()

    do_HEAD = do_GET

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


@contextmanager
def hub_that_refuses(monkeypatch: pytest.MonkeyPatch, status: int, code: str | None) -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(_Refusing, status=status, code=code)) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        endpoint = f"http://127.0.0.1:{server.server_address[1]}"
        hub_at(monkeypatch, endpoint)
        yield endpoint
        server.shutdown()
        thread.join()


def hub_at(monkeypatch: pytest.MonkeyPatch, endpoint: str) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", endpoint + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(hf_api.api, "endpoint", endpoint)
    monkeypatch.setattr("datasets.config.HF_ENDPOINT", endpoint)


def refuse_to_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail where a client pauses before it tries again."""

    def wait(seconds: float) -> None:
        pytest.fail(f"waits for {seconds} seconds")

    monkeypatch.setattr("time.sleep", wait)


def put_into_cache(cache: Path, repo: str, folder: Path) -> None:
    """Lay the files of a folder into a cache as the client of the Hub does for a repo."""
    place = cache / f"models--{repo.replace('/', '--')}"
    shutil.copytree(folder, place / "snapshots" / COMMIT)
    (place / "refs").mkdir()
    (place / "refs" / "main").write_text(COMMIT)
