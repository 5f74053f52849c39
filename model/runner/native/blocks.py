"""All blocks of the vision tower in one call of the compiled library."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import Tensor

from model.runner.native import compiled
from model.runner.native.compiled import FLOAT, INTEGER, POINTER, fields
from model.runner.native.layers import Rooms
from model.runner.native.wide import COLUMNS, ROWS, Spans, WideLinear, make_layout

if TYPE_CHECKING:
    from collections.abc import Sequence as Seq

    from model.runner.fast_vision import Block
    from model.runner.kernels import Rotation

# Of a core's second cache, which has a megabyte and more: a task's rows, and the panel of a weight
# that they pass over.
CACHE_BYTES: Final = 900 * 1024
# Fewer would read weights faster than the cores that share the last cache can have them.
MIN_TASK_ROWS: Final = 48


class _Block(ctypes.Structure):
    """`struct block`."""

    _fields_ = fields(
        POINTER,
        *("attention_norm", "attention_norm_bias", "qkv", "out"),
        *("mlp_norm", "mlp_norm_bias", "up", "down"),
        *("qkv_bias", "out_bias", "up_bias", "down_bias"),
    )


class _Tower(ctypes.Structure):
    """`struct tower`."""

    _fields_ = (
        *fields(INTEGER, "num_blocks", "hidden_size", "num_heads", "head_dim", "intermediate_size"),
        *fields(FLOAT, "attention_eps", "mlp_eps"),
    )


class _Pictures(ctypes.Structure):
    """`struct pictures`."""

    _fields_ = (
        *fields(INTEGER, "num_rows", "num_spans", "chunk", "task_rows"),
        *fields(POINTER, "hidden", "qkv", "attended", "cached", "taps"),
        *fields(POINTER, "cos", "sin", "spans", "layout"),
    )


@dataclass(frozen=True, slots=True)
class _Sizes:
    hidden: int
    intermediate: int
    num_heads: int
    head_dim: int

    @property
    def attended(self) -> int:
        return self.num_heads * self.head_dim


class NativeBlocks:
    """The blocks, over packed weights.

    taps: the blocks after which the sum is told
    """

    def __init__(self, blocks: Seq[Block], taps: Seq[int]) -> None:
        self._held = blocks  # the structures below only have addresses
        self._taps = taps
        first = blocks[0]
        assert isinstance(first.qkv, WideLinear), "asked before"
        assert isinstance(first.up, WideLinear), "asked before"
        head_dim = first.qkv.out_features // 3 // first.num_heads
        self._sizes = _Sizes(
            first.qkv.in_features, first.up.out_features, first.num_heads, head_dim
        )
        self._structures = (_Block * len(blocks))(*map(_addresses, blocks))
        self._tower = _Tower(
            num_blocks=len(blocks),
            hidden_size=self._sizes.hidden,
            num_heads=first.num_heads,
            head_dim=head_dim,
            intermediate_size=self._sizes.intermediate,
            attention_eps=first.attention_norm.eps,
            mlp_eps=first.mlp_norm.eps,
        )
        dtype = first.attention_norm.weight.dtype
        self._run = compiled.function("run_blocks", dtype)
        self._rooms = Rooms(dtype)

    @classmethod
    def of(cls, blocks: Seq[Block], taps: Seq[int]) -> NativeBlocks | None:
        """None where a part of them is not the compiled library's."""
        return cls(blocks, taps) if all(map(_is_wide, blocks)) else None

    def __call__(self, hidden: Tensor, rotation: Rotation, sizes: Seq[int]) -> list[Tensor]:
        """Run pictures side by side; each attends to itself alone.

        hidden: [num_patches, hidden_size], written into; sizes: patches of each picture
        returns the sum after each tap, [num_patches, hidden_size] each
        """
        num_rows, sizes_of = len(hidden), self._sizes
        assert hidden.is_contiguous(), "it is changed in place"
        spans = Spans.of_themselves(sizes)
        cos, sin = rotation.cos.contiguous(), rotation.sin.contiguous()
        qkv = self._rooms.room("qkv", num_rows, 3 * sizes_of.attended)
        attended = self._rooms.room("attended", num_rows, sizes_of.attended)
        task_rows = self._task_rows(num_rows, hidden.element_size())
        num_threads = torch.get_num_threads()
        row_size = sizes_of.hidden + sizes_of.intermediate
        cached = self._rooms.room("cached", num_threads * task_rows, row_size)
        last = len(self._structures) - 1
        told = {tap: torch.empty_like(hidden) for tap in self._taps if tap != last}
        told[last] = hidden
        pointers = (POINTER * (last + 1))(
            *(told[i].data_ptr() if i != last and i in told else None for i in range(last + 1))
        )
        shared = make_layout(
            (*(3 * sizes_of.attended,) * 3, sizes_of.attended),
            spans.block_size,
            (1, sizes_of.head_dim),
            sizes_of.head_dim**-0.5,
        )
        pictures = _Pictures(
            num_rows=num_rows,
            num_spans=len(spans.rows),
            chunk=spans.chunk(sizes_of.num_heads, 1),
            task_rows=task_rows,
            hidden=hidden.data_ptr(),
            qkv=qkv.data_ptr(),
            attended=attended.data_ptr(),
            cached=cached.data_ptr(),
            taps=ctypes.addressof(pointers),
            cos=cos.data_ptr(),
            sin=sin.data_ptr(),
            spans=spans.rows.data_ptr(),
            layout=ctypes.addressof(shared),
        )
        self._run(ctypes.addressof(self._tower), self._structures, ctypes.addressof(pictures))
        return [told[tap] for tap in self._taps]

    def _task_rows(self, num_rows: int, itemsize: int) -> int:
        """Rows of a task: so many that they stay in cache, and enough tasks for all threads."""
        sizes = self._sizes
        panel = COLUMNS * max(sizes.hidden, sizes.intermediate)
        most = (CACHE_BYTES // itemsize - panel) // (sizes.hidden + sizes.intermediate)
        fair = -(-num_rows // torch.get_num_threads())
        return -(-min(max(most, MIN_TASK_ROWS), fair) // ROWS) * ROWS


def _is_wide(block: Block) -> bool:
    parts = (block.qkv, block.out, block.up, block.down)
    return all(isinstance(part, WideLinear) and part.bias is not None for part in parts)


def _addresses(block: Block) -> _Block:
    def packed(part: Any) -> int:  # noqa: ANN401 - a WideLinear, asked before
        return int(part.weight.data_ptr())

    def bias(part: Any) -> int:  # noqa: ANN401
        return int(part.bias.data_ptr())

    return _Block(
        attention_norm=block.attention_norm.weight.data_ptr(),
        attention_norm_bias=block.attention_norm.bias.data_ptr(),
        qkv=packed(block.qkv),
        out=packed(block.out),
        mlp_norm=block.mlp_norm.weight.data_ptr(),
        mlp_norm_bias=block.mlp_norm.bias.data_ptr(),
        up=packed(block.up),
        down=packed(block.down),
        qkv_bias=bias(block.qkv),
        out_bias=bias(block.out),
        up_bias=bias(block.up),
        down_bias=bias(block.down),
    )
