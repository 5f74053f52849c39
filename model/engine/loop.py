"""The engine's one thread, and the only place where it meets asyncio.

The thread owns scheduler and runner: everybody else sends it commands and reads streams. A step's
tokens reach the event loop in one `call_soon_threadsafe`, however many sequences it served. Where
the runner overlaps, a step is launched before the tokens of the one before it are read. Where it
does not, they are handed out a moment later, when the next step computes: until then the thread
needs the interpreter itself, and would wait for it while the event loop writes to its sockets.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from model.engine.steps import Steps
from model.errors import EngineFailure, NotReady, QueueFull
from model.request import FinishReason, TokenEvent

if TYPE_CHECKING:
    from collections.abc import Callable
    from collections.abc import Sequence as Seq

    from model.engine.batch import Runner
    from model.engine.scheduler import Scheduler
    from model.engine.stats import EngineStats
    from model.errors import ServingError
    from model.request import GenerateRequest

logger = logging.getLogger(__name__)

T = TypeVar("T")

# Streams that are handed a token before others have a turn: about a millisecond's work.
DISPATCH_SLICE = 32


@dataclass(frozen=True, slots=True)
class _Submit:
    requests: tuple[GenerateRequest, ...]
    num_image_tokens: int
    arrival_seconds: float


@dataclass(frozen=True, slots=True)
class _Abort:
    request_id: str
    reason: FinishReason


class TokenStream:
    """One request's events, in order; ends after the event that carries a finish_reason."""

    def __init__(self, engine: Engine, request_id: str) -> None:
        self.request_id = request_id
        self._engine = engine
        # Not an asyncio.Queue: that costs more than all else that is done here for a token.
        self._events: deque[TokenEvent] = deque()
        self._waiting: asyncio.Future[None] | None = None
        self._tap: Callable[[TokenEvent], bool] | None = None
        self._over = False

    def tap(self, take: Callable[[TokenEvent], bool]) -> None:
        """Offer events to `take` first, while the reader waits for the next.

        It says False to what it leaves for the reader; what it raises, the reader gets. Never
        offered is the event that ends the stream.
        """
        self._tap = take

    def __aiter__(self) -> TokenStream:
        return self

    async def __anext__(self) -> TokenEvent:
        if self._over:
            raise StopAsyncIteration
        while not self._events:
            self._waiting = asyncio.get_running_loop().create_future()
            try:
                await self._waiting
            finally:
                self._waiting = None
        event = self._events.popleft()
        if event.finish_reason is not None:
            self._end()
        return event

    def close(self, reason: FinishReason = FinishReason.CANCELLED) -> None:
        """Stop the sequence if it still runs and free what it holds; safe to call twice."""
        if not self._over:
            self._end()
            self._engine.abort(self.request_id, reason)

    def _end(self) -> None:
        self._over = True
        # It knows the reader, who knows this: together they would wait for the garbage collector.
        self._tap = None

    def _deliver(self, event: TokenEvent) -> None:
        waiting = self._waiting
        if waiting is None or waiting.done():
            self._events.append(event)
            return
        if self._tap is not None and event.finish_reason is None:
            try:
                if self._tap(event):
                    return
            except Exception as error:
                waiting.set_exception(error)
                return
        self._events.append(event)
        waiting.set_result(None)


class Engine:
    """Submit, abort, stop, from the event loop; steps on a thread of its own.

    max_queued_requests: sequences that may wait for their first step
    max_queued_image_tokens: image tokens that may wait with them: pictures are memory; None: any
    stall_seconds: a step longer than this counts as a hang
    on_fatal: called on the engine's thread when the device, or the engine itself, can do no more;
    by then the end of every stream is on its way to the event loop
    """

    def __init__(
        self,
        scheduler: Scheduler,
        runner: Runner,
        *,
        max_queued_requests: int,
        stall_seconds: float,
        max_queued_image_tokens: int | None = None,
        on_fatal: Callable[[], None] | None = None,
    ) -> None:
        self._scheduler = scheduler
        self._steps = Steps(scheduler, runner)
        self._max_queued_requests = max_queued_requests
        self._max_queued_image_tokens = max_queued_image_tokens
        self._stall_seconds = stall_seconds
        self._on_fatal = on_fatal
        self._loop: asyncio.AbstractEventLoop | None = None
        self._streams: dict[str, TokenStream] = {}
        self._condition = threading.Condition()
        self._undelivered: deque[TokenEvent] = deque()
        # For the engine thread: of the last step, until the next one computes.
        self._events: list[TokenEvent] = []
        self._hands_out_at_once = runner.overlaps
        runner.computing = self._hand_out
        self._inbox: list[_Submit | _Abort] = []
        self._num_inbox_requests = 0
        self._num_inbox_image_tokens = 0
        self._stopping = False
        self._failed = False
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
    def num_queued_image_tokens(self) -> int:
        """Image tokens of those."""
        return self._num_inbox_image_tokens + self.stats.queued_image_tokens

    @property
    def stalled(self) -> bool:
        """Whether there is work but no progress: a hanging step, a failed device, a dead thread."""
        if self._failed:
            return True
        started = self._steps.started_seconds
        if started is not None and time.monotonic() - started > self._stall_seconds:
            return True
        return self._loop is not None and not self._stopping and not self._thread.is_alive()

    def start(self) -> None:
        """Start the thread; call from the event loop that will read the streams."""
        self._loop = asyncio.get_running_loop()
        self._thread.start()

    def check_capacity(self, num_requests: int, num_image_tokens: int = 0) -> None:
        """Raise QueueFull unless that many more requests and image tokens may wait.

        Image tokens beyond the limit are let in when none wait: they would never be otherwise.
        """
        num_queued, limit = self.num_queued, self._max_queued_requests
        if num_queued + num_requests > limit:
            raise QueueFull(num_queued, limit, "requests", num_requests)
        num_queued, most = self.num_queued_image_tokens, self._max_queued_image_tokens
        if most is None or num_queued == 0 or num_image_tokens == 0:
            return
        if num_queued + num_image_tokens > most:
            raise QueueFull(num_queued, most, "image tokens", num_image_tokens)

    def submit(self, requests: Seq[GenerateRequest]) -> list[TokenStream]:
        """Queue requests, all or none. Raises PromptTooLong, QueueFull, NotReady."""
        if self._loop is None or self._stopping or self._failed:
            raise NotReady("the engine is not running")
        for request in requests:
            self._scheduler.check(request)
        num_image_tokens = sum(image.num_tokens for one in requests for image in one.images)
        self.check_capacity(len(requests), num_image_tokens)
        streams = [TokenStream(self, request.request_id) for request in requests]
        self._streams.update((stream.request_id, stream) for stream in streams)
        self._send(_Submit(tuple(requests), num_image_tokens, self._scheduler.clock()))
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
                self._num_inbox_image_tokens += command.num_image_tokens
            self._condition.notify()

    def _dispatch(self, events: list[TokenEvent]) -> None:
        """On the event loop: hand events to their streams, not all at once.

        Every event wakes a task that writes to a socket. A step of hundreds would keep everything
        else waiting: between slices others have their turn.
        """
        begun = bool(self._undelivered)
        self._undelivered.extend(events)
        if not begun:
            self._deliver_slice()

    def _deliver_slice(self) -> None:
        events = self._undelivered
        self._hand_over([events.popleft() for _ in range(min(len(events), DISPATCH_SLICE))])
        if events:
            assert self._loop is not None, "the thread starts with the loop"
            self._loop.call_soon(self._deliver_slice)

    def _hand_over(self, events: list[TokenEvent]) -> None:
        """Give each event to its stream; those of aborted streams fall away."""
        for event in events:
            stream = self._streams.get(event.request_id)
            if stream is None:
                continue
            if event.finish_reason is not None:
                del self._streams[event.request_id]
            stream._deliver(event)

    def _end_all(self, error: ServingError) -> None:
        """On the event loop: tell every reader that nothing more will come."""
        for request_id in list(self._streams):
            num_tokens = self._scheduler.num_completion_tokens(request_id)
            self._dispatch([TokenEvent(request_id, None, num_tokens, FinishReason.ERROR, error)])

    # The engine thread

    def _run(self) -> None:
        try:
            self._serve()
        except Exception as error:
            self._die(error)

    def _serve(self) -> None:
        while (commands := self._next_commands()) is not None:
            events = [event for command in commands for event in self._apply(command)]
            if self._steps.has_work:
                events += self._steps.step()
            self._hand_out()  # a step that computed nothing has not
            self._events = events
            if self._hands_out_at_once or not self._steps.has_work:
                self._hand_out()
        self._hand_out()
        self._events = self._steps.finish()
        for name in self._scheduler.request_ids():
            self._events += self._steps.abort(name, FinishReason.CANCELLED)
        self._hand_out()

    def _die(self, error: Exception) -> None:
        """End every stream with an error; nothing can be computed any more."""
        logger.critical("the engine can do no more: %s", error, exc_info=error)
        self._failed = True
        self._hand_out()
        failure = EngineFailure("the engine failed and can do no more; the server must restart")
        self._call_soon(self._end_all, failure)
        if self._on_fatal is not None:
            self._on_fatal()

    def _next_commands(self) -> list[_Submit | _Abort] | None:
        """Wait for work; None when the engine stops."""
        with self._condition:
            while not (self._inbox or self._steps.has_work or self._stopping):
                self._condition.wait()
            if self._stopping:
                return None
            commands, self._inbox = self._inbox, []
            return commands

    def _apply(self, command: _Submit | _Abort) -> list[TokenEvent]:
        match command:
            case _Submit():
                self._add(command)
                return []
            case _Abort(request_id, reason):
                return self._steps.abort(request_id, reason)

    def _add(self, command: _Submit) -> None:
        for request in command.requests:
            self._scheduler.add(request, command.arrival_seconds)
        # Only now: counted twice for a moment rather than not at all.
        with self._condition:
            self._num_inbox_requests -= len(command.requests)
            self._num_inbox_image_tokens -= command.num_image_tokens

    def _hand_out(self) -> None:
        events, self._events = self._events, []
        if events:
            self._call_soon(self._dispatch, events)

    def _call_soon(self, function: Callable[[T], None], argument: T) -> None:
        """Call a function on the event loop, soon."""
        assert self._loop is not None, "the thread starts with the loop"
        try:
            self._loop.call_soon_threadsafe(function, argument)
        except RuntimeError:
            # The loop closed under us: nobody is left to read.
            logger.debug("%s had no reader", function.__name__)
