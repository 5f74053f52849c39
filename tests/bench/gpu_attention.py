"""The decode-attention kernel alone: at long contexts and large batches it decides."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from model.runner import triton_attention
from tests.bench.gpu_parts import BLOCK_SIZE, CONTEXT, DEVICE, Figure, device_seconds

if TYPE_CHECKING:
    from collections.abc import Iterator

KERNELS = "decode attention"


def measure_decode_attention() -> Iterator[Figure]:
    """Bandwidth of KV read, at the settings in use and at others: what to set them to."""
    for split, tile, warps, stages in (
        (128, 128, 4, 2),
        (128, 64, 4, 2),
        (128, 128, 4, 1),
        (256, 128, 4, 2),
        (256, 64, 4, 2),
    ):
        triton_attention.DECODE_TILE = tile
        triton_attention.DECODE_WARPS, triton_attention.DECODE_STAGES = warps, stages
        for heads, batch in ((32, 128), (16, 32), (16, 128)):
            settings = f"splits of {split}, tile {tile}, {warps} warps, {stages} stages"
            name = f"B={batch}, {heads} heads: {settings}"
            seconds = _attention_seconds(heads, batch, split)
            num_bytes = batch * CONTEXT * 2 * 8 * 128 * 2
            note = f"{seconds * 1e6:.0f} µs a layer"
            yield Figure(KERNELS, name, num_bytes / seconds, "byte/s", note)


def _attention_seconds(heads: int, batch: int, split_tokens: int) -> float:
    width = -(-CONTEXT // BLOCK_SIZE)
    slots = batch * width * BLOCK_SIZE
    # Several caches in turn: one alone would stay in the second-level cache.
    caches = [
        torch.randn(2, slots, 8, 128, dtype=torch.bfloat16, device=DEVICE)
        for _ in range(max(4, 128 // batch))
    ]
    query = torch.randn(batch, heads, 128, dtype=torch.bfloat16, device=DEVICE)
    tables = torch.randperm(batch * width, device=DEVICE).to(torch.int32).view(batch, width)
    rows = torch.arange(batch, dtype=torch.int32, device=DEVICE)
    contexts = torch.full_like(rows, CONTEXT)
    output = torch.empty_like(query)

    def run() -> None:
        for keys, values in caches:
            triton_attention.decode_attention(
                *(query, keys, values, rows, tables, contexts, output),
                block_size=BLOCK_SIZE,
                split_tokens=split_tokens,
                max_splits=-(-CONTEXT // split_tokens),
                scaling=128**-0.5,
            )

    run()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return device_seconds(graph.replay) / len(caches)
