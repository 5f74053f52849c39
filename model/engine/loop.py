"""The engine's one thread, and the only place where it meets asyncio.

The thread owns scheduler and runner: everybody else sends it commands and reads streams. A step's
tokens reach the
event loop in one `call_soon_threadsafe`, however many sequences it served.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from model.errors import EngineFailure, NotReady, QueueFull
from model.request import FinishReason, TokenEvent

if TYPE_CHECKING:
    from collections.abc import Sequence as Seq

    from model.engine.batch import Runner
    from model.engine.scheduler import Scheduler
    from model.engine.stats import EngineStats
    from model.request import GenerateRequest

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Submit:
    requests: tuple[GenerateRequest, ...]


@dataclass(frozen=True, slots=True)
class _Abort:
    request_id: str
    reason: FinishReason


class TokenStream:
    """One request's events, in order; ends after the event that carries a finish_reason."""

    def __init__(self, engine: Engine, request_id: str) -> None:
        self.request_id = request_id
        self._engine = engine
        self._events: asyncio.Queue[TokenEvent] = asyncio.Queue()
        self._over = False

    def __aiter__(self) -> TokenStream:
        return self

    async def __anext__(self) -> TokenEvent:
        if self._over:
            raise StopAsyncIteration
        event = await self._events.get()
        self._over = event.finish_reason is not None
        return event

    def close(self, reason: FinishReason = FinishReason.CANCELLED) -> None:
        """Stop the sequence if it still runs and free what it holds; safe to call twice."""
        if not self._over:
            self._over = True
            self._engine.abort(self.request_id, reason)

    def _deliver(self, event: TokenEvent) -> None:
        self._events.put_nowait(event)


class Engine:
    """Submit, abort, stop, from the event loop; steps on a thread of its own.

    max_queued_requests: sequences that may wait for their first step
    stall_seconds: a step longer than this counts as a hang
    """

    def __init__(
        self,
        scheduler: Scheduler,
        runner: Runner,
        *,
        max_queued_requests: int,
        stall_seconds: float,
    ) -> None:
        self._scheduler = scheduler
        self._runner = runner
        self._max_queued_requests = max_queued_requests
        self._stall_seconds = stall_seconds
        self._loop: asyncio.AbstractEventLoop | None = None
        self._streams: dict[str, TokenStream] = {}
        self._condition = threading.Condition()
        self._inbox: list[_Submit | _Abort] = []
        self._num_inbox_requests = 0
        self._stopping = False
        self._step_started: float | None = None
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    @property
    def stats(self) -> EngineStats:
        """The engine's figures."""
        return self._scheduler.stats

    @property
    def max_sequence_tokens(self) -> int:
        """Tokens of prompt and answer that one sequence can have."""
        return self._scheduler.max_sequence_tokens

    @property
    def num_queued(self) -> int:
        """Sequences accepted that have not started."""
        return self._num_inbox_requests + self._scheduler.num_waiting

    @property
    def stalled(self) -> bool:
        """Whether there is work but no progress: a hanging step, or a dead thread."""
        started = self._step_started
        if started is not None and time.monotonic() - started > self._stall_seconds:
            return True
        return self._loop is not None and not self._stopping and not self._thread.is_alive()

    def start(self) -> None:
        """Start the thread; call from the event loop that will read the streams."""
        self._loop = asyncio.get_running_loop()
        self._thread.start()

    def check_capacity(self, num_requests: int) -> None:
        """Raise QueueFull unless that many more requests may wait."""
        num_queued = self.num_queued
        if num_queued + num_requests > self._max_queued_requests:
            raise QueueFull(num_queued, self._max_queued_requests)

    def submit(self, requests: Seq[GenerateRequest]) -> list[TokenStream]:
        """Queue requests, all or none. Raises PromptTooLong, QueueFull, NotReady."""
        if self._loop is None or self._stopping:
            raise NotReady("the engine is not running")
        for request in requests:
            self._scheduler.check(request)
        self.check_capacity(len(requests))
        streams = [TokenStream(self, request.request_id) for request in requests]
        self._streams.update((stream.request_id, stream) for stream in streams)
        self._send(_Submit(tuple(requests)))
        return streams

    def abort(self, request_id: str, reason: FinishReason = FinishReason.CANCELLED) -> None:
        """Forget a request's stream and stop its sequence, wherever it is."""
        if self._streams.pop(request_id, None) is not None:
            self._send(_Abort(request_id, reason))

    def cancel_all(self) -> None:
        """End every request with `cancelled`, told to whoever still reads."""
        for request_id in list(self._streams):
            self._send(_Abort(request_id, FinishReason.CANCELLED))

    def stop(self) -> None:
        """End the thread after its current step; requests still running get `cancelled`."""
        with self._condition:
            self._stopping = True
            self._condition.notify()
        if self._thread.is_alive():
            self._thread.join(timeout=self._stall_seconds)

    def _send(self, command: _Submit | _Abort) -> None:
        with self._condition:
            self._inbox.append(command)
            if isinstance(command, _Submit):
                self._num_inbox_requests += len(command.requests)
            self._condition.notify()

    def _dispatch(self, events: list[TokenEvent]) -> None:
        """On the event loop: hand each event to its stream; those of aborted streams fall away."""
        for event in events:
            stream = self._streams.get(event.request_id)
            if stream is None:
                continue
            if event.finish_reason is not None:
                del self._streams[event.request_id]
            stream._deliver(event)

    # The engine thread

    def _run(self) -> None:
        while (commands := self._next_commands()) is not None:
            events = [event for command in commands for event in self._apply(command)]
            if self._scheduler.has_work:
                events += self._step()
            self._deliver(events)
        leftover = self._scheduler.request_ids()
        self._deliver(
            [event for name in leftover for event in self._cancelled(name, FinishReason.CANCELLED)]
        )

    def _next_commands(self) -> list[_Submit | _Abort] | None:
        """Wait for work; None when the engine stops."""
        with self._condition:
            while not (self._inbox or self._scheduler.has_work or self._stopping):
                self._condition.wait()
            if self._stopping:
                return None
            commands, self._inbox = self._inbox, []
            self._num_inbox_requests = 0
            return commands

    def _apply(self, command: _Submit | _Abort) -> list[TokenEvent]:
        match command:
            case _Submit(requests):
                for request in requests:
                    self._scheduler.add(request)
                return []
            case _Abort(request_id, reason):
                return self._cancelled(request_id, reason)

    def _cancelled(self, request_id: str, reason: FinishReason) -> list[TokenEvent]:
        num_tokens = self._scheduler.num_completion_tokens(request_id)
        if not self._scheduler.abort(request_id, reason):
            return []
        self._release()
        return [TokenEvent(request_id, None, num_tokens, reason)]

    def _step(self) -> list[TokenEvent]:
        batch = self._scheduler.schedule()
        # A preempted sequence must be forgotten before its blocks are written by another.
        self._release()
        assert batch.sequences, "there is work, but nothing could be scheduled"
        self._step_started = time.monotonic()
        try:
            tokens = self._runner.execute(batch).tokens()
        except Exception:
            logger.exception("a step of %d tokens failed", batch.num_tokens)
            failed = [share.sequence for share in batch.sequences]
            return self._scheduler.fail(failed, EngineFailure("the engine failed on this request"))
        else:
            return self._scheduler.commit(batch, tokens)
        finally:
            self.stats.step_seconds += time.monotonic() - self._step_started
            self._step_started = None
            self._release()

    def _release(self) -> None:
        released = self._scheduler.take_released()
        if released:
            self._runner.release(released)

    def _deliver(self, events: list[TokenEvent]) -> None:
        if not events or self._loop is None:
            return
        try:
            self._loop.call_soon_threadsafe(self._dispatch, events)
        except RuntimeError:
            # The loop closed under us: nobody is left to read.
            logger.debug("%d events had no reader", len(events))
