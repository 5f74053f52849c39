"""A web server of pictures on this machine, with every bad habit such a server can have."""

from __future__ import annotations

import gzip
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlsplit

if TYPE_CHECKING:
    import ssl
    from collections.abc import Iterator


@dataclass
class PictureServer:
    """Where it listens, and what it was asked: (path, headers) of each request."""

    port: int
    requests: list[tuple[str, dict[str, str]]] = field(default_factory=list)

    def url(self, path: str, host: str = "127.0.0.1", scheme: str = "http") -> str:
        """A URL of it, under whatever name."""
        return f"{scheme}://{host}:{self.port}{path}"


@contextmanager
def picture_server(picture: bytes, tls: ssl.SSLContext | None = None) -> Iterator[PictureServer]:
    """Serve one picture at /picture.jpg, and its faults at other paths; see `_Handler`."""
    server = _Server(("127.0.0.1", 0), _Handler)
    server.picture = picture  # type: ignore[attr-defined]
    running = PictureServer(server.server_address[1])
    server.running = running  # type: ignore[attr-defined]
    if tls is not None:
        server.socket = tls.wrap_socket(server.socket, server_side=True)
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield running
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Nothing: clients that break off are what some tests are about."""


class _Handler(BaseHTTPRequestHandler):
    server: Any

    def do_GET(self) -> None:
        """Answer by the first part of the path."""
        self.server.running.requests.append((self.path, dict(self.headers)))
        name = urlsplit(self.path).path.strip("/").partition("/")[0]
        getattr(self, f"_{name.partition('.')[0]}")()

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """Nothing: the tests' output is theirs."""

    def _answer(self, body: bytes, status: int = 200, **headers: str) -> None:
        self.send_response(status)
        for key, value in {"content_length": str(len(body)), **headers}.items():
            if value:
                self.send_header(key.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)

    def _picture(self) -> None:
        self._answer(self.server.picture)

    def _redirect(self) -> None:
        [target] = parse_qs(urlsplit(self.path).query)["to"]
        self._answer(b"", 302, location=target)

    def _circle(self) -> None:
        self._answer(b"", 307, location=self.path)

    def _nowhere(self) -> None:
        self._answer(b"", 301)

    def _missing(self) -> None:
        self._answer(b"secret", 404)

    def _secret(self) -> None:
        self._answer(b"root:x:0:0:root")

    def _compressed(self) -> None:
        self._answer(gzip.compress(self.server.picture), content_encoding="gzip")

    def _declared(self) -> None:
        self._answer(self.server.picture, content_length="999999999")

    def _endless(self) -> None:
        self._answer(self.server.picture, content_length="", connection="close")
        while True:
            self.wfile.write(b"\0" * 65536)

    def _silent(self) -> None:
        time.sleep(1)

    def _slow(self) -> None:
        self._answer(b"\xff\xd8\xff", content_length="1000")
        for _ in range(100):
            self.wfile.write(b"\0")
            time.sleep(0.05)

    def _broken(self) -> None:
        self._answer(self.server.picture[:100], content_length=str(len(self.server.picture)))
