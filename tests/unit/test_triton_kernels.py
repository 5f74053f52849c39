"""Each Triton kernel against the torch reference: compiled on a GPU, else in the interpreter."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from torch.nn.functional import layer_norm, silu

pytest.importorskip("triton")

from model.engine.batch import ScheduledSequence
from model.engine.sequence import Sequence
from model.request import GenerateRequest, SamplingParams
from model.runner import (
    kernels,
    triton_attention,
    triton_kernels,
    triton_products,
    triton_vision,
)
from model.runner.attention import build_attention_metadata, context_slots, paged_attention
from model.runner.cuda_kernels import (
    MAX_SPLITS,
    SPLIT_TOKENS,
    CudaKernels,
    CudaMetadata,
    DecodeRows,
    packed_size,
    split_tokens,
    stage,
    unpack,
    upload,
)
from model.runner.kernels import Rotation, TextGeometry
from model.runner.kv_cache import KVCache, KVShape
from tests.unit.triton_interpreter import DEVICE, interpreted

if TYPE_CHECKING:
    from collections.abc import Iterator

CPU = torch.device("cpu")
SPLIT = 128


@pytest.fixture(autouse=True, scope="module")
def _interpreted() -> Iterator[None]:
    with interpreted():
        yield


def random(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed + sum(shape))
    return torch.randn(shape, generator=generator).to(dtype).to(DEVICE)


def close(actual: torch.Tensor, expected: torch.Tensor) -> None:
    """Equal up to rounding: of float32 sums, or of the narrower format that results have."""
    tolerance = {torch.float32: 2e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}[actual.dtype]
    torch.testing.assert_close(
        actual.float().cpu(), expected.float().cpu(), rtol=tolerance, atol=tolerance
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize(
    ("num_inputs", "num_outputs"),
    [
        pytest.param(64, 32, id="less than a tile"),
        pytest.param(2560, 6, id="whole tiles"),
        pytest.param(1037, 7, id="no multiple of anything"),
    ],
)
def test_products_of_one_row(num_inputs: int, num_outputs: int, dtype: torch.dtype) -> None:
    row, norm = random(1, num_inputs, dtype=dtype), random(num_inputs, dtype=dtype)
    weight = random(2 * num_outputs, num_inputs, dtype=dtype) / num_inputs**0.5
    normal = kernels.rms_norm(row.float(), norm.float(), 1e-6)
    both = normal @ weight.float().T
    close(triton_products.norm_product(row, norm, weight, 1e-6), both.to(dtype))
    gate, up = both.chunk(2, dim=1)
    gated = triton_products.norm_gated_product(row, norm, weight, 1e-6)
    close(gated, (silu(gate) * up).to(dtype))
    hidden = random(1, 2 * num_outputs, dtype=dtype)
    total = hidden.float() + row.float() @ weight.float().T
    triton_products.add_product(hidden, row, weight)
    close(hidden, total.to(dtype))


@pytest.mark.parametrize(
    ("num_outputs", "gated", "expected"),
    [
        pytest.param(2048, False, triton_products.PLAIN[2], id="two for each multiprocessor"),
        pytest.param(2560, False, triton_products.PLAIN[1], id="too many for two, all of three"),
        pytest.param(4096, False, triton_products.PLAIN[0], id="two of twice as many columns"),
        pytest.param(6144, False, triton_products.PLAIN[1], id="three in two turns"),
        pytest.param(6144, True, triton_products.GATED[0], id="gated: one full turn"),
        pytest.param(9728, True, triton_products.GATED[1], id="gated: two turns of small ones"),
        pytest.param(12_288, True, triton_products.GATED[0], id="gated: two turns of large ones"),
    ],
)
def test_how_a_product_is_shared_out(
    num_outputs: int, gated: bool, expected: triton_products.Share
) -> None:
    assert triton_products.share_of(num_outputs, 132, gated=gated) == expected


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("num_rows", "width"), [(1, 64), (3, 72), (0, 64)])
def test_add_layer_norm(num_rows: int, width: int, dtype: torch.dtype) -> None:
    rows, addition = (random(num_rows, width, dtype=dtype, seed=i) for i in range(2))
    weight, bias = (random(width, dtype=dtype, seed=i) for i in range(2))
    total = rows + addition
    normal = triton_vision.add_layer_norm(rows, addition, weight, bias, 1e-6)
    close(rows, total)
    close(normal, layer_norm(total, (width,), weight, bias, 1e-6))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("num_heads", "head_dim"), [(1, 16), (3, 24), (16, 72)])
def test_rotation_in_place(num_heads: int, head_dim: int, dtype: torch.dtype) -> None:
    num_patches, width = 5, num_heads * head_dim
    qkv = random(num_patches, 3 * width, dtype=dtype)
    rotation = Rotation(
        *(random(num_patches, head_dim // 2, dtype=dtype, seed=i) for i in range(2))
    )
    turned = kernels.rotate(qkv[:, : 2 * width].view(num_patches, -1, head_dim), rotation)
    values = qkv[:, 2 * width :].clone()
    triton_vision.rotate_in_place(qkv, rotation.cos, rotation.sin, num_heads)
    close(qkv[:, : 2 * width], turned.flatten(1))
    assert torch.equal(qkv[:, 2 * width :], values)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("num_rows", "width"), [(1, 64), (3, 80), (0, 64)])
def test_norms(num_rows: int, width: int, dtype: torch.dtype) -> None:
    rows, addition = (random(num_rows, width, dtype=dtype, seed=i) for i in range(2))
    weight = random(width, dtype=dtype)
    close(triton_kernels.rms_norm(rows, weight, 1e-6), kernels.rms_norm(rows, weight, 1e-6))
    total = rows + addition
    normal = triton_kernels.add_rms_norm(rows, addition, weight, 1e-6)
    close(rows, total)
    # The interpreter cuts bfloat16 off where devices round.
    if dtype is not torch.bfloat16 or DEVICE.type == "cuda":
        assert torch.equal(rows, total), "the sum is written back as torch would round it"
    close(normal, kernels.rms_norm(total, weight, 1e-6))


def test_norm_is_taken_in_float32() -> None:
    rows = torch.full((1, 16), 300.0, dtype=torch.float16, device=DEVICE)
    normal = triton_kernels.rms_norm(rows, torch.ones_like(rows[0]), 1e-6)
    torch.testing.assert_close(normal, torch.ones_like(rows))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("num_rows", "width"), [(3, 24), (2, 1040)])
def test_silu_mul(num_rows: int, width: int, dtype: torch.dtype) -> None:
    gate_up = random(num_rows, 2 * width, dtype=dtype)
    gate, up = gate_up.chunk(2, dim=-1)
    close(triton_kernels.silu_mul(gate_up), silu(gate) * up)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(
    ("heads", "kv_heads", "head_dim"),
    [
        pytest.param(4, 2, 64, id="all heads in one program"),
        pytest.param(12, 4, 16, id="programs that mix queries, keys and values"),
    ],
)
def test_norm_rotate_store(heads: int, kv_heads: int, head_dim: int, dtype: torch.dtype) -> None:
    num_tokens, num_slots = 5, 12
    qkv = random(num_tokens, (heads + 2 * kv_heads) * head_dim, dtype=dtype)
    weight = random(heads + kv_heads, head_dim, dtype=dtype)
    # Angles come with tokens in either dimension's order.
    angle = random(head_dim // 2, num_tokens).t()
    rotation = Rotation(angle.cos().to(dtype), angle.sin().to(dtype))
    slots = torch.tensor([7, -1, 0, 11, -1], dtype=torch.int32, device=DEVICE)
    nan = torch.full((num_slots, kv_heads, head_dim), float("nan"), dtype=dtype, device=DEVICE)
    keys, values = nan.clone(), nan.clone()
    query = triton_kernels.norm_rotate_store(
        qkv, weight, rotation.cos, rotation.sin, slots, keys, values, 1e-6
    )
    parts = qkv.view(num_tokens, -1, head_dim)
    turned = kernels.rotate(
        kernels.rms_norm(parts[:, : heads + kv_heads].clone(), weight, 1e-6), rotation
    )
    close(query, turned[:, :heads])
    kept = slots >= 0
    close(keys[slots[kept]], turned[kept, heads:])
    assert torch.equal(values[slots[kept]], parts[kept, heads + kv_heads :])
    others = torch.ones(num_slots, dtype=torch.bool, device=DEVICE)
    others[slots[kept]] = False
    assert keys[others].isnan().all(), "a token without a slot was written"
    assert values[others].isnan().all(), "a token without a slot was written"


def geometry_of(heads: int, kv_heads: int, head_dim: int) -> TextGeometry:
    half = torch.zeros(head_dim // 2)
    return TextGeometry(heads, kv_heads, head_dim, head_dim**-0.5, 1e-6, half, half.long())


def shares_of(spans: list[tuple[int, int]], block_size: int) -> list[ScheduledSequence]:
    """Shares [start, end) of as many sequences, their blocks in a scattered order."""
    total = sum(-(-end // block_size) for _, end in spans)
    free = torch.randperm(total + 3, generator=torch.Generator().manual_seed(0)).tolist()
    shares = []
    for start, end in spans:
        sequence = Sequence(GenerateRequest("r", (0,) * end, SamplingParams(), seed=0))
        sequence.block_table = [free.pop() for _ in range(-(-end // block_size))]
        shares.append(ScheduledSequence(sequence, start, end - start, samples=True))
    return shares


class Step:
    """A batch over a cache that is NaN wherever its sequences have written nothing."""

    def __init__(
        self,
        spans: list[tuple[int, int]],
        *,
        heads: int = 4,
        kv_heads: int = 2,
        head_dim: int = 16,
        block_size: int = 16,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.geometry = geometry_of(heads, kv_heads, head_dim)
        self.block_size = block_size
        self.shares = shares_of(spans, block_size)
        num_blocks = sum(len(share.sequence.block_table) for share in self.shares) + 4
        shape = KVShape(1, kv_heads, head_dim, block_size, dtype)
        self.cache = KVCache(shape, num_blocks, DEVICE)
        self.cache.storage.fill_(float("nan"))
        num_tokens = sum(share.num_tokens for share in self.shares)
        self.query = random(num_tokens, heads, head_dim, dtype=dtype)
        self.key, self.value = (
            random(num_tokens, kv_heads, head_dim, dtype=dtype, seed=i) for i in (1, 2)
        )
        for number, share in enumerate(self.shares):
            self._write_before(share, number)

    def _write_before(self, share: ScheduledSequence, number: int) -> None:
        slots = context_slots(share.sequence.block_table, share.end, self.block_size)
        before = torch.from_numpy(slots[: share.start]).to(DEVICE)
        shape = (share.start, *self.key.shape[1:])
        dtype = self.key.dtype
        self.cache.write(
            0,
            before,
            random(*shape, dtype=dtype, seed=10 + number),
            random(*shape, dtype=dtype, seed=20 + number),
        )

    def expected(self) -> torch.Tensor:
        """By the reference, which also writes the step's keys and values."""
        metadata = build_attention_metadata(self.shares, self.block_size, DEVICE, self.query.dtype)
        return paged_attention(
            self.query, self.key, self.value, self.cache, 0, metadata, self.geometry.scaling
        )

    def computed(self, max_context: int = 0) -> torch.Tensor:
        """By the kernels, over a cache that the reference has written."""
        longest = max(share.end for share in self.shares)
        cuda = CudaKernels(self.geometry, self.block_size, DEVICE, max_context or longest)
        cuda.split_tokens = SPLIT  # short contexts must have several parts, too
        return self.attend(cuda, cuda.metadata(self.shares))

    def attend(self, cuda: CudaKernels, metadata: CudaMetadata) -> torch.Tensor:
        """Attention alone, of queries that are turned already."""
        return cuda.attend(self.query, self.cache.keys[0], self.cache.values[0], metadata)


every_geometry = pytest.mark.parametrize(
    ("heads", "kv_heads", "head_dim"),
    [(2, 2, 64), (3, 1, 64), (8, 2, 128), (5, 1, 16)],
    ids=["group of 1", "group of 3", "group of 4, 128 wide", "group of 5, 16 wide"],
)
SPANS = [
    pytest.param([(0, 1)], id="the first token alone"),
    pytest.param([(15, 16), (16, 17), (31, 32)], id="decodes at the edges of blocks"),
    pytest.param([(127, 128), (128, 129)], id="decodes at the edges of splits"),
    pytest.param([(300, 301), (4, 5), (63, 64)], id="decodes of ragged contexts"),
    pytest.param([(0, 5), (0, 64), (0, 65)], id="fresh prompts at the edges of tiles"),
    pytest.param([(7, 12), (60, 70), (16, 48)], id="chunks that start in the middle"),
    pytest.param([(0, 3), (40, 41), (130, 137), (0, 1), (63, 64)], id="everything at once"),
]


@pytest.mark.parametrize("spans", SPANS)
@pytest.mark.parametrize("block_size", [16, 4])
def test_attention_among_nan_slots(spans: list[tuple[int, int]], block_size: int) -> None:
    step = Step(spans, block_size=block_size)
    expected = step.expected()
    close(step.computed(), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@every_geometry
def test_attention_of_every_geometry(
    heads: int, kv_heads: int, head_dim: int, dtype: torch.dtype
) -> None:
    step = Step(
        [(140, 141), (20, 25), (9, 10)],
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        dtype=dtype,
    )
    expected = step.expected()
    close(step.computed(), expected)


def test_a_row_does_not_depend_on_the_batch_around_it() -> None:
    spans = [(300, 301), (4, 5), (150, 151)]
    step = Step(spans)
    step.expected()
    together = step.computed(max_context=10 * SPLIT)
    for number, share in enumerate(step.shares):
        alone = Step(spans)
        alone.cache, alone.shares = step.cache, [share]
        alone.query = step.query[number : number + 1].clone()
        assert torch.equal(alone.computed()[0], together[number])


def test_programs_that_share_splits_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    step = Step([(1300, 1301)])
    expected = step.expected()
    apart = step.computed()
    monkeypatch.setattr(triton_attention, "DECODE_PROGRAMS", 1)
    monkeypatch.setattr(triton_attention, "LEAST_PROGRAMS", 2)
    assert torch.equal(step.computed(), apart)
    close(apart, expected)


def test_padding_rows_become_zeros_and_touch_nothing() -> None:
    step = Step([(20, 21)])
    expected = step.expected()
    cuda = CudaKernels(step.geometry, step.block_size, DEVICE, 1024)
    # What lies in a padding row's table must not matter: it has no context.
    step.query = torch.cat([step.query, torch.full_like(step.query, float("nan"))])
    tables = torch.full((2, 4), 1 << 20, dtype=torch.int32, device=DEVICE)
    tables[0, :2] = torch.tensor(step.shares[0].sequence.block_table)
    rows, contexts = (
        torch.tensor(numbers, dtype=torch.int32, device=DEVICE) for numbers in ([0, 1], [21, 0])
    )
    decode = DecodeRows(rows, tables, contexts, max_splits=4)
    output = step.attend(cuda, CudaMetadata(rows, decode, None))
    close(output[:1], expected)
    assert torch.equal(output[1], torch.zeros_like(output[1]))


def test_arrays_cross_side_by_side_and_aligned() -> None:
    step = Step([(0, 3), (5, 6)])
    metadata = CudaKernels(step.geometry, 16, DEVICE, 64).metadata(step.shares)
    assert metadata.decode is not None
    assert metadata.prefill is not None
    parts = [metadata.slots, metadata.decode.rows, metadata.decode.contexts]
    parts += [metadata.decode.tables, metadata.prefill.tiles, metadata.prefill.tables]
    assert all(part.data_ptr() % 64 == 0 for part in parts)
    first, second = (share.sequence.block_table[0] * 16 for share in step.shares)
    assert metadata.slots.tolist() == [first, first + 1, first + 2, second + 5]
    assert metadata.decode.rows.tolist() == [3]
    assert metadata.prefill.tiles.tolist() == [[0, 3, 0, 0]]


def test_upload_keeps_shapes_and_values() -> None:
    arrays = [random(*shape).mul(9).int().cpu().numpy() for shape in ((3, 5), (0, 4), (17,))]
    for sent, array in zip(upload(arrays, DEVICE), arrays, strict=True):
        assert torch.equal(sent.cpu(), torch.from_numpy(array))
    shapes = [array.shape for array in arrays]
    assert packed_size(shapes) == len(stage(arrays, DEVICE)) == 16 + 0 + 32
    assert [part.shape for part in unpack(stage(arrays, CPU), shapes)] == shapes


@pytest.mark.parametrize("max_context", [1, 2048, 32_768, 40_000, 262_144])
def test_no_context_has_more_splits_than_there_is_room_for(max_context: int) -> None:
    tokens = split_tokens(max_context)
    assert tokens >= SPLIT_TOKENS
    assert tokens % triton_attention.DECODE_TILE == 0
    assert -(-max_context // tokens) <= MAX_SPLITS


def test_heads_that_kernels_cannot_compute_are_refused() -> None:
    with pytest.raises(ValueError, match="head_dim is 80; the kernels take powers of two"):
        CudaKernels(geometry_of(4, 2, 80), 16, DEVICE, 1024)
