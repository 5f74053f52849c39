"""The compiled CPU kernels against the same in torch, among slots that hold NaN."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from model.engine.batch import ScheduledSequence
from model.engine.sequence import Sequence
from model.request import GenerateRequest, SamplingParams
from model.runner.kernels import TextGeometry, TorchKernels, rotation_of
from model.runner.kv_cache import KVCache, KVShape
from model.runner.native import NativeKernels, compiled, supports

CPU = torch.device("cpu")
BLOCK_SIZE, NUM_BLOCKS = 16, 300
TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 3e-2}


def geometry_of(num_heads: int, num_kv_heads: int, head_dim: int) -> TextGeometry:
    half = head_dim // 2
    return TextGeometry(
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        scaling=head_dim**-0.5,
        eps=1e-6,
        inverse_frequencies=1e4 ** -(torch.arange(half) / half),
        axes=torch.arange(half) % 3,
    )


def kernels_of(geometry: TextGeometry, dtype: torch.dtype) -> NativeKernels:
    if not supports(geometry, dtype):
        pytest.skip("the kernels were not compiled: no C compiler")
    return NativeKernels(geometry, BLOCK_SIZE, dtype)


def shares_of(spans: list[tuple[int, int]]) -> list[ScheduledSequence]:
    """Shares [start, end) of as many sequences, their blocks scattered."""
    free = iter(torch.randperm(NUM_BLOCKS, generator=torch.Generator().manual_seed(0)).tolist())
    shares = []
    for start, end in spans:
        sequence = Sequence(GenerateRequest("r", (0,) * end, SamplingParams(), seed=0))
        sequence.block_table = [next(free) for _ in range(-(-end // BLOCK_SIZE))]
        shares.append(ScheduledSequence(sequence, start, end - start, samples=True))
    return shares


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("heads", [(12, 4, 64), (4, 4, 128), (16, 2, 128), (6, 2, 16)], ids=str)
@pytest.mark.parametrize(
    "spans",
    [
        pytest.param([(0, 1)], id="first token alone"),
        pytest.param([(15, 16), (16, 17), (31, 32), (32, 33)], id="page boundaries"),
        pytest.param([(700, 701), (3, 4)], id="long and short"),
        pytest.param([(0, 40), (99, 100), (17, 60), (5, 6)], id="chunks and decodes"),
    ],
)
def test_attention_equals_torch(
    spans: list[tuple[int, int]], heads: tuple[int, int, int], dtype: torch.dtype
) -> None:
    geometry = geometry_of(*heads)
    num_heads, num_kv_heads, head_dim = heads
    shares = shares_of(spans)
    torch.manual_seed(0)
    num_tokens = sum(share.num_tokens for share in shares)
    qkv = torch.randn(num_tokens, (num_heads + 2 * num_kv_heads) * head_dim).to(dtype)
    qk_norm = (1 + 0.1 * torch.randn(num_heads + num_kv_heads, head_dim)).to(dtype)
    rotation = rotation_of(torch.randint(0, 1000, (3, num_tokens)), geometry, dtype)
    past = torch.randn(NUM_BLOCKS * BLOCK_SIZE, num_kv_heads, head_dim).to(dtype)
    results, caches = [], []
    for kernels in (
        kernels_of(geometry, dtype),
        TorchKernels(geometry, BLOCK_SIZE, CPU, dtype),
    ):
        cache = KVCache(KVShape(1, num_kv_heads, head_dim, BLOCK_SIZE, dtype), NUM_BLOCKS, CPU)
        cache.storage.fill_(float("nan"))
        for share in shares:
            for token in range(share.start):
                block = share.sequence.block_table[token // BLOCK_SIZE]
                slot = torch.tensor([block * BLOCK_SIZE + token % BLOCK_SIZE])
                cache.write(0, slot, past[slot], past[slot].flip(0))
        metadata = kernels.metadata(shares)
        results.append(kernels.attention(0, qkv.clone(), qk_norm, rotation, cache, metadata))
        caches.append(cache.storage)
    tolerance = TOLERANCE[dtype]
    torch.testing.assert_close(*results, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(*caches, rtol=tolerance, atol=tolerance, equal_nan=True)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("shape", [(1, 64), (3, 100), (200, 768)], ids=str)
def test_elementwise_kernels_equal_torch(shape: tuple[int, int], dtype: torch.dtype) -> None:
    geometry = geometry_of(4, 4, 16)
    ours, theirs = kernels_of(geometry, dtype), TorchKernels(geometry, BLOCK_SIZE, CPU, dtype)
    torch.manual_seed(0)
    hidden, addition = (30 * torch.randn(shape).to(dtype) for _ in range(2))
    weight = torch.randn(shape[1]).to(dtype)
    tolerance = {"rtol": TOLERANCE[dtype], "atol": TOLERANCE[dtype]}
    torch.testing.assert_close(
        ours.rms_norm(hidden, weight), theirs.rms_norm(hidden, weight), **tolerance
    )
    sums = [hidden.clone(), hidden.clone()]
    normals = [
        kernels.add_rms_norm(total, addition, weight)
        for kernels, total in zip((ours, theirs), sums, strict=True)
    ]
    torch.testing.assert_close(*sums, **tolerance)
    torch.testing.assert_close(*normals, **tolerance)
    torch.testing.assert_close(
        ours.silu_mul(hidden.repeat(1, 2)), theirs.silu_mul(hidden.repeat(1, 2)), **tolerance
    )


def test_silu_of_any_number_is_torchs() -> None:
    kernels = kernels_of(geometry_of(4, 4, 16), torch.float32)
    gate = torch.cat([torch.linspace(-120, 120, 4801), torch.tensor([-1e30, 1e30, 0.0, -0.0])])
    result = kernels.silu_mul(torch.cat([gate, torch.ones_like(gate)])[None])[0]
    torch.testing.assert_close(result, torch.nn.functional.silu(gate), rtol=1e-6, atol=1e-30)


@pytest.mark.parametrize(
    ("change", "dtype"),
    [
        ({}, torch.float16),
        ({"num_heads": 66, "num_kv_heads": 2}, torch.float32),
        ({"head_dim": 512}, torch.float32),
    ],
    ids=["float16", "33 queries a key head", "head_dim 512"],
)
def test_models_beyond_the_kernels_bounds_go_without(
    change: dict[str, int], dtype: torch.dtype
) -> None:
    assert not supports(replace(geometry_of(4, 4, 16), **change), dtype)


def test_a_missing_library_is_told_and_torch_serves(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(compiled, "LIBRARY", compiled.LIBRARY.with_name("absent.so"))
    assert not supports(geometry_of(4, 4, 16), torch.float32)
    assert "no compiled kernels, so decoding is slower" in caplog.text
