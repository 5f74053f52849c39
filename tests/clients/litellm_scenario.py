"""What LiteLLM sees of a server, as JSON: python -m … BASE_URL.

A process of its own: LiteLLM leaves event loops and sockets open for as long as it is imported.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from typing import Any

# Before the import: else it looks for prices on the Internet.
os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"

import litellm

from model.demo import SAMPLES_DIR
from tests.clients.openai_requests import CAPTIONS, PAINT, about


def ask(base_url: str, **more: Any) -> dict[str, Any]:
    return {
        "model": "openai/qwen3-vl",
        "api_base": base_url,
        "api_key": "none",
        "messages": about((SAMPLES_DIR / CAPTIONS[0]["image"]).read_bytes()),
        "num_retries": 0,
        "max_retries": 0,
        **more,
    }


def refusal(request: dict[str, Any]) -> list[str]:
    try:
        litellm.completion(**request)
    except Exception as e:
        return [type(e).__name__, str(e)]
    return ["OK", ""]


def streamed(base_url: str) -> dict[str, Any]:
    options = {"include_usage": True}
    chunks = list(litellm.completion(**ask(base_url, stream=True, stream_options=options)))
    return {
        "pieces": [chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices],
        "usage": chunks[-1].usage.model_dump(),
    }


def main() -> None:
    [base_url] = sys.argv[1:]
    seen = {
        "whole": litellm.completion(**ask(base_url)).model_dump(),
        "streamed": streamed(base_url),
        "awaited": asyncio.run(litellm.acompletion(**ask(base_url, max_tokens=3))).model_dump(),
        "called": litellm.completion(
            **ask(base_url, tools=[PAINT], tool_choice="required")
        ).model_dump(),
        "bad": refusal(ask(base_url, temperature=-1)),
        "unknown": refusal(ask(base_url, model="openai/other")),
    }
    print(json.dumps(seen))


if __name__ == "__main__":
    main()
