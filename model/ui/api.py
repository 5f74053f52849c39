"""The server as any client sees it: its health, its name, and describe's stream of events."""

from __future__ import annotations

import contextlib
import json
import mimetypes
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import httpx

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from typing import IO

    from model.ui.ask import Call, Picture

HEALTH_SECONDS = 5.0
# Of an answer that is not our server's: enough to recognise a gateway's page.
MAX_FOREIGN_TEXT = 200


class ApiError(Exception):
    """An answer that did not come; its text is what the server said, or why it said nothing."""


@dataclass(frozen=True, slots=True)
class Health:
    """Whether the server answers.

    state: ready, loading, draining, failed … as the server says, or unreachable
    model: the first name served, empty where it is not told
    """

    state: str
    model: str = ""


class Api:
    """One server. Keys are arguments: nothing here keeps one."""

    def __init__(self, url: str, client: httpx.AsyncClient) -> None:
        self._url = url
        self._client = client

    async def health(self, key: str) -> Health:
        """Ask for health and name; never raises."""
        try:
            answer = await self._client.get(f"{self._url}/health", timeout=HEALTH_SECONDS)
            state = str(_object(answer.content).get("status") or f"HTTP {answer.status_code}")
            return Health(state, await self._model_name(key) if answer.is_success else "")
        except httpx.HTTPError:
            return Health("unreachable")

    async def _model_name(self, key: str) -> str:
        answer = await self._client.get(
            f"{self._url}/v1/models", headers=_authorization(key), timeout=HEALTH_SECONDS
        )
        models = _object(answer.content).get("data") if answer.is_success else None
        match models:
            case [{"id": str(name)}, *_]:
                return name
            case _:
                return ""

    async def describe(self, call: Call, key: str) -> AsyncIterator[dict[str, Any]]:
        """The events of one streamed answer: start, delta …, end.

        Leaving the iteration closes the connection, which cancels the request at the server.
        Raises ApiError for a refusal, an error in the middle, and a stream without an end.
        """
        with contextlib.ExitStack() as files, _as_api_errors(self._url):
            request = self._client.stream(
                "POST",
                f"{self._url}/api/v1/describe",
                headers={"accept": "text/event-stream", **_authorization(key)},
                data={**dict(call.fields), "stream": "true"},
                files=[
                    ("image", (picture.name, files.enter_context(_opened(picture)), _type(picture)))
                    for picture in call.pictures
                ],
            )
            async with request as answer:
                if not answer.is_success:
                    await answer.aread()
                    raise ApiError(refusal(answer))
                async for event in _events(answer.aiter_lines()):
                    if event.get("type") == "error":
                        raise ApiError(str(event.get("error")))
                    yield event
                    if event.get("type") == "end":
                        return
        raise ApiError("the server ended the answer in the middle")


def refusal(answer: httpx.Response) -> str:
    """What a refusing answer says, with the time to wait where it names one."""
    error = _object(answer.content).get("error")
    if isinstance(error, dict):  # OpenAI's envelope, as some gateways use it everywhere
        error = error.get("message")
    if not isinstance(error, str):
        text = " ".join(answer.text.split())[:MAX_FOREIGN_TEXT]
        error = f"the server answered {answer.status_code} {answer.reason_phrase}: {text}"
    wait = answer.headers.get("retry-after", "")
    return f"{error}; try again in {wait} s" if wait.isdecimal() else error


@contextlib.contextmanager
def _as_api_errors(url: str) -> Iterator[None]:
    try:
        yield
    except httpx.ConnectError as e:
        raise ApiError(f"no server answers at {url}: is it running?") from e
    except httpx.TimeoutException as e:
        raise ApiError(f"the server at {url} did not answer in time") from e
    except httpx.HTTPError as e:
        raise ApiError(f"the connection to {url} broke ({type(e).__name__})") from e


async def _events(lines: AsyncIterator[str]) -> AsyncIterator[dict[str, Any]]:
    """Server-sent events whose data are JSON objects; comments are keep-alives."""
    data: list[str] = []
    async for line in lines:
        if line.startswith("data:"):
            data.append(line[5:])
        elif not line and data:
            yield _object("\n".join(data).encode())
            data = []


def _object(content: bytes) -> dict[str, Any]:
    """A JSON object, empty where it is anything else."""
    try:
        document = json.loads(content)
    except ValueError:
        return {}
    return document if isinstance(document, dict) else {}


def _authorization(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"} if key else {}


def _opened(picture: Picture) -> IO[bytes]:
    try:
        return picture.path.open("rb")
    except OSError as e:
        raise ApiError(f"{picture.name} is no longer kept here: add it again") from e


def _type(picture: Picture) -> str:
    return mimetypes.guess_type(picture.name)[0] or "application/octet-stream"
