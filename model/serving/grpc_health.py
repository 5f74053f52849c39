"""grpc.health.v1 from the server's lifecycle: the standard probe of Kubernetes, Envoy and grpcurl.

The servicer of grpcio-health-checking is not used: when one of several watchers of a service
leaves, it forgets the others, who then never hear of a change.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from model.serving.lifecycle import Phase

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from model.serving.lifecycle import Lifecycle
    from model.serving.v2_proto import Message

STOPPING = (Phase.DRAINING, Phase.STOPPED)


class HealthServicer(health_pb2_grpc.HealthServicer):  # type: ignore[misc]
    """SERVING exactly while the lifecycle is ready, for each of the known services.

    services: names that may be asked for, "" for the server as a whole among them
    """

    def __init__(self, lifecycle: Lifecycle, services: frozenset[str]) -> None:
        self._lifecycle = lifecycle
        self._services = services
        self._changed = asyncio.Event()
        lifecycle.listen(self._on_phase)

    async def Check(self, request: Message, context: grpc.aio.ServicerContext) -> Message:
        """The status now; NOT_FOUND for an unknown service."""
        if request.service not in self._services:
            await context.abort(
                grpc.StatusCode.NOT_FOUND, f"service {request.service!r} is not known here"
            )
        return self._response(request.service)

    async def Watch(
        self, request: Message, context: grpc.aio.ServicerContext
    ) -> AsyncIterator[Message]:
        """The status now and at every change, until the server drains."""
        last = None
        while True:
            changed = self._changed
            response = self._response(request.service)
            if response.status != last:
                last = response.status
                yield response
            if self._lifecycle.phase in STOPPING:
                # An open watch would hold the server's stop for its whole grace.
                return
            await changed.wait()

    def _response(self, service: str) -> Message:
        statuses = health_pb2.HealthCheckResponse
        if service not in self._services:
            return statuses(status=statuses.SERVICE_UNKNOWN)
        return statuses(status=statuses.SERVING if self._lifecycle.ready else statuses.NOT_SERVING)

    def _on_phase(self, phase: Phase) -> None:
        # A fresh event each time: every watcher waits on the one it saw, so none misses a change.
        self._changed.set()
        self._changed = asyncio.Event()
