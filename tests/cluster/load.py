"""A steady mixture of requests, and what became of each: for what must not lose any."""

from __future__ import annotations

import itertools
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from tests.cluster.senders import (
    Connecting,
    Describes,
    GrpcRequests,
    GrpcStreams,
    StreamedChats,
    V2Requests,
)
from tests.serving import metric_of, wait_for

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from tests.cluster.senders import Sender

NUM_WORKERS: Final = 128
# Longer than any test needs a stream.
LONG_TOKENS: Final = 3000
# Of the streams that keep a pod busy: what is sent to it all the same waits a second or two.
BUSY_TOKENS: Final = 64


@dataclass(frozen=True)
class Front:
    """Where requests go in: a Service, a Gateway or a pod."""

    url: str
    grpc_address: str


@dataclass(frozen=True)
class Outcome:
    """One request."""

    kind: str
    began: float  # time.monotonic()
    seconds: float
    answer: str  # what it said; empty where it failed
    failure: str  # empty where all went well

    @property
    def failed(self) -> bool:
        """Whether its client would call it failed."""
        return bool(self.failure)


@dataclass
class Load:
    """What has been sent so far."""

    outcomes: list[Outcome] = field(default_factory=list)

    @property
    def failures(self) -> list[Outcome]:
        """Those that failed."""
        return [one for one in self.outcomes if one.failed]

    @property
    def error_ratio(self) -> float:
        """0–1; 0 where nothing was sent."""
        return len(self.failures) / len(self.outcomes) if self.outcomes else 0.0

    def since(self, moment: float) -> Load:
        """What began at this time.monotonic() or later."""
        return Load([one for one in self.outcomes if one.began >= moment])

    def without_open(self, start: float, end: float) -> Load:
        """Without those that were under way at some time between two of time.monotonic()."""
        return Load(
            [one for one in self.outcomes if one.began > end or one.began + one.seconds < start]
        )

    def summary(self) -> str:
        """How many of each kind, and which failed when and why."""
        sent = Counter(one.kind for one in self.outcomes)
        first = min((one.began for one in self.outcomes), default=0.0)
        failed = [
            f"\n  {one.began - first:.2f} s, after {one.seconds:.2f} s: {one.kind}: "
            f"{' '.join(one.failure.split())[:200]}"
            for one in sorted(self.failures, key=lambda one: one.began)
        ]
        return f"{len(self.outcomes)} sent: {dict(sent)}; {len(failed)} failed{''.join(failed)}"


def mixture(front: Front, picture: bytes, *, reconnects: bool = False) -> list[Sender]:
    """Every protocol, streamed and not, over connections that are kept and new ones."""
    url, address = front.url, front.grpc_address
    senders: list[Sender] = []
    for kept in (True, False):
        connecting = Connecting(kept, reconnects)
        senders += [
            V2Requests(url, picture, connecting=connecting),
            GrpcRequests(address, picture, connecting=connecting),
            StreamedChats(url, picture, connecting=connecting),
            Describes(url, picture, connecting=connecting),
            GrpcStreams(address, picture, connecting=connecting),
        ]
    return senders


@contextmanager
def running_load(senders: Sequence[Sender], *, per_second: float) -> Iterator[Load]:
    """Send at this rate, in turn, whatever comes back; all have ended when this ends."""
    load, stopped = Load(), threading.Event()
    with ThreadPoolExecutor(NUM_WORKERS) as workers:

        def send_on_time() -> None:
            began = time.monotonic()
            for number, sender in enumerate(itertools.cycle(senders)):
                if stopped.wait(max(began + number / per_second - time.monotonic(), 0)):
                    return
                workers.submit(_send, sender, load)

        clock = threading.Thread(target=send_on_time)
        clock.start()
        try:
            yield load
        finally:
            stopped.set()
            clock.join()
            workers.shutdown()
            for sender in senders:
                sender.close()


@contextmanager
def kept_busy(front: Front, picture: bytes, *, num_streams: int) -> Iterator[None]:
    """So many streams at any time; they are in the pod's engine from the beginning to the end."""
    stopped = threading.Event()

    def look() -> None:
        if stopped.is_set():
            raise _Enough

    def stream() -> None:
        sender = StreamedChats(front.url, picture, max_tokens=BUSY_TOKENS, on_event=look)
        with closing(sender), suppress(_Enough):
            while not stopped.is_set():
                sender.send()

    with ThreadPoolExecutor(num_streams) as workers:
        streams = [workers.submit(stream) for _ in range(num_streams)]
        try:
            wait_for(
                lambda: _num_sequences(front) >= num_streams,
                f"{num_streams} streams are at {front.url}",
            )
            yield
        finally:
            stopped.set()
    for one in streams:
        one.result()
    wait_for(lambda: _num_sequences(front) == 0, f"{front.url} is idle")


class _Enough(Exception):
    """A stream is not needed any more."""


def _num_sequences(front: Front) -> float:
    return sum(metric_of(front.url, f"{state}_sequences") for state in ("running", "queued"))


def _send(sender: Sender, load: Load) -> None:
    began = time.monotonic()
    answer = failure = ""
    try:
        answer = sender.send()
        failure = "" if answer else "an empty answer"
    except Exception as error:  # whatever it is, its client would call the request failed
        failure = f"{type(error).__name__}: {error}"
    load.outcomes.append(Outcome(sender.kind, began, time.monotonic() - began, answer, failure))
