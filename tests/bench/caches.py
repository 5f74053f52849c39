"""What our server's caches save: a picture and prompt asked again, against one never seen."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from tests.bench.machine import dtypes
from tests.bench.rounds import alternate, pairs, progress
from tests.bench.servers import our_server, running
from tests.bench.tables import Row, Section, at_most
from tests.bench.work import Work

if TYPE_CHECKING:
    from tests.bench.client import Round
    from tests.bench.rounds import Plan
    from tests.bench.servers import RunningServer

NUM_PICTURES: Final = 6
# The first token is all that matters; a second one makes a gap to measure.
BEGIN: Final = Work(num_tokens=2)
HIT_OVER_COLD: Final = at_most(0.3)


def measure_caches(plan: Plan) -> Section:
    """Time to the first token with the picture's embedding and the prompt's KV at hand."""
    dtype = dtypes()[-1]
    progress(f"starting our server, {dtype}")
    with running(our_server(plan.model, dtype)) as server:
        return Section((asyncio.run(_hit_over_cold(plan, dtype, server)),))


async def _hit_over_cold(plan: Plan, dtype: str, server: RunningServer) -> Row:
    async with server.client() as client:

        async def hit(number: int) -> Round:
            """Fresh pictures, asked once uncounted."""
            pictures = BEGIN.pictures(NUM_PICTURES, 5, number)
            await client.one_by_one(pictures, BEGIN)
            return await client.one_by_one(pictures, BEGIN)

        async def cold(number: int) -> Round:
            return await client.one_by_one(BEGIN.pictures(NUM_PICTURES, 6, number), BEGIN)

        rounds = await alternate(plan.rounds, hit, cold)
    ttft = pairs(rounds, "ttft_seconds", scale=1000)
    return Row(
        f"picture and prompt seen before, {dtype}, vs new", "TTFT", "ms", ttft, HIT_OVER_COLD
    )
