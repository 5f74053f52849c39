"""TextKernels over the Triton kernels, and a batch's layout as they take it.

A step's numbers cross to the device in one copy that the host does not wait for.
Needs triton; only what runs on CUDA imports this module.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate
from math import prod
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from model.runner import triton_attention, triton_kernels
from model.runner.attention import context_slots
from model.runner.triton_attention import DECODE_TILE, PREFILL_ROWS, SMALLEST_DOT
from model.runner.triton_row_attention import row_attention

if TYPE_CHECKING:
    from collections.abc import Sequence as Seq

    from numpy.typing import NDArray

    from model.engine.batch import ScheduledSequence
    from model.runner.kernels import Rotation, TextGeometry
    from model.runner.kv_cache import KVCache

# Of 4 bytes each: every array starts at a multiple of 64 bytes. Triton compiles a kernel anew for
# a pointer that is no multiple of 16.
ALIGNMENT = 16
SPLIT_TOKENS = 256
MAX_SPLITS = 128


@dataclass(frozen=True, slots=True)
class DecodeRows:
    """The single-token queries of a batch.

    rows: [num_rows] int32, into the batch; tables: [num_rows, max_blocks] int32
    contexts: [num_rows] int32, each query's own token included; 0: a padding row
    max_splits: parts that the longest context is cut into, or more
    """

    rows: Tensor
    tables: Tensor
    contexts: Tensor
    max_splits: int


@dataclass(frozen=True, slots=True)
class PrefillTiles:
    """The chunks of a batch, as `triton_attention.prefill_attention` takes them.

    tiles: [num_tiles, 4] int32; tables: [num_chunks, max_blocks] int32
    """

    tiles: Tensor
    tables: Tensor


@dataclass(frozen=True, slots=True)
class CudaMetadata:
    """Where a batch's tokens lie.

    slots: [num_tokens] int32, where each one's KV goes
    attended: [num_tokens, num_heads, head_dim], where results of attention go, if not to a new
    tensor; rows that neither part has keep what they hold
    """

    slots: Tensor
    decode: DecodeRows | None
    prefill: PrefillTiles | None
    attended: Tensor | None = None


class CudaKernels:
    """TextKernels for one device.

    max_context: tokens of the longest context; it decides alone how contexts are cut, so that a
    sequence's result does not depend on the batch around it

    Raises ValueError for heads that the kernels cannot compute.
    """

    def __init__(
        self, geometry: TextGeometry, block_size: int, device: torch.device, max_context: int
    ) -> None:
        head_dim = geometry.head_dim
        if head_dim < SMALLEST_DOT or head_dim & (head_dim - 1):
            raise ValueError(f"head_dim is {head_dim}; the kernels take powers of two from 16 on")
        self._geometry = geometry
        self._device = device
        self.block_size = block_size
        self.max_context = max_context
        self.split_tokens = split_tokens(max_context)

    @property
    def max_splits(self) -> int:
        """Parts that a context can be cut into."""
        return -(-self.max_context // self.split_tokens)

    @property
    def max_blocks(self) -> int:
        """Blocks that a context can have."""
        return -(-self.max_context // self.block_size)

    def metadata(self, shares: Seq[ScheduledSequence]) -> CudaMetadata:
        """See TextKernels."""
        block_size = self.block_size
        firsts = list(accumulate((share.num_tokens for share in shares), initial=0))
        decodes = [(row, s) for row, s in zip(firsts, shares, strict=False) if s.num_tokens == 1]
        chunks = [(row, s) for row, s in zip(firsts, shares, strict=False) if s.num_tokens > 1]
        contexts = np.array([share.end for _, share in decodes], dtype=np.int32)
        slots, rows, sizes, decode_tables, tiles, chunk_tables = upload(
            [
                batch_slots(shares, block_size),
                np.array([row for row, _ in decodes], dtype=np.int32),
                contexts,
                block_tables([share for _, share in decodes], block_size),
                prefill_tiles(chunks),
                block_tables([share for _, share in chunks], block_size),
            ],
            self._device,
        )
        max_splits = -(-int(contexts.max(initial=0)) // self.split_tokens)
        return CudaMetadata(
            slots,
            DecodeRows(rows, decode_tables, sizes, max_splits) if decodes else None,
            PrefillTiles(tiles, chunk_tables) if chunks else None,
        )

    def rms_norm(self, rows: Tensor, weight: Tensor) -> Tensor:
        """See TextKernels."""
        return triton_kernels.rms_norm(rows, weight, self._geometry.eps)

    def add_rms_norm(self, hidden: Tensor, addition: Tensor, weight: Tensor) -> Tensor:
        """See TextKernels."""
        return triton_kernels.add_rms_norm(hidden, addition, weight, self._geometry.eps)

    def attention(
        self,
        layer: int,
        qkv: Tensor,
        qk_norm: Tensor,
        rotation: Rotation,
        cache: KVCache,
        metadata: CudaMetadata,
    ) -> Tensor:
        """See TextKernels."""
        keys, values = cache.keys[layer], cache.values[layer]
        query = triton_kernels.norm_rotate_store(
            qkv,
            qk_norm,
            rotation.cos,
            rotation.sin,
            metadata.slots,
            keys,
            values,
            self._geometry.eps,
        )
        return self.attend(query, keys, values, metadata).view(len(qkv), -1)

    def row_attention(
        self,
        layer: int,
        qkv: Tensor,
        qk_norm: Tensor,
        rotation: Rotation,
        cache: KVCache,
        metadata: CudaMetadata,
    ) -> Tensor:
        """The same of a batch that is a single row, in fewer launches."""
        assert metadata.decode is not None, "one token alone is a decode"
        return row_attention(
            qkv,
            qk_norm,
            rotation,
            metadata.slots,
            cache.keys[layer],
            cache.values[layer],
            metadata.decode.tables,
            metadata.decode.contexts,
            eps=self._geometry.eps,
            block_size=self.block_size,
            scaling=self._geometry.scaling,
        )

    def attend(self, query: Tensor, keys: Tensor, values: Tensor, metadata: CudaMetadata) -> Tensor:
        """Attend to what is stored already.

        query: [num_tokens, num_heads, head_dim], turned; returns the same shape
        keys, values: [num_slots, num_kv_heads, head_dim]
        """
        output = torch.empty_like(query) if metadata.attended is None else metadata.attended
        if metadata.decode is not None:
            self._decode(query, keys, values, metadata.decode, output)
        if metadata.prefill is not None:
            triton_attention.prefill_attention(
                query,
                keys,
                values,
                metadata.prefill.tiles,
                metadata.prefill.tables,
                output,
                block_size=self.block_size,
                scaling=self._geometry.scaling,
            )
        return output

    def _decode(
        self, query: Tensor, keys: Tensor, values: Tensor, decode: DecodeRows, output: Tensor
    ) -> None:
        triton_attention.decode_attention(
            query,
            keys,
            values,
            decode.rows,
            decode.tables,
            decode.contexts,
            output,
            block_size=self.block_size,
            split_tokens=self.split_tokens,
            max_splits=decode.max_splits,
            scaling=self._geometry.scaling,
        )

    def silu_mul(self, gate_up: Tensor) -> Tensor:
        """See TextKernels."""
        return triton_kernels.silu_mul(gate_up)


def split_tokens(max_context: int) -> int:
    """Tokens of one part of a context: few, so that one sequence fills a device, but so many that
    no context has more than MAX_SPLITS parts, for each of which results are kept.
    """
    needed = -(-max_context // MAX_SPLITS)
    return max(SPLIT_TOKENS, -(-needed // DECODE_TILE) * DECODE_TILE)


def block_tables(
    shares: Seq[ScheduledSequence], block_size: int, width: int | None = None
) -> NDArray[np.int32]:
    """Each share's blocks: [num_shares, width], by default as wide as the longest context needs."""
    needed = [-(-share.end // block_size) for share in shares]
    tables = np.zeros((len(shares), width or max(needed, default=0)), dtype=np.int32)
    for row, share, num_blocks in zip(tables, shares, needed, strict=True):
        table = share.sequence.block_table
        assert num_blocks <= len(table), "a share reaches past its block table"
        row[:num_blocks] = table[:num_blocks]
    return tables


def batch_slots(shares: Seq[ScheduledSequence], block_size: int) -> NDArray[np.int32]:
    """Where the KV of a batch's tokens goes: [num_tokens]."""
    parts = [
        context_slots(share.sequence.block_table, share.end, block_size)[share.start :]
        if share.num_tokens > 1
        else last_slot(share, block_size)
        for share in shares
    ]
    return np.concatenate(parts, dtype=np.int32, casting="same_kind")


def last_slot(share: ScheduledSequence, block_size: int) -> NDArray[np.int64]:
    """The slot of a share's last token: [1]."""
    block, offset = divmod(share.end - 1, block_size)
    return np.array([share.sequence.block_table[block] * block_size + offset], dtype=np.int64)


def prefill_tiles(chunks: Seq[tuple[int, ScheduledSequence]]) -> NDArray[np.int32]:
    """Cut chunks, each with its first row in the batch, into tiles: [num_tiles, 4]."""
    tiles = [
        (row + done, min(PREFILL_ROWS, share.num_tokens - done), share.start + done, index)
        for index, (row, share) in enumerate(chunks)
        for done in range(0, share.num_tokens, PREFILL_ROWS)
    ]
    # The longest contexts first: started last, they would keep the device waiting.
    tiles.sort(key=lambda tile: -(tile[1] + tile[2]))
    return np.array(tiles, dtype=np.int32).reshape(-1, 4)


def upload(arrays: Seq[NDArray[np.int32]], device: torch.device) -> list[Tensor]:
    """Arrays on the device, in one copy; the host does not wait for it."""
    flat = stage(arrays, device).to(device, non_blocking=True)
    return unpack(flat, [array.shape for array in arrays])


def stage(arrays: Seq[NDArray[np.int32]], device: torch.device) -> Tensor:
    """Arrays side by side in host memory that the device can copy from by itself: [total] int32.

    The allocator gives this memory to nobody else before that copy is done.
    """
    starts = _starts([array.shape for array in arrays])
    flat = torch.empty(starts[-1], dtype=torch.int32, pin_memory=device.type == "cuda")
    memory = flat.numpy()
    for start, array in zip(starts, arrays, strict=False):
        memory[start : start + array.size] = array.reshape(-1)
    return flat


def unpack(flat: Tensor, shapes: Seq[tuple[int, ...]]) -> list[Tensor]:
    """The arrays of these shapes that lie side by side in `flat`, as views."""
    starts = _starts(shapes)
    return [
        flat[start : start + prod(shape)].view(shape)
        for start, shape in zip(starts, shapes, strict=False)
    ]


def packed_size(shapes: Seq[tuple[int, ...]]) -> int:
    """Elements that arrays of these shapes take side by side."""
    return _starts(shapes)[-1]


def _starts(shapes: Seq[tuple[int, ...]]) -> list[int]:
    """Where each array starts, and then where all of them end."""
    sizes = (-(-prod(shape) // ALIGNMENT) * ALIGNMENT for shape in shapes)
    return list(accumulate(sizes, initial=0))
