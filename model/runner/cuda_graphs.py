"""Decode steps as CUDA graphs: recorded once for some batch sizes, replayed for all others.

A step of n sequences is padded to the next recorded size. Padding rows have no context, and write
their keys and values to a spare block that no sequence owns.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from functools import cache, partial
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from model.runner.cuda_kernels import (
    CudaKernels,
    CudaMetadata,
    DecodeRows,
    block_tables,
    packed_size,
    stage,
    unpack,
)
from model.runner.qwen3_vl import TextInputs

if TYPE_CHECKING:
    from collections.abc import Callable
    from collections.abc import Sequence as Seq

    from numpy.typing import NDArray
    from torch.cuda import _POOL_HANDLE as Pool

    from model.engine.batch import ScheduledSequence
    from model.runner.fast_text import FastTextModel
    from model.runner.kv_cache import KVCache

logger = logging.getLogger(__name__)

BUCKETS = (1, 2, 4, 8, *range(16, 257, 16))


@dataclass(frozen=True, slots=True)
class FlatTokens:
    """A batch's tokens on the host, those that are still being chosen included; all int32.

    token_ids, sources: [num_tokens]; where a source is not below 0, the token is the one that an
    earlier step chose, at that place among the latest
    positions: [3, num_tokens]; sample_rows: [num_samples]
    """

    token_ids: NDArray[np.int32]
    sources: NDArray[np.int32]
    positions: NDArray[np.int32]
    sample_rows: NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class _Buffers:
    """The inputs of one batch size, at addresses that stay; the rest are views of `flat`."""

    flat: Tensor
    token_ids: Tensor
    sources: Tensor
    inputs: TextInputs


class DecodeGraphs:
    """Runs decode steps over buffers of fixed sizes, recorded or not.

    latest: [max_rows or more] int64, ids that the last step chose; read when a step runs
    max_rows: sequences that run at once
    """

    def __init__(
        self,
        text: FastTextModel,
        kernels: CudaKernels,
        cache: KVCache,
        latest: Tensor,
        *,
        max_rows: int,
        vocab_size: int,
    ) -> None:
        self._text = text
        self._kernels = kernels
        self._cache = cache
        self._latest = latest
        self._device = latest.device
        self.buckets = buckets_for(max_rows)
        # The last block is nobody's.
        self._trash_slot = (cache.num_blocks - 1) * kernels.block_size
        most = self.buckets[-1]
        # Of all sizes together: as an output of its own, each graph's would lie apart.
        self._logits = torch.empty((most, vocab_size), dtype=torch.float32, device=self._device)
        self._chosen = torch.empty(most, dtype=torch.int64, device=self._device)
        self._buffers: dict[int, _Buffers] = {}
        self._graphs: dict[int, torch.cuda.CUDAGraph] = {}

    @property
    def num_recorded(self) -> int:
        """Batch sizes that are recorded."""
        return len(self._graphs)

    def fits(self, shares: Seq[ScheduledSequence]) -> bool:
        """Whether a step has one token of each sequence, all of them sampled from, and room."""
        longest = self._kernels.max_context
        return len(shares) <= self.buckets[-1] and all(
            share.num_tokens == 1 and share.samples and share.end <= longest for share in shares
        )

    def run(self, tokens: FlatTokens, shares: Seq[ScheduledSequence]) -> tuple[Tensor, Tensor]:
        """Run a step that fits and has no image tokens.

        returns logits [num_rows, vocab_size] float32 and the ids of the largest [num_rows] int64,
        both good until the next step; the logits may be changed
        """
        size = bucket_of(len(shares), self.buckets)
        buffers = self._buffers_of(size)
        arrays = padded_arrays(tokens, shares, size, self._kernels, self._trash_slot)
        buffers.flat.copy_(stage(arrays, self._device), non_blocking=True)
        graph = self._graphs.get(size)
        if graph is None:
            self._compute(size)
        else:
            graph.replay()
        return self._logits[: len(shares)], self._chosen[: len(shares)]

    @torch.inference_mode()
    def record(self, pool: Pool) -> None:
        """Record a graph of every size.

        pool: of memory that recorded steps share; the cache's spare block alone is written
        """
        started = time.monotonic()
        # The largest first: the smaller ones then fit the memory that it took.
        for size in reversed(self.buckets):
            self._empty(size)
            self._graphs[size] = record(partial(self._compute, size), pool, self._device)
        seconds = time.monotonic() - started
        logger.info("recorded %d decode graphs in %.1f s", len(self._graphs), seconds)

    def _compute(self, size: int) -> None:
        """What a graph holds: from a size's buffers to logits and ids."""
        buffers = self._buffers_of(size)
        token_ids = resolve_ids(buffers.token_ids, buffers.sources, self._latest)
        inputs = buffers.inputs
        logits = self._text.logits(
            TextInputs(token_ids, inputs.positions, inputs.attention, None, inputs.sample_rows),
            self._cache,
        )
        self._logits[:size].copy_(logits)
        torch.argmax(logits, dim=-1, out=self._chosen[:size])

    def _empty(self, size: int) -> None:
        """Fill a size's buffers with padding."""
        none = np.empty(0, dtype=np.int32)
        tokens = FlatTokens(none, none, none.reshape(3, 0), none)
        arrays = padded_arrays(tokens, [], size, self._kernels, self._trash_slot)
        self._buffers_of(size).flat.copy_(stage(arrays, self._device))

    def _buffers_of(self, size: int) -> _Buffers:
        buffers = self._buffers.get(size)
        if buffers is None:
            buffers = self._buffers[size] = self._make_buffers(size)
        return buffers

    def _make_buffers(self, size: int) -> _Buffers:
        kernels = self._kernels
        shapes = [(size,), (size,), (3, size), (size,), (size,), (size, kernels.max_blocks)]
        flat = torch.zeros(packed_size(shapes), dtype=torch.int32, device=self._device)
        token_ids, sources, positions, slots, contexts, tables = unpack(flat, shapes)
        rows = torch.arange(size, dtype=torch.int32, device=self._device)
        decode = DecodeRows(rows, tables, contexts, kernels.max_splits)
        attention = CudaMetadata(slots, decode, None)
        inputs = TextInputs(token_ids, positions, attention, None, rows)
        return _Buffers(flat, token_ids, sources, inputs)


def record(compute: Callable[[], None], pool: Pool, device: torch.device) -> torch.cuda.CUDAGraph:
    """A graph of what a function launches; its memory comes from the pool.

    Graphs of one pool must leave their results elsewhere, and never run beside each other.
    """
    stream = _recording_stream(device)
    torch.cuda.synchronize(device)
    with torch.cuda.stream(stream):
        # Kernels are compiled, libraries take their workspaces: neither may be recorded.
        compute()
    torch.cuda.synchronize(device)
    graph = torch.cuda.CUDAGraph()
    # Other threads may use the device: only what this one does is to be recorded.
    with torch.cuda.graph(graph, pool=pool, stream=stream, capture_error_mode="thread_local"):
        compute()
    return graph


@cache
def _recording_stream(device: torch.device) -> torch.cuda.Stream:
    """One for all graphs: for each, libraries keep a workspace."""
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


def buckets_for(max_rows: int) -> tuple[int, ...]:
    """Sizes to record so that up to max_rows fit, or as many as BUCKETS reaches."""
    below = [size for size in BUCKETS if size < max_rows]
    return (*below, *BUCKETS[len(below) : len(below) + 1])


def bucket_of(num_rows: int, buckets: Seq[int]) -> int:
    """The least size that num_rows fit."""
    return next(size for size in buckets if size >= num_rows)


def padded_arrays(
    tokens: FlatTokens,
    shares: Seq[ScheduledSequence],
    size: int,
    kernels: CudaKernels,
    trash_slot: int,
) -> list[NDArray[np.int32]]:
    """A decode step's numbers, padded to a batch size, in the order of the buffers."""
    num_rows = len(shares)
    padding = size - num_rows
    tables = np.zeros((size, kernels.max_blocks), dtype=np.int32)
    tables[:num_rows] = block_tables(shares, kernels.block_size, kernels.max_blocks)
    contexts = np.zeros(size, dtype=np.int32)
    contexts[:num_rows] = [share.end for share in shares]
    slots = np.full(size, trash_slot, dtype=np.int32)
    block, offset = np.divmod(contexts[:num_rows] - 1, kernels.block_size)
    slots[:num_rows] = tables[np.arange(num_rows), block] * kernels.block_size + offset
    return [
        np.pad(tokens.token_ids, (0, padding)),
        np.pad(tokens.sources, (0, padding), constant_values=-1),
        np.pad(tokens.positions, ((0, 0), (0, padding))),
        slots,
        contexts,
        tables,
    ]


def resolve_ids(token_ids: Tensor, sources: Tensor, latest: Tensor) -> Tensor:
    """Token ids, of which those with a source at or above 0 come from the latest step's choices.

    token_ids, sources: [num_tokens] int32; latest: [any] int64; returns [num_tokens] int64
    """
    chosen = latest.index_select(0, sources.clamp(min=0))
    return torch.where(sources >= 0, chosen, token_ids)
