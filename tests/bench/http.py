"""What the way from a socket to the engine costs: streams, the event loop's lag, large bodies.

The event loop is the server's main thread: what it uses of a processor is read from the kernel, how
late it comes from the server's own metric.
"""

from __future__ import annotations

import base64
import io
import json
import statistics
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import grpc
import httpx
import numpy as np
import uvloop
from PIL import Image

from tests.bench.client import MODEL_NAME
from tests.bench.engine import InProcessEngine
from tests.bench.first_bytes import delays, stamped_server
from tests.bench.light_client import stream
from tests.bench.machine import dtypes
from tests.bench.rounds import alternate, progress
from tests.bench.servers import free_port, our_server, running
from tests.bench.tables import Pair, Row, Section, at_least
from tests.bench.work import CHAT, STAGGERED
from tests.server.grpc_client import OPTIONS, Stub, infer_request, prefixed

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.bench.first_bytes import FirstTokens
    from tests.bench.rounds import Plan
    from tests.bench.servers import RunningServer
    from tests.bench.streams import Streams

# As many as the server lets run at once by default, for each of the plan's concurrency of 16.
STREAMS_PER_CONCURRENCY: Final = 4
# Each place is taken so often: the first streams come all at once, the others as places fall free.
TURNS: Final = 3
# For each of the plan's: a machine moves by more from round to round than what is looked for.
ROUNDS_PER_ROUND: Final = 2
SERVER_OVER_ENGINE: Final = at_least(0.97)
MORE_TTFT_MS: Final = 5.0
NUM_ALONE: Final = 25
ALONE: Final = replace(CHAT, num_tokens=4)
NUM_LAG_STREAMS: Final = 256
LAG_P99_MS: Final = 10.0
LAG: Final = "qwen3vl_event_loop_lag_seconds_bucket"
LARGE_MS: Final = 5.0
NUM_LARGE: Final = 15
# A PNG of noise does not compress: 1,840 x 1,520 of three bytes are 8 MiB.
LARGE_SIZE: Final = (1840, 1520)
SMALL_SIZE: Final = (16, 16)
NANOSECONDS_PER_MS: Final = 1e6


@dataclass(frozen=True, slots=True)
class Figure:
    """A line of this section's table. limit: the most that is allowed, None for no target"""

    work: str
    figure: str
    ms: float
    limit: float | None = None
    remark: str = ""

    def __str__(self) -> str:
        target = "" if self.limit is None else f"≤ {self.limit:g} ms"
        met = "" if self.limit is None else "yes" if self.ms <= self.limit else "**no**"
        return f"| {self.work} | {self.figure} | {self.ms:.2f} ms{self.remark} | {target} | {met} |"


def measure_http(plan: Plan) -> Section:
    """The server over its engine, and the event loop under streams and under large bodies."""
    rows: list[Row] = []
    figures: list[Figure] = []
    for dtype in dtypes():
        progress(f"starting our server, {dtype}")
        with stamped_server(plan.model, dtype) as (server, first_tokens):
            # The server's own event loop: what the client takes of two cores, the server lacks.
            row, ttft = uvloop.run(_server_over_engine(plan, dtype, server, first_tokens))
        rows.append(row)
        figures += ttft
    many = ("--engine.max-sequences", str(NUM_LAG_STREAMS))
    with running(our_server(plan.model, dtype, *many)) as server:
        figures.append(uvloop.run(_lag_under_streams(server)))
    grpc_port = free_port()
    with running(our_server(plan.model, dtype, "--grpc_port", str(grpc_port))) as server:
        figures += _large_bodies(server, grpc_port)
    lines = ["| work | figure | measured | target | met |", "|---|---|---:|---|---|"]
    return Section(tuple(rows), ("\n".join((*lines, *map(str, figures))),))


async def _server_over_engine(
    plan: Plan, dtype: str, server: RunningServer, first_tokens: FirstTokens
) -> tuple[Row, tuple[Figure, ...]]:
    limit = STREAMS_PER_CONCURRENCY * plan.concurrency
    num_streams = TURNS * limit
    handed_over: list[float] = []
    spent: list[tuple[float, float]] = []

    async def ours(number: int) -> Streams:
        first_tokens.take()
        loop_ms, all_seconds = _main_thread_ms(server), server.cpu_seconds()
        pictures = CHAT.pictures(num_streams, 4, number)
        streams, first_bytes = await stream(server.url, pictures, CHAT, limit)
        if number:
            handed_over.extend(delays(first_tokens.take(), first_bytes))
            all_ms = (server.cpu_seconds() - all_seconds) * 1000
            spent.append((_main_thread_ms(server) - loop_ms, all_ms))
        return streams

    async with InProcessEngine.start(plan.model, dtype) as engine:

        async def alone(number: int) -> Streams:
            return await engine.run(CHAT.pictures(num_streams, 4, number), CHAT, limit)

        async def ours_staggered(number: int) -> Streams:
            pictures = STAGGERED.pictures(num_streams, 7, number)
            return (await stream(server.url, pictures, STAGGERED, limit))[0]

        async def alone_staggered(number: int) -> Streams:
            return await engine.run(STAGGERED.pictures(num_streams, 7, number), STAGGERED, limit)

        rounds = await alternate(ROUNDS_PER_ROUND * plan.rounds, ours, alone)
        progress("  the same with answers that do not end together")
        staggered = await alternate(plan.rounds, ours_staggered, alone_staggered)
        one_more = await _more_ttft_of_one(server, engine, dtype)
    work = f"server, {limit} streams of {CHAT.num_tokens} tokens, {dtype}, vs engine alone"
    tokens = tuple(Pair(*(side.tokens_per_second for side in both)) for both in rounds)
    figures = (
        _loop_time(work, spent, num_streams * CHAT.num_tokens),
        _first_byte(work, handed_over),
        _more_ttft(work, staggered, slice(limit, None), "one by one"),
        _more_ttft(work, rounds, slice(limit, None), "many in turn"),
        _more_ttft(work, rounds, slice(limit), "all at once"),
        one_more,
    )
    return Row(work, "throughput", "tok/s", tokens, SERVER_OVER_ENGINE), figures


def _more_ttft(work: str, rounds: list[tuple[Streams, Streams]], which: slice, how: str) -> Figure:
    """The medians' difference over some of the streams; how: in which way these came."""
    more = [
        (statistics.median(ours[which]) - statistics.median(alone[which])) * 1000
        for ours, alone in ((one.ttft_seconds, other.ttft_seconds) for one, other in rounds)
    ]
    spread = f" ({min(more):.0f} to {max(more):.0f})"
    return Figure(work, f"TTFT p50, added, {how}", statistics.median(more), MORE_TTFT_MS, spread)


def _loop_time(work: str, spent: list[tuple[float, float]], num_tokens: int) -> Figure:
    """What a token costs of a processor outside the engine: the same on a busy machine.

    spent: milliseconds of the event loop, and of the whole server, in each round
    """
    loop_ms, all_ms = (statistics.median(one) for one in zip(*spent, strict=True))
    remark = f" ({loop_ms / all_ms:.1%} of all that the server used)"
    figure = "event-loop time, 1,000 tokens"
    return Figure(work, figure, loop_ms / num_tokens * 1000, remark=remark)


def _first_byte(work: str, seconds: list[float]) -> Figure:
    """What the server adds to the engine's TTFT, however the prefills fell into steps."""
    milliseconds = [one * 1000 for one in seconds]
    late = statistics.quantiles(milliseconds, n=20)[-1]
    figure = "first token chosen to first byte read, median"
    return Figure(work, figure, statistics.median(milliseconds), MORE_TTFT_MS, f" (p95 {late:.1f})")


async def _more_ttft_of_one(server: RunningServer, engine: InProcessEngine, dtype: str) -> Figure:
    """The same for one stream that has the machine to itself: no queue hides the difference."""
    more = []
    for number in range(NUM_ALONE):
        pictures = CHAT.pictures(2, 6, number)
        ours, _ = await stream(server.url, pictures[:1], ALONE)
        alone = await engine.run(pictures[1:], ALONE)
        more.append((ours.ttft_p50_seconds - alone.ttft_p50_seconds) * 1000)
    spread = f" (quartiles {', '.join(f'{one:.1f}' for one in statistics.quantiles(more))})"
    work = f"server, one stream at a time, {dtype}, vs engine alone"
    return Figure(work, "TTFT p50, added", statistics.median(more), MORE_TTFT_MS, spread)


async def _lag_under_streams(server: RunningServer) -> Figure:
    await stream(server.url, CHAT.pictures(NUM_LAG_STREAMS, 5, 0), CHAT)
    before = _lag_buckets(server)
    for number in range(1, 4):
        await stream(server.url, CHAT.pictures(NUM_LAG_STREAMS, 5, number), CHAT)
    after = _lag_buckets(server)
    counts = {bound: after[bound] - before[bound] for bound in after}
    late = quantile(counts, 0.99) * 1000
    remark = f" (median {quantile(counts, 0.5) * 1000:.1f}, of {counts[float('inf')]:.0f} probes)"
    work = f"{NUM_LAG_STREAMS} streams of {CHAT.num_tokens} tokens"
    return Figure(work, "event-loop lag p99", late, LAG_P99_MS, remark)


def _lag_buckets(server: RunningServer) -> dict[float, float]:
    lines = httpx.get(f"{server.url}/metrics").text.splitlines()
    return {
        float(line.partition('le="')[2].partition('"')[0]): float(line.rpartition(" ")[2])
        for line in lines
        if line.startswith(LAG)
    }


def quantile(cumulative: dict[float, float], share: float) -> float:
    """The value that so large a share stays under, within its bucket by proportion."""
    wanted = share * cumulative[float("inf")]
    low = below = 0.0
    for bound, count in sorted(cumulative.items()):
        if count >= wanted and count > below:
            high = bound if bound != float("inf") else low
            return low + (high - low) * (wanted - below) / (count - below)
        low, below = bound, count
    return low


# Large bodies


def _large_bodies(server: RunningServer, grpc_port: int) -> list[Figure]:
    large, small = _noise(LARGE_SIZE), _noise(SMALL_SIZE)
    figures = []
    with grpc.insecure_channel(f"127.0.0.1:{grpc_port}", options=OPTIONS) as channel:
        stub = Stub(channel)
        ways: dict[str, tuple[Callable[[bytes], Any], float | None]] = {
            "binary tensor, HTTP/1.1": (_http_binary(server, http2=False), LARGE_MS),
            "binary tensor, HTTP/2": (_http_binary(server, http2=True), LARGE_MS),
            "binary tensor, gRPC": (_grpc_binary(stub), None),
            "base64 in JSON, HTTP/1.1": (_http_json(server), None),
        }
        for name, (ask, limit) in ways.items():
            more = _loop_ms(server, ask, large) - _loop_ms(server, ask, small)
            work = f"a picture of {len(large) / (1 << 20):.1f} MiB as {name}"
            figures.append(Figure(work, "event-loop time, added", more, limit))
            progress(f"  {figures[-1]}")
    return figures


def _loop_ms(server: RunningServer, ask: Callable[[bytes], Any], picture: bytes) -> float:
    """The median time that the server's main thread runs for one request."""
    used = []
    for _ in range(NUM_LARGE):
        before = _main_thread_ms(server)
        ask(picture)
        used.append(_main_thread_ms(server) - before)
    return statistics.median(used[3:])


def _main_thread_ms(server: RunningServer) -> float:
    stat = Path(f"/proc/{server.pid}/task/{server.pid}/schedstat").read_text()
    return int(stat.split()[0]) / NANOSECONDS_PER_MS


def _noise(size: tuple[int, int]) -> bytes:
    pixels = np.random.default_rng(7).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG", compress_level=0)
    return file.getvalue()


def _http_binary(server: RunningServer, *, http2: bool) -> Callable[[bytes], Any]:
    client = httpx.Client(base_url=server.url, http1=not http2, http2=http2, timeout=60)

    def ask(picture: bytes) -> None:
        raw = prefixed(picture)
        tensor = {
            "name": "image",
            "shape": [1],
            "datatype": "BYTES",
            "parameters": {"binary_data_size": len(raw)},
        }
        head = json.dumps({"inputs": [tensor], "parameters": {"max_tokens": 1}}).encode()
        headers = {"Inference-Header-Content-Length": str(len(head))}
        path = f"/v2/models/{MODEL_NAME}/infer"
        client.post(path, content=head + raw, headers=headers).raise_for_status()

    return ask


def _http_json(server: RunningServer) -> Callable[[bytes], Any]:
    client = httpx.Client(base_url=server.url, timeout=60)

    def ask(picture: bytes) -> None:
        body = {"image": base64.b64encode(picture).decode(), "max_tokens": 1}
        path = f"/v2/models/{MODEL_NAME}/generate"
        client.post(path, content=json.dumps(body)).raise_for_status()

    return ask


def _grpc_binary(stub: Stub) -> Callable[[bytes], Any]:
    one = {"max_tokens": {"int64_param": 1}}
    return lambda picture: stub.ModelInfer(infer_request(picture, parameters=one), timeout=60)
