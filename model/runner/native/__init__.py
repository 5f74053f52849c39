"""TextKernels in C for CPUs: one pass over memory each, attention straight out of the pages.

Built when the package is installed, where a C compiler is; without it TorchKernels serve, slower.
"""

from __future__ import annotations

import ctypes
import logging
import sysconfig
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from model.runner.attention import attend_prefill, context_slots, prefill_span
from model.runner.kernels import TextKernels

if TYPE_CHECKING:
    from collections.abc import Sequence as Seq

    from model.engine.batch import ScheduledSequence
    from model.runner.attention import PrefillSpan
    from model.runner.kernels import Rotation, TextGeometry
    from model.runner.kv_cache import KVCache

logger = logging.getLogger(__name__)

LIBRARY = Path(__file__).parent / f"_cpu_kernels{sysconfig.get_config_var('EXT_SUFFIX')}"
SUFFIXES = {torch.float32: "f32", torch.bfloat16: "bf16"}
# The C code's own bounds.
MAX_GROUP = 32
MAX_HEAD_DIM = 256

POINTER, INTEGER, FLOAT = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float
SIGNATURES = {
    "rms_norm": [POINTER] * 4 + [INTEGER] * 2 + [FLOAT],
    "turn_and_store": [POINTER] * 7 + [INTEGER] * 4 + [FLOAT],
    "attend_decode": [POINTER] * 7 + [INTEGER] * 6 + [FLOAT],
    "silu_mul": [POINTER] * 2 + [INTEGER] * 2,
}


def load_library(geometry: TextGeometry, dtype: torch.dtype) -> ctypes.CDLL | None:
    """The compiled kernels, or None where they are missing or not for such a model."""
    group = geometry.num_heads // geometry.num_kv_heads
    if dtype not in SUFFIXES or group > MAX_GROUP or geometry.head_dim > MAX_HEAD_DIM:
        return None
    try:
        # The kernels use the threads that torch has: two pools would fight for the cores.
        for path in _openmp_libraries():
            ctypes.CDLL(str(path), ctypes.RTLD_GLOBAL)
        library = ctypes.CDLL(str(LIBRARY))
    except OSError as e:
        logger.warning("no compiled kernels, so decoding is slower: %s", e)
        return None
    for name, signature in SIGNATURES.items():
        for suffix in SUFFIXES.values():
            function = getattr(library, f"{name}_{suffix}")
            function.argtypes, function.restype = signature, None
    return library


def _openmp_libraries() -> list[Path]:
    """Torch's own OpenMP, as its wheels bring it."""
    torch_dir = Path(torch.__file__).parent
    return [
        path
        for folder in (torch_dir / "lib", torch_dir.parent / "torch.libs")
        for path in folder.glob("libgomp*")
    ]


@dataclass(frozen=True, slots=True)
class NativeMetadata:
    """Where a step's tokens lie in the cache.

    slots: [num_tokens] int64; decode_rows, contexts: [num_decodes] int64, rows of the batch and
    tokens in their contexts; tables: [num_decodes, table_size] int32
    """

    slots: Tensor
    decode_rows: Tensor
    contexts: Tensor
    tables: Tensor
    prefill_spans: tuple[PrefillSpan, ...]


class NativeKernels(TextKernels):
    """TextKernels over the compiled library."""

    def __init__(
        self,
        geometry: TextGeometry,
        block_size: int,
        dtype: torch.dtype,
        library: ctypes.CDLL,
    ) -> None:
        self._geometry = geometry
        self._block_size = block_size
        self._dtype = dtype
        suffix = SUFFIXES[dtype]
        self._rms_norm = getattr(library, f"rms_norm_{suffix}")
        self._turn_and_store = getattr(library, f"turn_and_store_{suffix}")
        self._attend_decode = getattr(library, f"attend_decode_{suffix}")
        self._silu_mul = getattr(library, f"silu_mul_{suffix}")

    def metadata(self, shares: Seq[ScheduledSequence]) -> NativeMetadata:
        """See TextKernels."""
        slots, spans = [], []
        decodes: list[tuple[int, int, list[int]]] = []
        row = 0
        for share in shares:
            table = share.sequence.block_table
            if share.num_tokens == 1:
                last = share.end - 1
                block = table[last // self._block_size]
                slots.append(np.array([block * self._block_size + last % self._block_size]))
                decodes.append((row, share.end, table))
            else:
                context = context_slots(table, share.end, self._block_size)
                slots.append(context[share.start :])
                spans.append(
                    prefill_span(row, share.start, context, torch.device("cpu"), self._dtype)
                )
            row += share.num_tokens
        return NativeMetadata(
            slots=torch.from_numpy(np.concatenate(slots)),
            decode_rows=torch.tensor([row for row, _, _ in decodes], dtype=torch.int64),
            contexts=torch.tensor([end for _, end, _ in decodes], dtype=torch.int64),
            tables=self._tables(decodes),
            prefill_spans=tuple(spans),
        )

    def _tables(self, decodes: Seq[tuple[int, int, list[int]]]) -> Tensor:
        sizes = [-(-end // self._block_size) for _, end, _ in decodes]
        tables = np.zeros((len(decodes), max(sizes, default=0)), dtype=np.int32)
        for i, ((_, _, table), size) in enumerate(zip(decodes, sizes, strict=True)):
            tables[i, :size] = table[:size]
        return torch.from_numpy(tables)

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
            self._geometry.eps,
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
        geometry = self._geometry
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
            self._attend_decode(
                out.data_ptr(),
                qkv.data_ptr(),
                keys,
                values,
                metadata.decode_rows.data_ptr(),
                metadata.tables.data_ptr(),
                metadata.contexts.data_ptr(),
                num_decodes,
                metadata.tables.shape[1],
                self._block_size,
                *heads,
                geometry.scaling,
            )
        if metadata.prefill_spans:
            self._prefill(layer, qkv, out, cache, metadata.prefill_spans)
        return out

    def _prefill(
        self,
        layer: int,
        qkv: Tensor,
        out: Tensor,
        cache: KVCache,
        spans: tuple[PrefillSpan, ...],
    ) -> None:
        """Attend the chunks; their keys and values lie in qkv, and in the cache already."""
        geometry = self._geometry
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
