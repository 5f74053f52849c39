"""LangChain's ChatOpenAI (written with langchain-openai 1.7) against this server."""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING, Any, Literal

import openai
import pytest
from langchain_core.messages import HumanMessage, SystemMessage, ToolMessage
from langchain_openai import ChatOpenAI
from pydantic import BaseModel, ConfigDict

from model.demo import SAMPLES_DIR
from tests.clients.openai_requests import CAPTIONS

if TYPE_CHECKING:
    from tests.serving import RunningServer

PICTURE = base64.b64encode((SAMPLES_DIR / CAPTIONS[0]["image"]).read_bytes()).decode()
QUESTION = HumanMessage(
    [
        {"type": "text", "text": "Describe this image."},
        {"type": "image", "base64": PICTURE, "mime_type": "image/jpeg"},
    ]
)


class Paint(BaseModel):
    """Paint a wall."""

    model_config = ConfigDict(extra="forbid")

    color: Literal["red", "blue"]


@pytest.fixture
def chat(server: RunningServer) -> ChatOpenAI:
    return chat_of(server)


def chat_of(server: RunningServer, **more: Any) -> ChatOpenAI:
    settings = {"base_url": f"{server.http_url}/v1", "api_key": "none", "max_retries": 0}
    return ChatOpenAI(model="qwen3-vl", **settings, **more)


def test_an_answer_about_a_picture(chat: ChatOpenAI) -> None:
    answer = chat.invoke([SystemMessage("Be brief."), QUESTION])
    assert answer.text
    assert answer.response_metadata["finish_reason"] == "stop"
    assert answer.usage_metadata is not None
    assert answer.usage_metadata["total_tokens"] > 36


def test_a_stream_is_the_whole_answer(server: RunningServer) -> None:
    chat = chat_of(server, stream_usage=True)
    pieces = list(chat.stream([QUESTION]))
    whole = chat.invoke([QUESTION])
    assert "".join(piece.text for piece in pieces) == whole.text
    assert len(pieces) > 10
    [usage] = [piece.usage_metadata for piece in pieces if piece.usage_metadata]
    assert whole.usage_metadata is not None
    assert usage["output_tokens"] == whole.usage_metadata["output_tokens"]


async def test_answers_side_by_side(chat: ChatOpenAI) -> None:
    answers = await chat.abatch([[QUESTION]] * 4)
    assert len({answer.text for answer in answers}) == 1


def test_a_tool_is_called_and_its_result_goes_back(chat: ChatOpenAI) -> None:
    asked = chat.bind_tools([Paint], tool_choice="required").invoke([QUESTION])
    assert asked.tool_calls
    assert {call["name"] for call in asked.tool_calls} == {"Paint"}
    assert {call["args"]["color"] for call in asked.tool_calls} <= {"red", "blue"}
    results = [ToolMessage("done", tool_call_id=call["id"]) for call in asked.tool_calls]
    assert chat.bind_tools([Paint]).invoke([QUESTION, asked, *results, QUESTION])


@pytest.mark.parametrize("method", ["json_schema", "function_calling"])
def test_structured_output(
    chat: ChatOpenAI, method: Literal["json_schema", "function_calling"]
) -> None:
    found = chat.with_structured_output(Paint, method=method).invoke([QUESTION])
    assert isinstance(found, Paint)


def test_errors_come_through(server: RunningServer) -> None:
    with pytest.raises(openai.BadRequestError, match="top_p is 2"):
        chat_of(server, top_p=2.0).invoke([QUESTION])
