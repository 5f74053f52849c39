"""Completions: prompts as their sender wrote them, or as tokens, in; how they go on, out.

No chat template here: a special token that a prompt spells is one. Without `max_tokens` an answer
has 16, as OpenAI's has.
"""

from __future__ import annotations

from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

import orjson

from model.errors import InvalidRequest
from model.serving.json_body import kind
from model.serving.openai_answer import (
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
    COMPLETION_FIELDS,
    check_fields,
    parameters_of,
    parse_common,
    with_completion_logprobs,
)
from model.serving.openai_logprobs import TokenAligner, completion_logprobs, num_characters
from model.serving.parameters import boolean, integer
from model.serving.prompt import MAX_ANSWERS, Prompt

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator
    from collections.abc import Sequence as Seq

    from model.request import GenerateRequest
    from model.serving.detokenizer import TokenBytes
    from model.serving.generation import Completion, TextDelta
    from model.serving.kserve_model import Qwen3VLModel
    from model.serving.openai_fields import CommonFields
    from model.serving.openai_logprobs import Told

KIND: Final = "text_completion"
DEFAULT_MAX_TOKENS: Final = 16

RawPrompt = str | tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Completions:
    """A request for completions, read; and its answer, written.

    fields.n: choices of each prompt that are told; best_of: choices of each that are made
    num_top: of logprobs that are told; None: none, whatever is needed to find the best
    """

    head: Head
    prompts: tuple[Prompt, ...]
    fields: CommonFields
    best_of: int
    num_top: int | None
    echo: bool

    @classmethod
    def read(cls, document: dict[str, Any], model: Qwen3VLModel, name: str) -> Completions:
        """From a request's JSON; name: of the model, as the client has it. Raises ServingError."""
        ignored = check_fields(document, COMPLETION_FIELDS, chat=False)
        parameters = parameters_of(document)
        if parameters.get("max_tokens") is None:
            parameters["max_tokens"] = DEFAULT_MAX_TOKENS
        sampling = with_completion_logprobs(model.sampling(parameters), document)
        fields = parse_common(document, sampling, ignored)
        best_of = _best_of(document, fields)
        echo = document.get("echo") is not None and boolean("echo", document["echo"])
        if echo and sampling.logprobs is not None:
            raise InvalidRequest("echo is given with logprobs, which are of the answer alone")
        if best_of > fields.n and sampling.logprobs is None:
            sampling = replace(sampling, logprobs=0)
        raw = parse_prompts(document.get("prompt"), model.settings.request.max_batch)
        prompts = tuple(
            Prompt(
                turns=(),
                sampling=sampling,
                bounds=fields.bounds,
                structure=fields.structure,
                n=best_of,
                raw=prompt,
                priority=fields.priority,
                cache_salt=fields.cache_salt,
            )
            for prompt in raw
        )
        head = Head.new("cmpl", name)
        return cls(head, prompts, fields, best_of, fields.sampling.logprobs, echo)

    async def answer(self, model: Qwen3VLModel) -> dict[str, Any]:
        """The whole answer; raises ServingError."""
        pipeline = model.pipeline
        token_bytes = pipeline.encoder.token_bytes
        requests = await pipeline.prepare(self.prompts)
        echoes = self._echoes(requests, model)
        completions = await pipeline.complete(requests)
        tally = Tally.of(completions, self.best_of)
        tally.completion_tokens = sum(completion.completion_tokens for completion in completions)
        choices: list[dict[str, Any]] = []
        for start in range(0, len(completions), self.best_of):
            made = completions[start : start + self.best_of]
            for completion in made if self.best_of == self.fields.n else _best(made, self.fields.n):
                choice = _Choice(self.num_top, token_bytes)
                said = choice.read(whole_delta(completion))
                text = echoes[start // self.best_of] + completion.text
                choices.append({"index": len(choices), "text": text, **said})
        return {**self.head.fields(KIND), "choices": choices, "usage": tally.usage()}

    async def events(self, model: Qwen3VLModel) -> AsyncGenerator[bytes, None]:
        """The answer as chunks, those of one step together; raises ServingError."""
        options = self.fields.stream
        assert options is not None, "only a request that asks for a stream has one"
        pipeline = model.pipeline
        requests = await pipeline.prepare(self.prompts)
        echoes = self._echoes(requests, model)
        generations = pipeline.start(requests)
        usage = StreamUsage(generations, self.best_of, options.usage, options.continuous_usage)
        writers = [
            _Writer(
                ChunkFrame(self.head, KIND, index, usage),
                _Choice(self.num_top, pipeline.encoder.token_bytes),
                echoes[index // self.best_of],
            )
            for index in range(len(generations))
        ]
        async with aclosing(interleaved(generations)) as steps:
            async for deltas in steps:
                chunks = []
                for index, delta in deltas:
                    usage.count(index, delta.num_completion_tokens)
                    chunks.append(writers[index].write(delta))
                yield b"".join(chunks)
        if options.usage:
            yield usage_chunk(self.head, KIND, usage)

    def _echoes(self, requests: Seq[GenerateRequest], model: Qwen3VLModel) -> list[str]:
        """What stands before each prompt's answers: the prompt, or nothing."""
        decode = model.pipeline.encoder.decode
        return [
            (prompt.raw if isinstance(prompt.raw, str) else decode(request.prompt_token_ids))
            if self.echo
            else ""
            for prompt, request in zip(self.prompts, requests[:: self.best_of], strict=True)
        ]


class _Choice:
    """One choice: the engine's deltas in, reasons and logprobs out."""

    def __init__(self, num_top: int | None, token_bytes: TokenBytes) -> None:
        self._num_top = num_top
        self._token_bytes = token_bytes
        self._aligner = None if num_top is None else TokenAligner(token_bytes)
        self._offset = 0

    def read(self, delta: TextDelta) -> dict[str, Any]:
        """finish_reason and logprobs; raises NotReady where the server ends the answer."""
        reason = reason_of(delta)
        told = self._aligner.push(delta) if self._aligner else []
        return {"logprobs": self._logprobs(told), "finish_reason": reason}

    def _logprobs(self, told: list[Told]) -> dict[str, Any] | None:
        if self._num_top is None:
            return None
        logprobs = completion_logprobs(told, self._num_top, self._token_bytes, self._offset)
        self._offset += sum(num_characters(one.token_id, self._token_bytes) for one in told)
        return logprobs


class _Writer:
    """One choice's chunks."""

    def __init__(self, frame: ChunkFrame, choice: _Choice, echo: str) -> None:
        self._frame = frame
        self._choice = choice
        self._echo = echo

    def write(self, delta: TextDelta) -> bytes:
        """The chunk of one delta; the first begins with the prompt, where that is echoed."""
        said = self._choice.read(delta)
        text, self._echo = self._echo + delta.text, ""
        return self._frame.chunk(
            b'"text":' + orjson.dumps(text), orjson.dumps(said["logprobs"]), said["finish_reason"]
        )


def parse_prompts(value: object, max_prompts: int) -> tuple[RawPrompt, ...]:
    """One prompt or several, each a text or its tokens; raises InvalidRequest."""
    match value:
        case str():
            return (value,)
        case None:
            raise InvalidRequest("prompt is missing; it must be a string, or a list")
        case []:
            raise InvalidRequest("prompt is an empty list; it must hold at least one prompt")
        case [int(), *_]:
            return (_tokens(value, "prompt"),)
        case list():
            if len(value) > max_prompts:
                raise InvalidRequest(
                    f"prompt holds {len(value)} prompts; the limit is {max_prompts}"
                )
            return tuple(
                one if isinstance(one, str) else _tokens(one, f"prompt[{i}]")
                for i, one in enumerate(value)
            )
        case _:
            raise InvalidRequest(f"prompt is {kind(value)}; it must be a string or a list")


def _tokens(value: object, where: str) -> tuple[int, ...]:
    if not isinstance(value, list):
        raise InvalidRequest(f"{where} is {kind(value)}; it must be a string or a list of tokens")
    return tuple(integer(f"{where}[{i}]", token_id) for i, token_id in enumerate(value))


def _best_of(document: dict[str, Any], fields: CommonFields) -> int:
    value = document.get("best_of")
    if value is None:
        return fields.n
    best_of = integer("best_of", value)
    if not fields.n <= best_of <= MAX_ANSWERS:
        raise InvalidRequest(
            f"best_of is {best_of}; it must be from n, which is {fields.n}, to {MAX_ANSWERS}"
        )
    if fields.stream is not None and best_of > fields.n:
        raise InvalidRequest(
            f"best_of is {best_of} with n of {fields.n}; a stream cannot tell the best ones, "
            "which are known at the end"
        )
    return best_of


def _best(completions: Seq[Completion], num: int) -> list[Completion]:
    """Those that are the most probable a token, the best first."""

    def mean(completion: Completion) -> float:
        logprobs = [one.logprob for _, one in completion.logprobs]
        return sum(logprobs) / max(1, len(logprobs))

    return sorted(completions, key=mean, reverse=True)[:num]
