"""Picture files, opened under limits: the header is judged before any pixel exists.

Knows the four formats and their traps. Pillow's own error texts never leave this module: they hold
memory addresses (CVE-2026-22778).
"""

from __future__ import annotations

import io
import re
import struct
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from PIL.GifImagePlugin import GifImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.WebPImagePlugin import WebPImageFile

from model.errors import InvalidImage

if TYPE_CHECKING:
    from collections.abc import Callable

    from PIL import Image
    from PIL.ImageFile import ImageFile

    from model.settings import ImageSettings

MODEL_ASPECT_RATIO: Final = 200
MAX_JPEG_SCANS: Final = 64
MAX_JPEG_SEGMENTS: Final = 2_000
FORMATS: Final = "JPEG, PNG, WebP or GIF"
# The classes instead of Image.open: no list of formats keeps out MPO there, and it
# judges the size by a warning, which is global state, before that size can be named.
READERS: Final[dict[str, type[ImageFile]]] = {
    "JPEG": JpegImageFile,
    "PNG": PngImageFile,
    "WebP": WebPImageFile,
    "GIF": GifImageFile,
}
# Kinds that people send by mistake; `.` stands for any byte.
LOOKALIKES: Final = (
    (rb"....ftyp(heic|heix|mif1|msf1)", "a HEIC picture"),
    (rb"....ftypavi[fs]", "an AVIF picture"),
    (rb"II\*\0|MM\0\*", "a TIFF picture"),
    (rb"BM", "a BMP picture"),
    (rb"%PDF", "a PDF document"),
    (rb"\s*(<\?xml|<svg)", "XML or SVG text"),
    (rb"\s*(?i:<!doctype|<html)", "an HTML page"),
    (rb"/9j/|iVBORw0KG|R0lGOD|UklGR", "base64 text; it must be decoded, or declared as base64"),
)
# A marker: FF and neither 00 (a stuffed FF) nor a restart D0-D7: both belong to a scan's data.
JPEG_MARKER: Final = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]", re.DOTALL)

# Pillow warns of broken metadata in texts that vary with it; Python would log and keep each.
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")


@dataclass(frozen=True, slots=True)
class OpenedImage:
    """A decoded picture; width, height: what its header says, `image` may be smaller."""

    image: Image.Image
    width: int
    height: int


def open_image(
    encoded: bytes, limits: ImageSettings, needed: Callable[[int, int], tuple[int, int]]
) -> OpenedImage:
    """The first frame, decoded; the header is judged before its pixels exist.

    needed: (width, height) of the file → the size below which it must not be decoded; a JPEG can
    leave out the finest detail of its blocks, which costs a fraction
    """
    if len(encoded) > limits.max_bytes:
        raise InvalidImage(
            f"image has {len(encoded)} bytes encoded; the limit is {limits.max_bytes}"
        )
    kind = _kind(encoded)
    if size := _declared_size(kind, encoded):
        _check_size(*size, limits)
    if kind == "JPEG":
        _check_jpeg(encoded)
    # Broad: hostile bytes make Pillow raise OSError, SyntaxError, ValueError, zlib.error …
    try:
        image = READERS[kind](io.BytesIO(encoded))
    except Exception as e:
        raise InvalidImage(f"image is a {kind} whose header is corrupt or cut short") from e
    width, height = image.size
    _check_size(width, height, limits)
    if kind == "JPEG":
        image.draft(None, needed(width, height))
    try:
        image.load()
    except Exception as e:
        raise InvalidImage(
            f"image is a {kind} of {width} x {height} pixels "
            "that cannot be decoded: it is corrupt or cut short"
        ) from e
    return OpenedImage(image, width, height)


def is_picture(encoded: bytes | bytearray) -> bool:
    """Whether a file begins as one of the four formats does."""
    try:
        _kind(bytes(encoded[:64]))
    except InvalidImage:
        return False
    return True


def _check_size(width: int, height: int, limits: ImageSettings) -> None:
    what = f"image of {width} x {height} pixels"
    if min(width, height) < 1:
        raise InvalidImage(f"{what} is empty")
    if max(width, height) > limits.max_side:
        raise InvalidImage(f"{what} has a side over the limit of {limits.max_side}")
    if width * height > limits.max_source_pixels:
        raise InvalidImage(
            f"{what} has {width * height} pixels; the limit is {limits.max_source_pixels}"
        )
    aspect = max(width, height) / min(width, height)
    limit = min(limits.max_aspect_ratio, MODEL_ASPECT_RATIO)
    if aspect > limit:
        raise InvalidImage(f"{what} has sides {aspect:g}:1; the limit is {limit:g}:1")


def _kind(encoded: bytes) -> str:
    """The format by its signature; raises InvalidImage with what was seen instead."""
    if encoded.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if encoded.startswith(b"\x89PNG\r\n\x1a\n"):
        return "PNG"
    if encoded[:4] == b"RIFF" and encoded[8:12] == b"WEBP":
        return "WebP"
    if encoded.startswith((b"GIF87a", b"GIF89a")):
        return "GIF"
    if not encoded:
        raise InvalidImage("image is empty: it has 0 bytes")
    for pattern, name in LOOKALIKES:
        if re.match(pattern, encoded[:64], re.DOTALL):
            raise InvalidImage(f"image is not a {FORMATS}: it is {name}")
    raise InvalidImage(
        f"image is not a {FORMATS}: {beginning(encoded)} and has {len(encoded)} bytes"
    )


def beginning(value: bytes) -> str:
    """At most 16 bytes of a value, safe to print and to log."""
    start = value[:16]
    if start.isascii() and start.decode().isprintable():
        return f"it starts with '{start.decode()}'"
    return f"it starts with bytes {start[:8].hex(' ')}"


def _declared_size(kind: str, encoded: bytes) -> tuple[int, int] | None:
    """Width and height from fixed places of the header, where the format has them.

    Opening a WebP allocates its canvas; the first frame of a GIF may be larger than its screen.
    """
    head = encoded[:30]
    try:
        match kind:
            case "PNG" if head[12:16] == b"IHDR":
                width, height = struct.unpack_from(">II", head, 16)
            case "GIF":
                width, height = struct.unpack_from("<HH", head, 6)
            case "WebP" if head[12:16] == b"VP8X":
                width = int.from_bytes(head[24:27], "little") + 1
                height = int.from_bytes(head[27:30], "little") + 1
            case "WebP" if head[12:16] == b"VP8L":
                (bits,) = struct.unpack_from("<I", head, 21)
                width, height = (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
            case "WebP" if head[12:16] == b"VP8 ":
                width, height = (side & 0x3FFF for side in struct.unpack_from("<HH", head, 26))
            case _:
                return None
    except struct.error as e:
        raise InvalidImage(f"image is a {kind} whose header is corrupt or cut short") from e
    return width, height


def _check_jpeg(encoded: bytes) -> None:
    """Refuse a JPEG of very many scans or segments.

    A scan of a progressive JPEG passes over the whole picture and may take 60 bytes: within the
    byte and pixel limits, a file can ask for an hour of decoding. Encoders write about ten.
    """
    position = num_scans = num_segments = 0
    while marker := JPEG_MARKER.search(encoded, position):
        position = marker.end()
        code = marker[0][-1]
        if code == 0xD9:  # end of image: whatever follows is not decoded
            return
        if code in (0x01, 0xD8):  # these two have no length
            continue
        num_segments += 1
        num_scans += code == 0xDA
        if num_scans > MAX_JPEG_SCANS:
            raise InvalidImage(
                f"image is a JPEG of over {MAX_JPEG_SCANS} scans, which is the limit"
            )
        if num_segments > MAX_JPEG_SEGMENTS:
            raise InvalidImage(
                f"image is a JPEG of over {MAX_JPEG_SEGMENTS} segments, which is the limit"
            )
        position += max(2, int.from_bytes(encoded[position : position + 2], "big"))
