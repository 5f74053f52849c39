"""The openai package (written with 2.54): chats, streams, errors, cancelling."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import httpx
import openai
import pytest

from model.demo import SAMPLES_DIR
from tests.clients.openai_requests import (
    CAPTIONS,
    MODEL,
    PAINT,
    about,
    data_url,
    text_of,
)

if TYPE_CHECKING:
    from tests.serving import RunningServer


@pytest.mark.parametrize("caption", CAPTIONS, ids=lambda one: f"{one['image']}: {one['prompt']}")
def test_samples_are_described_as_they_are(
    openai_client: openai.OpenAI, caption: dict[str, str]
) -> None:
    picture = (SAMPLES_DIR / caption["image"]).read_bytes()
    answer = openai_client.chat.completions.create(
        model=MODEL, messages=about(picture, caption["prompt"])
    )
    assert text_of(answer) == caption["answer"]
    assert answer.choices[0].finish_reason == "stop"
    assert answer.model == MODEL


def test_usage_counts_text_pictures_and_what_was_cached(
    openai_client: openai.OpenAI, sample_image: bytes
) -> None:
    ask = {"model": MODEL, "messages": about(sample_image, "What is at the bottom?")}
    first, again = (openai_client.chat.completions.create(**ask).usage for _ in range(2))
    assert first is not None
    assert again is not None
    assert first.total_tokens == first.prompt_tokens + first.completion_tokens
    details, known = first.prompt_tokens_details, again.prompt_tokens_details
    assert details.image_tokens == 36
    assert details.cached_tokens < first.prompt_tokens
    assert known.cached_tokens == (again.prompt_tokens - 1) // 16 * 16


def test_a_stream_is_the_whole_answer_in_pieces(
    openai_client: openai.OpenAI, sample_image: bytes
) -> None:
    ask: dict[str, Any] = {"model": MODEL, "messages": about(sample_image)}
    whole = openai_client.chat.completions.create(**ask)
    chunks = list(
        openai_client.chat.completions.create(
            **ask, stream=True, stream_options={"include_usage": True}
        )
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


def test_usage_may_come_with_every_chunk(openai_client: openai.OpenAI, sample_image: bytes) -> None:
    options: Any = {"include_usage": True, "continuous_usage_stats": True}
    stream = openai_client.chat.completions.create(
        model=MODEL, messages=about(sample_image), stream=True, stream_options=options, n=2
    )
    counts = [chunk.usage.completion_tokens for chunk in stream if chunk.usage is not None]
    assert counts == sorted(counts)
    assert counts[0] < counts[-1]


def test_several_pictures_and_turns(openai_client: openai.OpenAI, sample_image: bytes) -> None:
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
    answer = openai_client.chat.completions.create(model=MODEL, messages=messages)
    assert answer.usage is not None
    assert answer.usage.prompt_tokens_details.image_tokens == 72
    assert text_of(answer)


def test_pixel_bounds_change_what_the_model_sees(
    openai_client: openai.OpenAI, sample_image: bytes
) -> None:
    def image_tokens(**extra: object) -> int:
        answer = openai_client.chat.completions.create(
            model=MODEL, messages=about(sample_image), max_tokens=1, extra_body=extra
        )
        assert answer.usage is not None
        return int(answer.usage.prompt_tokens_details.image_tokens)

    assert image_tokens() == 36
    assert image_tokens(max_pixels=20_000) == 16
    assert image_tokens(mm_processor_kwargs={"max_pixels": 20_000}) == 16
    assert image_tokens(mm_processor_kwargs={"size": {"longest_edge": 20_000}}) == 16


def test_n_answers_are_choices(openai_client: openai.OpenAI, sample_image: bytes) -> None:
    ask: dict[str, Any] = {
        "model": MODEL,
        "messages": about(sample_image),
        "n": 3,
        "seed": 5,
        "temperature": 2.0,
        "max_tokens": 12,
        "extra_body": {"ignore_eos": True},
    }
    whole = openai_client.chat.completions.create(**ask)
    texts = [choice.message.content for choice in whole.choices]
    assert [choice.index for choice in whole.choices] == [0, 1, 2]
    assert len(set(texts)) == 3
    assert whole.usage is not None
    assert whole.usage.completion_tokens == 36
    streamed = ["", "", ""]
    for chunk in openai_client.chat.completions.create(**ask, stream=True):
        for choice in chunk.choices:
            streamed[choice.index] += choice.delta.content or ""
    assert streamed == texts


def test_a_seed_repeats_itself(openai_client: openai.OpenAI, sample_image: bytes) -> None:
    first, again, other = (
        text_of(
            openai_client.chat.completions.create(
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


def test_stop_and_length_end_an_answer(openai_client: openai.OpenAI, sample_image: bytes) -> None:
    messages = about(sample_image)
    whole = text_of(openai_client.chat.completions.create(model=MODEL, messages=messages))
    stop = whole.split()[3]
    stopped = openai_client.chat.completions.create(
        model=MODEL, messages=messages, stop=[stop, "@@"]
    )
    assert text_of(stopped) == whole[: whole.index(stop)]
    assert stopped.choices[0].finish_reason == "stop"
    short = openai_client.chat.completions.create(model=MODEL, messages=messages, max_tokens=3)
    assert whole.startswith(text_of(short))
    assert short.choices[0].finish_reason == "length"


def test_penalties_and_biases_count(openai_client: openai.OpenAI, sample_image: bytes) -> None:
    plain = openai_client.chat.completions.create(model=MODEL, messages=about(sample_image))
    biased = openai_client.chat.completions.create(
        model=MODEL,
        messages=about(sample_image),
        presence_penalty=2,
        frequency_penalty=2,
        logit_bias={"32": -100},
    )
    assert text_of(biased) != text_of(plain)


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
    openai_client: openai.OpenAI,
    change: dict[str, Any],
    kind: type[openai.APIStatusError],
    param: str,
    code: str,
    text: str,
    stream: bool,
) -> None:
    ask: dict[str, Any] = {"model": MODEL, "messages": [{"role": "user", "content": "Hi"}]}
    with pytest.raises(kind) as raised:
        openai_client.chat.completions.create(**{**ask, **change, "stream": stream})
    error = raised.value
    assert (error.type, error.param, error.code) == ("invalid_request_error", param, code)
    assert text in error.message
    assert error.request_id


def test_an_unknown_route_and_method_are_told_in_the_envelope(openai_client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as raised:
        openai_client.embeddings.create(model=MODEL, input="x")
    assert raised.value.code == "not_found"
    with pytest.raises(openai.APIStatusError) as refused:
        openai_client.get("/chat/completions", cast_to=httpx.Response)
    assert (refused.value.status_code, refused.value.code) == (405, "method_not_allowed")


def test_fields_without_effect_are_named_in_a_header(openai_client: openai.OpenAI) -> None:
    response = openai_client.chat.completions.with_raw_response.create(
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


async def test_16_streams_at_once(
    async_openai_client: openai.AsyncOpenAI, sample_image: bytes
) -> None:
    async def ask() -> str:
        stream = await async_openai_client.chat.completions.create(
            model=MODEL, messages=about(sample_image), stream=True
        )
        return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

    texts = await asyncio.gather(*(ask() for _ in range(16)))
    assert set(texts) == {CAPTIONS[0]["answer"]}


@pytest.mark.parametrize("n", [1, 3])
async def test_a_closed_stream_frees_its_sequences(
    async_openai_client: openai.AsyncOpenAI, server: RunningServer, sample_image: bytes, n: int
) -> None:
    stream = await async_openai_client.chat.completions.create(
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
    async_openai_client: openai.AsyncOpenAI, server: RunningServer, sample_image: bytes
) -> None:
    asking = asyncio.create_task(
        async_openai_client.chat.completions.create(
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
    openai_client: openai.OpenAI, server: RunningServer, sample_image: bytes
) -> None:
    with pytest.raises(openai.APITimeoutError):
        openai_client.with_options(timeout=0.3).chat.completions.create(
            model=MODEL,
            messages=about(sample_image),
            max_tokens=3000,
            extra_body={"ignore_eos": True},
        )
    server.wait_until_idle()
