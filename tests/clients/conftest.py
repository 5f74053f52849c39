"""The openai package's clients, sync and async, of the session's server."""

from __future__ import annotations

from typing import TYPE_CHECKING

import openai
import pytest

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from tests.serving import RunningServer


@pytest.fixture
def openai_client(server: RunningServer) -> Iterator[openai.OpenAI]:
    """Without retries: a test sees the first answer."""
    with openai.OpenAI(base_url=f"{server.http_url}/v1", api_key="none", max_retries=0) as one:
        yield one


@pytest.fixture
async def async_openai_client(server: RunningServer) -> AsyncIterator[openai.AsyncOpenAI]:
    """The same under the other prefix."""
    url = f"{server.http_url}/openai/v1"
    async with openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0) as one:
        yield one
