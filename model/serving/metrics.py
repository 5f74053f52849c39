"""What Prometheus reads: the engine's plain numbers as metric families, made when scraped.

A scrape touches no lock and no tensor, so a router may poll it twenty times a second. The `vllm:`
families are the
names the Gateway API endpoint picker looks for (gateway-api-inference-extension, model server
protocol).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from kserve.metrics import POST_HIST_TIME, PRE_HIST_TIME, PREDICT_HIST_TIME
from prometheus_client import (
    CollectorRegistry,
    Counter,
    GCCollector,
    PlatformCollector,
    ProcessCollector,
)
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
)
from prometheus_client.registry import Collector

from model import __version__
from model.request import FinishReason
from model.serving.lifecycle import Phase
from model.serving.routing import routes_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from prometheus_client.core import Metric
    from starlette.applications import Starlette
    from starlette.types import Scope

    from model.engine.stats import EngineStats, Histogram
    from model.serving.job_runner import JobRunner
    from model.serving.kserve_model import Qwen3VLModel
    from model.serving.lifecycle import Lifecycle
    from model.serving.loop_lag import LoopLag

PREFIX = "qwen3vl"
# Stands for a path or method that no route has: clients make up any, and a series stays for ever.
UNKNOWN = "none"
# Answers of every route that asks the model, told as 0 before the first: a rate needs two samples.
EXPECTED_STATUSES = (200, 500, 503)
EXPECTED_CODES = ("OK", "INTERNAL", "UNAVAILABLE")
INFER_METHODS = ("ModelInfer", "ModelStreamInfer")


class HttpRequests:
    """HTTP requests that have ended, by method, route and status."""

    def __init__(self) -> None:
        self.counter = Counter(
            f"{PREFIX}_http_requests",
            "HTTP requests by route and status; status 0 where the client left before its answer",
            ["method", "route", "status"],
            registry=None,
        )

    def expect(self, app: Starlette) -> None:
        """Begin the series of what an app's routes will be asked."""
        for route in routes_of(app):
            if "POST" in route.methods:
                for status in EXPECTED_STATUSES:
                    self.counter.labels("POST", route.path_format, status)

    def ended(self, scope: Scope, status: int | None) -> None:
        """Count one; scope: as the app's router left it."""
        route = scope.get("route")
        known = scope["method"] in (getattr(route, "methods", None) or ())
        method = scope["method"] if known else UNKNOWN
        self.counter.labels(method, getattr(route, "path_format", UNKNOWN), status or 0).inc()


class GrpcRequests:
    """Requests of the inference service over gRPC that have ended, by method and code."""

    def __init__(self) -> None:
        self.counter = Counter(
            f"{PREFIX}_grpc_requests",
            "gRPC requests by method and code, each of a stream for itself; CANCELLED where the "
            "client left before its answer",
            ["method", "code"],
            registry=None,
        )
        for method in INFER_METHODS:
            for code in EXPECTED_CODES:
                self.counter.labels(method, code)

    def ended(self, method: str, code: str) -> None:
        """Count one; code: a name of gRPC's."""
        self.counter.labels(method, code).inc()


@dataclass(frozen=True)
class Requests:
    """The requests of both ports."""

    http: HttpRequests = field(default_factory=HttpRequests)
    grpc: GrpcRequests = field(default_factory=GrpcRequests)


class ServerCollector(Collector):
    """Server, engine and model figures; label model_name is the first name served."""

    def __init__(
        self,
        model: Qwen3VLModel,
        lifecycle: Lifecycle,
        jobs: JobRunner | None = None,
        lag: LoopLag | None = None,
    ) -> None:
        self._model = model
        self._lifecycle = lifecycle
        self._jobs = jobs
        self._lag = lag

    def describe(self) -> list[Metric]:
        """Nothing: the families are made on collect, and registering must not call it early."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Every family of now."""
        yield InfoMetricFamily(f"{PREFIX}_build", "Server version", {"version": __version__})
        phases = GaugeMetricFamily(f"{PREFIX}_phase", "1 for the current phase", labels=["phase"])
        for phase in Phase:
            phases.add_metric([phase.value], float(self._lifecycle.phase is phase))
        yield phases
        yield self._gauge("open_requests", "Requests not yet answered", self._lifecycle.num_open)
        if self._jobs is not None:
            yield self._gauge(
                "unfinished_jobs", "Jobs that wait or run here", self._jobs.num_unfinished
            )
        if self._lag is not None:
            yield self._histogram(
                "event_loop_lag_seconds", "How late the event loop is", self._lag.histogram
            )
        if self._model.load_seconds is not None:
            yield self._gauge(
                "model_load_seconds", "Seconds from start to loaded", self._model.load_seconds
            )
        if self._model.loaded:
            yield from self._engine(self._model.pipeline.engine.stats)

    def _engine(self, stats: EngineStats) -> Iterator[Metric]:
        waiting = self._model.pipeline.engine.num_queued
        yield self._gauge("queued_sequences", "Sequences that wait for blocks", waiting)
        yield self._gauge(
            "queued_image_tokens",
            "Image tokens of those",
            self._model.pipeline.engine.num_queued_image_tokens,
        )
        yield self._gauge("running_sequences", "Sequences that hold blocks", stats.num_running)
        yield self._gauge("kv_cache_used_ratio", "Share of KV blocks held", stats.kv_used_ratio)
        yield self._gauge("kv_cache_blocks", "KV blocks in all", stats.num_blocks)
        yield self._counter("engine_steps", "Engine steps", stats.steps)
        yield self._counter("engine_step_seconds", "Seconds spent in steps", stats.step_seconds)
        yield self._counter(
            "prompt_tokens", "Prompt tokens of started answers", stats.prompt_tokens
        )
        yield self._counter("completion_tokens", "Tokens generated", stats.completion_tokens)
        yield self._counter("images", "Images encoded", stats.images)
        yield self._counter(
            "prefix_query_tokens", "Tokens looked up in the prefix cache", stats.prefix_query_tokens
        )
        yield self._counter(
            "prefix_hit_tokens", "Tokens found in the prefix cache", stats.prefix_hit_tokens
        )
        yield self._counter("preemptions", "Sequences preempted", stats.preemptions)
        yield self._counter(
            "discarded_tokens", "Tokens computed past an end, never told", stats.discarded_tokens
        )
        yield self._counter("expired_sequences", "Sequences that waited too long", stats.expired)
        yield self._counter("out_of_memory_steps", "Steps that did not fit", stats.num_oom)
        finished = CounterMetricFamily(
            f"{PREFIX}_finished_sequences",
            "Sequences finished",
            labels=["model_name", "finish_reason"],
        )
        for reason in FinishReason:
            finished.add_metric([self._model.name, reason.value], stats.finished[reason.value])
        yield finished
        yield self._histogram("queue_seconds", "Arrival to admission", stats.queue)
        yield self._histogram("time_to_first_token_seconds", "Arrival to first token", stats.ttft)
        yield self._histogram("inter_token_latency_seconds", "Between two tokens", stats.itl)
        yield self._histogram("request_seconds", "Arrival to end of a sequence", stats.request)
        yield from self._picker_families(stats, waiting)

    def _picker_families(self, stats: EngineStats, waiting: int) -> Iterator[Metric]:
        for name, text, value in (
            ("vllm:num_requests_waiting", "Queued sequences", waiting),
            ("vllm:num_requests_running", "Running sequences", stats.num_running),
            ("vllm:kv_cache_usage_perc", "KV use, 0 to 1", stats.kv_used_ratio),
        ):
            family = GaugeMetricFamily(name, text, labels=["model_name"])
            family.add_metric([self._model.name], value)
            yield family
        config = GaugeMetricFamily(
            "vllm:cache_config_info", "KV cache layout", labels=["block_size", "num_gpu_blocks"]
        )
        config.add_metric([str(stats.block_size), str(stats.num_blocks)], 1.0)
        yield config

    def _gauge(self, name: str, text: str, value: float) -> GaugeMetricFamily:
        family = GaugeMetricFamily(f"{PREFIX}_{name}", text, labels=["model_name"])
        family.add_metric([self._model.name], value)
        return family

    def _counter(self, name: str, text: str, value: float) -> CounterMetricFamily:
        family = CounterMetricFamily(f"{PREFIX}_{name}", text, labels=["model_name"])
        family.add_metric([self._model.name], value)
        return family

    def _histogram(self, name: str, text: str, histogram: Histogram) -> HistogramMetricFamily:
        family = HistogramMetricFamily(f"{PREFIX}_{name}", text, labels=["model_name"])
        family.add_metric([self._model.name], histogram.cumulative(), histogram.sum)
        return family


def build_registry(
    model: Qwen3VLModel,
    lifecycle: Lifecycle,
    jobs: JobRunner | None = None,
    lag: LoopLag | None = None,
    requests: Requests | None = None,
) -> CollectorRegistry:
    """A registry of this server's figures, the time KServe's hooks took, and the process's own."""
    registry = CollectorRegistry()
    for hook in (PRE_HIST_TIME, PREDICT_HIST_TIME, POST_HIST_TIME):
        registry.register(hook)
    ProcessCollector(registry=registry)
    PlatformCollector(registry=registry)
    GCCollector(registry=registry)
    registry.register(ServerCollector(model, lifecycle, jobs, lag))
    if requests is not None:
        registry.register(requests.http.counter)
        registry.register(requests.grpc.counter)
    return registry
