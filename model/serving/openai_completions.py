"""Completions: prompts as their sender wrote them, or as tokens, in; how they go on, out.

No chat template here: a special token that a prompt spells is one. Without `max_tokens` an answer
has 16, as OpenAI's has; with 0 and `echo` it is the prompt alone, which is asked for its logprobs.
"""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import orjson

from model.errors import InvalidRequest
from model.request import FinishReason
from model.serving.generation import TextDelta
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
from model.serving.openai_prompt import echoed_logprobs, joined, listed_logprobs
from model.serving.parameters import boolean, integer
from model.serving.prompt import MAX_ANSWERS, Prompt

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator
    from collections.abc import Sequence as Seq

    from model.request import GenerateRequest, TokenLogprobs
    from model.serving.detokenizer import TokenBytes
    from model.serving.generation import Completion
    from model.serving.kserve_model import Qwen3VLModel
    from model.serving.openai_fields import CommonFields
    from model.serving.tap import Tap

KIND: Final = "text_completion"
DEFAULT_MAX_TOKENS: Final = 16

RawPrompt = str | tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Completions:
    """A request for completions, read; and its answer, written.

    fields.n: choices of each prompt that are told; best_of: choices of each that are made
    num_top: of logprobs that are told; None: none, whatever is needed to find the best
    echo: whether a choice begins with its prompt; prompt_only: whether it ends there too
    """

    head: Head
    prompts: tuple[Prompt, ...]
    fields: CommonFields
    best_of: int
    num_top: int | None
    echo: bool
    prompt_only: bool

    @classmethod
    def read(cls, document: dict[str, Any], model: Qwen3VLModel, name: str) -> Completions:
        """From a request's JSON; name: of the model, as the client has it. Raises ServingError."""
        ignored = check_fields(document, COMPLETION_FIELDS, chat=False)
        parameters = parameters_of(document)
        if parameters.get("max_tokens") is None:
            parameters["max_tokens"] = DEFAULT_MAX_TOKENS
        echo = document.get("echo") is not None and boolean("echo", document["echo"])
        most = parameters["max_tokens"]
        prompt_only = echo and type(most) is int and most == 0  # false is another fault
        if prompt_only:
            parameters["max_tokens"] = 1  # the engine always chooses one; it is not told
        sampling = with_completion_logprobs(model.sampling(parameters), document)
        fields = parse_common(document, sampling, ignored)
        best_of = _best_of(document, fields)
        sampling = fields.sampling
        if echo and sampling.logprobs is not None:
            num_told = max(sampling.logprobs, sampling.prompt_logprobs or 0)
            sampling = replace(sampling, prompt_logprobs=num_told)
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
        return cls(head, prompts, fields, best_of, fields.sampling.logprobs, echo, prompt_only)

    async def answer(self, model: Qwen3VLModel) -> dict[str, Any]:
        """The whole answer; raises ServingError."""
        pipeline = model.pipeline
        requests = await pipeline.prepare(self.prompts)
        completions = await pipeline.complete(requests)
        tally = Tally.of(completions, self.best_of)
        if not self.prompt_only:
            tally.completion_tokens = sum(one.completion_tokens for one in completions)
        make = partial(self._choices_of, requests, completions, model)
        told = any(one.prompt_logprobs for one in completions)
        # Of a prompt's tokens there may be thousands.
        choices = await asyncio.to_thread(make) if told else make()
        return {**self.head.fields(KIND), "choices": choices, "usage": tally.usage()}

    async def events(self, model: Qwen3VLModel, tap: Tap[bytes]) -> AsyncGenerator[bytes, None]:
        """The answer as chunks, those of one step together; raises ServingError."""
        options = self.fields.stream
        assert options is not None, "only a request that asks for a stream has one"
        pipeline = model.pipeline
        requests = await pipeline.prepare(self.prompts)
        choices = [_Choice(self, *one) for one in self._begun(requests, model)]
        generations = pipeline.start(requests)
        usage = StreamUsage(generations, self.best_of, options.usage, options.continuous_usage)
        frames = [ChunkFrame(self.head, KIND, index, usage) for index in range(len(generations))]

        def chunks_of(deltas: list[tuple[int, TextDelta]]) -> bytes:
            chunks = []
            for index, delta in deltas:
                said = choices[index].read(delta, generations[index].prompt_logprobs)
                usage.count(index, 0 if self.prompt_only else delta.num_completion_tokens)
                chunks.append(_chunk(frames[index], said))
            return b"".join(chunks)

        async with aclosing(interleaved(generations, tap.after(chunks_of))) as steps:
            async for deltas in steps:
                yield chunks_of(deltas)
        if options.usage:
            yield usage_chunk(self.head, KIND, usage)

    def _choices_of(
        self, requests: Seq[GenerateRequest], completions: Seq[Completion], model: Qwen3VLModel
    ) -> list[dict[str, Any]]:
        """What is told of each prompt's completions, the best of them where more were made."""
        begun = self._begun(requests, model)
        choices: list[dict[str, Any]] = []
        for start in range(0, len(completions), self.best_of):
            made = completions[start : start + self.best_of]
            for completion in made if self.best_of == self.fields.n else _best(made, self.fields.n):
                choice = _Choice(self, *begun[start])
                said = choice.read(whole_delta(completion), completion.prompt_logprobs)
                choices.append({"index": len(choices), **said})
        return choices

    def _begun(
        self, requests: Seq[GenerateRequest], model: Qwen3VLModel
    ) -> list[tuple[str, GenerateRequest, TokenBytes]]:
        """Of each request, what its choice is made from; first, what stands before its answer."""
        encoder = model.pipeline.encoder
        begun = []
        for prompt, start in zip(self.prompts, range(0, len(requests), self.best_of), strict=True):
            echo = ""
            if self.echo:
                ids = requests[start].prompt_token_ids
                # With logprobs the text is that of the tokens, whatever they were made from.
                as_sent = isinstance(prompt.raw, str) and self.num_top is None
                echo = str(prompt.raw) if as_sent else encoder.decode(ids)
            begun += [
                (echo, request, encoder.token_bytes)
                for request in requests[start : start + self.best_of]
            ]
        return begun


class _Choice:
    """One choice: the engine's deltas in; text, logprobs and the reason of its end out.

    echo: the prompt, where the text begins with it
    """

    def __init__(
        self, asked: Completions, echo: str, request: GenerateRequest, token_bytes: TokenBytes
    ) -> None:
        self._asked = asked
        self._echo = echo
        self._token_ids = request.prompt_token_ids
        self._token_bytes = token_bytes
        self._aligner: TokenAligner | None = None
        if asked.num_top is not None:
            self._aligner = TokenAligner(token_bytes, silent=asked.echo)
        self._offset = len(echo)
        self._begun = False

    def read(self, delta: TextDelta, told: Seq[TokenLogprobs]) -> dict[str, Any]:
        """What the next delta adds; raises NotReady where the server ends the answer.

        told: the prompt's logprobs, where they were asked for
        """
        if self._asked.prompt_only:
            delta = _silent(delta)
        said = {
            "text": delta.text,
            "logprobs": self._logprobs(delta),
            "finish_reason": reason_of(delta),
        }
        if not self._begun:
            self._begun = True
            said |= self._prompt(said, told)
        return said

    def _prompt(self, said: dict[str, Any], told: Seq[TokenLogprobs]) -> dict[str, Any]:
        """What the first delta says of the prompt as well."""
        more: dict[str, Any] = {"text": self._echo + said["text"]}
        asked, prompt = self._asked, (self._token_ids, told)
        if asked.echo and asked.num_top is not None:
            echoed = echoed_logprobs(*prompt, asked.num_top, self._token_bytes)
            more["logprobs"] = joined(echoed, said["logprobs"])
        num_listed = asked.fields.sampling.prompt_logprobs
        if num_listed is not None:
            more["prompt_logprobs"] = listed_logprobs(*prompt, num_listed, self._token_bytes)
        return more

    def _logprobs(self, delta: TextDelta) -> dict[str, Any] | None:
        if self._aligner is None or self._asked.num_top is None:
            return None
        told = self._aligner.push(delta)
        logprobs = completion_logprobs(told, self._asked.num_top, self._token_bytes, self._offset)
        self._offset += sum(num_characters(one.token_id, self._token_bytes) for one in told)
        return logprobs


def _chunk(frame: ChunkFrame, said: dict[str, Any]) -> bytes:
    text = b'"text":' + orjson.dumps(said["text"])
    return frame.chunk(text, orjson.dumps(said["logprobs"]), said["finish_reason"])


def _silent(delta: TextDelta) -> TextDelta:
    """The same without the one token that it is about; cut off, as an answer of 0 tokens is."""
    reason = delta.finish_reason
    cut = FinishReason.LENGTH if reason is FinishReason.STOP else reason
    return TextDelta("", 0, cut)


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
