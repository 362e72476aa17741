"""A server on this machine that answers as no server should, and image files that no decoder can finish."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
import time
import zlib
from collections.abc import Callable, Iterator

OK = b"HTTP/1.1 200 OK\r\n"
Send = Callable[[bytes], None]


def _whole(send: Send, content: bytes) -> None:
    send(OK + b"Content-Length: %d\r\n\r\n" % len(content) + content)


def _cut(send: Send, content: bytes) -> None:
    send(OK + b"Content-Length: %d\r\n\r\n" % (2 * len(content)) + content)


def _cut_chunk(send: Send, content: bytes) -> None:
    send(OK + b"Transfer-Encoding: chunked\r\n\r\n%x\r\n" % (2 * len(content)) + content)


def _endless(send: Send, _: bytes) -> None:
    send(OK + b"\r\n")
    while True:
        send(bytes(65536))


def _endless_moved(send: Send, _: bytes) -> None:
    send(b"HTTP/1.1 302 Found\r\nLocation: /endless_moved\r\n\r\n")
    while True:
        send(bytes(65536))


def _dripping(send: Send, content: bytes) -> None:
    send(OK + b"Content-Length: %d\r\n\r\n" % len(content))
    for byte in content:
        send(bytes([byte]))
        time.sleep(0.1)


def _dripping_head(send: Send, _: bytes) -> None:
    send(OK + b"X: ")
    while True:
        send(b"a")
        time.sleep(0.1)


def _always(head: bytes) -> Callable[[Send, bytes], None]:
    return lambda send, _: send(head)


ANSWERS: dict[str, Callable[[Send, bytes], None]] = {
    "whole": _whole,
    "chunked": lambda send, c: send(OK + b"Transfer-Encoding: chunked\r\n\r\n%x\r\n" % len(c) + c + b"\r\n0\r\n\r\n"),
    "moved": _always(b"HTTP/1.1 302 Found\r\nLocation: /whole\r\n\r\n"),
    "cut": _cut,
    "cut_chunk": _cut_chunk,
    "no_such": _always(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"),
    "bad_status": _always(b"HTTP/1.1 -7 \x1b[2J\r\n\r\n"),
    "no_http": _always(b"\x00\xff\x80 garbage\n\n" * 50),
    "nothing": _always(b""),
    "huge_length": _always(OK + b"Content-Length: 8796093022208\r\n\r\nabc"),
    "huge_header": _always(OK + b"X: " + b"a" * 200_000 + b"\r\n\r\n"),
    "many_headers": _always(OK + b"X: a\r\n" * 5000 + b"\r\n"),
    "bad_chunk": _always(OK + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n"),
    "endless": _endless,
    "endless_moved": _endless_moved,
    "dripping": _dripping,
    "dripping_head": _dripping_head,
    "loop": _always(b"HTTP/1.1 302 Found\r\nLocation: /loop\r\n\r\n"),
    "to_file": _always(b"HTTP/1.1 302 Found\r\nLocation: file:///etc/passwd\r\n\r\n"),
    "to_ftp": _always(b"HTTP/1.1 302 Found\r\nLocation: ftp://127.0.0.1/x\r\n\r\n"),
    "to_neighbour": _always(b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.2:%d/whole\r\n\r\n"),
    "text": _always(OK + b"Content-Length: 5\r\n\r\nhello"),
}  # fmt: skip


@contextlib.contextmanager
def odd_server(content: bytes) -> Iterator[tuple[str, list[str]]]:
    """Serves `content` under each name in `ANSWERS`; gives its address and the paths that were asked for so far.

    It knows no ranges.
    """
    asked: list[str] = []
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]

        def serve(connection: socket.socket) -> None:
            with connection, contextlib.suppress(OSError):
                head = b""
                while b"\r\n\r\n" not in head:
                    head += connection.recv(4096) or b"\r\n\r\n"
                name = head.split(b" ")[1].decode().strip("/").partition(".")[0] if b" " in head else ""
                asked.append(name)

                def send(data: bytes) -> None:
                    connection.sendall(data.replace(b"%d", str(port).encode()) if name == "to_neighbour" else data)

                ANSWERS[name](send, content)

        def accept() -> None:
            with contextlib.suppress(OSError):
                while True:
                    threading.Thread(target=serve, args=(listening.accept()[0],), daemon=True).start()

        threading.Thread(target=accept, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{port}", asked
        finally:
            with contextlib.suppress(OSError):
                listening.shutdown(socket.SHUT_RDWR)


def png_head(width: int, height: int) -> bytes:
    """A PNG that says how large it is, and holds no pixels: 57 bytes."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")
