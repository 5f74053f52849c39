"""How late the event loop is: whatever holds it up, every stream and every probe waits as long."""

from __future__ import annotations

import asyncio
import time
from typing import Final

from model.engine.stats import Histogram

INTERVAL_SECONDS: Final = 0.05
BOUNDS: Final = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)


class LoopLag:
    """Asks to be called at a time, and counts how much later it is called. Costs 20 calls a second.

    histogram: seconds of lateness; of use from any thread
    """

    def __init__(self) -> None:
        self.histogram = Histogram(BOUNDS)
        self._due = 0.0
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Begin, on the running loop."""
        self._due = time.monotonic() + INTERVAL_SECONDS
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(INTERVAL_SECONDS, self._called)

    def stop(self) -> None:
        """Measure no more."""
        if self._timer is not None:
            self._timer.cancel()

    def _called(self) -> None:
        self.histogram.observe(max(0.0, time.monotonic() - self._due))
        self.start()
