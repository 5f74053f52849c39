"""Decides, step by step, which sequences run and how many of their tokens. Pure bookkeeping: no
clock but its argument, no tensors, no threads.

One token budget a step: a decoding sequence takes one, prefill chunks share the rest (Agrawal et
al., OSDI 2024, chunked prefill), the most urgent class and in it the oldest first. When blocks run
out the newest sequence of the least urgent class is preempted and recomputed later.

A step may be scheduled while the one before it still runs: what was launched counts as computed,
and a token that it chooses as pending. commit() tells what became of it.
"""

from __future__ import annotations

import time
from collections import Counter
from itertools import chain, islice, takewhile
from typing import TYPE_CHECKING

from model.engine.batch import ScheduledSequence
from model.engine.ledger import Ledger, SchedulerLimits
from model.engine.plan import StepPlan
from model.engine.prefix import extend_digests
from model.engine.sequence import Sequence, State, Transition
from model.errors import PromptTooLong
from model.request import FinishReason, TokenEvent

__all__ = ["Scheduler", "SchedulerLimits"]

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from collections.abc import Sequence as Seq

    from model.engine.batch import SampledToken, ScheduledBatch
    from model.engine.blocks import BlockPool
    from model.request import GenerateRequest

# Of the prefill budget: kept from a prompt longer than a whole step for those behind it, and from
# any prompt for waiting ones of a more urgent class. Both leave it some: it must go on.
LONG_PROMPT_RESERVE = 0.25
URGENT_RESERVE = 0.75
# After running out of memory a step's tokens are halved, and grow back by this share a step.
REGROWTH = 1 / 64
MIN_STEP_TOKENS = 16


class Scheduler(Ledger):
    """What a step does, and what became of it."""

    def __init__(
        self,
        limits: SchedulerLimits,
        pool: BlockPool,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(limits, pool, clock=clock)
        # More could leave no token of a step for prefills.
        self._max_running = min(limits.max_sequences, limits.max_batched_tokens)
        self._step_tokens = limits.max_batched_tokens

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

    def add(self, request: GenerateRequest, arrival_seconds: float | None = None) -> None:
        """Queue a request that came at arrival_seconds, by default now; raises PromptTooLong."""
        self.check(request)
        assert request.request_id not in self._by_id, f"request id {request.request_id} is in use"
        arrival = self.clock() if arrival_seconds is None else arrival_seconds
        sequence = Sequence(request, arrival_seconds=arrival)
        sequence.max_num_tokens = min(
            sequence.num_prompt_tokens + request.sampling.max_tokens, self.max_sequence_tokens
        )
        self._enqueue(sequence)

    # One step

    def schedule(self) -> ScheduledBatch:
        """Choose one step's work and allocate its blocks; empty when nothing can run.

        The batch must be executed and given to commit() or fail(), in the order of scheduling.
        """
        running = list(self._running)
        plan = self._plan(running)
        for sequence in running:
            # Neither: preempted in this step, by one that stands before it.
            if sequence.state is State.DECODE:
                self._decode(sequence, plan)
            elif sequence.state is State.PREFILL:
                self._prefill(sequence, plan)
        while self._admit(plan):
            pass
        self._refresh_gauges()
        return plan.batch()

    def shrink(self) -> None:
        """Make the next steps smaller: one did not fit the device's memory."""
        self._step_tokens = max(MIN_STEP_TOKENS, self._step_tokens // 2)

    def _plan(self, running: list[Sequence]) -> StepPlan:
        limit = self.limits.max_batched_tokens
        if self._step_tokens < limit:
            self._step_tokens = min(limit, self._step_tokens + max(1, int(limit * REGROWTH)))
        prefills = [sequence for sequence in running if sequence.state is State.PREFILL]
        num_decoding = len(running) - len(prefills)
        return StepPlan(
            max_prefill_tokens=max(0, self._step_tokens - num_decoding),
            encoder_tokens=self.limits.max_encoder_tokens,
            prefills=prefills,
        )

    def _decode(self, sequence: Sequence, plan: StepPlan) -> None:
        """Schedule the one token that is not computed, known or pending."""
        if sequence.num_pending_tokens and (
            sequence.needs_history
            # The pending token is the last one, whatever it is.
            or len(sequence.token_ids) + sequence.num_pending_tokens >= sequence.max_num_tokens
        ):
            return
        end = sequence.num_computed_tokens + 1
        if end <= len(sequence.block_table) * self.pool.block_size or self._grow(sequence, end):
            plan.shares.append(_launch(sequence, 1, samples=True))

    def _prefill(self, sequence: Sequence, plan: StepPlan) -> bool:
        """Schedule the next chunk of a prompt; False when a budget or the blocks are out."""
        wanted = sequence.num_uncomputed_tokens
        most = min(wanted, plan.prefill_tokens - self._reserve(sequence, plan))
        num_tokens = plan.take_images(sequence, most) if most else 0
        if num_tokens == 0:
            return False
        if not self._grow(sequence, sequence.num_computed_tokens + num_tokens):
            plan.forget_images(sequence)
            return False
        plan.prefill_tokens -= num_tokens
        if num_tokens == wanted:
            sequence.apply(Transition.PREFILLED)
        plan.shares.append(_launch(sequence, num_tokens, samples=num_tokens == wanted))
        return True

    def _reserve(self, sequence: Sequence, plan: StepPlan) -> int:
        """Prefill tokens to keep from a sequence for others, as many as those could use now."""
        urgent = self._waiting.first
        if urgent is not None and urgent.priority < sequence.priority:
            share = URGENT_RESERVE
        elif sequence.num_uncomputed_tokens > plan.max_prefill_tokens:
            share = LONG_PROMPT_RESERVE
        else:
            return 0
        most = int(plan.prefill_tokens * share)
        behind = takewhile(lambda other: other is not sequence, reversed(plan.prefills))
        wanted = 0
        for other in chain(behind, self._admissible()):
            wanted += other.num_uncomputed_tokens
            if wanted >= most:
                return most
        return wanted

    def _admissible(self) -> Iterator[Sequence]:
        """Waiting sequences that have a place and blocks, before any prefix is looked up."""
        num_free = self.pool.num_free
        for sequence in islice(self._waiting, self._max_running - len(self._running)):
            num_free -= self.pool.blocks_for(len(sequence.token_ids))
            if num_free < 0:
                return
            yield sequence

    def _admit(self, plan: StepPlan) -> bool:
        """Start the first waiting sequence if all its known tokens would fit the free blocks.

        False when no other can be admitted in this step either.
        """
        sequence = self._waiting.first
        if sequence is None or len(self._running) >= self._max_running:
            return False
        # Preempted a moment ago: a launched step still holds it, so the runner cannot forget it.
        if sequence.num_launched_steps > 0:
            return False
        if plan.prefill_tokens == 0:
            return False
        if self._follow(sequence):
            return True
        if not self._take_prefix(sequence, plan):
            return False
        self._leave_queue(sequence)
        sequence.apply(Transition.ADMIT)
        if sequence.num_preemptions == 0:
            sequence.queue_seconds = self.clock() - sequence.arrival_seconds
            self.stats.queue.observe(sequence.queue_seconds)
            sequence.num_cached_tokens = sequence.num_computed_tokens
            self.stats.prefix_hit_tokens += sequence.num_cached_tokens
            self.stats.prefix_query_tokens += len(sequence.token_ids)
        self._running.append(sequence)
        plan.prefills.append(sequence)
        if self.limits.prefix_cache:
            self._flights.lead(sequence)
        return self._prefill(sequence, plan)

    def _follow(self, sequence: Sequence) -> bool:
        """Let a waiting sequence wait for blocks that a running one computes right now."""
        if not self._flights or sequence.needs_whole_prompt:
            return False
        extend_digests(sequence, self.pool.block_size)
        num_wanted = (len(sequence.token_ids) - 1) // self.pool.block_size
        num_known = self.pool.num_known_of(sequence.block_digests[:num_wanted])
        if not self._flights.join(sequence, num_known, num_wanted):
            return False
        self._waiting.remove(sequence)
        return True

    def _take_prefix(self, sequence: Sequence, plan: StepPlan) -> bool:
        """Give a waiting sequence the blocks of its known beginning; False if it must wait."""
        blocks: list[int] = []
        if self.limits.prefix_cache and not sequence.needs_whole_prompt:
            extend_digests(sequence, self.pool.block_size)
            # The last token is always computed: its logits choose the next one.
            most = (len(sequence.token_ids) - 1) // self.pool.block_size
            blocks = self.pool.acquire(sequence.block_digests[:most])
        # Admitting on the first chunk's blocks alone would start prefills that preempt each other.
        missing = self.pool.blocks_for(len(sequence.token_ids)) - len(blocks)
        start = len(blocks) * self.pool.block_size
        if missing > self.pool.num_free or plan.starts_with_blocked_image(sequence, start):
            self.pool.release(blocks)
            return False
        sequence.block_table = blocks
        sequence.num_computed_tokens = start
        sequence.num_published_blocks = len(blocks)
        return True

    def _grow(self, sequence: Sequence, num_tokens: int) -> bool:
        """Give a sequence blocks for num_tokens, preempting others; False if it went itself."""
        missing = self.pool.blocks_for(num_tokens) - len(sequence.block_table)
        if missing <= 0:
            return True
        while (blocks := self.pool.allocate(missing)) is None:
            # Nobody who is in this step already: it is filled in the opposite order.
            victim = self._running.last
            assert victim is not None
            self._preempt(victim)
            if victim is sequence:
                return False
        sequence.block_table.extend(blocks)
        return True

    # After the step

    def commit(self, batch: ScheduledBatch, tokens: Seq[SampledToken]) -> list[TokenEvent]:
        """Account for an executed batch; one token for each share that samples.

        Shares of sequences that ended or were preempted meanwhile are void: their tokens are never
        told, billed or found by others.
        """
        now = self.clock()
        block_size = self.pool.block_size
        sampled = iter(tokens)
        gaps: Counter[float] = Counter()
        events: list[TokenEvent] = []
        for share in batch.sequences:
            sequence = share.sequence
            token = next(sampled) if share.samples else None
            if not self._land(share):
                self.stats.discarded_tokens += share.samples
                continue
            if share.end // block_size > sequence.num_published_blocks:
                self._publish(sequence, share.end)
            if token is not None and token.fault is not None:
                self.stats.completion_tokens -= 1  # it is counted below, and is no token
                events.append(self._end(sequence, token.fault))
            elif token is not None:
                events.append(self._append(sequence, token, now, gaps))
        for gap, count in gaps.items():
            self.stats.itl.observe(gap, count)
        self.stats.completion_tokens += len(events)
        self.stats.steps += 1
        self.stats.images += len(batch.images)
        self._refresh_gauges()
        return events

    def _append(
        self, sequence: Sequence, token: SampledToken, now: float, gaps: Counter[float]
    ) -> TokenEvent:
        token_id, logprobs, _, prompt_logprobs = token
        sequence.token_ids.append(token_id)
        last = sequence.last_token_seconds
        if last is None:
            self.stats.ttft.observe(now - sequence.arrival_seconds)
            self.stats.prompt_tokens += sequence.num_prompt_tokens
        else:
            gaps[now - last] += 1
        sequence.last_token_seconds = now
        reason: FinishReason | None = None
        if token_id in sequence.end_token_ids:
            reason = FinishReason.STOP
        elif len(sequence.token_ids) >= sequence.max_num_tokens:
            reason = FinishReason.LENGTH
        if reason is not None:
            self._finish(sequence, reason)
        request = sequence.request
        num_completion_tokens = len(sequence.token_ids) - len(request.prompt_token_ids)
        # By position: keywords cost a third more, for every token.
        return TokenEvent(
            request.request_id,
            token_id,
            num_completion_tokens,
            reason,
            None,
            sequence.queue_seconds,
            logprobs,
            sequence.num_cached_tokens,
            prompt_logprobs,
        )


def _launch(sequence: Sequence, num_tokens: int, *, samples: bool) -> ScheduledSequence:
    """A share of the next num_tokens tokens, counted as computed from now on."""
    start = sequence.num_computed_tokens
    sequence.num_computed_tokens = start + num_tokens
    sequence.num_launched_steps += 1
    if samples:
        sequence.num_pending_tokens += 1
    return ScheduledSequence(sequence, start, num_tokens, samples)
