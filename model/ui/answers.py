"""Answers while they grow: what the events of one call add up to, and many calls side by side."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final

from model.ui.api import ApiError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping
    from collections.abc import Sequence as Seq

    from model.ui.api import Api
    from model.ui.ask import Call

# Text grows on the page this often: smooth for the eye, few messages for a slow line.
FRAME_SECONDS: Final = 0.05
# Of one person's many pictures; the server's queue is for everybody.
MAX_CALLS_AT_ONCE: Final = 4


class Phase(StrEnum):
    """How far an answer is."""

    WAITING = "waiting"
    SENT = "sent"
    READING = "reading"
    WRITING = "writing"
    DONE = "done"
    STOPPED = "stopped"
    FAILED = "failed"


ENDED: Final = frozenset({Phase.DONE, Phase.STOPPED, Phase.FAILED})


@dataclass(frozen=True, slots=True)
class Answer:
    """One call's answer so far; the mappings are describe's own."""

    phase: Phase = Phase.WAITING
    text: str = ""
    error: str = ""
    finish_reason: str = ""
    images: tuple[Mapping[str, Any], ...] = ()
    usage: Mapping[str, Any] = field(default_factory=dict)
    timings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def ended(self) -> bool:
        """Whether nothing more will come."""
        return self.phase in ENDED

    @property
    def tokens_per_second(self) -> float | None:
        """Tokens after the first over the time after the first; None for fewer than two."""
        tokens = int(self.usage.get("completion_tokens", 0))
        first = float(self.timings.get("first_text_ms", 0))
        whole = float(self.timings.get("generate_ms", 0))
        return (tokens - 1) / (whole - first) * 1000 if tokens > 1 and whole > first else None

    def after(self, event: Mapping[str, Any]) -> Answer:
        """The answer with one more event of its stream."""
        match event.get("type"):
            case "start":
                return replace(
                    self,
                    phase=Phase.READING,
                    images=tuple(event.get("images", ())),
                    usage=event.get("usage", {}),
                )
            case "delta":
                return replace(
                    self, phase=Phase.WRITING, text=self.text + str(event.get("text", ""))
                )
            case "end":
                return replace(
                    self,
                    phase=Phase.DONE,
                    text=str(event.get("description", self.text)),
                    finish_reason=str(event.get("finish_reason", "")),
                    images=tuple(event.get("images", self.images)),
                    usage=event.get("usage", self.usage),
                    timings=event.get("timings", {}),
                )
            case _:
                return self

    def failed(self, error: str) -> Answer:
        """The answer when the server, or the way to it, gave up."""
        return replace(self, phase=Phase.FAILED, error=error)

    def stopped(self) -> Answer:
        """The answer when its reader has had enough; one that has ended stays what it is."""
        return self if self.ended else replace(self, phase=Phase.STOPPED)


async def follow(
    api: Api, calls: Seq[Call], key: str, stop: asyncio.Event
) -> AsyncIterator[tuple[Answer, ...]]:
    """All answers, again each time any has grown, the last time when all have ended.

    stop: once set, what runs is cancelled at the server too. So it is when the caller leaves.
    """
    answers = [Answer() for _ in calls]
    places = asyncio.Semaphore(MAX_CALLS_AT_ONCE)

    async def one(index: int, call: Call) -> None:
        async with places:
            answers[index] = Answer(Phase.SENT)
            try:
                async for event in api.describe(call, key):
                    answers[index] = answers[index].after(event)
            except ApiError as e:
                answers[index] = answers[index].failed(str(e))

    running = [asyncio.ensure_future(one(index, call)) for index, call in enumerate(calls)]
    everything = asyncio.gather(*running)
    stopping = asyncio.ensure_future(stop.wait())
    shown: tuple[Answer, ...] = ()
    try:
        while not everything.done() and not stopping.done():
            if (now := tuple(answers)) != shown:
                yield (shown := now)
            await asyncio.wait(
                (everything, stopping), timeout=FRAME_SECONDS, return_when="FIRST_COMPLETED"
            )
        if everything.done():
            everything.result()
    finally:
        for task in (*running, stopping):
            task.cancel()
        await asyncio.gather(everything, stopping, return_exceptions=True)
    yield tuple(answer.stopped() for answer in answers)
