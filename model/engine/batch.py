"""What the scheduler hands the runner each step, and what a runner must offer.

The batch is flat: all sequences' new tokens side by side, prefill chunks and single decode tokens
alike.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterable
    from collections.abc import Sequence as Seq

    from model.engine.sequence import Sequence


@dataclass(frozen=True, slots=True)
class ScheduledSequence:
    """One sequence's share of a step: tokens [start, start + num_tokens) get their KV written.

    sequence.block_table already covers them. samples: the share reaches the last known token, so
    its
    logits choose the next one.
    """

    sequence: Sequence
    start: int
    num_tokens: int
    samples: bool

    @property
    def end(self) -> int:
        """Context length once this share is computed."""
        return self.start + self.num_tokens


@dataclass(frozen=True, slots=True)
class ScheduledImage:
    """One image whose embeddings this step must produce before the text runs."""

    sequence: Sequence
    image_index: int


@dataclass(frozen=True, slots=True)
class ScheduledBatch:
    """One step's work; `sequences` oldest first, `images` never twice for one admission."""

    sequences: tuple[ScheduledSequence, ...]
    images: tuple[ScheduledImage, ...] = ()

    @property
    def num_tokens(self) -> int:
        """Rows of the flat batch."""
        return sum(share.num_tokens for share in self.sequences)


class Runner(Protocol):
    """Turns a batch into next tokens. Called from the engine thread only."""

    @property
    def num_blocks(self) -> int:
        """Blocks of the KV cache that sequences may own; their ids are 0 … num_blocks - 1."""
        ...

    @property
    def block_size(self) -> int:
        """Tokens a block holds."""
        ...

    def execute(self, batch: ScheduledBatch) -> Seq[int]:
        """Run one step; one id for each share with `samples`, in the batch's order."""
        ...

    def release(self, sequences: Iterable[Sequence]) -> None:
        """Forget what is kept for sequences that finished or were preempted (idempotent)."""
        ...
