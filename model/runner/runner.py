"""One step of the engine on the device: ScheduledBatch in, next token ids out.

Keeps, for each running sequence, its positions and the image embeddings its prefill still needs.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch

from model.engine.batch import (
    FinishedStep,
    ScheduledBatch,
    ScheduledImage,
    ScheduledSequence,
    nothing,
)
from model.engine.sequence import Sequence
from model.request import GenerateRequest, ImageInput, SamplingParams
from model.runner.device import device_errors
from model.runner.embeddings import EmbeddingCache, embedding_key
from model.runner.fast_text import FastTextModel
from model.runner.fast_vision import FastVisionTower
from model.runner.kernels import TextGeometry, TorchKernels
from model.runner.kv_cache import KVCache, KVShape, size_kv_cache
from model.runner.native import NativeKernels, supports
from model.runner.placement import Placement
from model.runner.positions import PromptPositions, batch_positions, prompt_positions
from model.runner.prompt_logprobs import PromptLogprobs, attach, told_rows
from model.runner.qwen3_vl import ImageRows, TextInputs, TextModel
from model.runner.rows import RowSource
from model.runner.sampler import sample
from model.runner.spread import SpreadKVCache, SpreadTextModel, num_spread_blocks
from model.runner.vision import ImageEmbeddings, ReferenceTower, VisionEncoder

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from collections.abc import Sequence as Seq

    from transformers import PreTrainedModel

    from model.checkpoint import Checkpoint
    from model.engine.batch import LaunchedStep
    from model.runner.embeddings import Key
    from model.runner.kernels import TextKernels
    from model.settings import EngineSettings

logger = logging.getLogger(__name__)

# A CPU's products are at their best with a few hundred rows; more only make others wait.
BATCHED_TOKENS_CPU = 512
BATCHED_TOKENS = 2048


@dataclass(frozen=True, slots=True)
class RunnerMemory:
    """What the runner holds on its device, in bytes."""

    weight_bytes: int
    kv_cache_bytes: int


@dataclass(slots=True)
class _Kept:
    """What is kept for one sequence between steps; embeddings by the image's index."""

    positions: PromptPositions
    embeddings: dict[int, ImageEmbeddings] = field(default_factory=dict)


class TorchRunner:
    """The engine's Runner over a transformers model."""

    def __init__(
        self,
        model: PreTrainedModel,
        checkpoint: Checkpoint,
        settings: EngineSettings,
        placement: Placement | None = None,
    ) -> None:
        self.model = model
        self.computing: Callable[[], None] = nothing
        weight = model.model.language_model.embed_tokens.weight
        self.device: torch.device = weight.device
        self.dtype: torch.dtype = weight.dtype
        self._checkpoint = checkpoint
        self._settings = settings
        self._weight_bytes = _weight_bytes(model)
        num_layers = model.config.text_config.num_hidden_layers
        self.placement = placement or Placement.on(self.device, num_layers)
        self._shape = KVShape.of(model.config.text_config, settings.block_size, self.dtype)
        self._text = self._make_text(model)
        visual = model.model.visual
        tower = ReferenceTower(visual) if settings.reference else self._make_tower(visual)
        self.vision = VisionEncoder(tower, checkpoint, self.device, self.dtype)
        self.embedding_cache = EmbeddingCache(settings.embedding_cache_bytes)
        self._kept: dict[Sequence, _Kept] = {}
        self._rows = RowSource(checkpoint)
        self._prompts = PromptLogprobs()
        self.cache = self._allocate()

    @property
    def num_blocks(self) -> int:
        """Blocks that sequences may own."""
        return self.cache.num_blocks

    @property
    def block_size(self) -> int:
        """Tokens a block holds."""
        return self._shape.block_size

    def memory(self) -> RunnerMemory:
        """What is held now."""
        return RunnerMemory(self._weight_bytes, self.cache.num_bytes)

    @property
    def max_batched_tokens(self) -> int:
        """What is set, else what suits the device."""
        on_device = BATCHED_TOKENS_CPU if self.device.type == "cpu" else BATCHED_TOKENS
        return self._settings.max_batched_tokens or on_device

    @property
    def overlaps(self) -> bool:
        """Never: a step's tokens are known when it returns."""
        return False

    @torch.inference_mode()
    def execute(self, batch: ScheduledBatch) -> LaunchedStep:
        """Run one step; raises OutOfDeviceMemory, DeviceFailure."""
        with device_errors():
            if batch.images:
                self.computing()
            self._encode(batch.images)
            if not batch.sequences:
                return FinishedStep([])
            inputs = self._inputs(batch.sequences)
            logits = self._prompts.logits(self._text, inputs, self.cache, batch.sequences)
            tokens = sample(logits, self._rows.rows(batch.sequences))
        self._drop_used(batch.sequences)
        return FinishedStep(attach(tokens, self._prompts.take(batch.sequences)))

    def free_memory(self) -> None:
        """Drop the embeddings of pictures that no running sequence needs."""
        self.embedding_cache.clear()

    def release(self, sequences: Iterable[Sequence]) -> None:
        """Forget what is kept for these; unknown ones are fine."""
        sequences = list(sequences)
        self._rows.release(sequences)
        self._prompts.release(sequences)
        for sequence in sequences:
            self._kept.pop(sequence, None)

    @property
    def num_kept(self) -> int:
        """Sequences something is kept for."""
        return len(self._kept) + len(self._prompts)

    def kept_images(self, sequence: Sequence) -> frozenset[int]:
        """Indices of the sequence's images whose embeddings are held."""
        kept = self._kept.get(sequence)
        return frozenset(kept.embeddings) if kept else frozenset()

    def warm_up(self) -> None:
        """Run one small image and a text through the real path, prefill and decode; keeps nothing.

        The cache's blocks hold leftovers afterwards, as after any sequence: they are never read
        before their next owner writes them.
        """
        self._run_alone(self._synthetic_request(num_tokens=8, image_side=2), num_steps=2)

    def _encode(self, images: Seq[ScheduledImage]) -> None:
        """Give sequences their images' embeddings; each picture not seen lately is encoded once."""
        found: dict[Key, ImageEmbeddings] = {}
        missing: dict[Key, ImageInput] = {}
        keys: list[Key] = []
        for item in images:
            image = item.sequence.request.images[item.image_index]
            key = embedding_key(item.sequence.request, image)
            keys.append(key)
            if (known := self.embedding_cache.get(key)) is not None:
                found[key] = known
            else:
                missing[key] = image
        encoded = self.vision.encode(list(missing.values()))
        for key, embeddings in zip(missing, encoded, strict=True):
            found[key] = embeddings
            self.embedding_cache.put(key, embeddings)
        for item, key in zip(images, keys, strict=True):
            self._keep(item.sequence).embeddings[item.image_index] = found[key]

    def _keep(self, sequence: Sequence) -> _Kept:
        kept = self._kept.get(sequence)
        if kept is None:
            images = sequence.request.images
            merge_size = self._checkpoint.merge_size
            kept = _Kept(prompt_positions(sequence.num_prompt_tokens, images, merge_size))
            self._kept[sequence] = kept
        return kept

    def _inputs(self, shares: Seq[ScheduledSequence]) -> TextInputs:
        """Flatten the shares into the tensors of one step."""
        token_ids: list[int] = []
        spans = []
        sample_rows: list[int] = []
        for share in shares:
            first, end = len(token_ids), share.end
            token_ids += share.sequence.token_ids[share.start : end]
            spans.append((self._keep(share.sequence).positions, share.start, end))
            if num_told := told_rows(share):
                sample_rows += range(first, first + num_told)
            if share.samples:
                sample_rows.append(len(token_ids) - 1)
        return TextInputs(
            token_ids=torch.tensor(token_ids, device=self.device),
            positions=torch.from_numpy(batch_positions(spans)).to(self.device),
            attention=self._text.metadata(shares),
            images=self._image_rows(shares),
            sample_rows=torch.tensor(sample_rows, dtype=torch.int64, device=self.device),
            computing=self.computing,
        )

    def _image_rows(self, shares: Seq[ScheduledSequence]) -> ImageRows | None:
        """Image tokens that fall into this step's shares, None where there are none."""
        rows: list[torch.Tensor] = []
        parts: list[list[torch.Tensor]] = []
        first_row = 0
        for share in shares:
            for index, image in enumerate(share.sequence.request.images):
                start, end = max(share.start, image.offset), min(share.end, image.end)
                if start >= end:
                    continue
                embeddings = self._kept[share.sequence].embeddings.get(index)
                assert embeddings is not None, (
                    "an image's tokens were scheduled before its encoding"
                )
                offset = first_row - share.start
                rows.append(torch.arange(start + offset, end + offset, device=self.device))
                inside = slice(start - image.offset, end - image.offset)
                parts.append(
                    [embeddings.tokens[inside], *(d[inside] for d in embeddings.deepstack)]
                )
            first_row += share.num_tokens
        if not rows:
            return None
        tokens, *deepstack = (torch.cat(layer) for layer in zip(*parts, strict=True))
        return ImageRows(torch.cat(rows), tokens, tuple(deepstack))

    def _drop_used(self, shares: Seq[ScheduledSequence]) -> None:
        """Let go of embeddings whose image is now wholly in the cache."""
        for share in shares:
            kept = self._kept[share.sequence]
            images = share.sequence.request.images
            for index in [i for i in kept.embeddings if images[i].end <= share.end]:
                del kept.embeddings[index]

    def _make_tower(self, visual: PreTrainedModel) -> FastVisionTower:
        return FastVisionTower(visual)

    def _make_text(self, model: PreTrainedModel) -> TextModel | FastTextModel:
        return _text_model(model, self._settings, self.placement, self._shape)

    def _allocate(self) -> KVCache:
        limit = self._checkpoint.max_model_len(self._settings.max_model_len)

        def size(shape: KVShape, device: torch.device) -> int:
            return size_kv_cache(self._settings, shape, limit, device, self._measure_activations)

        if self.placement.spread and self._settings.kv_cache_bytes is None:
            num_blocks = num_spread_blocks(self._shape, self.placement, size)
        else:
            num_blocks = size(self._shape, self.device)
        return self._new_cache(num_blocks)

    def _new_cache(self, num_blocks: int) -> KVCache:
        if self.placement.spread:
            return SpreadKVCache(self._shape, num_blocks, self.placement)
        return KVCache(self._shape, num_blocks, self.device)

    def _measure_activations(self) -> int:
        """Bytes that a largest step takes above what is held: full encoder and token budgets."""
        checkpoint, settings = self._checkpoint, self._settings
        most = checkpoint.max_pixels // checkpoint.pixels_per_token
        side = max(1, int(min(most, settings.max_encoder_tokens) ** 0.5))
        num_tokens = max(self.max_batched_tokens, side * side)
        num_blocks = -(-num_tokens // self.block_size) + 1
        self.cache = self._new_cache(num_blocks)
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(self.device)
        before = torch.cuda.memory_allocated(self.device)
        self._run_alone(self._synthetic_request(num_tokens, side), num_steps=1)
        peak = torch.cuda.max_memory_allocated(self.device) - before
        del self.cache
        torch.cuda.empty_cache()
        return peak

    def _run_alone(self, request: GenerateRequest, num_steps: int) -> None:
        """Prefill a request in one share, then decode, over the first blocks of the cache."""
        sequence = Sequence(request)
        most = self.num_blocks * self.block_size
        sequence.block_table = list(range(self.num_blocks))
        images = tuple(ScheduledImage(sequence, i) for i in range(len(request.images)))
        start = 0
        for _ in range(num_steps):
            num_tokens = min(len(sequence.token_ids), most) - start
            if num_tokens < 1:
                break
            share = ScheduledSequence(sequence, start, num_tokens, samples=True)
            [token] = self.execute(ScheduledBatch((share,), images)).tokens()
            sequence.token_ids.append(token.token_id)
            start, images = share.end, ()
        self.release([sequence])

    def _synthetic_request(self, num_tokens: int, image_side: int) -> GenerateRequest:
        """A prompt of num_tokens that begins with a black image of image_side² tokens."""
        checkpoint = self._checkpoint
        grid = image_side * checkpoint.merge_size
        side = grid * checkpoint.patch_size
        image = ImageInput(
            pixels=np.zeros((side, side, 3), dtype=np.uint8),
            grid_height=grid,
            grid_width=grid,
            offset=0,
            num_tokens=image_side**2,
            digest=b"",
            source_width=side,
            source_height=side,
        )
        ids = [checkpoint.image_token_id] * image.num_tokens + [0] * (num_tokens - image.num_tokens)
        return GenerateRequest("warm-up", tuple(ids), SamplingParams(), seed=0, images=(image,))


def _text_model(
    model: PreTrainedModel, settings: EngineSettings, placement: Placement, shape: KVShape
) -> TextModel | FastTextModel:
    if placement.spread:
        return SpreadTextModel(model, settings.block_size, placement)
    if settings.reference:
        return TextModel(model, settings.block_size)
    geometry, device = TextGeometry.of(model), placement.first
    kernels: TextKernels
    if device.type == "cpu" and supports(geometry, shape.dtype):
        kernels = NativeKernels(geometry, settings.block_size, shape.dtype)
    else:
        kernels = TorchKernels(geometry, settings.block_size, device, shape.dtype)
    return FastTextModel(model, geometry, kernels)


def _weight_bytes(model: PreTrainedModel) -> int:
    return sum(p.numel() * p.element_size() for p in model.parameters())
