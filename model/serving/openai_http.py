"""OpenAI's HTTP routes, under /v1 and /openai/v1: thin handlers around chat and completions.

A request without a `model` is for the one that is served.
"""

from __future__ import annotations

import asyncio
import logging
import time
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING, Any, Final, TypeVar

from model.errors import InvalidRequest, ModelNotFound, ServingError, UnsupportedMediaType
from model.serving.body import Body, discard_body, read_body, until_disconnect
from model.serving.json_body import kind, parse_object
from model.serving.openai_answer import EVENTS, json_response
from model.serving.openai_chat import Chat
from model.serving.openai_completions import Completions
from model.serving.openai_errors import PREFIXES
from model.serving.openai_fields import ignored_header
from model.serving.openai_tokens import detokenize, tokenize
from model.serving.parameters import shown
from model.serving.routing import Route
from model.serving.sse import EventStream, Outlet

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from starlette.requests import Request
    from starlette.responses import Response

    from model.serving.kserve_model import Qwen3VLModel
    from model.serving.lifecycle import Lifecycle
    from model.settings import Settings

    Read = Callable[[dict[str, Any], Qwen3VLModel, str], Chat | Completions]
    Work = Callable[[dict[str, Any], Qwen3VLModel], Coroutine[Any, Any, dict[str, Any]]]

T = TypeVar("T")

logger = logging.getLogger(__name__)

TAG: Final = "openai"
OWNER: Final = "qwen3-vl-server"
JSON_TYPES: Final = ("application/json", "")
MAX_SHOWN_NAME: Final = 128
# Below this a body is parsed where it is: handing it to a thread takes longer.
LARGE_BODY_BYTES: Final = 256 * 1024


def openai_routes(model: Qwen3VLModel, lifecycle: Lifecycle, settings: Settings) -> list[Route]:
    """All of OpenAI's routes for one model, and vLLM's beside them."""
    handlers = _Handlers(model, lifecycle, settings)
    routes = []
    for prefix in PREFIXES:
        tag = TAG if prefix == PREFIXES[0] else None
        get, post = partial(Route, ("GET",), tag=tag), partial(Route, ("POST",), tag=tag)
        routes += [
            get(f"{prefix}/models", handlers.models),
            get(f"{prefix}/models/{{model_name:path}}", handlers.model),
            post(f"{prefix}/chat/completions", handlers.chat, inference=True),
            post(f"{prefix}/completions", handlers.completions, inference=True),
        ]
    for prefix in ("", *PREFIXES):
        post = partial(Route, ("POST",), tag=None if prefix else TAG)
        routes += [
            post(f"{prefix}/tokenize", handlers.tokenize),
            post(f"{prefix}/detokenize", handlers.detokenize),
        ]
    return routes


class _Handlers:
    """What answers them, for one model."""

    def __init__(self, model: Qwen3VLModel, lifecycle: Lifecycle, settings: Settings) -> None:
        self._model = model
        self._lifecycle = lifecycle
        self._limits = settings.request
        self._created = int(time.time())

    async def models(self, request: Request) -> Response:
        """Every name of the served model."""
        data = [self._description(name) for name in self._model.names]
        return json_response({"object": "list", "data": data})

    async def model(self, request: Request) -> Response:
        """One name of the served model."""
        name = self._known(request.path_params["model_name"])
        return json_response(self._description(name))

    async def chat(self, request: Request) -> Response:
        """Answer a conversation of text and pictures, whole or as server-sent events."""
        return await self._answer(request, Chat.read)

    async def completions(self, request: Request) -> Response:
        """Go on with a prompt, or several, as they are: no chat template, no pictures."""
        return await self._answer(request, Completions.read)

    async def tokenize(self, request: Request) -> Response:
        """The tokens of a prompt or of messages."""
        return await self._count(request, tokenize)

    async def detokenize(self, request: Request) -> Response:
        """The text of tokens."""
        return await self._count(request, detokenize)

    async def _answer(self, request: Request, read: Read) -> Response:
        def parse(body: Body) -> Chat | Completions:
            document = parse_object(body)
            return read(document, self._model, self._name(document))

        await self._check_serving(request)
        with ExitStack() as held:
            held.enter_context(self._lifecycle.request())
            asked = await self._parsed(request, parse)
            ignored = ignored_header(asked.fields.ignored)
            if ignored:
                logger.debug("%s: fields ignored: %s", asked.head.id, *ignored.values())
            if asked.fields.stream is None:
                answering = asked.answer(self._model)
                answer = await until_disconnect(request.scope, request.receive, answering)
                return json_response(answer, ignored)
            outlet = Outlet(request.scope, EVENTS)
            events = asked.events(self._model, outlet.tap)
            # The handler returns long before the stream's last byte.
            stream = EventStream(events, outlet, held.pop_all())
            stream.headers.update(ignored)
            return stream

    async def _count(self, request: Request, work: Work) -> Response:
        await self._check_serving(request)
        with self._lifecycle.request():
            document = await self._parsed(request, parse_object)
            self._name(document)
            counting = work(document, self._model)
            return json_response(await until_disconnect(request.scope, request.receive, counting))

    async def _check_serving(self, request: Request) -> None:
        try:
            self._lifecycle.check_serving()
        except ServingError:
            await discard_body(request, self._limits.max_body_bytes)
            raise

    async def _parsed(self, request: Request, parse: Callable[[Body], T]) -> T:
        """What the body says; a large one is read on a thread."""
        media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if media_type not in JSON_TYPES:
            await discard_body(request, self._limits.max_body_bytes)
            raise UnsupportedMediaType(
                f"Content-Type is {shown(media_type)}; it must be application/json"
            )
        body = await read_body(request, self._limits.max_body_bytes, self._limits.body_idle_seconds)
        if len(body) > LARGE_BODY_BYTES:
            return await asyncio.to_thread(parse, body)
        return parse(body)

    def _name(self, document: dict[str, Any]) -> str:
        """The model's name, as the client has it; the first of ours where it has none."""
        name = document.get("model")
        if name is None:
            return self._model.names[0]
        if not isinstance(name, str):
            raise InvalidRequest(f"model is {kind(name)}; it must be a string")
        return self._known(name)

    def _known(self, name: str) -> str:
        if name not in self._model.names:
            raise ModelNotFound(name[:MAX_SHOWN_NAME], self._model.names)
        return name

    def _description(self, name: str) -> dict[str, Any]:
        model = self._model
        limit = model.pipeline.engine.max_sequence_tokens if model.loaded else None
        return {
            "id": name,
            "object": "model",
            "created": self._created,
            "owned_by": OWNER,
            "root": model.names[0],
            "parent": None,
            "max_model_len": limit,
        }
