"""Digests of a sequence's blocks: equal digests mean equal tokens, pictures and everything before.

Chained over the blocks, so that a block is known only together with its whole beginning.
"""

from __future__ import annotations

import struct
from array import array
from hashlib import blake2b
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from model.engine.sequence import Sequence
    from model.request import GenerateRequest

DIGEST_BYTES = 16


def extend_digests(sequence: Sequence, block_size: int) -> None:
    """Bring sequence.block_digests up to the last full block of its known tokens."""
    digests = sequence.block_digests
    request = sequence.request
    num_full = len(sequence.token_ids) // block_size
    while len(digests) < num_full:
        start = len(digests) * block_size
        parent = digests[-1] if digests else request.cache_salt
        tokens = array("q", sequence.token_ids[start : start + block_size]).tobytes()
        pictures = _pictures(request, start, start + block_size)
        # Lengths first: no two lists of parts give the same bytes.
        lengths = struct.pack("<QQQ", len(parent), len(tokens), len(pictures))
        content = b"".join((lengths, parent, tokens, pictures))
        digests.append(blake2b(content, digest_size=DIGEST_BYTES).digest())


def _pictures(request: GenerateRequest, start: int, end: int) -> bytes:
    """Every picture with a token in [start, end), with where it begins.

    All placeholders are one token id: without this, two pictures of one size would share KV.
    """
    if not request.images:
        return b""
    return b"".join(
        struct.pack("<qQ", image.offset - start, len(image.digest)) + image.digest
        for image in request.images
        if image.offset < end and image.end > start
    )
