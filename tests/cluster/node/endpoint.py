"""A node's HTTPS endpoint: logs as a kubelet gives them to `kubectl logs`, and a way to crash."""

from __future__ import annotations

import ssl
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Final
from urllib.parse import parse_qs, urlsplit

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.cluster.node.container import Container

PORT: Final = 10250
LOOK_SECONDS: Final = 0.2
NUM_PATH_PARTS: Final = 4  # action, namespace, pod, container


class _Handler(BaseHTTPRequestHandler):
    find: Callable[[str, str, str], Container | None]

    def do_GET(self) -> None:
        """`/containerLogs/<namespace>/<pod>/<container>?tailLines=…&follow=true`."""
        container = self._container("containerLogs")
        if container is not None and container.log_file.exists():
            self._begin()
            self._write(container, parse_qs(urlsplit(self.path).query))
        else:
            self.send_error(404, "no such container")

    def do_POST(self) -> None:
        """`/crash/<namespace>/<pod>/<container>`: SIGKILL to its first process."""
        # A connection that is closed on an unread body is reset, and the answer may go with it.
        self.rfile.read(int(self.headers.get("Content-Length", "0")))
        container = self._container("crash")
        if container is None:
            self.send_error(404, "no such container")
            return
        container.kill()
        self._begin()
        self.wfile.write(b"{}")

    def _container(self, action: str) -> Container | None:
        parts = urlsplit(self.path).path.strip("/").split("/")
        if len(parts) != NUM_PATH_PARTS or parts[0] != action:
            return None
        return type(self).find(*parts[1:])

    def _begin(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/plain")
        self.send_header("Connection", "close")
        self.end_headers()

    def _write(self, container: Container, asked: dict[str, list[str]]) -> None:
        with container.log_file.open("rb") as log:
            content = log.read()
            if "tailLines" in asked:
                wanted = int(asked["tailLines"][0])
                content = b"".join(content.splitlines(keepends=True)[-wanted:] if wanted else [])
            self.wfile.write(content)
            while asked.get("follow") == ["true"] and not container.ended.is_set():
                time.sleep(LOOK_SECONDS)
                self.wfile.write(log.read())
            self.wfile.write(log.read())

    def log_message(self, *_: object) -> None:
        """Say nothing."""


def serve_endpoint(
    address: str, folder: Path, find: Callable[[str, str, str], Container | None]
) -> None:
    """Answer at the node's address, in a thread; `find(namespace, pod, container)`."""
    handler = type("Handler", (_Handler,), {"find": staticmethod(find)})
    server = ThreadingHTTPServer((address, PORT), handler)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "nodes.crt", folder / "nodes.key")
    server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
