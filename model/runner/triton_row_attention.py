"""Attention of a single row in two launches: norm, rotation and its own key and value included.

Beside a layer's products, which a decode step of one sequence reads at the memory's rate, what
attention waits for is launches and latencies, not bytes. So each part of a context turns the
queries that it needs by itself, and asks for the keys and values of earlier tokens before the
product in front of it has ended. Joining the parts in the same launch, by the last that is done,
is no faster: a single program then reads what otherwise is read by one for each head.
Needs triton; only what runs on CUDA imports this module.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import triton.language as tl  # type: ignore[import-untyped]
from torch import Tensor

from model.runner.triton_attention import LOG2_E, SMALLEST_DOT, _fold, _offsets
from model.runner.triton_kernels import power_of_two
from model.runner.triton_launch import follow, kernel, launch

if TYPE_CHECKING:
    from model.runner.kernels import Rotation

TILE = 128  # tokens of context that a program reads at once
PARTS = 32  # programs of one KV head, among which a context's tiles are shared out
NUM_WARPS, JOIN_WARPS = 8, 4


def row_attention(
    qkv: Tensor,
    qk_norm: Tensor,
    rotation: Rotation,
    slots: Tensor,
    keys: Tensor,
    values: Tensor,
    tables: Tensor,
    contexts: Tensor,
    *,
    eps: float,
    block_size: int,
    scaling: float,
) -> Tensor:
    """Norm and rotate a row's queries and key, store its key and value, attend to its context.

    qkv: [1, (num_heads + 2 * num_kv_heads) * head_dim]; the rotation: [1, head_dim / 2]
    qk_norm: [num_heads + num_kv_heads, head_dim]
    slots: [1] int32, where the key and the value go; below 0: nowhere
    keys, values: [num_slots, num_kv_heads, head_dim]
    tables: [1, max_blocks] int32; contexts: [1] int32, the row itself included
    returns [1, num_heads * head_dim]

    The context, its table, and the keys and values of earlier tokens are read before the kernel in
    front has ended: it must not be what writes them. How a context is cut depends on its length
    alone: what the row gives does not depend on how programs share the work.
    Source: Dao et al., Flash-Decoding for long-context inference, 2023.
    """
    assert len(qkv) == 1, "this is for a single row"
    assert all(tensor.is_contiguous() for tensor in (qkv, qk_norm, keys, values))
    assert rotation.cos.stride() == rotation.sin.stride(), "one address serves both"
    num_kv_heads, head_dim = keys.shape[1:]
    num_heads = len(qk_norm) - num_kv_heads
    group = num_heads // num_kv_heads
    means = qkv.new_empty((num_heads, PARTS, head_dim), dtype=torch.float32)
    masses = qkv.new_empty((num_heads, PARTS), dtype=torch.float32)
    output = qkv.new_empty((1, num_heads * head_dim))
    launch(
        _row_parts,
        (num_kv_heads, PARTS),
        *(qkv, qk_norm, rotation.cos, rotation.sin, slots, keys, values, tables, contexts),
        *(means, masses),
        rotation.cos.stride(1),
        *(eps, scaling * LOG2_E, num_kv_heads, group, max(SMALLEST_DOT, power_of_two(group))),
        *(head_dim, block_size, PARTS, TILE),
        num_warps=NUM_WARPS,
    )
    launch(
        _join_parts,
        (num_heads,),
        *(means, masses, contexts, output, head_dim, PARTS, TILE),
        num_warps=JOIN_WARPS,
    )
    return output


@kernel
def _row_parts(
    qkv: tl.tensor,
    qk_norm: tl.tensor,
    cos: tl.tensor,
    sin: tl.tensor,
    slots: tl.tensor,
    keys: tl.tensor,
    values: tl.tensor,
    table: tl.tensor,
    contexts: tl.tensor,
    means: tl.tensor,
    masses: tl.tensor,
    angle_column: int,
    EPS: tl.constexpr,
    SCALE: tl.constexpr,
    NUM_KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    PADDED_GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    PARTS: tl.constexpr,
    TILE: tl.constexpr,
    OVERLAPS: tl.constexpr,
) -> None:
    """One part of the context a program, with all query heads of one KV head."""
    kv_head = tl.program_id(0)
    part = tl.program_id(1)
    # Tokens that are stored already. The row itself is the last of its context; a padding row has
    # no context, and looks at itself.
    num_stored = tl.maximum(tl.load(contexts), 1) - 1
    tiles_each, num_parts = _cut(num_stored + 1, PARTS, TILE)
    if part >= num_parts:
        return
    dim = tl.arange(0, HEAD_DIM)
    first = part * tiles_each * TILE
    end = tl.minimum(first + tiles_each * TILE, num_stored)
    index = first + tl.arange(0, TILE)
    inside = index < end
    offset = _offsets(table, index, inside, kv_head, NUM_KV_HEADS, HEAD_DIM, BLOCK_SIZE)
    key = tl.load(keys + offset[None, :] + dim[:, None], mask=inside[None, :], other=0.0)
    value = tl.load(values + offset[:, None] + dim[None, :], mask=inside[:, None], other=0.0)
    follow(OVERLAPS)
    member = tl.arange(0, PADDED_GROUP)
    head = kv_head * GROUP + member
    is_ours = member < GROUP
    q = _turned(qkv, qk_norm, cos, sin, angle_column, head, is_ours, EPS, HEAD_DIM)
    largest = tl.full([PADDED_GROUP], float("-inf"), tl.float32)
    mass = tl.zeros([PADDED_GROUP], tl.float32)
    weighted = tl.zeros([PADDED_GROUP, HEAD_DIM], tl.float32)
    for _ in range(first, end, TILE):
        score = tl.dot(q, key, input_precision="ieee") * SCALE
        score = tl.where(inside[None, :], score, float("-inf"))
        largest, mass, weighted = _fold(score, value, largest, mass, weighted)
        index += TILE
        inside = index < end
        offset = _offsets(table, index, inside, kv_head, NUM_KV_HEADS, HEAD_DIM, BLOCK_SIZE)
        key = tl.load(keys + offset[None, :] + dim[:, None], mask=inside[None, :], other=0.0)
        value = tl.load(values + offset[:, None] + dim[None, :], mask=inside[:, None], other=0.0)
    if part == num_parts - 1:
        one = tl.arange(0, 1)
        key_head = NUM_KV_HEADS * GROUP + kv_head + one
        own_key = _turned(qkv, qk_norm, cos, sin, angle_column, key_head, one == 0, EPS, HEAD_DIM)
        value_head = NUM_KV_HEADS * (GROUP + 1) + kv_head + one
        own_value = tl.load(qkv + value_head[:, None] * HEAD_DIM + dim[None, :])
        slot = tl.load(slots).to(tl.int64)
        target = ((slot * NUM_KV_HEADS + kv_head) * HEAD_DIM + dim)[None, :]
        tl.store(keys + target, own_key, mask=(slot >= 0) & (dim < HEAD_DIM)[None, :])
        tl.store(values + target, own_value, mask=(slot >= 0) & (dim < HEAD_DIM)[None, :])
        score = tl.sum(q.to(tl.float32) * own_key.to(tl.float32), 1) * SCALE
        now = tl.maximum(largest, score)
        shrink = tl.exp2(largest - now)
        weight = tl.exp2(score - now)
        mass = mass * shrink + weight
        # Rounded as the weights of a tile are.
        weight = weight.to(own_value.dtype).to(tl.float32)
        weighted = weighted * shrink[:, None] + weight[:, None] * own_value.to(tl.float32)
        largest = now
    place = head * PARTS + part
    tl.store(masses + place, largest + tl.log2(mass), mask=is_ours)
    tl.store(
        means + place[:, None] * HEAD_DIM + dim[None, :],
        weighted / mass[:, None],
        mask=is_ours[:, None],
    )


@kernel
def _join_parts(
    means: tl.tensor,
    masses: tl.tensor,
    contexts: tl.tensor,
    output: tl.tensor,
    HEAD_DIM: tl.constexpr,
    PARTS: tl.constexpr,
    TILE: tl.constexpr,
    OVERLAPS: tl.constexpr,
) -> None:
    """One head a program: the means of its parts, weighed by their masses."""
    _, num_parts = _cut(tl.maximum(tl.load(contexts), 1), PARTS, TILE)
    follow(OVERLAPS)
    head = tl.program_id(0)
    part = tl.arange(0, PARTS)
    dim = tl.arange(0, HEAD_DIM)
    exists = part < num_parts
    place = head * PARTS + part
    mass = tl.load(masses + place, mask=exists, other=float("-inf"))
    mean = tl.load(
        means + place[:, None] * HEAD_DIM + dim[None, :], mask=exists[:, None], other=0.0
    )
    weight = tl.exp2(mass - tl.max(mass, 0))
    result = tl.sum(mean * weight[:, None], 0) / tl.sum(weight, 0)
    tl.store(output + head * HEAD_DIM + dim, result.to(output.dtype.element_ty))


@kernel
def _cut(context: tl.tensor, PARTS: tl.constexpr, TILE: tl.constexpr) -> tuple[int, int]:
    """Tiles of each part of a context, and parts that there are."""
    num_tiles = (context + TILE - 1) // TILE
    tiles_each = (num_tiles + PARTS - 1) // PARTS
    return tiles_each, (num_tiles + tiles_each - 1) // tiles_each


@kernel
def _turned(
    qkv: tl.tensor,
    qk_norm: tl.tensor,
    cos: tl.tensor,
    sin: tl.tensor,
    angle_column: int,
    head: tl.tensor,
    exists: tl.tensor,
    EPS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
) -> tl.tensor:
    """Heads of a row, normed and rotated; head, exists: [heads]; returns [heads, HEAD_DIM]."""
    HALF: tl.constexpr = HEAD_DIM // 2
    dim = tl.arange(0, HEAD_DIM)
    # Each number turns with the one half a head away.
    place = head[:, None] * HEAD_DIM + dim[None, :]
    across = head[:, None] * HEAD_DIM + ((dim + HALF) % HEAD_DIM)[None, :]
    own = tl.load(qkv + place, mask=exists[:, None], other=0.0)
    dtype = own.dtype
    own = own.to(tl.float32)
    other = tl.load(qkv + across, mask=exists[:, None], other=0.0).to(tl.float32)
    scale = (1.0 / tl.sqrt(tl.sum(own * own, 1) / HEAD_DIM + EPS))[:, None]
    own *= scale * tl.load(qk_norm + place, mask=exists[:, None], other=0.0).to(tl.float32)
    other *= scale * tl.load(qk_norm + across, mask=exists[:, None], other=0.0).to(tl.float32)
    angle = (dim % HALF) * angle_column
    cosine = tl.load(cos + angle).to(tl.float32)
    sine = tl.load(sin + angle).to(tl.float32)
    sine = tl.where(dim < HALF, -sine, sine)
    return (own * cosine[None, :] + other * sine[None, :]).to(dtype)
