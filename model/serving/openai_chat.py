"""Chat completions: messages in; a message, text or calls, out, whole or as it comes."""

from __future__ import annotations

import asyncio
import uuid
from contextlib import aclosing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import orjson

from model.request import FinishReason
from model.serving.images import most_pixels
from model.serving.openai_answer import (
    NULL,
    ChunkFrame,
    Head,
    StreamUsage,
    Tally,
    interleaved,
    reason_of,
    usage_chunk,
    whole_delta,
)
from model.serving.openai_fields import (
    CHAT_FIELDS,
    CommonFields,
    check_fields,
    parameters_of,
    parse_common,
    with_chat_logprobs,
)
from model.serving.openai_logprobs import TokenAligner, Told, chat_logprobs
from model.serving.openai_messages import parse_messages
from model.serving.openai_prompt import listed_logprobs
from model.serving.openai_tools import ToolUse, parse_tools
from model.serving.prompt import Prompt
from model.serving.tool_calls import CallArguments, CallStart, Content, ToolCallParser

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from model.request import GenerateRequest
    from model.serving.detokenizer import TokenBytes
    from model.serving.generation import Pipeline, TextDelta
    from model.serving.kserve_model import Qwen3VLModel
    from model.serving.tap import Tap
    from model.serving.tool_calls import Piece

KIND: Final = "chat.completion"
CHUNK_KIND: Final = "chat.completion.chunk"
BEGINNING: Final = b'"delta":{"role":"assistant","content":"","refusal":null}'


class Said(NamedTuple):
    """What a delta adds to a choice; reason: why it ends, if it does."""

    pieces: list[Piece]
    told: list[Told]
    reason: str | None


class ChatChoice:
    """One choice: the engine's deltas in, text and calls and the tokens that go with them out."""

    def __init__(self, parser: ToolCallParser | None, aligner: TokenAligner | None) -> None:
        self._parser = parser
        self._aligner = aligner

    def read(self, delta: TextDelta) -> Said:
        """What the next delta adds; raises NotReady where the server ends the answer."""
        reason = reason_of(delta)
        told = self._aligner.push(delta) if self._aligner else []
        if self._parser is None:
            return Said([Content(delta.text)] if delta.text else [], told, reason)
        pieces = self._parser.push(delta.text)
        if reason is not None:
            pieces += self._parser.flush()
            if self._parser.num_calls and delta.finish_reason is FinishReason.STOP:
                reason = "tool_calls"
        return Said(pieces, told, reason)


@dataclass(frozen=True, slots=True)
class Chat:
    """A chat request, read; and its answer, written.

    prompts: the one prompt, until it is prepared: pictures as they came are not kept any longer
    """

    head: Head
    prompts: list[Prompt]
    fields: CommonFields
    use: ToolUse

    @classmethod
    def read(cls, document: dict[str, Any], model: Qwen3VLModel, name: str) -> Chat:
        """From a request's JSON; name: of the model, as the client has it. Raises ServingError."""
        ignored = check_fields(document, CHAT_FIELDS, chat=True)
        sampling = with_chat_logprobs(model.sampling(parameters_of(document)), document)
        fields = parse_common(document, sampling, ignored)
        pipeline = model.pipeline
        use = parse_tools(document, fields.structure, pipeline.encoder.tool_call_marks)
        most = most_pixels(pipeline.checkpoint, model.settings.image)
        prompt = Prompt(
            turns=parse_messages(document.get("messages"), fields.bounds, most),
            sampling=fields.sampling,
            bounds=fields.bounds,
            structure=use.structure,
            n=fields.n,
            tools=use.tools,
            priority=fields.priority,
            cache_salt=fields.cache_salt,
        )
        return cls(Head.new("chatcmpl", name), [prompt], fields, use)

    async def answer(self, model: Qwen3VLModel) -> dict[str, Any]:
        """The whole answer; raises ServingError."""
        pipeline = model.pipeline
        requests = await self._prepared(pipeline)
        completions = await pipeline.complete(requests)
        tally = Tally.of(completions, self.fields.n)
        choices = []
        for index, completion in enumerate(completions):
            tally.completion_tokens += completion.completion_tokens
            choice = self._choice(pipeline.encoder.token_bytes)
            said = choice.read(whole_delta(completion))
            choices.append(
                {
                    "index": index,
                    "message": _message(said.pieces),
                    "logprobs": self._logprobs(said.told, pipeline.encoder.token_bytes),
                    "finish_reason": said.reason,
                }
            )
        answer = {**self.head.fields(KIND), "choices": choices, "usage": tally.usage()}
        if self.fields.sampling.prompt_logprobs is not None:
            answer["prompt_logprobs"] = await asyncio.to_thread(
                listed_logprobs,
                requests[0].prompt_token_ids,
                completions[0].prompt_logprobs,
                self.fields.sampling.prompt_logprobs,
                pipeline.encoder.token_bytes,
            )
        return answer

    async def events(self, model: Qwen3VLModel, tap: Tap[bytes]) -> AsyncGenerator[bytes, None]:
        """The answer as chunks, those of one step together; raises ServingError."""
        options = self.fields.stream
        assert options is not None, "only a request that asks for a stream has one"
        pipeline = model.pipeline
        token_bytes = pipeline.encoder.token_bytes
        generations = pipeline.start(await self._prepared(pipeline))
        usage = StreamUsage(generations, self.fields.n, options.usage, options.continuous_usage)
        writers = [
            _Writer(self, ChunkFrame(self.head, CHUNK_KIND, index, usage), token_bytes)
            for index in range(self.fields.n)
        ]

        def chunks_of(deltas: list[tuple[int, TextDelta]]) -> bytes:
            chunks = []
            for index, delta in deltas:
                usage.count(index, delta.num_completion_tokens)
                chunks += writers[index].write(delta)
            return b"".join(chunks)

        async with aclosing(interleaved(generations, tap.after(chunks_of))) as steps:
            async for deltas in steps:
                if chunks := chunks_of(deltas):
                    yield chunks
        if options.usage:
            yield usage_chunk(self.head, CHUNK_KIND, usage)

    async def _prepared(self, pipeline: Pipeline) -> list[GenerateRequest]:
        requests = await pipeline.prepare(self.prompts)
        self.prompts.clear()
        return requests

    def _choice(self, token_bytes: TokenBytes) -> ChatChoice:
        parser = ToolCallParser(several=self.use.several) if self.use.tools else None
        told = self.fields.sampling.logprobs is not None
        return ChatChoice(parser, TokenAligner(token_bytes) if told else None)

    def _logprobs(self, told: list[Told], token_bytes: TokenBytes) -> dict[str, Any] | None:
        num_top = self.fields.sampling.logprobs
        return None if num_top is None else chat_logprobs(told, num_top, token_bytes)


class _Writer:
    """One choice's chunks."""

    def __init__(self, chat: Chat, frame: ChunkFrame, token_bytes: TokenBytes) -> None:
        self._chat = chat
        self._choice = chat._choice(token_bytes)
        self._frame = frame
        self._token_bytes = token_bytes
        self._begun = False
        self._told: list[Told] = []

    def write(self, delta: TextDelta) -> list[bytes]:
        """The chunks of one delta."""
        said = self._choice.read(delta)
        self._told += said.told
        chunks = [] if self._begun else [self._frame.chunk(BEGINNING)]
        self._begun = True
        chunks += [
            self._frame.chunk(b'"delta":' + _delta(piece), self._logprobs())
            for piece in said.pieces
        ]
        if said.reason is not None:
            chunks.append(self._frame.chunk(b'"delta":{}', self._logprobs(), said.reason))
        return chunks

    def _logprobs(self) -> bytes:
        """Of the tokens that no chunk told yet."""
        if not self._told:
            return NULL
        told, self._told = self._told, []
        return orjson.dumps(self._chat._logprobs(told, self._token_bytes))


def _message(pieces: list[Piece]) -> dict[str, Any]:
    """A whole message from its pieces."""
    content = "".join(piece.text for piece in pieces if isinstance(piece, Content))
    calls: list[dict[str, Any]] = []
    for piece in pieces:
        match piece:
            case CallStart(_, name):
                calls.append(_call(name))
            case CallArguments(call, text):
                calls[call]["function"]["arguments"] += text
            case Content():
                pass
    message: dict[str, Any] = {"role": "assistant", "content": content, "refusal": None}
    if calls:
        message |= {"content": content or None, "tool_calls": calls}
    return message


def _delta(piece: Piece) -> bytes:
    match piece:
        case Content(text):
            return b'{"content":%b}' % orjson.dumps(text)
        case CallStart(call, name):
            return orjson.dumps({"tool_calls": [{"index": call, **_call(name)}]})
        case CallArguments(call, text):
            function = {"arguments": text}
            return orjson.dumps({"tool_calls": [{"index": call, "function": function}]})


def _call(name: str) -> dict[str, Any]:
    return {
        "id": f"call_{uuid.uuid4().hex[:24]}",
        "type": "function",
        "function": {"name": name, "arguments": ""},
    }
