"""Products of a single row with a layer's weights in Triton, and what stands before and after them.

A decode step of one sequence reads every weight once, and the memory's rate decides. A program
calls for its first weights before the kernel in front of it has ended, so that the memory is busy
from one product to the next. From two rows on the device's library is faster.
Needs triton; only what runs on CUDA imports this module.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, NamedTuple

import torch
import triton  # type: ignore[import-untyped]
import triton.language as tl  # type: ignore[import-untyped]

from model.runner.triton_launch import follow, kernel, launch

if TYPE_CHECKING:
    from torch import Tensor


class Share(NamedTuple):
    """What one program takes, and how many of them a multiprocessor holds: registers decide.

    columns: outputs, of each half where there are two; tile: inputs of each that are read at once
    """

    columns: int
    tile: int
    num_warps: int
    resident: int


# Each is somewhere the fastest of many, on an H200 with weights that are in no cache.
PLAIN = (Share(16, 512, 8, 2), Share(8, 1024, 4, 3), Share(8, 1024, 8, 2))
GATED = (Share(16, 256, 4, 3), Share(8, 256, 4, 5))


def norm_product(hidden: Tensor, norm: Tensor, weight: Tensor, eps: float) -> Tensor:
    """The product of a row's norm, which is scaled by its root mean square and then by `norm`.

    hidden: [1, in_features]; norm: [in_features]; weight: [out_features, in_features]
    returns [1, out_features]
    """
    output = hidden.new_empty((1, len(weight)))
    _run(hidden, norm, weight, output, eps, normed=True)
    return output


def norm_gated_product(hidden: Tensor, norm: Tensor, weight: Tensor, eps: float) -> Tensor:
    """silu(gate) * up of the products of a row's norm.

    hidden: [1, in_features]; norm: [in_features]
    weight: [2 * width, in_features], gate before up; returns [1, width]
    """
    output = hidden.new_empty((1, len(weight) // 2))
    _run(hidden, norm, weight, output, eps, normed=True, gated=True)
    return output


def add_product(hidden: Tensor, rows: Tensor, weight: Tensor) -> None:
    """Add a product in place to hidden.

    hidden: [1, out_features]; rows: [1, in_features]; weight: [out_features, in_features]
    """
    _run(rows, weight, weight, hidden, 0.0, adds=True)


def _run(
    row: Tensor,
    norm: Tensor,
    weight: Tensor,
    output: Tensor,
    eps: float,
    *,
    normed: bool = False,
    gated: bool = False,
    adds: bool = False,
) -> None:
    assert len(row) == 1, "this is for a single row"
    assert row.is_contiguous(), "kernels address rows by their width"
    assert weight.is_contiguous(), "kernels address rows by their width"
    num_inputs, num_outputs = weight.shape[1], output.shape[1]
    share = share_of(num_outputs, _num_multiprocessors(row.device), gated=gated)
    launch(
        _row_product,
        (triton.cdiv(num_outputs, share.columns),),
        *(row, norm, weight, output, num_inputs, num_outputs, eps),
        *(share.columns, share.tile, normed, gated, adds),
        num_warps=share.num_warps,
    )


def share_of(num_outputs: int, num_multiprocessors: int, *, gated: bool) -> Share:
    """How to share a product out, so that few places are empty while its last programs run."""

    def used(share: Share) -> float:
        num_programs = triton.cdiv(num_outputs, share.columns)
        places = share.resident * num_multiprocessors
        return float(num_programs / (triton.cdiv(num_programs, places) * places))

    return max(GATED if gated else PLAIN, key=used)


@cache
def _num_multiprocessors(device: torch.device) -> int:
    if device.type != "cuda":
        return 1
    return torch.cuda.get_device_properties(device).multi_processor_count


@kernel
def _row_product(
    row: tl.tensor,
    norm: tl.tensor,
    weight: tl.tensor,
    output: tl.tensor,
    INPUTS: tl.constexpr,
    OUTPUTS: tl.constexpr,
    EPS: tl.constexpr,
    COLUMNS: tl.constexpr,
    TILE: tl.constexpr,
    NORMED: tl.constexpr,
    GATED: tl.constexpr,
    ADDS: tl.constexpr,
    OVERLAPS: tl.constexpr,
) -> None:
    """COLUMNS outputs a program, TILE inputs at a time, of which the next are on their way."""
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    index = tl.arange(0, TILE)
    exists = (column < OUTPUTS)[:, None]
    place = weight + column[:, None] * INPUTS + index[None, :]
    # Weights are nobody's output: they need not wait for the kernel before.
    tile = tl.load(place, mask=exists & (index < INPUTS)[None, :], other=0.0)
    second = tile
    if GATED:
        second = tl.load(
            place + OUTPUTS * INPUTS, mask=exists & (index < INPUTS)[None, :], other=0.0
        )
    follow(OVERLAPS)
    # Sums of every place in a tile, until the end: no thread waits for another meanwhile.
    sums = tl.zeros([COLUMNS, TILE], tl.float32)
    second_sums = tl.zeros([COLUMNS, TILE], tl.float32)
    squares = tl.zeros([TILE], tl.float32)
    for start in range(0, INPUTS, TILE):
        inside = start + index < INPUTS
        ahead = exists & (start + TILE + index < INPUTS)[None, :]
        next_tile = tl.load(place + (start + TILE), mask=ahead, other=0.0)
        next_second = next_tile
        if GATED:
            next_second = tl.load(place + (start + TILE) + OUTPUTS * INPUTS, mask=ahead, other=0.0)
        wide = tl.load(row + start + index, mask=inside, other=0.0).to(tl.float32)
        if NORMED:
            squares += wide * wide
            wide = wide * tl.load(norm + start + index, mask=inside, other=0.0).to(tl.float32)
        sums += tile.to(tl.float32) * wide[None, :]
        if GATED:
            second_sums += second.to(tl.float32) * wide[None, :]
        tile, second = next_tile, next_second
    total, second_total = tl.sum(sums, 1), tl.sum(second_sums, 1)
    if NORMED:
        scale = 1.0 / tl.sqrt(tl.sum(squares, 0) / INPUTS + EPS)
        total *= scale
        second_total *= scale
    if GATED:
        total = total / (1.0 + tl.exp(-total)) * second_total
    target = output + column
    dtype = output.dtype.element_ty
    if ADDS:
        # Rounded first, as a product of its own would be.
        before = tl.load(target, mask=column < OUTPUTS, other=0.0).to(tl.float32)
        total = total.to(dtype).to(tl.float32) + before
    tl.store(target, total.to(dtype), mask=column < OUTPUTS)
