"""From what a protocol read to a stream of text: the one way of every request.

A `Prompt` is what every protocol makes; a `Generation` is what every protocol reads. In between:
decode, resize and tokenise on worker threads, one sequence in the engine for each prompt, text back
on the event loop.
"""

from __future__ import annotations

import asyncio
import hashlib
import secrets
import sys
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import TYPE_CHECKING, NamedTuple

from model.errors import InvalidRequest
from model.request import MAX_SEED, FinishReason, GenerateRequest, check_prompt_logprobs
from model.serving.chat import ImagePart, Message, TextPart
from model.serving.fetch import Fetcher
from model.serving.images import decode_image, is_url
from model.serving.structure import compile_structure

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from collections.abc import Sequence as Seq
    from pathlib import Path

    from model.checkpoint import Checkpoint
    from model.engine.loop import Engine, TokenStream
    from model.request import TokenEvent, TokenLogprobs
    from model.serving.chat import EncodedPrompt, PromptEncoder
    from model.serving.detokenizer import IncrementalDetokenizer
    from model.serving.prompt import EncodedImage, Prompt
    from model.serving.tap import Tap
    from model.settings import Settings

MAX_GRAMMARS = 32


class TextDelta(NamedTuple):
    """Text that one or more tokens added; finish_reason is set on the last delta. A named tuple:
    one is made for nearly every token.

    logprobs: (token id, its logprobs) of each token since the delta before, where they were asked
    for; the token that ends the text, or completes a stop string, is one of them
    """

    text: str
    num_completion_tokens: int
    finish_reason: FinishReason | None = None
    logprobs: tuple[tuple[int, TokenLogprobs], ...] = ()


@dataclass(frozen=True, slots=True)
class Timings:
    """Seconds: waiting for the first step; from submission to the first text and to the end."""

    queue_seconds: float
    first_text_seconds: float
    total_seconds: float


@dataclass(frozen=True, slots=True)
class Completion:
    """A whole answer; logprobs: as in TextDelta, of all its tokens.

    image_tokens, cached_tokens: of the prompt's, those that stand for pictures, and those whose
    work was found done
    prompt_logprobs: of the prompt's tokens but the first, where they were asked for
    """

    text: str
    finish_reason: FinishReason
    prompt_tokens: int
    image_tokens: int
    cached_tokens: int
    completion_tokens: int
    timings: Timings
    logprobs: tuple[tuple[int, TokenLogprobs], ...] = ()
    prompt_logprobs: tuple[TokenLogprobs, ...] = ()


class Generation:
    """One sequence's answer as it comes. Iterate it to its end, or close it to cancel."""

    def __init__(
        self, request: GenerateRequest, stream: TokenStream, detokenizer: IncrementalDetokenizer
    ) -> None:
        self.request = request
        self.queue_seconds = 0.0
        self.cached_tokens = 0
        self.prompt_logprobs: tuple[TokenLogprobs, ...] = ()
        self._stream = stream
        self._detokenizer = detokenizer
        self._told: list[tuple[int, TokenLogprobs]] = []
        # Read already, and left for the iterator.
        self._last: TextDelta | None = None

    @property
    def prompt_tokens(self) -> int:
        """Tokens of the prompt, image tokens included."""
        return len(self.request.prompt_token_ids)

    @property
    def image_tokens(self) -> int:
        """Tokens that stand for pictures."""
        return sum(image.num_tokens for image in self.request.images)

    async def __aiter__(self) -> AsyncIterator[TextDelta]:
        """Yield text as it becomes certain; leaving early cancels. Raises ServingError."""
        try:
            async for event in self._stream:
                delta = self._last or self._read(event)
                if delta is not None:
                    yield delta
                    if delta.finish_reason is not None:
                        return
        finally:
            stopped = self._detokenizer.stopped
            self._stream.close(FinishReason.STOP if stopped else FinishReason.CANCELLED)

    def tap(self, tap: Tap[TextDelta]) -> None:
        """Give deltas to a tap where it is ready, the last one never."""

        def take(event: TokenEvent) -> bool:
            if not tap.ready():
                return False
            delta = self._read(event)
            if delta is None:
                return True
            if delta.finish_reason is not None:
                self._last = delta
                return False
            tap.put(delta)
            return True

        self._stream.tap(take)

    def _read(self, event: TokenEvent) -> TextDelta | None:
        """What an event adds, if it does; raises the error that it carries."""
        # An event that only says how it ended does not know them.
        self.queue_seconds = event.queue_seconds or self.queue_seconds
        self.cached_tokens = event.num_cached_tokens or self.cached_tokens
        if event.prompt_logprobs is not None:
            self.prompt_logprobs = event.prompt_logprobs
        if event.error is not None:
            raise event.error
        detokenizer = self._detokenizer
        text = "" if event.token_id is None else detokenizer.push(event.token_id)
        if event.token_id is not None and event.logprobs is not None:
            self._told.append((event.token_id, event.logprobs))
        reason = event.finish_reason
        if detokenizer.stopped:
            reason = FinishReason.STOP
        elif reason is not None:
            text += detokenizer.flush()
        if not text and reason is None:
            return None
        told = tuple(self._told)
        self._told.clear()
        return TextDelta(text, event.num_completion_tokens, reason, told)

    def close(self) -> None:
        """Cancel what has not finished."""
        self._stream.close()


class Pipeline:
    """A loaded model with everything around it that turns prompts into generations."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        encoder: PromptEncoder,
        engine: Engine,
        settings: Settings,
    ) -> None:
        self.checkpoint = checkpoint
        self.engine = engine
        self.encoder = encoder
        self._limits = settings.image
        self._fetcher = Fetcher(settings.image)
        # The rows of a batch share one structure, and clients repeat theirs.
        self._compile = lru_cache(MAX_GRAMMARS)(compile_structure)
        self._threads = ThreadPoolExecutor(
            settings.server.preprocess_threads, thread_name_prefix="preprocess"
        )

    @property
    def path(self) -> Path:
        """The checkpoint's folder."""
        return self.checkpoint.path

    def check(self, prompt: Prompt) -> None:
        """What can be said of a prompt before its pictures are read; raises InvalidRequest."""
        limit = self.engine.max_sequence_tokens
        if prompt.sampling.max_tokens > limit:
            raise InvalidRequest(
                f"max_tokens is {prompt.sampling.max_tokens}; this model's context has {limit} "
                "tokens"
            )
        prompt.sampling.check_vocabulary(self.checkpoint.vocab_size)
        self.encoder.check_num_images(len(prompt.images))

    async def prepare(self, prompts: Seq[Prompt]) -> list[GenerateRequest]:
        """Decode, resize and tokenise on the worker threads; raises ServingError of the first
        fault.

        Returns n requests for each prompt, one prompt's side by side.
        """
        # A full queue is told before any picture is decoded for nothing.
        self.engine.check_capacity(sum(prompt.n for prompt in prompts))
        for prompt in prompts:
            self.check(prompt)
        prompts = await self._fetched(prompts)
        loop = asyncio.get_running_loop()
        prepared = await asyncio.gather(
            *(loop.run_in_executor(self._threads, self._prepare, prompt) for prompt in prompts)
        )
        requests = [request for requests in prepared for request in requests]
        check_prompt_logprobs(requests)
        return requests

    async def tokenise(self, prompt: Prompt, **options: bool) -> EncodedPrompt:
        """A prompt's tokens, however many; on the worker threads.

        options: those of PromptEncoder.encode, or of encode_raw for a raw prompt
        """
        self.check(prompt)
        [prompt] = await self._fetched([prompt])
        encode = partial(self._encode, prompt, sys.maxsize, **options)
        return await asyncio.get_running_loop().run_in_executor(self._threads, encode)

    def start(self, requests: Seq[GenerateRequest]) -> list[Generation]:
        """Hand requests to the engine, all or none."""
        return [
            Generation(request, stream, self.encoder.detokenizer(request.sampling.stop))
            for request, stream in zip(requests, self.engine.submit(requests), strict=True)
        ]

    async def complete(self, requests: Seq[GenerateRequest]) -> list[Completion]:
        """Every whole answer, in order. One failure or a cancelled caller cancels all."""
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(_collect(one)) for one in self.start(requests)]
        except BaseExceptionGroup as failures:
            raise failures.exceptions[0] from None
        return [task.result() for task in tasks]

    def close(self) -> None:
        """End the worker threads."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def _fetched(self, prompts: Seq[Prompt]) -> Seq[Prompt]:
        """The prompts, with files for URLs; each URL is fetched once."""
        contents = (image.content for prompt in prompts for image in prompt.images)
        # Only URLs become keys: hashing a file takes milliseconds of the event loop.
        urls = {content for content in contents if is_url(content)}
        if not urls:
            return prompts
        files = await self._fetcher.fetch_all(list(urls))
        return [prompt.with_files(files) for prompt in prompts]

    def _prepare(self, prompt: Prompt) -> list[GenerateRequest]:
        """One request for each answer; pictures are decoded once and shared."""
        first = self._request(prompt)
        others = (
            replace(first, request_id=uuid.uuid4().hex, seed=derived_seed(first.seed, number))
            for number in range(1, prompt.n)
        )
        return [first, *others]

    def _request(self, prompt: Prompt) -> GenerateRequest:
        sampling = prompt.sampling
        # Before the pictures, which take longer to read than a fault here.
        grammar = self._compile(prompt.structure) if prompt.structure else None
        encoded = self._encode(prompt, self.engine.max_sequence_tokens - 1)
        return GenerateRequest(
            request_id=uuid.uuid4().hex,
            prompt_token_ids=encoded.token_ids,
            sampling=sampling,
            seed=secrets.randbelow(MAX_SEED) if sampling.seed is None else sampling.seed,
            images=encoded.images,
            eos_token_ids=self.checkpoint.eos_token_ids,
            priority=prompt.priority,
            max_queue_seconds=prompt.max_queue_seconds,
            cache_salt=prompt.cache_salt,
            grammar=grammar,
        )

    def _encode(self, prompt: Prompt, limit: int, **options: bool) -> EncodedPrompt:
        if prompt.raw is not None:
            return self._encode_raw(prompt.raw, limit, **options)
        messages = [
            Message(
                turn.role, tuple(self._part(part, prompt) for part in turn.parts), turn.tool_calls
            )
            for turn in prompt.turns
        ]
        return self.encoder.encode(messages, limit=limit, tools=prompt.tools or None, **options)

    def _encode_raw(self, raw: str | tuple[int, ...], limit: int, **options: bool) -> EncodedPrompt:
        vocab_size = self.checkpoint.vocab_size
        if not isinstance(raw, str) and raw and not 0 <= min(raw) <= max(raw) < vocab_size:
            raise InvalidRequest(
                f"prompt has token ids from {min(raw)} to {max(raw)}; this model's are from 0 to "
                f"{vocab_size - 1}"
            )
        return self.encoder.encode_raw(raw, limit=limit, **options)

    def _part(self, part: str | EncodedImage, prompt: Prompt) -> TextPart | ImagePart:
        if isinstance(part, str):
            return TextPart(part)
        bounds = part.bounds or prompt.bounds
        return ImagePart(decode_image(part.content, self.checkpoint, self._limits, bounds))


def derived_seed(seed: int, number: int) -> int:
    """The seed of a prompt's answer `number`; the first has the prompt's own."""
    if number == 0:
        return seed
    # Hashed: seeds that clients count up must not share answers.
    digest = hashlib.blake2b(b"%d %d" % (seed, number), digest_size=8).digest()
    return int.from_bytes(digest, "little") & MAX_SEED


class Transcript:
    """Adds up a generation's deltas to the whole answer; made when the generation starts."""

    def __init__(self, generation: Generation) -> None:
        self._generation = generation
        self._started = time.monotonic()
        self._first_text: float | None = None
        self._parts: list[str] = []
        self._logprobs: list[tuple[int, TokenLogprobs]] = []
        self._last: TextDelta | None = None

    def add(self, delta: TextDelta) -> None:
        """Take the next delta."""
        self._first_text = self._first_text or time.monotonic()
        self._parts.append(delta.text)
        self._logprobs += delta.logprobs
        self._last = delta

    def completion(self) -> Completion:
        """The whole answer, once the last delta was added."""
        assert self._last is not None
        assert self._last.finish_reason is not None, "a stream ends with a reason"
        ended = time.monotonic()
        return Completion(
            text="".join(self._parts),
            finish_reason=self._last.finish_reason,
            prompt_tokens=self._generation.prompt_tokens,
            image_tokens=self._generation.image_tokens,
            cached_tokens=self._generation.cached_tokens,
            completion_tokens=self._last.num_completion_tokens,
            timings=Timings(
                self._generation.queue_seconds,
                (self._first_text or ended) - self._started,
                ended - self._started,
            ),
            logprobs=tuple(self._logprobs),
            prompt_logprobs=self._generation.prompt_logprobs,
        )


async def _collect(generation: Generation) -> Completion:
    transcript = Transcript(generation)
    async for delta in generation:
        transcript.add(delta)
    return transcript.completion()
