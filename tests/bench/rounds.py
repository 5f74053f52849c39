"""Rounds of two sides, one at a time, so that a machine that slows down slows both."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypeVar

from tests.bench.tables import Pair

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from collections.abc import Sequence as Seq
    from pathlib import Path

    from tests.bench.client import Round

# vLLM's processes poll without a pause for a second after their last work (SpinCondition in its
# shm_broadcast.py); they would take that from whoever comes next.
SETTLE_SECONDS: Final = 2.0

Ours = TypeVar("Ours")
Peer = TypeVar("Peer")
Side = TypeVar("Side")


@dataclass(frozen=True, slots=True)
class Plan:
    """What all measurements share. model: the folder of `write_bench_model`."""

    model: Path
    rounds: int
    concurrency: int


async def alternate(
    rounds: int, ours: Callable[[int], Awaitable[Ours]], peer: Callable[[int], Awaitable[Peer]]
) -> list[tuple[Ours, Peer]]:
    """Run both sides in every round; who goes first changes from round to round.

    Each side is given the round's number, to draw its pictures from. Round 0 is not counted: after
    it allocators, thread pools and compiled code are warm.
    """
    results = []
    for number in range(rounds + 1):
        if number % 2:
            mine = await _settled(ours, number)
            theirs = await _settled(peer, number)
        else:
            theirs = await _settled(peer, number)
            mine = await _settled(ours, number)
        if number:
            progress(f"  round {number}: ours {_shown(mine)}; peer {_shown(theirs)}")
            results.append((mine, theirs))
    return results


async def _settled(side: Callable[[int], Awaitable[Side]], number: int) -> Side:
    await asyncio.sleep(SETTLE_SECONDS)
    return await side(number)


def pairs(rounds: Seq[tuple[Round, Round]], figure: str, scale: float = 1) -> tuple[Pair, ...]:
    """One figure of both sides for each round, in units of 1 / scale."""
    return tuple(
        Pair(getattr(ours, figure) * scale, getattr(peer, figure) * scale) for ours, peer in rounds
    )


def progress(text: str) -> None:
    """Say on the terminal how far the run is."""
    print(text, flush=True)


def _shown(result: object) -> str:
    return f"{result:.3g}" if isinstance(result, float) else str(result)
