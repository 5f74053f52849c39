"""`make bench`: the engine and its peer side by side in one run, as ratios; then start-up and
memory.

Both sides do the whole job, from PNG bytes to text, on the same cores with the same random weights.
Rounds alternate, so that a machine that slows down slows both.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from model.__main__ import load
from model.request import SamplingParams
from model.serving.generation import Prompt
from model.serving.images import PixelBounds
from model.serving.kserve_model import Qwen3VLModel
from model.settings import ModelSettings, Settings
from tests.bench.machine import describe_machine
from tests.bench.peers import SequentialGenerate
from tests.bench.startup import measure_startup
from tests.bench.work import BENCH_SHAPE, NUM_NEW_TOKENS, make_pictures, prompt_text
from tests.checkpoints import make_checkpoint

if TYPE_CHECKING:
    from collections.abc import Sequence as Seq

    from model.serving.generation import Pipeline


@dataclass(frozen=True, slots=True)
class Round:
    """One round of one side: tokens a second in all; per request, seconds."""

    tokens_per_second: float
    first_token_seconds: tuple[float, ...]
    inter_token_seconds: tuple[float, ...]


async def engine_round(pipeline: Pipeline, pictures: Seq[bytes]) -> Round:
    """All pictures at once through the pipeline."""
    sampling = SamplingParams(max_tokens=NUM_NEW_TOKENS, ignore_eos=True)
    started = time.perf_counter()

    async def one(picture: bytes) -> list[float]:
        prompt = Prompt.about([picture], prompt_text(), sampling, PixelBounds())
        [request] = await pipeline.prepare([prompt])
        [stream] = pipeline.engine.submit([request])
        return [time.perf_counter() - started async for _ in stream]

    times = await asyncio.gather(*map(one, pictures))
    seconds = time.perf_counter() - started
    assert all(len(one) == NUM_NEW_TOKENS for one in times), "every request must run its length"
    gaps = tuple(b - a for one in times for a, b in itertools.pairwise(one))
    return Round(len(pictures) * NUM_NEW_TOKENS / seconds, tuple(one[0] for one in times), gaps)


async def compare(folder: Path, concurrency: int, rounds: int, num_sequential: int) -> None:
    """Print the table of engine against sequential generate."""
    settings = Settings(model=ModelSettings(dir=folder, device="cpu", dtype="float32"))
    model = Qwen3VLModel(settings, lambda: load(settings))
    model.load()
    await model.start_engine()
    peer = SequentialGenerate(folder)
    # One uncounted pass of each: allocators and thread pools are warm for both.
    warm_up = make_pictures(2, seed=rounds)
    await engine_round(model.pipeline, warm_up)
    peer.run(warm_up[:1])
    rows: list[tuple[Round, float]] = []
    for number in range(rounds):
        pictures = make_pictures(concurrency, seed=number)
        ours = await engine_round(model.pipeline, pictures)
        theirs = peer.run(pictures[:num_sequential])
        rows.append((ours, theirs))
        print(
            f"round {number + 1}: engine {ours.tokens_per_second:7.1f} tok/s, "
            f"generate {theirs:6.1f} tok/s, ratio {ours.tokens_per_second / theirs:.2f}",
            flush=True,
        )
    await asyncio.to_thread(model.stop)
    ratios = [ours.tokens_per_second / theirs for ours, theirs in rows]
    first = statistics.median(t for ours, _ in rows for t in ours.first_token_seconds)
    gap = statistics.median(t for ours, _ in rows for t in ours.inter_token_seconds)
    print(f"\n| {concurrency} concurrent, {NUM_NEW_TOKENS} new tokens | median |\n|---|---|")
    print(f"| engine, tok/s | {statistics.median(r.tokens_per_second for r, _ in rows):.1f} |")
    print(f"| sequential generate, tok/s | {statistics.median(t for _, t in rows):.1f} |")
    print(f"| ratio | {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f}) |")
    print(f"| engine TTFT p50 | {first:.2f} s |\n| engine ITL p50 | {gap * 1000:.1f} ms |")


def main() -> None:
    """Run everything, or what the flags leave of it."""
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__)
    parser.add_argument("--concurrency", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--sequential", type=int, default=4, help="peer's requests a round")
    parser.add_argument("--only", choices=["engine", "startup"])
    given = parser.parse_args()
    print(describe_machine(), flush=True)
    with tempfile.TemporaryDirectory() as folder:
        if given.only != "startup":
            checkpoint = make_checkpoint(Path(folder), BENCH_SHAPE)
            asyncio.run(compare(checkpoint, given.concurrency, given.rounds, given.sequential))
        if given.only != "engine":
            measure_startup()


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    main()
