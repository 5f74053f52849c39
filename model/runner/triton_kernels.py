"""The text model's kernels in Triton, each behind a function over tensors.

Sums are taken in float32 whatever the tensors hold. Attention is in triton_attention.py, products
in triton_products.py. Knows neither sequences nor graphs.
Needs triton; only what runs on CUDA imports this module.
"""

from __future__ import annotations

import triton  # type: ignore[import-untyped]
import triton.language as tl  # type: ignore[import-untyped]
from torch import Tensor, empty_like

from model.runner.triton_launch import follow, kernel, launch

NORM_HEADS = 8  # heads that one program norms and rotates
SILU_WIDTH = 1024


def rms_norm(rows: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Scale each row by its root mean square, then by weight; rows: [num_rows, width]."""
    assert rows.is_contiguous(), "kernels address rows by their width"
    normal = empty_like(rows)
    width = rows.shape[1]
    if len(rows):
        grid = (len(rows),)
        constants = (eps, width, power_of_two(width), False)
        launch(_rms_norm, grid, rows, rows, weight, normal, *constants, num_warps=8)
    return normal


def add_rms_norm(hidden: Tensor, addition: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Add in place to hidden, and return the sum's norm; all [num_rows, width]."""
    assert hidden.is_contiguous(), "kernels address rows by their width"
    assert addition.is_contiguous(), "kernels address rows by their width"
    normal = empty_like(hidden)
    width = hidden.shape[1]
    if len(hidden):
        grid = (len(hidden),)
        constants = (eps, width, power_of_two(width), True)
        launch(_rms_norm, grid, hidden, addition, weight, normal, *constants, num_warps=8)
    return normal


def silu_mul(gate_up: Tensor) -> Tensor:
    """silu(gate) * up; gate_up: [num_rows, 2 * width], returns [num_rows, width]."""
    assert gate_up.is_contiguous(), "kernels address rows by their width"
    num_rows, width = len(gate_up), gate_up.shape[1] // 2
    product = gate_up.new_empty((num_rows, width))
    if num_rows:
        grid = (num_rows, triton.cdiv(width, SILU_WIDTH))
        launch(_silu_mul, grid, gate_up, product, width, SILU_WIDTH, num_warps=4)
    return product


def norm_rotate_store(
    qkv: Tensor,
    qk_norm: Tensor,
    cos: Tensor,
    sin: Tensor,
    slots: Tensor,
    keys: Tensor,
    values: Tensor,
    eps: float,
) -> Tensor:
    """Norm and rotate queries and keys, write keys and values to their slots, return the queries.

    qkv: [num_tokens, (num_heads + 2 * num_kv_heads) * head_dim]
    qk_norm: [num_heads + num_kv_heads, head_dim]; cos, sin: [num_tokens, head_dim / 2]
    slots: [num_tokens] int32, below 0 where a token is written nowhere
    keys, values: [num_slots, num_kv_heads, head_dim]
    returns [num_tokens, num_heads, head_dim]
    """
    assert all(tensor.is_contiguous() for tensor in (qkv, qk_norm, keys, values))
    assert cos.stride() == sin.stride(), "one address serves both"
    num_tokens = len(qkv)
    num_kv_heads, head_dim = keys.shape[1:]
    num_heads = len(qk_norm) - num_kv_heads
    query = qkv.new_empty((num_tokens, num_heads, head_dim))
    if num_tokens:
        grid = (num_tokens, triton.cdiv(num_heads + 2 * num_kv_heads, NORM_HEADS))
        launch(
            _norm_rotate_store,
            grid,
            qkv,
            qk_norm,
            cos,
            sin,
            slots,
            query,
            keys,
            values,
            *cos.stride(),
            eps,
            num_heads,
            num_kv_heads,
            head_dim // 2,
            NORM_HEADS,
            num_warps=4,
        )
    return query


def power_of_two(number: int) -> int:
    """The least power of two that is no less."""
    return 1 << (number - 1).bit_length()


@kernel
def _rms_norm(
    rows: tl.tensor,
    addition: tl.tensor,
    weight: tl.tensor,
    normal: tl.tensor,
    EPS: tl.constexpr,
    WIDTH: tl.constexpr,
    PADDED: tl.constexpr,
    ADDS: tl.constexpr,
    OVERLAPS: tl.constexpr,
) -> None:
    """One row a program; PADDED: the power of two that holds WIDTH."""
    follow(OVERLAPS)
    column = tl.arange(0, PADDED)
    inside = column < WIDTH
    offset = tl.program_id(0).to(tl.int64) * WIDTH + column
    row = tl.load(rows + offset, mask=inside, other=0.0)
    wide = row.to(tl.float32)
    if ADDS:
        wide += tl.load(addition + offset, mask=inside, other=0.0).to(tl.float32)
        # What later layers add to is rounded: the norm is of that.
        row = wide.to(row.dtype)
        tl.store(rows + offset, row, mask=inside)
        wide = row.to(tl.float32)
    scale = 1.0 / tl.sqrt(tl.sum(wide * wide, 0) / WIDTH + EPS)
    by = tl.load(weight + column, mask=inside, other=0.0).to(tl.float32)
    tl.store(normal + offset, (wide * scale * by).to(row.dtype), mask=inside)


@kernel
def _silu_mul(
    gate_up: tl.tensor,
    product: tl.tensor,
    WIDTH: tl.constexpr,
    TILE: tl.constexpr,
    OVERLAPS: tl.constexpr,
) -> None:
    """TILE columns of one row a program."""
    follow(OVERLAPS)
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * TILE + tl.arange(0, TILE)
    inside = column < WIDTH
    first = gate_up + row * (2 * WIDTH) + column
    gate = tl.load(first, mask=inside, other=0.0)
    up = tl.load(first + WIDTH, mask=inside, other=0.0)
    wide = gate.to(tl.float32)
    result = wide / (1.0 + tl.exp(-wide)) * up.to(tl.float32)
    tl.store(product + row * WIDTH + column, result.to(gate.dtype), mask=inside)


@kernel
def _norm_rotate_store(
    qkv: tl.tensor,
    qk_norm: tl.tensor,
    cos: tl.tensor,
    sin: tl.tensor,
    slots: tl.tensor,
    query: tl.tensor,
    keys: tl.tensor,
    values: tl.tensor,
    angle_row: int,
    angle_column: int,
    EPS: tl.constexpr,
    NUM_HEADS: tl.constexpr,
    NUM_KV_HEADS: tl.constexpr,
    HALF: tl.constexpr,
    HEADS: tl.constexpr,
    OVERLAPS: tl.constexpr,
) -> None:
    """HEADS heads of one token a program: queries, then keys, then values; HALF: of head_dim."""
    follow(OVERLAPS)
    TURNED: tl.constexpr = NUM_HEADS + NUM_KV_HEADS
    ALL: tl.constexpr = TURNED + NUM_KV_HEADS
    token = tl.program_id(0).to(tl.int64)
    head = (tl.program_id(1) * HEADS + tl.arange(0, HEADS))[:, None]
    column = tl.arange(0, HALF)[None, :]
    exists = (head < ALL) & (column < HALF)
    turned = (head < TURNED) & (column < HALF)
    source = qkv + (token * ALL + head) * (2 * HALF) + column
    low = tl.load(source, mask=exists, other=0.0)
    dtype = low.dtype
    low = low.to(tl.float32)
    high = tl.load(source + HALF, mask=exists, other=0.0).to(tl.float32)
    square = tl.sum(low * low, 1) + tl.sum(high * high, 1)
    scale = (1.0 / tl.sqrt(square / (2 * HALF) + EPS))[:, None]
    by = qk_norm + head * (2 * HALF) + column
    first = low * scale * tl.load(by, mask=turned, other=0.0).to(tl.float32)
    second = high * scale * tl.load(by + HALF, mask=turned, other=0.0).to(tl.float32)
    angle = token * angle_row + column * angle_column
    cosine = tl.load(cos + angle).to(tl.float32)
    sine = tl.load(sin + angle).to(tl.float32)
    low = tl.where(turned, first * cosine - second * sine, low).to(dtype)
    high = tl.where(turned, second * cosine + first * sine, high).to(dtype)
    target = query + (token * NUM_HEADS + head) * (2 * HALF) + column
    is_query = exists & (head < NUM_HEADS)
    tl.store(target, low, mask=is_query)
    tl.store(target + HALF, high, mask=is_query)
    slot = tl.load(slots + token).to(tl.int64)
    kept = exists & (slot >= 0)
    is_key = kept & turned & (head >= NUM_HEADS)
    target = keys + (slot * NUM_KV_HEADS + head - NUM_HEADS) * (2 * HALF) + column
    tl.store(target, low, mask=is_key)
    tl.store(target + HALF, high, mask=is_key)
    is_value = kept & (head >= TURNED)
    target = values + (slot * NUM_KV_HEADS + head - TURNED) * (2 * HALF) + column
    tl.store(target, low, mask=is_value)
    tl.store(target + HALF, high, mask=is_value)
