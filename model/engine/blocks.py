"""The KV cache's blocks as numbers: which are free, who holds them, and what full ones contain.

Knows ids, counts and digests only; the tensors are the runner's. Source: paging, Kwon et al., SOSP
2023, section 4; reuse of prefixes by block, the same with hashes as vLLM's automatic prefix
caching.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence


class BlockPool:
    """Refcounted blocks 0 … num_blocks - 1; a block is free when nobody holds it.

    A free block keeps its content, and the digest it is known by, until it is needed for another.
    """

    def __init__(self, num_blocks: int, block_size: int) -> None:
        assert num_blocks > 0
        assert block_size > 0
        self.num_blocks = num_blocks
        self.block_size = block_size
        # In the order they are taken: blocks without a digest first, then the longest unused.
        self._free: OrderedDict[int, None] = OrderedDict.fromkeys(range(num_blocks))
        self._ref_counts = [0] * num_blocks
        self._digests: list[bytes | None] = [None] * num_blocks
        self._known: dict[bytes, int] = {}

    @property
    def num_free(self) -> int:
        """Blocks that can be allocated now, those that still know something included."""
        return len(self._free)

    @property
    def num_known(self) -> int:
        """Blocks whose content can be found by digest."""
        return len(self._known)

    @property
    def used_ratio(self) -> float:
        """Share of blocks that are held, 0 to 1."""
        return 1.0 - self.num_free / self.num_blocks

    def blocks_for(self, num_tokens: int) -> int:
        """Blocks that hold num_tokens tokens."""
        return -(-num_tokens // self.block_size)

    def allocate(self, count: int) -> list[int] | None:
        """Take `count` free blocks with one reference each, or none at all."""
        if count > len(self._free):
            return None
        taken = [self._free.popitem(last=False)[0] for _ in range(count)]
        for block in taken:
            self._forget(block)
            self._ref_counts[block] = 1
        return taken

    def publish(self, block: int, digest: bytes) -> None:
        """Make a full, computed block findable; the first with a digest stays the one that is
        found.
        """
        assert self._ref_counts[block] > 0, f"block {block} is free and cannot be published"
        if self._digests[block] is None and digest not in self._known:
            self._digests[block] = digest
            self._known[digest] = block

    def num_known_of(self, digests: Sequence[bytes]) -> int:
        """Length of the longest known beginning of `digests`."""
        return next(
            (index for index, digest in enumerate(digests) if digest not in self._known),
            len(digests),
        )

    def acquire(self, digests: Sequence[bytes]) -> list[int]:
        """Take a reference to the blocks of the longest known beginning of `digests`."""
        found: list[int] = []
        for digest in digests:
            block = self._known.get(digest)
            if block is None:
                break
            if self._ref_counts[block] == 0:
                del self._free[block]
            self._ref_counts[block] += 1
            found.append(block)
        return found

    def release(self, blocks: Iterable[int]) -> None:
        """Drop one reference of each, given in token order; those nobody holds become free."""
        # Last first: when space is needed the end of a prefix goes before its beginning.
        for block in reversed(list(blocks)):
            assert self._ref_counts[block] > 0, f"block {block} is released twice"
            self._ref_counts[block] -= 1
            if self._ref_counts[block] == 0:
                self._free[block] = None
                if self._digests[block] is None:
                    self._free.move_to_end(block, last=False)

    def _forget(self, block: int) -> None:
        digest = self._digests[block]
        if digest is not None:
            del self._known[digest]
            self._digests[block] = None
