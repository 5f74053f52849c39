"""The engine inside this process, and beside transformers' `generate`."""

from __future__ import annotations

import asyncio
import time
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Final

from model.__main__ import load
from model.request import SamplingParams
from model.serving.images import PixelBounds
from model.serving.kserve_model import Qwen3VLModel
from model.serving.prompt import Prompt
from model.settings import Dtype, ModelSettings, Settings
from tests.bench.machine import dtypes
from tests.bench.peers import SequentialGenerate
from tests.bench.rounds import alternate, progress
from tests.bench.streams import Streams, keep_running
from tests.bench.tables import Pair, Row, Section, at_least
from tests.bench.work import DESCRIBE, PROMPT

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from collections.abc import Sequence as Seq
    from pathlib import Path

    from model.serving.generation import Pipeline
    from tests.bench.rounds import Plan
    from tests.bench.work import Work

NUM_SEQUENTIAL: Final = 3
OVER_GENERATE: Final = at_least(5)


class InProcessEngine:
    """A started engine without a server around it."""

    def __init__(self, pipeline: Pipeline) -> None:
        self._pipeline = pipeline

    @classmethod
    @asynccontextmanager
    async def start(cls, model: Path, dtype: str) -> AsyncIterator[InProcessEngine]:
        """With the settings that the server has by default."""
        chosen = ModelSettings(dir=model, device="cpu", dtype=Dtype(dtype))
        settings = Settings(model=chosen)
        served = Qwen3VLModel(settings, lambda: load(settings))
        await asyncio.to_thread(served.load)
        await served.start_engine()
        try:
            yield cls(served.pipeline)
        finally:
            await asyncio.to_thread(served.stop)

    async def run(self, pictures: Seq[bytes], work: Work, limit: int | None = None) -> Streams:
        """All pictures from their bytes to tokens; at the same time, or so many of them."""
        lengths = work.lengths(len(pictures))
        asks = [
            partial(self._ttft_seconds, picture, length)
            for picture, length in zip(pictures, lengths, strict=True)
        ]
        started = time.perf_counter()
        ttft = await keep_running(limit or len(pictures), asks)
        seconds = time.perf_counter() - started
        return Streams(sum(lengths) / seconds, tuple(ttft))

    async def _ttft_seconds(self, picture: bytes, num_tokens: int) -> float:
        sampling = SamplingParams(max_tokens=num_tokens, min_tokens=num_tokens, ignore_eos=True)
        started = time.perf_counter()
        prompt = Prompt.about([picture], PROMPT, sampling, PixelBounds())
        [request] = await self._pipeline.prepare([prompt])
        [stream] = self._pipeline.engine.submit([request])
        times = [time.perf_counter() async for _ in stream]
        assert len(times) == num_tokens, "every request must run its length"
        return times[0] - started


def measure_over_generate(plan: Plan) -> Section:
    """Many at once in the engine against one after the other in transformers."""
    return Section(tuple(asyncio.run(_over_generate(plan, dtype)) for dtype in dtypes()))


async def _over_generate(plan: Plan, dtype: str) -> Row:
    progress(f"engine and generate in this process, {dtype}")
    peer = SequentialGenerate(plan.model, dtype)

    async def theirs(number: int) -> float:
        return peer.run(DESCRIBE.pictures(NUM_SEQUENTIAL, 3, number), DESCRIBE)

    async with InProcessEngine.start(plan.model, dtype) as engine:

        async def ours(number: int) -> float:
            pictures = DESCRIBE.pictures(plan.concurrency, 3, number)
            return (await engine.run(pictures, DESCRIBE)).tokens_per_second

        rounds = await alternate(plan.rounds, ours, theirs)
    work = f"{plan.concurrency} concurrent in the engine, {dtype}, vs sequential generate"
    return Row(work, "throughput", "tok/s", tuple(Pair(*one) for one in rounds), OVER_GENERATE)
