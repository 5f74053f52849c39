"""One streaming client for every server: sends pictures, notes when each piece of text came.

A server's way of speaking is a `Protocol`; the rest is the same for all, so that the client costs
every side the same. Knows no server by name.
"""

from __future__ import annotations

import asyncio
import base64
import itertools
import json
import statistics
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Protocol

import aiohttp

from tests.bench.work import PROMPT, num_tokens_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from collections.abc import Sequence as Seq

    from tests.bench.work import Work

MODEL_NAME: Final = "qwen3-vl"
TIMEOUT: Final = aiohttp.ClientTimeout(total=600)
DATA: Final = b"data: "
DONE: Final = b"[DONE]"


class WrongAnswer(Exception):
    """A server did other work than it was asked for: its figures mean nothing."""


@dataclass(frozen=True, slots=True)
class Piece:
    """What one event says. num_tokens: of the answer so far, where the event tells."""

    text: str
    num_tokens: int | None = None


class ServerProtocol(Protocol):
    """How a server takes a question and gives its answer."""

    path: str

    def body(self, picture: bytes, prompt: str, options: dict[str, Any]) -> dict[str, Any]:
        """A streamed, greedy request; options by vLLM's names."""
        ...

    def piece(self, event: dict[str, Any]) -> Piece:
        """Read one event."""
        ...


class ChatCompletions:
    """OpenAI's chat protocol."""

    path = "/v1/chat/completions"

    def body(self, picture: bytes, prompt: str, options: dict[str, Any]) -> dict[str, Any]:
        """As ServerProtocol."""
        url = f"data:image/png;base64,{base64.b64encode(picture).decode()}"
        content = [
            {"type": "image_url", "image_url": {"url": url}},
            {"type": "text", "text": prompt},
        ]
        return {
            "model": MODEL_NAME,
            "messages": [{"role": "user", "content": content}],
            "stream": True,
            "stream_options": {"include_usage": True},
            "temperature": 0,
            **options,
        }

    def piece(self, event: dict[str, Any]) -> Piece:
        """As ServerProtocol; the last event carries the usage and no choice."""
        choices, usage = event["choices"], event.get("usage")
        text = choices[0]["delta"].get("content") if choices else None
        return Piece(text or "", usage["completion_tokens"] if usage else None)


class GenerateStream:
    """The V2 generate extension."""

    path = f"/v2/models/{MODEL_NAME}/generate_stream"

    def body(self, picture: bytes, prompt: str, options: dict[str, Any]) -> dict[str, Any]:
        """As ServerProtocol."""
        image = base64.b64encode(picture).decode()
        return {"image": image, "prompt": prompt, "temperature": 0, **options}

    def piece(self, event: dict[str, Any]) -> Piece:
        """As ServerProtocol; the last event carries the count."""
        return Piece(event["text"], event.get("completion_tokens"))


@dataclass(frozen=True, slots=True)
class Answer:
    """One request, in seconds since it was sent.

    pieces: for each piece of text, when it came and the text
    """

    pieces: tuple[tuple[float, str], ...]
    seconds: float
    num_tokens: int

    @property
    def text(self) -> str:
        """The whole answer."""
        return "".join(text for _, text in self.pieces)

    @property
    def ttft_seconds(self) -> float:
        """To the first text."""
        return self.pieces[0][0]

    @property
    def itl_seconds(self) -> list[float]:
        """Between tokens; a piece of k tokens that came at once counts as k equal gaps."""
        gaps: list[float] = []
        for (before, _), (after, text) in itertools.pairwise(self.pieces):
            num_tokens = num_tokens_of(text)
            gaps += [(after - before) / num_tokens] * num_tokens
        return gaps


@dataclass(frozen=True, slots=True)
class Round:
    """What one side did with one load: tokens a second in all, and medians over requests."""

    tokens_per_second: float
    ttft_seconds: float
    itl_seconds: float
    latency_seconds: float

    @classmethod
    def of(cls, answers: Seq[Answer], seconds: float) -> Round:
        """The round of answers that took `seconds` in all."""
        return cls(
            tokens_per_second=sum(answer.num_tokens for answer in answers) / seconds,
            ttft_seconds=statistics.median(answer.ttft_seconds for answer in answers),
            itl_seconds=statistics.median(gap for one in answers for gap in one.itl_seconds),
            latency_seconds=statistics.median(answer.seconds for answer in answers),
        )

    def __str__(self) -> str:
        return (
            f"{self.tokens_per_second:.1f} tok/s, TTFT {self.ttft_seconds:.2f} s, "
            f"ITL {self.itl_seconds * 1000:.1f} ms, {self.latency_seconds:.2f} s"
        )


class Client:
    """Asks one server; open it with `async with`. Bodies are made before the clock runs."""

    def __init__(self, url: str, protocol: ServerProtocol) -> None:
        self._url = url + protocol.path
        self._protocol = protocol
        self._session: aiohttp.ClientSession

    async def __aenter__(self) -> Client:
        # A kept connection may be one that the server is just closing: each request gets its own.
        connector = aiohttp.TCPConnector(limit=0, force_close=True)
        self._session = aiohttp.ClientSession(timeout=TIMEOUT, connector=connector)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._session.close()

    async def at_once(self, pictures: Seq[bytes], work: Work) -> Round:
        """All pictures at the same time. Raises WrongAnswer."""
        bodies = [self._body(picture, work) for picture in pictures]
        started = time.perf_counter()
        answers = await asyncio.gather(*map(self._ask, bodies))
        seconds = time.perf_counter() - started
        _check(answers, work)
        return Round.of(answers, seconds)

    async def one_by_one(self, pictures: Seq[bytes], work: Work) -> Round:
        """Each picture alone. Raises WrongAnswer."""
        bodies = [self._body(picture, work) for picture in pictures]
        answers = [await self._ask(body) for body in bodies]
        _check(answers, work)
        return Round.of(answers, sum(answer.seconds for answer in answers))

    async def texts(self, questions: Seq[tuple[bytes, str]], max_tokens: int) -> list[str]:
        """The answers to (picture, prompt), each alone, so that no batch rounds differently."""
        options = {"max_tokens": max_tokens}
        bodies = [
            json.dumps(self._protocol.body(picture, prompt, options)).encode()
            for picture, prompt in questions
        ]
        return [(await self._ask(body)).text for body in bodies]

    def _body(self, picture: bytes, work: Work) -> bytes:
        length = {"max_tokens": work.num_tokens, "min_tokens": work.num_tokens, "ignore_eos": True}
        return json.dumps(self._protocol.body(picture, PROMPT, length)).encode()

    async def _ask(self, body: bytes) -> Answer:
        started = time.perf_counter()
        headers = {"Content-Type": "application/json"}
        async with self._session.post(self._url, data=body, headers=headers) as response:
            if response.status != 200:
                raise WrongAnswer(f"{self._url}: {response.status} {await response.text()}")
            pieces, num_tokens = await _pieces(response.content, self._protocol.piece, started)
        return Answer(tuple(pieces), time.perf_counter() - started, num_tokens)


async def _pieces(
    lines: aiohttp.StreamReader, read: Callable[[dict[str, Any]], Piece], started: float
) -> tuple[list[tuple[float, str]], int]:
    """Every piece of text with its time, and the answer's number of tokens."""
    pieces: list[tuple[float, str]] = []
    num_tokens = 0
    async for event, came in _events(lines):
        if "error" in event:
            raise WrongAnswer(f"the stream ended with {event['error']}")
        piece = read(event)
        if piece.text:
            pieces.append((came - started, piece.text))
        num_tokens = piece.num_tokens or num_tokens
    if not pieces:
        raise WrongAnswer("the stream had no text")
    return pieces, num_tokens


async def _events(lines: aiohttp.StreamReader) -> AsyncIterator[tuple[dict[str, Any], float]]:
    """Server-sent events with the time they were read."""
    async for line in lines:
        if line.startswith(DATA) and not line.startswith(DONE, len(DATA)):
            yield json.loads(line[len(DATA) :]), time.perf_counter()


def _check(answers: Seq[Answer], work: Work) -> None:
    for answer in answers:
        seen = num_tokens_of(answer.text)
        if not answer.num_tokens == seen == work.num_tokens:
            raise WrongAnswer(
                f"an answer has {answer.num_tokens} tokens as counted by its server and {seen} by "
                f"its text; {work.num_tokens} were asked for"
            )
