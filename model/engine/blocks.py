"""The KV cache's blocks as numbers: which are free, and how many sequences hold each.

Knows ids and counts only; the tensors are the runner's. Source: Kwon et al., SOSP 2023, section 4.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable


class BlockPool:
    """Refcounted blocks 0 … num_blocks - 1; a block is free when nobody holds it."""

    def __init__(self, num_blocks: int, block_size: int) -> None:
        assert num_blocks > 0
        assert block_size > 0
        self.num_blocks = num_blocks
        self.block_size = block_size
        # A stack, so that the block written last is reused first, while the processor's cache has
        # it.
        self._free = list(range(num_blocks - 1, -1, -1))
        self._ref_counts = [0] * num_blocks

    @property
    def num_free(self) -> int:
        """Blocks that can be allocated now."""
        return len(self._free)

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
        taken = [self._free.pop() for _ in range(count)]
        for block in taken:
            self._ref_counts[block] = 1
        return taken

    def share(self, blocks: Iterable[int]) -> None:
        """Add a reference to blocks that are held already."""
        for block in blocks:
            assert self._ref_counts[block] > 0, f"block {block} is free and cannot be shared"
            self._ref_counts[block] += 1

    def release(self, blocks: Iterable[int]) -> None:
        """Drop one reference of each; those nobody holds any more become free."""
        for block in blocks:
            assert self._ref_counts[block] > 0, f"block {block} is released twice"
            self._ref_counts[block] -= 1
            if self._ref_counts[block] == 0:
                self._free.append(block)
