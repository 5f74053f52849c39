"""The V2 protocol's HTTP routes: thin handlers between bodies, the model and its lifecycle.

What a body means is the codecs' business, what is said of the model is v2_model's.
Source: KServe's Open Inference Protocol, Triton's HTTP extensions.
"""

from __future__ import annotations

import asyncio
from contextlib import ExitStack, aclosing
from functools import partial
from http import HTTPStatus
from typing import TYPE_CHECKING, Final

from starlette.responses import JSONResponse, Response

from model.errors import ServingError, Unsupported
from model.serving.body import discard_body, read_body, until_disconnect
from model.serving.json_body import check_keys, parse_object
from model.serving.parameters import boolean
from model.serving.routing import Route
from model.serving.sse import EVENTS, EventStream, Outlet
from model.serving.v2_codec import (
    HEADER_LENGTH,
    decode_request,
    encode_response,
)
from model.serving.v2_generate import DeltaEvents, decode_generate, encode_answer
from model.serving.v2_model import (
    UNSUPPORTED,
    V2Model,
    check_model,
    headers_of,
    model_config,
    model_metadata,
    model_statistics,
    repository_index,
    server_metadata,
)
from model.serving.v2_tensors import LARGE_BYTES, Limits, check_one_sequence

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable

    from kserve import InferRequest, InferResponse
    from starlette.requests import Request

    from model.serving.lifecycle import Lifecycle
    from model.serving.routing import Handler
    from model.serving.tap import Tap
    from model.settings import Settings

MODEL_PATHS: Final = ("/v2/models/{model_name}", "/v2/models/{model_name}/versions/{version}")
TAG: Final = "v2"
UNSUPPORTED_ROUTES: Final = (
    ("/v2/repository/models/{model_name}/load", ("POST",), UNSUPPORTED["RepositoryModelLoad"]),
    ("/v2/repository/models/{model_name}/unload", ("POST",), UNSUPPORTED["RepositoryModelUnload"]),
    (
        "/v2/systemsharedmemory/{rest:path}",
        ("GET", "POST"),
        UNSUPPORTED["SystemSharedMemoryStatus"],
    ),
    ("/v2/cudasharedmemory/{rest:path}", ("GET", "POST"), UNSUPPORTED["CudaSharedMemoryStatus"]),
    ("/v2/trace/setting", ("GET", "POST"), UNSUPPORTED["TraceSetting"]),
    ("/v2/models/{model_name}/trace/setting", ("GET", "POST"), UNSUPPORTED["TraceSetting"]),
    ("/v2/logging", ("GET", "POST"), UNSUPPORTED["LogSettings"]),
)


def v2_routes(model: V2Model, lifecycle: Lifecycle, settings: Settings) -> list[Route]:
    """All V2 routes of one model."""
    about = _About(model, lifecycle, settings)
    infer = _Inference(model, lifecycle, settings)
    get, post = partial(Route, ("GET",), tag=TAG), partial(Route, ("POST",), tag=TAG)
    routes = [
        get("/v2", about.server),
        get("/v2/health/live", about.live),
        get("/v2/health/ready", about.ready),
        get("/v2/models", about.models),
        get("/v2/models/stats", about.all_statistics),
        post("/v2/repository/index", about.index),
    ]
    for path in MODEL_PATHS:
        routes += [
            get(path, about.metadata),
            get(f"{path}/ready", about.model_ready),
            get(f"{path}/config", about.config),
            get(f"{path}/stats", about.statistics),
            post(f"{path}/infer", infer.infer, inference=True),
            post(f"{path}/generate", infer.generate, inference=True),
            post(f"{path}/generate_stream", infer.generate_stream, inference=True),
        ]
    refused = (
        Route(methods, path, _unsupported(text)) for path, methods, text in UNSUPPORTED_ROUTES
    )
    return [*routes, *refused]


class _About:
    """What the server says of itself."""

    def __init__(self, model: V2Model, lifecycle: Lifecycle, settings: Settings) -> None:
        self._model = model
        self._lifecycle = lifecycle
        self._idle_seconds = settings.request.body_idle_seconds

    async def server(self, request: Request) -> Response:
        """The server's name, version and protocol extensions."""
        return JSONResponse(server_metadata())

    async def live(self, request: Request) -> Response:
        """200 while the process is worth keeping, else 503."""
        return _flag("live", self._lifecycle.live)

    async def ready(self, request: Request) -> Response:
        """200 while new requests should come here, else 503."""
        return _flag("ready", self._lifecycle.ready)

    async def models(self, request: Request) -> Response:
        """The names of the served model."""
        return JSONResponse({"models": list(self._model.names)})

    async def metadata(self, request: Request) -> Response:
        """The model's platform, versions, inputs and outputs."""
        return JSONResponse(model_metadata(self._checked(request)))

    async def model_ready(self, request: Request) -> Response:
        """200 while the model takes requests, else 503."""
        name = self._checked(request)
        return _flag("ready", self._lifecycle.ready, name=name)

    async def config(self, request: Request) -> Response:
        """The model's configuration, in Triton's form."""
        return JSONResponse(model_config(self._checked(request)))

    async def statistics(self, request: Request) -> Response:
        """Counts and times of the model's requests, in Triton's form."""
        return self._statistics(self._checked(request))

    async def all_statistics(self, request: Request) -> Response:
        """Counts and times of every model's requests; the server has one."""
        return self._statistics(self._model.names[0])

    async def index(self, request: Request) -> Response:
        """The served names with their state; `{"ready": true}` leaves out what is not ready."""
        body = await read_body(request, LARGE_BYTES, self._idle_seconds)
        asked = parse_object(body) if body else {}
        check_keys(asked, ("ready",), "the request")
        only_ready = boolean("ready", asked.get("ready", False))
        return JSONResponse(
            repository_index(self._model.names, self._lifecycle, only_ready=only_ready)
        )

    def _checked(self, request: Request) -> str:
        """The name in the path, which is one that is served, with its version."""
        name, version = _model_of(request)
        check_model(self._model, name, version)
        return name

    def _statistics(self, name: str) -> Response:
        return JSONResponse({"model_stats": [model_statistics(name, self._model.statistics())]})


class _Inference:
    """The routes that run the model."""

    def __init__(self, model: V2Model, lifecycle: Lifecycle, settings: Settings) -> None:
        self._model = model
        self._lifecycle = lifecycle
        self._limits = Limits.of(settings)
        self._max_body_bytes = settings.request.max_body_bytes
        self._idle_seconds = settings.request.body_idle_seconds

    async def infer(self, request: Request) -> Response:
        """Tensors in, tensors out: JSON, with the binary tensor data extension behind it."""
        await self._check(request)
        with self._lifecycle.request():
            decode = partial(decode_request, header_length=request.headers.get(HEADER_LENGTH))
            infer_request = await self._read(request, decode)
            response, headers = await self._answer(request, infer_request)
            encoded = encode_response(response, infer_request)
        return Response(encoded.body, headers={**headers, **encoded.headers})

    async def generate(self, request: Request) -> Response:
        """Plain JSON fields in, plain JSON fields out."""
        await self._check(request)
        with self._lifecycle.request():
            infer_request = await self._read(request, decode_generate)
            response, headers = await self._answer(request, infer_request)
            answer = encode_answer(response, infer_request)
        return JSONResponse(answer, headers=headers)

    async def generate_stream(self, request: Request) -> Response:
        """As generate, as server-sent events: one for each piece of text, as it comes."""
        await self._check(request)
        with ExitStack() as held:
            held.enter_context(self._lifecycle.request())
            infer_request = await self._read(request, decode_generate)
            check_one_sequence(infer_request)
            outlet = Outlet(request.scope, EVENTS)
            events = self._events(infer_request, outlet.tap)
            # The handler returns long before the stream's last byte.
            return EventStream(events, outlet, held.pop_all())

    async def _events(self, request: InferRequest, tap: Tap[bytes]) -> AsyncGenerator[bytes, None]:
        events = DeltaEvents(request)
        async with aclosing(self._model.stream(request, tap.after(events.event))) as deltas:
            async for delta in deltas:
                yield events.event(delta)

    async def _answer(
        self, request: Request, infer_request: InferRequest
    ) -> tuple[InferResponse, dict[str, str]]:
        answer = self._model(infer_request, headers_of(request.headers))
        return await until_disconnect(request.scope, request.receive, answer)

    async def _check(self, request: Request) -> None:
        """Refuse a request for a wrong model, or while none are taken, before its body is read."""
        try:
            check_model(self._model, *_model_of(request))
            self._lifecycle.check_serving()
        except ServingError:
            await discard_body(request, self._max_body_bytes)
            raise

    async def _read(self, request: Request, decode: Callable[..., InferRequest]) -> InferRequest:
        """The body as an InferRequest; the body itself is not kept."""
        body = await read_body(request, self._max_body_bytes, self._idle_seconds)
        name, version = _model_of(request)
        decode = partial(decode, body, model_name=name, model_version=version, limits=self._limits)
        return await asyncio.to_thread(decode) if len(body) > LARGE_BYTES else decode()


def _model_of(request: Request) -> tuple[str, str]:
    """Name and version in a path; the version may be left out, and is "" then."""
    return request.path_params["model_name"], request.path_params.get("version", "")


def _flag(flag: str, value: bool, **more: str) -> Response:
    status = HTTPStatus.OK if value else HTTPStatus.SERVICE_UNAVAILABLE
    return JSONResponse({**more, flag: value}, status)


def _unsupported(text: str) -> Handler:
    async def refuse(request: Request) -> Response:
        raise Unsupported(text)

    return refuse
