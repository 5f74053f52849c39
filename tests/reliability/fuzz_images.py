"""Mutated pictures to the decoder, in a process of little memory: `python -m … SECONDS [planted]`.

Each must decode or be refused as an InvalidImage, in bounded time. Prints what was seen as JSON.
planted: with a fault in the decoder that only some mutations meet.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from collections import Counter
from typing import Any, Final

from hypothesis import strategies as st

from model.checkpoint import read_checkpoint
from model.demo import CHECKPOINT_DIR
from model.errors import InvalidImage
from model.serving import images
from model.settings import ImageSettings
from tests.mutations import EDITS, edited, fuzz
from tests.pictures import picture, saved
from tests.reliability.protocols import ADDRESS

MAX_EXAMPLES: Final = 20_000
MEMORY_BYTES: Final = 2 << 30
# Of the largest picture that the limits let in, on a busy machine.
LONGEST_SECONDS: Final = 5.0
CHECKPOINT: Final = read_checkpoint(CHECKPOINT_DIR)
LIMITS: Final = ImageSettings()
TOKEN_SIDE: Final = CHECKPOINT.patch_size * CHECKPOINT.merge_size
LONGEST_SIDE: Final = (CHECKPOINT.max_pixels * LIMITS.max_aspect_ratio) ** 0.5 + TOKEN_SIDE
GOOD: Final = [
    saved(picture(), "JPEG", quality=80),
    saved(picture(), "JPEG", progressive=True),
    saved(
        picture(mode="L"),
        "JPEG",
        exif=b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0",
    ),
    saved(picture(mode="CMYK"), "JPEG"),
    saved(picture(24, 20)),
    saved(picture(24, 20, "RGBA")),
    saved(picture(24, 20, "P"), transparency=0),
    saved(picture(24, 20, "1")),
    saved(picture(), "WEBP", quality=50),
    saved(picture(24, 20, "RGBA"), "WEBP", lossless=True),
    saved(picture(), "WEBP", save_all=True, append_images=[picture().rotate(90)]),
    saved(picture(24, 20, "P"), "GIF", save_all=True, append_images=[picture(24, 20, "P")]),
]
MUTATED: Final = st.builds(edited, st.sampled_from(GOOD), EDITS)


def plant() -> None:
    """Make the decoder trip over orientation, which some mutations of EXIF ask for."""

    def broken(image: Any) -> None:
        turn = original(image)
        if turn is not None and image.mode == "L":
            raise IndexError("planted")

    original = images._turn
    images._turn = broken


def main(seconds: float) -> None:
    """Fuzz, and print the numbers."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    seen: Counter[str] = Counter()
    slowest = 0.0

    def check(encoded: bytes) -> None:
        nonlocal slowest
        started = time.perf_counter()
        text = ""
        try:
            decoded = images.decode_image(encoded, CHECKPOINT, LIMITS)
            seen["decoded"] += 1
            height, width, _ = decoded.pixels.shape
            # Of a very long picture one row of tokens may be more than the area: see smart_resize.
            assert height * width <= CHECKPOINT.max_pixels or min(height, width) == TOKEN_SIDE
            assert max(height, width) <= LONGEST_SIDE
        except InvalidImage as e:
            text = str(e)
            seen["refused"] += 1
        took = time.perf_counter() - started
        assert not ADDRESS.search(text), text
        slowest = max(slowest, took)
        assert took < LONGEST_SECONDS, f"{took:.1f} s"

    num = fuzz(check, MUTATED, seconds=seconds, max_examples=MAX_EXAMPLES)
    print(json.dumps({"examples": num, **seen, "slowest_seconds": slowest}))


if __name__ == "__main__":
    if sys.argv[2:] == ["planted"]:
        plant()
    main(float(sys.argv[1]))
