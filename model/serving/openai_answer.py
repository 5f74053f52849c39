"""What chat's and completions' answers share: heads, usage, chunks, several choices in one stream.

A chunk is put together from bytes: of each only its delta is encoded anew.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import orjson
from starlette.responses import Response

from model.errors import NotReady
from model.request import FinishReason
from model.serving.generation import TextDelta
from model.serving.openai_errors import error_event
from model.serving.request_id import new_id
from model.serving.sse import COMMENT, SSE_TYPE, StreamFormat, data_event

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator
    from collections.abc import Sequence as Seq

    from model.serving.generation import Completion, Generation
    from model.serving.tap import Tap

NULL: Final = b"null"


EVENTS: Final = StreamFormat(SSE_TYPE, data_event, error_event, COMMENT, b"data: [DONE]\n\n")


@dataclass(frozen=True, slots=True)
class Head:
    """How an answer begins, and each of its chunks."""

    id: str
    model: str
    created: int

    @classmethod
    def new(cls, prefix: str, model: str) -> Head:
        """Of a new answer."""
        return cls(f"{prefix}-{new_id()}", model, int(time.time()))

    def fields(self, kind: str) -> dict[str, Any]:
        """The first members of a JSON object of this kind."""
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model}


@dataclass(slots=True)
class Tally:
    """Tokens of one request; a prompt counts once, however many choices it has."""

    prompt_tokens: int = 0
    image_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0

    @classmethod
    def of(cls, answers: Seq[Completion | Generation], num_choices: int) -> Tally:
        """Of all prompts' answers, of each prompt num_choices side by side; completions apart."""
        firsts = answers[::num_choices]
        return cls(
            sum(answer.prompt_tokens for answer in firsts),
            sum(answer.image_tokens for answer in firsts),
            sum(answer.cached_tokens for answer in firsts),
        )

    def usage(self) -> dict[str, Any]:
        """In OpenAI's form."""
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": self.prompt_tokens + self.completion_tokens,
            "prompt_tokens_details": {
                "cached_tokens": self.cached_tokens,
                "image_tokens": self.image_tokens,
                "audio_tokens": 0,
            },
            "completion_tokens_details": {
                "audio_tokens": 0,
                "accepted_prediction_tokens": 0,
                "rejected_prediction_tokens": 0,
            },
        }


@dataclass(slots=True)
class StreamUsage:
    """The usage of a stream, as far as it is.

    told: whether at the end; continuous: whether with every chunk
    """

    generations: Seq[Generation]
    num_choices: int
    told: bool
    continuous: bool
    _counts: dict[int, int] = field(default_factory=dict)

    def count(self, index: int, num_completion_tokens: int) -> None:
        """Note how far a choice is."""
        self._counts[index] = num_completion_tokens

    def usage(self) -> dict[str, Any]:
        """As of now."""
        tally = Tally.of(self.generations, self.num_choices)
        tally.completion_tokens = sum(self._counts.values())
        return tally.usage()

    def member(self) -> bytes:
        """What a chunk with choices says of it."""
        if self.continuous:
            return b',"usage":' + orjson.dumps(self.usage())
        return b',"usage":null' if self.told else b""


class ChunkFrame:
    """One choice's chunks, with all that is the same in each encoded once."""

    def __init__(self, head: Head, kind: str, index: int, usage: StreamUsage) -> None:
        fields = orjson.dumps(head.fields(kind))[:-1]
        self._before = b"data: %b" % fields + b',"choices":[{"index":%d,' % index
        self._usage = usage

    def chunk(self, said: bytes, logprobs: bytes = NULL, reason: str | None = None) -> bytes:
        """One event; said: the choice's own member, as `"text":"…"`."""
        return b"".join(
            (
                self._before,
                said,
                b',"logprobs":',
                logprobs,
                b',"finish_reason":',
                NULL if reason is None else b'"%b"' % reason.encode(),
                b"}]",
                self._usage.member(),
                b"}\n\n",
            )
        )


def usage_chunk(head: Head, kind: str, usage: StreamUsage) -> bytes:
    """The last chunk, where usage was asked for."""
    return data_event({**head.fields(kind), "choices": [], "usage": usage.usage()})


def whole_delta(completion: Completion) -> TextDelta:
    """A whole answer as the one delta that says it all."""
    return TextDelta(
        completion.text,
        completion.completion_tokens,
        completion.finish_reason,
        completion.logprobs,
    )


def reason_of(delta: TextDelta) -> str | None:
    """Why a choice ends, in OpenAI's words; raises NotReady where the server ends it."""
    if delta.finish_reason is None:
        return None
    if delta.finish_reason is FinishReason.CANCELLED:
        # OpenAI has no word for it, and a client that reads "stop" would take the part for all.
        raise NotReady("the server is shutting down and ended this answer; try another replica")
    return str(delta.finish_reason.value)


async def interleaved(
    generations: Seq[Generation], tap: Tap[list[tuple[int, TextDelta]]] | None = None
) -> AsyncGenerator[list[tuple[int, TextDelta]], None]:
    """The deltas of several answers as they come; those of one step together.

    tap: where those of one answer alone may go instead
    Leaving early, or an error of one, cancels all.
    """
    try:
        if len(generations) == 1:
            if tap is not None:
                generations[0].tap(tap.after(lambda delta: [(0, delta)]))
            async for delta in generations[0]:
                yield [(0, delta)]
            return
        async with aclosing(_merged(generations)) as merged:
            async for deltas in merged:
                yield deltas
    finally:
        for generation in generations:
            generation.close()


async def _merged(
    generations: Seq[Generation],
) -> AsyncGenerator[list[tuple[int, TextDelta]], None]:
    waiting: asyncio.Queue[tuple[int, TextDelta] | Exception] = asyncio.Queue()

    async def read(index: int, generation: Generation) -> None:
        try:
            async for delta in generation:
                waiting.put_nowait((index, delta))
        except Exception as e:
            waiting.put_nowait(e)

    readers = [asyncio.create_task(read(i, one)) for i, one in enumerate(generations)]
    num_open = len(readers)
    try:
        while num_open:
            items = [await waiting.get()]
            while not waiting.empty():
                items.append(waiting.get_nowait())
            deltas = []
            for item in items:
                if isinstance(item, Exception):
                    raise item
                deltas.append(item)
            num_open -= sum(delta.finish_reason is not None for _, delta in deltas)
            yield deltas
    finally:
        for reader in readers:
            reader.cancel()
        await asyncio.gather(*readers, return_exceptions=True)


def json_response(body: dict[str, Any], headers: dict[str, str] | None = None) -> Response:
    """A whole answer."""
    return Response(orjson.dumps(body), headers=headers, media_type="application/json")
