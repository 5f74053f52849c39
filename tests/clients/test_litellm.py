"""LiteLLM (written with 1.110) against this server, as one that speaks OpenAI's protocol."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import pytest

from model.demo import SAMPLES_DIR
from tests.clients.openai_requests import CAPTIONS, PAINT, about

if TYPE_CHECKING:
    from tests.serving import RunningServer

# Before the import: else it looks for prices on the Internet.
os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"
litellm = pytest.importorskip("litellm")

# What LiteLLM's own code is warned of.
pytestmark = [
    pytest.mark.filterwarnings("ignore:Items? .* on TypedDict class:UserWarning"),
    pytest.mark.filterwarnings("ignore:Accessing the 'model_:DeprecationWarning"),
]
MESSAGES = about((SAMPLES_DIR / CAPTIONS[0]["image"]).read_bytes())


def ask(server: RunningServer, **more: Any) -> dict[str, Any]:
    return {
        "model": "openai/qwen3-vl",
        "api_base": f"{server.http_url}/v1",
        "api_key": "none",
        "messages": MESSAGES,
        "num_retries": 0,
        "max_retries": 0,
        **more,
    }


def test_an_answer_about_a_picture(server: RunningServer) -> None:
    answer = litellm.completion(**ask(server))
    assert answer.choices[0].message.content == CAPTIONS[0]["answer"]
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage.prompt_tokens_details.image_tokens == 36


def test_a_stream_is_the_whole_answer(server: RunningServer) -> None:
    stream = litellm.completion(**ask(server, stream=True, stream_options={"include_usage": True}))
    chunks = list(stream)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == CAPTIONS[0]["answer"]
    assert chunks[-1].usage.completion_tokens > 10


async def test_an_answer_is_awaited(server: RunningServer) -> None:
    answer = await litellm.acompletion(**ask(server, max_tokens=3))
    assert answer.choices[0].finish_reason == "length"


def test_a_tool_is_called(server: RunningServer) -> None:
    answer = litellm.completion(**ask(server, tools=[PAINT], tool_choice="required"))
    assert answer.choices[0].message.tool_calls[0].function.name == "paint"


def test_errors_come_through(server: RunningServer) -> None:
    with pytest.raises(litellm.BadRequestError, match="temperature is -1"):
        litellm.completion(**ask(server, temperature=-1))
    with pytest.raises(litellm.NotFoundError, match="known: qwen3-vl"):
        litellm.completion(**ask(server, model="openai/other"))
