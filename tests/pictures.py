"""Pictures for tests: drawn, encoded, and the ones that claim to be larger than they are."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
from PIL import Image


def picture(width: int = 48, height: int = 40, mode: str = "RGB") -> Image.Image:
    """Noise on a slope, so that every pixel and every orientation differs."""
    rng = np.random.default_rng(width * 1000 + height)
    slope = np.linspace(0, 200, width)[None, :, None] + np.linspace(0, 50, height)[:, None, None]
    rgba = (slope + rng.integers(0, 6, (height, width, 4))).astype(np.uint8)
    rgba[..., 3] = rng.integers(0, 256, (height, width))
    return Image.fromarray(rgba).convert(mode)


def saved(image: Image.Image, form: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def png_chunk(kind: bytes, content: bytes) -> bytes:
    return (
        struct.pack(">I", len(content))
        + kind
        + content
        + struct.pack(">I", zlib.crc32(kind + content))
    )


def png_bomb(width: int, height: int) -> bytes:
    """A PNG of these dimensions in a few bytes, with pixels for one row."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    row = zlib.compress(bytes(3 * min(width, 1000) + 1))
    chunks = (png_chunk(b"IHDR", header), png_chunk(b"IDAT", row), png_chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def webp_bomb(width: int, height: int) -> bytes:
    """The header of an extended WebP with a canvas of these dimensions."""
    canvas = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    body = b"WEBPVP8X" + struct.pack("<II", 10, 0) + canvas
    return b"RIFF" + struct.pack("<I", len(body)) + body


def gif_bomb(frame_width: int, frame_height: int) -> bytes:
    """A GIF with a screen of one pixel and a first frame of these dimensions."""
    screen = b"GIF89a" + struct.pack("<HHBBB", 1, 1, 0x80, 0, 0) + bytes(6)
    return (
        screen
        + b","
        + struct.pack("<HHHHB", 0, 0, frame_width, frame_height, 0)
        + b"\x02\x02D\x01\0;"
    )


def jpeg_size(encoded: bytes, width: int, height: int) -> bytes:
    """The same JPEG with other dimensions in its frame header."""
    start = encoded.index(b"\xff\xc0") + 5
    return encoded[:start] + struct.pack(">HH", height, width) + encoded[start + 4 :]
