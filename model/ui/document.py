"""What goes around Gradio's answers: headers that keep the page to itself, and its own document.

Gradio's document names gradio.app and a picture at GitHub for link previews, wants a manifest at
the root of the host, and finds its files relative to the address in the browser, which behind a
gateway may lack the last slash.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, MutableMapping

    Message = MutableMapping[str, Any]
    Receive = Callable[[], Awaitable[Message]]
    Send = Callable[[Message], Awaitable[None]]
    App = Callable[[Message, Receive, Send], Awaitable[None]]

# Gradio's templates are functions made of text ('unsafe-eval'); nothing may come from elsewhere.
CONTENT_POLICY: Final = "; ".join(
    (
        "default-src 'self'",
        "script-src 'self' 'unsafe-inline' 'unsafe-eval'",
        "style-src 'self' 'unsafe-inline'",
        "img-src 'self' data: blob:",
        "font-src 'self' data:",
        "worker-src 'self' blob:",
        "object-src 'none'",
        "base-uri 'self'",
        "form-action 'self'",
        "frame-ancestors 'self'",
    )
)
HEADERS: Final = (
    (b"content-security-policy", CONTENT_POLICY.encode()),
    (b"referrer-policy", b"same-origin"),
    (b"x-content-type-options", b"nosniff"),
)
UNWANTED_TAGS: Final = re.compile(
    rb'<(?:meta\s+(?:property="og:|name="twitter:)|link rel="manifest")[^>]*>\s*'
)
BASE_TAG: Final = re.compile(rb"<base href=[^>]*>")


class OwnDocument:
    """Gradio's application with our headers on every answer and our head in its document.

    path_prefix: where a gateway shows the page, empty for the root
    icon: SVG; without one in the document, a browser asks the root of the host
    """

    def __init__(self, app: App, path_prefix: str, icon: str) -> None:
        self._app = app
        self._prefix = path_prefix
        self._head = (
            f'<base href="{path_prefix}/" />'
            f'<link rel="icon" type="image/svg+xml" href="data:image/svg+xml,{quote(icon)}" />'
        ).encode()

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answer one ASGI scope."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        scope = self._placed(scope)
        if scope["path"] == f"{self._prefix}/":
            await self._document(scope, receive, send)
        else:
            await self._app(scope, receive, _with_headers(send))

    def _placed(self, scope: Message) -> Message:
        """The scope with the whole path, whether or not the gateway took the prefix off."""
        path = scope["path"]
        if path != self._prefix and not path.startswith(f"{self._prefix}/"):
            path = self._prefix + path
        if path == self._prefix:
            path += "/"
        return {**scope, "path": path, "root_path": self._prefix}

    async def _document(self, scope: Message, receive: Receive, send: Send) -> None:
        # Whole and not compressed, so that it can be read here.
        headers = [pair for pair in scope["headers"] if pair[0] != b"accept-encoding"]
        start: Message = {}
        body = bytearray()

        async def collect(message: Message) -> None:
            if message["type"] == "http.response.start":
                start.update(message)
                return
            body.extend(message.get("body", b""))
            if not message.get("more_body"):
                document = self._own(bytes(body)) if _is_html(start) else bytes(body)
                start["headers"] = [
                    *(pair for pair in start["headers"] if pair[0] != b"content-length"),
                    (b"content-length", str(len(document)).encode()),
                ]
                await _with_headers(send)(start)
                await send({"type": "http.response.body", "body": document})

        await self._app({**scope, "headers": headers}, receive, collect)

    def _own(self, document: bytes) -> bytes:
        document = UNWANTED_TAGS.sub(b"", document)
        return BASE_TAG.sub(lambda _: self._head, document, count=1)


def _is_html(start: Message) -> bool:
    return any(
        name == b"content-type" and value.startswith(b"text/html")
        for name, value in start["headers"]
    )


def _with_headers(send: Send) -> Send:
    async def sender(message: Message) -> None:
        if message["type"] == "http.response.start":
            message["headers"] = [*message["headers"], *HEADERS]
        await send(message)

    return sender
