"""What the scheduler hands the runner each step, and what a runner must offer.

The batch is flat: all sequences' new tokens side by side, prefill chunks and single decode tokens
alike.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterable
    from collections.abc import Sequence as Seq

    from model.engine.sequence import Sequence
    from model.request import TokenLogprobs


@dataclass(frozen=True, slots=True)
class ScheduledSequence:
    """One sequence's share of a step: tokens [start, start + num_tokens) get their KV written.

    sequence.block_table already covers them. samples: the share reaches the sequence's last token,
    so its logits choose the next one.
    """

    sequence: Sequence
    start: int
    num_tokens: int
    samples: bool

    @property
    def end(self) -> int:
        """Context length once this share is computed."""
        return self.start + self.num_tokens

    @property
    def completion_index(self) -> int:
        """Which token of the completion, from 0, the share's logits choose."""
        return self.end - self.sequence.num_prompt_tokens


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


class SampledToken(NamedTuple):
    """A token that a step chose."""

    token_id: int
    logprobs: TokenLogprobs | None = None


class OutOfDeviceMemory(Exception):
    """A step needed more memory than the device has left; a smaller one may fit."""


class DeviceFailure(Exception):
    """The device can no longer be used by this process."""


class LaunchedStep(Protocol):
    """A step that was handed to the device."""

    def tokens(self) -> Seq[SampledToken]:
        """Wait for the step: one token for each share with `samples`, in the batch's order.

        Raises OutOfDeviceMemory, DeviceFailure.
        """
        ...


@dataclass(frozen=True, slots=True)
class FinishedStep:
    """A step whose tokens are known already."""

    sampled: Seq[SampledToken]

    def tokens(self) -> Seq[SampledToken]:
        """They are here."""
        return self.sampled


class Runner(Protocol):
    """Turns batches into next tokens. Called from the engine thread only."""

    @property
    def num_blocks(self) -> int:
        """Blocks of the KV cache that sequences may own; their ids are 0 … num_blocks - 1."""
        ...

    @property
    def block_size(self) -> int:
        """Tokens a block holds."""
        ...

    @property
    def overlaps(self) -> bool:
        """Whether a step may be launched before the tokens of the one before it are known.

        Its shares then reach one token past `sequence.token_ids`: the runner holds that token.
        """
        ...

    def execute(self, batch: ScheduledBatch) -> LaunchedStep:
        """Launch one step; raises OutOfDeviceMemory, DeviceFailure."""
        ...

    def release(self, sequences: Iterable[Sequence]) -> None:
        """Forget what is kept for sequences that finished or were preempted (idempotent)."""
        ...

    def free_memory(self) -> None:
        """Let go of everything that is kept only for speed, after OutOfDeviceMemory."""
        ...
