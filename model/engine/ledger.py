"""Which sequences there are, where each stands and what it holds: every change of its state.

Decides nothing: the scheduler, who inherits this, says what happens when.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from model.engine.flights import PrefixFlights
from model.engine.prefix import extend_digests
from model.engine.queue import Deadlines, SequenceQueue
from model.engine.sequence import State, Transition
from model.engine.stats import EngineStats
from model.errors import QueueTimeout
from model.request import FinishReason, TokenEvent

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from collections.abc import Sequence as Seq

    from model.engine.batch import ScheduledBatch, ScheduledSequence
    from model.engine.blocks import BlockPool
    from model.engine.sequence import Sequence
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
    max_queue_seconds: float | None = None


class Ledger:
    """Waiting and running sequences, and the blocks they hold.

    Invariants: a block's references equal the block tables that hold it; a sequence is in exactly
    one of waiting, running and the flights' followers; running is, class by class, ordered by
    admission.
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
        self.clock = clock
        self.stats = EngineStats(num_blocks=pool.num_blocks, block_size=pool.block_size)
        self._waiting = SequenceQueue()
        self._running = SequenceQueue()
        self._flights = PrefixFlights()
        self._deadlines = Deadlines()
        self._by_id: dict[str, Sequence] = {}
        self._released: list[Sequence] = []

    @property
    def has_work(self) -> bool:
        """Whether a step would have anything to do."""
        return bool(self._by_id)

    @property
    def num_waiting(self) -> int:
        """Sequences that hold no blocks yet."""
        return len(self._by_id) - len(self._running)

    def abort(self, request_id: str, reason: FinishReason = FinishReason.CANCELLED) -> bool:
        """End a sequence in whatever state; False when it is unknown or over already."""
        sequence = self._by_id.get(request_id)
        if sequence is None:
            return False
        self._finish(sequence, reason)
        self._refresh_gauges()
        return True

    def expire(self) -> list[TokenEvent]:
        """End the sequences that have waited too long for their first step."""
        now = self.clock()
        expired = self._deadlines.pop_expired(now)
        self.stats.expired += len(expired)
        return [self._expire(sequence, now) for sequence in expired]

    def request_ids(self) -> list[str]:
        """Every request that has not finished."""
        return list(self._by_id)

    def num_completion_tokens(self, request_id: str) -> int:
        """Tokens generated for a request so far; 0 when it is unknown."""
        sequence = self._by_id.get(request_id)
        return 0 if sequence is None else sequence.num_completion_tokens

    def take_released(self) -> list[Sequence]:
        """Sequences that ended or were preempted and are in no launched step any more, since the
        last call: for the runner to forget.
        """
        released, self._released = self._released, []
        return released

    # The queue

    def _requeue(self, followers: Seq[Sequence]) -> None:
        """Put sequences that waited for another's blocks back where they were: first."""
        for follower in reversed(followers):
            self._waiting.push_front(follower)

    def _enqueue(self, sequence: Sequence) -> None:
        """Let a new sequence wait, at most as long as it may."""
        self._by_id[sequence.request_id] = sequence
        self._waiting.append(sequence)
        self.stats.queued_image_tokens += sequence.num_image_tokens
        limit = self._max_queue_seconds(sequence.request)
        if limit is not None:
            self._deadlines.add(sequence.arrival_seconds + limit, sequence)
        self._refresh_gauges()

    def _preempt(self, sequence: Sequence) -> None:
        """Take a sequence's blocks and put it back at the head of its class, to be recomputed."""
        self._running.remove(sequence)
        self._free(sequence)
        sequence.apply(Transition.PREEMPT)
        sequence.num_computed_tokens = 0
        sequence.num_pending_tokens = 0
        sequence.num_encoded_images = 0
        sequence.num_published_blocks = 0
        sequence.num_preemptions += 1
        self.stats.preemptions += 1
        self._waiting.push_front(sequence)
        self.stats.queued_image_tokens += sequence.num_image_tokens

    # Launched steps

    def fail(self, shares: Iterable[ScheduledSequence], error: ServingError) -> list[TokenEvent]:
        """End the sequences of shares that could not be computed."""
        events = [self._end(share.sequence, error) for share in shares if self._land(share)]
        self._refresh_gauges()
        return events

    def without_void(self, batch: ScheduledBatch) -> ScheduledBatch:
        """A batch that is to be executed again, less the shares that nobody needs any more."""
        live = []
        for share in batch.sequences:
            if share.sequence.is_running:
                live.append(share)
            else:
                self._land(share)
        return batch.part(live)

    def _land(self, share: ScheduledSequence) -> bool:
        """Note that a launched share is over; False when it is void."""
        sequence = share.sequence
        sequence.num_launched_steps -= 1
        if sequence.is_running:
            sequence.num_pending_tokens -= share.samples
            return True
        if sequence.num_launched_steps == 0:
            self._released.append(sequence)
        return False

    def _publish(self, sequence: Sequence, num_tokens: int) -> None:
        """Let other sequences find the blocks among the first num_tokens that this step filled."""
        if not self.limits.prefix_cache:
            return
        extend_digests(sequence, self.pool.block_size)
        num_full = num_tokens // self.pool.block_size
        for index in range(sequence.num_published_blocks, num_full):
            self.pool.publish(sequence.block_table[index], sequence.block_digests[index])
        sequence.num_published_blocks = num_full
        self._requeue(self._flights.advance(sequence))

    # The end of a sequence

    def _expire(self, sequence: Sequence, now: float) -> TokenEvent:
        limit = self._max_queue_seconds(sequence.request)
        assert limit is not None, "only sequences with a limit expire"
        sequence.queue_seconds = now - sequence.arrival_seconds
        return self._end(sequence, QueueTimeout(sequence.queue_seconds, limit))

    def _max_queue_seconds(self, request: GenerateRequest) -> float | None:
        if request.max_queue_seconds is not None:
            return request.max_queue_seconds
        return self.limits.max_queue_seconds

    def _end(self, sequence: Sequence, error: ServingError) -> TokenEvent:
        self._finish(sequence, FinishReason.ERROR)
        return TokenEvent(
            sequence.request_id,
            None,
            sequence.num_completion_tokens,
            FinishReason.ERROR,
            error,
            sequence.queue_seconds,
        )

    def _finish(self, sequence: Sequence, reason: FinishReason) -> None:
        if sequence.state is State.WAITING:
            self._leave_queue(sequence)
        else:
            self._running.remove(sequence)
        self._free(sequence)
        sequence.apply(Transition.FINISH)
        sequence.finish_reason = reason
        del self._by_id[sequence.request_id]
        self.stats.finished[reason.value] += 1
        self.stats.request.observe(self.clock() - sequence.arrival_seconds)

    def _leave_queue(self, sequence: Sequence) -> None:
        if sequence in self._flights:
            self._flights.leave(sequence)
        else:
            self._waiting.remove(sequence)
        self.stats.queued_image_tokens -= sequence.num_image_tokens

    def _free(self, sequence: Sequence) -> None:
        """Give blocks back at once: a later step writes them later, whatever is still launched."""
        self._requeue(self._flights.end(sequence))
        self.pool.release(sequence.block_table)
        sequence.block_table.clear()
        # Otherwise when the last of the launched steps lands.
        if sequence.num_launched_steps == 0:
            self._released.append(sequence)

    def _refresh_gauges(self) -> None:
        self.stats.num_waiting = self.num_waiting
        self.stats.num_running = len(self._running)
        self.stats.kv_used_ratio = self.pool.used_ratio
