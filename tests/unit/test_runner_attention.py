"""Paged attention equals plain attention over each sequence, and never reads a foreign slot."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch

from model.engine.batch import ScheduledSequence
from model.engine.sequence import Sequence
from model.request import GenerateRequest, SamplingParams
from model.runner.attention import (
    SMALLEST_CONTEXT_BUCKET,
    build_attention_metadata,
    context_slots,
    paged_attention,
)
from model.runner.kv_cache import KVCache, KVShape

if TYPE_CHECKING:
    from collections.abc import Iterator

HEADS, KV_HEADS, HEAD_DIM, NUM_LAYERS = 6, 2, 8, 2
SCALING = 0.3


def plain_attention(query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """The last queries of one sequence over all of it, in float64, head by head.

    query: [n, heads, dim]; keys, values: [context, kv_heads, dim]
    """
    context, num_queries = len(keys), len(query)
    group = HEADS // KV_HEADS
    keys, values = (x.double().repeat_interleave(group, 1).transpose(0, 1) for x in (keys, values))
    scores = query.double().transpose(0, 1) @ keys.transpose(1, 2) * SCALING
    future = torch.ones(num_queries, context, dtype=torch.bool).triu(context - num_queries + 1)
    weights = scores.masked_fill(future, float("-inf")).softmax(-1)
    return (weights @ values).transpose(0, 1).to(query.dtype)


def shares_of(
    spans: list[tuple[int, int]], block_size: int, num_blocks: int
) -> list[ScheduledSequence]:
    """Shares [start, end) of as many sequences, their blocks dealt in a scattered order."""
    generator = torch.Generator().manual_seed(0)
    free: Iterator[int] = iter(torch.randperm(num_blocks, generator=generator).tolist())
    shares = []
    for start, end in spans:
        sequence = Sequence(GenerateRequest("r", (0,) * end, SamplingParams(), seed=0))
        sequence.block_table = [next(free) for _ in range(-(-end // block_size))]
        shares.append(ScheduledSequence(sequence, start, end - start, samples=True))
    return shares


@pytest.mark.parametrize("block_size", [1, 4, 16])
@pytest.mark.parametrize(
    "spans",
    [
        pytest.param([(0, 5)], id="fresh prefill"),
        pytest.param([(0, 1)], id="first token alone"),
        pytest.param([(7, 12)], id="later chunk"),
        pytest.param([(30, 31)], id="one decode"),
        pytest.param([(3, 4), (31, 32), (16, 17)], id="decodes of unequal context"),
        pytest.param([(9, 10), (9, 10)], id="decodes of equal context"),
        pytest.param([(3, 4), (600, 601), (290, 291)], id="decodes in several buckets"),
        pytest.param([(8, 9), (0, 6), (40, 41), (5, 9), (0, 1)], id="everything at once"),
    ],
)
def test_equals_plain_attention_among_nan_slots(
    spans: list[tuple[int, int]], block_size: int
) -> None:
    num_blocks = sum(-(-end // block_size) for _, end in spans) + 5
    shape = KVShape(NUM_LAYERS, KV_HEADS, HEAD_DIM, block_size, torch.float32)
    cache = KVCache(shape, num_blocks, torch.device("cpu"))
    cache.storage.fill_(float("nan"))
    shares = shares_of(spans, block_size, num_blocks)
    metadata = build_attention_metadata(shares, block_size, torch.device("cpu"), torch.float32)
    generator = torch.Generator().manual_seed(1)
    parts = [
        [
            torch.randn((end, heads, HEAD_DIM), generator=generator)
            for heads in (HEADS, KV_HEADS, KV_HEADS)
        ]
        for _, end in spans
    ]
    for share, (_, keys, values) in zip(shares, parts, strict=True):
        slots = torch.from_numpy(context_slots(share.sequence.block_table, share.start, block_size))
        cache.write(1, slots, keys[: share.start], values[: share.start])
    query, key, value = (
        torch.cat([part[i][share.start :] for share, part in zip(shares, parts, strict=True)])
        for i in range(3)
    )
    output = paged_attention(query, key, value, cache, 1, metadata, SCALING)
    expected = torch.cat(
        [plain_attention(q[s.start :], k, v) for s, (q, k, v) in zip(shares, parts, strict=True)]
    )
    torch.testing.assert_close(output, expected, rtol=1e-5, atol=1e-6)
    assert cache.storage[0].isnan().all(), "another layer was written"
    assert int((~cache.storage[1, 0, :, 0, 0].isnan()).sum()) == sum(end for _, end in spans)


def test_decodes_share_a_call_unless_contexts_differ_much() -> None:
    contexts = [10, 200, SMALLEST_CONTEXT_BUCKET, 257, 500, 3000]
    shares = shares_of([(c - 1, c) for c in contexts], 16, 1000)
    metadata = build_attention_metadata(shares, 16, torch.device("cpu"), torch.float32)
    assert [group.rows.tolist() for group in metadata.decode_groups] == [[0, 1, 2], [3, 4], [5]]
    assert [group.slots.shape[1] for group in metadata.decode_groups] == [256, 500, 3000]


def test_cache_counts_its_bytes() -> None:
    shape = KVShape(num_layers=3, num_kv_heads=2, head_dim=8, block_size=4, dtype=torch.bfloat16)
    cache = KVCache(shape, 10, torch.device("cpu"))
    assert cache.num_bytes == cache.storage.nbytes == 10 * shape.block_bytes
