"""What the scheduler hands the runner each step, and what a runner must offer.

The batch is flat: all sequences' new tokens side by side, prefill chunks and single decode tokens
alike.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from collections.abc import Sequence as Seq

    from model.engine.sequence import Sequence
    from model.errors import ServingError
    from model.request import TokenLogprobs


class ScheduledSequence(NamedTuple):
    """One sequence's share of a step: tokens [start, start + num_tokens) get their KV written.

    sequence.block_table already covers them. samples: the share reaches the sequence's last token,
    so its logits choose the next one. A named tuple: one is made for every token.
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

    def part(self, shares: Seq[ScheduledSequence]) -> ScheduledBatch:
        """The batch of these shares alone, with their images."""
        kept = {share.sequence for share in shares}
        images = tuple(image for image in self.images if image.sequence in kept)
        return ScheduledBatch(tuple(shares), images)

    def halves(self) -> tuple[ScheduledBatch, ScheduledBatch]:
        """Both halves of at least two shares; an image goes with its sequence."""
        middle = len(self.sequences) // 2
        return self.part(self.sequences[:middle]), self.part(self.sequences[middle:])


class SampledToken(NamedTuple):
    """A token that a step chose; with a fault it is none, and its request cannot go on.

    prompt_logprobs: with a sequence's first token, where its request asks for them: of all of the
    prompt's tokens but the first, which nothing comes before
    """

    token_id: int
    logprobs: TokenLogprobs | None = None
    fault: ServingError | None = None
    prompt_logprobs: tuple[TokenLogprobs, ...] | None = None


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


@dataclass(frozen=True, slots=True)
class FailedStep:
    """A step that could not be launched; told when it is its turn, after the step before it."""

    error: Exception

    def tokens(self) -> Seq[SampledToken]:
        """Raise why."""
        raise self.error


def nothing() -> None:
    """What there is to do where nobody has asked for anything."""


class Runner(Protocol):
    """Turns batches into next tokens. Called from the engine thread only.

    computing: set by the engine; a runner that does not overlap calls it in `execute` when a step's
    inputs are made, before what takes long: the last step's tokens go out then
    """

    computing: Callable[[], None]

    @property
    def num_blocks(self) -> int:
        """Blocks of the KV cache that sequences may own; their ids are 0 … num_blocks - 1."""
        ...

    @property
    def block_size(self) -> int:
        """Tokens a block holds."""
        ...

    @property
    def max_batched_tokens(self) -> int:
        """Tokens that a step computes at most."""
        ...

    @property
    def overlaps(self) -> bool:
        """Whether a step may be launched before the tokens of the one before it are known.

        Its shares then reach one token past `sequence.token_ids`: the runner holds that token. A
        token that `token_ids` has is always taken from there: after a failure shares come again.
        """
        ...

    def execute(self, batch: ScheduledBatch) -> LaunchedStep:
        """Launch one step; raises OutOfDeviceMemory, DeviceFailure.

        What it needs of `sequence.block_table` and `token_ids` is read now: both change later.
        Steps take effect in the order of their launch: a block that one step writes may be another
        sequence's in the next. After a failure the same shares and images come again, in parts.
        """
        ...

    def release(self, sequences: Iterable[Sequence]) -> None:
        """Forget what is kept for sequences that finished or were preempted (idempotent).

        No launched step that is still to be read holds any of them.
        """
        ...

    def free_memory(self) -> None:
        """Let go of everything that is kept only for speed, after OutOfDeviceMemory."""
        ...
