"""Products and attention in C for processors with 512-bit vectors.

Where `usable` says so they are faster than torch's and oneDNN's at any number of rows, and what
follows a product is computed before its result leaves the registers.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING, Final

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from model.runner import huge_pages
from model.runner.native import compiled
from model.runner.native.compiled import FLOAT, INTEGER, fields

if TYPE_CHECKING:
    from collections.abc import Sequence as Seq

    from model.runner.kernels import TextGeometry
    from model.runner.kv_cache import KVCache

# As in the C code: outputs of a panel, keys of a tile.
COLUMNS: Final = 64
# Rows of a tile.
ROWS: Final = 6
# Query rows that one task of attention holds sums for; fewer than these are not worth packing keys.
MAX_TASK_ROWS: Final = 2048
MIN_TASK_TOKENS: Final = 48
TASKS_PER_THREAD: Final = 3
DECODE_HEAD_DIMS: Final = (64, 128)
# What separates a span that attends to itself from one that has pages.
NO_TABLE: Final = -1


class WideActivation(IntEnum):
    """What is applied to a product; SWIGLU: silu of the first half times the second."""

    NONE = 0
    GELU_TANH = 1
    SWIGLU = 2


class WideLinear(nn.Module):
    """A Linear over a weight packed in panels, which replaces the original."""

    def __init__(self, layer: nn.Linear, activation: WideActivation = WideActivation.NONE) -> None:
        super().__init__()
        weight = layer.weight.detach()
        self.in_features = layer.in_features
        self.out_features = layer.out_features
        bias = dict(layer.named_parameters()).get("bias")
        if activation is WideActivation.SWIGLU:
            assert bias is None, "no Qwen3-VL has one here"
            self.out_features //= 2
            weight = _gates_beside_ups(weight)
        self._activation = activation
        # Neither is a parameter: a packed weight can neither be saved nor moved.
        self.weight = pack(weight)
        self.bias = None if bias is None else _whole_panels(bias.detach().to(torch.float32))
        self._linear = compiled.function("linear", weight.dtype)
        self._unpack_rows = compiled.function("unpack_rows", weight.dtype)

    def forward(self, rows: Tensor, *, plus: Tensor | None = None) -> Tensor:
        """See packed.Linear."""
        assert plus is None or self._activation is WideActivation.NONE, "a sum has no activation"
        flat = rows.reshape(-1, self.in_features)
        out = flat.new_empty((len(flat), self.out_features))
        self._linear(
            out.data_ptr(),
            flat.data_ptr(),
            self.weight.data_ptr(),
            None if self.bias is None else self.bias.data_ptr(),
            None if plus is None else plus.contiguous().data_ptr(),
            len(flat),
            self.in_features,
            self.out_features,
            self._activation,
        )
        return out.view(*rows.shape[:-1], self.out_features)

    def rows(self, numbers: Tensor) -> Tensor:
        """Rows of the weight as they were before it was packed.

        numbers: [num_rows] int64; returns [num_rows, in_features]
        """
        assert self._activation is not WideActivation.SWIGLU, "its rows have changed places"
        assert numbers.dtype is torch.int64, "as the compiled code reads them"
        assert numbers.is_contiguous(), "the same"
        rows = self.weight.new_empty((len(numbers), self.in_features))
        self._unpack_rows(
            rows.data_ptr(),
            self.weight.data_ptr(),
            numbers.data_ptr(),
            len(numbers),
            self.in_features,
        )
        return rows


def can_widen(layer: nn.Linear) -> bool:
    """Whether the kernels take such a depth; bfloat16's go by two."""
    return layer.weight.dtype is torch.float32 or layer.in_features % 2 == 0


def pack(weight: Tensor) -> Tensor:
    """[out_features, in_features] → panels of COLUMNS outputs, the depth of a panel together.

    returns [panels, in_features, COLUMNS], of bfloat16 [panels, in_features / 2, COLUMNS, 2]; the
    last panel is filled up with zeros
    """
    depth = weight.shape[1]
    panels = _whole_panels(weight).view(-1, COLUMNS, depth)
    if weight.dtype is torch.bfloat16:
        panels = panels.view(-1, COLUMNS, depth // 2, 2)
    return huge_pages.copy(panels.transpose(1, 2))


def _whole_panels(rows: Tensor) -> Tensor:
    missing = -len(rows) % COLUMNS
    return pad(rows, (0, 0) * (rows.dim() - 1) + (0, missing)).contiguous()


def _gates_beside_ups(weight: Tensor) -> Tensor:
    """Gates first, then ups → half a panel of gates, half a panel of ups, and so on."""
    gates, ups = (_half_panels(half) for half in weight.chunk(2))
    return torch.stack([gates, ups], dim=1).reshape(-1, weight.shape[1])


def _half_panels(rows: Tensor) -> Tensor:
    half = COLUMNS // 2
    return pad(rows, (0, 0, 0, -len(rows) % half)).view(-1, half, rows.shape[1])


class Layout(ctypes.Structure):
    """`struct layout` of the C code; sizes in elements from one token to the next."""

    _fields_ = (
        *fields(
            INTEGER,
            *("query_size", "key_size", "value_size", "out_size"),
            *("block_size", "group", "head_dim", "padded_dim"),
        ),
        *fields(FLOAT, "scaling"),
    )


@dataclass(frozen=True, slots=True)
class Spans:
    """Sequences' rows in a batch and the keys they attend to.

    rows: [num_spans, 4] int64: first row, number of tokens, place of the first in its sequence, and
    where its pages begin in `tables`; with NO_TABLE it attends to its own rows, all to all
    tables: int32, the pages of all spans, one after the other
    """

    rows: Tensor
    tables: Tensor
    block_size: int

    @classmethod
    def of_pages(cls, chunks: Seq[tuple[int, int, int, list[int]]], block_size: int) -> Spans:
        """chunks: for each its first row, [start, end) of its sequence, and the block table."""
        rows: list[tuple[int, int, int, int]] = []
        tables: list[int] = []
        for row, start, end, table in chunks:
            rows.append((row, end - start, start, len(tables)))
            tables += table[: -(-end // block_size)]
        return cls(torch.tensor(rows), torch.tensor(tables, dtype=torch.int32), block_size)

    @classmethod
    def of_themselves(cls, sizes: Seq[int]) -> Spans:
        """Side by side, each attends to itself."""
        starts = np.cumsum([0, *sizes[:-1]])
        rows = [(int(start), size, 0, NO_TABLE) for start, size in zip(starts, sizes, strict=True)]
        return cls(torch.tensor(rows), torch.empty(0, dtype=torch.int32), 1)

    def layout_of_pages(self, qkv: Tensor, out: Tensor, geometry: TextGeometry) -> Layout:
        """What the C code must know to read the cache for these."""
        kv_size = geometry.num_kv_heads * geometry.head_dim
        return make_layout(
            (qkv.shape[1], kv_size, kv_size, out.shape[1]),
            self.block_size,
            (geometry.num_heads // geometry.num_kv_heads, geometry.head_dim),
            geometry.scaling,
        )

    def chunk(self, num_heads: int, group: int) -> int:
        """Tokens of a task: enough tasks for all threads, and keys packed no oftener than that."""
        sizes = self.rows[:, 1]
        tasks = TASKS_PER_THREAD * torch.get_num_threads()
        wanted = int(sizes.sum()) * num_heads // tasks
        return max(1, min(max(wanted, MIN_TASK_TOKENS), MAX_TASK_ROWS // group))


class WideAttention:
    """Attention out of the cache's pages."""

    def __init__(self, dtype: torch.dtype) -> None:
        self._attend = compiled.function("attend", dtype)
        self.decode = compiled.function("attend_decode_wide", dtype)

    def over_pages(
        self,
        out: Tensor,
        qkv: Tensor,
        cache: KVCache,
        layer: int,
        spans: Spans,
        geometry: TextGeometry,
    ) -> None:
        """Every token of the spans to itself and those before it.

        qkv: as `turn_and_store` leaves it; out: [num_tokens, num_heads * head_dim], of which the
        spans' rows are written
        """
        layout = spans.layout_of_pages(qkv, out, geometry)
        num_kv_heads = geometry.num_kv_heads
        self._attend(
            out.data_ptr(),
            qkv.data_ptr(),
            cache.keys[layer].data_ptr(),
            cache.values[layer].data_ptr(),
            spans.rows.data_ptr(),
            spans.tables.data_ptr(),
            len(spans.rows),
            num_kv_heads,
            ctypes.addressof(layout),
            spans.chunk(num_kv_heads, geometry.num_heads // num_kv_heads),
        )


def make_layout(
    sizes: tuple[int, int, int, int], block_size: int, group: tuple[int, int], scaling: float
) -> Layout:
    """group: heads that share a key head, and their head_dim."""
    padded = -(-group[1] // COLUMNS) * COLUMNS
    return Layout(*sizes, block_size, *group, padded, scaling)
