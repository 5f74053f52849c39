"""The V2 protocol over gRPC: Triton's superset of the `inference` service, health and reflection.

Every method is served through one wrapper, which translates errors; what a message means is
v2_grpc_codec's business.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import aclosing, contextmanager
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import grpc
from grpc_health.v1 import health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from model.errors import ServingError, SlowReader, Unsupported
from model.serving.body import INTERNAL_ERROR
from model.serving.grpc_health import STOPPING, HealthServicer
from model.serving.v2_grpc_codec import (
    FINAL,
    DeltaMessages,
    decode_message,
    empty_message,
    encode_message,
    read_request,
    wants_final_response,
)
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
from model.serving.v2_proto import (
    HEALTH_SERVICE,
    REFLECTION_SERVICE,
    SERVICE,
    ReflectedPool,
    from_dict,
    input_class,
    message_class,
    parse,
    service_methods,
)
from model.serving.v2_tensors import LARGE_BYTES, Limits, check_one_sequence

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
    from collections.abc import Sequence as Seq

    from kserve import InferRequest

    from model.serving.lifecycle import Lifecycle, Phase
    from model.serving.v2_proto import Message, Method
    from model.settings import Settings

    Context: TypeAlias = grpc.aio.ServicerContext
    Call: TypeAlias = Callable[[Any, Context], Awaitable[Any]]
    Options: TypeAlias = tuple[tuple[str, int], ...]
    # Told of each request that has ended: method, name of its code.
    Ended: TypeAlias = Callable[[str, str], None]

logger = logging.getLogger(__name__)

STATUS_CODES: Final = {code.value[0]: code for code in grpc.StatusCode}
# What a message may need beside its tensors: names, shapes, parameters.
MESSAGE_OVERHEAD_BYTES: Final = 64 * 1024
RAW_METHODS: Final = ("ModelInfer",)
SHUTTING_DOWN: Final = "the server is shutting down; try another replica"


def build_grpc_server(
    model: V2Model, lifecycle: Lifecycle, settings: Settings, ended: Ended
) -> grpc.aio.Server:
    """A grpc.aio server with all services, no port bound yet; needs the running event loop."""
    max_bytes = settings.request.max_body_bytes + MESSAGE_OVERHEAD_BYTES
    server = grpc.aio.server(
        options=(
            *_connection_age(settings.server.unready_seconds),
            ("grpc.max_receive_message_length", max_bytes),
            ("grpc.max_send_message_length", max_bytes),
            # Else a second server on the same port starts silently and takes half the connections.
            ("grpc.so_reuseport", 0),
            # Load balancers keep idle connections alive; by default that is punished with GOAWAY.
            ("grpc.keepalive_permit_without_calls", 1),
            ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
        )
    )
    servicer = V2Servicer(model, lifecycle, settings, ended)
    handlers = {method.name: _handler(servicer, method, ended) for method in service_methods()}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
    services = frozenset({"", SERVICE, *model.names})
    health_pb2_grpc.add_HealthServicer_to_server(HealthServicer(lifecycle, services), server)
    names = (SERVICE, HEALTH_SERVICE, REFLECTION_SERVICE)
    reflection.enable_server_reflection(names, server, pool=ReflectedPool())
    return server


def _connection_age(unready_seconds: float) -> Options:
    """Let clients renew their connections, so that none still has one when this server refuses.

    A kept connection stays with its server, whatever load balancers have heard since; gRPC tells a
    client to leave only at a connection's age, or in a stop that cancels what is just being sent.
    Half the time is for the news that this server is unready to spread, half for connections to
    reach their age, which gRPC spreads by a tenth. Calls that run are not limited by it.
    """
    if unready_seconds == 0:
        return ()
    return (("grpc.max_connection_age_ms", int(unready_seconds * 1000 / 2)),)


class V2Servicer:
    """The methods of GRPCInferenceService, from parsed message to message; raise ServingError."""

    def __init__(
        self, model: V2Model, lifecycle: Lifecycle, settings: Settings, ended: Ended
    ) -> None:
        self._model = model
        self._ended = ended
        self._lifecycle = lifecycle
        self._limits = Limits.of(settings)
        self._max_in_flight = settings.engine.max_sequences
        self._send_idle_seconds = settings.request.send_idle_seconds
        self._draining = asyncio.Event()
        lifecycle.listen(self._on_phase)
        self._on_phase(lifecycle.phase)

    async def ServerLive(self, request: Message, context: Context) -> Message:
        """Whether the process is worth keeping."""
        return message_class("ServerLiveResponse")(live=self._lifecycle.live)

    async def ServerReady(self, request: Message, context: Context) -> Message:
        """Whether new requests should come here."""
        return message_class("ServerReadyResponse")(ready=self._lifecycle.ready)

    async def ModelReady(self, request: Message, context: Context) -> Message:
        """Whether the model takes requests."""
        check_model(self._model, request.name, request.version)
        return message_class("ModelReadyResponse")(ready=self._lifecycle.ready)

    async def ServerMetadata(self, request: Message, context: Context) -> Message:
        """The server's name, version and protocol extensions."""
        return from_dict("ServerMetadataResponse", server_metadata())

    async def ModelMetadata(self, request: Message, context: Context) -> Message:
        """The model's platform, versions, inputs and outputs."""
        check_model(self._model, request.name, request.version)
        return from_dict("ModelMetadataResponse", model_metadata(request.name))

    async def ModelConfig(self, request: Message, context: Context) -> Message:
        """The model's configuration."""
        check_model(self._model, request.name, request.version)
        return from_dict("ModelConfigResponse", {"config": model_config(request.name)})

    async def ModelStatistics(self, request: Message, context: Context) -> Message:
        """Counts and times of the named model's requests, or of all of them."""
        name = request.name or self._model.names[0]
        check_model(self._model, name, request.version)
        entry = model_statistics(name, self._model.statistics())
        return from_dict("ModelStatisticsResponse", {"model_stats": [entry]})

    async def RepositoryIndex(self, request: Message, context: Context) -> Message:
        """The served names with their state."""
        index = repository_index(self._model.names, self._lifecycle, only_ready=request.ready)
        return from_dict("RepositoryIndexResponse", {"models": index})

    async def ModelInfer(self, data: bytes, context: Context) -> Message:
        """Tensors in, tensors out; a client that cancels cancels the model's call."""
        with self._lifecycle.request():
            infer_request = await self._decode(*read_request(data))
            pairs = {key: str(value) for key, value in context.invocation_metadata() or ()}
            response, headers = await self._model(infer_request, headers_of(pairs))
            if headers:
                context.set_trailing_metadata(tuple(headers_of(headers).items()))
            return encode_message(response, infer_request)

    async def ModelStreamInfer(self, requests: AsyncIterator[bytes], context: Context) -> None:
        """Answer every request of a stream by its text deltas; its faults are error_message.

        Each request's responses come in order, those of different requests as they come.
        """
        slots, write_lock = asyncio.Semaphore(self._max_in_flight), asyncio.Lock()

        async def write(message: Message) -> None:
            async with write_lock:
                await send(context, message, self._send_idle_seconds)

        async def answer(request: bytes) -> None:
            try:
                await self._answer(request, write)
            finally:
                slots.release()

        try:
            async with asyncio.TaskGroup() as group:
                while True:
                    # Taken before reading: a client that sends faster is held back by flow control.
                    await slots.acquire()
                    request = await self._next(requests)
                    if request is None:
                        break
                    group.create_task(answer(request))
        except* SlowReader as slow:
            # gRPC takes no status behind a message that waits, and keeps the message until the
            # client goes; all that is ours ends here.
            logger.warning("a stream is given up: %s", slow.exceptions[0])
            raise asyncio.CancelledError from None
        except* ClientGone:
            raise asyncio.CancelledError from None
        if self._draining.is_set():
            await context.abort(grpc.StatusCode.UNAVAILABLE, SHUTTING_DOWN)

    async def _next(self, requests: AsyncIterator[bytes]) -> bytes | None:
        """The stream's next request; None at its end or once the server drains."""
        reading = asyncio.ensure_future(anext(requests, None))
        draining = asyncio.ensure_future(self._draining.wait())
        try:
            await asyncio.wait((reading, draining), return_when=asyncio.FIRST_COMPLETED)
            return reading.result() if reading.done() else None
        finally:
            for task in (reading, draining):
                task.cancel()
            await asyncio.gather(reading, draining, return_exceptions=True)

    async def _answer(self, data: bytes, write: Callable[[Message], Awaitable[None]]) -> None:
        """Stream one request's responses, or one that says what is wrong."""
        stream_response = message_class("ModelStreamInferResponse")
        head = message_class("ModelInferResponse")()
        wants_final = False
        try:
            with _counted("ModelStreamInfer", self._ended):
                message, raws = read_request(data)
                head.model_name, head.id = message.model_name, message.id
                wants_final = wants_final_response(message)
                with self._lifecycle.request():
                    request = await self._decode(message, raws)
                    check_one_sequence(request)
                    head = empty_message(request)
                    messages = DeltaMessages(request, wants_final)
                    async with aclosing(self._model.stream(request)) as deltas:
                        async for delta in deltas:
                            await write(messages.message(delta))
                if wants_final:
                    head.parameters[FINAL].bool_param = True
                    await write(stream_response(infer_response=head))
        except (SlowReader, ClientGone):
            raise
        except Exception as e:  # one request's failure must not end the others' stream
            text = str(e) if isinstance(e, ServingError) else INTERNAL_ERROR
            if not isinstance(e, ServingError):
                logger.exception("a streamed request failed")
            if wants_final:
                head.parameters[FINAL].bool_param = True
            await write(stream_response(error_message=text, infer_response=head))

    async def _decode(self, message: Message, raws: Seq[memoryview]) -> InferRequest:
        check_model(self._model, message.model_name, message.model_version)
        if sum(map(len, raws)) > LARGE_BYTES:
            return await asyncio.to_thread(decode_message, message, raws, self._limits)
        return decode_message(message, raws, self._limits)

    def _on_phase(self, phase: Phase) -> None:
        if phase in STOPPING:
            self._draining.set()


class ClientGone(Exception):
    """A stream's client has left: nobody can be told anything."""


async def send(context: Context, message: Message, idle_seconds: float) -> None:
    """Write a stream's message; raises SlowReader, ClientGone."""
    try:
        async with asyncio.timeout(idle_seconds):
            await context.write(message)
    except TimeoutError as e:
        raise SlowReader(idle_seconds) from e
    except grpc.aio.BaseError as e:
        # The call has ended, and gRPC has not yet come to cancelling what answers it.
        raise ClientGone from e


def _handler(servicer: V2Servicer, method: Method, ended: Ended) -> grpc.RpcMethodHandler:
    """The method's gRPC handler; parses inside, so that a broken message is the client's fault.

    A stream's requests are counted by its method, each for itself.
    """
    call = getattr(servicer, method.name, None) or _refusing(method.name)
    if method.client_streaming:
        return grpc.stream_stream_rpc_method_handler(
            _translating(call), response_serializer=_serialize
        )

    async def unary(data: bytes, context: Context) -> Message:
        with _counted(method.name, ended):
            # A request with pictures is read by its method: they are not copied into a message.
            request = data if method.name in RAW_METHODS else parse(input_class(method), data)
            return await call(request, context)

    return grpc.unary_unary_rpc_method_handler(_translating(unary), response_serializer=_serialize)


def _refusing(name: str) -> Call:
    async def refuse(request: Message, context: Context) -> Message:
        raise Unsupported(UNSUPPORTED[name])

    return refuse


@contextmanager
def _counted(method: str, ended: Ended) -> Iterator[None]:
    """What happens inside is one request; its error tells the code."""
    code = grpc.StatusCode.OK
    try:
        yield
    except BaseException as e:
        code = code_of(e)
        raise
    finally:
        ended(method, code.name)


def code_of(error: BaseException) -> grpc.StatusCode:
    """The status that a request ends with by an error."""
    match error:
        case asyncio.CancelledError() | SlowReader() | ClientGone():
            return grpc.StatusCode.CANCELLED
        case ServingError():
            return STATUS_CODES[int(error.grpc_status)]
        case _:
            return grpc.StatusCode.INTERNAL


def _translating(
    call: Call,
) -> Call:
    """The call with its errors as gRPC statuses: the one place where they are translated."""

    async def translated(request: Message, context: Context) -> Message:
        try:
            return await call(request, context)
        except grpc.aio.AbortError:
            raise
        except ServingError as e:
            if e.retry_after_seconds is not None:
                context.set_trailing_metadata((("retry-after", str(e.retry_after_seconds)),))
            code, text = code_of(e), str(e)
        except Exception as e:
            logger.exception("a gRPC call failed")
            code, text = code_of(e), INTERNAL_ERROR
        await context.abort(code, text)

    return translated


def _serialize(message: Message) -> bytes:
    return bytes(message.SerializeToString())
