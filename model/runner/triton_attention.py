"""Paged attention in Triton, each kernel behind a function over tensors.

Sums are taken in float32 whatever the tensors hold. Slots that no sequence has written may hold
anything, NaN included: no kernel lets one into a result. Knows neither sequences nor graphs.
Needs triton; only what runs on CUDA imports this module.
"""

from __future__ import annotations

import torch
import triton.language as tl  # type: ignore[import-untyped]
from torch import Tensor

from model.runner.triton_kernels import power_of_two
from model.runner.triton_launch import follow, kernel, launch

LOG2_E = 1.4426950408889634
DECODE_TILE = 128  # tokens of context that a decode program reads at once
DECODE_WARPS, DECODE_STAGES = 4, 2
PREFILL_ROWS, PREFILL_TILE = 64, 64
PREFILL_WARPS, PREFILL_STAGES = 4, 2
# tl.dot multiplies at least 16 rows: fewer query heads of a KV head are padded to them.
SMALLEST_DOT = 16
# Programs of a decode launch, idle ones included: enough to fill a device several times over.
DECODE_PROGRAMS = 8192
LEAST_PROGRAMS = 8


def decode_attention(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    rows: Tensor,
    tables: Tensor,
    contexts: Tensor,
    output: Tensor,
    *,
    block_size: int,
    split_tokens: int,
    max_splits: int,
    scaling: float,
) -> None:
    """Attend single-token queries to their contexts; flash-decoding in two launches.

    query, output: [num_tokens, num_heads, head_dim], of which `rows` alone are read and written
    keys, values: [num_slots, num_kv_heads, head_dim]
    rows: [num_rows] int32, into the batch, below 0 where there is no such row
    tables: [num_rows, max_blocks] int32
    contexts: [num_rows] int32, the query's own token included; 0 makes the row zeros
    max_splits: splits that the longest context has, or more

    A context is cut every `split_tokens`, and the parts are joined in order: however many programs
    share the work, the batch around a row does not change its result.
    Source: Dao et al., Flash-Decoding for long-context inference, 2023.
    """
    num_rows = len(rows)
    _, num_heads, head_dim = query.shape
    num_kv_heads = keys.shape[1]
    group = num_heads // num_kv_heads
    partial = query.new_empty((num_rows, num_heads, max_splits, head_dim), dtype=torch.float32)
    masses = query.new_empty((num_rows, num_heads, max_splits), dtype=torch.float32)
    programs = min(max_splits, max(LEAST_PROGRAMS, DECODE_PROGRAMS // (num_rows * num_kv_heads)))
    launch(
        _decode_splits,
        (num_rows, num_kv_heads, programs),
        query,
        keys,
        values,
        rows,
        tables,
        contexts,
        partial,
        masses,
        tables.shape[1],
        max_splits,
        scaling * LOG2_E,
        num_kv_heads,
        group,
        max(SMALLEST_DOT, power_of_two(group)),
        head_dim,
        block_size,
        split_tokens,
        DECODE_TILE,
        num_warps=DECODE_WARPS,
        num_stages=DECODE_STAGES,
    )
    launch(
        _join_splits,
        (num_rows, num_heads),
        partial,
        masses,
        rows,
        contexts,
        output,
        max_splits,
        num_heads,
        head_dim,
        split_tokens,
        num_warps=2,
    )


def prefill_attention(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    tiles: Tensor,
    tables: Tensor,
    output: Tensor,
    *,
    block_size: int,
    scaling: float,
) -> None:
    """Attend chunks of several sequences, causally, each to its own paged context.

    query, output: [num_tokens, num_heads, head_dim], of which the tiles' rows are read and written
    keys, values: [num_slots, num_kv_heads, head_dim]; tables: [num_seqs, max_blocks] int32
    tiles: [num_tiles, 4] int32, up to PREFILL_ROWS rows of one sequence each: first row of the
    batch, number of rows or 0 for no tile, position of the first in its sequence, row of tables
    Source: Dao, FlashAttention-2, 2023.
    """
    _, num_heads, head_dim = query.shape
    launch(
        _prefill,
        (num_heads, len(tiles)),
        query,
        keys,
        values,
        tiles,
        tables,
        output,
        tables.shape[1],
        scaling * LOG2_E,
        num_heads,
        num_heads // keys.shape[1],
        head_dim,
        block_size,
        PREFILL_ROWS,
        PREFILL_TILE,
        num_warps=PREFILL_WARPS,
        num_stages=PREFILL_STAGES,
    )


@kernel
def _offsets(
    table: tl.tensor,
    index: tl.tensor,
    inside: tl.tensor,
    kv_head: tl.tensor,
    NUM_KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
) -> tl.tensor:
    """Where a sequence's tokens lie among keys or values; index, inside: [tile], of its tokens."""
    block = tl.load(table + index // BLOCK_SIZE, mask=inside, other=0).to(tl.int64)
    slot = block * BLOCK_SIZE + index % BLOCK_SIZE
    return (slot * NUM_KV_HEADS + kv_head) * HEAD_DIM


@kernel
def _fold(
    score: tl.tensor, value: tl.tensor, largest: tl.tensor, mass: tl.tensor, weighted: tl.tensor
) -> tl.tensor:
    """Take one more tile into a running softmax; exponents are of two.

    score: [rows, tile], -inf where a row must not look; value: [tile, head_dim]
    largest, mass: [rows]; weighted: [rows, head_dim]; returns the three anew
    """
    now = tl.maximum(largest, tl.max(score, 1))
    shrink = tl.exp2(largest - now)
    weight = tl.exp2(score - now[:, None])
    mass = mass * shrink + tl.sum(weight, 1)
    weighted = weighted * shrink[:, None]
    weighted += tl.dot(weight.to(value.dtype), value, input_precision="ieee")
    return now, mass, weighted


@kernel
def _decode_splits(
    query: tl.tensor,
    keys: tl.tensor,
    values: tl.tensor,
    rows: tl.tensor,
    tables: tl.tensor,
    contexts: tl.tensor,
    partial: tl.tensor,
    masses: tl.tensor,
    table_width: int,
    max_splits: int,
    SCALE: tl.constexpr,
    NUM_KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    PADDED_GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    SPLIT: tl.constexpr,
    TILE: tl.constexpr,
    OVERLAPS: tl.constexpr,
) -> None:
    """Every so many splits of one row's context a program, with all query heads of one KV head."""
    follow(OVERLAPS)
    item = tl.program_id(0).to(tl.int64)
    kv_head = tl.program_id(1)
    context = tl.load(contexts + item)
    num_splits = (context + SPLIT - 1) // SPLIT
    if tl.program_id(2) >= num_splits:
        return
    member = tl.arange(0, PADDED_GROUP)
    dim = tl.arange(0, HEAD_DIM)
    # Heads of the batch's row among queries, of the table's row among partial results.
    first = tl.load(rows + item).to(tl.int64) * (NUM_KV_HEADS * GROUP) + kv_head * GROUP
    head = item * (NUM_KV_HEADS * GROUP) + kv_head * GROUP + member
    q = tl.load(
        query + (first + member[:, None]) * HEAD_DIM + dim[None, :],
        mask=member[:, None] < GROUP,
        other=0.0,
    )
    table = tables + item * table_width
    for split in range(tl.program_id(2), num_splits, tl.num_programs(2)):
        largest = tl.full([PADDED_GROUP], float("-inf"), tl.float32)
        mass = tl.zeros([PADDED_GROUP], tl.float32)
        weighted = tl.zeros([PADDED_GROUP, HEAD_DIM], tl.float32)
        end = tl.minimum(split * SPLIT + SPLIT, context)
        for start in range(split * SPLIT, end, TILE):
            index = start + tl.arange(0, TILE)
            inside = index < end
            offset = _offsets(table, index, inside, kv_head, NUM_KV_HEADS, HEAD_DIM, BLOCK_SIZE)
            key = tl.load(keys + offset[None, :] + dim[:, None], mask=inside[None, :], other=0.0)
            value = tl.load(
                values + offset[:, None] + dim[None, :], mask=inside[:, None], other=0.0
            )
            score = tl.dot(q, key, input_precision="ieee") * SCALE
            score = tl.where(inside[None, :], score, float("-inf"))
            largest, mass, weighted = _fold(score, value, largest, mass, weighted)
        place = head * max_splits + split
        tl.store(masses + place, largest + tl.log2(mass), mask=member < GROUP)
        tl.store(
            partial + place[:, None] * HEAD_DIM + dim[None, :],
            weighted / mass[:, None],
            mask=member[:, None] < GROUP,
        )


@kernel
def _join_splits(
    partial: tl.tensor,
    masses: tl.tensor,
    rows: tl.tensor,
    contexts: tl.tensor,
    output: tl.tensor,
    max_splits: int,
    NUM_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    SPLIT: tl.constexpr,
    OVERLAPS: tl.constexpr,
) -> None:
    """One head of one row a program: its splits' means, weighed by their masses."""
    follow(OVERLAPS)
    item = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1)
    dim = tl.arange(0, HEAD_DIM)
    first = (item * NUM_HEADS + head) * max_splits
    num_splits = (tl.load(contexts + item) + SPLIT - 1) // SPLIT
    largest = tl.full([], float("-inf"), tl.float32)
    mass = tl.zeros([], tl.float32)
    weighted = tl.zeros([HEAD_DIM], tl.float32)
    for split in range(num_splits):
        exponent = tl.load(masses + first + split)
        mean = tl.load(partial + (first + split) * HEAD_DIM + dim)
        now = tl.maximum(largest, exponent)
        shrink = tl.exp2(largest - now)
        weight = tl.exp2(exponent - now)
        mass = mass * shrink + weight
        weighted = weighted * shrink + mean * weight
        largest = now
    # A row without a context has no splits: it becomes zeros, not 0 / 0.
    result = weighted / tl.maximum(mass, 1e-30)
    row = tl.load(rows + item).to(tl.int64)
    target = output + (row * NUM_HEADS + head) * HEAD_DIM + dim
    tl.store(target, result.to(output.dtype.element_ty), mask=(row >= 0) & (dim < HEAD_DIM))


@kernel
def _prefill(
    query: tl.tensor,
    keys: tl.tensor,
    values: tl.tensor,
    tiles: tl.tensor,
    tables: tl.tensor,
    output: tl.tensor,
    table_width: int,
    SCALE: tl.constexpr,
    NUM_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    ROWS: tl.constexpr,
    TILE: tl.constexpr,
    OVERLAPS: tl.constexpr,
) -> None:
    """One head of one tile's queries a program."""
    follow(OVERLAPS)
    head = tl.program_id(0)
    tile = tiles + tl.program_id(1) * 4
    first_row = tl.load(tile).to(tl.int64)
    num_rows = tl.load(tile + 1)
    if num_rows == 0:
        return
    first_position = tl.load(tile + 2)
    table = tables + tl.load(tile + 3).to(tl.int64) * table_width
    row = tl.arange(0, ROWS)
    dim = tl.arange(0, HEAD_DIM)
    place = ((first_row + row[:, None]) * NUM_HEADS + head) * HEAD_DIM + dim[None, :]
    live = row[:, None] < num_rows
    q = tl.load(query + place, mask=live, other=0.0)
    largest = tl.full([ROWS], float("-inf"), tl.float32)
    mass = tl.zeros([ROWS], tl.float32)
    weighted = tl.zeros([ROWS, HEAD_DIM], tl.float32)
    end = first_position + num_rows
    for start in range(0, end, TILE):
        index = start + tl.arange(0, TILE)
        inside = index < end
        offset = _offsets(
            table, index, inside, head // GROUP, NUM_HEADS // GROUP, HEAD_DIM, BLOCK_SIZE
        )
        key = tl.load(keys + offset[None, :] + dim[:, None], mask=inside[None, :], other=0.0)
        value = tl.load(values + offset[:, None] + dim[None, :], mask=inside[:, None], other=0.0)
        score = tl.dot(q, key, input_precision="ieee") * SCALE
        visible = inside[None, :] & (index[None, :] <= first_position + row[:, None])
        score = tl.where(visible, score, float("-inf"))
        largest, mass, weighted = _fold(score, value, largest, mass, weighted)
    result = weighted / mass[:, None]
    tl.store(output + place, result.to(output.dtype.element_ty), mask=live)
