"""A Hub on 127.0.0.1 that takes `create_repo` and `upload_folder`: what arrives is kept in memory.

It speaks what huggingface_hub's client says without Xet: create the repo, check the card, ask which files are large
(`preupload`), put these by git LFS, and commit the rest inline with pointers to them.
"""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

TOKEN = "hf_loopback"
OWNER = "tester"


class Hub(ThreadingHTTPServer):
    """A Hub whose owner is `OWNER`. `refuse_with` maps words in a path or a body to the status such requests get."""

    def __init__(self, refuse_with: dict[str, int] | None = None) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.refuse_with = refuse_with or {}
        self.repos: dict[str, dict[str, Any]] = {}
        self.commits: list[dict[str, bytes]] = []
        self.large: dict[str, bytes] = {}
        self.messages: list[str] = []

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


@contextmanager
def hub_on_loopback(refuse_with: dict[str, int] | None = None) -> Iterator[Hub]:
    with Hub(refuse_with) as hub:
        thread = threading.Thread(target=hub.serve_forever, daemon=True)
        thread.start()
        yield hub
        hub.shutdown()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    server: Hub

    def do_POST(self) -> None:
        body = self._body()
        if self._refused(body):
            return
        path = self.path.split("?")[0]
        if path == "/api/repos/create":
            self._create(json.loads(body))
        elif path == "/api/validate-yaml":
            self._answer({"errors": [], "warnings": []})
        elif "/preupload/" in path:
            files = [file["path"] for file in json.loads(body)["files"]]
            self._answer({"files": [{"path": p, "uploadMode": _mode(p), "shouldIgnore": False} for p in files]})
        elif path.endswith("/info/lfs/objects/batch"):
            objects = [{**o, "actions": self._upload_of(o)} for o in json.loads(body)["objects"]]
            self._answer({"transfer": "basic", "objects": objects})
        elif "/commit/" in path:
            self._commit([json.loads(line) for line in body.splitlines()])
        else:
            self._answer({"error": f"unknown: {path}"}, 404)

    def do_PUT(self) -> None:
        content = self._body()
        oid = self.path.rsplit("/", 1)[1]
        assert hashlib.sha256(content).hexdigest() == oid
        self.server.large[oid] = content
        self._answer({})

    def do_GET(self) -> None:
        if not self._refused(b""):
            self._answer({"error": f"unknown: {self.path}"}, 404)

    def _create(self, wanted: dict[str, Any]) -> None:
        owner = wanted.get("organization") or OWNER
        address = {"url": f"{self.server.endpoint}/{owner}/{wanted['name']}"}
        exists = address["url"] in self.server.repos
        self.server.repos.setdefault(address["url"], wanted)
        self._answer({**address, "error": "You already created this model repo"}, 409 if exists else 200)

    def _commit(self, lines: list[dict[str, Any]]) -> None:
        files: dict[str, bytes] = {}
        self.server.commits.append(files)
        for line in lines:
            value = line["value"]
            if line["key"] == "header":
                self.server.messages.append(value["summary"])
            elif line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.server.large[value["oid"]]
        repo = self.path.removeprefix("/api/models/").split("/commit/")[0]
        address = f"{self.server.endpoint}/{repo}/commit/{'0' * 40}"
        self._answer({"success": True, "commitOid": "0" * 40, "commitUrl": address})

    def _upload_of(self, wanted: dict[str, Any]) -> dict[str, Any]:
        return {"upload": {"href": f"{self.server.endpoint}/lfs/{wanted['oid']}", "header": {}}}

    def _refused(self, body: bytes) -> bool:
        """Answer with the status that was asked for, or 401 to a stranger."""
        said = f"{self.path} {body!r}"
        status = next((s for words, s in self.server.refuse_with.items() if words in said), None)
        if status is None and self.headers.get("Authorization") not in (f"Bearer {TOKEN}", None):
            status = 401
        if status is not None:
            self._answer({"error": "refused for the test"}, status)
        return status is not None

    def _body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def _answer(self, content: dict[str, Any], status: int = 200) -> None:
        data = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


def _mode(path: str) -> str:
    return "lfs" if path.endswith((".safetensors", ".png")) else "regular"
