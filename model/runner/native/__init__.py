"""TextKernels in C for CPUs: one pass over memory each, attention straight out of the pages.

Built when the package is installed, where a C compiler is; without it TorchKernels serve, slower.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from model.runner.attention import attend_prefill, context_slots, prefill_span
from model.runner.kernels import TextKernels
from model.runner.native import compiled
from model.runner.native.wide import DECODE_HEAD_DIMS, Spans, WideAttention

if TYPE_CHECKING:
    from collections.abc import Sequence as Seq

    from numpy.typing import NDArray

    from model.engine.batch import ScheduledSequence
    from model.runner.attention import PrefillSpan
    from model.runner.kernels import Rotation, TextGeometry
    from model.runner.kv_cache import KVCache

# The C code's own bounds.
MAX_GROUP = 32
MAX_HEAD_DIM = 256


def supports(geometry: TextGeometry, dtype: torch.dtype) -> bool:
    """Whether the compiled kernels are there, and for such a model."""
    group = geometry.num_heads // geometry.num_kv_heads
    if dtype not in compiled.SUFFIXES or group > MAX_GROUP or geometry.head_dim > MAX_HEAD_DIM:
        return False
    return compiled.load(compiled.LIBRARY) is not None


@dataclass(frozen=True, slots=True)
class NativeMetadata:
    """Where a step's tokens lie in the cache.

    slots: [num_tokens] int64; decode_rows, contexts: [num_decodes] int64, rows of the batch and
    tokens in their contexts; tables: [num_decodes, table_size] int32
    prefill_spans, or wide_spans where the processor has kernels for them: the chunks of prompts
    """

    slots: Tensor
    decode_rows: Tensor
    contexts: Tensor
    tables: Tensor
    prefill_spans: tuple[PrefillSpan, ...]
    wide_spans: Spans | None


class NativeKernels(TextKernels):
    """TextKernels over the compiled library."""

    def __init__(self, geometry: TextGeometry, block_size: int, dtype: torch.dtype) -> None:
        self.geometry = geometry
        self.block_size = block_size
        self._dtype = dtype
        self._rms_norm = compiled.function("rms_norm", dtype)
        self._turn_and_store = compiled.function("turn_and_store", dtype)
        self._attend_decode = compiled.function("attend_decode", dtype)
        self._silu_mul = compiled.function("silu_mul", dtype)
        self._wide = WideAttention(dtype) if compiled.usable(dtype) else None
        self._decodes_wide = self._wide is not None and geometry.head_dim in DECODE_HEAD_DIMS

    def metadata(self, shares: Seq[ScheduledSequence]) -> NativeMetadata:
        """See TextKernels."""
        block_size = self.block_size
        slots = np.empty(sum(share.num_tokens for share in shares), dtype=np.int64)
        chunks: list[tuple[int, ScheduledSequence, NDArray[np.int64]]] = []
        rows: list[int] = []
        contexts: list[int] = []
        tables: list[list[int]] = []
        last_slots: list[int] = []
        row = 0
        for share in shares:
            table, end = share.sequence.block_table, share.end
            if share.num_tokens == 1:
                block, offset = divmod(end - 1, block_size)
                rows.append(row)
                contexts.append(end)
                tables.append(table)
                last_slots.append(table[block] * block_size + offset)
            else:
                context = context_slots(table, end, block_size)
                slots[row : row + share.num_tokens] = context[share.start :]
                chunks.append((row, share, context))
            row += share.num_tokens
        slots[rows] = last_slots
        return NativeMetadata(
            slots=torch.from_numpy(slots),
            decode_rows=torch.tensor(rows, dtype=torch.int64),
            contexts=torch.tensor(contexts, dtype=torch.int64),
            tables=self._tables(tables, contexts),
            prefill_spans=() if self._wide else self._prefill_spans(chunks),
            wide_spans=self._wide_spans(chunks) if self._wide and chunks else None,
        )

    def _prefill_spans(
        self, chunks: Seq[tuple[int, ScheduledSequence, NDArray[np.int64]]]
    ) -> tuple[PrefillSpan, ...]:
        return tuple(
            prefill_span(row, share.start, context, torch.device("cpu"), self._dtype)
            for row, share, context in chunks
        )

    def _wide_spans(self, chunks: Seq[tuple[int, ScheduledSequence, NDArray[np.int64]]]) -> Spans:
        return Spans.of_pages(
            [(row, share.start, share.end, share.sequence.block_table) for row, share, _ in chunks],
            self.block_size,
        )

    def _tables(self, tables: Seq[list[int]], contexts: Seq[int]) -> Tensor:
        width = -(-max(contexts, default=0) // self.block_size)
        # One list, filled up: an array of each table's own would take longer.
        flat: list[int] = []
        for number, table in enumerate(tables, 1):
            flat += table[:width]
            flat += [0] * (number * width - len(flat))
        return torch.tensor(flat, dtype=torch.int32).view(len(tables), width)

    def rms_norm(self, rows: Tensor, weight: Tensor) -> Tensor:
        """See TextKernels."""
        return self._norm(rows.contiguous(), None, weight)

    def add_rms_norm(self, hidden: Tensor, addition: Tensor, weight: Tensor) -> Tensor:
        """See TextKernels."""
        assert hidden.is_contiguous(), "it is added to in place"
        return self._norm(hidden, addition.contiguous(), weight)

    def _norm(self, hidden: Tensor, addition: Tensor | None, weight: Tensor) -> Tensor:
        out = torch.empty_like(hidden)
        num_rows, size = hidden.shape
        self._rms_norm(
            out.data_ptr(),
            hidden.data_ptr(),
            None if addition is None else addition.data_ptr(),
            weight.data_ptr(),
            num_rows,
            size,
            self.geometry.eps,
        )
        return out

    def attention(
        self,
        layer: int,
        qkv: Tensor,
        qk_norm: Tensor,
        rotation: Rotation,
        cache: KVCache,
        metadata: NativeMetadata,
    ) -> Tensor:
        """See TextKernels."""
        geometry = self.geometry
        heads = (geometry.num_heads, geometry.num_kv_heads, geometry.head_dim)
        num_tokens = len(qkv)
        assert qkv.is_contiguous(), "it is changed in place"
        keys, values = cache.keys[layer].data_ptr(), cache.values[layer].data_ptr()
        self._turn_and_store(
            qkv.data_ptr(),
            qk_norm.data_ptr(),
            rotation.cos.data_ptr(),
            rotation.sin.data_ptr(),
            keys,
            values,
            metadata.slots.data_ptr(),
            num_tokens,
            *heads,
            geometry.eps,
        )
        out = qkv.new_empty((num_tokens, geometry.num_heads * geometry.head_dim))
        if num_decodes := len(metadata.decode_rows):
            arguments = (
                out.data_ptr(),
                qkv.data_ptr(),
                keys,
                values,
                metadata.decode_rows.data_ptr(),
                metadata.tables.data_ptr(),
                metadata.contexts.data_ptr(),
                num_decodes,
                metadata.tables.shape[1],
                self.block_size,
                *heads,
                geometry.scaling,
            )
            if self._decodes_wide:
                assert self._wide is not None, "its kernel"
                self._wide.decode(*arguments, self.heads_of_task(num_decodes))
            else:
                self._attend_decode(*arguments)
        if metadata.wide_spans is not None:
            assert self._wide is not None, "it made the metadata"
            self._wide.over_pages(out, qkv, cache, layer, metadata.wide_spans, geometry)
        if metadata.prefill_spans:
            self._prefill(layer, qkv, out, cache, metadata.prefill_spans)
        return out

    def heads_of_task(self, num_decodes: int) -> int:
        """Key heads that one task of decoding takes: all, unless threads would have nothing."""
        parts = -(-2 * torch.get_num_threads() // num_decodes)
        return max(1, self.geometry.num_kv_heads // parts)

    def _prefill(
        self,
        layer: int,
        qkv: Tensor,
        out: Tensor,
        cache: KVCache,
        spans: tuple[PrefillSpan, ...],
    ) -> None:
        """Attend the chunks; their keys and values lie in qkv, and in the cache already."""
        geometry = self.geometry
        parts = [geometry.num_heads, geometry.num_kv_heads, geometry.num_kv_heads]
        heads = qkv.view(len(qkv), sum(parts), geometry.head_dim)
        query, key, value = torch.split(heads, parts, dim=1)
        for span in spans:
            rows = slice(span.start, span.end)
            if span.slots is None:
                keys, values = (new[rows].transpose(0, 1)[None] for new in (key, value))
            else:
                keys, values = cache.gather(layer, span.slots)
            attended = attend_prefill(query[rows], keys, values, span.mask, geometry.scaling)
            out[rows] = attended.reshape(span.end - span.start, -1)

    def silu_mul(self, gate_up: Tensor) -> Tensor:
        """See TextKernels."""
        num_rows, size = gate_up.shape[0], gate_up.shape[1] // 2
        out = gate_up.new_empty((num_rows, size))
        self._silu_mul(out.data_ptr(), gate_up.contiguous().data_ptr(), num_rows, size)
        return out
