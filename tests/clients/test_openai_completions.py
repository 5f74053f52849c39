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


@pytest.mark.parametrize("max_tokens", [0, 1, 3])
def test_a_prompt_that_is_echoed_with_logprobs_has_its_own(
    openai_client: openai.OpenAI, max_tokens: int
) -> None:
    prompt = "<|im_start|>user\nWhat color, naïve 好?<|im_end|>\n<|im_start|>assistant\n"
    ask: dict[str, Any] = {"model": MODEL, "logprobs": 2, "max_tokens": max_tokens, "echo": True}
    answer = openai_client.completions.create(**ask, prompt=prompt)
    [choice], usage = answer.choices, answer.usage
    assert usage is not None
    assert choice.finish_reason == "length"
    assert usage.completion_tokens == max_tokens
    assert choice.text.startswith(prompt)
    assert (choice.text == prompt) == (max_tokens == 0)
    told = choice.logprobs
    assert told is not None
    columns = (told.tokens, told.text_offset, told.token_logprobs, told.top_logprobs)
    assert {len(column or []) for column in columns} == {usage.prompt_tokens + max_tokens}
    firsts: list[Any] = [(column or [])[0] for column in columns]
    assert firsts == ["<|im_start|>", 0, None, None]
    for token, start, logprob, top in list(zip(*map(list, columns), strict=True))[1:]:  # type: ignore[arg-type]
        if not token.startswith("bytes:"):
            assert choice.text[start:].startswith(token)
        assert 2 <= len(top) <= 3
        assert max(top.values()) >= top[token] == logprob
    # A prompt and its answer, sent as one prompt: the same numbers, up to rounding.
    longer = openai_client.completions.create(**ask | {"max_tokens": 0}, prompt=choice.text)
    again = longer.choices[0].logprobs
    assert again is not None
    if again.tokens == told.tokens:
        assert (again.token_logprobs or [])[1:] == pytest.approx(
            (told.token_logprobs or [])[1:], abs=0.1
        )


def test_a_streamed_echo_tells_what_the_whole_one_does(openai_client: openai.OpenAI) -> None:
    for max_tokens in (0, 5):
        ask: dict[str, Any] = {
            "model": MODEL,
            "prompt": ["A red", "The small blue circle"],
            "echo": True,
            "logprobs": 1,
            "n": 2,
            "max_tokens": max_tokens,
        }
        whole = openai_client.completions.create(**ask).choices
        texts = [""] * 4
        tokens: list[list[str]] = [[] for _ in whole]
        offsets: list[list[int]] = [[] for _ in whole]
        for chunk in openai_client.completions.create(**ask, stream=True):
            for choice in chunk.choices:
                texts[choice.index] += choice.text
                assert choice.logprobs is not None
                tokens[choice.index] += choice.logprobs.tokens or []
                offsets[choice.index] += choice.logprobs.text_offset or []
        assert texts == [choice.text for choice in whole]
        told = [choice.logprobs for choice in whole]
        assert tokens == [one.tokens for one in told if one is not None]
        assert offsets == [one.text_offset for one in told if one is not None]


def test_an_evaluation_reads_the_likelihood_of_a_continuation(
    openai_client: openai.OpenAI, server: RunningServer
) -> None:
    # As lm-evaluation-harness asks (models/openai_completions.py), with tokens; an answer that
    # ends at once is told too, or its slice would lose the continuation's last token.
    pairs = [("A small red square", " at the top left."), ("A small", " red square.<|im_end|>")]
    contexts, wholes = (
        [
            httpx.post(f"{server.http_url}/tokenize", json={"prompt": text}).json()["tokens"]
            for text in texts
        ]
        for texts in ([a for a, _ in pairs], [a + b for a, b in pairs])
    )
    answer = openai_client.completions.create(
        model=MODEL, prompt=wholes, temperature=0, max_tokens=1, logprobs=1, seed=1234, echo=True
    )
    for choice, context, whole in zip(answer.choices, contexts, wholes, strict=True):
        assert choice.logprobs is not None
        part = slice(len(context), -1)
        logprobs: list[float] = (choice.logprobs.token_logprobs or [])[part]
        tops = (choice.logprobs.top_logprobs or [])[part]
        assert len(logprobs) == len(whole) - len(context)
        assert all(top for top in tops)
        assert sum(logprobs) < 0


def test_prompt_logprobs_are_listed_as_vllm_does(openai_client: openai.OpenAI) -> None:
    more = {"prompt_logprobs": 2}
    chat: Any = openai_client.chat.completions.create(
        model=MODEL, messages=[{"role": "user", "content": "What?"}], max_tokens=1, extra_body=more
    )
    text: Any = openai_client.completions.create(
        model=MODEL, prompt="What color?", max_tokens=1, extra_body=more
    )
    for told, usage in (
        (chat.prompt_logprobs, chat.usage),
        (text.choices[0].prompt_logprobs, text.usage),
    ):
        assert len(told) == usage.prompt_tokens
        assert told[0] is None
        for entry in told[1:]:
            ranks = {one["rank"] for one in entry.values()}
            assert {1, 2} <= ranks
            assert len(ranks) == len(entry) <= 3
            assert all(one.keys() == {"logprob", "rank", "decoded_token"} for one in entry.values())


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
