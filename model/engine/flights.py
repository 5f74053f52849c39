"""Equal beginnings that come together are computed once: the first leads, the others follow it.

A follower waits until its leader has published the blocks that both begin with. A leader runs, so
it goes on; when it ends or is preempted its followers are let go: nobody waits for a waiting one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence as Seq

    from model.engine.sequence import Sequence


class PrefixFlights:
    """Running prefills, by the block that each publishes next, and who waits for it."""

    def __init__(self) -> None:
        self._leaders: dict[bytes, Sequence] = {}
        self._next_digest: dict[Sequence, bytes] = {}
        # Per leader: its followers, and how many blocks it must have published for each.
        self._followers: dict[Sequence, dict[Sequence, int]] = {}
        self._leader_of: dict[Sequence, Sequence] = {}

    def __bool__(self) -> bool:
        return bool(self._leaders)

    def __len__(self) -> int:
        return len(self._leader_of)

    def __contains__(self, follower: Sequence) -> bool:
        return follower in self._leader_of

    def lead(self, sequence: Sequence) -> None:
        """Let others wait for the blocks of a prefill, unless another leads there already."""
        if sequence.num_published_blocks >= len(sequence.block_digests):
            return
        digest = sequence.block_digests[sequence.num_published_blocks]
        if self._leaders.setdefault(digest, sequence) is sequence:
            self._next_digest[sequence] = digest

    def join(self, sequence: Sequence, num_known: int, num_wanted: int) -> bool:
        """Follow whoever computes the block after the first num_known; False if nobody does.

        num_wanted: blocks of its beginning that it would take from others
        """
        if num_known >= num_wanted:
            return False
        leader = self._leaders.get(sequence.block_digests[num_known])
        # Of a less urgent class: it may be held up itself.
        if leader is None or leader.priority > sequence.priority:
            return False
        num_common = _num_common(
            leader.block_digests, sequence.block_digests[:num_wanted], num_known + 1
        )
        self._followers.setdefault(leader, {})[sequence] = num_common
        self._leader_of[sequence] = leader
        return True

    def leave(self, follower: Sequence) -> None:
        """Stop waiting."""
        del self._followers[self._leader_of.pop(follower)][follower]

    def advance(self, leader: Sequence) -> list[Sequence]:
        """After a leader published: the followers that have what they waited for, in order."""
        if not self._stop(leader):
            return []
        self.lead(leader)
        return self._let_go(leader, leader.num_published_blocks)

    def end(self, leader: Sequence) -> list[Sequence]:
        """When a sequence runs no more: all its followers, in order."""
        self._stop(leader)
        return self._let_go(leader, len(leader.block_digests))

    def _stop(self, leader: Sequence) -> bool:
        digest = self._next_digest.pop(leader, None)
        if digest is None:
            return False
        del self._leaders[digest]
        return True

    def _let_go(self, leader: Sequence, num_blocks: int) -> list[Sequence]:
        followers = self._followers.get(leader)
        if followers is None:
            return []
        free = [follower for follower, wanted in followers.items() if wanted <= num_blocks]
        for follower in free:
            self.leave(follower)
        if not followers:
            del self._followers[leader]
        return free


def _num_common(one: Seq[bytes], other: Seq[bytes], num_equal: int) -> int:
    """Digests that both begin with, at least num_equal. Chained: after a difference all differ."""
    low, high = num_equal, min(len(one), len(other))
    while low < high:
        middle = (low + high) // 2
        if one[middle] == other[middle]:
            low = middle + 1
        else:
            high = middle
    return low
