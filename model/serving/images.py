"""Encoded pictures to what the vision tower takes: checked, upright, RGB, resized.

Knows what a client may send and what becomes of its pixels. Knows no protocol and no model; fetches
nothing.

What a picture means: EXIF orientation is applied; transparency is laid on white; of an animation
the first frame counts; 16-bit grey keeps its high byte. Corrupt metadata is ignored, corrupt pixels
are not.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import math
import re
import struct
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Final

import numpy as np
import pybase64
from PIL import Image
from PIL.ExifTags import Base as ExifTag

from model.errors import InvalidImage, InvalidRequest
from model.request import ImageInput
from model.serving.image_files import MODEL_ASPECT_RATIO, beginning, open_image

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from model.checkpoint import Checkpoint
    from model.settings import ImageSettings


UPRIGHT: Final = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
SIDEWAYS: Final = frozenset(UPRIGHT[orientation] for orientation in (5, 6, 7, 8))
# How many times finer than needed a JPEG is decoded at least: the resize then sees what it would
# see of the whole picture.
DRAFT_MARGIN: Final = 2
DATA_URL: Final = re.compile(r"data:([^,]*),", re.IGNORECASE)
WHITE_SPACE: Final = re.compile(r"[ \t\r\n]+")
NOT_BASE64: Final = re.compile(r"[^A-Za-z0-9+/=]")


@dataclass(frozen=True, slots=True, eq=False)
class DecodedImage:
    """A picture ready for a prompt, its place there not yet known; fields as in ImageInput.

    pixels: [height, width, 3] uint8 RGB, C-contiguous
    """

    pixels: NDArray[np.uint8]
    grid_height: int
    grid_width: int
    num_tokens: int
    digest: bytes
    source_width: int
    source_height: int

    def placed(self, offset: int) -> ImageInput:
        """The engine's form of it, its first placeholder at `offset`."""
        return ImageInput(
            pixels=self.pixels,
            grid_height=self.grid_height,
            grid_width=self.grid_width,
            offset=offset,
            num_tokens=self.num_tokens,
            digest=self.digest,
            source_width=self.source_width,
            source_height=self.source_height,
        )


@dataclass(frozen=True, slots=True)
class PixelBounds:
    """The area, in pixels after resizing, that a request asks for; None leaves it to the server."""

    min_pixels: int | None = None
    max_pixels: int | None = None


SERVER_BOUNDS: Final = PixelBounds()


class ImageSource(Enum):
    """In which form a client sent a picture."""

    ENCODED = "encoded bytes"
    BASE64 = "base64 text"
    DATA_URL = "data: URL"
    URL = "http(s) URL"


def is_url(value: bytes | str) -> bool:
    """Whether a picture is an http(s) URL, by its beginning: no file and no base64 begins so."""
    return _beginning(value).startswith(("http://", "https://"))


def _beginning(value: bytes | str) -> str:
    return value[:8].lower() if isinstance(value, str) else value[:8].lower().decode("latin-1")


def classify(value: bytes | str, *, base64_text: bool = False) -> ImageSource:
    """Tell the form of `value`, by its beginning alone.

    http(s) and data: URLs are known by their scheme, as text and as bytes: no picture and no base64
    begins so. Everything else is base64 where the caller says so, else it is encoded bytes.

    Raises InvalidImage for text that is none of these.
    """
    if is_url(value):
        return ImageSource.URL
    if _beginning(value).startswith("data:"):
        return ImageSource.DATA_URL
    if base64_text:
        return ImageSource.BASE64
    if isinstance(value, str):
        seen = beginning(value[:16].encode("utf-8", "replace"))
        raise InvalidImage(f"image is neither a data: URL nor an http(s) URL: {seen}")
    return ImageSource.ENCODED


def decode_base64(text: bytes | str, max_bytes: int) -> bytes:
    """Decode standard padded base64, or a data: URL that carries it; line breaks are no fault.

    Raises InvalidImage: other characters, a wrong length, more than max_bytes once decoded.
    """
    if isinstance(text, bytes):
        text = text.decode("latin-1")
    if header := DATA_URL.match(text[:256]):
        if not header[1].lower().endswith(";base64"):
            raise InvalidImage("image is a data: URL without ';base64'; only base64 is read")
        text = text[header.end() :]
    elif text[:5].lower() == "data:":
        raise InvalidImage("image is a data: URL without a comma in its first 256 characters")
    if _decoded_bytes(text) <= max_bytes:
        with suppress(ValueError):
            return pybase64.b64decode(text, validate=True)
    # Slower: white space is taken out, and what is wrong is named.
    text = WHITE_SPACE.sub("", text)
    if (num_bytes := _decoded_bytes(text)) > max_bytes:
        raise InvalidImage(f"image has {num_bytes} bytes encoded; the limit is {max_bytes}")
    if bad := NOT_BASE64.search(text):
        raise InvalidImage(
            f"image is not base64: character {bad.start()} is {bad[0]!a}, "
            "not one of A-Z a-z 0-9 + / ="
        )
    try:
        return base64.b64decode(text, validate=True)
    except binascii.Error as e:
        raise InvalidImage(
            f"image is not base64: its {len(text)} characters are cut short or wrongly padded"
        ) from e


def _decoded_bytes(text: str) -> int:
    return len(text) // 4 * 3 - text[-2:].count("=")


def smart_resize(
    height: int, width: int, factor: int, min_pixels: int, max_pixels: int
) -> tuple[int, int]:
    """Height and width as the model sees them: multiples of `factor`, the area within the limits.

    Equal to transformers' smart_resize of Qwen2-VL, so that grids agree with training; as there,
    very long pictures may miss the area.
    Raises InvalidImage for sides further apart than 200:1.
    """
    aspect = max(height, width) / min(height, width)
    if aspect > MODEL_ASPECT_RATIO:
        raise InvalidImage(
            f"image of {width} x {height} pixels has sides {aspect:g}:1; the model takes at most "
            f"{MODEL_ASPECT_RATIO}:1"
        )
    rows, columns = round(height / factor), round(width / factor)
    if rows * columns * factor**2 > max_pixels:
        shrink = math.sqrt(height * width / max_pixels)
        rows = max(1, math.floor(height / shrink / factor))
        columns = max(1, math.floor(width / shrink / factor))
    elif rows * columns * factor**2 < min_pixels:
        enlarge = math.sqrt(min_pixels / (height * width))
        rows = math.ceil(height * enlarge / factor)
        columns = math.ceil(width * enlarge / factor)
    return rows * factor, columns * factor


def decode_image(
    value: bytes | str,
    checkpoint: Checkpoint,
    limits: ImageSettings,
    bounds: PixelBounds = SERVER_BOUNDS,
    *,
    base64_text: bool = False,
) -> DecodedImage:
    """Decode one picture and resize it as the model was trained; stateless, for any thread.

    value, base64_text: as in `classify`
    bounds: at most the server's max_pixels; max_pixels alone lowers min_pixels with it

    Raises InvalidImage: not a picture, corrupt, over a limit, a URL; InvalidRequest: bad bounds.
    """
    low, high = _area(checkpoint, limits, bounds)
    source = classify(value, base64_text=base64_text)
    if source is ImageSource.URL:
        raise InvalidImage("image is a URL, which is not a picture yet")
    if source is not ImageSource.ENCODED:
        value = decode_base64(value, limits.max_bytes)
    assert isinstance(value, bytes)
    factor = checkpoint.patch_size * checkpoint.merge_size

    def needed(source_width: int, source_height: int) -> tuple[int, int]:
        rows, columns = smart_resize(source_height, source_width, factor, low, high)
        return DRAFT_MARGIN * columns, DRAFT_MARGIN * rows

    opened = open_image(value, limits, needed)
    turn = _turn(opened.image)
    image = _rgb(opened.image)
    image = image if turn is None else image.transpose(turn)
    source_width, source_height = opened.width, opened.height
    if turn in SIDEWAYS:
        source_width, source_height = source_height, source_width
    height, width = smart_resize(source_height, source_width, factor, low, high)
    resized = image.resize((width, height), Image.Resampling.BICUBIC)
    pixels = np.array(resized, dtype=np.uint8, order="C")
    return DecodedImage(
        pixels=pixels,
        grid_height=height // checkpoint.patch_size,
        grid_width=width // checkpoint.patch_size,
        num_tokens=height * width // factor**2,
        digest=_digest(value, height, width),
        source_width=source_width,
        source_height=source_height,
    )


def most_pixels(checkpoint: Checkpoint, limits: ImageSettings) -> int:
    """The largest area after resizing that a request may ask for."""
    return limits.max_pixels or checkpoint.max_pixels


def _area(checkpoint: Checkpoint, limits: ImageSettings, bounds: PixelBounds) -> tuple[int, int]:
    """The least and most pixels after resizing: the request's, the settings', the checkpoint's."""
    cap = most_pixels(checkpoint, limits)
    for name, value in (("min_pixels", bounds.min_pixels), ("max_pixels", bounds.max_pixels)):
        if value is not None and not 1 <= value <= cap:
            raise InvalidRequest(f"{name} is {value}; it must be from 1 to {cap}")
    high = bounds.max_pixels or cap
    if bounds.min_pixels is None:
        return min(limits.min_pixels or checkpoint.min_pixels, high), high
    if bounds.min_pixels > high:
        raise InvalidRequest(
            f"min_pixels is {bounds.min_pixels}; it must be at most max_pixels, which is {high}"
        )
    return bounds.min_pixels, high


def _rgb(image: Image.Image) -> Image.Image:
    """Any mode that the four formats decode to, as RGB on white."""
    if image.mode.startswith("I"):
        image = _eight_bit(image)
    if not image.has_transparency_data:
        return image if image.mode == "RGB" else image.convert("RGB")
    rgba = image if image.mode == "RGBA" else image.convert("RGBA")
    white = Image.new("RGB", image.size, (255, 255, 255))
    white.paste(rgba, mask=rgba)  # the same pixels as alpha_composite, in half the memory
    return white


def _eight_bit(image: Image.Image) -> Image.Image:
    """16-bit grey by its high byte, as libpng does; Pillow would clip nearly all of it to white."""
    grey = np.asarray(image)
    narrow = Image.fromarray((grey >> 8).astype(np.uint8))
    narrow.info = {key: value for key, value in image.info.items() if key != "transparency"}
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        alpha = np.where(grey == transparent, 0, 255).astype(np.uint8)
        narrow.putalpha(Image.fromarray(alpha))
    return narrow


def _turn(image: Image.Image) -> Image.Transpose | None:
    """What makes the picture look as its EXIF orientation wants it; None for no or broken EXIF."""
    try:
        orientation = image.getexif().get(ExifTag.Orientation)
    except Exception:  # a picture with corrupt metadata is still a picture
        return None
    # Not ImageOps.exif_transpose: it writes the EXIF anew, which can fail where reading did not.
    return UPRIGHT.get(orientation) if isinstance(orientation, int) else None


def _digest(encoded: bytes, height: int, width: int) -> bytes:
    """BLAKE2b over a file and the size it was resized to, which together decide every pixel."""
    digest = hashlib.blake2b(struct.pack("<QQ", height, width), digest_size=32)
    digest.update(encoded)
    return digest.digest()
