"""The openai package: completions, and models."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import httpx
import openai
import pytest

from tests.clients.openai_requests import (
    MODEL,
    text_of,
)

if TYPE_CHECKING:
    from tests.serving import RunningServer


def test_a_chat_written_out_is_the_chat(openai_client: openai.OpenAI) -> None:
    messages: Any = [{"role": "user", "content": "What color is the background?"}]
    chat = openai_client.chat.completions.create(model=MODEL, messages=messages, max_tokens=8)
    prompt = "<|im_start|>user\nWhat color is the background?<|im_end|>\n<|im_start|>assistant\n"
    written = openai_client.completions.create(model=MODEL, prompt=prompt, max_tokens=8)
    assert written.choices[0].text == text_of(chat)
    assert written.usage is not None
    assert chat.usage is not None
    assert written.usage.prompt_tokens == chat.usage.prompt_tokens


def test_prompts_are_texts_or_tokens_one_or_several(
    openai_client: openai.OpenAI, server: RunningServer
) -> None:
    prompt = "<|im_start|>user\nHow many objects are there?<|im_end|>\n<|im_start|>assistant\n"
    tokens = httpx.post(f"{server.http_url}/tokenize", json={"prompt": prompt}).json()["tokens"]
    texts = {
        choice.text
        for form in (prompt, [prompt], tokens, [tokens, tokens])
        for choice in openai_client.completions.create(model=MODEL, prompt=form).choices
    }
    assert len(texts) == 1
    answer = openai_client.completions.create(model=MODEL, prompt=[prompt, tokens], n=2, echo=True)
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
    assert {choice.text for choice in answer.choices} == {prompt + text for text in texts}


def test_completions_have_16_tokens_unless_told(openai_client: openai.OpenAI) -> None:
    ask: dict[str, Any] = {"model": MODEL, "prompt": "A", "extra_body": {"ignore_eos": True}}
    for more, expected in (({}, 16), ({"max_tokens": 3}, 3)):
        answer = openai_client.completions.create(**ask, **more)
        assert answer.usage is not None
        assert answer.usage.completion_tokens == expected
        assert answer.choices[0].finish_reason == "length"


def test_a_streamed_completion_is_the_whole_one(openai_client: openai.OpenAI) -> None:
    ask: dict[str, Any] = {"model": MODEL, "prompt": ["A red", "The"], "echo": True, "n": 2}
    whole = openai_client.completions.create(**ask)
    texts = [""] * 4
    last = None
    for chunk in openai_client.completions.create(
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


def test_logprobs_of_completions(openai_client: openai.OpenAI) -> None:
    ask: dict[str, Any] = {"model": MODEL, "prompt": "A small red", "logprobs": 2, "max_tokens": 6}
    choice = openai_client.completions.create(**ask).choices[0]
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
        for chunk in openai_client.completions.create(**ask, stream=True)
        if chunk.choices[0].logprobs is not None
    ]
    assert [token for one in streamed for token in one.tokens or []] == logprobs.tokens
    assert [at for one in streamed for at in one.text_offset or []] == logprobs.text_offset


def test_best_of_tells_the_most_probable(openai_client: openai.OpenAI) -> None:
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

    made = openai_client.completions.create(**ask, n=6).choices
    best = openai_client.completions.create(**ask, n=2, best_of=6).choices
    expected = sorted(made, key=mean, reverse=True)[:2]
    assert [choice.text for choice in best] == [choice.text for choice in expected]


def test_models_are_listed_and_looked_up(openai_client: openai.OpenAI) -> None:
    [model] = openai_client.models.list().data
    assert model.id == MODEL
    assert openai_client.models.retrieve(MODEL).id == MODEL
    with pytest.raises(openai.NotFoundError, match="known: qwen3-vl"):
        openai_client.models.retrieve("org/other")
