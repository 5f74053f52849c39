"""Scheduler, thread and real runner: the tokens of generate, and nothing left behind."""

from __future__ import annotations

import asyncio
import dataclasses
import random
from typing import TYPE_CHECKING

import pytest
import torch
from transformers import Qwen3VLForConditionalGeneration as Oracle

from model.engine.blocks import BlockPool
from model.engine.loop import Engine
from model.engine.scheduler import Scheduler, SchedulerLimits
from model.request import SamplingParams
from tests.checkpoints import Shape, make_checkpoint
from tests.unit.runner_driver import Part, make_request
from tests.unit.test_runner_parity import NUM_TOKENS, expected_tokens, runner_for

if TYPE_CHECKING:
    from collections.abc import Sequence as Seq
    from pathlib import Path

    from model.engine.loop import TokenStream
    from model.request import GenerateRequest, ImageInput
    from model.runner.kv_cache import KVCache
    from model.runner.qwen3_vl import TextInputs
    from model.runner.runner import TorchRunner
    from model.runner.vision import ImageEmbeddings

SAMPLING = SamplingParams(max_tokens=NUM_TOKENS, ignore_eos=True)


@pytest.fixture(scope="module")
def checkpoint_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("checkpoint"), Shape())


def mixed_requests(count: int) -> list[GenerateRequest]:
    """Prompts of 0 to 3 images between texts of any length."""
    draw = random.Random(7)
    requests = []
    for number in range(count):
        parts: list[Part] = [draw.randint(1, 40)]
        for _ in range(draw.randint(0, 3)):
            parts += [(draw.randint(1, 5), draw.randint(1, 5)), draw.randint(1, 9)]
        requests.append(make_request(f"r{number}", parts, seed=number, sampling=SAMPLING))
    return requests


def build_engine(runner: TorchRunner, num_blocks: int, max_batched_tokens: int) -> Engine:
    limits = SchedulerLimits(
        max_batched_tokens=max_batched_tokens,
        max_encoder_tokens=24,
        max_sequences=16,
        max_model_len=512,
    )
    scheduler = Scheduler(limits, BlockPool(num_blocks, runner.block_size))
    return Engine(scheduler, runner, max_queued_requests=64, stall_seconds=60)


async def tokens(stream: TokenStream) -> list[int]:
    return [event.token_id async for event in stream if event.token_id is not None]


@pytest.mark.parametrize(
    ("num_blocks", "max_batched_tokens", "preempts"),
    [
        pytest.param(256, 512, False, id="room for all"),
        pytest.param(256, 16, False, id="chunks of at most 16 tokens"),
        pytest.param(20, 64, True, id="too few blocks, so sequences are preempted and resume"),
    ],
)
async def test_32_mixed_requests_at_once_equal_generate(
    checkpoint_path: Path, num_blocks: int, max_batched_tokens: int, preempts: bool
) -> None:
    oracle = Oracle.from_pretrained(checkpoint_path, dtype=torch.float32).eval()
    runner = runner_for(checkpoint_path)
    requests = mixed_requests(32)
    expected = [expected_tokens(oracle, runner, request) for request in requests]
    engine = build_engine(runner, num_blocks, max_batched_tokens)
    engine.start()
    answers = await asyncio.gather(*map(tokens, engine.submit(requests)))
    await asyncio.to_thread(engine.stop)
    assert answers == expected
    assert (engine.stats.preemptions > 0) is preempts
    assert engine.stats.kv_used_ratio == 0.0


async def test_a_repeated_prompt_is_found_and_answered_the_same(checkpoint_path: Path) -> None:
    oracle = Oracle.from_pretrained(checkpoint_path, dtype=torch.float32).eval()
    runner = runner_for(checkpoint_path)
    engine = build_engine(runner, 256, 64)
    engine.start()
    for request in mixed_requests(12):
        expected = expected_tokens(oracle, runner, request)
        for attempt in ("cold", "warm"):
            again = dataclasses.replace(request, request_id=f"{request.request_id} {attempt}")
            [stream] = engine.submit([again])
            assert await tokens(stream) == expected
    await asyncio.to_thread(engine.stop)
    assert engine.stats.prefix_hit_tokens > engine.stats.prefix_query_tokens // 3


async def test_1000_random_cancels_leave_nothing_in_engine_or_runner(
    checkpoint_path: Path,
) -> None:
    runner = runner_for(checkpoint_path)
    engine = build_engine(runner, 40, 64)
    engine.start()
    draw = random.Random(3)
    pool = mixed_requests(100)

    async def one(request: GenerateRequest, num_events: int, pause: float) -> None:
        [stream] = engine.submit([request])
        for _ in range(num_events):
            await anext(stream, None)
        await asyncio.sleep(pause)
        stream.close()

    for _ in range(10):
        # 50 at a time on 16 places: cancelled in the queue, mid-prefill and in decode.
        for start in range(0, 100, 50):
            await asyncio.gather(
                *(
                    one(request, draw.choice([0, 0, 1, 3, NUM_TOKENS]), draw.random() * 0.05)
                    for request in pool[start : start + 50]
                )
            )
    async with asyncio.timeout(30):
        while engine.stats.num_running or engine.num_queued:
            await asyncio.sleep(0.01)
    assert engine.stats.finished["cancelled"] > 200
    assert engine.stats.kv_used_ratio == 0.0
    assert not runner._kept
    request = mixed_requests(1)[0]
    [stream] = engine.submit([request])
    oracle = Oracle.from_pretrained(checkpoint_path, dtype=torch.float32).eval()
    assert await tokens(stream) == expected_tokens(oracle, runner, request)
    await asyncio.to_thread(engine.stop)


async def answers(engine: Engine, requests: list[GenerateRequest]) -> dict[str, list[int] | str]:
    """Each request's tokens, or the error it ended with."""

    async def one(stream: TokenStream) -> list[int] | str:
        events = [event async for event in stream]
        error = events[-1].error
        return str(error) if error else [e.token_id for e in events if e.token_id is not None]

    engine.start()
    streams = engine.submit(requests)
    found = await asyncio.gather(*map(one, streams))
    await asyncio.to_thread(engine.stop)
    return {request.request_id: answer for request, answer in zip(requests, found, strict=True)}


@pytest.mark.parametrize("where", ["encode", "prefill and decode"])
async def test_running_out_of_memory_fails_only_what_does_not_fit_alone(
    checkpoint_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    requests = mixed_requests(8)
    expected = await answers(build_engine(runner_for(checkpoint_path), 256, 512), requests)
    runner = runner_for(checkpoint_path)
    doomed = next(request for request in requests if request.images)
    encode, logits = runner.vision.encode, runner._text.logits

    def encode_or_fail(images: Seq[ImageInput]) -> list[ImageEmbeddings]:
        if len(images) > 2 or any(image in doomed.images for image in images):
            raise torch.OutOfMemoryError("CUDA out of memory")
        return encode(images)

    def logits_or_fail(inputs: TextInputs, cache: KVCache) -> torch.Tensor:
        if len(inputs.sample_rows) > 3:
            raise RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED")
        return logits(inputs, cache)

    if where == "encode":
        monkeypatch.setattr(runner.vision, "encode", encode_or_fail)
    else:
        monkeypatch.setattr(runner._text, "logits", logits_or_fail)
    engine = build_engine(runner, 256, 512)
    found = await answers(engine, requests)
    assert engine.stats.num_oom > 0
    assert engine.stats.kv_used_ratio == 0.0
    if where == "encode":
        assert "out of device memory" in str(found.pop(doomed.request_id))
        del expected[doomed.request_id]
    assert found == expected
