"""What one connection may cost, whichever HTTP it speaks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from model.settings import Settings


@dataclass(frozen=True, slots=True)
class ConnectionLimits:
    """Sizes and times of a connection; see RequestSettings and ServerSettings."""

    max_head_bytes: int
    max_body_bytes: int
    head_seconds: float
    send_idle_seconds: float
    keep_alive_seconds: float
    max_streams: int

    @classmethod
    def of(cls, settings: Settings) -> ConnectionLimits:
        """The limits in the settings."""
        return cls(
            max_head_bytes=settings.request.max_head_bytes,
            max_body_bytes=settings.request.max_body_bytes,
            head_seconds=settings.request.head_seconds,
            send_idle_seconds=settings.request.send_idle_seconds,
            keep_alive_seconds=settings.server.keep_alive_seconds,
            max_streams=settings.server.max_http2_streams,
        )
