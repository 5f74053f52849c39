"""Decides, step by step, which sequences run and how many of their tokens. Pure bookkeeping: no
clock but its
argument, no tensors, no threads.

One token budget a step: a decoding sequence takes one, prefill chunks share the rest (Agrawal et
al., OSDI
2024, chunked prefill), oldest first. When blocks run out the newest sequence is preempted and
recomputed later.
"""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

from model.engine.batch import ScheduledBatch, ScheduledImage, ScheduledSequence
from model.engine.prefix import extend_digests
from model.engine.sequence import Sequence, State, Transition
from model.engine.stats import EngineStats
from model.errors import PromptTooLong
from model.request import FinishReason, TokenEvent

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from collections.abc import Sequence as Seq

    from model.engine.batch import SampledToken
    from model.engine.blocks import BlockPool
    from model.errors import ServingError
    from model.request import GenerateRequest


@dataclass(frozen=True, slots=True)
class SchedulerLimits:
    """Bounds of a step; see EngineSettings for their units and reasons."""

    max_batched_tokens: int
    max_encoder_tokens: int
    max_sequences: int
    max_model_len: int
    prefix_cache: bool = True


@dataclass(slots=True)
class _Budget:
    """What is left of one step. Decodes are paid from `tokens` before any prefill sees it."""

    prefill_tokens: int
    encoder_tokens: int
    encoder_used: bool = False


class Scheduler:
    """Waiting and running sequences, and the blocks they hold.

    Invariants: a block's references equal the block tables that hold it; a sequence is in exactly
    one of
    waiting and running; running is ordered by arrival.
    """

    def __init__(
        self,
        limits: SchedulerLimits,
        pool: BlockPool,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.limits = limits
        self.pool = pool
        self.stats = EngineStats(num_blocks=pool.num_blocks, block_size=pool.block_size)
        self._clock = clock
        self._waiting: deque[Sequence] = deque()
        self._running: list[Sequence] = []
        self._by_id: dict[str, Sequence] = {}
        self._released: list[Sequence] = []

    @property
    def has_work(self) -> bool:
        """Whether a step would have anything to do."""
        return bool(self._by_id)

    @property
    def num_waiting(self) -> int:
        """Sequences that hold no blocks yet."""
        return len(self._waiting)

    @property
    def max_sequence_tokens(self) -> int:
        """Tokens of prompt and answer that one sequence can ever have here."""
        return min(self.limits.max_model_len, self.pool.num_blocks * self.pool.block_size)

    def check(self, request: GenerateRequest) -> None:
        """Raise PromptTooLong for what could never run; reads nothing that changes."""
        num_tokens = len(request.prompt_token_ids)
        # One token must be generated, so a prompt that fills the context is already too long.
        if num_tokens >= self.max_sequence_tokens:
            raise PromptTooLong(num_tokens, self.max_sequence_tokens - 1)

    def add(self, request: GenerateRequest) -> None:
        """Queue a request; raises PromptTooLong."""
        self.check(request)
        sequence = Sequence(request, arrival_seconds=self._clock())
        assert request.request_id not in self._by_id, f"request id {request.request_id} is in use"
        self._by_id[request.request_id] = sequence
        self._waiting.append(sequence)
        self._refresh_gauges()

    def abort(self, request_id: str, reason: FinishReason = FinishReason.CANCELLED) -> bool:
        """End a sequence in whatever state; False when it is unknown or over already."""
        sequence = self._by_id.get(request_id)
        if sequence is None:
            return False
        self._finish(sequence, reason)
        self._refresh_gauges()
        return True

    def request_ids(self) -> list[str]:
        """Every request that has not finished."""
        return list(self._by_id)

    def num_completion_tokens(self, request_id: str) -> int:
        """Tokens generated for a request so far; 0 when it is unknown."""
        sequence = self._by_id.get(request_id)
        return 0 if sequence is None else sequence.num_completion_tokens

    def take_released(self) -> list[Sequence]:
        """Sequences finished or preempted since the last call, for the runner to forget."""
        released, self._released = self._released, []
        return released

    # One step

    def schedule(self) -> ScheduledBatch:
        """Choose one step's work and allocate its blocks; empty when nothing can run."""
        num_decoding = sum(sequence.state is State.DECODE for sequence in self._running)
        budget = _Budget(
            prefill_tokens=max(0, self.limits.max_batched_tokens - num_decoding),
            encoder_tokens=self.limits.max_encoder_tokens,
        )
        shares: list[ScheduledSequence] = []
        images: list[ScheduledImage] = []
        position = 0
        while position < len(self._running):
            sequence = self._running[position]
            share = self._share(sequence, budget, images)
            if share is not None:
                shares.append(share)
            # A preempted sequence has left `running`, and only the newest ever does.
            position += 1
        while share := self._admit(budget, images):
            shares.append(share)
        self._refresh_gauges()
        return ScheduledBatch(tuple(shares), tuple(images))

    def _share(
        self, sequence: Sequence, budget: _Budget, images: list[ScheduledImage]
    ) -> ScheduledSequence | None:
        """This step's part of a running sequence; None when the budget or the blocks are out."""
        num_tokens = sequence.num_uncomputed_tokens
        if sequence.state is State.PREFILL:
            num_tokens = self._chunk(
                sequence, min(num_tokens, budget.prefill_tokens), budget, images
            )
        if num_tokens == 0:
            return None
        if not self._grow(sequence, sequence.num_computed_tokens + num_tokens):
            # It preempted itself: images planned for it would be encoded for nobody.
            images[:] = [image for image in images if image.sequence is not sequence]
            return None
        if sequence.state is State.PREFILL:
            budget.prefill_tokens -= num_tokens
        end = sequence.num_computed_tokens + num_tokens
        return ScheduledSequence(
            sequence,
            sequence.num_computed_tokens,
            num_tokens,
            samples=end == len(sequence.token_ids),
        )

    def _chunk(
        self, sequence: Sequence, num_tokens: int, budget: _Budget, images: list[ScheduledImage]
    ) -> int:
        """Cut a prefill chunk before the first image that this step cannot encode."""
        start = sequence.num_computed_tokens
        for index in range(sequence.num_encoded_images, len(sequence.request.images)):
            image = sequence.request.images[index]
            if image.offset >= start + num_tokens:
                break
            if image.end <= start:  # its KV was found in the prefix cache
                continue
            # The first image of a step always goes, or one larger than the budget would wait
            # forever.
            if budget.encoder_used and image.num_tokens > budget.encoder_tokens:
                return max(0, image.offset - start)
            budget.encoder_used = True
            budget.encoder_tokens -= image.num_tokens
            images.append(ScheduledImage(sequence, index))
            sequence.num_encoded_images = index + 1
        return num_tokens

    def _admit(self, budget: _Budget, images: list[ScheduledImage]) -> ScheduledSequence | None:
        """Start the oldest waiting sequence if all its known tokens would fit the free blocks."""
        if not self._waiting or len(self._running) >= self.limits.max_sequences:
            return None
        sequence = self._waiting[0]
        if budget.prefill_tokens == 0:
            return None
        if not self._take_prefix(sequence, budget):
            return None
        self._waiting.popleft()
        sequence.apply(Transition.ADMIT)
        if sequence.num_preemptions == 0:
            sequence.queue_seconds = self._clock() - sequence.arrival_seconds
            self.stats.queue.observe(sequence.queue_seconds)
            self.stats.prefix_hit_tokens += sequence.num_computed_tokens
            self.stats.prefix_query_tokens += len(sequence.token_ids)
        self._running.append(sequence)
        return self._share(sequence, budget, images)

    def _take_prefix(self, sequence: Sequence, budget: _Budget) -> bool:
        """Give a waiting sequence the blocks of its known beginning; False if it must wait."""
        blocks: list[int] = []
        if self.limits.prefix_cache:
            extend_digests(sequence, self.pool.block_size)
            # The last token is always computed: its logits choose the next one.
            most = (len(sequence.token_ids) - 1) // self.pool.block_size
            blocks = self.pool.acquire(sequence.block_digests[:most])
        # Admitting on the first chunk's blocks alone would start prefills that preempt each other.
        missing = self.pool.blocks_for(len(sequence.token_ids)) - len(blocks)
        start = len(blocks) * self.pool.block_size
        if missing > self.pool.num_free or self._image_is_blocked(sequence, start, budget):
            self.pool.release(blocks)
            return False
        sequence.block_table = blocks
        sequence.num_computed_tokens = start
        sequence.num_published_blocks = len(blocks)
        return True

    @staticmethod
    def _image_is_blocked(sequence: Sequence, start: int, budget: _Budget) -> bool:
        """Whether the first token to compute is of an image that must wait for the next step."""
        return budget.encoder_used and any(
            image.offset <= start < image.end and image.num_tokens > budget.encoder_tokens
            for image in sequence.request.images
        )

    def _grow(self, sequence: Sequence, num_tokens: int) -> bool:
        """Give a sequence blocks for num_tokens, preempting newer ones; False if it went itself."""
        missing = self.pool.blocks_for(num_tokens) - len(sequence.block_table)
        if missing <= 0:
            return True
        while (blocks := self.pool.allocate(missing)) is None:
            victim = self._running[-1]
            self._preempt(victim)
            if victim is sequence:
                return False
        sequence.block_table.extend(blocks)
        return True

    def _preempt(self, sequence: Sequence) -> None:
        """Take a sequence's blocks and put it back at the head of the queue, to be recomputed."""
        self._running.remove(sequence)
        self._free(sequence)
        sequence.apply(Transition.PREEMPT)
        sequence.num_computed_tokens = 0
        sequence.num_encoded_images = 0
        sequence.num_published_blocks = 0
        sequence.num_preemptions += 1
        self.stats.preemptions += 1
        self._waiting.appendleft(sequence)

    # After the step

    def commit(self, batch: ScheduledBatch, tokens: Seq[SampledToken]) -> list[TokenEvent]:
        """Account for an executed batch; one token for each share that samples."""
        now = self._clock()
        sampled = iter(tokens)
        events: list[TokenEvent] = []
        for share in batch.sequences:
            sequence = share.sequence
            sequence.num_computed_tokens = share.end
            self._publish(sequence)
            if share.samples:
                events.append(self._append(sequence, next(sampled), now))
        self.stats.steps += 1
        self.stats.images += len(batch.images)
        self._refresh_gauges()
        return events

    def _publish(self, sequence: Sequence) -> None:
        """Let other sequences find the blocks that this step filled."""
        num_full = sequence.num_computed_tokens // self.pool.block_size
        if not self.limits.prefix_cache or num_full == sequence.num_published_blocks:
            return
        extend_digests(sequence, self.pool.block_size)
        for index in range(sequence.num_published_blocks, num_full):
            self.pool.publish(sequence.block_table[index], sequence.block_digests[index])
        sequence.num_published_blocks = num_full

    def _append(self, sequence: Sequence, token: SampledToken, now: float) -> TokenEvent:
        token_id = token.token_id
        if sequence.state is State.PREFILL:
            sequence.apply(Transition.PREFILLED)
        sequence.token_ids.append(token_id)
        if sequence.last_token_seconds is None:
            self.stats.ttft.observe(now - sequence.arrival_seconds)
            self.stats.prompt_tokens += sequence.num_prompt_tokens
        else:
            self.stats.itl.observe(now - sequence.last_token_seconds)
        sequence.last_token_seconds = now
        self.stats.completion_tokens += 1
        reason = self._finish_reason(sequence, token_id)
        if reason is not None:
            self._finish(sequence, reason)
        return TokenEvent(
            sequence.request_id,
            token_id,
            sequence.num_completion_tokens,
            reason,
            queue_seconds=sequence.queue_seconds,
            logprobs=token.logprobs,
        )

    def _finish_reason(self, sequence: Sequence, token_id: int) -> FinishReason | None:
        sampling = sequence.request.sampling
        if token_id in sequence.end_token_ids:
            return FinishReason.STOP
        if sequence.num_completion_tokens >= sampling.max_tokens:
            return FinishReason.LENGTH
        if len(sequence.token_ids) >= self.max_sequence_tokens:
            return FinishReason.LENGTH
        return None

    def _finish(self, sequence: Sequence, reason: FinishReason) -> None:
        if sequence.state is State.WAITING:
            self._waiting.remove(sequence)
        else:
            self._running.remove(sequence)
        self._free(sequence)
        sequence.apply(Transition.FINISH)
        sequence.finish_reason = reason
        del self._by_id[sequence.request_id]
        self.stats.finished[reason.value] += 1
        self.stats.request.observe(self._clock() - sequence.arrival_seconds)

    def _free(self, sequence: Sequence) -> None:
        self.pool.release(sequence.block_table)
        sequence.block_table.clear()
        self._released.append(sequence)

    def _refresh_gauges(self) -> None:
        self.stats.num_waiting = len(self._waiting)
        self.stats.num_running = len(self._running)
        self.stats.kv_used_ratio = self.pool.used_ratio

    def fail(self, sequences: Iterable[Sequence], error: ServingError) -> list[TokenEvent]:
        """End the sequences of a batch that could not be executed."""
        return [
            TokenEvent(
                sequence.request_id,
                None,
                sequence.num_completion_tokens,
                FinishReason.ERROR,
                error,
            )
            for sequence in sequences
            if self.abort(sequence.request_id, FinishReason.ERROR)
        ]
