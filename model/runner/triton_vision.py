"""The vision tower's kernels in Triton, each behind a function over tensors.

Sums are taken in float32 whatever the tensors hold. Knows neither pictures nor layers.
Needs triton; only what runs on CUDA imports this module.
"""

from __future__ import annotations

import triton  # type: ignore[import-untyped]
import triton.language as tl  # type: ignore[import-untyped]
from torch import Tensor, empty_like

from model.runner.triton_kernels import power_of_two
from model.runner.triton_launch import follow, kernel, launch

ROTATED_HEADS = 8  # heads that one program rotates


def add_layer_norm(
    hidden: Tensor, addition: Tensor, weight: Tensor, bias: Tensor, eps: float
) -> Tensor:
    """Add in place to hidden, and return the sum's norm; all [num_rows, width].

    Source: Ba et al., Layer Normalization, 2016.
    """
    assert hidden.is_contiguous(), "kernels address rows by their width"
    assert addition.is_contiguous(), "kernels address rows by their width"
    normal = empty_like(hidden)
    num_rows, width = hidden.shape
    if num_rows:
        constants = (eps, width, power_of_two(width))
        rows = (hidden, addition, weight, bias, normal)
        launch(_add_layer_norm, (num_rows,), *rows, *constants, num_warps=4)
    return normal


def rotate_in_place(qkv: Tensor, cos: Tensor, sin: Tensor, num_heads: int) -> None:
    """Turn queries and keys by their patches' angles; values stay.

    qkv: [num_patches, 3 * num_heads * head_dim]; cos, sin: [num_patches, head_dim / 2]
    Source: Su et al., RoFormer, 2021.
    """
    assert qkv.is_contiguous(), "kernels address rows by their width"
    assert cos.stride() == sin.stride(), "one address serves both"
    num_patches, half = cos.shape
    if num_patches:
        grid = (num_patches, triton.cdiv(2 * num_heads, ROTATED_HEADS))
        constants = (2 * num_heads, 3 * num_heads, half, power_of_two(half), ROTATED_HEADS)
        launch(_rotate_in_place, grid, qkv, cos, sin, *cos.stride(), *constants, num_warps=2)


@kernel
def _add_layer_norm(
    hidden: tl.tensor,
    addition: tl.tensor,
    weight: tl.tensor,
    bias: tl.tensor,
    normal: tl.tensor,
    EPS: tl.constexpr,
    WIDTH: tl.constexpr,
    PADDED: tl.constexpr,
    OVERLAPS: tl.constexpr,
) -> None:
    """One row a program; PADDED: the power of two that holds WIDTH."""
    follow(OVERLAPS)
    column = tl.arange(0, PADDED)
    inside = column < WIDTH
    offset = tl.program_id(0).to(tl.int64) * WIDTH + column
    row = tl.load(hidden + offset, mask=inside, other=0.0)
    wide = row.to(tl.float32) + tl.load(addition + offset, mask=inside, other=0.0).to(tl.float32)
    # What later layers add to is rounded: the norm is of that.
    row = wide.to(row.dtype)
    tl.store(hidden + offset, row, mask=inside)
    wide = row.to(tl.float32)
    wide = tl.where(inside, wide - tl.sum(wide, 0) / WIDTH, 0.0)
    scale = 1.0 / tl.sqrt(tl.sum(wide * wide, 0) / WIDTH + EPS)
    by = tl.load(weight + column, mask=inside, other=0.0).to(tl.float32)
    plus = tl.load(bias + column, mask=inside, other=0.0).to(tl.float32)
    tl.store(normal + offset, (wide * scale * by + plus).to(row.dtype), mask=inside)


@kernel
def _rotate_in_place(
    qkv: tl.tensor,
    cos: tl.tensor,
    sin: tl.tensor,
    angle_row: int,
    angle_column: int,
    TURNED: tl.constexpr,
    ALL: tl.constexpr,
    HALF: tl.constexpr,
    PADDED: tl.constexpr,
    HEADS: tl.constexpr,
    OVERLAPS: tl.constexpr,
) -> None:
    """HEADS heads of one patch a program. Of ALL, the first TURNED turn; HALF: of head_dim."""
    follow(OVERLAPS)
    patch = tl.program_id(0).to(tl.int64)
    head = (tl.program_id(1) * HEADS + tl.arange(0, HEADS))[:, None]
    column = tl.arange(0, PADDED)[None, :]
    exists = (head < TURNED) & (column < HALF)
    place = qkv + (patch * ALL + head) * (2 * HALF) + column
    low = tl.load(place, mask=exists, other=0.0)
    dtype = low.dtype
    low = low.to(tl.float32)
    high = tl.load(place + HALF, mask=exists, other=0.0).to(tl.float32)
    angle = patch * angle_row + column * angle_column
    cosine = tl.load(cos + angle, mask=column < HALF, other=0.0).to(tl.float32)
    sine = tl.load(sin + angle, mask=column < HALF, other=0.0).to(tl.float32)
    tl.store(place, (low * cosine - high * sine).to(dtype), mask=exists)
    tl.store(place + HALF, (high * cosine + low * sine).to(dtype), mask=exists)
