"""What a client can cause, each with its HTTP and gRPC status.

A `ServingError` is raised where the fault is seen and translated once, at a protocol's edge. Its
text
is for the client: it names the limit and the actual value, and never an internal address or path.
"""

from __future__ import annotations

from enum import IntEnum
from http import HTTPStatus


class GrpcStatus(IntEnum):
    """The gRPC codes used here (https://grpc.io/docs/guides/status-codes/), so that no floor needs
    grpc.
    """

    CANCELLED = 1
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    RESOURCE_EXHAUSTED = 8
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14


class ServingError(Exception):
    """A request that cannot be served; `str(error)` is what the client reads."""

    status: HTTPStatus = HTTPStatus.INTERNAL_SERVER_ERROR
    grpc_status: GrpcStatus = GrpcStatus.INTERNAL
    retry_after_seconds: int | None = None


class InvalidRequest(ServingError):
    """The request itself is wrong: sending it again cannot help."""

    status = HTTPStatus.BAD_REQUEST
    grpc_status = GrpcStatus.INVALID_ARGUMENT


class InvalidImage(InvalidRequest):
    """An image that cannot be decoded, or that is outside the limits."""


class PromptTooLong(InvalidRequest):
    """Prompt and image tokens do not fit the model's context."""

    def __init__(self, num_tokens: int, limit: int) -> None:
        super().__init__(f"prompt has {num_tokens} tokens; this model takes at most {limit}")


class BodyTooLarge(InvalidRequest):
    """A body over the limit, refused before it is read whole."""

    status = HTTPStatus.REQUEST_ENTITY_TOO_LARGE

    def __init__(self, num_bytes: int, limit: int) -> None:
        super().__init__(f"request body has at least {num_bytes} bytes; the limit is {limit}")


class BodyTimeout(InvalidRequest):
    """A body that stopped arriving; the connection would be held for nothing."""

    status = HTTPStatus.REQUEST_TIMEOUT
    grpc_status = GrpcStatus.DEADLINE_EXCEEDED

    def __init__(self, num_bytes: int, idle_seconds: float) -> None:
        super().__init__(
            f"request body stopped after {num_bytes} bytes; the limit is {idle_seconds:g} s "
            "without any"
        )


class SlowReader(ServingError):
    """The client takes nothing of its answer, and so cannot be told this either."""

    def __init__(self, seconds: float) -> None:
        super().__init__(f"nothing of the answer was read for {seconds:g} s, the limit")


class UnsupportedMediaType(InvalidRequest):
    """A body or an encoding of a kind that this route does not read."""

    status = HTTPStatus.UNSUPPORTED_MEDIA_TYPE


class NotFound(ServingError):
    """No such model, version or route."""

    status = HTTPStatus.NOT_FOUND
    grpc_status = GrpcStatus.NOT_FOUND


class ModelNotFound(NotFound):
    """A model name or version that this server does not serve."""

    def __init__(self, name: str, known: tuple[str, ...], version: str = "") -> None:
        what = f"version {version!r} of model {name!r}" if version else f"model {name!r}"
        super().__init__(f"{what} is not served here; known: {', '.join(known)}")


class Unsupported(ServingError):
    """A call of the protocol that this server does not offer."""

    status = HTTPStatus.NOT_IMPLEMENTED
    grpc_status = GrpcStatus.UNIMPLEMENTED


class NotReady(ServingError):
    """The model is loading, or the server is draining."""

    status = HTTPStatus.SERVICE_UNAVAILABLE
    grpc_status = GrpcStatus.UNAVAILABLE
    retry_after_seconds = 5


class QueueFull(ServingError):
    """More requests, or more image tokens, would wait than the queue may hold."""

    status = HTTPStatus.TOO_MANY_REQUESTS
    grpc_status = GrpcStatus.RESOURCE_EXHAUSTED
    retry_after_seconds = 1

    def __init__(
        self, num_queued: int, limit: int, what: str = "requests", num_new: int = 1
    ) -> None:
        more = f", {num_new} more came" if num_new > 1 else ""
        super().__init__(
            f"{num_queued} {what} are queued{more}; the limit is {limit}; try again later"
        )


class QueueTimeout(ServingError):
    """A request that waited too long for its first step."""

    status = HTTPStatus.GATEWAY_TIMEOUT
    grpc_status = GrpcStatus.DEADLINE_EXCEEDED

    def __init__(self, waited_seconds: float, limit_seconds: float) -> None:
        super().__init__(
            f"request waited {waited_seconds:.3g} s in the queue; the limit is {limit_seconds:g} s"
        )


class EngineFailure(ServingError):
    """The engine failed while it worked on this request; nothing the client sent caused it."""
