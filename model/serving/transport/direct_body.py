"""A body of known length, received into the one buffer that is kept.

NumPy's memory is not cleared: what has not come takes none, however long a body is announced, and
large arrays ask for huge pages, without which the page faults take longer than the copy. As such a
page is 2 MiB, nobody gets one for the first byte.
"""

from __future__ import annotations

import time
from typing import Final

import numpy as np

PROGRESS_SECONDS: Final = 1.0
# Of a body, kept in memory of their own until more comes.
FIRST_BYTES: Final = 64 * 1024


class DirectBody:
    """The buffer, and how far it is filled."""

    def __init__(self, length: int) -> None:
        self.body = _memory(min(length, FIRST_BYTES))
        self.num_received = 0
        self._length = length
        self._scratch: memoryview | None = None
        self._told = time.monotonic()

    @property
    def complete(self) -> bool:
        """Whether all of it has come."""
        return self.num_received == self._length

    @property
    def num_left(self) -> int:
        """How many bytes are still to come."""
        return self._length - self.num_received

    def space(self) -> memoryview:
        """Where the next bytes go, never beyond the end; empty when all have come."""
        if self._scratch is not None:
            return self._scratch[: self.num_left]
        self._reserve(1)
        return self.body[self.num_received :]

    def advance(self, num_bytes: int) -> None:
        """So much was written into `space`."""
        self.num_received += num_bytes

    def add(self, data: bytes | memoryview) -> None:
        """Take a piece that came elsewhere, no longer than what is left."""
        if self._scratch is None:
            self._reserve(len(data))
            self.body[self.num_received : self.num_received + len(data)] = data
        self.advance(len(data))

    def drop(self, scratch: memoryview) -> None:
        """Keep nothing; the rest is written over `scratch`."""
        self._scratch = scratch
        self.body = memoryview(b"")

    def tells_progress(self) -> bool:
        """Whether it is time to say that the client still sends."""
        now = time.monotonic()
        is_time = now - self._told >= PROGRESS_SECONDS
        if is_time:
            self._told = now
        return is_time

    def _reserve(self, num_bytes: int) -> None:
        if self.num_received + num_bytes > len(self.body) < self._length:
            body = _memory(self._length)
            body[: self.num_received] = self.body[: self.num_received]
            self.body = body


def _memory(num_bytes: int) -> memoryview:
    return np.empty(num_bytes, np.uint8).data
