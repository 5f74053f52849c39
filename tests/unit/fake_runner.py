"""A runner without tensors: the next token is a hash of all tokens before it, read through the
blocks.

It stores every token in its block, as a KV cache does, so that a wrong block table, a block shared
by mistake or a token computed twice changes the text. With overlap, a step runs only when somebody
asks for its tokens, in the order of launches, and sees what it was given at launch alone.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from model.engine.batch import FinishedStep, OutOfDeviceMemory, SampledToken, nothing

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from model.engine.batch import LaunchedStep, ScheduledBatch, ScheduledSequence
    from model.engine.sequence import Sequence

VOCABULARY = 50
POISON = -1


def next_token(token_ids: Iterable[int]) -> int:
    """The token that follows; deterministic, sensitive to order."""
    state = 7
    for token in token_ids:
        state = (state * 31 + token + 1) % 1_000_003
    return state % VOCABULARY


def reference(prompt: tuple[int, ...], num_tokens: int) -> list[int]:
    """What a sequence alone would generate."""
    tokens = list(prompt)
    for _ in range(num_tokens):
        tokens.append(next_token(tokens))
    return tokens[len(prompt) :]


class Cell:
    """A token on the device: nobody knows it before the step that chooses it has run."""

    def __init__(self) -> None:
        self.token = POISON


@dataclass
class Work:
    """A share as it was at launch: what the host changes later is not seen."""

    sequence: Sequence
    slots: list[int]
    token_ids: list[int]
    start: int
    held: Cell | None
    chosen: Cell | None


@dataclass(eq=False)
class LazyStep:
    """A launched step; runs, after all those before it, when its tokens are read."""

    runner: FakeRunner
    batch: ScheduledBatch
    work: list[Work]
    error: Exception | None = None
    done: bool = False
    sampled: list[SampledToken] = field(default_factory=list)

    def tokens(self) -> list[SampledToken]:
        self.runner.unread.remove(self)
        self.runner.run_until(self)
        if self.error is not None:
            raise self.error
        return self.sampled


class FakeRunner:
    """The Runner protocol over a list of slots.

    fail_next: raised by the next execute; fail_tokens: by the next launched step's tokens()
    out_of_memory: says which batches do not fit; they fail when their tokens are read
    """

    def __init__(self, num_blocks: int, block_size: int, *, overlaps: bool = False) -> None:
        self.num_blocks = num_blocks
        self.block_size = block_size
        self.overlaps = overlaps
        self.max_batched_tokens = 2048
        self.computing: Callable[[], None] = nothing
        self.slots: list[int | None] = [None] * (num_blocks * block_size)
        self.embeddings: set[tuple[str, int]] = set()
        self.held: dict[Sequence, Cell] = {}
        self.queue: list[LazyStep] = []
        self.unread: list[LazyStep] = []
        self.batches: list[ScheduledBatch] = []
        self.fail_next: Exception | None = None
        self.fail_tokens: Exception | None = None
        self.out_of_memory: Callable[[ScheduledBatch], bool] = lambda batch: False
        self.failed = False
        self.num_freed = 0

    def free_memory(self) -> None:
        self.num_freed += 1

    def execute(self, batch: ScheduledBatch) -> LaunchedStep:
        if self.fail_next is not None:
            error, self.fail_next = self.fail_next, None
            self.failed = True
            raise error
        self.batches.append(batch)
        self.computing()
        self._encode(batch)
        step = LazyStep(self, batch, [self._work(share) for share in batch.sequences])
        step.error, self.fail_tokens = self.fail_tokens, None
        if self.out_of_memory(batch):
            step.error = OutOfDeviceMemory("injected")
        self.queue.append(step)
        self.unread.append(step)
        return step if self.overlaps else FinishedStep(step.tokens())

    def release(self, sequences: Iterable[Sequence]) -> None:
        gone = set(sequences)
        for step in self.queue:
            for share in step.batch.sequences:
                assert share.sequence not in gone, "released while a launched step holds it"
        names = {sequence.request_id for sequence in gone}
        self.embeddings = {key for key in self.embeddings if key[0] not in names}
        for sequence in gone:
            self.held.pop(sequence, None)

    def run_until(self, step: LazyStep) -> None:
        """The device: every launched step up to this one, in order."""
        while not step.done:
            self._run(self.queue.pop(0))

    def _encode(self, batch: ScheduledBatch) -> None:
        served = {share.sequence for share in batch.sequences}
        for image in batch.images:
            assert image.sequence in served, "an image was encoded for nobody"
            key = (image.sequence.request_id, image.image_index)
            # What failed is done again.
            assert self.failed or key not in self.embeddings, "an image was encoded twice"
            self.embeddings.add(key)

    def _work(self, share: ScheduledSequence) -> Work:
        sequence = share.sequence
        for number, image in enumerate(sequence.request.images):
            if image.offset < share.end and image.end > share.start:
                assert (sequence.request_id, number) in self.embeddings, "image not encoded"
        token_ids = sequence.token_ids[share.start : share.end]
        num_missing = share.num_tokens - len(token_ids)
        assert num_missing <= (1 if self.overlaps else 0), "a share reaches too far"
        assert not (num_missing and sequence.needs_history), "scheduled without its history"
        held = self.held[sequence] if num_missing else None
        chosen = None
        if share.samples:
            chosen = self.held[sequence] = Cell()
        slots = [self._slot(sequence, index) for index in range(share.end)]
        return Work(sequence, slots, token_ids, share.start, held, chosen)

    def _slot(self, sequence: Sequence, index: int) -> int:
        block = sequence.block_table[index // self.block_size]
        return block * self.block_size + index % self.block_size

    def _run(self, step: LazyStep) -> None:
        step.done = True
        if step.error is not None:
            self.failed = True
            for work in step.work:
                self._poison(work)
            return
        for work in step.work:
            self._write(work)
        for work in step.work:
            if work.chosen is not None:
                work.chosen.token = self._next(work)
                step.sampled.append(SampledToken(work.chosen.token))

    def _write(self, work: Work) -> None:
        tokens = list(work.token_ids)
        if work.held is not None:
            assert self.failed or work.held.token != POISON, "a token was read before it was chosen"
            tokens.append(work.held.token)
        for slot, token in zip(work.slots[work.start :], tokens, strict=True):
            self.slots[slot] = token

    def _poison(self, work: Work) -> None:
        for slot in work.slots[work.start :]:
            self.slots[slot] = POISON

    def _next(self, work: Work) -> int:
        seen = [self.slots[slot] for slot in work.slots]
        assert None not in seen, "a token was never computed"
        return next_token(token for token in seen if token is not None)
