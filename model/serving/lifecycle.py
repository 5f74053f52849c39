"""Where the server is in its life, and the requests it still owes an answer.

loading → ready → unready (SIGTERM seen, still serving) → draining (refusing) → stopped; failed from
loading.
HTTP readiness, ServerReady and grpc.health all read this one object, so they cannot disagree.
"""

from __future__ import annotations

import asyncio
from contextlib import contextmanager
from enum import Enum
from typing import TYPE_CHECKING

from model.errors import NotReady

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


class Phase(Enum):
    """The server's phases, in the order they come."""

    LOADING = "loading"
    READY = "ready"
    UNREADY = "unready"
    DRAINING = "draining"
    STOPPED = "stopped"
    FAILED = "failed"


class Lifecycle:
    """One server's phase and its open requests; used from the event loop only.

    stalled: says whether the engine has work but makes no progress (liveness)
    """

    def __init__(self, stalled: Callable[[], bool] = lambda: False) -> None:
        self._phase = Phase.LOADING
        self._stalled = stalled
        self._num_open = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self._listeners: list[Callable[[Phase], None]] = []

    @property
    def phase(self) -> Phase:
        """The current phase."""
        return self._phase

    @property
    def ready(self) -> bool:
        """Whether new requests should be sent here: weights loaded, warmed up, not stopping."""
        return self._phase is Phase.READY

    @property
    def live(self) -> bool:
        """Whether the process is worth keeping; a hanging engine or a failed load is not."""
        return self._phase is not Phase.FAILED and not self._stalled()

    @property
    def num_open(self) -> int:
        """Requests accepted and not yet answered whole."""
        return self._num_open

    def enter(self, phase: Phase) -> None:
        """Move to a phase and tell the listeners."""
        self._phase = phase
        for listener in self._listeners:
            listener(phase)

    def listen(self, listener: Callable[[Phase], None]) -> None:
        """Call `listener` with every phase entered from now on."""
        self._listeners.append(listener)

    def check_serving(self) -> None:
        """Raise NotReady unless requests are taken now."""
        match self._phase:
            case Phase.READY | Phase.UNREADY:
                return
            case Phase.LOADING:
                raise NotReady("the model is still loading; try again later")
            case Phase.FAILED:
                raise NotReady("the model failed to load; see the server's log")
            case Phase.DRAINING | Phase.STOPPED:
                raise NotReady("the server is shutting down; try another replica")

    @contextmanager
    def request(self) -> Iterator[None]:
        """Hold one request open from acceptance to its last byte; raises NotReady."""
        self.check_serving()
        self._num_open += 1
        self._idle.clear()
        try:
            yield
        finally:
            self._num_open -= 1
            if self._num_open == 0:
                self._idle.set()

    async def wait_idle(self, timeout_seconds: float) -> bool:
        """Wait until no request is open; False when the time was not enough."""
        try:
            async with asyncio.timeout(timeout_seconds):
                await self._idle.wait()
        except TimeoutError:
            return False
        return True
