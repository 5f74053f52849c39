"""A runner without tensors: the next token is a hash of all tokens before it, read through the
blocks.

It stores every token in its block, as a KV cache does, so that a wrong block table, a block shared
by mistake
or a token computed twice changes the text.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from model.engine.batch import FinishedStep, SampledToken

if TYPE_CHECKING:
    from collections.abc import Iterable

    from model.engine.batch import ScheduledBatch
    from model.engine.sequence import Sequence

VOCABULARY = 50


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


class FakeRunner:
    """The Runner protocol over a list of slots."""

    def __init__(self, num_blocks: int, block_size: int) -> None:
        self.num_blocks = num_blocks
        self.block_size = block_size
        self.slots: list[int | None] = [None] * (num_blocks * block_size)
        self.embeddings: set[tuple[str, int]] = set()
        self.batches: list[ScheduledBatch] = []
        self.fail_next = False
        self.overlaps = False

    def free_memory(self) -> None:
        """Nothing is kept for speed."""

    def _slot(self, sequence: Sequence, index: int) -> int:
        block = sequence.block_table[index // self.block_size]
        return block * self.block_size + index % self.block_size

    def execute(self, batch: ScheduledBatch) -> FinishedStep:
        if self.fail_next:
            self.fail_next = False
            raise RuntimeError("injected failure")
        self.batches.append(batch)
        for image in batch.images:
            key = (image.sequence.request_id, image.image_index)
            assert key not in self.embeddings, "an image was encoded twice"
            self.embeddings.add(key)
        for share in batch.sequences:
            sequence = share.sequence
            for number, image in enumerate(sequence.request.images):
                if image.offset < share.end and image.end > share.start:
                    assert (sequence.request_id, number) in self.embeddings, "image not encoded"
            for index in range(share.start, share.end):
                self.slots[self._slot(sequence, index)] = sequence.token_ids[index]
        chosen = [
            SampledToken(self._next(share.sequence, share.end))
            for share in batch.sequences
            if share.samples
        ]
        return FinishedStep(chosen)

    def _next(self, sequence: Sequence, length: int) -> int:
        seen = [self.slots[self._slot(sequence, index)] for index in range(length)]
        assert None not in seen, "a token was never computed"
        return next_token(token for token in seen if token is not None)

    def release(self, sequences: Iterable[Sequence]) -> None:
        gone = {sequence.request_id for sequence in sequences}
        self.embeddings = {key for key in self.embeddings if key[0] not in gone}
