"""One process: HTTP and gRPC on one event loop, the model loading beside them, and an orderly end.

Signals are ours, not KServe's: it closes HTTP at once while gRPC still takes requests, so the two
cannot drain together.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING

from prometheus_client import exposition
from starlette.applications import Starlette
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import JSONResponse, Response

from model.checkpoint import CheckpointError
from model.serving.batch import batch_routes
from model.serving.body import install_error_handlers
from model.serving.describe import describe_routes
from model.serving.describer import Describer
from model.serving.docs import docs_routes
from model.serving.job_runner import JobRunner
from model.serving.jobs import MemoryJobStore
from model.serving.jobs_http import jobs_routes
from model.serving.lifecycle import Lifecycle, Phase
from model.serving.loop_lag import LoopLag
from model.serving.metrics import Requests, build_registry
from model.serving.openai_errors import error_body
from model.serving.openai_http import openai_routes
from model.serving.request_id import RequestIds
from model.serving.routing import Route, inference_first
from model.serving.transport.limits import ConnectionLimits
from model.serving.transport.server import HttpServer
from model.serving.ui_link import ui_routes
from model.serving.v2_grpc import build_grpc_server
from model.serving.v2_http import v2_routes

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from prometheus_client import CollectorRegistry
    from starlette.requests import Request

    from model.serving.jobs import JobStore
    from model.serving.kserve_model import Qwen3VLModel
    from model.settings import JobSettings, Settings

logger = logging.getLogger(__name__)

# After the drain's time is up, cancelled requests get this long to tell their clients.
STRAGGLER_SECONDS = 2.0


class StartError(Exception):
    """What keeps the server from starting; its text is for the operator."""


class ListenError(StartError):
    """An address that cannot be listened on."""


def build_app(
    model: Qwen3VLModel,
    lifecycle: Lifecycle,
    settings: Settings,
    jobs: JobRunner | None = None,
    lag: LoopLag | None = None,
    requests: Requests | None = None,
) -> Starlette:
    """All HTTP routes; those of jobs only where something runs them."""
    describer = Describer(model)
    routes = [
        *_health_routes(lifecycle, build_registry(model, lifecycle, jobs, lag, requests)),
        *v2_routes(model, lifecycle, settings),
        *describe_routes(describer, lifecycle, settings),
        *batch_routes(describer, lifecycle, settings),
        *(jobs_routes(jobs, describer, lifecycle, settings) if jobs is not None else ()),
        *openai_routes(model, lifecycle, settings),
        *ui_routes(settings.server.ui_url),
        *docs_routes(settings),
    ]
    app = Starlette(routes=inference_first(routes))
    if requests is not None:
        requests.http.expect(app)
    install_error_handlers(app, error_body)
    if settings.server.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.server.cors_origins,
            allow_methods=["GET", "POST", "DELETE"],
            allow_headers=["*"],
            expose_headers=["X-Request-Id", "X-Ignored-Fields", "Retry-After"],
        )
    return app


def _health_routes(lifecycle: Lifecycle, registry: CollectorRegistry) -> list[Route]:
    async def metrics(request: Request) -> Response:
        """What Prometheus reads."""
        encoder, content_type = exposition.choose_encoder(request.headers.get("accept", ""))
        return Response(encoder(registry), headers={"content-type": content_type})

    async def health(request: Request) -> Response:
        """Whether requests are served: the phase, with 200 when ready and 503 when not."""
        return JSONResponse({"status": lifecycle.phase.value}, 200 if lifecycle.ready else 503)

    return [
        Route(("GET",), "/metrics", metrics, tag="health"),
        Route(("GET",), "/health", health, tag="health"),
    ]


def build_job_store(settings: JobSettings) -> JobStore:
    """Where jobs are kept; raises StartError."""
    if settings.redis_url is None:
        return MemoryJobStore(
            keep_seconds=settings.keep_seconds,
            max_jobs=settings.max_kept,
            max_result_bytes=settings.max_result_bytes,
        )
    try:
        from model.serving.jobs_redis import RedisJobStore
    except ImportError as e:
        raise StartError(
            "--jobs.redis_url needs the extra redis: pip install 'qwen3-vl-server[redis]'"
        ) from e
    try:
        return RedisJobStore(
            settings.redis_url.get_secret_value(),
            keep_seconds=settings.keep_seconds,
            lease_seconds=settings.lease_seconds,
        )
    except ValueError as e:
        # Not the URL itself: it may hold a password.
        raise StartError("--jobs.redis_url must begin with redis://, rediss:// or unix://") from e


def _abandonable(work: Callable[[], object]) -> asyncio.Future[None]:
    """Do it on a thread that nobody waits for at the end; asyncio's own hold the process up."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[None] = loop.create_future()

    def run() -> None:
        error: Exception | None = None
        try:
            work()
        except Exception as e:
            error = e
        with suppress(RuntimeError):  # the loop has closed: nobody asks any more
            loop.call_soon_threadsafe(tell, error)

    def tell(error: Exception | None) -> None:
        if error is None:
            done.set_result(None)
        else:
            done.set_exception(error)

    threading.Thread(target=run, name="loading", daemon=True).start()
    return done


class Server:
    """The composition of everything that listens, from first to last.

    http_socket: bound already, so that a taken port is told before anything is loaded
    """

    def __init__(self, model: Qwen3VLModel, settings: Settings, http_socket: socket.socket) -> None:
        self._model = model
        self._settings = settings
        self._http_socket = http_socket
        self._stop = asyncio.Event()
        self.lifecycle = Lifecycle(stalled=lambda: model.stalled)
        self._jobs = JobRunner(
            Describer(model), build_job_store(settings.jobs), self.lifecycle, settings.jobs
        )
        requests = Requests()
        self._grpc = build_grpc_server(model, self.lifecycle, settings, requests.grpc.ended)
        self._lag = LoopLag()
        app = build_app(model, self.lifecycle, settings, self._jobs, self._lag, requests)
        named = RequestIds(app, requests.http.ended)
        self._http = HttpServer(named, ConnectionLimits.of(settings))
        self.http_port: int = http_socket.getsockname()[1]
        self.grpc_port = self._bind_grpc()

    def _bind_grpc(self) -> int:
        address = f"{self._settings.server.host}:{self._settings.server.grpc_port}"
        try:
            port = int(self._grpc.add_insecure_port(address))
        except RuntimeError as e:
            raise ListenError(f"cannot listen on {address} (gRPC): is it in use?") from e
        if port == 0:
            raise ListenError(f"cannot listen on {address} (gRPC): is it in use?")
        return port

    async def run(self, invitation: str, started: float) -> int:
        """Serve until a signal, then drain; the process's exit status.

        invitation: a first request to paste, logged once ready
        started: when the process began, on time.monotonic
        """
        self._own_signals()
        await self._grpc.start()
        await self._http.start(self._http_socket)
        self._lag.start()
        host = self._settings.server.host
        logger.info("listening  http %s:%d, grpc %s:%d", host, self.http_port, host, self.grpc_port)
        if await self._load():
            logger.info("ready      in %.1f s; try:\n  %s", time.monotonic() - started, invitation)
            await self._stop.wait()
            await self._drain()
        await self._jobs.close()
        await self._grpc.stop(grace=STRAGGLER_SECONDS)
        await self._http.stop(STRAGGLER_SECONDS)
        self._lag.stop()
        await asyncio.to_thread(self._model.stop)
        if self.lifecycle.phase is Phase.FAILED:
            return 1
        self.lifecycle.enter(Phase.STOPPED)
        logger.info("stopped")
        return 0

    async def _load(self) -> bool:
        """Load beside the listeners; False when it failed or a signal came first."""
        loading = _abandonable(self._model.load)
        stopping = asyncio.create_task(self._stop.wait())
        await asyncio.wait((loading, stopping), return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        if not loading.done():
            return False
        try:
            await loading
            await self._model.start_engine()
        except CheckpointError as e:
            logger.error("cannot serve: %s", e)
        except Exception:
            logger.exception("cannot serve: loading failed")
        else:
            self.lifecycle.enter(Phase.READY)
            return True
        self.lifecycle.enter(Phase.FAILED)
        return False

    def _own_signals(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._on_signal, number)

    def _on_signal(self, number: signal.Signals) -> None:
        if self._stop.is_set():
            logger.warning("second %s: stopping at once", signal.Signals(number).name)
            # The default action of the second signal: the operator wants it gone.
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
            # Still here: process 1 of a container is not ended by a default action.
            os._exit(128 + number)
        logger.info("%s: draining", signal.Signals(number).name)
        self._stop.set()

    async def _drain(self) -> None:
        """Unready but serving, then refusing, until the open requests are answered."""
        server = self._settings.server
        self.lifecycle.enter(Phase.UNREADY)
        self._http.leave()
        await asyncio.sleep(server.unready_seconds)
        self.lifecycle.enter(Phase.DRAINING)
        self._http.go_away()
        if await self.lifecycle.wait_idle(server.drain_seconds):
            return
        logger.warning(
            "%d requests did not finish in %.0f s and are cancelled",
            self.lifecycle.num_open,
            server.drain_seconds,
        )
        await self._jobs.interrupt()
        self._model.pipeline.engine.cancel_all()
        await self.lifecycle.wait_idle(STRAGGLER_SECONDS)
