"""A server that answers as it is told: for what the real one does only when something is wrong."""

from __future__ import annotations

import json
import threading
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping


@dataclass(frozen=True)
class Reply:
    """One answer; `cut`: the connection ends before the whole body was sent."""

    status: int = 200
    body: bytes = b'{"description": "a cat"}'
    headers: Mapping[str, str] = field(default_factory=dict)
    cut: bool = False

    @classmethod
    def error(cls, status: int, text: str, **headers: str) -> Reply:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return cls(status, json.dumps({"error": text}).encode(), named)

    @classmethod
    def events(cls, *events: dict[str, Any], cut: bool = False) -> Reply:
        body = b": keep-alive\n\n" + b"".join(
            b"event: %s\ndata: %s\n\n"
            % (event["type"].encode(), json.dumps(event, ensure_ascii=False).encode())
            for event in events
        )
        return cls(200, body, {"Content-Type": "text/event-stream"}, cut)


@dataclass
class Script:
    """Replies in the order they are given, the last one for ever; and what was asked."""

    url: str
    replies: list[Reply]
    questions: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)

    def next(self) -> Reply:
        return self.replies.pop(0) if len(self.replies) > 1 else self.replies[0]


@contextmanager
def scripted(*replies: Reply, port: int = 0) -> Iterator[Script]:
    """A server on this machine; port 0 takes a free one."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            script.questions.append(json.loads(body))
            script.headers.append({name.lower(): text for name, text in self.headers.items()})
            reply = script.next()
            self.send_response(reply.status)
            for name, value in reply.headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(reply.body) + reply.cut))
            self.end_headers()
            self.wfile.write(reply.body)
            self.close_connection = reply.cut

        def log_message(self, *args: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    script = Script(f"http://127.0.0.1:{server.server_port}", list(replies))
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield script
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
