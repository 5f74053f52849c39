"""What `make bench-gpu` measures, part by part; each part yields figures as it finds them.

Byte and operation counts are of the work itself: weights and KV read once a step, products and
attention without what padding or masking adds.
"""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
import triton  # type: ignore[import-untyped]
from accelerate import init_empty_weights
from torch import nn
from transformers import Qwen3VLForConditionalGeneration

from model.checkpoint import Checkpoint, DefaultSampling
from model.engine.batch import ScheduledBatch, ScheduledSequence
from model.engine.sequence import Sequence
from model.request import GenerateRequest, ImageInput, SamplingParams
from model.runner.cuda_runner import CudaRunner
from model.settings import EngineSettings
from tests.bench.machine import describe_machine
from tests.checkpoints import IMAGE_PAD, Shape, build_config

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from collections.abc import Sequence as Seq

    from transformers import PreTrainedModel

    from model.engine.batch import LaunchedStep
    from model.runner.cuda_graphs import DecodeGraphs
    from model.runner.runner import TorchRunner

PEAKS = "peaks"
CONTEXT, PROMPT_TOKENS, BLOCK_SIZE = 1500, 1152, 16
BATCHES = (1, 32, 128)
STEPS = 40
IMAGE_SIDE = 1024
# Vision of the two smaller models, and the rotary sections of all.
_COMMON = Shape(
    vocab_size=151_936,
    num_kv_heads=8,
    head_dim=128,
    mrope_section=(24, 20, 20),
    max_position_embeddings=262_144,
    tied=True,
    vision_depth=24,
    vision_hidden_size=1024,
    vision_intermediate_size=4096,
    vision_heads=16,
    deepstack_layers=(5, 11, 17),
    num_position_embeddings=2304,
    min_pixels=65_536,
    max_pixels=16_777_216,
)
SHAPES = {
    "2B": replace(_COMMON, hidden_size=2048, intermediate_size=6144, num_layers=28, num_heads=16),
    "4B": replace(_COMMON, hidden_size=2560, intermediate_size=9728, num_layers=36, num_heads=32),
    "8B": replace(
        _COMMON,
        hidden_size=4096,
        intermediate_size=12_288,
        num_layers=36,
        num_heads=32,
        tied=False,
        vision_depth=27,
        vision_hidden_size=1152,
        vision_intermediate_size=4304,
        deepstack_layers=(8, 16, 24),
    ),
}
DEVICE = torch.device("cuda")


@dataclass(frozen=True, slots=True)
class Figure:
    """One measurement; unit "byte/s" and "FLOP/s" are compared with the peaks."""

    part: str
    name: str
    value: float
    unit: str
    note: str = ""


def device_seconds(run: Callable[[], object], repeats: int = 10) -> float:
    """The median of a call, by the device's clock."""
    for _ in range(3):
        run()
    times: list[float] = []
    for _ in range(repeats):
        start, end = (
            torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
            for _ in range(2)
        )
        start.record()
        run()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) / 1000)
    return statistics.median(times)


# Peaks


def measure_peaks() -> Iterator[Figure]:
    properties = torch.cuda.get_device_properties(DEVICE)
    note = (
        f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB, CUDA {torch.version.cuda}, "
        f"triton {triton.__version__}; {describe_machine()}"
    )
    yield Figure(PEAKS, "copy", _copy_rate(), "byte/s", note)
    yield Figure(PEAKS, "matmul", _product_rate(), "FLOP/s", note)


def _copy_rate() -> float:
    source = torch.empty(1 << 30, dtype=torch.int16, device=DEVICE)
    target = torch.empty_like(source)
    return 2 * source.nbytes / device_seconds(lambda: target.copy_(source))


def _product_rate() -> float:
    left, right = (torch.randn(8192, 8192, dtype=torch.bfloat16, device=DEVICE) for _ in range(2))
    return 2 * 8192**3 / device_seconds(lambda: left @ right, repeats=30)


# Sequences without an engine


def make_sequences(runner: TorchRunner, lengths: Seq[int], seed: int = 0) -> list[Sequence]:
    """Sequences of random text with blocks for some more tokens, none shared."""
    # Each with a generator of its own: runners have the same tokens, however many blocks they have.
    draw = np.random.default_rng(seed)
    free = iter(np.random.default_rng(seed).permutation(runner.num_blocks).tolist())
    sequences = []
    for number, length in enumerate(lengths):
        ids = tuple(draw.integers(0, 256, length).tolist())
        sequence = Sequence(GenerateRequest(f"{number}", ids, SamplingParams(), seed=0))
        room = -(-(length + 2 * STEPS) // BLOCK_SIZE)
        sequence.block_table = [next(free) for _ in range(room)]
        sequences.append(sequence)
    return sequences


def batch_of(sequences: Seq[Sequence], *, whole: bool = False) -> ScheduledBatch:
    """All tokens of each sequence, or its last one."""
    return ScheduledBatch(
        tuple(
            ScheduledSequence(s, 0, len(s.token_ids), samples=True)
            if whole
            else ScheduledSequence(s, len(s.token_ids) - 1, 1, samples=True)
            for s in sequences
        )
    )


def overlapped(runner: TorchRunner, sequences: Seq[Sequence], steps: int) -> Iterator[list[int]]:
    """Decode all sequences together; each step is launched before the one before is read."""
    launched: LaunchedStep | None = None
    for step in range(steps):
        shares = tuple(
            ScheduledSequence(s, len(s.token_ids) - 1 + (launched is not None), 1, samples=True)
            for s in sequences
        )
        before, launched = launched, runner.execute(ScheduledBatch(shares))
        if before is not None:
            tokens = [token.token_id for token in before.tokens()]
            for sequence, token_id in zip(sequences, tokens, strict=True):
                sequence.token_ids.append(token_id)
            yield tokens
        assert step < 2 * STEPS, "sequences have blocks for no more"
    if launched is not None:
        yield [token.token_id for token in launched.tokens()]


def decoder_of(runner: CudaRunner) -> DecodeGraphs:
    assert runner._decoder is not None
    return runner._decoder


# One published shape


def measure_model(name: str) -> Iterator[Figure]:
    shape = SHAPES[name]
    model = random_model(shape)
    weight_bytes = _decode_weight_bytes(model)
    started = time.perf_counter()
    runner = _bench_runner(model, shape)
    runner.warm_up()
    torch.cuda.synchronize()
    yield Figure(name, "ready after loading", time.perf_counter() - started, "s")
    yield from _vision(name, runner, shape)
    yield from _prefill(name, runner, shape)
    for batch in BATCHES:
        yield from _decode(name, runner, batch, weight_bytes)


def random_model(shape: Shape) -> PreTrainedModel:
    """A model of this shape with bfloat16 weights that are made on the device."""
    with init_empty_weights(include_buffers=False):
        model = Qwen3VLForConditionalGeneration(build_config(shape))
    for name, parameter in list(model.named_parameters()):
        parent, _, leaf = name.rpartition(".")
        value = torch.empty(parameter.shape, dtype=torch.bfloat16, device=DEVICE)
        value.fill_(1.0) if parameter.ndim == 1 else value.normal_(std=0.02)
        setattr(model.get_submodule(parent), leaf, nn.Parameter(value, requires_grad=False))
    if shape.tied:
        model.lm_head.weight = model.model.language_model.embed_tokens.weight
    for module in model.modules():
        for name, buffer in module.named_buffers(recurse=False):
            setattr(module, name, buffer.to(DEVICE))
    return model.eval()


def _bench_runner(model: PreTrainedModel, shape: Shape) -> CudaRunner:
    """A runner whose cache holds the largest batch, filled with numbers."""
    blocks = BATCHES[-1] * (-(-(CONTEXT + 2 * STEPS) // BLOCK_SIZE) + 1)
    settings = EngineSettings(
        max_sequences=BATCHES[-1],
        max_model_len=4096,
        block_size=BLOCK_SIZE,
        kv_cache_bytes=blocks * BLOCK_SIZE * _kv_token_bytes(shape),
        embedding_cache_bytes=0,
    )
    runner = CudaRunner(model, _checkpoint(shape), settings)
    runner.cache.storage.normal_()
    return runner


def _kv_token_bytes(shape: Shape) -> int:
    return 2 * shape.num_layers * shape.num_kv_heads * shape.head_dim * 2


def _checkpoint(shape: Shape) -> Checkpoint:
    """What a folder of this shape would say."""
    return Checkpoint(
        path=Path("random"),
        dtype="bfloat16",
        vocab_size=shape.vocab_size,
        max_position_embeddings=shape.max_position_embeddings,
        eos_token_ids=frozenset(),
        image_token_id=IMAGE_PAD,
        vision_start_token_id=0,
        vision_end_token_id=0,
        patch_size=shape.patch_size,
        merge_size=shape.merge_size,
        temporal_patch_size=2,
        image_mean=shape.image_mean,
        image_std=shape.image_std,
        min_pixels=shape.min_pixels,
        max_pixels=shape.max_pixels,
        default_sampling=DefaultSampling(),
    )


def _decode_weight_bytes(model: PreTrainedModel) -> int:
    """Weights that a decode step reads: layers, last norm and head."""
    language_model = model.model.language_model
    parts = [*language_model.layers.parameters(), *language_model.norm.parameters()]
    return sum(part.nbytes for part in [*parts, model.lm_head.weight])


def _decode(name: str, runner: CudaRunner, batch: int, weight_bytes: int) -> Iterator[Figure]:
    shape = SHAPES[name]
    sequences = make_sequences(runner, [CONTEXT] * batch)
    for _ in overlapped(runner, sequences, 8):
        pass
    torch.cuda.synchronize()
    started = time.perf_counter()
    for _ in overlapped(runner, sequences, STEPS):
        pass
    seconds = (time.perf_counter() - started) / STEPS
    context = sum(len(s.token_ids) for s in sequences) - batch * STEPS // 2
    num_bytes = weight_bytes + context * _kv_token_bytes(shape)
    note = f"{batch / seconds:,.0f} tok/s, {seconds * 1000:.2f} ms a step"
    yield Figure(name, f"decode, B={batch}, context {CONTEXT}", num_bytes / seconds, "byte/s", note)
    # What the host takes to launch: a step cannot be shorter than this.
    started = time.perf_counter()
    step = runner.execute(batch_of(sequences))
    launch = time.perf_counter() - started
    step.tokens()
    device = _graph_seconds(runner, batch)
    note = f"the graph alone {device * 1000:.2f} ms"
    yield Figure(name, f"launching it, B={batch}", launch * 1000, "ms", note)
    runner.release(sequences)


def _graph_seconds(runner: CudaRunner, batch: int) -> float:
    """The recorded step over the buffers as they are."""
    decoder = decoder_of(runner)
    return device_seconds(decoder._graphs[batch].replay)


def _prefill(name: str, runner: CudaRunner, shape: Shape) -> Iterator[Figure]:
    for count in (1, 4):
        sequences = make_sequences(runner, [PROMPT_TOKENS] * count)
        batch = batch_of(sequences, whole=True)
        seconds = device_seconds(lambda batch=batch: runner.execute(batch))  # type: ignore[misc]
        flops = count * _prefill_flops(shape, PROMPT_TOKENS)
        note = f"{count * PROMPT_TOKENS / seconds:,.0f} tok/s, {seconds * 1000:.1f} ms"
        yield Figure(
            name, f"prefill, {count} x {PROMPT_TOKENS} tokens", flops / seconds, "FLOP/s", note
        )
        runner.release(sequences)


def _prefill_flops(shape: Shape, num_tokens: int) -> float:
    width = shape.num_heads * shape.head_dim
    kv_width = shape.num_kv_heads * shape.head_dim
    layer = shape.hidden_size * (2 * width + 2 * kv_width + 3 * shape.intermediate_size)
    products = 2 * num_tokens * shape.num_layers * layer + 2 * shape.hidden_size * shape.vocab_size
    return products + 2 * shape.num_layers * width * num_tokens**2


def _vision(name: str, runner: CudaRunner, shape: Shape) -> Iterator[Figure]:
    for count in (1, 4):
        images = [make_image(shape, (IMAGE_SIDE, IMAGE_SIDE), number) for number in range(count)]
        seconds = device_seconds(lambda images=images: runner.vision.encode(images))  # type: ignore[misc]
        flops = count * _vision_flops(shape, (IMAGE_SIDE // shape.patch_size) ** 2)
        note = f"{count / seconds:.1f} images/s, {seconds * 1000:.1f} ms"
        what = f"vision, {count} x {IMAGE_SIDE}x{IMAGE_SIDE}"
        yield Figure(name, what, flops / seconds, "FLOP/s", note)


def make_image(shape: Shape, size: tuple[int, int], seed: int) -> ImageInput:
    """Random pixels; size: (height, width), multiples of a merge window."""
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    rows, columns = (side // shape.patch_size for side in size)
    num_tokens = rows * columns // shape.merge_size**2
    return ImageInput(pixels, rows, columns, 0, num_tokens, b"", *size)


def _vision_flops(shape: Shape, num_patches: int) -> float:
    """Blocks, patch embedding and mergers; attention is over the whole image, not causal."""
    hidden, merged = shape.vision_hidden_size, shape.vision_hidden_size * shape.merge_size**2
    block = 4 * hidden**2 + 2 * hidden * shape.vision_intermediate_size
    products = shape.vision_depth * block + 3 * shape.patch_size**2 * hidden
    mergers = (1 + len(shape.deepstack_layers)) * (merged**2 + merged * shape.hidden_size)
    attention = 4 * shape.vision_depth * hidden * num_patches**2
    return 2 * num_patches * (products + mergers / shape.merge_size**2) + attention
