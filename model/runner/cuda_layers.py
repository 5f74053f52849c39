"""The layers of prefill steps as CUDA graphs: recorded for some numbers of tokens, for all others.

What a host takes to launch a layer's kernels is more than a device takes to compute a short prompt
in a small model. Embeddings, the tokens of pictures and the head stay outside: a step's rows are
copied in, and padded to the next recorded number. Padding rows write their keys and values to the
spare block that no sequence owns, attend to nothing, and are read by nobody.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from model.runner.cuda_graphs import bucket_of, record
from model.runner.cuda_kernels import (
    CudaKernels,
    CudaMetadata,
    DecodeRows,
    PrefillTiles,
    packed_size,
    stage,
    unpack,
)
from model.runner.kernels import Rotation
from model.runner.qwen3_vl import ImageRows, TextInputs
from model.runner.triton_attention import PREFILL_ROWS

if TYPE_CHECKING:
    from torch.cuda import _POOL_HANDLE as Pool

    from model.runner.cuda_text import CudaTextModel
    from model.runner.kv_cache import KVCache

logger = logging.getLogger(__name__)

# Above, a device takes longer than a host with every model.
SIZES = tuple(range(128, 2049, 128))
# Chunks whose last tiles may be partly empty; with more, a step runs as written.
MAX_CHUNKS = 32


@dataclass(frozen=True, slots=True)
class LayerShape:
    """What the buffers are made for.

    sizes: numbers of tokens that steps are padded to; max_rows: sequences that run at once
    attention_size: of all query heads together; num_deepstack: layers that pictures add to
    """

    sizes: tuple[int, ...]
    max_rows: int
    hidden_size: int
    intermediate_size: int
    attention_size: int
    num_deepstack: int
    dtype: torch.dtype

    @property
    def num_bytes(self) -> int:
        """Of buffers that stay, but for the small ones."""
        width = (1 + self.num_deepstack) * self.hidden_size + self.attention_size
        return self.sizes[-1] * width * self.dtype.itemsize

    @property
    def recorded_bytes(self) -> int:
        """Of a layer's results, which all recorded steps share."""
        return (
            4 * self.sizes[-1] * (self.hidden_size + self.intermediate_size) * self.dtype.itemsize
        )


@dataclass(frozen=True, slots=True)
class _Step:
    """A recorded step: tokens that it is padded to, and whether single-token queries are in it."""

    size: int
    decodes: bool


@dataclass(frozen=True, slots=True)
class _EveryRow(ImageRows):
    """Image tokens in rows of their own place: what other rows add is zero."""

    def add_deepstack(self, layer: int, update: Tensor) -> None:
        """See ImageRows."""
        if layer < len(self.deepstack):
            update.add_(self.deepstack[layer])


class LayerGraphs:
    """Runs the layers of steps that have prefill chunks over buffers of fixed sizes."""

    def __init__(
        self, text: CudaTextModel, kernels: CudaKernels, cache: KVCache, shape: LayerShape
    ) -> None:
        self._text = text
        self._kernels = kernels
        self._cache = cache
        self._shape = shape
        self._device = device = cache.storage.device
        most, width = shape.sizes[-1], shape.hidden_size
        self._hidden = torch.zeros((most, width), dtype=shape.dtype, device=device)
        self._output = torch.empty((shape.max_rows, width), dtype=shape.dtype, device=device)
        self._deepstack = torch.zeros(
            (shape.num_deepstack, most, width), dtype=shape.dtype, device=device
        )
        self._has_pictures = False
        # Zeros and later results: padding rows must not be what memory happens to hold.
        head_dim = cache.shape.head_dim
        heads = shape.attention_size // head_dim
        self._attended = torch.zeros((most, heads, head_dim), dtype=shape.dtype, device=device)
        angles = (2, most, head_dim // 2)
        self._cos, self._sin = torch.zeros(angles, dtype=shape.dtype, device=device)
        # Numbers of which padding must be right, and what they are where nothing is.
        arrays = [
            np.full(most, (cache.num_blocks - 1) * kernels.block_size, dtype=np.int32),
            np.zeros((_num_tiles(most), 4), dtype=np.int32),
            np.zeros(shape.max_rows, dtype=np.int32),
            np.full(shape.max_rows, -1, dtype=np.int32),
            np.zeros(shape.max_rows, dtype=np.int32),
        ]
        shapes = [array.shape for array in arrays]
        self._nothing = stage(arrays, device).to(device)
        self._numbers = self._nothing.clone()
        assert len(self._numbers) == packed_size(shapes)
        self._slots, self._tiles, self._samples, self._rows, self._contexts = unpack(
            self._numbers, shapes
        )
        self._chunk_tables, self._row_tables = (
            torch.zeros((count, kernels.max_blocks), dtype=torch.int32, device=device)
            for count in (MAX_CHUNKS, shape.max_rows)
        )
        self._graphs: dict[_Step, torch.cuda.CUDAGraph] = {}

    @property
    def num_recorded(self) -> int:
        """Steps that are recorded."""
        return len(self._graphs)

    def fits(self, inputs: TextInputs, num_tokens: int) -> bool:
        """Whether a step has chunks, and no more of anything than there is room for."""
        prefill, decode = inputs.attention.prefill, inputs.attention.decode
        if prefill is None or num_tokens > self._shape.sizes[-1]:
            return False
        size = bucket_of(num_tokens, self._shape.sizes)
        widths = [part.tables.shape[1] for part in (prefill, decode) if part is not None]
        return (
            len(prefill.tables) <= MAX_CHUNKS
            and len(prefill.tiles) <= _num_tiles(size)
            and max(widths) <= self._kernels.max_blocks
            and (decode is None or len(decode.rows) <= self._shape.max_rows)
            and len(inputs.sample_rows) <= self._shape.max_rows
            and (inputs.images is None or len(inputs.images.deepstack) == len(self._deepstack))
        )

    def run(self, hidden: Tensor, rotation: Rotation, inputs: TextInputs) -> Tensor:
        """The layers, and the norm after them, of a step that fits.

        hidden: [num_tokens, hidden_size]; returns [num_samples, hidden_size], good until the next
        """
        step = _Step(bucket_of(len(hidden), self._shape.sizes), inputs.attention.decode is not None)
        self._fill(hidden, rotation, inputs, step.size)
        graph = self._graphs.get(step)
        if graph is None:
            self._compute(step)
        else:
            graph.replay()
        return self._output[: len(inputs.sample_rows)]

    @torch.inference_mode()
    def record(self, pool: Pool) -> None:
        """Record a graph of every size, with single-token queries and without.

        pool: of memory that recorded steps share; the cache's spare block alone is written
        """
        started = time.monotonic()
        self._numbers.copy_(self._nothing)
        for size in reversed(self._shape.sizes):
            for decodes in (True, False):
                step = _Step(size, decodes)
                self._graphs[step] = record(partial(self._compute, step), pool, self._device)
        seconds = time.monotonic() - started
        logger.info("recorded %d prefill graphs in %.1f s", len(self._graphs), seconds)

    def _fill(self, hidden: Tensor, rotation: Rotation, inputs: TextInputs, size: int) -> None:
        """Copy a step into the buffers, padding behind it."""
        num_tokens = len(hidden)
        self._hidden[:num_tokens].copy_(hidden)
        self._hidden[num_tokens:size].zero_()
        self._cos[:num_tokens].copy_(rotation.cos)
        self._sin[:num_tokens].copy_(rotation.sin)
        attention: CudaMetadata = inputs.attention
        self._numbers.copy_(self._nothing)
        filled = [(self._slots, attention.slots), (self._samples, inputs.sample_rows)]
        if attention.prefill is not None:
            filled.append((self._tiles, attention.prefill.tiles))
            _copy_tables(self._chunk_tables, attention.prefill.tables)
        if attention.decode is not None:
            filled.append((self._rows, attention.decode.rows))
            filled.append((self._contexts, attention.decode.contexts))
            _copy_tables(self._row_tables, attention.decode.tables)
        for buffer, numbers in filled:
            buffer[: len(numbers)].copy_(numbers)
        self._fill_deepstack(inputs.images)

    def _fill_deepstack(self, images: ImageRows | None) -> None:
        if self._has_pictures:
            self._deepstack.zero_()
        self._has_pictures = images is not None
        if images is not None:
            for buffer, features in zip(self._deepstack, images.deepstack, strict=True):
                buffer.index_copy_(0, images.rows, features)

    def _compute(self, step: _Step) -> None:
        """What a graph holds: from the buffers to the rows that choose a token."""
        size, kernels = step.size, self._kernels
        decode = None
        if step.decodes:
            decode = DecodeRows(self._rows, self._row_tables, self._contexts, kernels.max_splits)
        tiles = PrefillTiles(self._tiles[: _num_tiles(size)], self._chunk_tables)
        hidden, slots = self._hidden[:size], self._slots[:size]
        deepstack = tuple(features[:size] for features in self._deepstack)
        inputs = TextInputs(
            # Layers look at neither: embeddings and angles are made of them.
            token_ids=slots,
            positions=slots,
            attention=CudaMetadata(slots, decode, tiles, self._attended[:size]),
            images=_EveryRow(slots, hidden, deepstack),
            sample_rows=self._samples,
        )
        rotation = Rotation(self._cos[:size], self._sin[:size])
        self._output.copy_(self._text.layers(hidden, rotation, inputs, self._cache))


def sizes_for(max_tokens: int) -> tuple[int, ...]:
    """Sizes to record so that steps of up to max_tokens fit, or as many as SIZES reaches."""
    below = [size for size in SIZES if size < max_tokens]
    return (*below, *SIZES[len(below) : len(below) + 1])


def _num_tiles(size: int) -> int:
    """Tiles that a step of so many tokens has room for: chunks are cut apart from one another."""
    return size // PREFILL_ROWS + MAX_CHUNKS


def _copy_tables(buffer: Tensor, tables: Tensor) -> None:
    buffer[: len(tables), : tables.shape[1]].copy_(tables)
