"""Many streams, never more than so many of them at a time: what both sides of a measurement run."""

from __future__ import annotations

import asyncio
import statistics
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

Answer = TypeVar("Answer")


@dataclass(frozen=True, slots=True)
class Streams:
    """What became of streams. ttft_seconds: of each since it was asked for, in order of asking."""

    tokens_per_second: float
    ttft_seconds: tuple[float, ...]

    @property
    def ttft_p50_seconds(self) -> float:
        """The median over all."""
        return statistics.median(self.ttft_seconds)

    def __str__(self) -> str:
        return f"{self.tokens_per_second:.1f} tok/s, TTFT {self.ttft_p50_seconds:.3f} s"


async def keep_running(limit: int, asks: Iterable[Callable[[], Awaitable[Answer]]]) -> list[Answer]:
    """Ask in this order; the next begins when one ends and `limit` of them run no more."""
    places = asyncio.Semaphore(limit)

    async def one(ask: Callable[[], Awaitable[Answer]]) -> Answer:
        async with places:
            return await ask()

    return list(await asyncio.gather(*map(one, asks)))
