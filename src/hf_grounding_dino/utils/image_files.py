"""Opening image files and URLs: which formats are read, and how many bytes and seconds a URL may take.

All image files of the package are opened here. Pillow chooses a decoder by the first bytes of a file, whatever the file
is called, and some hand it to other programs (EPS starts Ghostscript): only formats that images are kept in are tried.
"""

from __future__ import annotations

import ipaddress
import socket
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection, IncompleteRead, InvalidURL
from io import BytesIO
from pathlib import Path
from typing import IO, Any, Final
from urllib.parse import urljoin

from PIL import Image

from .printable import one_line

IMAGE_FORMATS: Final[tuple[str, ...]] = (
    "JPEG",
    "MPO",
    "PNG",
    "WEBP",
    "BMP",
    "GIF",
    "TIFF",
    "PPM",
    "JPEG2000",
    "AVIF",
    "HEIF",
)
"""As Pillow calls them; those that it has no decoder for are passed over."""

URL_SCHEMES: Final = ("http://", "https://")
URL_SECONDS: Final = 60.0
"""What a URL may take in all, from its first connection to its last byte."""

MOST_BYTES = 2**27
"""Of an encoded image that does not lie in a file of its own: behind a URL, in an archive."""

_MOST_REDIRECTS: Final = 5
_REDIRECTS: Final = (301, 302, 303, 307, 308)
_READ_AT_ONCE: Final = 2**16
_LONGEST_REASON: Final = 200


def open_image(source: str | Path | bytes | IO[bytes]) -> Image.Image:
    """Open an image file, its content, or an open file, if it has one of `IMAGE_FORMATS`; its pixels are not read yet.

    Raises:
        PIL.UnidentifiedImageError: it has not.
        Exception: whatever the decoders raise on damaged files.
    """
    Image.init()  # loads all decoders; once
    formats = [name for name in IMAGE_FORMATS if name in Image.OPEN]
    return Image.open(BytesIO(source) if isinstance(source, bytes) else source, formats=formats)


def image_suffixes() -> frozenset[str]:
    """What names of files in `IMAGE_FORMATS` end in, in lower case, with the dot."""
    return frozenset(suffix for suffix, name in Image.registered_extensions().items() if name in IMAGE_FORMATS)


# --- URLs --------------------------------------------------------------------------------------------------------


def fetch(url: str, seconds: float | None = None, *, public: bool = False) -> bytes:
    """The content behind an http or https URL, of at most `MOST_BYTES`.

    Args:
        url: its address; redirects are followed.
        seconds: what it may take in all; `URL_SECONDS` by default.
        public: refuse addresses of this machine and of local networks, by whatever name or redirect they come, and ask
            no proxy, which could reach others.

    Raises:
        ValueError: it cannot be had; the message says why on one line and does not name the URL.
    """
    transfer = _Transfer(seconds or URL_SECONDS, public)
    try:
        with transfer.running():
            content = _content(transfer, url)
    except Exception as error:  # servers lead http.client, ssl and the codecs to errors of nearly every kind
        raise ValueError(transfer.lateness or _reason(error)) from error
    if transfer.lateness:  # what was shut while its head was read passes for whole
        raise ValueError(transfer.lateness)
    return content


def _reason(error: Exception) -> str:
    if isinstance(error, IncompleteRead):
        return "the transfer was cut off"
    text = one_line(error)[:_LONGEST_REASON]
    bad_answer = isinstance(error, HTTPException) and not isinstance(error, InvalidURL)
    return f"the answer is no HTTP ({text})" if bad_answer else text


def is_public(address: str) -> bool:
    """Whether an IP address belongs to the internet: not to this machine, a local network or a link."""
    ip = ipaddress.ip_address(address)
    inner = ip.ipv4_mapped or ip.sixtofour if isinstance(ip, ipaddress.IPv6Address) else None
    return all(one.is_global and not one.is_multicast for one in (ip, inner) if one is not None)


def _content(transfer: _Transfer, url: str) -> bytes:
    opener = transfer.opener()
    for _ in range(_MOST_REDIRECTS + 1):
        if not url.lower().startswith(URL_SCHEMES):
            raise ValueError("it leads to what is no http or https URL")
        request = urllib.request.Request(url, headers={"User-Agent": "hf-grounding-dino"})
        try:
            with opener.open(request, timeout=transfer.seconds) as response:
                return _body(response)
        except urllib.error.HTTPError as error:
            target = error.headers.get("Location") if error.code in _REDIRECTS else None
            error.close()
            if target is None:
                raise
            url = urljoin(url, target)
    raise ValueError(f"it is redirected more than {_MOST_REDIRECTS} times")


def _body(response: HTTPResponse) -> bytes:
    length, body = response.length, BytesIO()
    if length is not None and length > MOST_BYTES:
        raise ValueError(f"it has {length:,} bytes, more than {MOST_BYTES:,}")
    while part := response.read(_READ_AT_ONCE):
        body.write(part)
        if body.tell() > MOST_BYTES:
            raise ValueError(f"it has more than {MOST_BYTES:,} bytes")
    if length is not None and body.tell() < length:
        raise ValueError(f"the transfer was cut off after {body.tell():,} of {length:,} bytes")
    return body.getvalue()


class _Transfer:
    """One URL on its way: after `seconds` its connections are shut, whatever they wait for.

    Time limits of sockets do not do: they begin again with every byte.
    """

    def __init__(self, seconds: float, public: bool) -> None:
        self.seconds, self.public, self.lateness = seconds, public, ""
        self._lock, self._end_at = threading.Lock(), time.monotonic() + seconds
        self._sockets: list[socket.socket] = []

    @contextmanager
    def running(self) -> Iterator[None]:
        timer = threading.Timer(self.seconds, self._end)
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()
            with self._lock:
                for one in self._sockets:
                    one.close()
                self._sockets.clear()

    def opener(self) -> urllib.request.OpenerDirector:
        """Without redirects, which would be read to their ends, and without files and FTP, which they could lead to."""
        opener = urllib.request.OpenerDirector()
        needed = (urllib.request.UnknownHandler, urllib.request.HTTPDefaultErrorHandler)
        for kind in (*needed, urllib.request.HTTPErrorProcessor):
            opener.add_handler(kind())
        if not self.public:
            opener.add_handler(urllib.request.ProxyHandler())
        opener.add_handler(_Handler(self))
        return opener

    def connect(self, host: str, port: int) -> socket.socket:
        """A connection to an address that is public.

        Raises:
            ValueError: one of the addresses of the host is not.
        """
        addresses = [str(row[4][0]) for row in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]
        for address in addresses:
            if not is_public(address):
                raise ValueError(f"{host} ({address}) is this machine or in a local network, which is not allowed here")
        for address in addresses[:-1]:
            with suppress(OSError):
                return socket.create_connection((address, port), self._left())
        return socket.create_connection((addresses[-1], port), self._left())

    def _left(self) -> float:
        return max(0.001, self._end_at - time.monotonic())

    def watch(self, connection: socket.socket) -> None:
        """Shut a connection when the time is over; its copy outlives the wrapping by TLS."""
        with self._lock:
            self._sockets.append(connection.dup())
            if self.lateness:
                self._shut()

    def _end(self) -> None:
        with self._lock:
            self.lateness = f"it took longer than {self.seconds:g} seconds"
            self._shut()

    def _shut(self) -> None:
        for one in self._sockets:
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)


class _Connection(HTTPConnection):
    transfer: _Transfer

    def connect(self) -> None:
        if self.transfer.public:
            self.sock = self.transfer.connect(self.host, self.port)
        else:
            super().connect()
        self.transfer.watch(self.sock)


class _SecureConnection(HTTPSConnection, _Connection):  # in this order, TLS begins once `_Connection` has connected
    pass


class _Handler(urllib.request.AbstractHTTPHandler):
    """Makes the connections of a transfer."""

    def __init__(self, transfer: _Transfer) -> None:
        super().__init__()
        self._transfer = transfer

    def http_open(self, request: urllib.request.Request) -> HTTPResponse:
        return self.do_open(self._connection, request)

    def https_open(self, request: urllib.request.Request) -> HTTPResponse:
        return self.do_open(self._secure_connection, request)

    http_request = https_request = urllib.request.AbstractHTTPHandler.do_request_

    def _connection(self, host: str, **options: Any) -> _Connection:
        return self._made(_Connection(host, **options))

    def _secure_connection(self, host: str, **options: Any) -> _Connection:
        return self._made(_SecureConnection(host, **options))

    def _made(self, connection: _Connection) -> _Connection:
        connection.transfer = self._transfer
        return connection
