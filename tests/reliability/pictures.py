"""Pictures that must be refused, each by its own words; and odd ones that must not be."""

from __future__ import annotations

import struct
import zlib
from typing import Final

import numpy as np
from PIL import Image

from tests.pictures import gif_bomb, jpeg_size, picture, png_bomb, png_chunk, saved, webp_bomb


def with_bad_pixels(png: bytes) -> bytes:
    """The same PNG, its compressed pixels broken in their middle, all checksums right."""
    start = png.index(b"IDAT")
    [length] = struct.unpack_from(">I", png, start - 4)
    data = bytearray(png[start + 4 : start + 4 + length])
    data[len(data) // 2 : len(data) // 2 + 16] = bytes(16)
    return png[: start - 4] + png_chunk(b"IDAT", bytes(data)) + png[start + 8 + length :]


PNG: Final = saved(picture())
JPEG: Final = saved(picture(), "JPEG", quality=90)
GIF: Final = saved(picture(8, 8, "P"), "GIF")
PROGRESSIVE: Final = saved(picture(), "JPEG", progressive=True)
LAST_SCAN: Final = PROGRESSIVE[PROGRESSIVE.rindex(b"\xff\xda") : -2]
NOT_ONE: Final = "image is not a JPEG, PNG, WebP or GIF: it"

BAD: Final[dict[str, tuple[bytes, str]]] = {
    "no bytes": (b"", "image is empty: it has 0 bytes"),
    "text": (b"not a picture", f"{NOT_ONE} starts with 'not a picture' and has 13 bytes"),
    "zeros": (bytes(20), f"{NOT_ONE} starts with bytes 00 00 00 00 00 00 00 00 and has 20 bytes"),
    "HEIC": (b"\0\0\0\x18ftypheic\0\0", f"{NOT_ONE} is a HEIC picture"),
    "AVIF": (b"\0\0\0\x18ftypavif\0\0", f"{NOT_ONE} is an AVIF picture"),
    "TIFF": (saved(picture(), "TIFF"), f"{NOT_ONE} is a TIFF picture"),
    "BMP": (saved(picture(), "BMP"), f"{NOT_ONE} is a BMP picture"),
    "PDF": (b"%PDF-1.7\n", f"{NOT_ONE} is a PDF document"),
    "SVG": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", f"{NOT_ONE} is XML or SVG text"),
    "a web page": (b"<!DOCTYPE html><html>", f"{NOT_ONE} is an HTML page"),
    "a JPEG's first bytes": (JPEG[:3], "image is a JPEG whose header is corrupt or cut short"),
    "a PNG's first bytes": (PNG[:20], "image is a PNG whose header is corrupt or cut short"),
    "a JPEG without its end": (
        JPEG[:-100],
        "image is a JPEG of 48 x 40 pixels that cannot be decoded: it is corrupt or cut short",
    ),
    "half a PNG": (
        PNG[: len(PNG) // 2],
        "image is a PNG of 48 x 40 pixels that cannot be decoded: it is corrupt or cut short",
    ),
    "corrupt pixels": (
        with_bad_pixels(PNG),
        "image is a PNG of 48 x 40 pixels that cannot be decoded: it is corrupt or cut short",
    ),
    "a PNG of 900 megapixels": (
        png_bomb(30_000, 30_000),
        "image of 30000 x 30000 pixels has a side over the limit of 16384",
    ),
    "a JPEG of 4 gigapixels": (
        jpeg_size(JPEG, 65_500, 65_500),
        "image of 65500 x 65500 pixels has a side over the limit of 16384",
    ),
    "a JPEG of 100 megapixels": (
        jpeg_size(JPEG, 10_000, 10_000),
        "image of 10000 x 10000 pixels has 100000000 pixels; the limit is 40000000",
    ),
    "a WebP canvas of 256 terapixels": (
        webp_bomb(1 << 24, 1 << 24),
        "image of 16777216 x 16777216 pixels has a side over the limit of 16384",
    ),
    "a GIF frame larger than its screen": (
        gif_bomb(7_000, 7_000),
        "image of 7000 x 7000 pixels has 49000000 pixels; the limit is 40000000",
    ),
    "no pixels": (png_bomb(0, 10), "image of 0 x 10 pixels is empty"),
    "a strip of 300:1": (
        saved(picture(3000, 10)),
        "image of 3000 x 10 pixels has sides 300:1; the limit is 200:1",
    ),
    "a JPEG of 100 scans": (
        PROGRESSIVE[:-2] + LAST_SCAN * 100 + b"\xff\xd9",
        "image is a JPEG of over 64 scans, which is the limit",
    ),
    "a JPEG of 3000 comments": (
        JPEG[:2] + b"\xff\xfe\0\x02" * 3000 + JPEG[2:],
        "image is a JPEG of over 2000 segments, which is the limit",
    ),
    "a PNG whose comment inflates to 30 MiB": (
        PNG[:33] + png_chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(30 << 20))) + PNG[33:],
        "image is a PNG whose header is corrupt or cut short",
    ),
    "over 10 MiB": (
        PNG + bytes(10 << 20),
        f"image has {len(PNG) + (10 << 20)} bytes encoded; the limit is 10485760",
    ),
}

# What cameras, browsers, and attackers send that is a picture all the same.
ODD: Final[dict[str, bytes]] = {
    "one pixel": saved(picture(1, 1)),
    "two by three pixels": saved(picture(2, 3), "GIF"),
    "the longest side": saved(picture(16_384, 82, "L")),
    "the largest aspect": saved(picture(400, 2)),
    "grey": saved(picture(mode="L")),
    "one bit a pixel": saved(picture(mode="1")),
    "16-bit grey": saved(Image.fromarray(np.full((40, 40), 40_000, np.uint16))),
    "a palette with transparency": saved(picture(mode="P"), transparency=0),
    "RGBA": saved(picture(mode="RGBA")),
    "CMYK JPEG": saved(picture(mode="CMYK"), "JPEG"),
    "YCCK JPEG, upside down": saved(
        picture(mode="CMYK"),
        "JPEG",
        exif=b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x03\0\0\0",
    ),
    "progressive JPEG": PROGRESSIVE,
    "lossless WebP": saved(picture(mode="RGBA"), "WEBP", lossless=True),
    "animated GIF": saved(
        picture(mode="P"), "GIF", save_all=True, append_images=[picture(mode="P").rotate(90)] * 3
    ),
    "animated WebP": saved(
        picture(), "WEBP", save_all=True, append_images=[picture().rotate(90)] * 3
    ),
    "animated PNG": saved(picture(), "PNG", save_all=True, append_images=[picture().rotate(90)]),
    "broken EXIF": saved(picture(), "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff"),
    "a PNG that is a ZIP archive too": PNG + b"PK\x03\x04" + bytes(26) + b"PK\x05\x06" + bytes(18),
    "a GIF that is JavaScript too": saved(picture(mode="P"), "GIF") + b"/*\xff*/=1;alert(1)//",
    "a JPEG with a PHP comment": JPEG[:2]
    + b"\xff\xfe\0\x1d<?php system($_GET[0]); ?>\0"
    + JPEG[2:],
}
