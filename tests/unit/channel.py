"""The two sides of an ASGI connection, played by a test."""

from __future__ import annotations

import asyncio
from typing import Any


class Channel:
    """An ASGI receive over given chunks, then a disconnect when told, or at once."""

    def __init__(self, *chunks: bytes, complete: bool = True) -> None:
        self._messages: list[dict[str, Any]] = [
            {"type": "http.request", "body": chunk, "more_body": True} for chunk in chunks
        ]
        if complete:
            self._messages.append({"type": "http.request", "body": b"", "more_body": False})
        self.gone = asyncio.Event()
        if not complete:
            self.gone.set()

    async def __call__(self) -> dict[str, Any]:
        if self._messages:
            return self._messages.pop(0)
        await self.gone.wait()
        return {"type": "http.disconnect"}

    @property
    def num_unread(self) -> int:
        return len(self._messages)


class Sent:
    """An ASGI send that keeps what it was given."""

    def __init__(self) -> None:
        self.messages: list[dict[str, Any]] = []

    async def __call__(self, message: dict[str, Any]) -> None:
        self.messages.append(message)

    @property
    def body(self) -> bytes:
        return b"".join(message.get("body", b"") for message in self.messages)
