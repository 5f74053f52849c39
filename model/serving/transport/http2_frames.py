"""How long the frames are that a client announces, before any of them is kept.

h2 looks at a frame's length once the whole frame is there: it would gather 16 MiB to refuse them.
"""

from __future__ import annotations

from typing import Final

PREFACE_BYTES: Final = 24
# RFC 9113, 4.1: three bytes of length, then type, flags and stream in six.
LENGTH_BYTES: Final = 3
REST_OF_HEAD_BYTES: Final = 6


class FrameLengths:
    """Walks from frame to frame through what a client sends, in pieces of any size."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._num_to_skip = PREFACE_BYTES
        self._length = bytearray()

    def allow(self, piece: memoryview) -> bool:
        """Whether no frame that begins in this piece is longer than the limit (bytes)."""
        position = 0
        while True:
            step = min(self._num_to_skip, len(piece) - position)
            position += step
            self._num_to_skip -= step
            if position == len(piece):
                return True
            wanted = LENGTH_BYTES - len(self._length)
            self._length += piece[position : position + wanted]
            position = min(position + wanted, len(piece))
            if len(self._length) < LENGTH_BYTES:
                return True
            length = int.from_bytes(self._length, "big")
            if length > self._limit:
                return False
            self._num_to_skip = REST_OF_HEAD_BYTES + length
            self._length.clear()
