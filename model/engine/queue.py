"""Orders of sequences: by priority class for who goes first, by deadline for who waited too long.

Every operation costs the same however long the queue is (a deadline: its logarithm). Knows nothing
of blocks and budgets.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import OrderedDict
from heapq import heapify, heappop, heappush
from itertools import count
from typing import TYPE_CHECKING

from model.engine.sequence import State

if TYPE_CHECKING:
    from collections.abc import Iterator

    from model.engine.sequence import Sequence


class SequenceQueue:
    """Sequences by priority class, the lowest number first; in a class, in the order put there."""

    def __init__(self) -> None:
        self._classes: dict[int, OrderedDict[Sequence, None]] = {}
        self._priorities: list[int] = []
        self._length = 0

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[Sequence]:
        for priority in self._priorities:
            yield from self._classes[priority]

    @property
    def first(self) -> Sequence | None:
        """The oldest of the most urgent class."""
        if not self._priorities:
            return None
        return next(iter(self._classes[self._priorities[0]]))

    @property
    def last(self) -> Sequence | None:
        """The newest of the least urgent class."""
        if not self._priorities:
            return None
        return next(reversed(self._classes[self._priorities[-1]]))

    def append(self, sequence: Sequence) -> None:
        """Put a sequence behind the others of its class."""
        self._class_of(sequence)[sequence] = None
        self._length += 1

    def push_front(self, sequence: Sequence) -> None:
        """Put a sequence before the others of its class."""
        self.append(sequence)
        self._classes[sequence.priority].move_to_end(sequence, last=False)

    def remove(self, sequence: Sequence) -> None:
        """Take a sequence out, wherever it stands."""
        priority = sequence.priority
        members = self._classes[priority]
        del members[sequence]
        self._length -= 1
        if not members:
            del self._classes[priority]
            del self._priorities[bisect_left(self._priorities, priority)]

    def _class_of(self, sequence: Sequence) -> OrderedDict[Sequence, None]:
        members = self._classes.get(sequence.priority)
        if members is None:
            members = self._classes[sequence.priority] = OrderedDict()
            insort(self._priorities, sequence.priority)
        return members


class Deadlines:
    """When sequences that never started have waited too long."""

    MIN_COMPACT = 64

    def __init__(self) -> None:
        # The number keeps the order of equal deadlines, and sequences from being compared.
        self._heap: list[tuple[float, int, Sequence]] = []
        self._numbers = count()
        self._compact_at = self.MIN_COMPACT

    def __len__(self) -> int:
        return len(self._heap)

    def add(self, seconds: float, sequence: Sequence) -> None:
        """Note that a sequence must have started by `seconds` on the scheduler's clock."""
        heappush(self._heap, (seconds, next(self._numbers), sequence))
        if len(self._heap) >= self._compact_at:
            self._compact()

    def pop_expired(self, now: float) -> list[Sequence]:
        """Sequences that still wait for their first step and whose deadline is not after now."""
        expired: list[Sequence] = []
        while self._heap and self._heap[0][0] <= now:
            sequence = heappop(self._heap)[2]
            if _never_started(sequence):
                expired.append(sequence)
        return expired

    def _compact(self) -> None:
        # Those that started or were cancelled stay until their deadline comes: a day of cancelled
        # requests must not stay for a day.
        self._heap = [entry for entry in self._heap if _never_started(entry[2])]
        heapify(self._heap)
        self._compact_at = max(self.MIN_COMPACT, 2 * len(self._heap))


def _never_started(sequence: Sequence) -> bool:
    return sequence.state is State.WAITING and sequence.num_preemptions == 0
