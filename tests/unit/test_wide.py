"""The kernels for 512-bit vectors against the same in torch: products, pictures, whole layers."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.functional import gelu, silu
from transformers.models.qwen3_vl.configuration_qwen3_vl import Qwen3VLVisionConfig
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLVisionBlock

from model.runner.fast_vision import Block, Stream, attention_over, spans_of
from model.runner.kernels import Rotation
from model.runner.native.blocks import NativeBlocks
from model.runner.native.compiled import usable
from model.runner.native.wide import WideActivation, WideLinear
from model.runner.packed import make_gated, make_linear

TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 3e-2}
DTYPES = [
    pytest.param(
        dtype,
        id=str(dtype),
        marks=pytest.mark.skipif(not usable(dtype), reason="not for this processor"),
    )
    for dtype in TOLERANCE
]


def linear(in_features: int, out_features: int, dtype: torch.dtype, *, bias: bool) -> nn.Linear:
    layer = nn.Linear(in_features, out_features, bias=bias).requires_grad_(False)
    return layer.to(dtype)


def exact(layer: nn.Linear, rows: torch.Tensor) -> torch.Tensor:
    """In float32, of the same numbers."""
    return layer.to(torch.float32)(rows.to(torch.float32))


def assert_close(actual: torch.Tensor, expected: torch.Tensor, dtype: torch.dtype) -> None:
    assert actual.dtype is dtype
    tolerance = TOLERANCE[dtype]
    torch.testing.assert_close(actual.to(torch.float32), expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("num_rows", [1, 2, 3, 4, 5, 6, 7, 13, 300])
@pytest.mark.parametrize(
    ("in_features", "out_features"), [(48, 64), (384, 100), (768, 1), (2050, 192)]
)
def test_a_product_of_any_size_is_torchs(
    in_features: int, out_features: int, num_rows: int, dtype: torch.dtype
) -> None:
    torch.manual_seed(0)
    for bias in (True, False):
        layer = linear(in_features, out_features, dtype, bias=bias)
        rows, plus = (torch.randn(num_rows, size).to(dtype) for size in (in_features, out_features))
        wide = WideLinear(layer)
        expected = exact(layer, rows)
        assert_close(wide(rows), expected, dtype)
        assert_close(wide(rows, plus=plus), expected + plus.to(torch.float32), dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("out_features", [64, 96, 7])
def test_activations_are_torchs(out_features: int, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    rows = (8 * torch.randn(9, 64)).to(dtype)
    layer = linear(64, out_features, dtype, bias=True)
    curved = WideLinear(layer, WideActivation.GELU_TANH)(rows)
    assert_close(curved, gelu(exact(layer, rows), approximate="tanh"), dtype)
    pair = linear(64, 2 * out_features, dtype, bias=False)
    gated = WideLinear(pair, WideActivation.SWIGLU)(rows)
    gate, up = exact(pair, rows).chunk(2, dim=-1)
    assert_close(gated, silu(gate) * up, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_row_is_the_same_among_any_others(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    wide = WideLinear(linear(768, 256, dtype, bias=False))
    rows = torch.randn(100, 768).to(dtype)
    whole = wide(rows)
    for first, last in ((0, 1), (5, 18), (93, 100)):
        assert torch.equal(wide(rows[first:last]), whole[first:last])


@pytest.mark.parametrize("dtype", DTYPES)
def test_they_are_what_linear_layers_become(dtype: torch.dtype) -> None:
    layer = linear(64, 128, dtype, bias=False)
    assert isinstance(make_linear(layer), WideLinear)
    assert isinstance(make_gated(layer, silu), WideLinear)


def vision_blocks(num_heads: int, head_dim: int, dtype: torch.dtype) -> list[Block]:
    size = num_heads * head_dim
    config = Qwen3VLVisionConfig(
        depth=3, hidden_size=size, intermediate_size=2 * size + 8, num_heads=num_heads
    )
    blocks = [Qwen3VLVisionBlock(config).requires_grad_(False).to(dtype) for _ in range(3)]
    for norm in (norm for block in blocks for norm in (block.norm1, block.norm2)):
        norm.weight.normal_(1, 0.1)
        norm.bias.normal_(0, 0.1)
    return [Block.take(block, num_heads) for block in blocks]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("num_heads", "head_dim"), [(6, 64), (3, 72), (2, 16), (2, 128)], ids=str)
@pytest.mark.parametrize(
    "sizes", [[1], [64], [600], [5, 130, 64]], ids=lambda sizes: f"{sizes} patches"
)
def test_a_call_for_all_vision_blocks_is_one_after_the_other(
    sizes: list[int], num_heads: int, head_dim: int, dtype: torch.dtype
) -> None:
    """With torch's attention over each picture alone, and torch's norms."""
    torch.manual_seed(0)
    blocks = vision_blocks(num_heads, head_dim, dtype)
    hidden = torch.randn(sum(sizes), num_heads * head_dim).to(dtype)
    angles = torch.randn(sum(sizes), head_dim // 2)
    rotation = Rotation(angles.cos().to(dtype), angles.sin().to(dtype))
    stream = Stream(hidden.clone(), None)
    attend = attention_over(rotation, spans_of([(1, size) for size in sizes]), None)
    expected = []
    for block in blocks:
        block.run(stream, attend)
        expected.append(stream.value().to(torch.float32))
    native = NativeBlocks.of(blocks, [0, 2, 2])
    assert native is not None
    for told, after in zip(native(hidden, rotation, sizes), (0, 2, 2), strict=True):
        assert_close(told, expected[after], dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("out_features", [64, 100])
def test_a_packed_weight_gives_its_rows_back(out_features: int, dtype: torch.dtype) -> None:
    layer = linear(48, out_features, dtype, bias=False)
    weight = layer.weight.clone()
    numbers = torch.tensor([0, out_features - 1, 63, 0, 5])
    assert torch.equal(WideLinear(layer).rows(numbers), weight[numbers])
