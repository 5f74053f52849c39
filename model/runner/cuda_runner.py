"""The runner for one CUDA device: Triton kernels, CUDA graphs, steps that overlap.

A step is launched before the tokens of the one before it are known: they stay on the device, where
the next step reads them, and travel to the host meanwhile.
Needs triton; where it cannot be imported or does not work, TorchRunner serves.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from model.engine.batch import FinishedStep, SampledToken
from model.runner import triton_vision
from model.runner.cuda_graphs import DecodeGraphs, FlatTokens, buckets_for, resolve_ids
from model.runner.cuda_kernels import (
    CudaKernels,
    CudaMetadata,
    DecodeRows,
    PrefillTiles,
    upload,
)
from model.runner.cuda_layers import LayerGraphs, LayerShape, sizes_for
from model.runner.cuda_text import CudaTextModel
from model.runner.device import device_errors
from model.runner.fast_vision import FastVisionTower
from model.runner.kernels import TextGeometry
from model.runner.kv_cache import KVCache
from model.runner.prompt_logprobs import attach, told_rows
from model.runner.quantize import QuantizedLinear
from model.runner.qwen3_vl import TextInputs
from model.runner.runner import TorchRunner
from model.runner.sampler import Chosen, choose

if TYPE_CHECKING:
    from collections.abc import Sequence as Seq
    from contextlib import AbstractContextManager

    from transformers import PreTrainedModel

    from model.checkpoint import Checkpoint
    from model.engine.batch import LaunchedStep, ScheduledBatch, ScheduledSequence
    from model.engine.sequence import Sequence
    from model.runner.placement import Placement
    from model.runner.prompt_logprobs import Told
    from model.runner.qwen3_vl import ImageRows
    from model.runner.rows import Row
    from model.settings import EngineSettings


class CudaStep:
    """A launched step; its token ids are on their way to the host.

    aside: a stream for what is asked for later; on the one of the steps it would wait for the next
    told: of the prompts of answers that begin
    """

    def __init__(
        self, chosen: Chosen, aside: torch.cuda.Stream | None = None, told: Told = ()
    ) -> None:
        self._chosen = chosen
        self._aside = aside
        self._told = told
        ids = chosen.token_ids
        self._ids = torch.empty(len(ids), dtype=ids.dtype, pin_memory=ids.is_cuda)
        self._ids.copy_(ids, non_blocking=True)
        self._arrived: torch.cuda.Event | None = None
        if ids.is_cuda:
            # A waiting thread sleeps: another core may be all that the event loop has.
            self._arrived = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
            self._arrived.record(torch.cuda.current_stream(ids.device))

    @torch.inference_mode()
    def tokens(self) -> Seq[SampledToken]:
        """Wait for them. Raises OutOfDeviceMemory, DeviceFailure."""
        with device_errors():
            if self._arrived is not None:
                self._arrived.synchronize()
            if self._chosen.logprobs is not None or self._chosen.faults:
                with torch.cuda.stream(self._aside):
                    tokens = self._chosen.tokens()
            else:
                tokens = [SampledToken(token_id) for token_id in self._ids.tolist()]
            return attach(tokens, self._told) if self._told else tokens


class CudaRunner(TorchRunner):
    """The engine's Runner over one CUDA device, in bfloat16 or float16.

    graphs: whether `warm_up` records steps; without, they run as written, padded all the same
    """

    def __init__(
        self,
        model: PreTrainedModel,
        checkpoint: Checkpoint,
        settings: EngineSettings,
        placement: Placement | None = None,
        *,
        graphs: bool = True,
    ) -> None:
        device = model.model.language_model.embed_tokens.weight.device
        # Quantised products may wait for the host inside, which no graph can hold.
        quantized = any(isinstance(module, QuantizedLinear) for module in model.modules())
        self._records = graphs and device.type == "cuda" and not quantized
        self._decoder: DecodeGraphs | None = None
        # Ids that the last step chose, and each sequence's place among them.
        self._latest = torch.zeros(settings.max_sequences, dtype=torch.int64, device=device)
        self._places: dict[Sequence, int] = {}
        self._aside = (
            torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]
        )
        super().__init__(model, checkpoint, settings, placement)
        assert isinstance(self._text, CudaTextModel)
        shape = self._layer_shape()
        # Of the last layer only sampled rows are computed, so no picture may add to it.
        if not quantized and shape.num_deepstack < model.config.text_config.num_hidden_layers:
            self._text.graphs = LayerGraphs(self._text, self._kernels, self.cache, shape)
        self._decoder = DecodeGraphs(
            self._text,
            self._kernels,
            self.cache,
            self._latest,
            max_rows=settings.max_sequences,
            vocab_size=model.config.text_config.vocab_size,
        )

    @property
    def num_blocks(self) -> int:
        """Blocks that sequences may own: all but the last, which padding rows write to."""
        return self.cache.num_blocks - 1

    @property
    def overlaps(self) -> bool:
        """Always: chosen tokens stay on the device."""
        return True

    @torch.inference_mode()
    def execute(self, batch: ScheduledBatch) -> LaunchedStep:
        """Launch one step; raises OutOfDeviceMemory, DeviceFailure."""
        with device_errors(), self._on_device():
            self._encode(batch.images)
            if not batch.sequences:
                return FinishedStep([])
            step = self._launch(batch.sequences)
            self._drop_used(batch.sequences)
            return step

    def warm_up(self) -> None:
        """The same, then record prefill layers and decode steps."""
        super().warm_up()
        if self._records and self._decoder is not None:
            assert isinstance(self._text, CudaTextModel)
            with device_errors(), self._on_device():
                pool = torch.cuda.graph_pool_handle()
                if self._text.graphs is not None:
                    self._text.graphs.record(pool)
                self._decoder.record(pool)
                # What the steps took that were run before they were recorded.
                torch.cuda.empty_cache()

    def free_memory(self) -> None:
        """Drop what is kept for speed, and give the allocator's spare memory back."""
        super().free_memory()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def _launch(self, shares: Seq[ScheduledSequence]) -> CudaStep:
        tokens = self._flatten(shares)
        images = self._image_rows(shares)
        if self._decoder is not None and images is None and self._decoder.fits(shares):
            logits, largest = self._decoder.run(tokens, shares)
        else:
            inputs = self._eager_inputs(tokens, shares, images)
            logits = self._prompts.logits(self._text, inputs, self.cache, shares)
            largest = logits.argmax(-1)
        rows = self._rows.rows(shares)
        chosen = Chosen(largest, None) if all(map(_is_greedy, rows)) else choose(logits, rows)
        step = CudaStep(chosen, self._aside, self._prompts.take(shares))
        # Last: if anything before fails, the step before stays the latest one.
        self._remember(chosen.token_ids, shares)
        return step

    def _flatten(self, shares: Seq[ScheduledSequence]) -> FlatTokens:
        """The batch's tokens; one past what a sequence knows comes from the last step."""
        token_ids: list[int] = []
        sources: list[int] = []
        positions = []
        sample_rows: list[int] = []
        for share in shares:
            sequence = share.sequence
            known = sequence.token_ids[share.start : share.end]
            missing = share.num_tokens - len(known)
            assert missing <= 1, "a share reaches two tokens past what its sequence knows"
            token_ids += known
            sources += [-1] * len(known)
            if missing:
                token_ids.append(0)
                sources.append(self._places[sequence])
            positions.append(self._keep(sequence).positions.span(share.start, share.end))
            first = len(token_ids) - share.num_tokens
            sample_rows += range(first, first + told_rows(share))
            if share.samples:
                sample_rows.append(len(token_ids) - 1)
        return FlatTokens(
            np.array(token_ids, dtype=np.int32),
            np.array(sources, dtype=np.int32),
            np.concatenate(positions, axis=1, dtype=np.int32, casting="same_kind"),
            np.array(sample_rows, dtype=np.int32),
        )

    def _eager_inputs(
        self, tokens: FlatTokens, shares: Seq[ScheduledSequence], images: ImageRows | None
    ) -> TextInputs:
        arrays = [tokens.token_ids, tokens.sources, tokens.positions, tokens.sample_rows]
        token_ids, sources, positions, sample_rows = upload(arrays, self.device)
        return TextInputs(
            token_ids=resolve_ids(token_ids, sources, self._latest),
            positions=positions,
            attention=self._text.metadata(shares),
            images=images,
            sample_rows=sample_rows,
        )

    def _remember(self, token_ids: Tensor, shares: Seq[ScheduledSequence]) -> None:
        """Keep a step's choices for the next one."""
        sampled = [share.sequence for share in shares if share.samples]
        self._latest[: len(sampled)].copy_(token_ids)
        self._places = {sequence: place for place, sequence in enumerate(sampled)}

    def _make_tower(self, visual: PreTrainedModel) -> FastVisionTower:
        return FastVisionTower(visual, triton_vision)

    def _make_text(self, model: PreTrainedModel) -> CudaTextModel:
        geometry = TextGeometry.of(model)
        limit = self._checkpoint.max_model_len(self._settings.max_model_len)
        block_size = self._settings.block_size
        self._kernels = CudaKernels(geometry, block_size, self.device, limit)
        return CudaTextModel(model, geometry, self._kernels)

    def _new_cache(self, num_blocks: int) -> KVCache:
        return KVCache(self._shape, num_blocks + 1, self.device)

    def _measure_activations(self) -> int:
        """The same, and what the decode graphs hold."""
        return super()._measure_activations() + self._graph_bytes()

    def _graph_bytes(self) -> int:
        """Bytes that recording takes: of the largest graphs, whose memory all others share."""
        config = self.model.config.text_config
        rows = buckets_for(self._settings.max_sequences)[-1]
        heads, splits = config.num_attention_heads, self._kernels.max_splits
        logits = rows * config.vocab_size * (2 * 4 + self.dtype.itemsize)
        partial = rows * heads * splits * (config.head_dim + 1) * 4
        layer = 8 * rows * (config.hidden_size + config.intermediate_size) * self.dtype.itemsize
        shape = self._layer_shape()
        return int(logits + partial + max(layer, shape.recorded_bytes) + shape.num_bytes)

    def _layer_shape(self) -> LayerShape:
        config = self.model.config
        text = config.text_config
        return LayerShape(
            sizes=sizes_for(self.max_batched_tokens),
            max_rows=buckets_for(self._settings.max_sequences)[-1],
            hidden_size=text.hidden_size,
            intermediate_size=text.intermediate_size,
            attention_size=text.num_attention_heads * text.head_dim,
            num_deepstack=len(config.vision_config.deepstack_visual_indexes),
            dtype=self.dtype,
        )

    def _on_device(self) -> AbstractContextManager[object]:
        """Kernels are launched on a thread's current device, whatever their tensors' is."""
        return torch.cuda.device(self.device) if self.device.type == "cuda" else nullcontext()


def probe(
    model: PreTrainedModel, block_size: int, device: torch.device, dtype: torch.dtype
) -> None:
    """Compile and run the kernels that ask most of a device, for this model's heads.

    Raises whatever keeps them from running: heads of another kind, no C compiler, small memories.
    """
    geometry = TextGeometry.of(model)
    kernels = CudaKernels(geometry, block_size, device, block_size)
    with torch.cuda.device(device):
        query = torch.ones((3, geometry.num_heads, geometry.head_dim), dtype=dtype, device=device)
        keys = query[:, : geometry.num_kv_heads].contiguous()
        tables, context, row, tile = upload(
            [np.array(numbers, dtype=np.int32) for numbers in ([[0]], [1], [2], [[0, 2, 0, 0]])],
            device,
        )
        metadata = CudaMetadata(
            row, DecodeRows(row, tables, context, 1), PrefillTiles(tile, tables)
        )
        attended = kernels.attend(query, keys, keys, metadata)
        if not torch.allclose(attended, query):
            raise RuntimeError("the kernels give wrong results on this device")


def _is_greedy(row: Row) -> bool:
    """Whether the largest logit, as the model gives it, decides, and nothing else is asked."""
    return row.temperature == 0.0 and row.plain and row.num_top is None
