"""LiteLLM (written with 1.110), in a process of its own, against this server."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from tests.clients.openai_requests import CAPTIONS
from tests.serving import ROOT

if TYPE_CHECKING:
    from tests.serving import RunningServer


@pytest.fixture(scope="module")
def seen(server: RunningServer) -> dict[str, Any]:
    """What it saw, by what it did."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.clients.litellm_scenario", f"{server.http_url}/v1"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout.splitlines()[-1]))


def test_an_answer_about_a_picture(seen: dict[str, Any]) -> None:
    [choice] = seen["whole"]["choices"]
    assert choice["message"]["content"] == CAPTIONS[0]["answer"]
    assert choice["finish_reason"] == "stop"
    assert seen["whole"]["usage"]["prompt_tokens_details"]["image_tokens"] == 36


def test_a_stream_is_the_whole_answer(seen: dict[str, Any]) -> None:
    streamed = seen["streamed"]
    assert "".join(streamed["pieces"]) == CAPTIONS[0]["answer"]
    assert len(streamed["pieces"]) > 10
    assert streamed["usage"]["completion_tokens"] == seen["whole"]["usage"]["completion_tokens"]


def test_an_answer_is_awaited(seen: dict[str, Any]) -> None:
    assert seen["awaited"]["choices"][0]["finish_reason"] == "length"
    assert seen["awaited"]["usage"]["completion_tokens"] == 3


def test_a_tool_is_called(seen: dict[str, Any]) -> None:
    [choice] = seen["called"]["choices"]
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"]["tool_calls"][0]["function"]["name"] == "paint"


def test_errors_come_through(seen: dict[str, Any]) -> None:
    assert seen["bad"][0] == "BadRequestError"
    assert "temperature is -1" in seen["bad"][1]
    assert seen["unknown"][0] == "NotFoundError"
    assert "known: qwen3-vl" in seen["unknown"][1]
