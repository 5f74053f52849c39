"""The openai package (written with 2.54): chat, completions, streams, tools, errors, cancelling."""

from __future__ import annotations

import asyncio
import base64
import json
import math
from typing import TYPE_CHECKING, Any, Literal

import httpx
import openai
import pytest
from pydantic import BaseModel, ConfigDict

from model.demo import SAMPLES_DIR

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from openai.types.chat import ChatCompletion

    from tests.serving import RunningServer

MODEL = "qwen3-vl"
CAPTIONS = [json.loads(line) for line in (SAMPLES_DIR / "captions.jsonl").read_text().splitlines()]
PAINT = {
    "type": "function",
    "function": {
        "name": "paint",
        "description": "Paint a wall",
        "parameters": {
            "type": "object",
            "properties": {
                "color": {"type": "string", "enum": ["red", "blue"]},
                "layers": {"type": "integer", "minimum": 1, "maximum": 3},
            },
            "required": ["color", "layers"],
            "additionalProperties": False,
        },
    },
}


class Shape(BaseModel):
    model_config = ConfigDict(extra="forbid")

    color: Literal["red", "green", "blue"]
    sides: Literal[3, 4]


class Scene(BaseModel):
    shapes: list[Shape]
    certain: bool


@pytest.fixture
def client(server: RunningServer) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.http_url}/v1", api_key="none", max_retries=0) as one:
        yield one


@pytest.fixture
async def async_client(server: RunningServer) -> AsyncIterator[openai.AsyncOpenAI]:
    url = f"{server.http_url}/openai/v1"
    async with openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0) as one:
        yield one


def data_url(picture: bytes) -> str:
    return f"data:image/jpeg;base64,{base64.b64encode(picture).decode()}"


def about(picture: bytes, prompt: str = "Describe this image.") -> list[Any]:
    content = [
        {"type": "image_url", "image_url": {"url": data_url(picture)}},
        {"type": "text", "text": prompt},
    ]
    return [{"role": "user", "content": content}]


def text_of(answer: ChatCompletion) -> str:
    text = answer.choices[0].message.content
    assert text is not None
    return text


# Chat


@pytest.mark.parametrize("caption", CAPTIONS, ids=lambda one: f"{one['image']}: {one['prompt']}")
def test_samples_are_described_as_they_are(client: openai.OpenAI, caption: dict[str, str]) -> None:
    picture = (SAMPLES_DIR / caption["image"]).read_bytes()
    answer = client.chat.completions.create(model=MODEL, messages=about(picture, caption["prompt"]))
    assert text_of(answer) == caption["answer"]
    assert answer.choices[0].finish_reason == "stop"
    assert answer.model == MODEL


def test_usage_counts_text_pictures_and_what_was_cached(
    client: openai.OpenAI, sample_image: bytes
) -> None:
    ask = {"model": MODEL, "messages": about(sample_image, "What is at the bottom?")}
    first, again = (client.chat.completions.create(**ask).usage for _ in range(2))
    assert first is not None
    assert again is not None
    assert first.total_tokens == first.prompt_tokens + first.completion_tokens
    details, known = first.prompt_tokens_details, again.prompt_tokens_details
    assert details.image_tokens == 36
    assert details.cached_tokens < first.prompt_tokens
    assert known.cached_tokens == (again.prompt_tokens - 1) // 16 * 16


def test_a_stream_is_the_whole_answer_in_pieces(client: openai.OpenAI, sample_image: bytes) -> None:
    ask: dict[str, Any] = {"model": MODEL, "messages": about(sample_image)}
    whole = client.chat.completions.create(**ask)
    chunks = list(
        client.chat.completions.create(**ask, stream=True, stream_options={"include_usage": True})
    )
    *with_choices, last = chunks
    deltas = [chunk.choices[0].delta for chunk in with_choices]
    assert deltas[0].role == "assistant"
    assert "".join(delta.content or "" for delta in deltas) == text_of(whole)
    assert len(deltas) > 10
    reasons = [chunk.choices[0].finish_reason for chunk in with_choices]
    assert reasons == [None] * (len(reasons) - 1) + ["stop"]
    assert last.choices == []
    assert last.usage is not None
    assert whole.usage is not None
    assert last.usage.completion_tokens == whole.usage.completion_tokens
    assert {chunk.usage for chunk in with_choices} == {None}
    assert len({chunk.id for chunk in chunks}) == 1


def test_usage_may_come_with_every_chunk(client: openai.OpenAI, sample_image: bytes) -> None:
    options: Any = {"include_usage": True, "continuous_usage_stats": True}
    stream = client.chat.completions.create(
        model=MODEL, messages=about(sample_image), stream=True, stream_options=options, n=2
    )
    counts = [chunk.usage.completion_tokens for chunk in stream if chunk.usage is not None]
    assert counts == sorted(counts)
    assert counts[0] < counts[-1]


def test_several_pictures_and_turns(client: openai.OpenAI, sample_image: bytes) -> None:
    url = {"url": data_url(sample_image), "detail": "low"}
    messages: Any = [
        {"role": "developer", "content": "Be brief."},
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "One: "},
                {"type": "image_url", "image_url": url},
                {"type": "text", "text": " two: "},
                {"type": "image_url", "image_url": url["url"]},
            ],
        },
        {"role": "assistant", "content": [{"type": "text", "text": "Two pictures."}]},
        {"role": "user", "name": "ann", "content": "Describe this image."},
    ]
    answer = client.chat.completions.create(model=MODEL, messages=messages)
    assert answer.usage is not None
    assert answer.usage.prompt_tokens_details.image_tokens == 72
    assert text_of(answer)


def test_pixel_bounds_change_what_the_model_sees(
    client: openai.OpenAI, sample_image: bytes
) -> None:
    def image_tokens(**extra: object) -> int:
        answer = client.chat.completions.create(
            model=MODEL, messages=about(sample_image), max_tokens=1, extra_body=extra
        )
        assert answer.usage is not None
        return int(answer.usage.prompt_tokens_details.image_tokens)

    assert image_tokens() == 36
    assert image_tokens(max_pixels=20_000) == 16
    assert image_tokens(mm_processor_kwargs={"max_pixels": 20_000}) == 16
    assert image_tokens(mm_processor_kwargs={"size": {"longest_edge": 20_000}}) == 16


def test_n_answers_are_choices(client: openai.OpenAI, sample_image: bytes) -> None:
    ask: dict[str, Any] = {
        "model": MODEL,
        "messages": about(sample_image),
        "n": 3,
        "seed": 5,
        "temperature": 2.0,
        "max_tokens": 12,
        "extra_body": {"ignore_eos": True},
    }
    whole = client.chat.completions.create(**ask)
    texts = [choice.message.content for choice in whole.choices]
    assert [choice.index for choice in whole.choices] == [0, 1, 2]
    assert len(set(texts)) == 3
    assert whole.usage is not None
    assert whole.usage.completion_tokens == 36
    streamed = ["", "", ""]
    for chunk in client.chat.completions.create(**ask, stream=True):
        for choice in chunk.choices:
            streamed[choice.index] += choice.delta.content or ""
    assert streamed == texts


def test_a_seed_repeats_itself(client: openai.OpenAI, sample_image: bytes) -> None:
    first, again, other = (
        text_of(
            client.chat.completions.create(
                model=MODEL,
                messages=about(sample_image),
                seed=seed,
                temperature=2.0,
                max_completion_tokens=20,
                extra_body={"ignore_eos": True},
            )
        )
        for seed in (1, 1, 2)
    )
    assert first == again != other


def test_stop_and_length_end_an_answer(client: openai.OpenAI, sample_image: bytes) -> None:
    messages = about(sample_image)
    whole = text_of(client.chat.completions.create(model=MODEL, messages=messages))
    stop = whole.split()[3]
    stopped = client.chat.completions.create(model=MODEL, messages=messages, stop=[stop, "@@"])
    assert text_of(stopped) == whole[: whole.index(stop)]
    assert stopped.choices[0].finish_reason == "stop"
    short = client.chat.completions.create(model=MODEL, messages=messages, max_tokens=3)
    assert whole.startswith(text_of(short))
    assert short.choices[0].finish_reason == "length"


def test_penalties_and_biases_count(client: openai.OpenAI, sample_image: bytes) -> None:
    plain = client.chat.completions.create(model=MODEL, messages=about(sample_image))
    biased = client.chat.completions.create(
        model=MODEL,
        messages=about(sample_image),
        presence_penalty=2,
        frequency_penalty=2,
        logit_bias={"32": -100},
    )
    assert text_of(biased) != text_of(plain)


@pytest.mark.parametrize("stop", [None, " square"], ids=["to the end", "before a stop string"])
def test_logprobs_are_of_the_tokens_of_the_text(
    client: openai.OpenAI, sample_image: bytes, stop: str | None
) -> None:
    ask: dict[str, Any] = {
        "model": MODEL,
        "messages": about(sample_image),
        "logprobs": True,
        "top_logprobs": 3,
        "stop": stop,
    }
    choice = client.chat.completions.create(**ask).choices[0]
    assert choice.logprobs is not None
    tokens = choice.logprobs.content
    assert tokens is not None
    assert "".join(token.token for token in tokens) == choice.message.content
    for token in tokens:
        assert bytes(token.bytes or []).decode() == token.token
        assert math.exp(token.logprob) <= 1.0
        assert [top.logprob for top in token.top_logprobs] == sorted(
            (top.logprob for top in token.top_logprobs), reverse=True
        )
        # Greedy: the token is the most probable one.
        assert token.top_logprobs[0].token == token.token
        assert len(token.top_logprobs) == 3
    streamed = [
        token
        for chunk in client.chat.completions.create(**ask, stream=True)
        if chunk.choices[0].logprobs is not None
        for token in chunk.choices[0].logprobs.content or []
    ]
    assert [token.token for token in streamed] == [token.token for token in tokens]
    assert [token.logprob for token in streamed] == pytest.approx(
        [token.logprob for token in tokens], abs=0.05
    )


# Structured answers


def test_parse_gives_a_pydantic_object(client: openai.OpenAI, sample_image: bytes) -> None:
    answer = client.chat.completions.parse(
        model=MODEL, messages=about(sample_image), response_format=Scene, max_tokens=400
    )
    scene = answer.choices[0].message.parsed
    assert isinstance(scene, Scene)


@pytest.mark.parametrize(
    "extra",
    [
        pytest.param({"guided_json": Shape.model_json_schema()}, id="guided_json"),
        pytest.param({"guided_json": json.dumps(Shape.model_json_schema())}, id="as text"),
        pytest.param(
            {"structured_outputs": {"json": Shape.model_json_schema()}}, id="structured_outputs"
        ),
        pytest.param({"json_schema": Shape.model_json_schema()}, id="this server's own name"),
        pytest.param(
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "shape", "schema": Shape.model_json_schema()},
                }
            },
            id="a schema that is not strict",
        ),
    ],
)
def test_a_schema_is_followed_by_whatever_name_it_comes(
    client: openai.OpenAI, sample_image: bytes, extra: dict[str, Any]
) -> None:
    answer = client.chat.completions.create(
        model=MODEL, messages=about(sample_image), extra_body=extra
    )
    assert Shape.model_validate_json(text_of(answer))


def test_json_regex_and_choice(client: openai.OpenAI, sample_image: bytes) -> None:
    def ask(**extra: object) -> str:
        return text_of(
            client.chat.completions.create(
                model=MODEL, messages=about(sample_image), extra_body=extra
            )
        )

    assert ask(guided_choice=["yes", "no"]) in ("yes", "no")
    assert ask(structured_outputs={"choice": ["maybe"]}) == "maybe"
    assert ask(guided_regex="[0-9]{3}").isdecimal()
    assert isinstance(json.loads(ask(response_format={"type": "json_object"})), dict)
    assert ask(response_format={"type": "text"}) == ask()


# Tools


def test_a_required_call_follows_its_schema(client: openai.OpenAI, sample_image: bytes) -> None:
    ask: dict[str, Any] = {"model": MODEL, "messages": about(sample_image), "tools": [PAINT]}
    for choice in ("required", {"type": "function", "function": {"name": "paint"}}):
        answer = client.chat.completions.create(**ask, tool_choice=choice, max_tokens=200)
        [first] = answer.choices
        assert first.finish_reason == "tool_calls"
        assert first.message.content is None
        calls = first.message.tool_calls
        assert calls
        for call in calls:
            assert call.type == "function"
            assert call.function.name == "paint"
            arguments = json.loads(call.function.arguments)
            assert arguments["color"] in ("red", "blue")
            assert arguments["layers"] in (1, 2, 3)
        assert len({call.id for call in calls}) == len(calls)


def test_a_call_is_streamed_in_pieces(client: openai.OpenAI, sample_image: bytes) -> None:
    ask: dict[str, Any] = {
        "model": MODEL,
        "messages": about(sample_image),
        "tools": [PAINT],
        "tool_choice": "required",
        "parallel_tool_calls": False,
    }
    whole = client.chat.completions.create(**ask)
    [call] = whole.choices[0].message.tool_calls or []
    assert call.type == "function"
    chunks = [chunk.choices[0] for chunk in client.chat.completions.create(**ask, stream=True)]
    pieces = [piece for chunk in chunks for piece in chunk.delta.tool_calls or []]
    assert [piece.index for piece in pieces] == [0] * len(pieces)
    heads = [piece for piece in pieces if piece.id]
    assert len(heads) == 1
    assert heads[0].function is not None
    assert heads[0].function.name == "paint"
    arguments = "".join(piece.function.arguments or "" for piece in pieces if piece.function)
    assert arguments == call.function.arguments
    assert len(pieces) > 3
    assert chunks[-1].finish_reason == "tool_calls"


def test_the_sdk_parses_strict_tools(client: openai.OpenAI, sample_image: bytes) -> None:
    tool = openai.pydantic_function_tool(Shape, name="shape")
    answer = client.chat.completions.parse(
        model=MODEL, messages=about(sample_image), tools=[tool], tool_choice="required"
    )
    [call, *_] = answer.choices[0].message.tool_calls or []
    assert isinstance(call.function.parsed_arguments, Shape)


def test_calls_and_their_results_go_back(client: openai.OpenAI, sample_image: bytes) -> None:
    ask: dict[str, Any] = {"model": MODEL, "tools": [PAINT]}
    messages = about(sample_image)
    first = client.chat.completions.create(**ask, messages=messages, tool_choice="required")
    message = first.choices[0].message
    assert message.tool_calls
    results = [
        {"role": "tool", "tool_call_id": call.id, "content": "done"} for call in message.tool_calls
    ]
    more = client.chat.completions.create(
        **ask, messages=[*messages, message, *results, *messages], max_tokens=5
    )
    assert first.usage is not None
    assert more.usage is not None
    call_tokens = first.usage.completion_tokens
    assert more.usage.prompt_tokens > first.usage.prompt_tokens + call_tokens


def test_tools_that_may_not_be_called_are_not_told(
    client: openai.OpenAI, sample_image: bytes
) -> None:
    plain, without, free = (
        client.chat.completions.create(model=MODEL, messages=about(sample_image), **tools)
        for tools in (
            {},
            {"tools": [PAINT], "tool_choice": "none"},
            {"tools": [PAINT]},
        )
    )
    assert text_of(plain) == text_of(without)
    assert plain.usage is not None
    assert without.usage is not None
    assert free.usage is not None
    assert plain.usage.prompt_tokens == without.usage.prompt_tokens < free.usage.prompt_tokens


# Completions


def test_a_chat_written_out_is_the_chat(client: openai.OpenAI) -> None:
    messages: Any = [{"role": "user", "content": "What color is the background?"}]
    chat = client.chat.completions.create(model=MODEL, messages=messages, max_tokens=8)
    prompt = "<|im_start|>user\nWhat color is the background?<|im_end|>\n<|im_start|>assistant\n"
    written = client.completions.create(model=MODEL, prompt=prompt, max_tokens=8)
    assert written.choices[0].text == text_of(chat)
    assert written.usage is not None
    assert chat.usage is not None
    assert written.usage.prompt_tokens == chat.usage.prompt_tokens


def test_prompts_are_texts_or_tokens_one_or_several(
    client: openai.OpenAI, server: RunningServer
) -> None:
    prompt = "<|im_start|>user\nHow many objects are there?<|im_end|>\n<|im_start|>assistant\n"
    tokens = httpx.post(f"{server.http_url}/tokenize", json={"prompt": prompt}).json()["tokens"]
    texts = {
        choice.text
        for form in (prompt, [prompt], tokens, [tokens, tokens])
        for choice in client.completions.create(model=MODEL, prompt=form).choices
    }
    assert len(texts) == 1
    answer = client.completions.create(model=MODEL, prompt=[prompt, tokens], n=2, echo=True)
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
    assert {choice.text for choice in answer.choices} == {prompt + text for text in texts}


def test_completions_have_16_tokens_unless_told(client: openai.OpenAI) -> None:
    ask: dict[str, Any] = {"model": MODEL, "prompt": "A", "extra_body": {"ignore_eos": True}}
    for more, expected in (({}, 16), ({"max_tokens": 3}, 3)):
        answer = client.completions.create(**ask, **more)
        assert answer.usage is not None
        assert answer.usage.completion_tokens == expected
        assert answer.choices[0].finish_reason == "length"


def test_a_streamed_completion_is_the_whole_one(client: openai.OpenAI) -> None:
    ask: dict[str, Any] = {"model": MODEL, "prompt": ["A red", "The"], "echo": True, "n": 2}
    whole = client.completions.create(**ask)
    texts = [""] * 4
    last = None
    for chunk in client.completions.create(
        **ask, stream=True, stream_options={"include_usage": True}
    ):
        for choice in chunk.choices:
            texts[choice.index] += choice.text
        last = chunk
    assert texts == [choice.text for choice in whole.choices]
    assert last is not None
    assert last.usage is not None
    assert whole.usage is not None
    assert last.usage.total_tokens == whole.usage.total_tokens


def test_logprobs_of_completions(client: openai.OpenAI) -> None:
    ask: dict[str, Any] = {"model": MODEL, "prompt": "A small red", "logprobs": 2, "max_tokens": 6}
    choice = client.completions.create(**ask).choices[0]
    logprobs = choice.logprobs
    assert logprobs is not None
    assert "".join(logprobs.tokens or []) == choice.text
    starts = [choice.text[start:] for start in logprobs.text_offset or []]
    for start, token, top, logprob in zip(
        starts,
        logprobs.tokens or [],
        logprobs.top_logprobs or [],
        logprobs.token_logprobs or [],
        strict=True,
    ):
        assert start.startswith(token)
        assert top[token] == logprob
        assert len(top) == 2
    streamed = [
        chunk.choices[0].logprobs
        for chunk in client.completions.create(**ask, stream=True)
        if chunk.choices[0].logprobs is not None
    ]
    assert [token for one in streamed for token in one.tokens or []] == logprobs.tokens
    assert [at for one in streamed for at in one.text_offset or []] == logprobs.text_offset


def test_best_of_tells_the_most_probable(client: openai.OpenAI) -> None:
    ask: dict[str, Any] = {
        "model": MODEL,
        "prompt": "A small red",
        "temperature": 3.0,
        "seed": 3,
        "max_tokens": 6,
        "logprobs": 0,
        "extra_body": {"ignore_eos": True},
    }

    def mean(choice: Any) -> float:
        return sum(choice.logprobs.token_logprobs) / len(choice.logprobs.token_logprobs)

    made = client.completions.create(**ask, n=6).choices
    best = client.completions.create(**ask, n=2, best_of=6).choices
    expected = sorted(made, key=mean, reverse=True)[:2]
    assert [choice.text for choice in best] == [choice.text for choice in expected]


# Models


def test_models_are_listed_and_looked_up(client: openai.OpenAI) -> None:
    [model] = client.models.list().data
    assert model.id == MODEL
    assert client.models.retrieve(MODEL).id == MODEL
    with pytest.raises(openai.NotFoundError, match="known: qwen3-vl"):
        client.models.retrieve("org/other")


# Errors


@pytest.mark.parametrize(
    ("change", "kind", "param", "code", "text"),
    [
        pytest.param(
            {"model": "gpt-4o"},
            openai.NotFoundError,
            "model",
            "model_not_found",
            "model 'gpt-4o' is not served here; known: qwen3-vl",
            id="another model",
        ),
        pytest.param(
            {"temperature": -1},
            openai.BadRequestError,
            "temperature",
            "invalid_value",
            "temperature is -1.0; it must be from 0.0 to 10.0",
            id="a value out of range",
        ),
        pytest.param(
            {"messages": []},
            openai.BadRequestError,
            "messages",
            "invalid_value",
            "messages has 0 messages",
            id="no messages",
        ),
        pytest.param(
            {"messages": [{"role": "user", "content": "word " * 6000}]},
            openai.BadRequestError,
            "messages",
            "context_length_exceeded",
            "this model takes at most",
            id="a long prompt",
        ),
        pytest.param(
            {"messages": about(b"no picture")},
            openai.BadRequestError,
            "messages",
            "invalid_image",
            "not a JPEG, PNG, WebP or GIF",
            id="no picture",
        ),
        pytest.param(
            {"messages": [{"role": "system", "content": about(b"x")[0]["content"]}]},
            openai.BadRequestError,
            "messages[0].content[0]",
            "invalid_value",
            "pictures belong in messages of user or tool",
            id="a picture in a system message",
        ),
        pytest.param(
            {"n": 99}, openai.BadRequestError, "n", "invalid_value", "n is 99", id="many choices"
        ),
        pytest.param(
            {"extra_body": {"audio": {"voice": "x"}}},
            openai.BadRequestError,
            "audio",
            "invalid_value",
            "audio is not supported: this model answers in text",
            id="audio",
        ),
        pytest.param(
            {"tools": [PAINT], "tool_choice": {"type": "function", "function": {"name": "x"}}},
            openai.BadRequestError,
            "tool_choice",
            "invalid_value",
            "tool_choice names 'x'; tools has paint",
            id="a call of a function that is none",
        ),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_errors_are_the_sdks_own(
    client: openai.OpenAI,
    change: dict[str, Any],
    kind: type[openai.APIStatusError],
    param: str,
    code: str,
    text: str,
    stream: bool,
) -> None:
    ask: dict[str, Any] = {"model": MODEL, "messages": [{"role": "user", "content": "Hi"}]}
    with pytest.raises(kind) as raised:
        client.chat.completions.create(**{**ask, **change, "stream": stream})
    error = raised.value
    assert (error.type, error.param, error.code) == ("invalid_request_error", param, code)
    assert text in error.message
    assert error.request_id


def test_an_unknown_route_and_method_are_told_in_the_envelope(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as raised:
        client.embeddings.create(model=MODEL, input="x")
    assert raised.value.code == "not_found"
    with pytest.raises(openai.APIStatusError) as refused:
        client.get("/chat/completions", cast_to=httpx.Response)
    assert (refused.value.status_code, refused.value.code) == (405, "method_not_allowed")


def test_fields_without_effect_are_named_in_a_header(client: openai.OpenAI) -> None:
    response = client.chat.completions.with_raw_response.create(
        model=MODEL,
        messages=[{"role": "user", "content": "Hi"}],
        max_tokens=1,
        user="ann",
        metadata={"a": "b"},
        store=True,
        extra_body={"not a\nfield é\x7f": 1, "top_k": 3, "x" * 100: 2},
    )
    ignored = json.loads(response.headers["x-ignored-fields"])
    assert ignored == ["store", "not a\nfield é\x7f", "x" * 64 + "…"]
    assert response.parse().choices


# Async, and going away


async def test_16_streams_at_once(async_client: openai.AsyncOpenAI, sample_image: bytes) -> None:
    async def ask() -> str:
        stream = await async_client.chat.completions.create(
            model=MODEL, messages=about(sample_image), stream=True
        )
        return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

    texts = await asyncio.gather(*(ask() for _ in range(16)))
    assert set(texts) == {CAPTIONS[0]["answer"]}


@pytest.mark.parametrize("n", [1, 3])
async def test_a_closed_stream_frees_its_sequences(
    async_client: openai.AsyncOpenAI, server: RunningServer, sample_image: bytes, n: int
) -> None:
    stream = await async_client.chat.completions.create(
        model=MODEL,
        messages=about(sample_image),
        stream=True,
        n=n,
        max_tokens=3000,
        extra_body={"ignore_eos": True},
    )
    async for chunk in stream:
        if chunk.choices[0].delta.content:
            break
    await asyncio.to_thread(server.wait_until_running, n)
    await stream.close()
    await asyncio.to_thread(server.wait_until_idle)


async def test_a_cancelled_answer_frees_its_sequence(
    async_client: openai.AsyncOpenAI, server: RunningServer, sample_image: bytes
) -> None:
    asking = asyncio.create_task(
        async_client.chat.completions.create(
            model=MODEL,
            messages=about(sample_image),
            max_tokens=3000,
            extra_body={"ignore_eos": True},
        )
    )
    await asyncio.to_thread(server.wait_until_running, 1)
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    await asyncio.to_thread(server.wait_until_idle)


def test_a_short_timeout_is_the_sdks_own_and_frees_the_sequence(
    client: openai.OpenAI, server: RunningServer, sample_image: bytes
) -> None:
    with pytest.raises(openai.APITimeoutError):
        client.with_options(timeout=0.3).chat.completions.create(
            model=MODEL,
            messages=about(sample_image),
            max_tokens=3000,
            extra_body={"ignore_eos": True},
        )
    server.wait_until_idle()
